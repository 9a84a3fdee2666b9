"""How models are tested: splits from a seed alone, what may not leak across them, and controlled ramps for the heads.

The papers' protocols, each a list of `Fold`:

- in-domain: `random_folds`, 80/20 by group, 10 repeats, median (`median_of_folds`); `official_fold` where the authors
  of the data set have drawn the line (FLIVE, AVA);
- data-efficient: the same with ``fraction=0.1`` or ``0.2`` of the training side; the test side stays as it was;
- cross-dataset: trained on the training side of a fold, tested on the whole of another data set;
- linear probe: the same folds, with a frozen encoder.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


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
