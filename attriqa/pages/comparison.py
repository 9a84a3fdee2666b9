"""One self-contained HTML page that compares generators: tables, distributions, pictures; no script, no network.

The page's frame and its explanations are ``templates/comparison.html``; this module fills it. Its size is that of its
thumbnails, whose number is bounded.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from attriqa.attributes import ATTRIBUTES
from attriqa.distortions import DISTORTION_KEYS
from attriqa.evaluation.preferences.generator_report import CHANGED, span
from attriqa.evaluation.preferences.generators import Generator
from attriqa.explain import NOTHING, why
from attriqa.files import atomic_path
from attriqa.pages.html import Entry, interval, interval_bar, panel, signed, table, text, thumbnail, title_of, win_cell

PICTURES = 480
"""How many thumbnails a page holds at most, about 3.5 MB; with very many generators, two per list."""
_UNFOLDED = 6  # distributions of distortions that are not folded away
_OPEN = 4  # up to so many generators have their folds open

Thumbnails = Callable[[Iterable[str]], Iterator[str]]


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

        def thumbnails(paths: Iterable[str]) -> Iterator[str]:
            for picture in pool.map(thumbnail, paths):
                if advance is not None:
                    advance()
                yield picture

        values = {
            "summary": _summary(result),
            "people": _people(result),
            "wins": _wins(result),
            "distributions": "".join(_distributions(result)),
            "changes": "".join(_changes(result, count, thumbnails)),
            "pictures": "".join(_galleries(known, result, count, thumbnails)),
            "sizes": _sizes(result),
            "left_out": _left_out(left_out),
        }
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    values |= {
        "title": text(title),
        "lead": text(f"{len(known)} generators, {sum(len(g.images) for g in generators):,} images, by {identity}"),
        "identity": text(identity),
        "version": text(version),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "notes": f'<ul class="notes">{items}</ul>' if notes else "",
    }
    with atomic_path(path) as temporary:
        temporary.write_text(_filled(values), encoding="utf-8", newline="\n")


def pictures_per_list(generators: int, comparisons: int, gallery: int) -> int:
    """How many pictures, or pairs of them, each list of the page holds, so that `PICTURES` bounds them all."""
    return min(gallery, max(2, PICTURES // (2 * generators + 2 * comparisons)))


def _filled(values: Mapping[str, str]) -> str:
    """The template with its values, without the sections that have nothing to say."""
    template = resources.files("attriqa.pages").joinpath("templates/comparison.html").read_text(encoding="utf-8")
    section = re.compile(r'<section id="(\w+)">.*?</section>\n', re.DOTALL)
    template = section.sub(lambda hit: hit[0] if values[hit[1]] else "", template)
    headings = re.findall(r'<section id="(\w+)">\n<h2>(.*?)</h2>', template)
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading in headings)
    every = {**values, "nav": f"<nav>{links}</nav>"}
    # One pass over the template alone: a name that looks like a placeholder stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda hit: every[hit[1]], template)


def _summary(result: Entry) -> str:
    entries = result["generators"]
    scores = [entry["summary"]["score"] for entry in entries.values()]
    ends = [score[key] for score in scores for key in ("low", "mean", "high") if score[key] is not None]
    told = [name for name in ATTRIBUTES if name in next(iter(entries.values()))["summary"]]
    several = ["prompts"] if any(entry["prompts"] != entry["images"] for entry in entries.values()) else []
    opinions = ["mean opinion"] if any(entry["mean_opinion"] is not None for entry in entries.values()) else []
    rows = []
    for name, entry in entries.items():
        score = entry["summary"]["score"]
        bar = interval_bar(score["mean"], score["low"], score["high"], (min(ends), max(ends)))
        row = [text(name) + (" <small>baseline</small>" if name == result["baseline"] else "")]
        row += [f"{entry['images']:,}", *(f"{entry['prompts']:,}" for _ in several)]
        row += [f"{score['mean']:.3f} {interval(score['low'], score['high'])}"]
        row += [f'<td class="span">{bar}</td>', f"{score['quantiles'][len(score['quantiles']) // 2]:.3f}"]
        row += ["–" if entry["mean_opinion"] is None else f"{entry['mean_opinion']:.2f}" for _ in opinions]
        rows.append(row + [f"{entry['summary'][attribute]['mean']:.3f}" for attribute in told])
    return table(["generator", "images", *several, "mean score", "", "median", *opinions, *told], rows)


def _people(result: Entry) -> str:
    """Whether the order of generators is that of people's opinions."""
    order, entries = result["order"], result["generators"]
    if order is None:
        return ""
    tau = f"{order['tau']:.2f} {span(order['tau_low'], order['tau_high'], 2)}".rstrip()
    place = {name: number for number, name in enumerate(entries, start=1)}
    rows = [
        [
            text(name),
            f"{entries[name]['mean_opinion']:.3f}",
            str(number),
            f"{entries[name]['summary']['score']['mean']:.3f}",
            str(place[name]),
        ]
        for number, name in enumerate(sorted(entries, key=lambda name: -entries[name]["mean_opinion"]), start=1)
    ]
    swapped = "; ".join(f"{text(better)} / {text(worse)}" for better, worse in order["discordant"]) or "none"
    return (
        f"<p>Kendall's tau between the order by mean score and the order by mean opinion: <b>{tau}</b> over "
        f"{order['n']} generators, p = {order['p']:.2g}; the interval resamples {order['prompts']:,} prompts.</p>\n"
        f"{table(['generator', 'mean opinion', 'place', 'mean score', 'place'], rows)}"
        f'<p class="soft">Ordered otherwise than by people, the better liked one first: {swapped}.</p>\n'
    )


