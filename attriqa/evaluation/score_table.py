"""The table of scores on disk: a CSV that grows row by row, survives a kill, and never mixes two models' scores.

Beside the table ``F`` lie ``F.meta.json``, which weights and view made it, and ``F.errors.csv``, the files that could
not be scored. Both CSVs follow RFC 4180 (CRLF line ends, fields quoted where needed) in UTF-8.
"""

import csv
import errno
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from attriqa.attributes import ATTRIBUTES
from attriqa.files import atomic_path, write_json

if sys.platform != "win32":
    import fcntl

COLUMNS = ("path", "score", *ATTRIBUTES)
ERROR_COLUMNS = ("path", "error")
_KIND = "attriqa scores"


class TableError(ValueError):
    """A file that is not a table of ours, or one whose scores may not be mixed with these. Nothing was changed."""


class ScoreRow(NamedTuple):
    """One scored image: ``path`` as `path_text` gives it; all numbers are in [0,1]."""

    path: str
    score: float
    attributes: tuple[float, ...]  # in the order of ATTRIBUTES; empty: the model tells none
    distortions: tuple[float, ...] = ()  # strengths in the order of the model's; likewise

    @property
    def values(self) -> tuple[float, ...]:
        """The numbers in the order of the table's columns."""
        return (self.score, *self.attributes, *self.distortions)


def path_text(path: str | Path) -> str:
    r"""A path as text that UTF-8 can hold; bytes of a file name that are not UTF-8 are shown as ``\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def rounded(row: ScoreRow) -> ScoreRow:
    """The row with its values at the table's six decimals."""
    return _row_of(row.path, [round(value, 6) for value in row.values], len(row.attributes))


def _row_of(path: str, values: Sequence[float], attributes: int) -> ScoreRow:
    score, rest = values[0], values[1:]
    return ScoreRow(path, score, tuple(rest[:attributes]), tuple(rest[attributes:]))


