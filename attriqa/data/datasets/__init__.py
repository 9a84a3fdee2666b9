"""Public image-quality data sets -> rows of one type. Scores are higher-is-better and keep their native range."""

from pathlib import Path
from typing import Protocol

from attriqa.data.datasets.any_csv import read_csv
from attriqa.data.datasets.authentic import read_ava, read_bid, read_clive, read_flive, read_koniq, read_spaq
from attriqa.data.datasets.rows import Dataset, DatasetError, Row, Split
from attriqa.data.datasets.synthetic import (
    read_agiqa,
    read_csiq,
    read_kadid,
    read_live,
    read_lvq,
    read_pipal,
    read_tid2013,
)

__all__ = [
    "READERS",
    "Dataset",
    "DatasetError",
    "Reader",
    "Row",
    "Split",
    "read_agiqa",
    "read_ava",
    "read_bid",
    "read_clive",
    "read_csiq",
    "read_csv",
    "read_dataset",
    "read_flive",
    "read_kadid",
    "read_koniq",
    "read_live",
    "read_lvq",
    "read_pipal",
    "read_spaq",
    "read_tid2013",
]


class Reader(Protocol):
    """What all readers have in common."""

    def __call__(self, root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
        """Read the data set in ``root``.

        Args:
            root: the folder that holds it, as its authors lay it out: an error quotes the layout, relative to ROOT.
            allow_missing: leave out images that are not there; ``missing`` of the result names them.

        Raises:
            DatasetError: a label file or an image that it names is missing or malformed, or label files disagree.
            ImportError: its labels are an Excel sheet, and pandas or openpyxl is not installed.
        """
        ...


READERS: dict[str, Reader] = {
    "clive": read_clive, "koniq": read_koniq, "spaq": read_spaq, "flive": read_flive, "ava": read_ava, "bid": read_bid,
    "kadid": read_kadid, "tid2013": read_tid2013, "csiq": read_csiq, "live": read_live, "lvq": read_lvq,
    "pipal": read_pipal, "agiqa": read_agiqa, "csv": read_csv,
}  # by the names that command lines and `attriqa.evaluation.papers.published` use  # fmt: skip


def read_dataset(name: str, root: Path | str | None = None, *, allow_missing: bool = False) -> Dataset:
    """Read a data set by its name in `READERS`.

    Args:
        name: the name; or ``NAME=ROOT`` in one, as command lines give it.
        root: the folder (or, for ``csv`` and ``lvq``, the file) unless ``name`` holds it.
        allow_missing: leave out images that are not there; ``missing`` of the result names them.

    Raises:
        ValueError: the name is not known, or there is no root.
        DatasetError: the data set is not what its layout says.
    """
    given = name
    if root is None:
        name, _, text = name.partition("=")
        root = Path(text) if text else None
    reader = READERS.get(name.strip().lower())
    if reader is None or root is None:
        raise ValueError(f"data set: expected NAME=ROOT with a NAME of {', '.join(READERS)}, got {given!r}")
    return reader(root, allow_missing=allow_missing)
