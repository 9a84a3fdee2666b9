"""Renderings of the same pictures side by side: one self-contained HTML page with a slider over each picture.

The page's frame is ``templates/compare.html``. It needs no network and no server.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from attriqa import __version__
from attriqa.pages.html import as_picture, data_uri, write_page
from attriqa_envs.isp import PARAMETERS


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

    def records() -> Iterator[dict[str, object]]:
        for item in items:
            yield _item(item)
            if advance is not None:
                advance()

    values = {"title": title, "version": __version__, "notes": notes, "table": table, "items": records()}
    write_page(path, "compare.html", values, package="attriqa_envs.evaluation")


def _item(item: Item) -> dict[str, object]:
    names = [version.name for version in item.versions]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"item {item.name!r}: expected versions of different names, got {', '.join(names) or 'none'}")
    facts = list(dict.fromkeys(name for version in item.versions for name in version.facts))
    right = item.right if item.right in names else names[-1]
    return {
        "name": item.name,
        "versions": [
            {"name": version.name, "source": data_uri(as_picture(version.picture))} for version in item.versions
        ],
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
