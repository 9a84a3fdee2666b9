"""Pairs of images that people compared, and how often a scorer agrees with people.

A pair is two images of one prompt and which of them people preferred (two-alternative forced choice, 2AFC). Scores are
higher-is-better.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from attriqa.evaluation import metrics
from attriqa.evaluation.bootstrap import Floats, interval_of

VOTE_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Bins of the margin of votes, |a - b| / all."""
MOS_EDGES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 5.0)
"""Bins of the margin of mean opinion scores on a scale of 0 to 5."""


class JudgedPair(NamedTuple):
    """Two images and what people think of them.

    Attributes:
        image_a: path or name of the first image.
        image_b: of the second.
        prompt: what both show; pairs of one prompt are resampled together.
        preference: above 0 where people prefer the first, below 0 where the second, 0 for a tie. Of votes:
            (a - b) / all, within [-1, 1]; of mean opinion scores: their difference.
        graded: whether the size of ``preference`` says how clear the case was; not where only the winner is known.
    """

    image_a: str
    image_b: str
    prompt: str
    preference: float
    graded: bool = True

    @property
    def margin(self) -> float:
        """How clear the case was."""
        return abs(self.preference)


class Accuracy(NamedTuple):
    """How often a scorer agrees with people.

    Attributes:
        accuracy: share of the ``n`` pairs that people decided and the scorer orders as they do; its ties count 1/2.
        accuracy_low: lower end of Wilson's 95 % interval, which takes pairs as independent.
        accuracy_high: its upper end.
        n: pairs that people decided.
        score_ties: of these, how many have two equal scores.
        human_ties: further pairs, on which people were undecided; they have no right answer and are left out.
        by_prompt_low: lower end of the 95 % bootstrap interval that resamples prompts, for pairs that share prompts or
            images; None where there is one prompt only.
        by_prompt_high: its upper end.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    n: int
    score_ties: int
    human_ties: int
    by_prompt_low: float | None
    by_prompt_high: float | None


class Bin(NamedTuple):
    """Accuracy among pairs whose margin is within (low, high]; None where there is no pair."""

    low: float
    high: float
    n: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None


class McNemar(NamedTuple):
    """McNemar's exact test (1947) of two scorers on the same pairs.

    Attributes:
        only_first: pairs that only the first scorer orders as people do.
        only_second: pairs that only the second does.
        n: pairs that people and both scorers decided.
        p: two-sided probability of so uneven a division of the pairs they differ on, were both equally good.
    """

    only_first: int
    only_second: int
    n: int
    p: float


def same_prompt_pairs(images: Sequence[str], prompts: Sequence[str], mos: ArrayLike) -> list[JudgedPair]:
    """Every two images of one prompt, with the difference of their mean opinion scores, ties included.

    Args:
        images: n names, each once.
        prompts: n prompts.
        mos: (n,) opinions, higher is better.

    Raises:
        ValueError: the lengths differ, or an image comes twice.
    """
    opinions = np.asarray(mos, dtype=np.float64)
    if not len(images) == len(prompts) == opinions.size:
        sizes = [len(images), len(prompts), opinions.size]
        raise ValueError(f"images, prompts, mos: expected equal lengths, got {sizes}")
    if len(set(images)) < len(images):
        raise ValueError(f"images: expected each name once, got {len(images) - len(set(images))} again")
    members: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(index)
    return [
        JudgedPair(images[i], images[j], prompt, float(opinions[i] - opinions[j]))
        for prompt, group in members.items()
        for i, j in combinations(group, 2)
    ]


def correctness(pairs: Sequence[JudgedPair], score_a: ArrayLike, score_b: ArrayLike) -> Floats:
    """Of each pair: 1 where the scorer prefers what people prefer, 0 where not, 1/2 where it ties; NaN for their ties.

    Args:
        pairs: n pairs.
        score_a: (n,) scores of the first images, higher is better, finite.
        score_b: (n,) of the second.

    Returns:
        (n,) values.

    Raises:
        ValueError: the lengths differ or a score is not finite.
    """
    a, b = np.asarray(score_a, dtype=np.float64), np.asarray(score_b, dtype=np.float64)
    if a.shape != (len(pairs),) or b.shape != (len(pairs),):
        raise ValueError(f"score_a, score_b: expected {len(pairs)} each, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("score_a, score_b: expected finite numbers, got NaN or infinite")
    people = np.sign([pair.preference for pair in pairs])
    return np.where(people == 0, np.nan, (1 + np.sign(a - b) * people) / 2)


def accuracy(pairs: Sequence[JudgedPair], right: Floats, *, seed: int = 0, resamples: int = 1000) -> Accuracy:
    """Accuracy over all pairs, with both intervals.

    Args:
        pairs: n pairs.
        right: (n,) what `correctness` gave.
        seed: of the bootstrap.
        resamples: of prompts.

    Raises:
        ValueError: people decided no pair.
    """
    decided = ~np.isnan(right)
    values = right[decided]
    if not values.size:
        raise ValueError(f"pairs: expected at least one that people decided, got {len(pairs)} ties")
    low, high = metrics.wilson(float(values.sum()), values.size)
    prompts = [pair.prompt for pair, kept in zip(pairs, decided, strict=True) if kept]
    spread = _by_prompt(values, prompts, seed, resamples)
    ties = int(np.count_nonzero(values == 0.5))
    return Accuracy(float(values.mean()), low, high, values.size, ties, len(pairs) - values.size, *spread)


def _by_prompt(
    values: Floats, prompts: Sequence[str], seed: int, resamples: int
) -> tuple[float, float] | tuple[None, None]:
    """Percentile interval of the mean over resampled prompts."""
    codes = np.unique(prompts, return_inverse=True)[1]
    count = int(codes.max()) + 1
    if count < 2:
        return None, None
    sums, sizes = np.bincount(codes, values, count), np.bincount(codes, minlength=count)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    return interval_of((drawn @ sums) / (drawn @ sizes))


def margin_curve(pairs: Sequence[JudgedPair], right: Floats, edges: Sequence[float]) -> list[Bin]:
    """Accuracy by how clear the case was to people, in bins (edge, next edge], each with Wilson's 95 % interval.

    Raises:
        ValueError: ``edges`` do not rise from 0, or a pair is not graded.
    """
    if len(edges) < 2 or edges[0] != 0 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"edges: expected at least two, rising from 0, got {tuple(edges)}")
    if not all(pair.graded for pair in pairs):
        raise ValueError("pairs: expected votes or opinions, got pairs of which only the winner is known")
    margins = np.array([pair.margin for pair in pairs])
    bins = []
    for low, high in pairwise(edges):
        values = right[(margins > low) & (margins <= high)]
        if values.size:
            span = metrics.wilson(float(values.sum()), values.size)
            bins.append(Bin(low, high, values.size, float(values.mean()), *span))
        else:
            bins.append(Bin(low, high, 0, None, None, None))
    return bins


def mcnemar(first: Floats, second: Floats) -> McNemar:
    """McNemar's exact test of two scorers; pairs that people or either scorer left undecided are not used.

    Args:
        first: (n,) what `correctness` gave for one scorer.
        second: (n,) for the other, of the same pairs.

    Raises:
        ValueError: the lengths differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"first, second: expected equal lengths, got {first.shape} and {second.shape}")
    used = np.isin(first, (0.0, 1.0)) & np.isin(second, (0.0, 1.0))
    only_first = int(np.count_nonzero(used & (first > second)))
    only_second = int(np.count_nonzero(used & (second > first)))
    differing = only_first + only_second
    p = float(stats.binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, int(np.count_nonzero(used)), p)


