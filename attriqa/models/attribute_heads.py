"""Parts of AttributeNet behind its encoder: pooled statistics, and heads for distortions and departures."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.distortions import DISTORTION_KEYS

PROBS = 5 * len(DISTORTION_KEYS)  # attribute probabilities: five to a distortion (ExIQA)


_EPS = 1e-5  # under the square root of a map's variance: its gradient stays finite on constant images


class MeanAndDeviation(torch.autograd.Function):
    """(B, N, C) -> mean and deviation over N, (B, C) each.

    Its own backward pass goes over the map once; autograd's would go over it five times.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation; at least ``sqrt(1e-5)``."""
        mean = pixels.mean(1)
        # After a ReLU near the mean: the difference loses little.
        variance = (pixels.square().mean(1) - mean.square()).clamp(min=0)
        deviation = (variance + _EPS).sqrt()
        ctx.save_for_backward(pixels, mean, deviation)
        return mean, deviation

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_deviation: Tensor) -> Tensor:
        """The gradient by the map, from those by its two statistics."""
        pixels, mean, deviation = ctx.saved_tensors
        slope = to_deviation / (deviation * pixels.shape[1])
        offset = to_mean / pixels.shape[1] - slope * mean
        return torch.addcmul(offset.unsqueeze(1), slope.unsqueeze(1), pixels)


class Found(NamedTuple):
    """What a distortion head says of B images."""

    strengths: Tensor  # (B, 25) in [0, 1], in the order of DISTORTION_KEYS
    probs: Tensor  # (B, 125) attribute probabilities, five to a distortion


class DistortionHead(nn.Module):
    """Pooled statistics -> 125 attribute probabilities -> 25 strengths (ExIQA, equations 6 and 7, without its texts).

    A strength is the weighted mean of its five attributes' probabilities; the weights are a softmax of free logits,
    and start uniform.
    """

    def __init__(self, pooled: int, width: int) -> None:
        super().__init__()
        self.attributes = nn.Sequential(nn.Linear(pooled, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, PROBS))
        self.weights = nn.Parameter(torch.zeros(len(DISTORTION_KEYS), PROBS // len(DISTORTION_KEYS)))

    def forward(self, pooled: Tensor) -> Found:
        """Standardised statistics (B, D) -> strengths and probabilities."""
        probs = torch.sigmoid(self.attributes(pooled))
        weighted = probs.unflatten(1, self.weights.shape) * self.weights.softmax(1)
        return Found(weighted.sum(2), probs)


class DepartureHead(nn.Module):
    """Pooled statistics -> how far an image is from a well-developed one, in units of the score's logit.

    The regressor learns mostly from opinions, on photos that hardly anyone spoilt on purpose; this head was added to
    learn from photos that were (`attriqa.distortions.develop`), without taking features from it.
    At least 0: a picture gains nothing by being less spoilt than photos are.
    """

    def __init__(self, pooled: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(pooled, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 1)
        )
        nn.init.normal_(self.layers[1].weight, std=0.5 / pooled**0.5)  # type: ignore[arg-type]
        nn.init.constant_(self.layers[-1].bias, -1.0)  # type: ignore[arg-type]

    def forward(self, pooled: Tensor) -> Tensor:
        """Standardised statistics (B, D) -> (B,), positive."""
        return F.softplus(self.layers(pooled).squeeze(1))


DECILE = 4 / 3  # squash(4/3) = 0.9


def squash(x: Tensor) -> Tensor:
    """``0.5 + 0.5 x / sqrt(1 + x^2)``: any number into [0, 1], with a gradient that dies as 1/x^3, not as exp(-x).

    Heavy noise puts a head many deviations away from all photos; a reward must still pull from there.
    """
    return 0.5 + 0.5 * x * torch.rsqrt(1 + x * x)
