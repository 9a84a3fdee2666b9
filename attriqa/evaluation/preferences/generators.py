"""Image generators, or checkpoints of one, compared by what a scorer says of their images.

Everything is higher-is-better but the strengths of distortions. Images of one prompt depend on one another, within a
generator and between two, so every interval is over prompts: they are resampled, or counted, and images are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from attriqa.attributes import ATTRIBUTES
from attriqa.evaluation import metrics
from attriqa.evaluation.bootstrap import (
    Codes,
    Floats,
    draws,
    group_sums,
    images_needed,
    interval_of,
    kendall_tau,
    mean_intervals,
    superiority,
    superiority_interval,
    win_shares,
)

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of each distribution."""
BINS = 25
"""Equal bins over [0, 1] of each histogram."""


@dataclass(frozen=True, eq=False)
class Generator:
    """One generator's scored images.

    Attributes:
        name: no other generator of a comparison has it.
        images: n names or paths; each once.
        prompts: n; images of one prompt are compared with one another.
        values: (n, M) in [0, 1]: the score and what else the scorer tells, as a comparison's ``names`` list it.
        opinions: (n,) mean opinion scores, higher is better; None where people were not asked.

    Raises:
        ValueError: the lengths differ, an image comes twice, there is none, or a value is not in its range.
    """

    name: str
    images: Sequence[str]
    prompts: Sequence[str]
    values: Floats
    opinions: Floats | None = None

    def __post_init__(self) -> None:
        """Check."""
        n = len(self.images)
        sizes = [n, len(self.prompts), len(self.values), n if self.opinions is None else len(self.opinions)]
        if n == 0 or len(set(sizes)) > 1 or self.values.ndim != 2:
            wanted = "as many images, prompts, values and opinions, at least 1 of each"
            raise ValueError(f"{self.name}: expected {wanted}, got {sizes}")
        if len(set(self.images)) < n:
            raise ValueError(f"{self.name}: expected each image once, got {n - len(set(self.images))} again")
        if not ((self.values >= 0) & (self.values <= 1)).all():  # NaN fails this too
            raise ValueError(f"{self.name}: expected values in [0, 1], got {self.values.min()} to {self.values.max()}")
        if self.opinions is not None and not np.isfinite(self.opinions).all():
            raise ValueError(f"{self.name}: expected finite opinions, got NaN or infinite")


class Summary(NamedTuple):
    """The distribution of one number over a generator's images.

    Attributes:
        mean: over images.
        low: lower end of the 95 % bootstrap interval of the mean, prompts resampled; None for a single prompt.
        high: its upper end.
        sd: standard deviation over images.
        quantiles: at `QUANTILES`.
        histogram: counts in `BINS` equal bins over [0, 1].
    """

    mean: float
    low: float | None
    high: float | None
    sd: float
    quantiles: list[float]
    histogram: list[int]


class Duel(NamedTuple):
    """Two generators against each other, by score.

    Paired, each shared prompt counts once: by the share of its pairs of images that the first generator wins, ties
    counting 1/2. Wilson's interval is then of prompts; shares within (0, 1) make it too wide, never too narrow.
    Unpaired, where no prompt is shared, ``rate`` is the chance that an image of the first scores above one of the
    second (`attriqa.evaluation.bootstrap.superiority`), its interval takes images as independent.

    Attributes:
        first: name.
        second: name.
        paired: whether they share prompts.
        n: shared prompts; unpaired, the images of both.
        rate: how often the first wins, in [0, 1].
        rate_low: lower end of its 95 % interval.
        rate_high: its upper end.
        difference: mean score of the first less that of the second; paired, mean over prompts of their differences.
        difference_low: lower end of its 95 % bootstrap interval over prompts; None for a single prompt.
        difference_high: its upper end.
        sd: paired, of the differences over prompts; unpaired, the root mean square of both generators' own.
        needed: prompts, or unpaired images of each, at which a true difference of this size is seen with 80 % power.
    """

    first: str
    second: str
    paired: bool
    n: int
    rate: float
    rate_low: float
    rate_high: float
    difference: float
    difference_low: float | None
    difference_high: float | None
    sd: float
    needed: int | None


class PromptChange(NamedTuple):
    """One prompt's mean score under two generators, and the image of each whose score is nearest to that mean.

    Attributes:
        prompt: the prompt.
        before: mean score of its images by the one.
        after: by the other.
        image_before: of the one.
        image_after: of the other.
        most: the attribute or distortion that changed for the worse most, or for the better where the score rose;
            None where none did.
        most_change: by how much; above 0 for a distortion that grew.
    """

    prompt: str
    before: float
    after: float
    image_before: str
    image_after: str
    most: str | None
    most_change: float | None


