"""Label files as authors publish them (CSV, text, MATLAB, Excel) -> rows of text or numbers, or a clear refusal."""

import csv
import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import scipy.io
from scipy.io.matlab import MatReadError

from attriqa.data.datasets.rows import DatasetError, Kind, Split

# What scipy raises for files that are cut off, damaged or of MATLAB 7.3
_UNREADABLE_MAT = (MatReadError, ValueError, TypeError, OSError, NotImplementedError, EOFError, zlib.error)
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def find_labels(kind: Kind, root: Path, *names: str) -> Path:
    """The first of these label files that is there.

    Raises:
        DatasetError: none is; it names what was looked for and the layout.
    """
    for name in names:
        if (root / name).is_file():
            return root / name
    others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
    raise DatasetError(f"{root / names[0]}: not found{others}; the layout of {kind.name} is {kind.layout}")


def read_text(path: Path) -> str:
    """A text file, UTF-8 with or without its mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: expected a UTF-8 text file ({error})") from error


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Records of a CSV file with a header, each with its place (``FILE line N``) for whoever finds fault with it.

    Raises:
        DatasetError: one of ``columns`` is not in the header, or a record has too few or too many fields.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    header = next(reader, [])
    _require(path, columns, header)
    for record in reader:
        if not record:
            continue
        if len(record) != len(header):
            raise DatasetError(f"{path} line {reader.line_num}: expected {len(header)} fields, got {len(record)}")
        yield f"{path} line {reader.line_num}", dict(zip(header, record, strict=True))


def read_fields(path: Path, count: int, separator: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Lines of a text file without a header, cut into ``count`` fields (by default at white space), and their place."""
    for index, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(separator)]
        if len(fields) != count:
            raise DatasetError(f"{path} line {index}: expected {count} fields, got {len(fields)}: {line[:80]!r}")
        yield f"{path} line {index}", fields


def read_mat(path: Path, name: str) -> list[Any]:
    """The elements of one variable of a MATLAB file in column order, each cell of strings as ``str``.

    Raises:
        DatasetError: the file cannot be read or has no variable of that name.
    """
    try:
        content = scipy.io.loadmat(path)
    except _UNREADABLE_MAT as error:
        raise DatasetError(f"{path}: not a MATLAB file that can be read ({error})") from error
    if name not in content:
        raise DatasetError(f"{path}: expected a variable {name}, got {[key for key in content if key[0] != '_']}")
    cells = content[name].ravel(order="F")
    return (
        [cell.item() if cell.dtype.kind == "U" else cell for cell in cells] if cells.dtype == object else cells.tolist()
    )


def read_sheet(path: Path, columns: Sequence[str], sheet: str | int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of an Excel sheet below the first row that holds all of ``columns``, with their place; empty rows go.

    Raises:
        DatasetError: the file or the sheet cannot be read, or no row holds the columns.
        ImportError: pandas or openpyxl is not installed.
    """
    try:
        import pandas

        cells = pandas.read_excel(path, sheet_name=sheet, header=None, dtype=object).to_numpy()
    except ImportError as error:  # of pandas, or of openpyxl in it
        raise ImportError(f"{path}: Excel files need pandas and openpyxl: pip install 'attriqa[eval]'") from error
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: not an Excel file with the sheet {sheet!r} ({error})") from error
    names = [[str(cell).strip() for cell in row] for row in cells]
    start = next((index for index, row in enumerate(names) if set(columns) <= set(row)), None)
    if start is None:
        _require(path, columns, names[0] if names else [])
        raise AssertionError("unreachable: _require refuses what no row holds")
    for index, row in enumerate(cells[start + 1 :], start + 2):
        record = dict(zip(names[start], row, strict=True))
        if not all(_empty(record[column]) for column in columns):
            yield f"{path} row {index}", record


def _empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell)) or cell == ""


def _require(path: Path, columns: Sequence[str], header: Sequence[str]) -> None:
    lacking = [column for column in columns if column not in header]
    if lacking:
        raise DatasetError(f"{path}: expected the columns {', '.join(columns)}, got {', '.join(header)[:200]}")


def number(place: str, column: str, value: Any) -> float:
    """A finite number out of a label file.

    Raises:
        DatasetError: it is none; the place, the column and the value are named.
    """
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise DatasetError(f"{place}: expected a number as {column}, got {str(value)[:80]!r}")
    return result


def split_name(place: str, value: str) -> Split:
    """An official side by any of the names in use.

    Raises:
        DatasetError: it is none of them.
    """
    side = SPLIT_NAMES.get(value.strip().lower())
    if side is None:
        raise DatasetError(f"{place}: expected a split of {', '.join(SPLIT_NAMES)}, got {value[:80]!r}")
    return side
