"""Parts of LIQE's training that stand alone: what it learns from, its crops and batches, its losses and its test.

Source: Zhang et al., "Blind Image Quality Assessment via Vision-Language Correspondence: A Multitask Learning
Perspective" (CVPR 2023).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from attriqa.data.crops import Patches
from attriqa.data.leaks import check_leak
from attriqa.data.protocol import Plan
from attriqa.evaluation import metrics
from attriqa.images import ImageError, read
from attriqa.models import checkpoint, exiqa, liqe
from attriqa.models.exiqa import ExIQA
from attriqa.models.liqe import LIQE, LIQEConfig, Prediction, fit, grid
from attriqa.models.mp_iqe import MPIQEConfig
from attriqa.training.losses import distortion_fidelity, quality_fidelity, scene_fidelity
from attriqa.training.mp_iqe import Targets, targets_of

TASKS = ("quality", "scene", "distortion")


class Sets(NamedTuple):
    """Data sets that are learnt from together; their images are numbered through, one set after the other."""

    plans: tuple[Plan, ...]
    targets: Targets  # of all images
    starts: tuple[int, ...]  # the number of the first image of each set

    def set_of(self, numbers: Tensor) -> Tensor:
        """Which set each image of a number is of."""
        return torch.bucketize(numbers, torch.tensor(self.starts, device=numbers.device), right=True) - 1

    @property
    def paths(self) -> list[Path]:
        """Of all images."""
        return [row.path for plan in self.plans for row in plan.dataset.rows]

    def train(self, fold: int) -> list[list[int]]:
        """Numbers of the images that a fold learns from, by set."""
        return [
            [start + row for row in plan.folds[fold].train] for plan, start in zip(self.plans, self.starts, strict=True)
        ]

    def digest(self) -> str:
        """SHA-256 (16 hexadecimal digits) of the names of all files and of what is known of them."""
        about = [[path.name for path in self.paths], self.targets.digest()]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def sets_of(plans: Sequence[Plan], labels: Sequence[Sequence[Path]], *, fix_fastfading: bool = True) -> Sets:
    """Everything known of the images of some data sets.

    Args:
        plans: the data sets, with the same folds each.
        labels: of each set: files of `attriqa.data.datasets.scenes.read_annotations`; may be none. Then scenes are
            unknown, and distortions where the data set names none.
        fix_fastfading: as there.

    Raises:
        ValueError: as `attriqa.training.mp_iqe.targets_of`, or the sets have other folds.
        attriqa.data.leaks.LeakError: two sets share an image.
    """
    if len({tuple(fold.name for fold in plan.folds) for plan in plans}) > 1:
        raise ValueError("--data: expected data sets that are split alike")
    for one, other in combinations(plans, 2):
        paths = [[row.path for row in plan.dataset.rows] for plan in (one, other)]
        check_leak(*paths, what=f"{one.dataset.name} and {other.dataset.name}")
    known = [
        targets_of(plan, MPIQEConfig(), files, fix_fastfading=fix_fastfading)
        for plan, files in zip(plans, labels, strict=True)
    ]
    together = Targets(*(torch.cat(fields) for fields in zip(*known, strict=True)))
    return Sets(tuple(plans), together, (0, *accumulate(len(plan.mos) for plan in plans[:-1])))


class GridCrops(Dataset[Patches]):
    """Crops of one image at a time, at random places of the grid that it is judged on; the image flipped or not.

    The item at ``(epoch, number)`` is a function of these and of the seed alone: a resumed run sees what a whole one
    sees.

    Args:
        paths: the images.
        crop: height and width, px.
        config: the grid.
        count: crops of each; a place may come twice.
        seed: of the draws.
        keep: bytes of images that each loading process keeps at the size that crops are taken from, so that it reads
            the first ones of them once; small data sets fit whole.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        crop: tuple[int, int],
        config: LIQEConfig,
        count: int,
        *,
        seed: int = 0,
        keep: int = 1 << 30,
    ) -> None:
        self.paths, self.crop, self.config, self.count, self.seed = list(paths), crop, config, count, seed
        self._room, self._kept = keep, dict[int, Tensor]()

    def __getitem__(self, where: tuple[int, int]) -> Patches:
        epoch, number = where
        rng = np.random.default_rng([self.seed, epoch, number])
        height, width = self.crop
        try:
            image = self._image(number)
        except ImageError as error:  # it is raised where the batch is used: a loader's process would garble it
            empty = torch.zeros(self.count, 3, height, width, dtype=torch.uint8)
            return Patches(empty, number, {error.path: error.reason})
        if rng.random() < 0.5:
            image = image.flip(3)
        places = grid((image.shape[2], image.shape[3]), self.crop, self.config)
        taken = [places[index] for index in rng.integers(len(places), size=self.count)]
        cut = torch.cat([image[:, :, y : y + height, x : x + width] for y, x in taken])
        return Patches(cut, number, {})

    def _image(self, number: int) -> Tensor:
        """(1, 3, H, W) uint8, no smaller than the crop."""
        if number in self._kept:
            return self._kept[number]
        image = (fit(read(self.paths[number])[None], self.crop, self.config) * 255).round().to(torch.uint8)
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._kept[number] = image
        return image


