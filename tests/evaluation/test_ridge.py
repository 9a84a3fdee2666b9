import numpy as np
import pytest
from numpy.typing import NDArray

from attriqa.evaluation import ridge


def examples(n: int, d: int, noise: float, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A line through features of very different sizes, and noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)) * np.geomspace(0.01, 100, d) + 7
    return features, features @ (rng.normal(size=d) / np.geomspace(0.01, 100, d)) + 3 + noise * rng.normal(size=n)


def test_a_line_is_found_again() -> None:
    features, targets = examples(60, 5, 0.0)
    found = ridge.fit(features, targets)
    assert found.penalty == min(ridge.PENALTIES)
    np.testing.assert_allclose(found(features), targets, atol=2e-3)


def test_weights_solve_the_penalised_equations() -> None:
    features, targets = examples(40, 6, 2.0)
    found = ridge.fit(features, targets)
    standard = (features - features.mean(0)) / features.std(0)
    wanted = np.linalg.solve(standard.T @ standard + found.penalty * np.eye(6), standard.T @ (targets - targets.mean()))
    np.testing.assert_allclose(found.weights, wanted, rtol=1e-8)
    assert found(features).mean() == pytest.approx(targets.mean())


def test_the_penalty_is_the_best_of_leaving_one_out() -> None:
    """In closed form as by fitting n times; the fits see the scale of all, as the closed form does."""
    features, targets = examples(25, 20, 4.0, seed=3)
    standard = (features - features.mean(0)) / features.std(0)
    errors = []
    for penalty in ridge.PENALTIES:
        error = 0.0
        for out in range(len(targets)):
            kept = np.arange(len(targets)) != out
            x, y = standard[kept], targets[kept]
            middle = x.mean(0)
            weights = np.linalg.solve((x - middle).T @ (x - middle) + penalty * np.eye(20), (x - middle).T @ y)
            error += (targets[out] - y.mean() - (standard[out] - middle) @ weights) ** 2
        errors.append(error)
    best = int(np.argmin(errors))
    assert 0 < best < len(errors) - 1, "the test needs a penalty that is worth something"
    assert ridge.fit(features, targets).penalty == ridge.PENALTIES[best]


def test_more_features_than_examples_and_one_that_stands_still() -> None:
    features, targets = examples(20, 50, 0.5)
    features[:, 4] = 1e6
    found = ridge.fit(features, targets)
    assert np.isfinite(found(features)).all()
    moved = features.copy()
    moved[:, 4] += 5
    np.testing.assert_array_equal(found(moved), found(features))


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        (np.zeros((4, 2)), np.zeros(3), r"expected \(N, D\) and \(N,\) with N >= 3, got \(4, 2\) and \(3,\)"),
        (np.zeros((2, 2)), np.zeros(2), "N >= 3"),
        (np.zeros(4), np.zeros(4), r"expected \(N, D\)"),
        (np.full((4, 2), np.nan), np.zeros(4), "finite"),
    ],
)
def test_wrong_input_is_named(features: NDArray[np.float64], targets: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ridge.fit(features, targets)