def _wins(result: Entry) -> str:
    order = list(result["generators"])
    cells: dict[tuple[str, str], str] = {}
    for duel in result["duels"]:
        cells[duel["first"], duel["second"]] = win_cell(duel, mirrored=False)
        cells[duel["second"], duel["first"]] = win_cell(duel, mirrored=True)
    rows = [
        [f"{number} {text(row)}", *(cells.get((row, column), '<td class="self">–</td>') for column in order)]
        for number, row in enumerate(order, start=1)
    ]
    return table(["", *(str(number) for number in range(1, len(order) + 1))], rows, "wins")


def _distributions(result: Entry) -> Iterator[str]:
    entries = result["generators"]
    names = list(next(iter(entries.values()))["summary"])
    # The distortions that some generator has most of come first.
    strongest = {name: max(entry["summary"][name]["mean"] for entry in entries.values()) for name in names}
    attributes = [name for name in names if name in ATTRIBUTES]
    rest = sorted(set(names) - {"score", *attributes}, key=lambda name: (-strongest[name], name))
    yield f'<div class="panels one">{panel("score", entries)}</div>\n'
    for heading, shown in (("Attributes", attributes), ("Distortions, by strength", rest[:_UNFOLDED])):
        if shown:
            yield f'<h3>{heading}</h3>\n<div class="panels">{"".join(panel(name, entries) for name in shown)}</div>\n'
    if rest[_UNFOLDED:]:
        yield f"<details><summary>{len(rest) - _UNFOLDED} weaker distortions</summary>\n"
        yield f'<div class="panels">{"".join(panel(name, entries) for name in rest[_UNFOLDED:])}</div></details>\n'


def _changes(result: Entry, count: int, thumbnails: Thumbnails) -> Iterator[str]:
    """Each generator against the baseline: what changed on average, and the prompts that got worse."""
    for number, (name, change) in enumerate(result["changes"].items()):
        heading = f"{text(str(result['baseline']))} → {text(name)}"
        if not change["prompts"]:
            yield f'<h3>{heading}</h3>\n<p class="soft">They share no prompt.</p>\n'
            continue
        counts = f"{change['worse']:,} of {change['prompts']:,} prompts worse"
        yield f"<details{' open' if number < _OPEN else ''}><summary>{heading}: {counts}</summary>\n"
        parts = "".join(f'<i class="{part}" style="--n:{change[part]}"></i>' for part in ("worse", "same", "better"))
        yield f'<div class="parts" aria-hidden="true">{parts}</div>\n{_counted(change)}{_moved(change["means"])}'
        worst = change["worst"][:count]
        pictures = thumbnails(image for entry in worst for image in (entry["image_before"], entry["image_after"]))
        yield '<h3>The prompts whose score fell most</h3>\n<div class="pairs">' if worst else "<div>"
        for entry in worst:
            both = f"{next(pictures)}{next(pictures)}"
            yield f'<figure class="pair">{both}<figcaption>{_fall(entry)}</figcaption></figure>\n'
        yield "</div></details>\n"


def _counted(change: Entry) -> str:
    alone = [f"{change[key]:,} that only {who} has" for key, who in _ALONE.items() if change[key]]
    return (
        f"<p>{change['worse']:,} prompts lost more than {CHANGED}, {change['better']:,} gained more, "
        f"{change['same']:,} stayed about the same{'; left out: ' if alone else ''}{' and '.join(alone)}.</p>\n"
    )


_ALONE = {"only_baseline": "the baseline", "only_other": "the other"}


