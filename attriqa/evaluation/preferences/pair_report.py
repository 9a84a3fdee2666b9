"""How scorers compare on pairs that people judged: as text and as a plot, with the published accuracies beside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attriqa.evaluation import metrics
from attriqa.evaluation.papers.published import TABLES
from attriqa.evaluation.text_tables import span
from attriqa.files import atomic_path

PUBLISHED_N = 200
"""Pairs behind ATTIQA's table 8."""


def published_pairs() -> dict[str, Any]:
    """ATTIQA's table 8: its source, its protocol and, by method, the accuracy with Wilson's interval of its 200 pairs.

    Its pairs were never released, so these numbers are of other data than anything measured here.
    """
    table, rows = TABLES["ATTIQA table 8"], {}
    for name in table.rows:
        share = (table.value(name, "accuracy") or 0.0) / 100
        low, high = metrics.wilson(share * PUBLISHED_N, PUBLISHED_N)
        rows[name] = {"accuracy": share, "accuracy_low": low, "accuracy_high": high, "n": PUBLISHED_N}
    return {"source": table.source, "protocol": table.protocol, "rows": rows}


def agreement_text(result: Mapping[str, Any]) -> str:
    """What ``pairs.compare`` found, and `published_pairs` apart from it, as a table for the screen.

    Args:
        result: what ``compare`` gave, with ``protocol``, ``pairs``, ``images``, ``black_images``,
            ``pairs_left_out_for_black`` and ``published`` beside it.
    """
    names = result["black_images"]
    black = f"{result['pairs_left_out_for_black']:,} left out for {len(names):,} all-black images"
    if names:
        black += f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    lines = [
        result["protocol"],
        f"{result['pairs']:,} pairs of {result['images']:,} images; {black}",
        "",
        f"{'accuracy, % [95 %]':36}{'Wilson':16}{'over prompts':16}{'n':>7}{'ties':>6}{'people tie':>12}",
    ]
    for name, entry in result["scorers"].items():
        lines.append(_row(name, entry))
        lines += [_row(f"  margin > {text}", part) for text, part in entry["above"].items()]
    lines += [
        f"McNemar's exact test: {test['only_first']:,} right only by {test['first']}, "
        f"{test['only_second']:,} only by {test['second']}; p = {test['p']:.3g}"
        for test in result["tests"]
    ]
    theirs = result["published"]
    lines += [
        "Where pairs share images or prompts, Wilson's interval is too narrow and p too small.",
        "",
        f"Other data, not to be ranked with the above: {theirs['source']}, {theirs['protocol']}",
    ]
    lines += [
        f"{name:28}{100 * row['accuracy']:<8.1f}{_span(row['accuracy_low'], row['accuracy_high']):32}{row['n']:>7}"
        for name, row in theirs["rows"].items()
    ]
    return "\n".join(lines)


def _row(title: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return f"{title:28}no such pair"
    spans = _span(entry["accuracy_low"], entry["accuracy_high"]), _span(entry["by_prompt_low"], entry["by_prompt_high"])
    counts = f"{entry['n']:>7,}{entry['score_ties']:>6,}{entry['human_ties']:>12,}"
    return f"{title:28}{100 * entry['accuracy']:<8.1f}{spans[0]:16}{spans[1]:16}{counts}"


def _span(low: float | None, high: float | None) -> str:
    return span(low, high, digits=1, scale=100) or "-"


def draw_margins(path: Path | str, curves: Mapping[str, Sequence[Mapping[str, Any]]], margin: str) -> None:
    """Draw accuracy by how clear the case was to people, with Wilson's intervals, as PNG.

    Args:
        path: the file to make.
        curves: for each scorer, by its name, the bins of `attriqa.evaluation.preferences.pairs.compare`; the same bins
            for all, at least one.
        margin: what the margin is, in words.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, curve) in enumerate(curves.items()):
        bins = [(place, entry) for place, entry in enumerate(curve) if entry["n"]]
        x = [place + 0.1 * (index - (len(curves) - 1) / 2) for place, _ in bins]
        y = [100 * entry["accuracy"] for _, entry in bins]
        below = [100 * max(0.0, entry["accuracy"] - entry["accuracy_low"]) for _, entry in bins]
        above = [100 * max(0.0, entry["accuracy_high"] - entry["accuracy"]) for _, entry in bins]
        axes.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, label=name)
    first = next(iter(curves.values()))
    axes.axhline(50, color="gray", linewidth=0.8, linestyle="--")
    labels = [f"{entry['low']:g} to {entry['high']:g}\nn = {entry['n']:,}" for entry in first]
    axes.set_xticks(range(len(first)), labels)
    axes.set(xlabel=margin, ylabel="pairs ordered as people do, %", ylim=(0, 102))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
