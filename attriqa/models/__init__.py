"""The models, and one function that loads any of them."""

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from attriqa.models import attribute_net, checkpoint, clip_iqa, exiqa, liqe, mp_iqe
from attriqa.models.assessment import Assessment
from attriqa.models.attribute_net import AttributeNet, AttributeNetConfig
from attriqa.models.base import QualityModel
from attriqa.models.clip.towers import weights_hash

__all__ = [
    "KINDS",
    "PACKAGED",
    "Assessment",
    "AttributeNet",
    "AttributeNetConfig",
    "Loaded",
    "QualityModel",
    "load",
    "load_attribute_net",
    "load_with_provenance",
]

PACKAGED = {name: f"{name}.safetensors" for name in ("default", "robust", "judge")}
"""Names of the weights inside the package -> their files."""

KINDS: dict[str, tuple[str, Callable[[checkpoint.Checkpoint, Path], QualityModel]]] = {
    "attribute-net": ("AttributeNet", attribute_net.restore),
    "clip-iqa": ("ClipIQA", clip_iqa.restore),
    "clip-iqa-plus": ("ClipIQAPlus", clip_iqa.restore_plus),
    "exiqa": ("ExIQA", exiqa.restore),
    "liqe": ("LIQE", liqe.restore),
    "mp-iqe": ("MPIQE", mp_iqe.restore),
}
"""What a name may begin with, as ``"exiqa:FILE"`` -> the architecture in its checkpoint, what builds it."""


class Loaded(NamedTuple):
    """A model and where it comes from."""

    model: QualityModel
    provenance: dict[str, Any]
    sha256: str  # of the checkpoint file; without one, of the weights
    stem: str  # what to call it: the file's name without its ending, or that of the packaged weights


def load(model: str | Path = "default") -> QualityModel:
    """Load a trained model, in float32, on the CPU, in eval mode.

    Args:
        model: a name in `PACKAGED`, or the path of an attriqa checkpoint, if wanted with the kind it has to be of in
            front (`KINDS`): ``"exiqa:runs/exiqa/split0/model.safetensors"``. CLIP-IQA needs no checkpoint:
            ``"clip-iqa:RN50:openai"`` puts it on an open_clip model (`attriqa.models.clip_iqa.zero_shot`).

    Raises:
        attriqa.models.checkpoint.CheckpointError: the file is not one, is of another kind, is damaged, or does not fit
            its own configuration; or it was made on a CLIP that cannot be had.
        FileNotFoundError: there is no such file.
        ValueError: open_clip has no such model, or no such weights.
    """
    return load_with_provenance(model).model


def load_with_provenance(model: str | Path = "default") -> Loaded:
    """`load`, with what the checkpoint says of its origin."""
    name = str(model)
    kind, _, rest = name.partition(":")
    wanted = KINDS[kind][0] if kind in KINDS and rest else None
    if kind == "clip-iqa" and ":" in rest and not Path(rest).is_file():
        net = clip_iqa.zero_shot(rest)
        return Loaded(net, {"clip": rest}, weights_hash(net.state_dict()), re.sub(r"[^\w.-]+", "-", name))
    if name in PACKAGED:
        path = Path(str(files("attriqa.weights") / PACKAGED[name]))
    else:
        path = Path(model if wanted is None else rest)
    saved = checkpoint.load(path)
    known = dict(KINDS.values())
    if saved.architecture not in known or wanted not in (None, saved.architecture):
        expected = wanted or " or ".join(known)
        raise checkpoint.CheckpointError(path, f"expected a checkpoint of {expected}, got {saved.architecture}")
    return Loaded(known[saved.architecture](saved, path), saved.provenance, saved.sha256, path.stem)


def load_attribute_net(model: str | Path = "default") -> AttributeNet:
    """`load`, of an `AttributeNet` alone."""
    net = load(model)
    if not isinstance(net, AttributeNet):
        raise checkpoint.CheckpointError(
            model, f"expected a checkpoint of {AttributeNet.__name__}, got {type(net).__name__}"
        )
    return net
