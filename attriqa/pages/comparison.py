"""One self-contained HTML page that compares generators: tables, distributions, pictures; no script, no network.

Its looks and its explanations are ``templates/comparison.html``; this module chooses and sorts what stands there. Its
size is that of its thumbnails, whose number is bounded.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from attriqa.attributes import ATTRIBUTES
from attriqa.distortions import DISTORTION_KEYS, DISTORTIONS
from attriqa.evaluation.preferences.generator_report import CHANGED, span
from attriqa.evaluation.preferences.generators import Generator
from attriqa.explain import NOTHING, why
from attriqa.pages.html import Thumbnail, file_thumbnail, write_page

PICTURES = 480
"""How many thumbnails a page holds at most, about 3.5 MB; with very many generators, two per list."""
_UNFOLDED = 6  # distributions of distortions that are not folded away
_OPEN = 4  # up to so many generators have their folds open

Result = Mapping[str, Any]
Thumbnails = Callable[[Iterable[str]], Iterator[Thumbnail | None]]


def write_comparison_page(
    path: str | Path,
    generators: Sequence[Generator],
    result: Mapping[str, Any],
    *,
    title: str,
    identity: str,
    version: str,
    notes: Sequence[str] = (),
    left_out: Sequence[tuple[str, str]] = (),
    gallery: int = 8,
    threads: int = 2,
    advance: Callable[[], object] | None = None,
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file to make; its folders are created.
        generators: what was compared; their ``images`` are files to read thumbnails from.
        result: what `attriqa.evaluation.preferences.generator_report.compare` found of them.
        title: heading and window title.
        identity: which weights and view made the scores.
        version: of attriqa, shown in the footer.
        notes: what a reader must know first, as how many images were left out.
        left_out: (path, reason) of each image that is in no number.
        gallery: how many worst and best images of each generator, and prompts of each comparison with the baseline,
            are shown at most; fewer where all would be more than `PICTURES`.
        threads: how many thumbnails are decoded at a time.
        advance: called after each thumbnail, for a progress bar.

    Raises:
        ValueError: the generators are not those of the result.
    """
    known = {generator.name: generator for generator in generators}
    if known.keys() != result["generators"].keys():
        expected = ", ".join(result["generators"])
        raise ValueError(f"generators: expected {expected}, as in the result, got {', '.join(known)}")
    count = pictures_per_list(len(known), len(result["changes"]), gallery)
    with ThreadPoolExecutor(max_workers=threads) as pool:

        def thumbnails(paths: Iterable[str]) -> Iterator[Thumbnail | None]:
            for picture in pool.map(file_thumbnail, paths):
                if advance is not None:
                    advance()
                yield picture

        shown = {
            "title": title,
            "lead": f"{len(known)} generators, {sum(len(g.images) for g in generators):,} images, by {identity}",
            "identity": identity,
            "version": version,
            "notes": notes,
            "left_out": left_out,
            "result": result,
            "changes": _changes(result, count, thumbnails),
            "galleries": _galleries(known, result, count, thumbnails),
        }
        helpers = {"span": span, "title_of": _title_of, "least_change": CHANGED, "unfolded": _OPEN}
        write_page(path, "comparison.html", shown | _tables(result) | helpers, scripted=False)


