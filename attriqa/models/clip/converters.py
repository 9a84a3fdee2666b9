"""Published weights, from files that their authors' code wrote: OpenAI's CLIPs, LIQE, CLIP-IQA+.

    from attriqa.models import converters
    converters.liqe("LIQE.pt").save("liqe.safetensors", {"converted_from": "LIQE.pt"})
    converters.clip_iqa_plus("iter_80000.pth").save("clip_iqa_plus.safetensors", {})

These files are pickles. They are read by ``torch.load(weights_only=True)`` alone, which builds tensors and plain
containers and runs nothing; what needs more than that is refused. So are TorchScript archives, OpenAI's own files among
them: loading one hands it to an interpreter, and open_clip has the same weights as safetensors.
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from attriqa.models.checkpoint import CheckpointError, load_into
from attriqa.models.clip.towers import CLIPTowers, build_clip
from attriqa.models.clip_iqa import ClipIQAPlus, ClipIQAPlusConfig
from attriqa.models.liqe import LIQE, LIQEConfig

_HEAD = 64  # channels of an attention head in all of OpenAI's models
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
_INSIDE = ("state_dict", "model_state_dict", "params", "model")  # keys that training code puts weights under
_PREPROCESS = {  # of OpenAI's models
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def read_weights(path: Path | str) -> Any:
    """Read a file of ``torch.save`` without running anything in it.

    Returns:
        What was saved, made of tensors, numbers, strings, lists and dictionaries.

    Raises:
        attriqa.models.checkpoint.CheckpointError: it is a TorchScript archive, holds other objects, or is none of
            ``torch.save``.
        OSError: it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
            if any(name.endswith("constants.pkl") for name in names):
                raise CheckpointError(
                    path,
                    "a TorchScript archive: loading one would run it, so it is refused; name OpenAI's weights as "
                    "open_clip does (RN50:openai, ViT-B-32:openai), or save their state_dict() with torch.save",
                )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        UnpicklingError,
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        AttributeError,
        TypeError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(path, f"expected tensors saved by torch.save and nothing else ({reason})") from error


def openai_towers(path: Path | str) -> CLIPTowers:
    """A CLIP in the layout of OpenAI's: ``model.state_dict()``, in half precision or not.

    The sizes follow from the tensors; heads have 64 channels, and the activation is QuickGELU, as in all of OpenAI's.

    Raises:
        attriqa.models.checkpoint.CheckpointError: as `read_weights`, or the tensors are not those of such a model.
        OSError: the file cannot be read.
    """
    path = Path(path)
    return _towers(_state(read_weights(path), path), path)


def liqe(path: Path | str, *, quality_only: bool = False) -> LIQE:
    """LIQE as its authors publish it: a state of CLIP, bare, or under ``model_state_dict`` or ``params``.

    Args:
        path: a local file.
        quality_only: the variant with five texts, which tells neither scenes nor distortions (trained on one data set);
            the weights do not show it.

    Returns:
        The model, in eval mode.

    Raises:
        attriqa.models.checkpoint.CheckpointError: as `openai_towers`.
        OSError: the file cannot be read.
    """
    path = Path(path)
    config = LIQEConfig(scenes=(), distortions=()) if quality_only else LIQEConfig()
    towers = _towers(_state(read_weights(path), path), path)
    try:
        return LIQE(config, towers).eval()
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error


