"""A rated data set cut into folds, and the test of a fold: what every recipe that learns from opinion scores shares."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from attriqa import metrics
from attriqa.datasets import Dataset, read_dataset
from attriqa.images import read
from attriqa.protocols import (
    Fold,
    LeakError,
    check_leak,
    median_of_folds,
    merge_duplicates,
    official_fold,
    random_folds,
)
from attriqa.views import View

TESTED_VIEWS: tuple[View, ...] = ("five_crop", "full")
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
        data: ``NAME=ROOT`` of the rated data set (`attriqa.datasets.read_dataset`).
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
    about: Any = provenance
    while isinstance(about, Mapping):
        data = about.get("data")
        learnt |= set(data.get(plan.dataset.name, ())) if isinstance(data, Mapping) else set()
        about = about.get("init")
    for fold in plan.folds:
        tested = [path.name for path in plan.test_paths(fold)]
        if known := [name for name in tested if name in learnt]:
            raise LeakError(
                f"{start} has learnt from {len(known)} of the {len(tested)} files that {fold.name} is tested on, "
                f"as {known[0]}: expected a start that has not seen their opinion scores"
            )


def evaluate_fold(
    plan: Plan,
    fold: Fold,
    score: Callable[[Tensor, View], Tensor],
    *,
    shorter_edge: int,
    views: Sequence[View] = TESTED_VIEWS,
) -> dict[str, Any]:
    """Score a fold's test files in each view, and every stranger in the first view.

    Args:
        plan: of `make_plan`.
        fold: one of its folds.
        score: ``(1, 3, H, W)`` at the shorter edge and the view -> ``(1,)`` in [0, 1].
        shorter_edge: pixels at which the files are read.
        views: the views.

    Returns:
        ``fold``, ``n_train``, one `attriqa.metrics.report` per view (none without test files), and under ``cross`` one
        per stranger, by name.
    """

    def report(name: str, paths: Sequence[Path], mos: list[float], view: View) -> dict[str, float]:
        bar = tqdm(paths, f"{fold.name}: test, {name}", leave=False)
        scores = [score(read(path, shorter_edge=shorter_edge)[None], view).item() for path in bar]
        return metrics.report(scores, mos, seed=0, resamples=1000)

    result: dict[str, Any] = {"fold": fold.name, "n_train": len(fold.train)}
    mos = [plan.dataset.rows[i].mos for i in fold.test]
    for view in views if fold.test else ():
        result[view] = report(view, plan.test_paths(fold), mos, view)
    if plan.strangers:
        result["cross"] = {
            other.name: report(other.name, [row.path for row in other.rows], [row.mos for row in other.rows], views[0])
            for other in plan.strangers
        }
    return result


def mean_cosine(
    paths: Sequence[Path], before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor], *, shorter_edge: int
) -> float:
    """Mean cosine between two encoders' features of the same images (ATTIQA's feature analysis of fine-tuning).

    Args:
        paths: image files.
        before: ``(1, 3, H, W)`` at the shorter edge -> features ``(1, D)``.
        after: likewise.
        shorter_edge: pixels.
    """
    cosines = []
    for path in tqdm(paths, "features before and after", leave=False):
        image = read(path, shorter_edge=shorter_edge)[None]
        cosines.append(torch.cosine_similarity(before(image), after(image)).item())
    return sum(cosines) / len(cosines)


def summarise(plan: Plan, results: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What `evaluate_fold` gave over all folds: medians for ``metrics.json``, and the same as lines to print."""
    summary: dict[str, Any] = {"protocol": plan.protocol, "folds": list(results)}
    lines: list[str] = []
    tables: dict[str, list[dict[str, float]]] = {
        view: [result[view] for result in results if view in result] for view in TESTED_VIEWS
    }
    tables |= {
        other.name: [result["cross"][other.name] for result in results if "cross" in result] for other in plan.strangers
    }
    for name, rows in tables.items():
        if not rows:
            continue
        medians = {key: median_of_folds([row[key] for row in rows]).median for key in (*metrics.STATISTICS, "n")}
        spread = median_of_folds([row["srocc"] for row in rows])
        entry = medians | {"folds": len(rows), "srocc_low": spread.low, "srocc_high": spread.high}
        where = summary if name in TESTED_VIEWS else summary.setdefault("cross", {})
        where[name] = entry
        each = " ".join(f"{row['srocc']:.3f}" for row in rows)
        title = name if name in TESTED_VIEWS else f"on {name}"
        lines.append(
            f"{title:9}  SROCC {entry['srocc']:.4f}  PLCC {entry['plcc']:.4f}  n {entry['n']:.0f}  "
            f"(SROCC of each fold: {each})"
        )
    return summary, lines