def pictures_per_list(generators: int, comparisons: int, gallery: int) -> int:
    """How many pictures, or pairs of them, each list of the page holds, so that `PICTURES` bounds them all."""
    return min(gallery, max(2, PICTURES // (2 * generators + 2 * comparisons)))


def _title_of(name: str) -> str:
    """What a reader calls an attribute, or a distortion by its key."""
    return DISTORTIONS[DISTORTION_KEYS.index(name)].name if name in DISTORTION_KEYS else name


def _tables(result: Result) -> dict[str, Any]:
    """What the tables and the distributions show."""
    entries = result["generators"]
    order, names = list(entries), list(next(iter(entries.values()))["summary"])
    scores = [entry["summary"]["score"] for entry in entries.values()]
    ends = [score[key] for score in scores for key in ("low", "mean", "high") if score[key] is not None]
    # The distortions that some generator has most of come first.
    strongest = {name: max(entry["summary"][name]["mean"] for entry in entries.values()) for name in names}
    attributes = [name for name in ATTRIBUTES if name in names]
    rest = sorted(set(names) - {"score", *attributes}, key=lambda name: (-strongest[name], name))
    duels = {(duel["first"], duel["second"]): duel for duel in result["duels"]}
    duels |= {(second, first): _mirrored(duel) for (first, second), duel in duels.items()}
    return {
        "axis": (min(ends), max(ends)),
        "several": any(entry["prompts"] != entry["images"] for entry in entries.values()),
        "opinions": any(entry["mean_opinion"] is not None for entry in entries.values()),
        "attributes": attributes,
        "strongest": rest[:_UNFOLDED],
        "weaker": rest[_UNFOLDED:],
        "wins": [(one, [duels.get((one, other)) for other in order]) for one in order],
        "following": [
            duel for duel in result["duels"] if order.index(duel["second"]) - order.index(duel["first"]) == 1
        ],
    }


def _mirrored(duel: Result) -> Result:
    """A duel as the other one sees it."""
    return {**duel, "rate": 1 - duel["rate"], "rate_low": 1 - duel["rate_high"], "rate_high": 1 - duel["rate_low"]}


def _changes(result: Result, count: int, thumbnails: Thumbnails) -> Iterator[tuple[str, Result, list[Any], list[Any]]]:
    """Each generator against the baseline: what moved by more than chance, and the prompts that got worse, in pictures.

    The score comes first among what moved, then what moved most.
    """
    for name, change in result["changes"].items():
        clear = [
            (n, m)
            for n, m in change["means"].items()
            if m["change_low"] is not None and m["change_low"] * m["change_high"] > 0
        ]
        clear = sorted(clear, key=lambda pair: (pair[0] != "score", -abs(pair[1]["change"])))[:10]
        means = [(n, m, (m["change"] < 0) == (n in ("score", *ATTRIBUTES))) for n, m in clear]
        worst = change["worst"][:count] if change["prompts"] else []
        pictures = thumbnails(image for entry in worst for image in (entry["image_before"], entry["image_after"]))
        yield name, change, means, [(entry, next(pictures), next(pictures)) for entry in worst]


def _galleries(
    known: Mapping[str, Generator], result: Result, count: int, thumbnails: Thumbnails
) -> Iterator[tuple[str, bool, list[tuple[str, Iterator[Result]]]]]:
    """The worst and the best images of each generator, and whether they are unfolded."""
    for number, (name, entry) in enumerate(result["generators"].items()):
        generator, names = known[name], list(entry["summary"])
        order = np.argsort(generator.values[:, 0], kind="stable").tolist()
        few = min(count, max(1, len(order) // 2))
        lists = {"worst": order[:few], "best": order[: -few - 1 : -1]}
        opened = len(known) <= _OPEN or number in (0, len(known) - 1)
        yield (
            name,
            opened,
            [(heading, _gallery(generator, names, places, thumbnails)) for heading, places in lists.items()],
        )


def _gallery(
    generator: Generator, names: Sequence[str], places: Sequence[int], thumbnails: Thumbnails
) -> Iterator[Result]:
    pictures = thumbnails(generator.images[place] for place in places)
    for place, picture in zip(places, pictures, strict=True):
        values = generator.values[place].tolist()
        yield {
            "picture": picture,
            "file": Path(generator.images[place]).name,
            "prompt": generator.prompts[place],
            "score": values[0],
            "reason": _reason(names, values),
        }


def _reason(names: Sequence[str], values: Sequence[float]) -> str:
    """Why an image scores as it does, in words; empty where nothing stands out or the scorer tells other things."""
    end = 1 + len(ATTRIBUTES)
    if tuple(names[1:end]) != ATTRIBUTES:
        return ""
    words = why(values[1:end], values[end:] if tuple(names[end:]) == DISTORTION_KEYS else None)
    return "" if words == NOTHING else words
