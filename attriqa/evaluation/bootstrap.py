"""Statistics of samples whose members come in groups: bootstrap intervals, win shares, sample sizes, rank agreement.

A group here is a prompt: its images depend on one another, so what is resampled is whole prompts.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

TAILS = (0.025, 0.975)  # every interval is of 95 %
_CHUNK = 1_000_000  # numbers drawn at a time: 8 MB


class Interval(NamedTuple):
    """A two-sided 95 % confidence interval."""

    low: float
    high: float


def group_sums(values: Floats, codes: Codes, groups: int) -> tuple[Floats, Floats]:
    """Sums and sizes of groups.

    Args:
        values: (n, M).
        codes: (n,) the group of each row, 0 to groups - 1.
        groups: how many there are, P.

    Returns:
        Sums (P, M) and sizes (P,); a group without rows has zeros.
    """
    sums: Floats = np.stack([np.bincount(codes, column, groups) for column in values.T], axis=1).astype(np.float64)
    return sums, np.bincount(codes, minlength=groups).astype(np.float64)


def draws(
    groups: int, *, seed: int | np.random.Generator, resamples: int, codes: Codes | None = None
) -> Iterator[Floats]:
    """Chunks of a bootstrap: how often each group is in a resample.

    Args:
        groups: how many there are, P.
        seed: of the draws, or where they come from.
        resamples: rows in all.
        codes: (n,) the group of each member, to get how often each member is in a resample.

    Yields:
        (R, P), or with ``codes`` (R, n).
    """
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // max(groups, 0 if codes is None else codes.size))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, groups, (size, groups)) + groups * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups)
        yield (counts if codes is None else counts[:, codes]).astype(np.float64)


def interval_of(resampled: Floats) -> Interval:
    """Percentile interval of a statistic's values (R,) over resamples."""
    return Interval(*np.quantile(resampled, TAILS).tolist())


def mean_intervals(sums: Floats, sizes: Floats, *, seed: int, resamples: int) -> list[Interval] | None:
    """Percentile bootstrap intervals of means over all members, groups resampled.

    Args:
        sums: (P, M) of each group.
        sizes: (P,) how many members each has, at least 1.
        seed: of the bootstrap.
        resamples: at least 2.

    Returns:
        M intervals; None for a single group, whose spread nobody knows.
    """
    if len(sizes) < 2:
        return None
    means = [(drawn @ sums) / (drawn @ sizes)[:, None] for drawn in draws(len(sizes), seed=seed, resamples=resamples)]
    return [interval_of(column) for column in np.concatenate(means).T]


def win_shares(a: Floats, b: Floats, a_codes: Codes, b_codes: Codes, groups: int) -> Floats:
    """Of each group, the share of its pairs (one of a, one of b) in which a is higher; ties count 1/2.

    Args:
        a: (n,) scores.
        b: (m,) scores.
        a_codes: (n,) the group of each, 0 to groups - 1; every group has members on both sides.
        b_codes: (m,) likewise.
        groups: how many there are, P.

    Returns:
        (P,) in [0, 1].
    """
    order = np.argsort(b_codes, kind="stable")
    begin = np.searchsorted(b_codes[order], a_codes)
    rivals = np.bincount(b_codes, minlength=groups)[a_codes]
    left = np.repeat(np.arange(a.size), rivals)
    offset = np.arange(left.size) - np.repeat(np.cumsum(rivals) - rivals, rivals)
    right = order[begin[left] + offset]
    wins = (1 + np.sign(a[left] - b[right])) / 2
    codes = a_codes[left]
    return np.asarray(np.bincount(codes, wins, groups) / np.bincount(codes, minlength=groups))


def superiority(a: Floats, b: Floats) -> float:
    """Share of all pairs, one of a (n,) and one of b (m,), in which a is higher, ties 1/2: U / (n m)."""
    ranks = stats.rankdata(np.concatenate([a, b]))
    return float((ranks[: a.size].mean() - (a.size + 1) / 2) / b.size)


