"""Spatial filters of the ISP on single planes (B, 1, H, W): edge-preserving smoothing and Gaussian blur.

Borders are replicated. Kernels are sums of shifted planes: each image has its own strength, no precision is lost to
TF32 or autocast, and an image's result does not depend on what else is in the batch. On a CPU, backward above all, they
are also several times as fast as convolutions and pooling.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SIGMA = 2.0  # px; the blur's kernel reaches three times that
_REACH = math.ceil(3 * MAX_SIGMA)


def _box(planes: Tensor, radius: int) -> Tensor:
    """The mean over ``(2 radius + 1)^2`` pixels."""
    padded = F.pad(planes, (radius, radius, radius, radius), mode="replicate")
    return _running_sum(_running_sum(padded, radius, 3), radius, 2) / (2 * radius + 1) ** 2


def _running_sum(padded: Tensor, radius: int, dim: int) -> Tensor:
    """Sums of ``2 radius + 1`` neighbours, by doubling; ``radius`` is a power of two."""
    length = padded.shape[dim]
    total = padded
    span = 1
    while span < 2 * radius:
        total = total.narrow(dim, 0, total.shape[dim] - span) + total.narrow(dim, span, total.shape[dim] - span)
        span *= 2
    return total.narrow(dim, 0, length - span) + padded.narrow(dim, span, length - span)


def guided_smooth(guide: Tensor, planes: Tensor, radius: int, variance: Tensor) -> Tensor:
    """The guided filter (He, Sun and Tang 2013, equations 5, 6 and 8) of each plane with one guide.

    Args:
        guide: ``(B, 1, H, W)``.
        planes: ``(B, C, H, W)``; the guide itself for edge-preserving smoothing of one plane.
        radius: of the windows in px, a power of two.
        variance: ``(B, 1, 1, 1)``, > 0: detail of the guide of less variance is smoothed away, more is kept.

    Returns:
        ``(B, C, H, W)``.
    """
    count = planes.shape[1]
    # Centred first: a variance as the difference of two large means would lose float32's digits.
    middle, middles = guide.mean((2, 3), keepdim=True), planes.mean((2, 3), keepdim=True)
    centred, others = guide - middle, planes - middles
    moments = _box(torch.cat((centred, centred * centred, others, centred * others), 1), radius)
    mean, square, means, products = moments.split((1, 1, count, count), 1)
    slope = (products - mean * means) / ((square - mean * mean).clamp(min=0) + variance)
    lines = _box(torch.cat((slope, means - slope * mean), 1), radius)
    return lines[:, :count] * centred + lines[:, count:] + middles


def gaussian_blur(plane: Tensor, sigma: Tensor) -> Tensor:
    """Blur with a Gaussian that depends smoothly on sigma.

    Args:
        plane: ``(B, 1, H, W)``.
        sigma: ``(B, 1, 1, 1)`` standard deviations in px, in (0, `MAX_SIGMA`].
    """
    weights = [torch.exp(-0.5 * (distance / sigma) ** 2) for distance in range(_REACH + 1)]
    total = weights[0] + 2 * torch.stack(weights[1:]).sum(0)
    weights = [weight / total for weight in weights]
    padded = F.pad(plane, (_REACH, _REACH, _REACH, _REACH), mode="replicate")
    return _symmetric(_symmetric(padded, weights, 3), weights, 2)


def _symmetric(padded: Tensor, weights: list[Tensor], dim: int) -> Tensor:
    length = padded.shape[dim] - 2 * _REACH
    blurred = padded.narrow(dim, _REACH, length) * weights[0]
    for distance in range(1, _REACH + 1):
        pair = padded.narrow(dim, _REACH - distance, length) + padded.narrow(dim, _REACH + distance, length)
        blurred = torch.addcmul(blurred, pair, weights[distance])
    return blurred
