"""How well predictions agree with mean opinion scores: correlations, the logistic fit, 2AFC accuracy, intervals.

Both sides are higher-is-better. A correlation keeps its sign: a metric that runs against people shows as negative.
Definitions follow the practice of the Video Quality Experts Group (VQEG); scipy does the statistics.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from attriqa.evaluation.bootstrap import TAILS, Codes, Floats, Interval, draws, interval_of

Labels = Sequence[object] | NDArray[np.generic]

STATISTICS = ("srocc", "plcc", "plcc_fitted", "krocc", "rmse")


class FitWarning(UserWarning):
    """The logistic fit failed, and raw predictions stand in for the mapped ones."""


def _vector(values: ArrayLike, name: str) -> Floats:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, got {error}") from error
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise ValueError(f"{name}: expected finite numbers, got {bad} NaN or infinite of {array.size}")
    return array


def _pair(predictions: ArrayLike, mos: ArrayLike, *, varying: bool = True) -> tuple[Floats, Floats]:
    x, y = _vector(predictions, "predictions"), _vector(mos, "mos")
    if x.size != y.size:
        raise ValueError(f"predictions and mos: expected equal lengths, got {x.size} and {y.size}")
    if x.size < 3:
        raise ValueError(f"predictions and mos: expected at least 3 points, got {x.size}")
    for array, name in ((x, "predictions"), (y, "mos")):
        if varying and np.all(array == array[0]):
            raise ValueError(f"{name}: all {array.size} are {array[0]:g}; a correlation with a constant is undefined")
    return x, y


def srocc(predictions: ArrayLike, mos: ArrayLike) -> float:
    """Spearman's rank correlation, in [-1, 1]; ties get their mean rank.

    Args:
        predictions: (n,) scores, n >= 3, finite, not all equal.
        mos: (n,) opinions, likewise.

    Raises:
        ValueError: naming the argument that is of another length, too short, not finite or constant.
    """
    x, y = _pair(predictions, mos)
    return float(stats.spearmanr(x, y).statistic)


def plcc(predictions: ArrayLike, mos: ArrayLike) -> float:
    """Pearson's linear correlation of the raw values, in [-1, 1]. Arguments and errors as `srocc`."""
    x, y = _pair(predictions, mos)
    return float(stats.pearsonr(x, y).statistic)


def krocc(predictions: ArrayLike, mos: ArrayLike) -> float:
    """Kendall's tau-b, in [-1, 1]. Arguments and errors as `srocc`."""
    x, y = _pair(predictions, mos)
    return float(stats.kendalltau(x, y).statistic)


def rmse(predictions: ArrayLike, mos: ArrayLike) -> float:
    """Root mean square difference, in the units of ``mos``; constants are allowed, else as `srocc`.

    Nothing is mapped here: give ``fit_logistic(predictions, mos)(predictions)`` for the usual figure.
    """
    x, y = _pair(predictions, mos, varying=False)
    return float(np.sqrt(np.mean((x - y) ** 2)))


@dataclass(frozen=True)
class LogisticFit:
    """``f(x) = bottom + (top - bottom) / (1 + exp(-(x - centre) / width))``, rising: top > bottom, width > 0.

    ``top`` and ``bottom`` are in units of mos, ``centre`` and ``width`` in those of the predictions. In a fit that
    failed all are NaN, and ``reason`` says why.
    """

    top: float = math.nan
    bottom: float = math.nan
    centre: float = math.nan
    width: float = math.nan
    reason: str = ""

    @property
    def converged(self) -> bool:
        """Whether the curve may be used."""
        return not self.reason

    def __call__(self, predictions: ArrayLike) -> Floats:
        """Predictions (n,) mapped to mos units; given back as they are if the fit failed."""
        x = _vector(predictions, "predictions")
        if not self.converged:
            return x
        return np.asarray(self.bottom + (self.top - self.bottom) * special.expit((x - self.centre) / self.width))


