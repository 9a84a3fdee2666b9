"""A rated data set cut into folds, and the test of a fold: what every recipe that learns from opinion scores shares."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from attriqa.data.datasets import Dataset, read_dataset
from attriqa.data.leaks import LeakError, check_leak, merge_duplicates
from attriqa.data.splits import Fold, official_fold, random_folds

Protocol = Literal["splits", "official", "all", "both"]
_SMOKE_ROWS, _SMOKE_TESTS = 40, 8


class Plan(NamedTuple):
    """What is trained on and what it is tested on; made by `make_plan`."""

    dataset: Dataset
    mos: Tensor  # (N,) the data set's scores, its scale mapped onto [0, 1]
    folds: tuple[Fold, ...]
    strangers: tuple[Dataset, ...]  # tested on whole
    protocol: str  # in words, for tables

    def train_paths(self, fold: Fold) -> list[Path]:
        """The files that a fold learns from, in the order of ``fold.train``."""
        return [self.dataset.rows[i].path for i in fold.train]

    def test_paths(self, fold: Fold) -> list[Path]:
        """The files that a fold is tested on, in the order of ``fold.test``."""
        return [self.dataset.rows[i].path for i in fold.test]


def make_plan(
    data: str,
    strangers: Sequence[str] = (),
    *,
    protocol: Protocol = "splits",
    splits: int = 10,
    fraction: float = 1.0,
    smoke: bool = False,
) -> Plan:
    """Read the data sets, cut the folds and refuse leaks.

    Args:
        data: ``NAME=ROOT`` of the rated data set (`attriqa.data.datasets.read_dataset`).
        strangers: likewise, other sets that each fold's model is tested on, whole.
        protocol: ``"splits"``: random 80/20 by group; ``"official"``: the authors' split; ``"all"``: one fold that
            trains on everything and tests nothing; ``"both"``: ``"all"``, then ``"splits"``.
        splits: how many random splits.
        fraction: the share of each training side that is used.
        smoke: a few rows of each set only.

    Raises:
        ValueError: an argument is none of the above.
        DatasetError: a data set is not what its layout says.
        LeakError: a file would be learnt from and tested on.
    """
    dataset = read_dataset(data)
    others = [read_dataset(spec) for spec in strangers]
    if smoke:
        dataset = dataset._replace(rows=dataset.rows[:_SMOKE_ROWS])
        others = [other._replace(rows=other.rows[:_SMOKE_TESTS]) for other in others]
    paths = [row.path for row in dataset.rows]
    groups = merge_duplicates(paths, [row.group for row in dataset.rows])
    folds: list[Fold] = []
    if protocol in ("all", "both"):
        folds.append(Fold("all", list(range(len(paths))), []))
    if protocol in ("splits", "both"):
        folds += random_folds(groups, splits, fraction=fraction)
    if protocol == "official":
        folds.append(official_fold([row.split for row in dataset.rows], groups, fraction=fraction))
    for other in others:
        theirs = [row.path for row in other.rows]
        check_leak(paths, theirs, what=f"{dataset.name} and {other.name}")
    low, high = dataset.mos_range
    mos = torch.tensor([(row.mos - low) / (high - low) for row in dataset.rows])
    share = "" if fraction == 1 else f", {fraction:.0%} of each training side"
    words = {
        "splits": f"in-domain: {dataset.name}, random 80/20 splits seeded 0..{splits - 1}, median{share}",
        "official": f"in-domain: {dataset.name}, official split{share}",
        "all": f"{dataset.name}: trained on every row, tested on none",
    }
    return Plan(dataset, mos, tuple(folds), tuple(others), words["splits" if protocol == "both" else protocol])


def refuse_learnt(plan: Plan, provenance: Mapping[str, Any], start: str) -> None:
    """Refuse a checkpoint to start from that has learnt opinion scores of files that a fold is tested on.

    Args:
        plan: of the run.
        provenance: of the checkpoint; it lists files by data set under ``data``, and what it started from under
            ``init``.
        start: what to call it.

    Raises:
        LeakError: it has; the files are counted, and one is named.
    """
    learnt: set[str] = set()
    record: Any = provenance
    while isinstance(record, Mapping):
        data = record.get("data")
        learnt |= set(data.get(plan.dataset.name, ())) if isinstance(data, Mapping) else set()
        record = record.get("init")
    for fold in plan.folds:
        tested = [path.name for path in plan.test_paths(fold)]
        if known := [name for name in tested if name in learnt]:
            raise LeakError(
                f"{start} has learnt from {len(known)} of the {len(tested)} files that {fold.name} is tested on, "
                f"as {known[0]}: expected a start that has not seen their opinion scores"
            )
