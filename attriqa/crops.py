"""Random crops of unlabelled images in batches that any number of processes share and that resume at any position."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from attriqa.images import ImageError, resize_shorter
from attriqa.unlabelled import ImageIndex, TooManyUnreadableError

CENTRAL = -1  # in the place of an epoch: the central crop, never flipped
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


def central(numbers: NDArray[np.int64], batch: int = 32) -> list[list[tuple[int, int]]]:
    """The central crops of some images, as a loader's ``batch_sampler``."""
    where = [(CENTRAL, int(number)) for number in numbers]
    return [where[start : start + batch] for start in range(0, len(where), batch)]


class GlobalBatches(Sampler[list[tuple[int, int]]]):
    """A process' share of every batch of a run: ``(epoch, number)`` for `RandomCrops`.

    A batch is a function of the seed and of its position, so that a run resumes at any batch without those before, and
    the batches do not depend on how many processes share them. What an epoch has left over stays out of it.

    Args:
        rows: the numbers of the images.
        batch: images of a batch, over all processes; a multiple of ``processes``.
        total: batches of the run.
        first: the position to begin at.
        process: 0 to ``processes`` - 1.
        processes: how many share a batch.
        seed: of the shuffling.

    Raises:
        ValueError: ``batch`` cannot be shared evenly or is more than there are images.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        batch: int,
        total: int,
        *,
        first: int = 0,
        process: int = 0,
        processes: int = 1,
        seed: int = 0,
    ) -> None:
        if batch % processes or not 0 < batch <= len(rows):
            raise ValueError(
                f"batch: expected a multiple of the {processes} processes, at most the {len(rows)} images, got {batch}"
            )
        self.rows = rows
        self.batch = batch
        self.total = total
        self.first = first
        self.seed = seed
        self.per_epoch = len(rows) // batch
        self._share = slice(process * batch // processes, (process + 1) * batch // processes)
        self._epoch, self._order = -1, rows

    def whole(self, position: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch and the image numbers of the batch at ``position``, over all processes."""
        epoch, place = divmod(position, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return epoch, self._order[place * self.batch : (place + 1) * self.batch]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for position in range(self.first, self.total):
            epoch, numbers = self.whole(position)
            yield [(epoch, int(number)) for number in numbers[self._share]]

    def __len__(self) -> int:
        return self.total - self.first
