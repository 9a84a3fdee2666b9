"""One self-contained HTML page that shows scored images: thumbnails, bars, a histogram; sortable, without network.

The page's frame is ``templates/report.html``; this module fills it and streams the rows, so that memory does not grow
with their number. 1,000 photos make a page of about 6 MB, nearly all of it thumbnails.
"""

import base64
import html
import io
import itertools
import re
import statistics
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attriqa.attributes import ATTRIBUTES
from attriqa.files import atomic_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

THUMBNAIL_SIDE = 192
"""Longest side of a thumbnail in pixels; they are shown at most 120 CSS pixels wide, so dense screens stay sharp."""

_BINS = 20
# Controls that end a line, hide text or turn its direction would let a file name forge what the reader sees.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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


def printable(text: str) -> str:
    r"""``text`` on one line and free of control characters, stray surrogates and direction overrides (as ``\x1b``)."""
    return "".join(map(_printable, text))


def _printable(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cc":
        return f"\\x{ord(char):02x}"
    if category in {"Cs", "Zl", "Zp"} or char in _BIDI:
        return f"\\u{ord(char):04x}"
    return char


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
    about = {"title": title, "identity": identity, "version": version, "lead": lead}
    head, tail = _frame(rows, about, errors=errors, where=where is not None, attributes=attributes)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(head)
        thumbnails = _in_order(_thumbnail, rows, threads)
        for group, members in itertools.groupby(rows, key=lambda row: row.group):
            file.write('<tbody role="rowgroup">\n')
            if group is not None:
                file.write(f'<tr class="group" role="row"><th role="cell">{_text(group)}</th></tr>\n')
            reference = None
            for row in members:
                picture = next(thumbnails) + (_explained(where(row)) if where is not None else "")
                file.write(_row(row, picture, reference, attributes))
                reference = reference or (row if group is not None else None)
                if advance is not None:
                    advance()
            file.write("</tbody>\n")
        file.write(tail)


def _check(row: ReportRow, attributes: Sequence[str]) -> None:
    if len(row.attributes) != len(attributes):
        raise ValueError(f"rows: expected {len(attributes)} attributes for {row.path}, got {len(row.attributes)}")
    for value in (row.score, *row.attributes):
        if not 0 <= value <= 1:  # NaN fails this too
            raise ValueError(f"rows: expected values in [0,1] for {row.path}, got {value}")


def _frame(
    rows: Sequence[ReportRow],
    about: Mapping[str, str],
    *,
    errors: Sequence[tuple[str, str]],
    where: bool,
    attributes: Sequence[str],
) -> tuple[str, str]:
    """What comes before and after the rows."""
    # Over pictures that are compared section by section, a mean or a histogram would say nothing.
    compare = any(row.group is not None for row in rows)
    scores = [] if compare else [row.score for row in rows]
    # On a phone the header is gone, so each attribute's bar carries its name; a rule per column, not a label per cell.
    labels = "".join(
        f"  .v:nth-of-type({column}):not(.hue)::before {{ content: {_css(name)}; }}\n"
        for column, name in enumerate(attributes, start=3)
    )
    heads = "".join(
        f'<th role="columnheader" scope="col"><button type="button">{_text(name)}</button></th>'
        for name in ("file", "score", *attributes)
    )
    values = {
        **{name: _text(text) for name, text in about.items()},
        "lead": f'<p class="soft">{_text(about["lead"])}</p>' if about["lead"] else "",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "figures": "" if compare else _figures(scores, len(errors)),
        "histogram": _histogram(scores),
        "errors": _errors(errors),
        "labels": labels.rstrip(),
        "heads": heads,
        "compare": ' class="compare"' if compare else "",
        "attribute_count": str(len(attributes)),
        "where": '<label><input id="where" type="checkbox"> show where the score is lost</label>' if where else "",
    }
    template = resources.files("attriqa.pages").joinpath("templates/report.html").read_text(encoding="utf-8")
    # One pass over the template alone: a file name that looks like a placeholder stays what it is.
    head, tail = (re.sub(r"\{\{(\w+)\}\}", lambda hit: values[hit[1]], part) for part in template.split("{{rows}}"))
    return head, tail


def _text(text: str) -> str:
    return html.escape(printable(text), quote=True)


def _figures(scores: Sequence[float], failed: int) -> str:
    figures = [("images", f"{len(scores):,}")]
    if scores:
        figures += [("mean score", f"{statistics.fmean(scores):.3f}"), ("median", f"{statistics.median(scores):.3f}")]
        figures += [("lowest", f"{min(scores):.3f}"), ("highest", f"{max(scores):.3f}")]
    if failed:
        figures += [("not scored", f'<a href="#errors">{failed:,}</a>')]
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    return f'<dl class="figures">{items}</dl>'


def _histogram(scores: Sequence[float]) -> str:
    """Counts of scores in 20 equal bins over [0,1] as inline SVG, with the median marked."""
    if not scores:
        return ""
    counts = [0] * _BINS
    for score in scores:
        counts[min(int(score * _BINS), _BINS - 1)] += 1
    width, height, step = 420, 96, 420 / _BINS
    bars = "".join(
        _bar(index, count, x=index * step + 1, width=step - 2, y=height, tall=max(2.0, height * count / max(counts)))
        for index, count in enumerate(counts)
        if count
    )
    ticks = "".join(
        f'<text x="{width * tick:.0f}" y="{height + 17}" text-anchor="{anchor}">{tick:g}</text>'
        for tick, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end"))
    )
    median = statistics.median(scores)
    return (
        f'<svg class="histogram" viewBox="0 -16 {width} {height + 36}" role="img" '
        f'aria-label="Histogram of the scores, median {median:.3f}">{bars}'
        f'<line x1="0" x2="{width}" y1="{height}" y2="{height}"/>{ticks}'
        f'<line class="median" x1="{width * median:.1f}" x2="{width * median:.1f}" y1="-2" y2="{height}"/>'
        f'<text x="{width * min(max(median, 0.08), 0.92):.1f}" y="-6" text-anchor="middle">median</text></svg>'
    )


def _bar(index: int, count: int, *, x: float, width: float, y: float, tall: float) -> str:
    low, high = index / _BINS, (index + 1) / _BINS
    return (
        f'<rect class="hue" style="--v:{(low + high) / 2:.3f}" x="{x:.1f}" y="{y - tall:.1f}" width="{width:.1f}" '
        f'height="{tall:.1f}" rx="1.5"><title>{low:.2f} to {high:.2f}: {count:,}</title></rect>'
    )


def _errors(errors: Sequence[tuple[str, str]]) -> str:
    if not errors:
        return ""
    items = "".join(f"<li><bdi>{_text(path)}</bdi><span>{_text(reason)}</span></li>\n" for path, reason in errors)
    return f'<section><h2 id="errors">Not scored</h2>\n<ul class="errors">\n{items}</ul></section>'


def _css(name: str) -> str:
    """A name as a string of a style sheet; anything but letters, digits and spaces is escaped."""
    return '"' + "".join(c if c.isalnum() or c == " " else f"\\{ord(c):06x}" for c in name) + '"'


def _row(row: ReportRow, thumbnail: str, reference: ReportRow | None, attributes: Sequence[str]) -> str:
    folder, slash, file = str(row.path).rpartition("/") if row.name is None else ("", "", row.name)
    lowest, why = _why(attributes, row.attributes, reference.attributes if reference else None)
    note = why if row.note is None else row.note
    cells = "".join(
        f'<td role="cell" class="{kind}" style="--v:{value:.6f}">{value:.3f}{_difference(value, before)}</td>'
        for kind, value, before in zip(
            ("v hue", *("v low" if index == lowest else "v" for index in range(len(row.attributes)))),
            (row.score, *row.attributes),
            (reference.score, *reference.attributes) if reference else [None] * (1 + len(row.attributes)),
            strict=True,
        )
    )
    first = " ref" if row.group is not None and reference is None else ""
    directory = f'<span class="dir">{_text(folder + slash)}</span>' if slash else ""
    return (
        f'<tr class="item{first}" role="row"><td role="cell" class="pic">{thumbnail}</td>'
        f'<th role="rowheader" scope="row" class="name"><bdi>{directory}{_text(file)}</bdi>'
        f"<small>{_text(note)}</small></th>{cells}</tr>\n"
    )


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


def _difference(value: float, before: float | None) -> str:
    if before is None:
        return ""
    # The difference of the numbers that are shown, so that the page adds up.
    change = round(value, 3) - round(before, 3)
    if abs(change) < 0.0005:
        return '<i class="same">±0</i>'
    sign, kind = ("+", "up") if change > 0 else ("\N{MINUS SIGN}", "down")
    return f'<i class="{kind}">{sign}{abs(change):.3f}</i>'


def _thumbnail(row: ReportRow) -> str:
    """The picture as an ``<img>`` with a JPEG data URI; an empty box where the file can no longer be read."""
    from PIL import Image

    from attriqa import images

    if row.image is None and not str(row.path):
        return ""
    try:
        # Two thirds of the longest side: what a 3:2 photo needs, and wider pictures are cut down below.
        tensor = row.image if row.image is not None else images.read(row.path, shorter_edge=THUMBNAIL_SIDE * 2 // 3)
    except images.ImageError:
        return "<span></span>"
    pixels = tensor.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()  # (H, W, 3)
    return _img(Image.fromarray(pixels))


def _explained(pixels: "NDArray[np.uint8] | None") -> str:
    from PIL import Image

    return "" if pixels is None else _img(Image.fromarray(pixels), ' class="where"')


def _img(picture: "Image.Image", kind: str = "") -> str:
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=78, optimize=True)
    data = base64.b64encode(jpeg.getvalue()).decode("ascii")
    return f'<img{kind} alt="" width="{picture.width}" height="{picture.height}" src="data:image/jpeg;base64,{data}">'


def _in_order(make: Callable[[ReportRow], str], rows: Iterable[ReportRow], threads: int) -> Iterator[str]:
    """``map(make, rows)`` on threads, at most a few rows ahead of what was taken, so that memory stays bounded."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        ahead: deque[Future[str]] = deque()
        try:
            for row in rows:
                ahead.append(pool.submit(make, row))
                if len(ahead) > 4 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
