"""What the tests of NIQE and BRISQUE share: files of small models, photos, and the fit in plain NumPy."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gamma
from torch import Tensor

from attriqa.judges.brisque import MODEL, RANGE

Floats = NDArray[np.float64]
SHAPES = np.arange(200, 10001) / 1000
MOMENTS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))
LOW, HIGH = np.tile([0.3, 0.0, 0.0, 0.0], 9), np.tile([4.0, 1.5, 1.0, 1.0], 9)  # about BRISQUE's ranges over photos
_RNG = np.random.default_rng(0)
VECTORS, WEIGHTS = _RNG.uniform(-1, 1, (5, 36)), _RNG.normal(size=5) * 50


def photo(image: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """The upper left part of a photo, (1, 3, height, width)."""
    return torch.tensor(image[:height, :width]).permute(2, 0, 1)[None] / 255


def plain_aggd(values: Floats) -> tuple[float, float, float]:
    left, right = np.sqrt(np.mean(values[values < 0] ** 2)), np.sqrt(np.mean(values[values > 0] ** 2))
    ratio = left / right
    moment = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    wanted = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    return float(SHAPES[np.argmin((MOMENTS - wanted) ** 2)]), float(left), float(right)


def gaussian_window() -> Floats:
    """(7, 7), as both papers have it."""
    taps = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    return np.asarray(np.outer(taps, taps) / taps.sum() ** 2, np.float64)


def write_niqe(path: Path) -> Path:
    """A model of pristine photos with random statistics."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(36, 36)) / 6
    covariance = root @ root.T + np.eye(36)
    np.savez(path, mu_pris_param=rng.random((1, 36)), cov_pris_param=covariance, gaussian_window=gaussian_window())
    return path


def write_brisque(folder: Path) -> Path:
    """A small model in OpenCV's layout."""

    def listed(values: Floats) -> str:
        return "[ " + ",\n      ".join(f"{value:.17g}" for value in values) + " ]"

    ranges = listed(np.r_[LOW, HIGH])
    (folder / RANGE).write_text(f"%YAML:1.0\n---\nrange: !!opencv-matrix\n   rows: 2\n   data: {ranges}\n")
    rows = "\n".join(f"      - {listed(row)}" for row in VECTORS)
    (folder / MODEL).write_text(
        "%YAML:1.0\n---\nopencv_ml_svm:\n   svmType: EPS_SVR\n   kernel:\n      type: RBF\n      gamma: 5.0e-02\n"
        f"   sv_total: 5\n   support_vectors:\n{rows}\n   decision_functions:\n      -\n         sv_count: 5\n"
        f"         rho: -4.25e+01\n         alpha: {listed(WEIGHTS)}\n"
    )
    return folder