def _fall(entry: Entry) -> str:
    most = (
        "" if entry["most"] is None else f"<small>{title_of(entry['most'])} {signed(entry['most_change'], 2)}</small>"
    )
    prompt = text(entry["prompt"])
    numbers = f"<b>{entry['before']:.3f} → {entry['after']:.3f}</b> {most}"
    return f'{numbers}<span class="prompt" title="{prompt}">{prompt}</span>'


def _moved(means: Entry) -> str:
    """The table of what moved on average by more than chance, the score first, then the most."""
    clear = [(n, m) for n, m in means.items() if m["change_low"] is not None and m["change_low"] * m["change_high"] > 0]
    rows = []
    for name, entry in sorted(clear, key=lambda pair: (pair[0] != "score", -abs(pair[1]["change"])))[:10]:
        worse = (entry["change"] < 0) == (name in ("score", *ATTRIBUTES))
        change = f'<span class="{"fell" if worse else "rose"}">{signed(entry["change"])}</span> '
        change += interval(entry["change_low"], entry["change_high"])
        rows.append([title_of(name), f"{entry['before']:.3f}", f"{entry['after']:.3f}", change])
    if not rows:
        return "<p>No mean moved by more than its 95 % interval.</p>\n"
    return table(["moved on average", "before", "after", "change"], rows)


def _galleries(known: Mapping[str, Generator], result: Entry, count: int, thumbnails: Thumbnails) -> Iterator[str]:
    """The worst and the best images of each generator."""
    for number, (name, entry) in enumerate(result["generators"].items()):
        generator = known[name]
        order = np.argsort(generator.values[:, 0], kind="stable").tolist()
        few = min(count, max(1, len(order) // 2))
        opened = " open" if len(known) <= _OPEN or number in (0, len(known) - 1) else ""
        yield f"<details{opened}><summary>{text(name)}</summary>\n"
        for heading, places in (("worst", order[:few]), ("best", order[: -few - 1 : -1])):
            yield f'<h3>{heading}</h3>\n<div class="gallery">'
            pictures = thumbnails(generator.images[place] for place in places)
            for place, picture in zip(places, pictures, strict=True):
                values, prompt = generator.values[place].tolist(), text(generator.prompts[place])
                caption = f"<b>{values[0]:.3f}</b> <small>{_reason(list(entry['summary']), values)}</small>"
                caption += f'<span class="prompt" title="{prompt}">{prompt}</span>'
                file = text(Path(generator.images[place]).name)
                yield f'<figure title="{file}">{picture}<figcaption>{caption}</figcaption></figure>\n'
            yield "</div>\n"
        yield "</details>\n"


def _reason(names: Sequence[str], values: Sequence[float]) -> str:
    """Why an image scores as it does, in words; empty where nothing stands out or the scorer tells other things."""
    end = 1 + len(ATTRIBUTES)
    if tuple(names[1:end]) != ATTRIBUTES:
        return ""
    words = why(values[1:end], values[end:] if tuple(names[end:]) == DISTORTION_KEYS else None)
    return "" if words == NOTHING else text(words)


def _sizes(result: Entry) -> str:
    rows = []
    for row in result["sample_sizes"]:
        paired = "–"
        if row["paired"] is not None:
            paired = f"{row['paired']:,} <small>{row['paired_least']:,} to {row['paired_most']:,}</small>"
        rows.append([f"{row['difference']:g}", paired, f"{row['unpaired']:,}"])
    sizes = table(["difference in mean score", "shared prompts", "images of each, unpaired"], rows)
    order = list(result["generators"])
    following = [duel for duel in result["duels"] if order.index(duel["second"]) - order.index(duel["first"]) == 1]
    rows = []
    for duel in following:
        difference = f"{signed(duel['difference'])} {interval(duel['difference_low'], duel['difference_high'])}"
        needed = "–" if duel["needed"] is None else f"{duel['needed']:,}"
        at_hand = f"{duel['n']:,} {'prompts' if duel['paired'] else 'images of both'}"
        pair = f"{text(duel['first'])} / {text(duel['second'])}"
        rows.append([pair, difference, needed, at_hand])
    return (
        f'{sizes}<h3>Each generator and the next</h3>\n<p class="soft">Needed: were the true difference the one found.'
        f"</p>\n{table(['pair', 'difference in mean score', 'needed', 'at hand'], rows)}"
    )


def _left_out(left_out: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<li><bdi>{text(path)}</bdi> <span>{text(reason)}</span></li>\n" for path, reason in left_out)
    return f'<ul class="errors">\n{items}</ul>\n' if items else ""
