import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from attriqa.evaluation import bootstrap, metrics
from attriqa.evaluation.metrics import FitWarning, LogisticFit, fit_logistic, intervals, pair_accuracy, report, wilson

Floats = NDArray[np.float64]
CORRELATIONS = (metrics.srocc, metrics.plcc, metrics.krocc)


def noisy(n: int, rho: float, seed: int = 0) -> tuple[Floats, Floats]:
    """Two normal samples of correlation rho."""
    rng = np.random.default_rng(seed)
    x, e = rng.normal(size=(2, n))
    return x, rho * x + math.sqrt(1 - rho * rho) * e


def planted(n: int, noise: float, seed: int = 0) -> tuple[Floats, Floats]:
    """Scores in [0,1] and opinions from 0.5 to 4 along a logistic with centre 0.6 and width 0.08."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=n)
    return x, 0.5 + 3.5 / (1 + np.exp(-(x - 0.6) / 0.08)) + noise * rng.normal(size=n)


# Values


def test_small_cases_by_hand() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]
    assert metrics.srocc(x, y) == pytest.approx(1 - 6 * 2 / (4 * 15))  # one swap: sum of squared rank differences is 2
    assert metrics.krocc(x, y) == pytest.approx((5 - 1) / 6)
    assert metrics.plcc(x, y) == pytest.approx(0.8)
    assert metrics.rmse(x, y) == pytest.approx(math.sqrt(2 / 4))
    # A tie: ranks 1.5, 1.5, 3 against 1, 2, 3; tau-b = 2 / sqrt(2 * 3)
    assert metrics.srocc([5, 5, 9], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)
    assert metrics.krocc([5, 5, 9], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))


def test_correlations_are_those_of_scipy_also_with_ties() -> None:
    x, y = noisy(300, 0.6)
    for a, b in ((x, y), (x.round(0), y.round(0))):
        assert metrics.srocc(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
        assert metrics.plcc(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
        assert metrics.krocc(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)


def test_a_reversed_metric_is_negative_everywhere() -> None:
    x, y = planted(200, 0.2)
    for correlation in CORRELATIONS:
        assert correlation(-x, y) == pytest.approx(-correlation(x, y))
        assert correlation(-x, y) < -0.7
    with pytest.warns(FitWarning, match="run against mos"):
        assert metrics.plcc_fitted(-x, y) == pytest.approx(metrics.plcc(-x, y))
    with pytest.warns(FitWarning, match="run against mos"):
        values = report(-x, y, resamples=50)
    assert all(values[name] < 0 and values[f"{name}_high"] < 0 for name in ("srocc", "plcc", "plcc_fitted", "krocc"))


def test_invariances() -> None:
    x, y = noisy(200, 0.7)
    for bend in (np.exp, lambda v: v**3, lambda v: 5 * v - 2):
        assert metrics.srocc(bend(x), y) == pytest.approx(metrics.srocc(x, y))
        assert metrics.krocc(x, bend(y)) == pytest.approx(metrics.krocc(x, y))
    assert metrics.plcc(3 * x + 7, 0.1 * y - 4) == pytest.approx(metrics.plcc(x, y))
    assert metrics.plcc(np.exp(x), y) != pytest.approx(metrics.plcc(x, y), abs=0.02)
    order = np.random.default_rng(1).permutation(200)
    for correlation in CORRELATIONS:
        assert correlation(x[order], y[order]) == pytest.approx(correlation(x, y))
        assert correlation(y, x) == pytest.approx(correlation(x, y))


# Errors


@pytest.mark.parametrize("function", [*CORRELATIONS, metrics.rmse, metrics.plcc_fitted, fit_logistic, report])
@pytest.mark.parametrize(
    ("predictions", "mos", "message"),
    [
        ([1, 2, 3], [1, 2, 3, 4], "predictions and mos: expected equal lengths, got 3 and 4"),
        ([1, 2], [1, 2], "at least 3 points, got 2"),
        ([], [], "at least 3 points, got 0"),
        ([1, math.nan, 3], [1, 2, 3], "predictions: expected finite numbers, got 1 NaN"),
        ([1, 2, 3], [math.inf, 2, -math.inf], "mos: expected finite numbers, got 2 NaN or infinite of 3"),
        ([[1, 2, 3]], [1, 2, 3], r"predictions: expected one dimension, got shape \(1, 3\)"),
        ([1, 2, 3], ["a", "b", "c"], "mos: expected numbers"),
    ],
)
def test_bad_input_is_named(function: Callable[..., object], predictions: list[float], mos: list[float], message: str):  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        function(predictions, mos)


@pytest.mark.parametrize("function", [*CORRELATIONS, metrics.plcc_fitted, fit_logistic, report])
def test_a_constant_is_named(function: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"predictions: all 4 are 0\.5"):
        function([0.5] * 4, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="mos: all 4 are 2"):
        function([1, 2, 3, 4], [2] * 4)


def test_rmse_of_constants_is_defined() -> None:
    assert metrics.rmse([2, 2, 2], [1, 1, 1]) == pytest.approx(1)


# Logistic fit


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e6, -3e6), (1e-5, 0.5)])
def test_a_planted_logistic_is_recovered_whatever_the_units(scale: float, shift: float) -> None:
    x, y = planted(400, 0.0)
    fit = fit_logistic(scale * x + shift, 25 * y - 100)
    assert fit.converged
    assert not fit.reason
    assert fit.top == pytest.approx(25 * 4 - 100, abs=0.02)
    assert fit.bottom == pytest.approx(25 * 0.5 - 100, abs=0.02)
    assert (fit.centre - shift) / scale == pytest.approx(0.6, rel=1e-3)
    assert fit.width / scale == pytest.approx(0.08, rel=1e-3)
    np.testing.assert_allclose(fit(scale * x + shift), 25 * y - 100, atol=0.01)
    assert metrics.plcc_fitted(x, y) == pytest.approx(1, abs=1e-6)
    assert metrics.plcc(x, y) < 0.97


def test_the_fit_is_the_least_squares_solution_of_scipy() -> None:
    def curve(x: Floats, top: float, bottom: float, centre: float, width: float) -> Floats:
        return np.asarray(bottom + (top - bottom) / (1 + np.exp(-(x - centre) / abs(width))))

    x, y = planted(300, 0.5)
    expected, _ = optimize.curve_fit(curve, x, y, p0=[y.max(), y.min(), x.mean(), x.std()])
    fit = fit_logistic(x, y)
    assert (fit.top, fit.bottom, fit.centre, fit.width) == pytest.approx(tuple(expected), rel=0.01)
    assert metrics.rmse(fit(x), y) == pytest.approx(metrics.rmse(curve(x, *expected), y), rel=1e-5)


@pytest.mark.parametrize("bend", [lambda x: 2 * x, np.sqrt, np.exp, lambda x: (x > 0.4).astype(float)])
def test_data_without_an_s_shape_still_fit_as_well_as_a_straight_line(bend: Callable[[Floats], Floats]) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(size=300)
    y = bend(x) + 0.03 * rng.normal(size=300)
    fit = fit_logistic(x, y)
    assert fit.converged, fit.reason
    line = stats.linregress(x, y)
    assert metrics.rmse(fit(x), y) < 1.001 * metrics.rmse(line.slope * x + line.intercept, y)


def test_a_fit_never_reorders() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2, 40))  # unrelated: the hardest to fit
        mapped = fit_logistic(x, y)(np.sort(x))
        assert np.all(np.diff(mapped) >= 0)


@pytest.mark.parametrize(
    ("n", "sign", "evaluations", "reason"),
    [
        (200, -1, 1000, "run against mos"),
        (200, 1, 1, "no convergence in 1 evaluations"),
        (4, 1, 1000, "at least 5 points, got 4"),
    ],
)
def test_a_failed_fit_says_why_and_gives_raw_predictions(n: int, sign: int, evaluations: int, reason: str) -> None:
    x, y = planted(n, 0.1)
    x = sign * x
    fit = fit_logistic(x, y, max_evaluations=evaluations)
    assert not fit.converged
    assert reason in fit.reason
    assert math.isnan(fit.top)
    np.testing.assert_array_equal(fit(x), x)
    values = report(x, y, fit=fit, resamples=20)  # given a failed fit, its giver knows: no second warning
    assert values["plcc_fitted"] == values["plcc"]
    assert values["rmse"] == metrics.rmse(x, y)


def test_a_failed_fit_is_never_silent() -> None:
    x, y = planted(4, 0.1)
    for function in (metrics.plcc_fitted, report):
        with pytest.warns(FitWarning, match="at least 5 points, got 4; raw predictions are used") as caught:
            function(x, y)
        assert len(caught) == 1
        assert caught[0].filename == __file__


# Pairs and proportions


def test_pair_accuracy_counts_ties_as_half() -> None:
    score_a, score_b = [0.9, 0.2, 0.5, 0.7], [0.1, 0.8, 0.5, 0.3]
    assert pair_accuracy(score_a, score_b, [3, 4, 9, 2], [1, 2, 1, 2]) == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert pair_accuracy(score_b, score_a, [1, 2, 1, 2], [3, 4, 9, 2]) == pytest.approx(0.5)
    assert pair_accuracy([2e-200], [1e-200], [2e-200], [1e-200]) == 1
    with pytest.raises(ValueError, match=r"equal lengths, at least 1, got \[1, 1, 1, 2\]"):
        pair_accuracy([1], [2], [1], [1, 2])
    with pytest.raises(ValueError, match="at least 1"):
        pair_accuracy([], [], [], [])
    with pytest.raises(ValueError, match="mos_b: expected finite"):
        pair_accuracy([1], [2], [1], [math.nan])


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (10, 10), (142, 200), (1, 1)])
def test_wilson_is_that_of_scipy(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_takes_halves_and_refuses_the_impossible() -> None:
    low, high = wilson(3.5, 7)
    assert low + high == pytest.approx(1)
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        wilson(0, 0)
    for successes in (-1, 8, math.nan):
        with pytest.raises(ValueError, match="successes: expected 0 to n = 7"):
            wilson(successes, 7)


# Intervals


@pytest.mark.parametrize("decimals", [8, 0])
def test_intervals_agree_with_a_bootstrap_by_scipy(decimals: int) -> None:
    x, y = noisy(120, 0.6)
    x, y = x.round(decimals), y.round(decimals)  # whole numbers: heavy ties
    ours = intervals(x, y, rng=np.random.default_rng(0), resamples=4000, fit=LogisticFit(reason="not needed"))
    references: dict[str, Callable[[Floats, Floats], float]] = {
        "srocc": metrics.srocc,
        "plcc": metrics.plcc,
        "krocc": metrics.krocc,
        "rmse": metrics.rmse,
    }
    for name, function in references.items():
        expected = stats.bootstrap(
            (x, y), function, paired=True, vectorized=False, n_resamples=2000, method="percentile", random_state=1
        ).confidence_interval
        assert ours[name] == pytest.approx((expected.low, expected.high), abs=0.02)


@pytest.mark.slow
def test_coverage_is_near_95_percent() -> None:
    rho = 0.6
    truth = {"srocc": 6 / math.pi * math.asin(rho / 2), "plcc": rho, "krocc": 2 / math.pi * math.asin(rho)}
    hits = dict.fromkeys(truth, 0)
    trials = 100
    for seed in range(trials):
        spans = intervals(*noisy(80, rho, seed), list(truth), rng=np.random.default_rng(seed), resamples=100)
        for name, value in truth.items():
            hits[name] += spans[name].low <= value <= spans[name].high
    for name, count in hits.items():
        assert 0.87 <= count / trials <= 0.99, name


def test_equal_seeds_give_equal_intervals_and_the_global_generator_is_left_alone() -> None:
    x, y = planted(60, 0.5)
    state = str(np.random.get_state())
    assert report(x, y, seed=3, resamples=50) == report(x, y, seed=3, resamples=50)
    assert report(x, y, seed=3, resamples=50) != report(x, y, seed=4, resamples=50)
    assert str(np.random.get_state()) == state


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = planted(60, 0.5)
    whole = report(x, y, resamples=50)
    monkeypatch.setattr(bootstrap, "_CHUNK", 60 * 7)
    assert report(x, y, resamples=50) == pytest.approx(whole)


def test_groups_are_drawn_whole() -> None:
    x, y = noisy(50, 0.5)
    repeated, labels = (np.repeat(x, 4), np.repeat(y, 4)), [f"prompt {i // 4}" for i in range(200)]
    single = intervals(x, y, ("srocc", "plcc", "krocc"), rng=np.random.default_rng(0))
    # Labels sort as text, so the same draw meets other groups: equal but for the noise of the bootstrap.
    grouped = intervals(*repeated, ("srocc", "plcc", "krocc"), rng=np.random.default_rng(0), groups=labels)
    naive = intervals(*repeated, ("srocc", "plcc", "krocc"), rng=np.random.default_rng(0))
    for name, span in single.items():
        assert grouped[name] == pytest.approx(span, abs=0.03)
        assert naive[name].high - naive[name].low < 0.6 * (span.high - span.low)
    with pytest.raises(ValueError, match="groups: expected 50 labels, one for each point, got 3"):
        intervals(x, y, rng=np.random.default_rng(0), groups=[1, 2, 3])
    with pytest.raises(ValueError, match="groups: expected at least 2 different"):
        intervals(x, y, rng=np.random.default_rng(0), groups=["one"] * 50)


def test_intervals_hold_the_logistic_fixed_and_lose_little_by_it() -> None:
    x, y = planted(150, 0.6)
    rng = np.random.default_rng(0)
    refitted = [metrics.plcc_fitted(x[i], y[i]) for i in rng.integers(0, 150, (300, 150))]
    span = intervals(x, y, ("plcc_fitted",), rng=rng, fit=fit_logistic(x, y))["plcc_fitted"]
    assert span == pytest.approx(np.quantile(refitted, [0.025, 0.975]), abs=0.01)


def test_interval_errors() -> None:
    x, y = noisy(30, 0.5)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"statistics: expected names of .* got \['acc'\]"):
        intervals(x, y, ("srocc", "acc"), rng=rng)
    with pytest.raises(ValueError, match="resamples: expected at least 2, got 1"):
        intervals(x, y, rng=rng, resamples=1)
    with pytest.raises(ValueError, match=r"a side is constant in \d+ of 100 resamples"):
        intervals([0, 0, 0, 0, 1], [0, 0, 0, 0, 1], ("plcc",), rng=rng, resamples=100, groups=[0, 0, 0, 0, 1])


def test_mean_interval() -> None:
    values = np.random.default_rng(0).normal(2, 1, size=400)
    low, high = metrics.mean_interval(values, rng=np.random.default_rng(1), resamples=2000)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    with pytest.raises(ValueError, match="values: expected at least 2, got 1"):
        metrics.mean_interval([1.0], rng=np.random.default_rng(0))


# The report


def test_report_has_exactly_the_promised_names() -> None:
    x, y = planted(80, 0.4)
    values = report(x, y, seed=1, resamples=200)
    names = {
        f"{name}{end}" for name in ("srocc", "plcc", "plcc_fitted", "krocc", "rmse") for end in ("", "_low", "_high")
    }
    assert set(values) == names | {"n"}
    assert all(type(value) is float for name, value in values.items() if name != "n")
    assert values["n"] == 80
    for name in ("srocc", "plcc", "plcc_fitted", "krocc", "rmse"):
        assert values[f"{name}_low"] < values[name] < values[f"{name}_high"]
    assert values["srocc"] == metrics.srocc(x, y)
    assert values["plcc_fitted"] == metrics.plcc_fitted(x, y) > values["plcc"]
    assert values["rmse"] == pytest.approx(0.4, abs=0.06)  # the planted noise, in units of mos, from scores in [0,1]


def test_report_takes_what_users_have() -> None:
    import torch

    x, y = planted(30, 0.4)
    expected = report(x, y, resamples=20)
    assert report(x.tolist(), tuple(y), resamples=20) == expected
    assert report(torch.from_numpy(x), y, resamples=20) == expected


def test_three_points_are_enough_for_a_report() -> None:
    with pytest.warns(FitWarning):
        values = report([1, 2, 3], [1, 2, 4], resamples=100)
    assert values["srocc"] == 1
    assert all(math.isfinite(value) for value in values.values())
