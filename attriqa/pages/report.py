"""One self-contained HTML page that shows scored images: thumbnails, bars, a histogram; sortable, without network.

Its looks are ``templates/report.html``; this module says what stands where. Rows are written as they are made, so that
memory does not grow with their number. 1,000 photos make a page of about 6 MB, nearly all of it thumbnails.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from attriqa.attributes import ATTRIBUTES
from attriqa.pages.html import THUMBNAIL_SIDE, Thumbnail, file_thumbnail, fixed, map_ahead, thumbnail, write_page

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_BINS = 20


class ReportRow(NamedTuple):
    """One image of the page.

    Attributes:
        path: the file; shown, and read for the thumbnail unless ``image`` is given. Empty: no picture.
        score: in [0,1].
        attributes: in [0,1], in the order of `ATTRIBUTES`; empty, in all rows of a page, where the model tells none.
        name: shown instead of ``path``.
        group: rows of one group that follow each other form a section; its first row is what the others are compared
            with: they show their differences from it.
        note: the line under the name; by default why: the lowest attribute, or the one that fell most in a section.
        image: ``(3,H,W)`` in [0,1], shown instead of the file: a crop, or a picture that has no file.
    """

    path: str | Path
    score: float
    attributes: tuple[float, ...]
    name: str | None = None
    group: str | None = None
    note: str | None = None
    image: "Tensor | None" = None


def write_report(
    path: str | Path,
    rows: Sequence[ReportRow],
    *,
    title: str,
    identity: str,
    version: str,
    lead: str = "",
    errors: Sequence[tuple[str, str]] = (),
    threads: int = 2,
    advance: Callable[[], object] | None = None,
    where: "Callable[[ReportRow], NDArray[np.uint8] | None] | None" = None,
    attributes: Sequence[str] = ATTRIBUTES,
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file to make; its folders are created.
        rows: the images in the order of the page.
        title: heading and window title.
        identity: which weights and view made the scores.
        version: of attriqa, shown in the footer.
        lead: a sentence under the title.
        errors: (path, reason) of each file that could not be scored.
        threads: how many thumbnails are decoded at a time.
        advance: called after each row, for a progress bar.
        where: gives a row's picture with what lowers its score in colour, ``(H, W, 3)`` (`attriqa.explain.overlay`),
            or ``None`` where there is none to show; a box on the page, ticked, puts it in the thumbnail's place.
        attributes: names of the rows' attributes; none where the model tells none.

    Raises:
        ValueError: a row's score or attribute is not a number in [0,1], or the number of attributes is wrong.
    """
    for row in rows:
        _check(row, attributes)
    # Over pictures that are compared section by section, a mean or a histogram would say nothing.
    compare = any(row.group is not None for row in rows)
    scores = [row.score for row in rows]
    counts = Counter(min(int(score * _BINS), _BINS - 1) for score in scores)
    values = {
        "title": title,
        "lead": lead,
        "identity": identity,
        "version": version,
        "attributes": list(attributes),
        "labels": [_css(name) for name in attributes],
        "compare": compare,
        "figures": _figures(scores),
        "counts": [] if compare else [counts[index] for index in range(_BINS)],
        "median": statistics.median(scores) if scores else None,
        "failed": errors,
        "where": where is not None,
        "sections": _sections(rows, attributes, threads, where, advance),
    }
    write_page(path, "report.html", values)


def _check(row: ReportRow, attributes: Sequence[str]) -> None:
    if len(row.attributes) != len(attributes):
        raise ValueError(f"rows: expected {len(attributes)} attributes for {row.path}, got {len(row.attributes)}")
    for value in (row.score, *row.attributes):
        if not 0 <= value <= 1:  # NaN fails this too
            raise ValueError(f"rows: expected values in [0,1] for {row.path}, got {value}")


def _figures(scores: Sequence[float]) -> list[tuple[str, str]]:
    figures = [("images", f"{len(scores):,}")]
    if scores:
        mean, median = statistics.fmean(scores), statistics.median(scores)
        figures += [("mean score", fixed(mean)), ("median", fixed(median))]
        figures += [("lowest", fixed(min(scores))), ("highest", fixed(max(scores)))]
    return figures


def _css(name: str) -> str:
    """A name as a string of a style sheet; anything but letters, digits and spaces is escaped."""
    return '"' + "".join(c if c.isalnum() or c == " " else f"\\{ord(c):06x}" for c in name) + '"'


def _sections(
    rows: Sequence[ReportRow],
    attributes: Sequence[str],
    threads: int,
    where: "Callable[[ReportRow], NDArray[np.uint8] | None] | None",
    advance: Callable[[], object] | None,
) -> Iterator[tuple[str | None, Iterator[dict[str, Any]]]]:
    """Rows of one group that follow each other, and the group; each row as it is asked for."""
    thumbnails = map_ahead(_thumbnail, rows, threads)

    def shown(members: Iterator[ReportRow]) -> Iterator[dict[str, Any]]:
        reference = None
        for row in members:
            pixels = None if where is None else where(row)
            pictures = {"picture": next(thumbnails), "where": None if pixels is None else thumbnail(pixels)}
            yield pictures | _texts(row, reference, attributes)
            reference = reference or (row if row.group is not None else None)
            if advance is not None:
                advance()

    for group, members in itertools.groupby(rows, key=lambda row: row.group):
        yield group, shown(members)


def _thumbnail(row: ReportRow) -> Thumbnail | None:
    if row.image is not None:
        return thumbnail(row.image)
    # Two thirds of the longest side: what a 3:2 photo needs, and wider pictures are cut down below.
    return file_thumbnail(row.path, THUMBNAIL_SIDE * 2 // 3) if str(row.path) else None


def _texts(row: ReportRow, reference: ReportRow | None, attributes: Sequence[str]) -> dict[str, Any]:
    """What stands in a row beside its picture; ``reference``: the row that it is compared with."""
    folder, slash, file = str(row.path).rpartition("/") if row.name is None else ("", "", row.name)
    lowest, why = _why(attributes, row.attributes, reference.attributes if reference else None)
    values = (row.score, *row.attributes)
    before = (reference.score, *reference.attributes) if reference else values
    kinds = ["v hue", *("v low" if index == lowest else "v" for index in range(len(row.attributes)))]
    # The differences of the numbers that are shown, so that the page adds up.
    changes = [
        round(value, 3) - round(old, 3) if reference else None for value, old in zip(values, before, strict=True)
    ]
    return {
        "is_reference": row.group is not None and reference is None,
        "has_picture": row.image is not None or str(row.path) != "",
        "folder": folder + slash,
        "file": file,
        "note": why if row.note is None else row.note,
        "cells": list(zip(kinds, values, changes, strict=True)),
    }


def _why(attributes: Sequence[str], values: Sequence[float], before: Sequence[float] | None) -> tuple[int | None, str]:
    """The attribute that explains the score best, by its index, and the line that says so."""
    if not values:
        return None, ""
    if before is None:
        lowest = min(range(len(values)), key=values.__getitem__)
        return lowest, f"lowest: {attributes[lowest]} {values[lowest]:.2f}"
    changes = [value - old for value, old in zip(values, before, strict=True)]
    lowest = min(range(len(values)), key=changes.__getitem__)
    if changes[lowest] > -0.005:
        return None, "no attribute fell"
    return lowest, f"fell most: {attributes[lowest]}, by {-changes[lowest]:.2f}"