class ScoreTable:
    """The open table: what it already holds, and `add` for more. Use it as a context manager.

    Every row is one unbuffered write, so a process killed at any moment leaves whole rows and at most one half-written
    last line, which the next opening cuts off. Values are kept with six decimals, in memory as on disk, so that a
    resumed run gives what an uninterrupted one gives.

    Args:
        path: the CSV file; created with its folders if it is not there.
        identity: what made the scores (``QualityReward.identity``); an existing table must have the same.
        version: of attriqa; recorded, not compared.
        columns: the header: ``"path"`` and what the rows' ``values`` are.
        attributes: which of them are the rows' ``attributes``.
        beside: by path, the texts of the last columns, where the columns end with some that no model makes.

    Attributes:
        rows: the table's rows by path, also those of earlier runs.
        errors: the reason by path of each file that could not be scored and has not been since.

    Raises:
        TableError: the file is not such a table, or lacks its ``.meta.json``, was made by another identity, has other
            texts ``beside``, is damaged before its last line, or is being written by another process.
        OSError: it cannot be read or written.
    """

    def __init__(
        self,
        path: str | Path,
        identity: str,
        *,
        version: str,
        columns: Sequence[str] = COLUMNS,
        attributes: Sequence[str] = ATTRIBUTES,
        beside: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.path = Path(path)
        self._beside = beside or {}
        self.columns = tuple(columns)
        self._attributes = sum(name in attributes for name in columns)
        self.meta_path = Path(f"{path}.meta.json")
        self.errors_path = Path(f"{path}.errors.csv")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.is_file():
            raise TableError(f"{path}: expected a file, found something else")
        # What could refuse a new table is looked at before the file exists: a refusal leaves nothing behind.
        made_by = _made_by(self.meta_path)
        old_errors = self.errors_path.read_bytes() if self.errors_path.exists() else b""
        self.errors = dict(_records(old_errors, ERROR_COLUMNS, self.errors_path)[0])
        self._file = self.path.open("a+b", buffering=0)
        try:
            self.rows, whole = self._load(made_by, identity)
            if not whole:
                # First the meta file, then the header: a table without its meta file would be refused later.
                write_json(
                    self.meta_path, {"kind": _KIND, "identity": identity, "columns": self.columns, "version": version}
                )
            self.errors = {path: reason for path, reason in self.errors.items() if path not in self.rows}
            self._file.truncate(whole)
            if not whole:
                self._write(_encode(self.columns))
            self._write_errors()
        except BaseException:
            self._file.close()
            raise

    def _load(self, made_by: str | None, identity: str) -> tuple[dict[str, ScoreRow], int]:
        """The rows and the length in bytes of what is whole; changes nothing."""
        _lock(self._file.fileno(), self.path)
        self._file.seek(0)
        data = self._file.read()
        if data and made_by is None:
            raise TableError(
                f"{self.path}: exists without {self.meta_path.name}, so what made it is unknown; "
                "name another file, or move this one away"
            )
        records, whole = _records(data, self.columns, self.path)
        if whole and made_by != identity:
            raise TableError(
                f"{self.path}: its scores were made by {made_by}, these would be made by {identity}; "
                "they are not comparable, so name another file"
            )
        return {record[0]: self._row(record) for record in records}, whole

    def _row(self, record: Sequence[str]) -> ScoreRow:
        path, *texts = record
        beside = list(self._beside.get(path, ()))
        numbers = texts[: len(texts) - len(beside)]
        if texts[len(numbers) :] != beside:
            raise TableError(
                f"{self.path}: expected {','.join(beside)} at the end of {path!r}, found {','.join(texts)}"
            )
        try:
            values = [float(text) for text in numbers]
        except ValueError:
            values = [math.nan]
        if not all(map(math.isfinite, values)):
            raise TableError(f"{self.path}: expected finite numbers beside {path!r}, found {','.join(numbers)}")
        return _row_of(path, values, self._attributes)

    def add(self, row: ScoreRow) -> ScoreRow:
        """Append one row; it is on its way to the disk when this returns. Gives the row as the table holds it."""
        kept = rounded(row)
        self._write(_encode((kept.path, *(f"{value:.6f}" for value in kept.values), *self._beside.get(kept.path, ()))))
        self.rows[kept.path] = kept
        self.errors.pop(kept.path, None)
        return kept

    def _write(self, line: bytes) -> None:
        # A full disk may take a part of the line and say so only by the count; the next opening cuts that part off.
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def add_error(self, path: str, reason: str) -> None:
        """Note that ``path`` could not be scored; the next run tries it again."""
        self.errors[path] = reason
        fresh = not self.errors_path.exists()
        with self.errors_path.open("ab", buffering=0) as file:
            file.write((_encode(ERROR_COLUMNS) if fresh else b"") + _encode((path, reason)))

    def _write_errors(self) -> None:
        """Replace the appended-to errors file by the errors that still stand; no errors, no file."""
        if not self.errors:
            self.errors_path.unlink(missing_ok=True)
            return
        with atomic_path(self.errors_path) as temporary:
            temporary.write_bytes(b"".join(map(_encode, (ERROR_COLUMNS, *self.errors.items()))))

    def close(self) -> None:
        """Bring the errors file up to date and close the table, synced to the disk."""
        if self._file.closed:
            return
        try:
            self._write_errors()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        """The table itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, however the block ended."""
        self.close()


def _encode(record: Sequence[str]) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line).writerow(record)
    return line.getvalue().encode("utf-8", "backslashreplace")


def _records(data: bytes, columns: Sequence[str], path: Path) -> tuple[list[list[str]], int]:
    """The whole records below the header, and how many leading bytes of ``data`` are whole records (0: start anew)."""
    whole = _whole_length(data)
    if not whole and _encode(columns).startswith(data):
        return [], 0  # nothing yet, or a header cut off by a kill
    try:
        records = list(csv.reader(io.StringIO(data[:whole].decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: not a UTF-8 CSV file ({error})") from None
    if not records or records[0] != list(columns):
        found = ",".join(records[0])[:200] if records else data[:200].decode("utf-8", "backslashreplace")
        raise TableError(f"{path}: not a table of ours: expected the header {','.join(columns)}, found {found!r}")
    for number, record in enumerate(records[1:], start=2):
        if len(record) != len(columns):
            raise TableError(f"{path}: record {number} has {len(record)} fields, expected {len(columns)}: {record}")
    return records[1:], whole


def _whole_length(data: bytes) -> int:
    """Where the last whole record ends: after a line end that no quoted field spans."""
    position = end = quotes = 0
    for line in data.split(b"\n")[:-1]:
        position += len(line) + 1
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            end = position
    return end


def _made_by(meta_path: Path) -> str | None:
    """The identity that a meta file records; ``None`` when there is no such file."""
    try:
        meta: Any = json.loads(meta_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        meta = None
    if not isinstance(meta, dict) or meta.get("kind") != _KIND or not isinstance(meta.get("identity"), str):
        raise TableError(f"{meta_path}: expected the record of what made a table of scores, found something else")
    identity: str = meta["identity"]
    return identity


def _lock(descriptor: int, path: Path) -> None:
    """Refuse a table that another process is writing; where the file system knows no locks, go on without."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TableError(f"{path}: another process is writing this table") from None
    except OSError:
        return