def losses(told: Prediction, targets: Targets, sets: Tensor, count: int) -> Tensor:
    """The three losses of a batch, as `TASKS`: (3,).

    Args:
        told: of N images.
        targets: of the same images.
        sets: (N,) which of ``count`` data sets each is of; order counts within a set alone, and the quality loss is the
            mean over sets.
        count: data sets.
    """
    quality = torch.stack([
        quality_fidelity(told.quality[sets == number], targets.mos[sets == number]) for number in range(count)
    ]).mean()  # fmt: skip
    nothing = quality.new_zeros(())
    scene = scene_fidelity(told.scenes, (targets.scenes > 0).float()) if told.scenes.shape[1] else nothing
    distortion = distortion_fidelity(told.distortions, targets.distortions) if told.distortions.shape[1] else nothing
    return torch.stack([quality, scene, distortion])


def columns(told: Prediction) -> Tensor:
    """Quality in [0, 1], scenes and distortions side by side, (B, 1 + S + D)."""
    return torch.cat([((told.quality - 1) / 4)[:, None], told.scenes, told.distortions], 1)


def report(found: Tensor, config: LIQEConfig, mos: Sequence[float], targets: Targets | None = None) -> dict[str, float]:
    """``metrics.report`` of the scores and, where classes are known, how often the most probable one is right.

    Args:
        found: of N images, as `columns`.
        config: the model's classes.
        mos: theirs, on any scale.
        targets: of the same images; None: nothing but their MOS is known.

    Returns:
        The report; ``scene_accuracy`` (any of an image's scenes is right) and ``distortion_accuracy``, each with the
        number of images that it is over, ``scene_n`` and ``distortion_n``.
    """
    score, scenes, distortions = found.split([1, len(config.scenes), len(config.distortions)], 1)
    entry = metrics.report(score[:, 0].tolist(), list(mos), seed=0, resamples=1000)
    if targets is None:
        return entry
    for name, probs, true in (("scene", scenes, targets.scenes), ("distortion", distortions, targets.distortions)):
        known = true.any(1)
        if probs.shape[1] and known.any():
            right = true[known].gather(1, probs[known].argmax(1, keepdim=True)) > 0
            entry |= {f"{name}_accuracy": right.float().mean().item(), f"{name}_n": int(known.sum())}
    return entry


def started(init: Path, config: LIQEConfig) -> LIQE:
    """A model on the CLIP of another.

    Args:
        init: a checkpoint of ExIQA or of LIQE, whose towers are the start.
        config: of the new model; without a logit scale, it takes over that of ``init``.

    Raises:
        attriqa.models.checkpoint.CheckpointError: ``init`` is neither, or its CLIP is gone.
        ValueError: the CLIP does not take the texts.
        OSError: there is no such file.
    """
    saved = checkpoint.load(init)
    start = (exiqa if saved.architecture == ExIQA.__name__ else liqe).restore(saved, init)
    if config.logit_scale is None:
        config = replace(config, logit_scale=start.config.logit_scale)
    return LIQE(config, start.towers)
