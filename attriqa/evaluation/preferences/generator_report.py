"""What a comparison of generators found: all of it as plain values for a JSON file, the gist as text for the screen."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from attriqa.evaluation.bootstrap import images_needed
from attriqa.evaluation.preferences.generators import (
    Duel,
    Generator,
    distributions,
    duel,
    mean_changes,
    order_agreement,
    prompt_changes,
)
from attriqa.evaluation.text_tables import estimate
from attriqa.evaluation.text_tables import span as span

DIFFERENCES = (0.005, 0.01, 0.02, 0.05)
"""In mean score, for which the number of images is told."""
CHANGED = 0.05
"""A prompt whose score moved by no more counts as the same."""


def compare(
    generators: Sequence[Generator],
    names: Sequence[str],
    *,
    baseline: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
    listed: int = 50,
) -> dict[str, Any]:
    """Everything a report tells of some generators, as plain values.

    Args:
        generators: at least 2, each with a name of its own.
        names: of the columns of their values, the score first.
        baseline: the generator that the others are compared with, prompt by prompt.
        seed: of the bootstraps.
        resamples: of prompts.
        listed: how many prompts of each comparison with the baseline are listed at most, those that fell most.

    Returns:
        ``generators``: by name, the best mean score first: ``images``, ``prompts``, ``mean_opinion`` (or None) and
        ``summary``, by each of ``names`` the fields of `Summary`; ``duels``: of every two the fields of `Duel`, the
        one with the higher mean first; ``changes``: with a baseline, by name of each other: ``prompts`` (shared),
        ``only_baseline`` and ``only_other`` (how many are not), ``worse``, ``better`` and ``same`` (within `CHANGED`),
        ``means`` (by each of ``names`` the fields of `Change`) and ``worst`` (fields of `PromptChange`);
        ``order``: the fields of `OrderAgreement`, or None; ``sample_sizes``: as that function gives them.

    Raises:
        ValueError: there are fewer than two, two have one name, a column has no name, or the baseline is not there.
    """
    known = {generator.name: generator for generator in generators}
    if len(known) < 2 or len(known) < len(generators):
        given = ", ".join(generator.name for generator in generators) or "none"
        raise ValueError(f"generators: expected at least 2, each with a name of its own, got {given}")
    if any(generator.values.shape[1] != len(names) for generator in generators) or list(names[:1]) != ["score"]:
        raise ValueError(f"names: expected one for each column of values, score first, got {', '.join(names)}")
    if baseline is not None and baseline not in known:
        raise ValueError(f"baseline: expected one of {', '.join(known)}, got {baseline}")
    ranked = sorted(generators, key=lambda generator: -float(generator.values[:, 0].mean()))
    found: dict[str, dict[str, Any]] = {}
    for generator in ranked:
        summary = distributions(generator, names, seed=seed, resamples=resamples)
        found[generator.name] = {
            "images": len(generator.images),
            "prompts": len(set(generator.prompts)),
            "mean_opinion": None if generator.opinions is None else float(np.mean(generator.opinions)),
            "summary": {name: entry._asdict() for name, entry in summary.items()},
        }
    duels = [duel(a, b, seed=seed, resamples=resamples) for a, b in combinations(ranked, 2)]
    asked = len(generators) > 2 and all(generator.opinions is not None for generator in generators)
    others = [] if baseline is None else [other for other in ranked if other.name != baseline]
    return {
        "generators": found,
        "duels": [entry._asdict() for entry in duels],
        "baseline": baseline,
        "changes": {
            other.name: _changes(known[str(baseline)], other, names, seed, resamples, listed) for other in others
        },
        "order": order_agreement(generators, seed=seed, resamples=resamples)._asdict() if asked else None,
        "sample_sizes": sample_sizes(duels, [entry["summary"]["score"]["sd"] for entry in found.values()]),
        "resamples": resamples,
    }


def _changes(
    before: Generator, after: Generator, names: Sequence[str], seed: int, resamples: int, listed: int
) -> dict[str, Any]:
    prompts = prompt_changes(before, after, names)
    moves = [round(entry.after - entry.before, 6) for entry in prompts]  # a score has six decimals on disk
    means = mean_changes(before, after, names, seed=seed, resamples=resamples)
    worse, better = sum(move < -CHANGED for move in moves), sum(move > CHANGED for move in moves)
    return {
        "prompts": len(prompts),
        "only_baseline": len(set(before.prompts)) - len(prompts),
        "only_other": len(set(after.prompts)) - len(prompts),
        "worse": worse,
        "better": better,
        "same": len(prompts) - worse - better,
        "means": {name: change._asdict() for name, change in means.items()},
        "worst": [entry._asdict() for entry, move in zip(prompts, moves, strict=True) if move < 0][:listed],
    }


def sample_sizes(duels: Sequence[Duel], sds: Sequence[float]) -> list[dict[str, Any]]:
    """How many images it takes to see each of `DIFFERENCES` with 80 % power.

    Args:
        duels: of every two generators.
        sds: of the score within each generator.

    Returns:
        For each ``difference``: ``paired``, the prompts with one image from each, by the median standard deviation
        among the duels on shared prompts, and ``paired_least`` and ``paired_most`` by the least and the greatest (all
        None without shared prompts); ``unpaired``, the images of each where nothing is shared.
    """
    spread = [entry.sd for entry in duels if entry.paired and entry.n > 1]
    common = float(np.sqrt(np.mean(np.square(sds))))
    found = []
    for difference in DIFFERENCES:
        paired: list[int | None] = [None, None, None]
        if spread:
            paired = [
                images_needed(float(sd), difference, paired=True)
                for sd in (np.median(spread), np.min(spread), np.max(spread))
            ]
        row = dict(zip(("paired", "paired_least", "paired_most"), paired, strict=True))
        unpaired = images_needed(common, difference, paired=False)
        found.append({"difference": difference, **row, "unpaired": unpaired})
    return found


def comparison_text(result: Mapping[str, Any]) -> str:
    """The gist of what `compare` found as text: a table of generators, the closest duels, changes and sample sizes."""
    entries = result["generators"]
    width = max(12, *map(len, entries)) + 2
    with_opinions = any(entry["mean_opinion"] is not None for entry in entries.values())
    head = f"{'generator':{width}}{'images':>7}{'prompts':>9}  {'mean score [95 %]':26}{'median':8}"
    lines = [head + ("mean opinion" if with_opinions else "")]
    for name, entry in entries.items():
        score = entry["summary"]["score"]
        mean = estimate(score)
        opinion = "" if entry["mean_opinion"] is None else f"{entry['mean_opinion']:.3f}"
        median = score["quantiles"][len(score["quantiles"]) // 2]
        line = f"{name:{width}}{entry['images']:>7,}{entry['prompts']:>9,}  {mean:26}{median:<8.3f}{opinion}"
        lines.append(line.rstrip())
    lines += ["", "each against the next:"]
    order = list(entries)
    following = [entry for entry in result["duels"] if order.index(entry["second"]) == order.index(entry["first"]) + 1]
    lines += [_duel_text(entry) for entry in following]
    for name, change in result["changes"].items():
        lines += ["", *_change_text(name, str(result["baseline"]), change)]
    if result["order"] is not None:
        order_found = result["order"]
        tau = estimate(order_found, "tau")
        lines += ["", f"order by score against order by opinion: Kendall's tau {tau}, p = {order_found['p']:.2g}"]
        swapped = ", ".join(f"{better} / {worse}" for better, worse in order_found["discordant"])
        lines += [f"ordered otherwise than by people: {swapped}"] if swapped else []
    lines += ["", "prompts (unpaired: images of each) to see a difference in mean score with 80 % power:"]
    for row in result["sample_sizes"]:
        paired = "no shared prompts" if row["paired"] is None else f"{row['paired']:,} prompts"
        if row["paired"] is not None and row["paired_least"] != row["paired_most"]:
            paired += f" ({row['paired_least']:,} to {row['paired_most']:,})"
        lines.append(f"  {row['difference']:<7g}{paired}; unpaired {row['unpaired']:,}")
    return "\n".join(lines)


def _duel_text(entry: Mapping[str, Any]) -> str:
    rate = f"{100 * entry['rate']:.1f} % {span(entry['rate_low'], entry['rate_high'], 1, 100)}"
    of = f"{entry['n']:,} shared prompts" if entry["paired"] else f"unpaired, {entry['n']:,} images"
    difference = f"{entry['difference']:+.3f} {span(entry['difference_low'], entry['difference_high'])}".rstrip()
    return f"  {entry['first']} beats {entry['second']} in {rate} ({of}); mean {difference}"


def _change_text(name: str, baseline: str, change: Mapping[str, Any]) -> list[str]:
    if not change["prompts"]:
        return [f"{baseline} -> {name}: no shared prompts"]
    counts = f"{change['worse']:,} of {change['prompts']:,} prompts worse by more than {CHANGED}"
    lines = [f"{baseline} -> {name}: {counts}, {change['better']:,} better, {change['same']:,} about the same"]
    for entry in change["worst"][:3]:
        most = "" if entry["most"] is None else f" ({entry['most']} {entry['most_change']:+.2f})"
        lines.append(f"  {entry['before']:.3f} -> {entry['after']:.3f}  {entry['prompt'][:70]}{most}")
    return lines
