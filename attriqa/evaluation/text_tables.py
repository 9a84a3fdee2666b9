"""Results as text: tables in Markdown, numbers with their intervals."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A table in Markdown.

    Args:
        head: of the columns.
        rows: cells, as many as heads in each.
        align: ``l`` or ``r`` for each column; without it, numbers: all flush right but the first.
    """
    sides = align or "l" + "r" * (len(head) - 1)
    rule = "|".join("---:" if side == "r" else "---" for side in sides)
    return "\n".join([line_of(head), f"|{rule}|", *map(line_of, rows)])


def line_of(cells: Sequence[str]) -> str:
    """One row."""
    return f"| {' | '.join(cells)} |"


def span(low: float | None, high: float | None, digits: int = 3, scale: float = 1) -> str:
    """``[0.580, 0.641]``; empty where there is no interval."""
    return "" if low is None or high is None else f"[{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def estimate(values: Mapping[str, Any], name: str = "", form: str = ".3f") -> str:
    """``0.612 [0.580, 0.641]``: a number and its interval, where there is one; ``undefined`` for no number.

    Args:
        values: hold them as ``NAME``, ``NAME_low`` and ``NAME_high``; without a name as ``mean``, ``low`` and ``high``.
        name: of the number.
        form: of all three.
    """
    keys = (name, f"{name}_low", f"{name}_high") if name else ("mean", "low", "high")
    value, low, high = map(values.get, keys)
    if value is None:
        return "undefined"
    return f"{value:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")
