import errno
import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from attriqa.attributes import ATTRIBUTES, PROMPT_PAIRS, prompt_texts, table_hash
from attriqa.models import checkpoint
from attriqa.models.checkpoint import CheckpointError, check_prompts, load, load_into, save

CONFIG = {"backbone": "resnet50", "stages": [2, 3], "dropout": 0.2, "note": "größer"}
PROVENANCE = {"data": "none", "metrics": {"srocc": 0.5}}


def write(path: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    settings: dict[str, Any] = {"architecture": "Net", "config": CONFIG, "provenance": PROVENANCE}
    save(path, state, **{**settings, **changes})
    return path


def net(seed: int = 0) -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5))
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 2 - 1)
    return module


def stored_dtypes(path: Path) -> dict[str, torch.dtype]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 (not a mapping)


def test_round_trip_gives_back_everything(tmp_path: Path) -> None:
    module = net()
    path = write(tmp_path / "folder" / "net.safetensors", module.state_dict(), prompts_hash="ab12")
    found = load(path)
    assert (found.architecture, found.config, found.provenance, found.prompts_hash) == (
        "Net",
        CONFIG,
        PROVENANCE,
        "ab12",
    )
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.state.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert found.state[name].dtype == (torch.float32 if tensor.is_floating_point() else tensor.dtype)
        torch.testing.assert_close(found.state[name], tensor, rtol=2**-11, atol=2**-25)  # half a step; half a subnormal
    other = net(seed=1)
    load_into(other, found.state, path)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, found.state[name])