def clip_iqa_plus(path: Path | str, towers: CLIPTowers | None = None) -> ClipIQAPlus:
    """CLIP-IQA+ as its authors publish it: learnt words, alone or with the CLIP that they stand in.

    Args:
        path: a local file: a bare tensor, ``(M, D)``, or ``(2, M, D)`` with words of its own for each text; or a state
            with one named ``...prompt_learner.ctx``, and CLIP's tensors beside it.
        towers: the CLIP, where the file has none; RN50 of OpenAI for the authors' own.

    Returns:
        The model, in eval mode.

    Raises:
        attriqa.models.checkpoint.CheckpointError: as `openai_towers`, or the file has no such words, or no CLIP while
            ``towers`` is None, or words of another width than CLIP's.
        OSError: the file cannot be read.
    """
    path = Path(path)
    saved = read_weights(path)
    state = {"prompt_learner.ctx": saved} if isinstance(saved, Tensor) else _tensors(saved, path)
    names = [name for name in state if name.endswith("prompt_learner.ctx") or name == "ctx"]
    if len(names) != 1 or state[names[0]].ndim not in (2, 3):
        raise CheckpointError(path, f"expected one tensor prompt_learner.ctx, (M, D) or (2, M, D), got {len(names)}")
    context = state[names[0]].float()
    prefix = names[0].removesuffix("ctx") + "clip_model."
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if inside and towers is None:
        towers = _towers(inside, path)
    if towers is None:
        raise CheckpointError(path, "it holds no CLIP; expected one as towers, RN50:openai for the authors' own words")
    try:
        model = ClipIQAPlus(ClipIQAPlusConfig(context=context.shape[-2], shared=context.ndim == 2), towers)
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error
    own = model.context.context
    if own.shape != context.shape:
        wanted, got = tuple(own.shape), tuple(context.shape)
        raise CheckpointError(path, f"expected words of the shape {wanted} for {towers.name}, got {got}")
    with torch.no_grad():
        own.copy_(context)
    return model.eval()


def _tensors(saved: Any, path: Path) -> dict[str, Tensor]:
    """Named tensors, wherever training code has put them."""
    for key in _INSIDE:
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not isinstance(saved, Mapping):
        raise CheckpointError(path, f"expected named tensors, got a {type(saved).__name__}")
    return {str(name): value for name, value in saved.items() if isinstance(value, Tensor)}


def _state(saved: Any, path: Path) -> dict[str, Tensor]:
    """The state of a CLIP alone, under OpenAI's names, whatever module held it."""
    state = _tensors(saved, path)
    marks = [name for name in state if name.endswith("token_embedding.weight")]
    prefix = marks[0].removesuffix("token_embedding.weight") if len(marks) == 1 else ""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _towers(state: Mapping[str, Tensor], path: Path) -> CLIPTowers:
    """A CLIP of open_clip with these weights, in float32, in eval mode."""
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if name not in _NOT_WEIGHTS
    }
    try:
        config, size = _shape_of(state)
        towers = build_clip({"model_cfg": config, "preprocess_cfg": _PREPROCESS | {"size": size}}, name=path.stem)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(path, f"expected the tensors of a CLIP under OpenAI's names ({error!r})") from error
    load_into(towers.model, state, path)
    return towers._replace(model=towers.model.eval())


def _shape_of(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """open_clip's configuration of the model that has these tensors, and the px of its images' sides."""
    width = state["ln_final.weight"].shape[0]
    text = {
        "context_length": state["positional_embedding"].shape[0],
        "vocab_size": state["token_embedding.weight"].shape[0],
        "width": width,
        "heads": width // _HEAD,
        "layers": _count(state, "transformer.resblocks."),
    }
    vision: dict[str, Any]
    if "visual.proj" in state:
        patch = state["visual.conv1.weight"].shape[2]
        size = patch * math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
        vision = {"layers": _count(state, "visual.transformer.resblocks."), "patch_size": patch, "head_width": _HEAD}
        vision["width"] = state["visual.conv1.weight"].shape[0]
    else:
        size = 32 * math.isqrt(state["visual.attnpool.positional_embedding"].shape[0] - 1)
        stages = [_count(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)]
        vision = {"layers": stages, "patch_size": None, "head_width": _HEAD}
        vision["width"] = state["visual.layer1.0.conv1.weight"].shape[0]
    embed = state["text_projection"].shape[1]
    vision["image_size"] = size
    return {"embed_dim": embed, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}, size


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Blocks whose names begin so."""
    found = {name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)}
    return len(found)
