"""One ``.safetensors`` file = weights + config + provenance.

Inside: the tensors, and one metadata entry named ``attriqa`` that holds a JSON object (one entry, because safetensors
writes several in a random order). A digest in it covers the tensors and the rest of the object, so that a damaged file
is refused, not used. Nothing here reads or writes a pickle.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from attriqa.files import atomic_path

FORMAT_VERSION = 1
_KEY = "attriqa"
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip; protocols 2 to 5
_FIELDS = {"architecture": str, "config": dict, "provenance": dict, "prompts_hash": str | None}
_PICKLE_REFUSED = "a pickle can run code when it is loaded, so it is refused; convert it to .safetensors"
_SHOWN = 5


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: ``str(error)`` is ``"PATH: REASON"``."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["CheckpointError"], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class Checkpoint(NamedTuple):
    """What `load` read: ``state`` has every floating tensor in fp32, on the CPU; ``sha256`` is that of the file."""

    state: dict[str, Tensor]
    architecture: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    prompts_hash: str | None
    sha256: str


def save(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    architecture: str,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    prompts_hash: str | None = None,
    dtype: torch.dtype | None = torch.float16,
) -> None:
    """Write a checkpoint, whole or not at all; equal arguments give equal bytes.

    Floating tensors of two or more dimensions are stored as ``dtype``, unless that would cost accuracy: one whose
    rounding error ``||x - stored(x)|| / ||x||`` (Frobenius norm) exceeds the resolution of ``dtype`` (2^-10 for
    float16), because most of it is too small, is stored as float32. So is every tensor of fewer dimensions (biases,
    BatchNorm statistics): each of its values has a scale of its own, and they are few. Integer and boolean tensors
    are kept as they are.

    Args:
        path: where to write.
        state: a module's ``state_dict()``.
        architecture: the name of the class that ``config`` builds.
        config: JSON types only; comes back from `load` as JSON gives it back (a tuple as a list).
        provenance: data, commit, metrics; JSON types only.
        prompts_hash: `attriqa.attributes.table_hash` of the prompts that the weights depend on, if any.
        dtype: float16, bfloat16, float32, or ``None`` to keep every tensor as it is.

    Raises:
        ValueError: an argument cannot be stored: a tensor (named) with NaN or infinity, or too large for ``dtype`` or
            for the float32 that `load` gives; a config or provenance that is not JSON.
    """
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, None):
        raise ValueError(f"dtype: expected float16, bfloat16, float32 or None, got {dtype}")
    tensors = {name: _stored(name, tensor, dtype) for name, tensor in state.items()}
    about = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "config": _as_json("config", config),
        "provenance": _as_json("provenance", provenance),
        "prompts_hash": prompts_hash,
    }
    about["digest"] = _digest(about, tensors)
    data = safetensors.torch.save(tensors, metadata={_KEY: _dumps(about)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``tensor`` as the file holds it: on the CPU, contiguous, sharing memory with no other."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"state: expected tensors, {name!r} is a {type(tensor).__name__}")  # noqa: TRY004
    tensor = tensor.detach().to("cpu", copy=True).contiguous()
    if tensor.is_complex():
        raise ValueError(f"state: expected real tensors, {name!r} is {tensor.dtype}")
    if not tensor.is_floating_point():
        return tensor
    exact = tensor.double()
    if not exact.isfinite().all():
        raise ValueError(f"state: expected finite tensors, {name!r} holds NaN or infinity")
    wanted = torch.float32 if dtype is None or tensor.ndim < 2 else dtype
    stored = exact.to(wanted)
    if not stored.isfinite().all():
        raise ValueError(f"state: {name!r} reaches {exact.abs().max():.4g}, too large for {wanted}")
    if dtype is None:
        return tensor
    if (stored.double() - exact).norm() > torch.finfo(wanted).eps * exact.norm():
        stored = exact.float()
    return stored


def load(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint; the file is read once, so a writer at the same time cannot mix two of them.

    Raises:
        CheckpointError: not a checkpoint of ours, damaged, or written by a newer version.
        OSError: the file is missing or cannot be read.
    """
    path = Path(path)
    data = path.read_bytes()
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        raise CheckpointError(path, _PICKLE_REFUSED)
    if not data:
        raise CheckpointError(path, "the file is empty")
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        # Only now: a safetensors file begins with the length of its header, and 896 reads as a pickle's first bytes.
        if data.startswith(_PICKLE_STARTS):
            raise CheckpointError(path, _PICKLE_REFUSED) from error
        raise CheckpointError(path, f"not a safetensors file, or a damaged one ({error})") from error
    about = _read_about(path, data)
    _check_digest(path, about, tensors)
    return Checkpoint(
        state={name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()},
        architecture=about["architecture"],
        config=about["config"],
        provenance=about["provenance"],
        prompts_hash=about["prompts_hash"],
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _read_about(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON object of `save`. safetensors has no call that gives tensors and metadata from one reading."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = (header.get("__metadata__") or {}).get(_KEY)
    if text is None:
        raise CheckpointError(path, "safetensors, but not written by attriqa: it lacks the config")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, "damaged: its metadata is not JSON") from error
    version = about.get("format_version") if isinstance(about, dict) else None
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(path, "damaged: its metadata has no format version")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            path, f"format version {version} is newer than this attriqa reads ({FORMAT_VERSION}); upgrade attriqa"
        )
    wrong = [name for name, kind in _FIELDS.items() if name not in about or not isinstance(about[name], kind)]
    if wrong:
        raise CheckpointError(path, f"damaged: its metadata lacks {', '.join(wrong)}, or has them in another type")
    return cast(dict[str, Any], about)


def _check_digest(path: Path, about: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Take the digest out of ``about`` and compare it with the content's."""
    written = about.pop("digest", None)
    try:
        found = _digest(about, tensors)
    except (ValueError, RecursionError):  # a NaN, an infinity, a nesting that `save` cannot have written
        found = ""
    if found != written:
        raise CheckpointError(path, "damaged: its content does not match the digest it was written with")


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy ``state`` into ``module``, which must have exactly these names and shapes.

    Args:
        module: takes the values, in its own dtype and on its own device.
        state: the ``state`` of a `Checkpoint`.
        path: where the state came from, for the message.

    Raises:
        CheckpointError: names of tensors that only one side has, or whose shapes differ; ``module`` is unchanged.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    misshapen = [
        f"{name} (file {tuple(state[name].shape)}, model {tuple(own[name].shape)})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in (
            ("in the model but not in the file", missing),
            ("in the file but not in the model", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise CheckpointError(path, f"the tensors do not fit {type(module).__name__}; " + "; ".join(problems))
    module.load_state_dict(state, strict=True)


def check_prompts(found: str | None, expected: str | None, path: str | Path) -> None:
    """Raise `CheckpointError`, naming both hashes, unless the file's prompt table is the one at hand.

    Args:
        found: the ``prompts_hash`` of a `Checkpoint`.
        expected: `attriqa.attributes.table_hash` of the table in use, or ``None`` for a model without prompts.
        path: where ``found`` came from, for the message.
    """
    if found != expected:
        raise CheckpointError(
            path,
            f"made with the prompt table {found or '(none)'}, but the table in use is {expected or '(none)'}; "
            "its attributes would mean something else",
        )


def _as_json(name: str, value: Mapping[str, Any]) -> Any:
    """``value`` as JSON gives it back."""
    try:
        return json.loads(_dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected JSON types and finite numbers ({error})") from error


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _digest(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the metadata and over each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(_dumps(about).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
