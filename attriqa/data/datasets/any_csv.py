"""Rated images that no reader knows: a CSV file with paths and scores."""

from pathlib import Path

from attriqa.data.datasets.label_files import find_labels, number, read_table, split_name
from attriqa.data.datasets.rows import Dataset, DatasetError, Images, Kind, Row, complete

_LAYOUT = "a CSV file with a column of paths, relative to it, and one of scores; perhaps ref, group, split"


def read_csv(
    path: Path | str,
    /,
    *,
    path_column: str = "path",
    score_column: str | None = None,
    ref_column: str = "ref",
    group_column: str = "group",
    split_column: str = "split",
    mos_range: tuple[float, float] | None = None,
    lower_is_better: bool = False,
    name: str | None = None,
    allow_missing: bool = False,
) -> Dataset:
    """Any CSV file (UTF-8, with a header) that names images and their scores.

    A row's group is its ``group``, else its ``ref``, else its own path. A ``split`` is train, val or test (or training,
    validation); an empty one is none. The columns of refs, groups and splits are used where the header has them.

    Args:
        path: the file; paths in it are absolute or relative to its folder.
        path_column: the column of image paths.
        score_column: the column of scores; by default ``score``, or else ``mos``.
        ref_column: the column of paths of pristine originals.
        group_column: the column of what must stay on one side of a split.
        split_column: the column of official sides.
        mos_range: the scale's two ends; by default the least and the greatest score.
        lower_is_better: the scores are DMOS; they are flipped.
        name: of the data set; by default the file's, without its ending.
        allow_missing: leave out images that are not there; ``missing`` of the result names them.

    Raises:
        ValueError: the range is not two rising numbers.
        DatasetError: the file, a column or an image is missing, or a value is not what its column should hold.
    """
    path = Path(path)
    kind = Kind(name or path.stem, (0.0, 1.0), _LAYOUT, flipped=lower_is_better)
    labels = find_labels(kind, path.parent, path.name)
    images = Images(path.parent)
    rows, with_refs = [], False
    for place, record in read_table(labels, [path_column, *([score_column] if score_column else [])]):
        score = score_column or next((column for column in ("score", "mos") if column in record), None)
        if score is None:
            raise DatasetError(f"{path}: expected a column score or mos, got {', '.join(record)[:200]}")
        ref, side = record.get(ref_column, ""), record.get(split_column, "")
        with_refs = with_refs or bool(ref)
        rows.append(
            Row(
                images.absolute_path(record[path_column]),
                number(place, score, record[score]),
                record.get(group_column) or ref or record[path_column],
                images.absolute_path(ref) if ref else None,
                split=split_name(place, side) if side else None,
            )
        )
    if mos_range is None and rows:
        mos_range = min(row.mos for row in rows), max(row.mos for row in rows)
    if mos_range is not None:
        if not mos_range[0] < mos_range[1]:
            raise ValueError(f"mos_range: expected two rising numbers, got {mos_range} for {path}")
        kind = kind._replace(mos_range=(float(mos_range[0]), float(mos_range[1])), synthetic=with_refs)
    return complete(kind, rows, images, allow_missing=allow_missing)
