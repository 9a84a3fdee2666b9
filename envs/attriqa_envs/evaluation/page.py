"""Renderings of the same pictures side by side: one self-contained HTML page with a slider over each picture.

The page's frame is ``templates/compare.html``. It needs no network and no server.
"""

import base64
import html
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from attriqa import __version__
from attriqa.files import atomic_path
from attriqa_envs.isp import PARAMETERS

_QUALITY = 95  # JPEG, without chroma subsampling


class Version(NamedTuple):
    """One rendering of a picture.

    Attributes:
        name: of who made it, as ``"policy"``.
        picture: ``(3, H, W)`` sRGB in [0, 1].
        facts: figures by name, as text, in the order in which they are shown; versions may differ in what they have.
        params: ``(P,)`` physical, or `None` where there are none.
    """

    name: str
    picture: Tensor
    facts: dict[str, str]
    params: Tensor | None = None


class Item(NamedTuple):
    """One picture and its versions, at least one; the page opens with the first left and ``right`` right."""

    name: str
    versions: Sequence[Version]
    right: str = ""


def write_compare_page(
    path: Path | str,
    items: Iterable[Item],
    *,
    title: str,
    notes: Sequence[str] = (),
    table: str = "",
    advance: Callable[[], object] | None = None,
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file to make; its folders are created.
        items: may be a generator: one picture is held at a time.
        title: of the page.
        notes: paragraphs below it: what was compared, and how.
        table: a text in columns, shown as it is.
        advance: called after each picture, for a progress bar.

    Raises:
        ValueError: an item has no version, or two of one name.
    """
    values = {"title": html.escape(title), "version": html.escape(__version__)}
    values["notes"] = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    values["table"] = f"<pre>{html.escape(table)}</pre>" if table else ""
    template = resources.files("attriqa_envs.evaluation").joinpath("templates/compare.html").read_text(encoding="utf-8")
    # One pass over the template alone: a title that looks like a placeholder stays what it is.
    head, tail = (re.sub(r"\{\{(\w+)\}\}", lambda hit: values[hit[1]], part) for part in template.split("{{items}}"))
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(head)
        for place, item in enumerate(items):
            file.write((",\n" if place else "") + _json(_item(item)))
            if advance is not None:
                advance()
        file.write(tail)


def _item(item: Item) -> dict[str, object]:
    names = [version.name for version in item.versions]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"item {item.name!r}: expected versions of different names, got {', '.join(names) or 'none'}")
    facts = list(dict.fromkeys(name for version in item.versions for name in version.facts))
    right = item.right if item.right in names else names[-1]
    return {
        "name": item.name,
        "versions": [{"name": version.name, "source": _source(version.picture)} for version in item.versions],
        "left": 0,
        "right": names.index(right),
        "facts": [[name, *(version.facts.get(name, "") for version in item.versions)] for name in facts],
        "params": _params(item.versions),
    }


def _params(versions: Sequence[Version]) -> list[list[str]]:
    """A row per parameter that some version has off its default: name, unit, and the versions' values."""
    vectors = [None if version.params is None else version.params.tolist() for version in versions]
    rows = []
    for place, parameter in enumerate(PARAMETERS):
        values = [None if vector is None else vector[place] for vector in vectors]
        texts = ["" if value is None else f"{value:+.2f}" for value in values]
        if any(float(text or 0) for text in texts):
            rows.append([parameter.key, parameter.unit, *texts])
    return rows


def _source(picture: Tensor) -> str:
    """A picture as a data URI."""
    from PIL import Image

    levels = (picture.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy(force=True)
    jpeg = io.BytesIO()
    Image.fromarray(levels).save(jpeg, "JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")


def _json(value: object) -> str:
    """JSON that no text in it can break out of a ``<script>``."""
    return json.dumps(value).replace("<", "\\u003c")
