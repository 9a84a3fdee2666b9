"""BRISQUE, a judge that regresses opinions of distorted photos from natural scene statistics."""

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.judges.natural_scenes import fit_aggd, gamma_ratio, in_chunks, mscn, round_straight_through, weighted

MODEL, RANGE = "brisque_model_live.yml", "brisque_range_live.yml"
UNTEXTURED = 100.0  # the value of an image without texture: the worst of the scale; OpenCV has NaN
_FEATURES = 36
_GRAY = (0.299, 0.587, 0.114)
_GAUSSIAN = [math.exp(-0.5 * (offset / (7 / 6)) ** 2) for offset in range(-3, 4)]
_TAPS = [weight / sum(_GAUSSIAN) for weight in _GAUSSIAN]
_SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1))  # rows, columns: neighbours whose products are fitted
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


class BRISQUE(nn.Module):
    """Blind/Referenceless Image Spatial Quality Evaluator (Mittal, Moorthy, Bovik, IEEE TIP 2012), as in OpenCV.

    ``brisque(images)`` is higher for better images, as every judge of ours: the published value, negated.
    Differentiable to the pixels: luminance is rounded to 8 bits as published but passes gradients as if it were not,
    and a fitted shape has the gradient of the function that its table samples. Computed in float64.

    OpenCV's model was trained on LIVE with OpenCV's features, whose half size is not antialiased; values differ from
    those of the authors' MATLAB code and its own model.

    Args:
        folder: holds ``brisque_model_live.yml`` and ``brisque_range_live.yml`` of OpenCV's quality module.

    Raises:
        ValueError: a file is not that.
        FileNotFoundError: a file is missing.
    """

    low: Tensor
    high: Tensor
    vectors: Tensor
    weights: Tensor

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        folder = Path(folder)
        low, high = _read_range(folder / RANGE)
        vectors, weights, self.rho, self.gamma = _read_model(folder / MODEL)
        for name, value in {"low": low, "high": high, "vectors": vectors, "weights": weights}.items():
            self.register_buffer(name, value)

    def forward(self, images: Tensor) -> Tensor:
        """Minus `distortion`: higher is better."""
        return -self.distortion(images)

    def distortion(self, images: Tensor) -> Tensor:
        """The published value: about 0 for a pristine photo, 100 for the worst of LIVE; lower is better.

        Unlike OpenCV it is not clamped to [0, 100], where gradients would die.

        Args:
            images: ``(B, 3, H, W)`` floating, sRGB in [0, 1], sides of at least 32 pixels.

        Returns:
            ``(B,)`` float64; `UNTEXTURED` for an image that is constant to within rounding.

        Raises:
            ValueError: images are anything else.
        """
        return in_chunks(self._distortion, images)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The 36 features of each image, (B, 36) float64 and unscaled, and whether it has texture, (B,)."""
        gray = round_straight_through(255 * weighted(images, _GRAY)) / 255
        size = (gray.shape[1] // 2, gray.shape[2] // 2)
        half = F.interpolate(gray[:, None], size, mode="bicubic")[:, 0]  # a = -0.75 and no antialiasing, as OpenCV
        scales = [self._features(scale) for scale in (gray, half)]
        return torch.cat([part for part, _ in scales], 1), scales[0][1] & scales[1][1]

    def _features(self, gray: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W) -> 18 features (B, 18) and whether there is texture (B,)."""
        normalised = mscn(gray, _TAPS, constant=1 / 255, flat=1e-8)
        products = [normalised * _shifted(normalised, *shift) for shift in _SHIFTS]
        fit = fit_aggd(torch.stack([normalised, *products], 1).flatten(2))  # fields (B, 5)
        left, right = fit.left.square(), fit.right.square()
        own = torch.stack([fit.shape[:, 0], (left + right)[:, 0] / 2], 1)
        scale = gamma_ratio(fit.shape, 1, 3).sqrt() * gamma_ratio(fit.shape, 2, 1)
        pairs = torch.stack([fit.shape, (fit.right - fit.left) * scale, left, right], 2)[:, 1:]
        return torch.cat([own, pairs.flatten(1)], 1), fit.usable.all(1)

    def _distortion(self, images: Tensor) -> Tensor:
        features, textured = self.features(images)
        features = torch.where(textured[:, None], features, self.low)
        scaled = 2 * (features - self.low) / (self.high - self.low) - 1
        apart = (scaled[:, None] - self.vectors).square().sum(2)  # (B, support vectors)
        value = torch.exp(-self.gamma * apart) @ self.weights - self.rho
        return torch.where(textured, value, UNTEXTURED)


def _shifted(values: Tensor, down: int, right: int) -> Tensor:
    """(B, H, W): the neighbour so many rows below and columns to the right of each value, 0 where there is none."""
    padded = F.pad(values, (1, 1, 1, 1))
    height, width = values.shape[1:]
    return padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]


def _read_range(path: Path) -> tuple[Tensor, Tensor]:
    """The lowest and highest value of each feature over the training images, (36,) each."""
    values = _numbers(path, path.read_text(encoding="utf-8"), "data", 2 * _FEATURES)
    low, high = torch.tensor(values, dtype=torch.float64).view(2, _FEATURES)
    if not bool((high > low).all()):
        raise ValueError(f"{path}: expected the highest value of each feature above the lowest")
    return low, high


def _read_model(path: Path) -> tuple[Tensor, Tensor, float, float]:
    """Support vectors (S, 36), their weights (S,), rho and gamma of a support vector regression."""
    head, _, tail = path.read_text(encoding="utf-8").partition("support_vectors:")
    vectors, _, decision = tail.partition("decision_functions:")
    if not decision or "EPS_SVR" not in head or "type: RBF" not in head:
        raise ValueError(f"{path}: expected OpenCV's support vector regression with an RBF kernel")
    rows = [[float(number) for number in _NUMBER.findall(row)] for row in re.findall(r"\[([^\]]*)\]", vectors)]
    if not rows or {len(row) for row in rows} != {_FEATURES}:
        raise ValueError(f"{path}: expected support vectors of {_FEATURES} values")
    weights = _numbers(path, decision, "alpha", len(rows))
    (rho,), (gamma,) = _numbers(path, decision, "rho", 1), _numbers(path, head, "gamma", 1)
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64), rho, gamma


def _numbers(path: Path, text: str, name: str, count: int) -> list[float]:
    """The ``count`` finite numbers after ``name:``, in brackets or a single one."""
    match = re.search(rf"\b{name}:\s*(?:\[([^\]]*)\]|(\S+))", text)
    numbers = [] if match is None else [float(number) for number in _NUMBER.findall(match[1] or match[2])]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{path}: expected {count} finite numbers in {name}, got {len(numbers)}")
    return numbers
