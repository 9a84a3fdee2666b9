"""Parts of LIQE's training that stand alone: where a model starts, what it learns from, its crops and losses.

Source: Zhang et al., "Blind Image Quality Assessment via Vision-Language Correspondence: A Multitask Learning
Perspective" (CVPR 2023).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, combinations
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from attriqa.data.crops import FileCrops, Rng
from attriqa.data.leaks import check_leak
from attriqa.data.protocol import Plan
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


def grid_crops(
    paths: Sequence[Path], crop: tuple[int, int], config: LIQEConfig, count: int, *, seed: int = 0, keep: int = 1 << 30
) -> FileCrops:
    """``count`` crops at random places of the grid that a test looks at, of an image that is flipped or not."""
    cut = partial(_on_grid, crop=crop, config=config, count=count)
    return FileCrops(paths, cut, partial(fit, crop=crop, config=config), seed=seed, keep=keep)


def _on_grid(image: Tensor, *, crop: tuple[int, int], config: LIQEConfig, count: int, rng: Rng) -> Tensor:
    """A place may come twice."""
    assert rng is not None
    if rng.random() < 0.5:
        image = image.flip(3)
    places = grid((image.shape[2], image.shape[3]), crop, config)
    taken = [places[index] for index in rng.integers(len(places), size=count)]
    return torch.cat([image[:, :, y : y + crop[0], x : x + crop[1]] for y, x in taken])


def losses(prediction: Prediction, targets: Targets, sets: Tensor, count: int) -> Tensor:
    """The three losses of a batch, as `TASKS`: (3,).

    Args:
        prediction: of N images.
        targets: of the same images.
        sets: (N,) which of ``count`` data sets each is of; order counts within a set alone, and the quality loss is the
            mean over sets.
        count: data sets.
    """
    quality = torch.stack([
        quality_fidelity(prediction.quality[sets == number], targets.mos[sets == number]) for number in range(count)
    ]).mean()  # fmt: skip
    scene = distortion = quality.new_zeros(())  # of a task that the model lacks
    if prediction.scenes.shape[1]:
        scene = scene_fidelity(prediction.scenes, (targets.scenes > 0).float())
    if prediction.distortions.shape[1]:
        distortion = distortion_fidelity(prediction.distortions, targets.distortions)
    return torch.stack([quality, scene, distortion])


def fields(prediction: Prediction) -> tuple[Tensor, Tensor, Tensor]:
    """Quality in [0, 1], (B,); scenes; distortions."""
    return (prediction.quality - 1) / 4, prediction.scenes, prediction.distortions


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
