"""What all pages share: templates that are filled by jinja2, text that cannot forge what a reader sees, and pictures.

`write_page` fills a template; each extends ``templates/base.html``. Every string that a template shows is made
`printable` and escaped, without being asked.
"""

import base64
import functools
import io
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from attriqa.files import atomic_path

if TYPE_CHECKING:
    import jinja2
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    Pixels = Tensor | NDArray[np.uint8]

THUMBNAIL_SIDE = 192
"""Longest side of a thumbnail in pixels; they are shown at most 120 CSS pixels wide, so dense screens stay sharp."""

MINUS = "\N{MINUS SIGN}"
# Controls that end a line, hide text or turn its direction would let a file name forge what the reader sees.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
ItemT = TypeVar("ItemT")


class Thumbnail(NamedTuple):
    """A small picture, as a template's ``<img>`` needs it."""

    source: str  # data URI
    width: int
    height: int


def write_page(
    path: str | Path, template: str, values: Mapping[str, Any], *, package: str = "attriqa.pages", scripted: bool = True
) -> None:
    """Write a page, whole or not at all.

    It is written while it is filled: of rows that come from a generator, one is held at a time.

    Args:
        path: the HTML file to make; its folders are created.
        template: its name in the package's ``templates``.
        values: what the template shows; ``date`` is added.
        package: whose template it is; it may extend and import those of `attriqa.pages`.
        scripted: whether the page may run the scripts that it holds; else the browser runs none.
    """
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    filled = _environment(package).get_template(template).generate(values, date=date, scripted=scripted)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(filled)


@functools.cache
def _environment(package: str) -> "jinja2.Environment":
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("attriqa.pages")]),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not what is marked as HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"fixed": fixed, "signed": signed, "thousands": "{:,}".format}
    return made


def fixed(value: float, digits: int = 3) -> str:
    """A number with this many decimals."""
    return f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, as printers set it."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def printable(text: str) -> str:
    r"""``text`` on one line and free of control characters, stray surrogates and direction overrides (as ``\x1b``)."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cc":
        return f"\\x{ord(char):02x}"
    if category in {"Cs", "Zl", "Zp"} or char in _BIDI:
        return f"\\u{ord(char):04x}"
    return char


def as_picture(pixels: "Pixels") -> "Image.Image":
    """A tensor ``(3, H, W)`` in [0, 1], or bytes ``(H, W, 3)``, as Pillow has it."""
    import torch
    from PIL import Image

    if isinstance(pixels, torch.Tensor):
        levels = pixels.detach().float().clamp(0, 1).mul(255).round().byte()
        pixels = levels.permute(1, 2, 0).contiguous().numpy(force=True)
    return Image.fromarray(pixels)


def data_uri(picture: "Image.Image", *, small: bool = False) -> str:
    """A picture as JPEG inside a page, without metadata.

    Args:
        picture: of mode RGB.
        small: for a thumbnail; else without chroma subsampling and at quality 95, whose traces are far below what
            tells two pictures apart.
    """
    jpeg = io.BytesIO()
    if small:
        picture.save(jpeg, "JPEG", quality=78, optimize=True)
    else:
        picture.save(jpeg, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")


def thumbnail(pixels: "Pixels") -> Thumbnail:
    """A picture in small, about 7 kB; see `as_picture` for what it takes."""
    picture = as_picture(pixels)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return Thumbnail(data_uri(picture, small=True), picture.width, picture.height)


def file_thumbnail(path: str | Path, shorter_edge: int = THUMBNAIL_SIDE) -> Thumbnail | None:
    """The thumbnail of a file that is read at ``shorter_edge``; ``None`` where it can no longer be read."""
    from attriqa import images

    try:
        return thumbnail(images.read(path, shorter_edge=shorter_edge))
    except images.ImageError:
        return None


def map_ahead(
    make: Callable[[ItemT], Thumbnail | None], items: Iterable[ItemT], threads: int
) -> Iterator[Thumbnail | None]:
    """``map(make, items)`` on threads, at most a few items ahead of what was taken, so that memory stays bounded."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        ahead: deque[Future[Thumbnail | None]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(make, item))
                if len(ahead) > 4 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
