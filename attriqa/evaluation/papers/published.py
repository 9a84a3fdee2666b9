"""What the three papers report, read from ``published.toml`` beside this file: ``TABLES["ATTIQA table 2"]``.

A number of one protocol is never compared with one of another.
"""

import math
import tomllib
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

Cells = tuple[float | None, ...]


class Table(NamedTuple):
    """One published table.

    Attributes:
        source: paper and number.
        protocol: how its numbers came about.
        columns: what each cell of a row is: a data set and a statistic, or a pair of data sets.
        rows: cells by method, or by pair of data sets; None where the table has none.
        note: what to know before using it.
    """

    source: str
    protocol: str
    columns: tuple[str, ...]
    rows: Mapping[str, Cells]
    note: str = ""

    def value(self, row: str, column: str) -> float | None:
        """One cell; None where the paper has none.

        Raises:
            KeyError: there is no such row or column; those there are, are named.
        """
        if row not in self.rows or column not in self.columns:
            raise KeyError(f"{self.source}: no {row!r}, {column!r}; rows {list(self.rows)}, columns {self.columns}")
        return self.rows[row][self.columns.index(column)]

    def cell(self, row: str, column: str) -> float | None:
        """As `value`, and None where there is no such row or column."""
        return self.value(row, column) if row in self.rows and column in self.columns else None


class Figure(NamedTuple):
    """A paper's own result for one experiment."""

    source: str  # paper, table, row
    protocol: str
    srocc: float | None
    plcc: float | None


def _table(source: str, entry: dict[str, Any]) -> Table:
    protocol, note = entry.pop("protocol"), entry.pop("note", "")
    columns = entry.pop("columns", None) or [
        f"{data} {what}" for data, what in product(entry.pop("data"), entry.pop("statistics"))
    ]
    rows = {row: tuple(None if math.isnan(cell) else cell for cell in cells) for row, cells in entry.items()}
    return Table(source, protocol, tuple(columns), rows, note)


_TEXT = Path(__file__).with_name("published.toml").read_text(encoding="utf-8")
TABLES = {source: _table(source, entry) for source, entry in tomllib.loads(_TEXT).items()}
"""By paper and number."""


def in_domain(name: str) -> list[Figure]:
    """Each paper's own in-domain result on a data set; empty where none has one."""
    own = {"ATTIQA table 2": "ATTIQA-joint", "ExIQA table 3": "ExIQA", "MP-IQE table 1": "MP-IQE"}
    return _figures(own, f"{name} srocc", f"{name} plcc")


def linear_probe(name: str) -> list[Figure]:
    """ATTIQA's linear probe on a data set; empty where it has none."""
    return _figures({"ATTIQA table 6": "ATTIQA"}, f"{name} srocc", f"{name} plcc")


def data_efficient(name: str, fraction: float) -> list[Figure]:
    """ATTIQA trained on a fraction, 0.1 or 0.2, of a data set; empty where it has none."""
    return _figures({"ATTIQA table 4": "ATTIQA"}, f"{name} {fraction * 100:g} %")


def cross_dataset(train: str, test: str) -> list[Figure]:
    """Each paper's own result trained on one data set, tested on another; empty where none has one."""
    return _figures({"ATTIQA table 3": "ATTIQA", "MP-IQE table 3": "MP-IQE"}, f"{train}>{test}")


def feature_cosine(name: str) -> float | None:
    """ATTIQA's cosine of features before and after fine-tuning on a data set; None where it has none."""
    return TABLES["ATTIQA table 5"].cell("ATTIQA", f"{name} cosine")


def _figures(rows: Mapping[str, str], srocc: str, plcc: str | None = None) -> list[Figure]:
    """The row of each table, by the table's name, that has the column."""
    return [
        Figure(
            f"{table.source}, {row}", table.protocol, table.value(row, srocc), table.value(row, plcc) if plcc else None
        )
        for table, row in ((TABLES[name], row) for name, row in rows.items())
        if srocc in table.columns
    ]
