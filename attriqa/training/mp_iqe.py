"""Parts of MP-IQE's training that stand alone: where a model starts, what it learns from, its losses and its test."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.data.crops import Patches
from attriqa.data.datasets.scenes import class_of_type, match, read_annotations
from attriqa.data.protocol import Plan
from attriqa.distortions import DISTORTION_KEYS
from attriqa.distortions.classes import DISTORTIONS, SCENES
from attriqa.evaluation import metrics
from attriqa.evaluation.bootstrap import median_of_folds
from attriqa.models import checkpoint, exiqa, mp_iqe
from attriqa.models.exiqa import ExIQA
from attriqa.models.mp_iqe import KADID_NAMES, MPIQE, MPIQEConfig, Reading, mean_over_crops

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
    found = [None] * len(rows) if not labels else match(
        read_annotations(labels, fix_fastfading=fix_fastfading), [row.path for row in rows]
    )  # fmt: skip
    told = [(row.mos, entry.score) for row, entry in zip(rows, found, strict=True) if entry is not None]
    if labels and not told:
        names = ", ".join(map(str, labels))
        raise ValueError(f"--labels: expected annotations of {plan.dataset.name}, got none of its images in {names}")
    if len(told) >= _ENOUGH and (agreement := metrics.srocc(*zip(*told, strict=True))) < _AGREEMENT:
        raise ValueError(
            f"--labels: expected annotations of {plan.dataset.name}, got scores that do not follow its own "
            f"(SROCC {agreement:.2f} over {len(told)} images)"
        )
    scenes = torch.zeros(len(rows), len(config.scenes))
    distortions = torch.zeros(len(rows), len(config.distortions))
    places = {name: place for place, name in enumerate(SCENES)} if config.scenes else {}
    kinds = {name: place for place, name in enumerate(_keys(config))}
    for number, (row, entry) in enumerate(zip(rows, found, strict=True)):
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
    known = {KADID_NAMES: DISTORTION_KEYS, tuple(DISTORTIONS.values()): tuple(DISTORTIONS), (): ()}
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


class Predicted(NamedTuple):
    """What a model says of N images, in the order of their numbers; on the CPU, in float32."""

    numbers: Tensor  # (N,)
    score: Tensor  # (N,) in [0, 1]
    scenes: Tensor  # (N, M) probabilities
    distortions: Tensor  # (N, D) probabilities

    @classmethod
    def together(cls, parts: Sequence["Predicted"]) -> "Predicted":
        """Of several processes' images."""
        joined = [torch.cat(values) for values in zip(*parts, strict=True)]
        order = joined[0].argsort()
        return cls(*(values[order] for values in joined))


@torch.no_grad()
def tell_all(net: MPIQE, batches: Iterable[Patches], device: torch.device) -> Predicted:
    """Judge all images of a loader of `attriqa.data.crops.JudgedCrops`, the net in eval mode.

    Raises:
        attriqa.images.ImageError: an image cannot be read.
    """
    net.eval()
    widths = ((), (len(net.config.scenes),), (len(net.config.distortions),))
    parts = [Predicted(torch.empty(0, dtype=torch.int64), *(torch.empty(0, *width) for width in widths))]
    for batch in batches:
        told = mean_over_crops(net.read(batch.pixels(device)), net.config.crops)
        parts.append(Predicted(batch.number, *(field.float().cpu() for field in told)))
    return Predicted.together(parts)


def report(predicted: Predicted, mos: Sequence[float], targets: Targets | None = None) -> dict[str, float]:
    """``metrics.report`` of the scores and, where classes are known, how often the most probable one is right.

    Args:
        predicted: of N images.
        mos: theirs, on any scale.
        targets: of the same images; None: nothing but their MOS is known.

    Returns:
        The report; ``scene_accuracy`` (any of an image's scenes is right) and ``distortion_accuracy``, each with the
        number of images that it is over, ``scene_n`` and ``distortion_n``.
    """
    found = metrics.report(predicted.score.tolist(), list(mos), seed=0, resamples=1000)
    if targets is None:
        return found
    for name, probs, true in (
        ("scene", predicted.scenes, targets.scenes),
        ("distortion", predicted.distortions, targets.distortions),
    ):
        known = true.any(1)
        if known.any():
            right = true[known].gather(1, probs[known].argmax(1, keepdim=True)) > 0
            found |= {f"{name}_accuracy": right.float().mean().item(), f"{name}_n": int(known.sum())}
    return found


def summary(results: Sequence[dict[str, Any]]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Medians over folds, by test and statistic, for ``metrics.json``; and the same as lines to print.

    Args:
        results: of each fold; ``tests`` holds a `report` by the test's name.

    Returns:
        By test: the medians, ``srocc_low`` and ``srocc_high`` (what the choice of splits moves the median by) and the
        number of ``folds``; the lines.
    """
    medians, lines = {}, []
    for name in dict.fromkeys(name for result in results for name in result["tests"]):
        rows = [result["tests"][name] for result in results if name in result["tests"]]
        kept = [key for key in rows[0] if not key.endswith(("_low", "_high")) and all(key in row for row in rows)]
        entry = {key: median_of_folds([row[key] for row in rows]).median for key in kept}
        spread = median_of_folds([row["srocc"] for row in rows])
        medians[name] = entry | {"folds": len(rows), "srocc_low": spread.low, "srocc_high": spread.high}
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in medians[name].items())
        lines.append(f"{name}: {numbers}")
    return medians, lines