def fit_logistic(predictions: ArrayLike, mos: ArrayLike, *, max_evaluations: int = 1000) -> LogisticFit:
    """Least-squares 4-parameter logistic from predictions to mos, rising.

    For a given centre and width the best asymptotes are a linear regression, so only those two are searched (variable
    projection): all four at once crawl along a ridge when the data are nearly straight. Both sides are standardised, so
    no scale changes the result. The centre starts at mean x, within 5 std x of it; the width starts at the published
    std x and at a quarter of it, within 0.1 to 10 std x. A falling curve is refused: it would turn a negative
    correlation into a positive one. A failed fit is no exception: its ``converged`` is false.

    Arguments and errors as `srocc`; ``max_evaluations`` of the curve are allowed per start.
    """
    x, y = _pair(predictions, mos)
    if x.size < 5:
        return LogisticFit(reason=f"4 parameters need at least 5 points, got {x.size}")
    x_mean, x_std, y_mean, y_std = (float(v) for v in (x.mean(), x.std(), y.mean(), y.std()))
    z, target = (x - x_mean) / x_std, (y - y_mean) / y_std

    def rise(p: Floats) -> tuple[float, float, Floats]:
        """Height of the best rising curve of centre p[0] and log width p[1], its sigmoid's mean, and its values."""
        sigmoid = special.expit((z - p[0]) * np.exp(-p[1]))
        mean = float(sigmoid.mean())
        spread = float(np.sum((sigmoid - mean) ** 2))
        height = max(0.0, float(np.sum((sigmoid - mean) * target)) / spread) if spread > 0 else 0.0
        return height, mean, height * (sigmoid - mean)

    def residuals(p: Floats) -> Floats:
        return rise(p)[2] - target

    bounds = ([-5.0, math.log(0.1)], [5.0, math.log(10.0)])
    solutions = [
        optimize.least_squares(residuals, start, bounds=bounds, ftol=1e-6, max_nfev=max_evaluations)
        for start in ([0.0, 0.0], [0.0, math.log(0.25)])
    ]
    best = min(solutions, key=lambda solution: (not solution.success, float(solution.cost)))
    if not best.success:
        return LogisticFit(reason=f"no convergence in {max_evaluations} evaluations")
    height, mean, values = rise(best.x)
    if np.ptp(values) < 1e-9:
        return LogisticFit(
            reason="no rising curve beats a constant: predictions run against mos, or tell nothing of it"
        )
    bottom = y_mean - y_std * height * mean
    centre, log_width = (float(v) for v in best.x)
    return LogisticFit(bottom + y_std * height, bottom, x_mean + x_std * centre, x_std * math.exp(log_width))


def _announced(x: Floats, y: Floats) -> LogisticFit:
    """Fit for a caller who will not see the fit: failure is a warning."""
    fit = fit_logistic(x, y)
    if not fit.converged:
        warnings.warn(f"logistic fit: {fit.reason}; raw predictions are used", FitWarning, stacklevel=3)
    return fit


def plcc_fitted(predictions: ArrayLike, mos: ArrayLike) -> float:
    """`plcc` after the map of `fit_logistic`; a map that fails gives a `FitWarning` and the raw PLCC."""
    x, y = _pair(predictions, mos)
    return plcc(_announced(x, y)(x), y)


def pair_accuracy(score_a: ArrayLike, score_b: ArrayLike, mos_a: ArrayLike, mos_b: ArrayLike) -> float:
    """Share of pairs, in [0, 1], that the scores order as people do (2AFC); a tie on either side is 1/2.

    Args:
        score_a: (n,) predictions for the first image of each pair, n >= 1.
        score_b: (n,) for the second.
        mos_a: (n,) opinions (mos, votes) of the first.
        mos_b: (n,) of the second.
    """
    named = {"score_a": score_a, "score_b": score_b, "mos_a": mos_a, "mos_b": mos_b}
    a, b, u, v = (_vector(values, name) for name, values in named.items())
    sizes = [array.size for array in (a, b, u, v)]
    if len(set(sizes)) > 1 or sizes[0] == 0:
        raise ValueError(f"score_a, score_b, mos_a, mos_b: expected equal lengths, at least 1, got {sizes}")
    # Signs, not the product of differences: that underflows to 0, a false tie, when both are tiny.
    return float(np.mean((1 + np.sign(a - b) * np.sign(u - v)) / 2))


