"""Parts of MP-IQE's training that stand alone: where a model starts, what it learns from, its losses."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.data.datasets.scenes import class_of_type, match, read_annotations
from attriqa.data.protocol import Plan
from attriqa.distortions import DISTORTION_KEYS
from attriqa.distortions.classes import DISTORTION_CLASSES, SCENES
from attriqa.evaluation import metrics
from attriqa.models import checkpoint, exiqa, mp_iqe
from attriqa.models.exiqa import ExIQA
from attriqa.models.mp_iqe import KADID_NAMES, MPIQE, MPIQEConfig, Reading

_AGREEMENT = 0.9  # SROCC between an annotation file's scores and the data set's own, of rows enough to tell
_ENOUGH = 10


class Targets(NamedTuple):
    """What is known of N images; a row of zeros where a class is not."""

    mos: Tensor  # (N,) in [0, 1]
    scenes: Tensor  # (N, M) shares that sum to 1: an image may have several scenes
    distortions: Tensor  # (N, D) likewise, of one distortion

    def rows(self, numbers: Tensor | Sequence[int]) -> "Targets":
        """Some of them."""
        return Targets(*(field[numbers] for field in self))

    def to(self, device: torch.device) -> "Targets":
        """On a device."""
        return Targets(*(field.to(device) for field in self))

    def labelled(self) -> dict[str, int]:
        """How many rows have a scene, and how many a distortion."""
        return {"scenes": int(self.scenes.any(1).sum()), "distortions": int(self.distortions.any(1).sum())}

    def classes(self) -> dict[str, Tensor]:
        """Those that `attriqa.training.folds.report` looks at."""
        return {"scene": self.scenes, "distortion": self.distortions}

    def described(self, protocol: str) -> tuple[str, dict[str, Any]]:
        """What a run that learns from them says of itself: in words, and for ``metrics.json``."""
        known = ", ".join(f"{count} with {name}" for name, count in self.labelled().items())
        about = {"protocol": protocol, "n": len(self.mos), "labelled": self.labelled()}
        return f"{protocol}; {len(self.mos)} images, {known}", about

    def digest(self) -> str:
        """SHA-256 (16 hexadecimal digits) of all values."""
        return hashlib.sha256(json.dumps([field.tolist() for field in self]).encode()).hexdigest()[:16]


def targets_of(plan: Plan, config: MPIQEConfig, labels: Sequence[Path], *, fix_fastfading: bool = True) -> Targets:
    """Everything known of a data set's images.

    Scenes come from annotation files alone; distortions from them or else from the data set, where it names types that
    belong to a class. Without either, a branch has nothing to learn and the score is learnt alone.

    Args:
        plan: the data set.
        config: the model's classes: MP-IQE's own or, of distortions, `KADID_NAMES`, which the data set must name.
        labels: files of `attriqa.data.datasets.scenes.read_annotations`; may be none.
        fix_fastfading: as there.

    Raises:
        ValueError: a file is malformed, is of another data set (no image of this one is in it, or the scores
            contradict), or files cannot be told apart.
    """
    rows = plan.dataset.rows
    entries = [None] * len(rows) if not labels else match(
        read_annotations(labels, fix_fastfading=fix_fastfading), [row.path for row in rows]
    )  # fmt: skip
    pairs = [(row.mos, entry.score) for row, entry in zip(rows, entries, strict=True) if entry is not None]
    if labels and not pairs:
        names = ", ".join(map(str, labels))
        raise ValueError(f"--labels: expected annotations of {plan.dataset.name}, got none of its images in {names}")
    if len(pairs) >= _ENOUGH and (agreement := metrics.srocc(*zip(*pairs, strict=True))) < _AGREEMENT:
        raise ValueError(
            f"--labels: expected annotations of {plan.dataset.name}, got scores that do not follow its own "
            f"(SROCC {agreement:.2f} over {len(pairs)} images)"
        )
    scenes = torch.zeros(len(rows), len(config.scenes))
    distortions = torch.zeros(len(rows), len(config.distortions))
    places = {name: place for place, name in enumerate(SCENES)} if config.scenes else {}
    kinds = {name: place for place, name in enumerate(_keys(config))}
    for number, (row, entry) in enumerate(zip(rows, entries, strict=True)):
        if entry is not None and places:
            scenes[number, [places[name] for name in entry.scenes]] = 1 / len(entry.scenes)
        kind = row.distortion
        if config.distortions != KADID_NAMES:
            kind = class_of_type(kind) if entry is None else entry.distortion
        if kind in kinds:
            distortions[number, kinds[kind]] = 1
    return Targets(plan.mos, scenes, distortions)


def _keys(config: MPIQEConfig) -> Sequence[str]:
    """What labels call the distortions of a model."""
    known = {KADID_NAMES: DISTORTION_KEYS, tuple(DISTORTION_CLASSES.values()): tuple(DISTORTION_CLASSES), (): ()}
    if config.distortions not in known or config.scenes not in (tuple(SCENES.values()), ()):
        raise ValueError("config: expected the classes of MP-IQE or of KADID-10k, for which there are labels, or none")
    return known[config.distortions]


def started(init: Path, config: MPIQEConfig, *, seed: int = 0) -> MPIQE:
    """A model on the CLIP of another.

    Args:
        init: a checkpoint of ExIQA, whose towers are the start; or one of MP-IQE: what fits of its context, prompts,
            decoder and head is taken over, too.
        config: of the new model.
        seed: of what is new.

    Raises:
        attriqa.models.checkpoint.CheckpointError: ``init`` is neither, or its CLIP is gone.
        ValueError: the CLIP does not take the prompts.
        OSError: there is no such file.
    """
    saved = checkpoint.load(init)
    if saved.architecture == ExIQA.__name__:
        return MPIQE(config, exiqa.restore(saved, init).towers, seed=seed)
    start = mp_iqe.restore(saved, init)
    net = MPIQE(config, start.towers, seed=seed)
    own = net.state_dict()
    fitting = {name: value for name, value in start.state_dict().items() if _shape(own, name) == value.shape}
    net.load_state_dict(own | fitting)
    return net


def _shape(state: dict[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


class Losses(NamedTuple):
    """Scalars; ``total`` is what is minimised."""

    total: Tensor
    scene: Tensor
    distortion: Tensor
    score: Tensor


def losses(
    reading: Reading,
    targets: Targets,
    *,
    distortion_weight: float = 1.0,
    score_weight: float = 0.5,
    literal_norm: bool = False,
) -> Losses:
    """MP-IQE's three losses, each the mean over the batch, and their sum (equations 9, 11, 15 and 16).

    Smooth L1 of the score turns linear at a difference of 1, that is, nowhere within the scale; the paper gives no
    other.

    Args:
        reading: of N crops.
        targets: of their images; a row without a class adds nothing to its loss.
        distortion_weight: lambda 1.
        score_weight: lambda 2: 0.1 for LIVE and CSIQ in the paper, 0.5 for the others.
        literal_norm: divide cross-entropies by the number of classes, as equations 9 and 11 are printed.
    """
    scene, distortion = (
        _cross_entropy(logits, target) / (max(1, logits.shape[1]) if literal_norm else 1)
        for logits, target in ((reading.scenes, targets.scenes), (reading.distortions, targets.distortions))
    )
    score = F.smooth_l1_loss(reading.score, targets.mos)
    return Losses(scene + distortion_weight * distortion + score_weight * score, scene, distortion, score)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Of (N, C) logits and shares, summed over classes and averaged over all rows, those without a class included.

    The share of the rows that have one would differ between the processes of a run, and so would its steps.
    """
    return -(target * logits.float().log_softmax(1)).sum(1).mean()