def superiority_interval(rate: float, n_first: int, n_second: int) -> Interval:
    """Interval of `superiority` for two independent samples of independent members.

    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2", Statistics
    in Medicine 2006, method 5. Unlike the bootstrap it keeps a width where every member of a is above every one of b.

    Args:
        rate: in [0, 1].
        n_first: members of a.
        n_second: members of b.

    Raises:
        ValueError: the rate is not in [0, 1] or a sample is empty.
    """
    if not 0 <= rate <= 1 or min(n_first, n_second) < 1:
        raise ValueError(f"rate, n: expected a rate in [0, 1] and sizes of at least 1, got {rate}, {n_first, n_second}")
    z, stand_in = float(stats.norm.ppf(TAILS[1])), (n_first + n_second) / 2 - 1

    def too_far(truth: float, found: float) -> float:
        """Above 0 where ``found`` is more than z standard deviations, of that truth, above it."""
        shape = 1 + stand_in * ((1 - truth) / (2 - truth) + truth / (1 + truth))
        return found - truth - z * math.sqrt(truth * (1 - truth) * shape / (n_first * n_second))

    def lowest(found: float) -> float:
        # Not up to 1, where nothing varies and the distance is 0 again.
        return float(optimize.brentq(too_far, 0, min(found, 1 - 1e-9), args=(found,))) if found > 0 else 0.0

    return Interval(lowest(rate), 1 - lowest(1 - rate))  # the variance is the same at truth and 1 - truth


def images_needed(sd: float, difference: float, *, paired: bool, power: float = 0.8, significance: float = 0.05) -> int:
    """Smallest sample in which a two-sided t-test sees a difference of means with the wanted power.

    Args:
        sd: standard deviation: paired, of the differences; unpaired, the common one of both samples.
        difference: to be seen, not 0; its sign does not matter.
        paired: one sample of differences, or two independent samples.
        power: the wanted probability, in (significance, 1).
        significance: of the test, in (0, 1).

    Returns:
        Pairs, or unpaired the size of each sample; at least 2.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 < significance < power < 1 or not math.isfinite(sd + difference) or sd < 0 or difference == 0:
        given = f"sd {sd}, difference {difference}, power {power}, significance {significance}"
        raise ValueError(f"expected sd >= 0, difference other than 0, 0 < significance < power < 1, got {given}")
    if sd == 0:
        return 2
    effect, sides = abs(difference) / sd, 1 if paired else 2

    def seen(n: int) -> float:
        freedom, shift = sides * (n - 1), effect * math.sqrt(n / sides)
        return float(stats.nct.sf(stats.t.isf(significance / 2, freedom), freedom, shift))

    z = float(stats.norm.isf(significance / 2) + stats.norm.ppf(power))
    # The normal distribution asks for a few less than that of t; from thousands on the two are one.
    n = max(2, math.ceil(sides * (z / effect) ** 2))
    while n < 10_000 and seen(n) < power:
        n += 1
    return n


def kendall_tau(x: Floats, y: Floats) -> Floats:
    """Kendall's tau-b of each row of x with that of y, both (R, G): (R,); NaN where a side is constant."""
    i, j = np.triu_indices(x.shape[1], 1)
    u, v = np.sign(x[:, i] - x[:, j]), np.sign(y[:, i] - y[:, j])
    scale = np.sqrt((u * u).sum(axis=1) * (v * v).sum(axis=1))
    return np.asarray(np.divide((u * v).sum(axis=1), scale, out=np.full(len(x), np.nan), where=scale > 0))


class FoldMedian(NamedTuple):
    """The median of a statistic over folds, and its 95 % bootstrap interval over folds."""

    median: float
    low: float
    high: float


def median_of_folds(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> FoldMedian:
    """Median over folds; the interval draws folds with replacement and says how far the choice of splits moves it.

    The folds share images, so it is no interval for new images. The median of one fold has the width 0.

    Raises:
        ValueError: ``values`` is empty or holds something that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"values: expected one or more finite numbers, got {list(values)}")
    drawn = np.random.default_rng(seed).integers(0, array.size, (resamples, array.size))
    return FoldMedian(float(np.median(array)), *interval_of(np.median(array[drawn], axis=1)))


def fold_spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """`median_of_folds` as ``NAME``, ``NAME_low`` and ``NAME_high`` of a table's row."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), median_of_folds(values), strict=True))