def wilson(successes: float, n: int) -> Interval:
    """Wilson's 95 % score interval (1927) of a proportion; ``successes`` in [0, n] may hold halves, n >= 1."""
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes: expected 0 to n = {n}, got {successes}")
    z = float(stats.norm.ppf(TAILS[1]))
    share, spread = successes / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def intervals(
    predictions: ArrayLike,
    mos: ArrayLike,
    statistics: Sequence[str] = STATISTICS,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    groups: Labels | None = None,
    fit: LogisticFit | None = None,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals; (prediction, mos) pairs are drawn together, with replacement.

    A resample is held as how often each point was drawn: one sort then ranks all resamples, and whole groups can be
    drawn, neither of which ``scipy.stats.bootstrap`` offers. 3,000 points, 1,000 resamples: about a second. The
    logistic is not fitted again to each resample: intervals of ``plcc_fitted`` and ``rmse`` hold for the map at hand.
    Resamples with a constant side have no correlation and are left out.

    Args:
        predictions: (n,) as `srocc`.
        mos: (n,) as `srocc`.
        statistics: which of `STATISTICS`; ``rmse`` is of mapped predictions.
        rng: the source of randomness; equal states give equal intervals.
        resamples: at least 2; 1,000 or more for a 95 % interval.
        groups: (n,) labels, to draw whole groups: points of one prompt or one reference depend on each other.
        fit: the logistic map, if made already; otherwise as in `plcc_fitted`.

    Raises:
        ValueError: bad arguments, or more than half of the resamples with a constant side.
    """
    x, y = _pair(predictions, mos)
    unknown = [name for name in statistics if name not in STATISTICS]
    if unknown:
        raise ValueError(f"statistics: expected names of {STATISTICS}, got {unknown}")
    mapped = x
    if {"plcc_fitted", "rmse"} & set(statistics):
        mapped = (_announced(x, y) if fit is None else fit)(x)
    columns = {"plcc": x, "krocc": x, "plcc_fitted": mapped, "rmse": mapped}
    rankers = [_ranker(side) for side in (x, y, mapped)]
    values: dict[str, list[Floats]] = {name: [] for name in statistics}
    defined = 0
    codes = _codes(x.size, resamples, groups)
    for counts in draws(int(codes.max()) + 1, seed=rng, resamples=resamples, codes=codes):
        (x_ranks, x_varies), (y_ranks, y_varies), (_, mapped_varies) = (rank(counts) for rank in rankers)
        keep = x_varies & y_varies & mapped_varies
        defined += int(keep.sum())
        for name in statistics:
            sides = (x_ranks[keep], y_ranks[keep]) if name == "srocc" else (columns[name], y)
            values[name].append(_resampled(name, counts[keep], *sides))
    if 2 * defined < resamples:
        raise ValueError(f"predictions, mos: a side is constant in {resamples - defined} of {resamples} resamples")
    return {name: interval_of(np.concatenate(parts)) for name, parts in values.items()}


def _resampled(name: str, counts: Floats, a: Floats, b: Floats) -> Floats:
    """One statistic of a and b, each (n,) or (R, n), for each resample: counts (R, n) -> (R,)."""
    if name == "krocc":  # scipy's n log n, one by one, beats the n^2 of a matrix product from n = 1,000 on
        drawn = counts.astype(np.int64)
        return np.array([stats.kendalltau(np.repeat(a, c), np.repeat(b, c)).statistic for c in drawn])
    if name == "rmse":
        return np.asarray(np.sqrt(counts @ (a - b) ** 2 / counts.sum(axis=1)))
    return _weighted_pearson(counts, a, b)


def _weighted_pearson(counts: Floats, a: Floats, b: Floats) -> Floats:
    """Pearson's correlation of a and b, each (n,) or (R, n), under weights (R, n) -> (R,)."""
    total = counts.sum(axis=1, keepdims=True)
    a = a - (counts * a).sum(axis=1, keepdims=True) / total
    b = b - (counts * b).sum(axis=1, keepdims=True) / total
    weighted = counts * a
    covariance = (weighted * b).sum(axis=1)
    return np.asarray(covariance / np.sqrt((weighted * a).sum(axis=1) * (counts * b * b).sum(axis=1)))


def _ranker(values: Floats) -> Callable[[Floats], tuple[Floats, NDArray[np.bool_]]]:
    """Sort ``values`` (n,) once; the result maps counts (R, n) to mean ranks (R, n) and which resamples vary (R,)."""
    order = np.argsort(values, kind="stable")
    steps = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])  # where each distinct value begins
    place = np.empty(values.size, dtype=np.int64)
    place[order] = np.repeat(np.arange(steps.size), np.diff(np.r_[steps, values.size]))

    def ranks(counts: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        drawn = np.add.reduceat(counts[:, order], steps, axis=1)  # (R, distinct values)
        mean_rank = np.cumsum(drawn, axis=1) - (drawn - 1) / 2
        return mean_rank[:, place], np.count_nonzero(drawn, axis=1) > 1

    return ranks


def _codes(n: int, resamples: int, groups: Labels | None = None) -> Codes:
    """The group of each point (n,), every point its own without ``groups``; or a refusal of what cannot be drawn."""
    if resamples < 2:
        raise ValueError(f"resamples: expected at least 2, got {resamples}")
    if groups is not None and len(groups) != n:
        raise ValueError(f"groups: expected {n} labels, one for each point, got {len(groups)}")
    codes = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if codes.max() < 1:
        raise ValueError("groups: expected at least 2 different ones, got 1")
    return codes


def mean_interval(values: ArrayLike, *, rng: np.random.Generator, resamples: int = 1000) -> Interval:
    """Percentile bootstrap interval of a mean, such as of the SROCC within each prompt; values (n,), n >= 2."""
    v = _vector(values, "values")
    if v.size < 2:
        raise ValueError(f"values: expected at least 2, got {v.size}")
    drawn = draws(_codes(v.size, resamples).size, seed=rng, resamples=resamples)
    return interval_of(np.concatenate([counts @ v / v.size for counts in drawn]))


def report(
    predictions: ArrayLike, mos: ArrayLike, *, seed: int = 0, resamples: int = 1000, fit: LogisticFit | None = None
) -> dict[str, float]:
    """What a result table needs: ``srocc plcc plcc_fitted krocc rmse``, each also ``_low`` and ``_high``, and ``n``.

    Values are of all points, with 95 % `intervals` from ``resamples`` draws seeded by ``seed``. ``rmse`` is of mapped
    predictions, in units of mos; after a fit that failed, it and ``plcc_fitted`` are of raw ones. ``fit`` is the map,
    if made already; without it, one that fails gives a `FitWarning`. Other arguments and errors as `srocc`.
    """
    x, y = _pair(predictions, mos)
    fit = _announced(x, y) if fit is None else fit
    mapped = fit(x)
    values = (srocc(x, y), plcc(x, y), plcc(mapped, y), krocc(x, y), rmse(mapped, y))
    spans = intervals(x, y, rng=np.random.default_rng(seed), resamples=resamples, fit=fit)
    result: dict[str, float] = {}
    for name, value in zip(STATISTICS, values, strict=True):
        result |= {name: value, f"{name}_low": spans[name].low, f"{name}_high": spans[name].high}
    return result | {"n": x.size}
