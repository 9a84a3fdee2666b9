"""A blind comparison of pairs of pictures: one self-contained HTML page, and what the answers that it downloads say.

The page's frame is ``templates/ab.html``. It needs no network and no server: a person opens the file, answers with the
keyboard or the mouse, and sends back the CSV file that it saves.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from attriqa import images
from attriqa.evaluation.preferences.votes import COLUMNS
from attriqa.pages.html import as_picture, data_uri, write_page


class ABPair(NamedTuple):
    """Two pictures to compare.

    Attributes:
        name: of the pair; no other has it. It goes into the answers and is not shown.
        image_a: file of the first picture; of a candidate, where one is compared with what it should beat.
        image_b: file of the second.
        prompt: goes into the answers and is not shown: people judge the pictures alone.
    """

    name: str
    image_a: str | Path
    image_b: str | Path
    prompt: str = ""


def write_ab_page(
    path: str | Path,
    pairs: Sequence[ABPair],
    title: str,
    question: str,
    seed: int,
    *,
    folder: str | Path = ".",
    side: int = 1024,
    advance: Callable[[], object] | None = None,
) -> None:
    """Write the page, whole or not at all.

    The order of the pairs and their sides follow from ``seed``; each side is left in half of the pairs. Names and
    prompts stand in the page's source, for the answers, but are never shown.

    Args:
        path: the HTML file to make; its folders are created.
        pairs: what is compared, at least one.
        title: of the page.
        question: asked of each pair.
        seed: of order and sides.
        folder: what relative paths of images are relative to; the answers give the paths as they are in ``pairs``.
        side: longest side of a picture in px; where either of a pair is larger, both are reduced by the same factor.
        advance: called after each pair, for a progress bar.

    Raises:
        ValueError: there is no pair, two have one name, or ``side`` is below 32.
        ImageError: a picture cannot be read.
    """
    if not pairs:
        raise ValueError("pairs: expected at least one, got none")
    twice = [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"pairs: expected each name once, got {twice[0]!r} again ({len(twice)} such names)")
    if side < 32:
        raise ValueError(f"side: expected at least 32 px, got {side}")
    rng = random.Random(seed)
    order = rng.sample(range(len(pairs)), len(pairs))
    lefts = ["a", "b"] * ((len(pairs) + 1) // 2)
    rng.shuffle(lefts)
    listed = [[*map(str, pairs[index]), left] for index, left in zip(order, lefts, strict=False)]
    # Answers kept by the browser must not be taken for those of another page.
    identity = hashlib.sha256(json.dumps([title, question, seed, side, listed]).encode()).hexdigest()[:16]

    def records() -> Iterator[list[str]]:
        for index, record in zip(order, listed, strict=True):
            yield [*record, *_pictures(pairs[index], Path(folder), side)]
            if advance is not None:
                advance()

    values = {"title": title, "question": question, "identity": identity, "columns": COLUMNS, "pairs": records()}
    write_page(path, "ab.html", values)


def _pictures(pair: ABPair, folder: Path, side: int) -> list[str]:
    """Both pictures as data URIs, metadata gone: nothing but the pixels tells them apart."""
    from PIL import Image

    pictures = [as_picture(images.read(folder / path)) for path in (pair.image_a, pair.image_b)]
    factor = min(1.0, side / max(max(picture.size) for picture in pictures))
    if factor < 1:
        sizes = [tuple(max(1, round(edge * factor)) for edge in picture.size) for picture in pictures]
        resized = zip(pictures, sizes, strict=True)
        pictures = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture, (width, height) in resized]
    return [data_uri(picture) for picture in pictures]
