"""Crops of images to learn from or to be tested on: a function of a seed, an epoch and the number of an item alone.

So a resumed run sees what an uninterrupted one sees, whatever the number of processes and workers. Pixels travel as
bytes, a quarter of the memory on their way from a loading process. What cannot be read travels as well, and is raised
where the batch is used: a loading process would garble the error.
"""

from collections.abc import Callable, Sequence
from functools import partial
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

Rng = np.random.Generator | None  # of an item; None: its central crop, or all that is tested
_REPLACEMENTS = 8  # images tried in the place of one that cannot be read
_NOTHING = torch.empty(0, dtype=torch.uint8)


class Example(NamedTuple):
    """The crops of one image, or of the images of a batch (`stack`)."""

    image: Tensor  # (K, 3, h, w), of N images (N * K, 3, h, w): uint8, or float in [0, 1]; nothing if unreadable
    number: Any  # the image's, or (N,) of them
    unreadable: tuple[ImageError, ...] = ()
    replaced: tuple[ImageError, ...] = ()  # likewise, but others stand in their place
    strengths: Any = None  # (D,) or (N, D) float32 in [0, 1], of distortions, where they are known

    def pixels(self, device: torch.device) -> Tensor:
        """``image`` on a device, float32 in [0, 1].

        Raises:
            ImageError: one could not be read.
        """
        for error in self.unreadable:
            raise error
        image = self.image.to(device, non_blocking=True)
        return image if image.is_floating_point() else image.float().div_(255)


def stack(examples: list[Example]) -> Example:
    """Examples of one image each -> one batch."""
    images, numbers, unreadable, replaced, strengths = zip(*examples, strict=True)
    return Example(
        torch.cat(images),
        torch.tensor(numbers),
        sum(unreadable, ()),
        sum(replaced, ()),
        None if strengths[0] is None else torch.stack(strengths),
    )


def as_bytes(image: Tensor) -> Tensor:
    """[0, 1] -> uint8, as a file would hold it."""
    return (image * 255).round().to(torch.uint8)


def crop_and_flip(image: Tensor, size: int | tuple[int, int], rng: Rng, name: object = "the image") -> Tensor:
    """A random part of an image, mirrored half of the time; the central part as it is without a generator.

    Args:
        image: ``(..., H, W)``.
        size: of the part, px: the side of a square, or height and width.
        rng: where the draws come from.
        name: of the image, for the message.

    Raises:
        ValueError: the image is smaller.
    """
    height, width = (size, size) if isinstance(size, int) else size
    down, right = image.shape[-2] - height, image.shape[-1] - width
    if min(down, right) < 0:
        side = min(image.shape[-2:])
        raise ValueError(f"crop: expected at most the shorter side of {name}, {side}, got {min(height, width)}")
    top, left = (down // 2, right // 2) if rng is None else (int(rng.integers(down + 1)), int(rng.integers(right + 1)))
    cut = image[..., top : top + height, left : left + width]
    return cut.flip(-1) if rng is not None and rng.random() < 0.5 else cut


class RandomCrops(Dataset[Example]):
    """Crops and flips of unlabelled images, the pixels otherwise as they are (ATTIQA, section 3: geometry only).

    An item is at ``(epoch, number)``. An image that cannot be read is replaced by another of ``rows``, so that batches
    stay full on every process; the item says so.

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
        self.index, self.rows = index, rows
        self.shorter_edge, self.crop, self.seed = shorter_edge, crop, seed

    def __getitem__(self, where: tuple[int, int]) -> Example:
        epoch, number = where
        rng = np.random.default_rng([self.seed, epoch + 1, number])
        replaced: list[ImageError] = []
        for _ in range(_REPLACEMENTS):
            try:
                image = self.index.read(number, shorter_edge=self.shorter_edge)
            except ImageError as error:
                replaced.append(ImageError(self.index.keys[number], error.reason))
                number = int(rng.choice(self.rows))
                continue
            if min(image.shape[1:]) < self.crop:  # a panorama, whose shorter side `read` lets shrink
                image = resize_shorter(image[None], self.crop, max_pixels=2**40)[0]
            cut = crop_and_flip(image, self.crop, None if epoch == CENTRAL else rng)
            return Example(as_bytes(cut)[None], number, replaced=tuple(replaced))
        raise TooManyUnreadableError(f"{_REPLACEMENTS} images in a row cannot be read: {', '.join(map(str, replaced))}")


class FileCrops(Dataset[Example]):
    """Crops of image files, one image at a time; nothing but geometry changes.

    The item at ``(epoch, number)`` is of file ``number`` modulo their number, so that an epoch has several of each.

    Args:
        paths: the files.
        cut: ``cut(image, rng=...)``: ``(1, 3, H, W)`` and the item's generator -> ``(K, 3, h, w)``.
        fit: ``(1, 3, H, W)`` in [0, 1] -> the same at the size that crops are taken from.
        shorter_edge: px that files are read at; None: their own size.
        seed: of the draws.
        keep: bytes of images that each loading process keeps at that size, so that it reads the first ones of them
            once and not once for each crop; small data sets fit whole.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        cut: Callable[..., Tensor],
        fit: Callable[[Tensor], Tensor],
        *,
        shorter_edge: int | None = None,
        seed: int = 0,
        keep: int = 1 << 30,
    ) -> None:
        self.paths, self.cut, self.fit, self.shorter_edge, self.seed = list(paths), cut, fit, shorter_edge, seed
        self._room, self._kept = keep, dict[int, Tensor]()

    def path(self, number: int) -> Path:
        """The file of an item."""
        return self.paths[number % len(self.paths)]

    def __getitem__(self, where: tuple[int, int]) -> Example:
        epoch, number = where
        index = number % len(self.paths)
        rng = None if epoch == CENTRAL else np.random.default_rng([self.seed, epoch, number])
        try:
            return Example(self.cut(self._image(index), rng=rng).clone(), index)
        except ValueError as error:
            return Example(_NOTHING, index, (named(error, self.paths[index]),))

    def _image(self, index: int) -> Tensor:
        """(1, 3, H, W) uint8."""
        if index in self._kept:
            return self._kept[index]
        image = as_bytes(self.fit(read(self.paths[index], shorter_edge=self.shorter_edge)[None]))
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._kept[index] = image
        return image