def test_odd_tensors_survive(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    count = torch.tensor([2**40])
    state = {
        "transposed": base.T,
        "tied": base,
        "tied too": base,
        "view": base[1:, ::2],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "count": count,
        "tied count": count,
        "mask": torch.tensor([True, False]),
        "double": base.double() / 4,
        "brain": base.bfloat16(),
        "needs grad": nn.Parameter(base),
    }
    found = load(write(tmp_path / "odd.safetensors", state)).state
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        expected = tensor.detach().float() if tensor.is_floating_point() else tensor
        assert torch.equal(found[name], expected), name


def test_matrices_are_stored_in_half_and_vectors_in_single(tmp_path: Path) -> None:
    matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    matrix[0, :8] = 1e-9  # a few tiny weights among larger ones may flush to zero
    variance = torch.full((64,), 1e-3)
    variance[0] = 3e-9  # in half it would flush to zero, and count for nothing beside the others
    path = write(tmp_path / "a.safetensors", {"weight": matrix, "running_var": variance})
    assert stored_dtypes(path) == {"weight": torch.float16, "running_var": torch.float32}
    found = load(path).state
    assert torch.equal(found["running_var"], variance)
    assert (found["weight"] - matrix).norm() <= 2**-11 * matrix.norm()


@pytest.mark.parametrize("scale", [1e-6, 1e-9, 1e-30])  # the squares of 1e-30 vanish in float32
def test_a_matrix_too_small_for_half_is_stored_in_single(tmp_path: Path, scale: float) -> None:
    matrix = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) * scale
    path = write(tmp_path / "a.safetensors", {"weight": matrix})
    assert stored_dtypes(path) == {"weight": torch.float32}
    assert torch.equal(load(path).state["weight"], matrix)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(None, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
def test_dtype_may_be_chosen(tmp_path: Path, dtype: torch.dtype | None, stored: torch.dtype) -> None:
    matrix = torch.rand(4, 4, dtype=torch.float64)
    path = write(tmp_path / "a.safetensors", {"weight": matrix}, dtype=dtype)
    assert stored_dtypes(path) == {"weight": stored}
    torch.testing.assert_close(load(path).state["weight"], matrix.float(), rtol=torch.finfo(stored).eps, atol=0.0)


@pytest.mark.parametrize(
    ("state", "changes", "message"),
    [
        (
            {"head.weight": torch.full((2, 2), 7e4)},
            {},
            r"'head.weight' reaches 7e\+04, too large for torch.float16",
        ),
        ({"head.bias": torch.tensor([1.0, float("nan")])}, {}, "'head.bias' holds NaN or infinity"),
        ({"w": torch.full((2, 2), float("inf"))}, {"dtype": None}, "'w' holds NaN or infinity"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, {}, "'w' is torch.complex64"),
        ({"step": 3}, {}, "'step' is a int"),
        ({"w": torch.tensor([-1e300], dtype=torch.float64)}, {}, r"'w' reaches 1e\+300, too large for torch.float32"),
        ({"w": torch.full((2, 2), 1e300, dtype=torch.float64)}, {"dtype": None}, "'w' reaches .* for torch.float32"),
        ({}, {"dtype": torch.int8}, "dtype: expected float16.*got torch.int8"),
        ({}, {"config": {"path": Path("a")}}, "config: expected JSON types"),
        ({}, {"provenance": {"srocc": float("nan")}}, "provenance: expected JSON types"),
    ],
)
def test_what_cannot_be_stored_is_named(
    tmp_path: Path, state: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.safetensors", state, **changes)
    assert list(tmp_path.iterdir()) == []


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    state = net().state_dict()
    written = set()
    for turn in range(8):
        names = sorted(state, reverse=bool(turn % 2))
        config = dict(sorted(CONFIG.items(), reverse=bool(turn % 2)))
        path = write(tmp_path / f"{turn}.safetensors", {name: state[name] for name in names}, config=config)
        written.add(path.read_bytes())
    assert len(written) == 1


def test_a_mismatch_names_both_sides_and_changes_nothing(tmp_path: Path) -> None:
    module = nn.ModuleDict({f"layer{i}": nn.Linear(2, 2, bias=False) for i in range(9)})
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {f"layer{i}.weight": torch.ones(2, 2) for i in range(2)}
    state |= {"layer2.weight": torch.ones(3, 2), "old.weight": torch.ones(1)}
    with pytest.raises(CheckpointError) as caught:
        load_into(module, state, "a.safetensors")
    text = str(caught.value)
    assert text.startswith("a.safetensors: ")
    assert "ModuleDict" in text
    assert "6 in the model but not in the file: layer3.weight, " in text
    assert "layer7.weight, ..." in text
    assert "1 in the file but not in the model: old.weight" in text
    assert "1 of another shape: layer2.weight (file (3, 2), model (2, 2))" in text
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def about(**changes: Any) -> dict[str, Any]:
    fields = {"format_version": 1, "architecture": "N", "config": {}, "provenance": {}, "prompts_hash": None}
    return {**fields, **changes}


def foreign(text: str | None) -> bytes:
    """A valid safetensors file with ``text`` where our metadata would stand."""
    return safetensors.torch.save({"a": torch.ones(2)}, metadata=None if text is None else {"attriqa": text})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x08", "not a safetensors file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (b"<!DOCTYPE html><html>404</html>", "not a safetensors file"),
        (foreign(None), "not written by attriqa"),
        (foreign("{"), "metadata is not JSON"),
        (foreign("[" * 100_000), "metadata is not JSON"),
        (foreign("[1]"), "no format version"),
        (foreign("{}"), "no format version"),
        (foreign('{"format_version": "1"}'), "no format version"),
        (foreign('{"format_version": 2}'), r"format version 2 is newer than this attriqa reads \(1\); upgrade"),
        (foreign('{"format_version": 1, "architecture": 3}'), "lacks architecture, config, provenance, prompts_hash"),
        (foreign(json.dumps(about())), "digest"),
        (foreign(json.dumps(about(config={"a": float("nan")}))), "digest"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load(path)
    assert caught.value.path == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"


def test_the_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(CheckpointError("a", "b")))
    assert (error.path, error.reason, str(error)) == ("a", "b", "a: b")


def test_a_header_as_long_as_a_pickle_mark_is_read(tmp_path: Path) -> None:
    lengths = set()
    for filler in range(0, 1200, 8):
        path = write(tmp_path / "a.safetensors", {"w": torch.ones(2)}, config={"filler": "x" * filler})
        lengths.add(int.from_bytes(path.read_bytes()[:8], "little"))
        load(path)
    assert lengths > {0x280, 0x380, 0x480, 0x580}  # the first two bytes of pickles of protocol 2 to 5


def test_every_truncation_and_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    plain = {"backbone": "resnet50"}  # no \u escape, whose letters may change case without changing the text
    data = write(tmp_path / "good.safetensors", net().state_dict(), config=plain).read_bytes()
    rng = random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    damaged = [data[:size] for size in (*range(12), header - 1, header, header + 1, len(data) // 2, len(data) - 1)]
    damaged += [data + b"\0", data[: len(data) // 2] * 2]
    for place in [*range(header), *rng.sample(range(header, len(data)), 200)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    load(path)
    for number, content in enumerate(damaged):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            pytest.fail(f"damage {number} was not noticed: {load(path)!r:.200}")


class Trap:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.pth.tar", "a.bin", "renamed.safetensors"])
@pytest.mark.parametrize("protocol", ["torch", 0, 2, 4, 5])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str, protocol: int | str) -> None:
    path, sprung = tmp_path / name, tmp_path / "sprung"
    if protocol == "torch":
        torch.save({"state": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(sprung), protocol=int(protocol)))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    if name != "renamed.safetensors" or protocol != 0:  # protocol 0 has no mark to know it by
        assert "pickle" in caught.value.reason
    assert not sprung.exists()


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    path = write(tmp_path / "a.safetensors", net(0).state_dict())
    before = path.read_bytes()

    def fail(self: Path, content: Any) -> None:
        if step == "write_bytes":
            with self.open("wb") as file:
                file.write(content[:100])
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, fail)
        with pytest.raises(type(failure)):
            write(path, net(1).state_dict())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    load(path)


WRITER = """
import sys, torch
from attriqa.models.checkpoint import save
for turn in range(10**6):
    state = {"weight": torch.full((1000, 1000), float(turn % 2048))}
    save(sys.argv[1], state, architecture="Net", config={"turn": turn}, provenance={})
    print(turn, flush=True)
"""


@pytest.mark.slow
def test_readers_see_whole_files_while_a_writer_works_and_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    seen: set[int] = set()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"0\n"
            while len(seen) < 20:
                seen.add(_one_turn(path))
        finally:
            writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    assert _one_turn(path) >= max(seen)


def _one_turn(path: Path) -> int:
    """The turn of the file at ``path``, whose config and weights must be of the same one."""
    found = load(path)
    turn = found.config["turn"]
    assert isinstance(turn, int)
    assert (found.state["weight"] == turn % 2048).all()
    return turn


def test_the_digest_covers_names_and_shapes() -> None:
    tensors = [{"a": torch.zeros(2, 3)}, {"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(6)}]
    assert len({checkpoint._digest({}, one) for one in tensors}) == 4


def test_prompt_tables_are_told_apart() -> None:
    assert tuple(PROMPT_PAIRS) == ATTRIBUTES
    assert prompt_texts(PROMPT_PAIRS)[0] == ("Splendid image", "Blurry image")
    own = table_hash(PROMPT_PAIRS)
    assert own == table_hash(dict(PROMPT_PAIRS))
    changed = [
        PROMPT_PAIRS | {"sharpness": ("Crisp", "Blurry")},
        PROMPT_PAIRS | {"sharpness": ("Blurry", "Splendid")},
        dict(reversed(PROMPT_PAIRS.items())),
        {name.upper(): pair for name, pair in PROMPT_PAIRS.items()},
    ]
    assert len({own, *map(table_hash, changed)}) == 5
    check_prompts(own, own, "a.safetensors")
    check_prompts(None, None, "a.safetensors")
    for found, expected in ((own, "other"), (None, own), (own, None)):
        with pytest.raises(CheckpointError) as caught:
            check_prompts(found, expected, "a.safetensors")
        assert str(caught.value).startswith("a.safetensors: ")
        assert f"{found or '(none)'}, but" in caught.value.reason
        assert f"use is {expected or '(none)'};" in caught.value.reason
