"""Crops of rated images, as MP-IQE learns from them and judges by them: cut out of the image as it is, never resized.

Source: Pan et al., "Multi-Modal Prompt Learning on Blind Image Quality Assessment" (2024), implementation details.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from attriqa.images import ImageError, read, resize_shorter

_UNBOUNDED = 2**40  # px: crops bound the memory, not the size of what they are cut from


def fitted(images: Tensor, crop: tuple[int, int], shorter_edge: int | None = None) -> Tensor:
    """Images (B, 3, H, W) that crops fit into: scaled up where a side is too short, else as they are; differentiable.

    Args:
        images: float, in [0, 1].
        crop: height and width, px.
        shorter_edge: px that all images are resized to first (`attriqa.images.target_size`); None: they keep their
            size.
    """
    if shorter_edge is not None:
        images = resize_shorter(images, shorter_edge)
    if any(found < wanted for found, wanted in zip(images.shape[2:], crop, strict=True)):
        images = resize_shorter(images, max(crop), _UNBOUNDED)
    return images


def corners(image: tuple[int, int], crop: tuple[int, int], count: int, *, seed: int = 0) -> list[tuple[int, int]]:
    """Where random crops of an image begin, as (row, column): a function of the sizes, the number and the seed.

    Args:
        image: height and width, px; at least those of the crop.
        crop: likewise.
        count: crops; one is enough where the image is no larger than the crop.
        seed: of their places, which are shares of what the image has to spare.
    """
    spare = np.array(image) - np.array(crop)
    if not spare.any():
        return [(0, 0)]
    places = np.floor(np.random.default_rng(seed).random((count, 2)) * (spare + 1)).astype(int)
    return [(int(row), int(column)) for row, column in places]


def seeded_crops(
    images: Tensor, crop: tuple[int, int], count: int, *, shorter_edge: int | None = None, seed: int = 0
) -> Tensor:
    """Random crops that are always the same; differentiable.

    Only they are copied, whatever the size of the images.

    Args:
        images: ``(B, 3, H, W)`` float, in [0, 1].
        crop: height and width, px.
        count: K.
        shorter_edge: as in `fitted`.
        seed: as in `corners`.

    Returns:
        ``(B, K, 3, h, w)``; K is 1 where the images are no larger than the crop.
    """
    images = fitted(images, crop, shorter_edge)
    places = corners((images.shape[2], images.shape[3]), crop, count, seed=seed)
    return torch.stack([images[:, :, y : y + crop[0], x : x + crop[1]] for y, x in places], 1)


class Patches(NamedTuple):
    """Crops of one image, or of several (`stack`)."""

    image: Tensor  # (K, 3, h, w), of several images (N * K, 3, h, w); uint8, a quarter of the memory on its way
    number: Any  # the image's, or (N,) of them
    unreadable: dict[str, str]  # path -> reason

    def pixels(self, device: torch.device) -> Tensor:
        """``image`` on a device, float32 in [0, 1].

        Raises:
            ImageError: one could not be read.
        """
        for path, reason in self.unreadable.items():
            raise ImageError(path, reason)
        return self.image.to(device, non_blocking=True).float().div_(255)


def stack(patches: list[Patches]) -> Patches:
    """Crops of several images -> one batch."""
    unreadable = {path: reason for patch in patches for path, reason in patch.unreadable.items()}
    numbers = torch.tensor([patch.number for patch in patches])
    return Patches(torch.cat([patch.image for patch in patches]), numbers, unreadable)


class TrainingCrops(Dataset[Patches]):
    """One random crop at a time, flipped or not; nothing but geometry changes.

    The item at ``(epoch, number)`` is of image ``number`` modulo the number of images, so that an epoch may hold
    several crops of each. It is a function of these and of the seed alone: a resumed run sees what a whole one sees.

    Args:
        paths: the images.
        crop: height and width, px.
        shorter_edge: as in `fitted`.
        seed: of the draws.
        keep: bytes of images that each loading process keeps, read and resized, so that it reads the first ones of
            them once and not once for each crop; small data sets fit whole.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        crop: tuple[int, int],
        *,
        shorter_edge: int | None = None,
        seed: int = 0,
        keep: int = 1 << 30,
    ) -> None:
        self.paths, self.crop, self.shorter_edge, self.seed = list(paths), crop, shorter_edge, seed
        self._room, self._kept = keep, dict[int, Tensor]()

    def __getitem__(self, where: tuple[int, int]) -> Patches:
        epoch, number = where
        rng, index = np.random.default_rng([self.seed, epoch, number]), number % len(self.paths)
        try:
            image = self._image(index)
        except ImageError as error:  # it is raised where the batch is used: a loader's process would garble it
            return Patches(torch.zeros(1, 3, *self.crop, dtype=torch.uint8), index, {error.path: error.reason})
        height, width = self.crop
        top, left = (int(rng.integers(image.shape[2 + side] - self.crop[side] + 1)) for side in (0, 1))
        cut = image[:, :, top : top + height, left : left + width]
        return Patches(cut.flip(3) if rng.random() < 0.5 else cut.clone(), index, {})

    def _image(self, index: int) -> Tensor:
        """(1, 3, H, W) uint8, no smaller than the crop."""
        if index in self._kept:
            return self._kept[index]
        image = _bytes(fitted(read(self.paths[index], shorter_edge=self.shorter_edge)[None], self.crop))
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._kept[index] = image
        return image


class JudgedCrops(Dataset[Patches]):
    """All seeded crops of one image at a time, as the model cuts them.

    Args:
        paths: the images.
        crop: height and width, px.
        count: crops of each, K; an image no larger than one crop gives it K times.
        shorter_edge: as in `fitted`.
        seed: as in `corners`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        crop: tuple[int, int],
        count: int,
        *,
        shorter_edge: int | None = None,
        seed: int = 0,
    ) -> None:
        self.paths, self.crop, self.count, self.shorter_edge, self.seed = list(paths), crop, count, shorter_edge, seed

    def __getitem__(self, number: int) -> Patches:
        try:
            image = read(self.paths[number], shorter_edge=self.shorter_edge)
        except ImageError as error:
            empty = torch.zeros(self.count, 3, *self.crop, dtype=torch.uint8)
            return Patches(empty, number, {error.path: error.reason})
        cut = seeded_crops(image[None], self.crop, self.count, seed=self.seed)[0]
        return Patches(_bytes(cut.expand(self.count, -1, -1, -1)), number, {})

    def __len__(self) -> int:
        return len(self.paths)


def _bytes(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)
