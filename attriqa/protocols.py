"""How models are tested: splits from a seed alone, what may not leak across them, and controlled ramps for the heads.

The papers' protocols, each a list of `Fold`:

- in-domain: `random_folds`, 80/20 by group, 10 repeats, median (`median_of_folds`); `official_fold` where the authors
  of the data set have drawn the line (FLIVE, AVA);
- data-efficient: the same with ``fraction=0.1`` or ``0.2`` of the training side; the test side stays as it was;
- cross-dataset: trained on the training side of a fold, tested on the whole of another data set;
- linear probe: the same folds, with a frozen encoder.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from attriqa.distortions import DEPARTURES, apply_ramp, develop, draw_departure
from attriqa.images import read
from attriqa.prompts import ATTRIBUTES

RAMP_LEVELS = 9
_BEGINNING = 16_384  # bytes: past the headers of an image


def random_split(groups: Sequence[str], seed: int, test_fraction: float = 0.2) -> tuple[list[int], list[int]]:
    """A random split that keeps each group whole.

    Args:
        groups: the group of each row.
        seed: the split's number: equal seeds and groups give equal splits.
        test_fraction: the share of groups in the test side, in (0, 1).

    Returns:
        Row indices ``(train, test)``, each ascending.

    Raises:
        ValueError: a side would be empty, or ``test_fraction`` is outside (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number within (0, 1), got {test_fraction}")
    names = list(dict.fromkeys(groups))
    held_out = round(test_fraction * len(names))
    if not 0 < held_out < len(names):
        raise ValueError(f"groups: {len(names)} groups are too few to split with test_fraction={test_fraction}")
    order = np.random.default_rng(seed).permutation(len(names))
    test_names = {names[i] for i in order[:held_out]}
    test = [i for i, group in enumerate(groups) if group in test_names]
    train = [i for i, group in enumerate(groups) if group not in test_names]
    return train, test


class Fold(NamedTuple):
    """One split: row indices, each side ascending."""

    name: str
    train: list[int]
    test: list[int]


def random_folds(groups: Sequence[str], repeats: int = 10, *, fraction: float = 1.0) -> list[Fold]:
    """Random 80/20 splits by group, ``split0`` on, seeded 0, 1, ...: with n groups ``round(0.8 n)`` train.

    Args:
        groups: the group of each row.
        repeats: how many.
        fraction: the share of the training side that is kept (`training_subset`); the test sides do not depend on it.

    Raises:
        ValueError: there are too few groups, ``repeats`` is not positive or ``fraction`` outside (0, 1].
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    folds = []
    for seed in range(repeats):
        train, test = random_split(groups, seed)
        folds.append(Fold(f"split{seed}", training_subset(train, groups, fraction, seed), test))
    return folds


def official_fold(splits: Sequence[str | None], groups: Sequence[str], *, fraction: float = 1.0, seed: int = 0) -> Fold:
    """The split that a data set's authors drew. Its validation rows are on neither side: they are for choosing.

    Args:
        splits: the official side of each row, ``"train"``, ``"val"``, ``"test"`` or None, which is on no side.
        groups: the group of each row.
        fraction: the share of the training side that is kept (`training_subset`).
        seed: of the choice of that share.

    Raises:
        ValueError: a side is empty, or a group is on both.
    """
    if len(splits) != len(groups):
        raise ValueError(f"splits and groups: expected equal lengths, got {len(splits)} and {len(groups)}")
    train = [i for i, side in enumerate(splits) if side == "train"]
    test = [i for i, side in enumerate(splits) if side == "test"]
    if not train or not test:
        raise ValueError(f"splits: expected an official split, got {len(train)} train and {len(test)} test rows")
    torn = sorted({groups[i] for i in train} & {groups[i] for i in test})
    if torn:
        raise ValueError(f"groups: {len(torn)} are on both sides of the official split: {', '.join(torn[:5])}")
    return Fold("official", training_subset(train, groups, fraction, seed), test)


def training_subset(train: Sequence[int], groups: Sequence[str], fraction: float, seed: int) -> list[int]:
    """A share of a training side, by group; of one seed, a smaller share lies within a larger one.

    Args:
        train: row indices.
        groups: the group of each row of the data set.
        fraction: the share of the groups to keep, in (0, 1]; rounded, at least one group.
        seed: of the choice; `random_split` with the same seed draws from another stream.

    Returns:
        Row indices, ascending.

    Raises:
        ValueError: ``fraction`` is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a number within (0, 1], got {fraction}")
    names = list(dict.fromkeys(groups[i] for i in train))
    order = np.random.default_rng([seed, 1]).permutation(len(names))
    kept = {names[i] for i in order[: max(1, round(fraction * len(names)))]}
    return sorted(i for i in train if groups[i] in kept)


class FoldMedian(NamedTuple):
    """The median of a statistic over folds, and its 95 % bootstrap interval over folds."""

    median: float
    low: float
    high: float


def median_of_folds(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> FoldMedian:
    """Median over folds; the interval draws folds with replacement and says how far the choice of splits moves it.

    The folds share images, so it is no interval for new images. The median of one fold has the width 0.

    Raises:
        ValueError: ``values`` is empty or holds something that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"values: expected one or more finite numbers, got {list(values)}")
    drawn = np.random.default_rng(seed).integers(0, array.size, (resamples, array.size))
    low, high = np.quantile(np.median(array[drawn], axis=1), (0.025, 0.975))
    return FoldMedian(float(np.median(array)), float(low), float(high))


class LeakError(ValueError):
    """The same file content on both sides of a split, or in two data sets that should be strangers."""


def identical_files(paths: Sequence[Path]) -> list[list[int]]:
    """Which files have the same content: size first, then the beginning, then SHA-256 of the whole.

    Few files are read whole, so a data set of 250,000 takes minutes, not hours. A photo that was saved anew is another
    file: this finds copies, not likenesses.

    Returns:
        Lists of two or more indices, each ascending, ordered by their first.

    Raises:
        OSError: a file cannot be read.
    """
    alike = [list(range(len(paths)))]
    for key in (_size, _beginning, _content):
        alike = [part for indices in alike for part in _parted(indices, (key(paths[i]) for i in indices))]
    return sorted(alike)


def _size(path: Path) -> Hashable:
    return path.stat().st_size


def _beginning(path: Path) -> Hashable:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_BEGINNING)).digest()


def _content(path: Path) -> Hashable:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _parted(indices: Iterable[int], keys: Iterable[Hashable]) -> list[list[int]]:
    """The indices by key, without those that are alone."""
    parts = defaultdict(list)
    for index, key in zip(indices, keys, strict=True):
        parts[key].append(index)
    return [part for part in parts.values() if len(part) > 1]


def merge_duplicates(paths: Sequence[Path], groups: Sequence[str]) -> list[str]:
    """Groups in which identical files are together, and with them all that was in a group with one of them.

    Args:
        paths: the files.
        groups: the group of each.

    Returns:
        The group of each row; merged ones have the name of the one that comes first in ``groups``.

    Raises:
        ValueError: the lengths differ.
        OSError: a file cannot be read.
    """
    if len(paths) != len(groups):
        raise ValueError(f"paths and groups: expected equal lengths, got {len(paths)} and {len(groups)}")
    leader = {group: group for group in groups}
    rank = {group: i for i, group in enumerate(leader)}

    def lead(group: str) -> str:
        while leader[group] != group:
            group = leader[group]
        return group

    for indices in identical_files(paths):
        first, *others = sorted({lead(groups[i]) for i in indices}, key=rank.__getitem__)
        for other in others:
            leader[other] = first
    return [lead(group) for group in groups]


def find_leaks(train: Sequence[Path], test: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of a training and a test file with the same content, or that are one file; each test file once.

    Raises:
        OSError: a file cannot be read.
    """
    both = [*train, *test]
    pairs = []
    for indices in identical_files(both):
        if indices[0] < len(train):
            pairs += [(both[indices[0]], both[i]) for i in indices if i >= len(train)]
    return pairs


def check_leak(train: Sequence[Path], test: Sequence[Path], *, what: str = "training and test files") -> None:
    """Refuse to go on when a test image is among the training images, within a data set or across two.

    Args:
        train: files that a model learns from.
        test: files that it is tested on.
        what: the two sides, for the error.

    Raises:
        LeakError: some are; they are counted, and ten pairs named.
        OSError: a file cannot be read.
    """
    pairs = find_leaks(train, test)
    if pairs:
        lines = [f"  {a} = {b}" if a != b else f"  {a} on both sides" for a, b in pairs[:10]]
        lines += [f"  and {len(pairs) - 10} more"] if len(pairs) > 10 else []
        raise LeakError("\n".join([f"{what}: {len(pairs)} test files are training files too:", *lines]))


class RampTable(NamedTuple):
    """How heads answer to ramps; rows are the ramp's attribute, columns the head's, both in the order of ATTRIBUTES."""

    srocc: list[list[float]]  # mean over photos of the SROCC between level and head
    change: list[list[float]]  # mean over photos of the head at level 1 minus the head at level 0
    photos: int


def follow_ramps(
    attributes: Callable[[Tensor], Tensor | None],
    photos: Sequence[Path],
    *,
    seed: int = 0,
    shorter_edge: int | None = None,
    progress: bool = True,
) -> RampTable:
    """Render each photo at nine levels of each attribute (`apply_ramp`) and see what every head makes of them.

    A head that does not move at all over a ramp counts as SROCC 0 there.

    Args:
        attributes: ``(B, 3, H, W)`` in [0, 1] -> ``(B, 5)``.
        photos: pristine photos, better ones that no head has learnt from.
        seed: of the noise ramp.
        shorter_edge: px that the photos are reduced to; `None`: they stay as they are.
        progress: show a progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    level = torch.linspace(0, 1, RAMP_LEVELS)
    count = len(ATTRIBUTES)
    srocc = np.zeros((len(photos), count, count))
    change = np.zeros_like(srocc)
    for i, path in enumerate(tqdm(photos, "ramps", leave=False, disable=not progress)):
        photo = read(path, shorter_edge=shorter_edge)[None].expand(RAMP_LEVELS, -1, -1, -1)
        for row, name in enumerate(ATTRIBUTES):
            said = attributes(apply_ramp(photo, name, level, generator))
            if said is None:
                raise ValueError("attributes: expected a model that tells the five attributes, got one that does not")
            heads = said.double().cpu().numpy()  # (L, 5)
            change[i, row] = heads[-1] - heads[0]
            for column in range(count):
                moves = np.ptp(heads[:, column]) > 0
                srocc[i, row, column] = spearmanr(level, heads[:, column]).statistic if moves else 0.0
    return RampTable(srocc.mean(0).tolist(), change.mean(0).tolist(), len(photos))


class DepartureRow(NamedTuple):
    """How a score answers to one departure from well-developed photos, as it grows."""

    srocc: float  # mean over photos of the SROCC between severity and score, its sign turned: 1 is always less
    first: float  # share of photos that score higher than all their departures from severity 0.5 on
    loss: float  # mean fall of the score at severity 0.5


def follow_departures(
    score: Callable[[Tensor], Tensor],
    photos: Sequence[Path],
    *,
    seed: int = 0,
    shorter_edge: int | None = None,
    progress: bool = True,
) -> dict[str, DepartureRow]:
    """Render each photo at five severities of each departure (`draw_departure`) and see what a score makes of them.

    Args:
        score: ``(B, 3, H, W)`` in [0, 1] -> ``(B,)``, higher is better.
        photos: pristine photos, better ones that nothing was learnt from.
        seed: of the departures that are drawn, one of each kind per photo.
        shorter_edge: px that the photos are reduced to; `None`: they stay as they are.
        progress: show a progress bar.
    """
    severity = torch.linspace(0, 1, 5)
    rng = np.random.default_rng(seed)
    found = {kind: np.zeros((len(photos), 3)) for kind in DEPARTURES}
    for i, path in enumerate(tqdm(photos, "departures", leave=False, disable=not progress)):
        photo = read(path, shorter_edge=shorter_edge)[None].expand(len(severity), -1, -1, -1)
        for kind, values in found.items():
            said = score(develop(photo, severity[:, None] * draw_departure(kind, rng))).double().cpu().numpy()
            order = -spearmanr(severity, said).statistic if np.ptp(said) > 0 else 0.0
            values[i] = order, said[0] > said[2:].max(), said[0] - said[2]
    return {kind: DepartureRow(*values.mean(0).tolist()) for kind, values in found.items()}
