"""Multi-distorted crops made while a model trains: no set of distorted images is stored."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from attriqa.images import read
from attriqa.mixtures import COUNT, apply_recipes, check_draw, draw_recipe, smallest_side, strengths
from attriqa.photos import crop_and_flip


class DistortedCrops(Dataset[tuple[Tensor, Tensor]]):
    """Random crops and flips of pristine photos, distorted at the crop's size by recipes that change with each epoch.

    Each draw is a function of (seed, epoch, index of the photo) alone: a resumed run sees what an uninterrupted one
    does, whatever the number of workers.

    Args:
        paths: the photos.
        crop: side of the square crop in pixels.
        most: the greatest number of distortions on one crop.
        seed: of the draws; `start_epoch` makes new ones.
        among: indices in `attriqa.distortions.DISTORTIONS` to draw from.
        clean_share: of the items that get no distortion, in [0, 1].
        shorter_edge: pixels, the size they are read at; `None`: their own.

    An item is ``((3, crop, crop) in [0, 1], strengths (25,))``; the order of the items is shuffled with each epoch.

    Raises:
        ValueError: an argument is out of its range, or the crop too small for one of the distortions.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        crop: int,
        most: int,
        seed: int,
        among: Sequence[int] = range(COUNT),
        clean_share: float = 0.1,
        shorter_edge: int | None = None,
    ) -> None:
        check_draw(most, among)
        if crop < smallest_side(among):
            raise ValueError(f"crop: expected at least {smallest_side(among)} px for these distortions, got {crop}")
        if not 0 <= clean_share <= 1:
            raise ValueError(f"clean_share: expected a share in [0, 1], got {clean_share}")
        self.paths = tuple(paths)
        self.crop = crop
        self.most = most
        self.seed = seed
        self.among = tuple(among)
        self.clean_share = clean_share
        self.shorter_edge = shorter_edge
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draws the items are; before the loader is iterated."""
        self.epoch = epoch
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        index = int(self.order[position])
        rng = np.random.default_rng([self.seed, self.epoch, index])
        photo = read(self.paths[index], shorter_edge=self.shorter_edge)
        height, width = photo.shape[1:]
        if min(height, width) < self.crop:
            side = min(height, width)
            raise ValueError(f"crop: expected at most the shorter side of {self.paths[index]}, {side}, got {self.crop}")
        image = crop_and_flip(photo, self.crop, rng).contiguous()
        if rng.random() < self.clean_share:
            return image, torch.zeros(COUNT)
        recipe = draw_recipe(rng, most=self.most, among=self.among)
        return apply_recipes(image[None], [recipe])[0], strengths([recipe])[0]
