"""Random crops of unlabelled images in batches that any number of processes share and that resume at any position."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from attriqa.data.batches import CENTRAL
from attriqa.data.unlabelled import ImageIndex, TooManyUnreadableError
from attriqa.images import ImageError, read, resize_shorter
from attriqa.images.crops import fitted, seeded_crops

_REPLACEMENTS = 8  # images tried in the place of one that cannot be read


class Crop(NamedTuple):
    """One example, or a batch of them (`stack`)."""

    image: Tensor  # (3, S, S) or (B, 3, S, S), uint8: a quarter of the memory on its way from a loading process
    number: Any  # its number in the index, or (B,) of them
    unreadable: dict[str, str]  # key -> reason, of the images in whose place it stands

    def pixels(self, device: torch.device) -> Tensor:
        """``image`` on a device, float32 in [0, 1]."""
        return self.image.to(device, non_blocking=True).float().div_(255)


class RandomCrops(Dataset[Crop]):
    """Crops and flips of images, the pixels otherwise as they are (ATTIQA, section 3: geometry only).

    The item at ``(epoch, number)`` is a function of these and of the seed alone, whatever the number of processes and
    what came before. An image that cannot be read is replaced by another of ``rows``, so that batches stay full on
    every process; the item says so.

    Args:
        index: the images.
        rows: numbers of the images that may stand in for an unreadable one.
        shorter_edge: px that images are read at.
        crop: px, side of the square; at most ``shorter_edge``.
        seed: of the draws.
    """

    def __init__(self, index: ImageIndex, rows: NDArray[np.int64], *, shorter_edge: int, crop: int, seed: int) -> None:
        if crop > shorter_edge:
            raise ValueError(f"crop: expected at most shorter_edge, {shorter_edge} px, got {crop}")
        self.index = index
        self.rows = rows
        self.shorter_edge = shorter_edge
        self.crop = crop
        self.seed = seed

    def __getitem__(self, where: tuple[int, int]) -> Crop:
        epoch, number = where
        rng = np.random.default_rng([self.seed, epoch + 1, number])
        unreadable: dict[str, str] = {}
        for _ in range(_REPLACEMENTS):
            try:
                image = self.index.read(number, shorter_edge=self.shorter_edge)
            except ImageError as error:
                unreadable[self.index.keys[number]] = error.reason
                number = int(rng.choice(self.rows))
                continue
            return Crop(self._cut(image, None if epoch == CENTRAL else rng), number, unreadable)
        raise TooManyUnreadableError(f"{_REPLACEMENTS} images in a row cannot be read: {unreadable}")

    def _cut(self, image: Tensor, rng: np.random.Generator | None) -> Tensor:
        size = self.crop
        if min(image.shape[1:]) < size:  # a panorama, whose shorter side `read` lets shrink
            image = resize_shorter(image[None], size, max_pixels=2**40)[0]
        down, right = image.shape[1] - size, image.shape[2] - size
        top, left = (rng.integers(down + 1), rng.integers(right + 1)) if rng else (down // 2, right // 2)
        cut = (image[:, top : top + size, left : left + size] * 255).round().to(torch.uint8)
        return cut.flip(2) if rng and rng.random() < 0.5 else cut


def stack(crops: list[Crop]) -> Crop:
    """Crops -> one batch."""
    unreadable = {key: reason for crop in crops for key, reason in crop.unreadable.items()}
    return Crop(torch.stack([crop.image for crop in crops]), torch.tensor([crop.number for crop in crops]), unreadable)


class PhotoCrops(Dataset[tuple[Tensor, int]]):
    """Random crops and flips of photos (ATTIQA 4.2: 320 x 320 out of a shorter edge of 340): geometry only.

    Args:
        paths: the photos.
        shorter_edge: pixels, the size they are read at.
        crop: side of the square crop in pixels.
        seed: of the draws; `start_epoch` makes new ones.

    An item is ``((3, crop, crop) in [0, 1], index of its path)``; the order of the items is shuffled with each epoch.
    """

    def __init__(self, paths: Sequence[Path], shorter_edge: int, crop: int, seed: int) -> None:
        self.paths = tuple(paths)
        self.shorter_edge = shorter_edge
        self.crop = crop
        self.seed = seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draws the items are; before the loader is iterated."""
        self.epoch = epoch
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = int(self.order[position])
        rng = np.random.default_rng([self.seed, self.epoch, index])
        image = read(self.paths[index], shorter_edge=self.shorter_edge)
        return crop_and_flip(image, self.crop, rng), index


def crop_and_flip(image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A random ``(3, size, size)`` part of ``(3, H, W)``, mirrored half of the time.

    Raises:
        ValueError: the image is smaller.
    """
    height, width = image.shape[1:]
    if min(height, width) < size:
        raise ValueError(f"crop: expected at most the image's shorter side, {min(height, width)} px, got {size}")
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    cropped = image[:, top : top + size, left : left + size]
    return cropped.flip(2) if rng.random() < 0.5 else cropped


class Patches(NamedTuple):
    """Crops of one image, or of several (`stack_patches`)."""

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


def stack_patches(patches: list[Patches]) -> Patches:
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
