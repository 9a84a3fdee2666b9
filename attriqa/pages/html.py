"""Pieces of the page that compares generators: text, tables, small charts as inline SVG, thumbnails."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attriqa import images
from attriqa.distortions import DISTORTION_KEYS, DISTORTIONS
from attriqa.evaluation.preferences.generator_report import span
from attriqa.pages.report import THUMBNAIL_SIDE, printable

Entry = Mapping[str, Any]


def text(words: str) -> str:
    """Words as HTML, free of anything that could turn or forge what the reader sees."""
    return html.escape(printable(words), quote=True)


def title_of(name: str) -> str:
    """What a reader calls an attribute, or a distortion by its key."""
    return text(DISTORTIONS[DISTORTION_KEYS.index(name)].name if name in DISTORTION_KEYS else name)


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, as printers set it."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None) -> str:
    """An interval in small print; nothing where there is none."""
    return f"<small>{span(low, high)}</small>".replace("-", "\N{MINUS SIGN}") if low is not None else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table in a box that scrolls, of finished cells.

    Args:
        head: a title per column.
        rows: the first cell of each names it; a cell may bring its own ``<td ...>``.
        kind: its class.
    """
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = []
    for row in rows:
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row[1:])
        body.append(f'<tr><th scope="row">{row[0]}</th>{cells}</tr>\n')
    marked = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll"><table{marked}>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{''.join(body)}</tbody></table></div>\n"
    )


def interval_bar(mean: float, low: float | None, high: float | None, axis: tuple[float, float]) -> str:
    """A mean and its interval on an axis, as inline SVG."""
    width = (axis[1] - axis[0]) or 1.0

    def at(value: float) -> str:
        return f"{4 + 136 * (value - axis[0]) / width:.1f}"

    line = "" if low is None or high is None else f'<line x1="{at(low)}" x2="{at(high)}" y1="9" y2="9"/>'
    return f'<svg viewBox="0 0 144 18" aria-hidden="true">{line}<circle cx="{at(mean)}" cy="9" r="4"/></svg>'


def win_cell(duel: Entry, *, mirrored: bool) -> str:
    """How often one beats the other, coloured by how far from half; ``mirrored``: the other the one."""
    rate, low, high = duel["rate"], duel["rate_low"], duel["rate_high"]
    if mirrored:
        rate, low, high = 1 - rate, 1 - high, 1 - low
    clear = " clear" if low > 0.5 or high < 0.5 else ""
    what = f"{duel['n']:,} shared prompts" if duel["paired"] else f"unpaired, {duel['n']:,} images"
    star = "" if duel["paired"] else "*"
    return (
        f'<td class="{"up" if rate >= 0.5 else "down"}{clear}" style="--far:{abs(2 * rate - 1):.2f}" title="{what}">'
        f"{100 * rate:.0f}{star}<small>{100 * low:.0f} to {100 * high:.0f}</small></td>"
    )


def panel(name: str, generators: Entry) -> str:
    """The distribution of one number, a strip for each generator."""
    strips = "".join(_strip(generator, entry["summary"][name]) for generator, entry in generators.items())
    return (
        f'<figure class="panel"><figcaption>{title_of(name)}</figcaption>{strips}'
        '<div class="axis"><div><span>0</span><span>0.5</span><span>1</span></div></div></figure>\n'
    )


def _strip(generator: str, summary: Entry) -> str:
    """A histogram with its quartiles below, as inline SVG."""
    counts = summary["histogram"]
    step, top = 1 / len(counts), max(counts)
    # The SVG is 1 by 1, from its top left corner; the lowest fifth is the bar's.
    outline = "".join(f"V{0.8 - 0.8 * count / top:.3f}h{step:.4f}" for count in counts)
    _, first, median, third, _ = summary["quantiles"]
    return (
        f'<div class="strip"><span title="{text(generator)}">{text(generator)}</span>'
        f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" role="img" aria-label="median {median:.3f}">'
        f'<path d="M0 .8{outline}V.8z"/>'
        f'<path class="box" d="M{first:.4f} .84H{max(third, first + 0.004):.4f}V.96H{first:.4f}z"/>'
        f'<line x1="{median:.4f}" x2="{median:.4f}" y1=".72" y2="1"/></svg><span>{summary["mean"]:.3f}</span></div>'
    )


def thumbnail(path: str) -> str:
    """A file as an ``<img>`` with a JPEG data URI, about 7 kB; an empty box where it can no longer be read."""
    from PIL import Image

    try:
        tensor = images.read(path, shorter_edge=THUMBNAIL_SIDE)
    except images.ImageError:
        return '<span class="gone"></span>'
    picture = Image.fromarray(tensor.mul(255).round().byte().permute(1, 2, 0).numpy())  # (H, W, 3)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=78, optimize=True)
    data = base64.b64encode(jpeg.getvalue()).decode("ascii")
    return f'<img alt="" width="{picture.width}" height="{picture.height}" src="data:image/jpeg;base64,{data}">'
