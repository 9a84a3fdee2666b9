"""Checkpoints of models that stand on a CLIP: a frozen one that its name leads to is left out of them and checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from attriqa.models import checkpoint
from attriqa.models.clip.architecture import LOCATIONS
from attriqa.models.clip.towers import CLIPTowers, build_clip, rebuild_clip, weights_hash

PREFIX = "clip."  # of the CLIP's tensors in the state of a model, which holds it as its attribute ``clip``


def save(
    path: Path | str,
    model: nn.Module,
    towers: CLIPTowers,
    *,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    prompts_hash: str | None = None,
) -> None:
    """Write a checkpoint; a CLIP that is ``towers.reloadable`` is left out of it, and its weights' hash kept.

    Any other is in it whole: where it came from (a folder, a file, a hub) is nothing that a file may say.

    Args:
        path: where to.
        model: the CLIP is its attribute ``clip``.
        towers: the same CLIP, and where it comes from.
        config: of the model; JSON types only, without an entry ``clip``.
        provenance: data, commit, metrics; JSON types only.
        prompts_hash: as in `attriqa.models.checkpoint.save`.
    """
    state: Mapping[str, Tensor] = model.state_dict()
    name = Path(towers.name).name if towers.name.startswith(LOCATIONS) else towers.name
    about = {"name": name, "pretrained": None, "architecture": towers.architecture, "weights": None}
    if towers.reloadable:
        about["pretrained"] = towers.pretrained
        about["weights"] = weights_hash(_of_clip(state))
        state = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    checkpoint.save(
        path,
        state,
        architecture=type(model).__name__,
        config={**config, "clip": about},
        provenance=provenance,
        prompts_hash=prompts_hash,
    )


class Parts(NamedTuple):
    """The two halves of the config that `save` wrote."""

    clip: dict[str, Any]  # where the CLIP comes from
    model: dict[str, Any]  # the rest


def parts(saved: checkpoint.Checkpoint, path: Path | str, architecture: str) -> Parts:
    """Take a checkpoint's config apart.

    Args:
        saved: what `attriqa.models.checkpoint.load` read.
        path: where from, for messages.
        architecture: the class that is expected.

    Raises:
        attriqa.models.checkpoint.CheckpointError: it is of another class, or its config says nothing of a CLIP.
    """
    if saved.architecture != architecture:
        raise checkpoint.CheckpointError(path, f"expected a checkpoint of {architecture}, got {saved.architecture}")
    about = saved.config.get("clip")
    if not isinstance(about, dict) or not {"name", "pretrained", "architecture", "weights"} <= set(about):
        raise checkpoint.CheckpointError(path, "its config does not build: it does not say which CLIP it stands on")
    for field, kinds in (("name", str), ("pretrained", str | None), ("architecture", dict), ("weights", str | None)):
        if not isinstance(about[field], kinds):
            found = type(about[field]).__name__
            raise checkpoint.CheckpointError(path, f"its config does not build: clip.{field} is a {found}")
    return Parts(about, {key: value for key, value in saved.config.items() if key != "clip"})


def towers_of(about: Mapping[str, Any], towers: CLIPTowers | None = None) -> CLIPTowers:
    """The CLIP to build a checkpoint's model on; `fill` checks whether it is the right one.

    Args:
        about: of `parts`.
        towers: the CLIP of a checkpoint without one, where this machine does not have it under its name.

    Raises:
        ValueError: it cannot be had.
    """
    if about["weights"] is None:
        return build_clip(about["architecture"], name=about["name"])
    if towers is not None:
        return towers
    return rebuild_clip(about["architecture"], name=about["name"], pretrained=about["pretrained"])


def fill(model: nn.Module, saved: checkpoint.Checkpoint, towers: CLIPTowers, path: Path | str) -> None:
    """Copy a checkpoint's tensors into the model that was built on `towers_of`.

    Raises:
        attriqa.models.checkpoint.CheckpointError: the CLIP has other weights than the one that the checkpoint was made
            on (both are named), or the tensors do not fit.
    """
    about, left_out = saved.config["clip"], {}
    if about["weights"] is not None:
        own = _of_clip(model.state_dict())
        if (found := weights_hash(own)) != about["weights"]:
            raise checkpoint.CheckpointError(
                path, f"made on {about['name']} with the weights {about['weights']}, those of {towers.name} are {found}"
            )
        left_out = {f"{PREFIX}{name}": value for name, value in own.items()}
    checkpoint.load_into(model, {**saved.state, **left_out}, path)


def _of_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
