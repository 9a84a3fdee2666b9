"""Ridge regression whose penalty is chosen by leaving one out: the yardstick of a linear probe."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PENALTIES = tuple(float(10.0**exponent) for exponent in np.arange(-2, 5.5, 0.5))
"""What `fit` chooses from, for standardised features."""


class Ridge(NamedTuple):
    """A fitted line."""

    mean: NDArray[np.float64]  # (D,) of the features
    scale: NDArray[np.float64]  # (D,)
    weights: NDArray[np.float64]  # (D,) of the standardised features
    bias: float
    penalty: float

    def __call__(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, D) -> (N,)."""
        return np.asarray((features - self.mean) / self.scale @ self.weights + self.bias)


def fit(features: NDArray[np.float64], targets: NDArray[np.float64]) -> Ridge:
    """Least squares on standardised features with a penalty on the weights, the bias free.

    The penalty is the one of `PENALTIES` with the least mean squared error over the examples, each predicted by the fit
    to the others: in closed form, from one singular value decomposition.

    Args:
        features: ``(N, D)``; a feature that does not vary gets no weight.
        targets: ``(N,)``.

    Raises:
        ValueError: the shapes do not fit, there are fewer than three examples, or a number is not finite.
    """
    features, targets = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    if features.ndim != 2 or targets.shape != features.shape[:1] or len(targets) < 3:
        raise ValueError(
            f"features, targets: expected (N, D) and (N,) with N >= 3, got {features.shape} and {targets.shape}"
        )
    if not (np.isfinite(features).all() and np.isfinite(targets).all()):
        raise ValueError("features, targets: expected finite numbers")
    mean, scale = features.mean(0), features.std(0)
    scale[scale < 1e-12 * np.maximum(1.0, abs(mean))] = np.inf
    left, values, right = np.linalg.svd((features - mean) / scale, full_matrices=False)
    centered = targets - targets.mean()
    projected = left.T @ centered
    errors = []
    for penalty in PENALTIES:
        shrink = values**2 / (values**2 + penalty)
        leverage = 1 / len(targets) + (left**2 * shrink).sum(1)
        errors.append(float((((centered - left @ (shrink * projected)) / (1 - leverage)) ** 2).mean()))
    penalty = PENALTIES[int(np.argmin(errors))]
    weights = right.T @ (values / (values**2 + penalty) * projected)
    return Ridge(mean, scale, weights, float(targets.mean()), penalty)