class Change(NamedTuple):
    """What changed in the mean of one number over shared prompts; the interval is a bootstrap's, as in `Summary`."""

    before: float
    after: float
    change: float
    change_low: float | None
    change_high: float | None


class OrderAgreement(NamedTuple):
    """Whether generators come in the same order by mean score and by mean opinion.

    Attributes:
        tau: Kendall's tau-b over generators.
        tau_low: lower end of its 95 % bootstrap interval, prompts resampled for all generators at once; None where
            half of the resamples leave a generator without images.
        tau_high: its upper end.
        p: two-sided probability of a tau so far from 0, were the two orders unrelated.
        n: generators.
        prompts: how many were resampled.
        discordant: the pairs of generators that the scores put in the other order, the better liked one first.
    """

    tau: float
    tau_low: float | None
    tau_high: float | None
    p: float
    n: int
    prompts: int
    discordant: list[tuple[str, str]]


def distributions(
    generator: Generator, names: Sequence[str], *, seed: int = 0, resamples: int = 1000
) -> dict[str, Summary]:
    """The distribution of each of ``names``, the columns of a generator's values, over its images."""
    codes = np.unique(np.asarray(generator.prompts), return_inverse=True)[1]
    sums = group_sums(generator.values, codes, int(codes.max()) + 1)
    spans = mean_intervals(*sums, seed=seed, resamples=resamples)
    found = {}
    for index, name in enumerate(names):
        column = generator.values[:, index]
        sd = float(column.std(ddof=1)) if column.size > 1 else 0.0
        low, high = (None, None) if spans is None else spans[index]
        counts = np.bincount(np.minimum((column * BINS).astype(np.int64), BINS - 1), minlength=BINS)
        found[name] = Summary(
            float(column.mean()), low, high, sd, np.quantile(column, QUANTILES).tolist(), counts.tolist()
        )
    return found


class _Shared(NamedTuple):
    """The images of two generators whose prompts both have: where they are, and the code of each one's prompt."""

    prompts: list[str]
    places: tuple[Codes, Codes]
    codes: tuple[Codes, Codes]
    means: tuple[Floats, Floats]  # (P, M) each, of each prompt


def _shared(first: Generator, second: Generator) -> _Shared:
    theirs = set(second.prompts)
    prompts = list(dict.fromkeys(prompt for prompt in first.prompts if prompt in theirs))
    code = {prompt: number for number, prompt in enumerate(prompts)}

    def side(generator: Generator) -> tuple[Codes, Codes, Floats]:
        found = [(place, code[prompt]) for place, prompt in enumerate(generator.prompts) if prompt in code]
        places, codes = np.array(found, dtype=np.int64).reshape(-1, 2).T
        sums, sizes = group_sums(generator.values[places], codes, len(prompts))
        return places, codes, sums / sizes[:, None]

    a, b = side(first), side(second)
    return _Shared(prompts, (a[0], b[0]), (a[1], b[1]), (a[2], b[2]))


def duel(first: Generator, second: Generator, *, seed: int = 0, resamples: int = 1000) -> Duel:
    """Compare two generators by score, the first column of their values; on shared prompts if there are any."""
    shared = _shared(first, second)
    if not shared.prompts:
        return _unpaired(first, second, seed, resamples)
    count = len(shared.prompts)
    scores = [generator.values[places, 0] for generator, places in zip((first, second), shared.places, strict=True)]
    shares = win_shares(scores[0], scores[1], *shared.codes, count)
    differences = shared.means[0][:, 0] - shared.means[1][:, 0]
    spans = mean_intervals(differences[:, None], np.ones(count), seed=seed, resamples=resamples)
    low, high = (None, None) if spans is None else spans[0]
    sd, mean = float(differences.std(ddof=1)) if count > 1 else 0.0, float(differences.mean())
    needed = images_needed(sd, mean, paired=True) if mean and count > 1 else None
    rate = float(shares.mean()), *metrics.wilson(float(shares.sum()), count)
    return Duel(first.name, second.name, True, count, *rate, mean, low, high, sd, needed)


def _unpaired(first: Generator, second: Generator, seed: int, resamples: int) -> Duel:
    a, b = first.values[:, 0], second.values[:, 0]
    mean, several = float(a.mean() - b.mean()), min(a.size, b.size) > 1
    sd = float(np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)) if several else 0.0
    low, high = None, None
    if several:
        means = [
            np.concatenate([drawn @ side / side.size for drawn in draws(side.size, seed=seeds, resamples=resamples)])
            for side, seeds in ((a, seed), (b, seed + 1))
        ]
        low, high = interval_of(means[0] - means[1])
    rate = superiority(a, b)
    rates = rate, *superiority_interval(rate, a.size, b.size)
    needed = images_needed(sd, mean, paired=False) if mean and several else None
    return Duel(first.name, second.name, False, a.size + b.size, *rates, mean, low, high, sd, needed)


