"""A teacher's scores of many images, as Parquet: one row per image, keyed as `attriqa.data.unlabelled` keys images.

A labels file has a column ``key`` (text, each once) and one float32 column per attribute; its schema's metadata names
the teacher. It grows in a folder: parts, each written whole by some process, and `merge`, which puts them into one
file sorted by key. Whatever is killed when, a label is there once and whole, or it is not there.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attriqa.attributes import ATTRIBUTES
from attriqa.files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

FILE_NAME = "labels.parquet"
FORMAT_VERSION = 1
_PARTS = "parts"
_KEY = b"attriqa"


class LabelsError(ValueError):
    """A labels file that cannot be used: damaged, of another teacher, or of other attributes."""


class Origin(NamedTuple):
    """Who scored."""

    teacher: str  # its identity: everything that its scores depend on
    prompts_hash: str | None  # `attriqa.attributes.table_hash` of its prompts; None: it has none


class PseudoLabels(NamedTuple):
    """A labels file in memory."""

    table: "pa.Table"
    origin: Origin

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def align(self, keys: Iterable[str]) -> NDArray[np.float32]:
        """The labels of ``keys`` in their order: ``(N, 5)`` float32, NaN where a key has none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        rows = pc.index_in(pa.array(keys, pa.large_string()), value_set=self.table["key"].combine_chunks())
        taken = self.table.select(list(ATTRIBUTES)).take(rows)
        return np.stack([taken[name].to_numpy() for name in ATTRIBUTES], 1).astype(np.float32, copy=False)


def write_part(folder: Path | str, keys: Sequence[str], scores: NDArray[np.float32], origin: Origin) -> Path:
    """Add the scores of some images to a folder of labels, whole or not at all.

    Args:
        folder: of one teacher's labels.
        keys: N of them; a part is named after them, so that no two processes write the same file.
        scores: ``(N, 5)``, in the order of `ATTRIBUTES`, higher = more of it.
        origin: the teacher.

    Returns:
        The part's path.

    Raises:
        ValueError: shapes that do not fit; a score that is NaN or infinite (its key is named).
    """
    import pyarrow as pa

    scores = np.asarray(scores, np.float32)
    if scores.shape != (len(keys), len(ATTRIBUTES)) or not keys:
        raise ValueError(f"scores: expected (N, {len(ATTRIBUTES)}) for N = {len(keys)} keys, got {scores.shape}")
    finite = np.isfinite(scores).all(1)
    if not finite.all():
        worst = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"scores: expected finite numbers, got {scores[worst].tolist()} for {keys[worst]}")
    name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
    path = Path(folder) / _PARTS / f"{name}.parquet"
    columns = {name: scores[:, i] for i, name in enumerate(ATTRIBUTES)}
    _write(path, pa.table({"key": pa.array(keys, pa.large_string()), **columns}), origin)
    return path


def load(path: Path | str, origin: Origin | None = None) -> PseudoLabels:
    """Read a labels file, or those of a folder: the merged file and the parts beside it.

    Args:
        path: a file of `write_part` or `merge`, or the folder that they are in.
        origin: the teacher that it must come from; `None`: any, but one.

    Raises:
        FileNotFoundError: there are no labels.
        LabelsError: not a labels file, a damaged one, a label that is not finite, or labels of two teachers (both are
            named).
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    path = Path(path)
    files = [path] if path.is_file() else _files(path)
    if not files:
        raise FileNotFoundError(f"labels: no {FILE_NAME} in {path}; training/label.py writes it")
    tables = []
    for file in files:
        table, other = _read(file)
        origin = origin or other
        if other != origin:
            raise LabelsError(
                f"{file}: labels of the teacher {_named(other)}, not of {_named(origin)}; scores of two teachers are "
                "never mixed: choose another folder"
            )
        tables.append(table)
    labels = pa.concat_tables(tables).combine_chunks()
    # The same image twice: a run was killed after it had merged the parts and before it had deleted them.
    first = pc.index_in(labels["key"], value_set=labels["key"].combine_chunks()).to_numpy()
    labels = labels.take(pa.array(np.flatnonzero(first == np.arange(len(first)))))
    assert origin is not None
    return PseudoLabels(labels, origin)


def merge(folder: Path | str, origin: Origin) -> Path:
    """Put the parts of a folder and what it had merged before into one file, sorted by key, and delete the parts.

    Raises:
        FileNotFoundError, LabelsError: as `load` does.
    """
    folder = Path(folder)
    parts = _files(folder)
    labels = load(folder, origin)
    path = folder / FILE_NAME
    if parts == [path]:
        return path
    _write(path, labels.table.sort_by("key"), origin)
    for part in parts:
        if part != path:
            part.unlink()
    return path


def _files(folder: Path) -> list[Path]:
    """The merged file, if there is one, and the parts; a name with a leading dot is someone's unfinished file."""
    merged = folder / FILE_NAME
    parts = sorted(path for path in (folder / _PARTS).glob("*.parquet") if not path.name.startswith("."))
    return [merged, *parts] if merged.exists() else parts


def _write(path: Path, table: "pa.Table", origin: Origin) -> None:
    import pyarrow.parquet as pq

    header = {"format_version": FORMAT_VERSION, **origin._asdict(), "attributes": ATTRIBUTES}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({_KEY: json.dumps(header)}), temporary, compression="zstd")


def _read(path: Path) -> tuple["pa.Table", Origin]:
    """A checked table of one file, and its teacher."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:  # not read_table, which takes folders named a=b for columns
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise LabelsError(f"{path}: not a Parquet file, or a damaged one ({error})") from error
    header = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    if header.get("format_version") != FORMAT_VERSION:
        raise LabelsError(
            f"{path}: not labels of this attriqa: expected format version {FORMAT_VERSION}, "
            f"got {header.get('format_version')}"
        )
    if tuple(header["attributes"]) != ATTRIBUTES or table.column_names != ["key", *ATTRIBUTES]:
        raise LabelsError(
            f"{path}: labels of {', '.join(header['attributes'])}, in the columns {', '.join(table.column_names)}; "
            f"expected key, {', '.join(ATTRIBUTES)}"
        )
    scores = np.stack([table[name].to_numpy() for name in ATTRIBUTES], 1)
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(1))[0])
        raise LabelsError(f"{path}: the label of {table['key'][row]} is not finite: {scores[row].tolist()}")
    return table, Origin(header["teacher"], header["prompts_hash"])


def _named(origin: Origin) -> str:
    return f"{origin.teacher!r} (prompts {origin.prompts_hash or 'none'})"