def compare(
    pairs: Sequence[JudgedPair],
    scores: Mapping[str, Mapping[str, float]],
    *,
    edges: Sequence[float],
    thresholds: Sequence[float] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Several scorers on the same pairs, as plain values for a JSON file.

    Args:
        pairs: what people said.
        scores: for each scorer, by its name, the scores by image; higher is better.
        edges: of `margin_curve`; the curve is left out where only winners are known.
        thresholds: accuracy is also given over the pairs of a margin above each of these.
        seed: of the bootstrap over prompts.

    Returns:
        ``scorers``: by name, the fields of `Accuracy`, ``above`` (the same, by threshold; None where no pair is left)
        and ``margins`` (each with the fields of `Bin`); ``tests``: for every two scorers their names as ``first`` and
        ``second`` and the fields of `McNemar`.

    Raises:
        ValueError: people decided no pair, or a scorer lacks an image.
    """
    right = {name: correctness(pairs, *_sides(pairs, name, table)) for name, table in scores.items()}
    graded = all(pair.graded for pair in pairs)
    margins = np.array([pair.margin for pair in pairs])
    scorers: dict[str, Any] = {}
    for name, values in right.items():
        above = {}
        for threshold in thresholds:
            kept = [pair for pair in pairs if pair.margin > threshold]
            above[f"{threshold:g}"] = accuracy(kept, values[margins > threshold], seed=seed)._asdict() if kept else None
        curve = [entry._asdict() for entry in margin_curve(pairs, values, edges)] if graded else []
        scorers[name] = accuracy(pairs, values, seed=seed)._asdict() | {"above": above, "margins": curve}
    tests = [
        {"first": first, "second": second} | mcnemar(right[first], right[second])._asdict()
        for first, second in combinations(right, 2)
    ]
    return {"scorers": scorers, "tests": tests}


def _sides(pairs: Sequence[JudgedPair], name: str, table: Mapping[str, float]) -> tuple[list[float], list[float]]:
    missing = sorted({image for pair in pairs for image in pair[:2] if image not in table})
    if missing:
        raise ValueError(f"scores: {name} lacks {len(missing)} of the images, such as {', '.join(missing[:3])}")
    return [table[pair.image_a] for pair in pairs], [table[pair.image_b] for pair in pairs]