def prompt_changes(before: Generator, after: Generator, names: Sequence[str]) -> list[PromptChange]:
    """What became of each prompt that two generators share, the one whose score fell most first.

    Args:
        before: the generator to compare with.
        after: the other one.
        names: of the columns of values, the score first; those that are no attribute are distortions.
    """
    shared = _shared(before, after)
    old, new = shared.means
    merits = np.array([1.0 if name in ("score", *ATTRIBUTES) else -1.0 for name in names])
    gains = (new - old) * merits
    sides = zip((before, after), shared.places, shared.codes, shared.means, strict=True)
    images = [_nearest(generator, places, codes, means) for generator, places, codes, means in sides]
    found = []
    for code in np.argsort(gains[:, 0], kind="stable"):
        same_way = gains[code, 1:] * (1 if gains[code, 0] >= 0 else -1)
        most = 1 + int(np.argmax(same_way)) if (same_way > 0).any() else None
        told = (None, None) if most is None else (names[most], float(new[code, most] - old[code, most]))
        scores = float(old[code, 0]), float(new[code, 0])
        found.append(PromptChange(shared.prompts[code], *scores, images[0][code], images[1][code], *told))
    return found


def _nearest(generator: Generator, places: Codes, codes: Codes, means: Floats) -> list[str]:
    """Of each prompt, the image whose score is nearest to the prompt's mean."""
    gap = np.abs(generator.values[places, 0] - means[codes, 0])
    order = np.lexsort((gap, codes))
    firsts = order[np.searchsorted(codes[order], np.arange(len(means)))]
    return [generator.images[place] for place in places[firsts]]


def mean_changes(
    before: Generator, after: Generator, names: Sequence[str], *, seed: int = 0, resamples: int = 1000
) -> dict[str, Change]:
    """What changed in the mean of each of ``names`` over the prompts that two generators share; empty without one."""
    shared = _shared(before, after)
    if not shared.prompts:
        return {}
    old, new = shared.means
    spans = mean_intervals(new - old, np.ones(len(old)), seed=seed, resamples=resamples)
    found = {}
    for index, name in enumerate(names):
        a, b = float(old[:, index].mean()), float(new[:, index].mean())
        low, high = (None, None) if spans is None else spans[index]
        found[name] = Change(a, b, b - a, low, high)
    return found


def order_agreement(generators: Sequence[Generator], *, seed: int = 0, resamples: int = 1000) -> OrderAgreement:
    """Kendall's tau between the order of generators by mean score and that by mean opinion.

    Raises:
        ValueError: there are fewer than 3, one has no opinions, or all means of a side are equal.
    """
    if len(generators) < 3 or any(generator.opinions is None for generator in generators):
        raise ValueError(f"generators: expected at least 3, all with opinions, got {len(generators)}")
    every = list(dict.fromkeys(prompt for generator in generators for prompt in generator.prompts))
    code = {prompt: number for number, prompt in enumerate(every)}
    parts = []
    for generator in generators:
        both = np.stack([generator.values[:, 0], np.asarray(generator.opinions)], axis=1)
        parts.append(group_sums(both, np.array([code[prompt] for prompt in generator.prompts]), len(every)))
    sums, sizes = np.stack([part[0] for part in parts]), np.stack([part[1] for part in parts])  # (G, P, 2), (G, P)
    means = sums.sum(axis=1) / sizes.sum(axis=1)[:, None]  # (G, 2): score, opinion
    tau = float(kendall_tau(means[None, :, 0], means[None, :, 1])[0])
    if np.isnan(tau):
        raise ValueError("generators: expected different mean scores and mean opinions, got all equal")
    taus = []
    for drawn in draws(len(every), seed=seed, resamples=resamples):
        counts = drawn @ sizes.T  # (R, G)
        kept = (counts > 0).all(axis=1)
        scores, opinions = ((drawn[kept] @ sums[:, :, side].T) / counts[kept] for side in (0, 1))
        taus.append(kendall_tau(scores, opinions))
    values = np.concatenate(taus)
    values = values[~np.isnan(values)]
    low, high = interval_of(values) if len(every) > 1 and 2 * values.size > resamples else (None, None)
    ranked = sorted(range(len(generators)), key=lambda index: -means[index, 1])
    discordant = [
        (generators[i].name, generators[j].name)
        for i, j in combinations(ranked, 2)
        if np.sign(means[i, 0] - means[j, 0]) * np.sign(means[i, 1] - means[j, 1]) < 0
    ]
    p = float(stats.kendalltau(means[:, 0], means[:, 1]).pvalue)
    return OrderAgreement(tau, low, high, p, len(generators), len(every), discordant)
