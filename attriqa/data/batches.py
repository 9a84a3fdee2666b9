"""Batches that any number of processes share and that resume at any position."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

CENTRAL = -1  # in the place of an epoch: the central crop, never flipped


def central(numbers: Iterable[int], batch: int = 32) -> list[list[tuple[int, int]]]:
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

    def numbers(self, position: int) -> list[int]:
        """Those of the images of the batch at ``position``, over all processes."""
        return [int(number) for number in self.whole(position)[1]]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for position in range(self.first, self.total):
            epoch, numbers = self.whole(position)
            yield [(epoch, int(number)) for number in numbers[self._share]]

    def __len__(self) -> int:
        return self.total - self.first


class JointBatches(Sampler[list[tuple[int, int]]]):
    """A process' share of batches that hold images of several sets, each set going round at its own pace.

    Args:
        rows: the numbers of each set's images.
        sizes: of each set in a batch, over all processes.
        total: batches of the run.
        first: the position to begin at.
        process: 0 to ``processes`` - 1.
        processes: how many share a batch.
        seed: of the shuffling.

    Raises:
        ValueError: a set has fewer images than its share of a batch, or this cannot be shared evenly.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        sizes: Sequence[int],
        total: int,
        *,
        first: int = 0,
        process: int = 0,
        processes: int = 1,
        seed: int = 0,
    ) -> None:
        share = {"first": first, "process": process, "processes": processes, "seed": seed}
        self.sets = [
            GlobalBatches(np.array(numbers), size, total, **share) for numbers, size in zip(rows, sizes, strict=True)
        ]
        self._length = total - first

    def numbers(self, position: int) -> list[int]:
        """Those of the images of the batch at ``position``, over all processes."""
        return [number for batches in self.sets for number in batches.numbers(position)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for parts in zip(*self.sets, strict=True):
            yield [item for part in parts for item in part]

    def __len__(self) -> int:
        return self._length
