"""A fold evaluated: a model on the test sides of a plan, by view, and the table of all folds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from attriqa.data.protocol import Plan
from attriqa.data.splits import Fold
from attriqa.evaluation import metrics
from attriqa.evaluation.bootstrap import median_of_folds
from attriqa.images import read
from attriqa.models.views import View

TESTED_VIEWS: tuple[View, ...] = ("five_crop", "full")


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
        ``fold``, ``n_train``, one `attriqa.evaluation.metrics.report` per view (none without test files), and under
        ``cross`` one per stranger, by name.
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


def table_of_folds(plan: Plan, results: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
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