class WholeImages(Dataset[Example]):
    """Image files as they are, one at a time, float in [0, 1]; ``(epoch, number)`` is file ``number``."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __getitem__(self, where: tuple[int, int]) -> Example:
        number = where[1]
        try:
            return Example(read(self.paths[number])[None], number)
        except ImageError as error:
            return Example(_NOTHING, number, (error,))


def named(error: ValueError, path: Path) -> ImageError:
    """An error of reading or of cropping, with the file that it is about."""
    return error if isinstance(error, ImageError) else ImageError(str(path), str(error))


def training_crops(
    paths: Sequence[Path], crop: tuple[int, int], *, shorter_edge: int | None = None, seed: int = 0
) -> FileCrops:
    """One random crop of ``crop`` px, (height, width), at a time; smaller images are scaled up (`fitted`)."""
    cut, fit = partial(crop_and_flip, size=crop), partial(fitted, crop=crop)
    return FileCrops(paths, cut, fit, shorter_edge=shorter_edge, seed=seed)


def fixed_crops(
    paths: Sequence[Path], crop: tuple[int, int], count: int, *, shorter_edge: int | None = None, seed: int = 0
) -> FileCrops:
    """All ``count`` crops of each image that a model sees of it (`seeded_crops`), whatever the epoch."""
    cut = partial(_seeded, crop=crop, count=count, seed=seed)
    return FileCrops(paths, cut, partial(fitted, crop=crop), shorter_edge=shorter_edge, keep=0)


def _seeded(image: Tensor, *, crop: tuple[int, int], count: int, seed: int, rng: Rng) -> Tensor:
    """An image no larger than one crop gives it ``count`` times."""
    return seeded_crops(image, crop, count, seed=seed)[0].expand(count, -1, -1, -1)


class PhotoCrops(Dataset[tuple[Tensor, Any]]):
    """Random crops and flips of photos (ATTIQA 4.2: 320 x 320 out of a shorter edge of 340): geometry only.

    Args:
        paths: the photos.
        shorter_edge: pixels, the size they are read at; None: their own.
        crop: side of the square crop in pixels.
        seed: of the draws; `start_epoch` makes new ones.

    An item is ``((3, crop, crop) in [0, 1], index of its path)``; the order of the items is shuffled with each epoch.
    """

    def __init__(self, paths: Sequence[Path], shorter_edge: int | None, crop: int, seed: int) -> None:
        self.paths = tuple(paths)
        self.shorter_edge, self.crop, self.seed = shorter_edge, crop, seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draws the items are; before the loader is iterated."""
        self.epoch = epoch
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Tensor, Any]:
        return self.draw(position)[:2]

    def draw(self, position: int) -> tuple[Tensor, int, np.random.Generator]:
        """An item, and the generator of what else is drawn of it."""
        index = int(self.order[position])
        rng = np.random.default_rng([self.seed, self.epoch, index])
        photo = read(self.paths[index], shorter_edge=self.shorter_edge)
        return crop_and_flip(photo, self.crop, rng, self.paths[index]), index, rng
