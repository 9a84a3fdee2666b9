"""Spatial filters of the ISP on single planes (B, 1, H, W): edge-preserving smoothing and Gaussian blur.

Borders are replicated. Kernels are sums of shifted planes: each image has its own strength, no precision is lost to
TF32 or autocast, and an image's result does not depend on what else is in the batch. On a CPU, backward above all, they
are also several times as fast as convolutions and pooling.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SIGMA = 2.0  # px; the blur's kernel reaches three times that
_REACH = math.ceil(3 * MAX_SIGMA)


def _box(planes: Tensor, radius: int) -> Tensor:
    """The mean over ``(2 radius + 1)^2`` pixels; ``radius`` is a power of two."""
    padded = F.pad(planes, (radius, radius, radius, radius), mode="replicate")
    means: Tensor = _BoxMeans.apply(padded, radius)
    return means


class _BoxMeans(torch.autograd.Function):
    """Means over the windows that fit: ``(B, C, H, W)`` -> ``(B, C, H - 2 radius, W - 2 radius)``.

    A linear map whose adjoint is the same map of the zero-padded gradient. Derived step by step, each of its shifted
    sums would write and add up whole planes of zeros.
    """

    @staticmethod
    def forward(ctx: Any, planes: Tensor, radius: int) -> Tensor:
        ctx.radius = radius
        width = planes.shape[3]
        # Rows end to end: sums that run across the end of a row are of windows that do not fit, and are left out.
        sums = _running_sum(_running_sum(planes.flatten(2), radius, 1), radius, width)
        return sums.unfold(2, width - 2 * radius, width) / (2 * radius + 1) ** 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        reach = 2 * ctx.radius
        return _BoxMeans.apply(F.pad(gradient, (reach, reach, reach, reach)), ctx.radius), None


def _running_sum(line: Tensor, radius: int, stride: int) -> Tensor:
    """Sums of ``2 radius + 1`` values that lie ``stride`` apart in the last dimension, by doubling."""
    total, span = line, stride
    while span < 2 * radius * stride:
        total = total[..., :-span] + total[..., span:]
        span *= 2
    return total[..., :-stride] + line[..., span:]


def guided_smooth(guide: Tensor, planes: Tensor, radius: int, variance: Tensor) -> Tensor:
    """The guided filter (He, Sun and Tang 2013, equations 5, 6 and 8) of each plane with one guide.

    Args:
        guide: ``(B, 1, H, W)``.
        planes: ``(B, C, H, W)``.
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
    lines = _box(torch.cat((slope, torch.addcmul(means, slope, mean, value=-1)), 1), radius)
    return torch.addcmul(lines[:, count:], lines[:, :count], centred) + middles


def smooth_within_edges(plane: Tensor, radius: int, variance: Tensor) -> Tensor:
    """The guided filter of a plane ``(B, 1, H, W)`` that is its own guide; see `guided_smooth`."""
    middle = plane.mean((2, 3), keepdim=True)
    centred = plane - middle
    mean, square = _box(torch.cat((centred, centred * centred), 1), radius).split(1, 1)
    own = (square - mean * mean).clamp(min=0)
    slope = own / (own + variance)
    lines = _box(torch.cat((slope, torch.addcmul(mean, slope, mean, value=-1)), 1), radius)
    return torch.addcmul(lines[:, 1:], lines[:, :1], centred) + middle


def gaussian_weights(sigma: Tensor) -> Tensor:
    """Gaussians of standard deviations ``(B, 1, 1, 1)``, in (0, `MAX_SIGMA`] px, for `gaussian_blur`.

    Returns:
        ``(B, 7, 1, 1)``: a kernel's middle and one of its sides, smooth in sigma.
    """
    distances = torch.arange(_REACH + 1, device=sigma.device, dtype=sigma.dtype).view(1, -1, 1, 1)
    weights = torch.exp(-0.5 * (distances / sigma) ** 2)
    return weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1])


def gaussian_blur(plane: Tensor, weights: Tensor) -> Tensor:
    """Blur a plane ``(B, 1, H, W)``, each image with its own of the `gaussian_weights`."""
    padded = F.pad(plane, (_REACH, _REACH, _REACH, _REACH), mode="replicate")
    return _symmetric(_symmetric(padded, weights.split(1, 1), 3), weights.split(1, 1), 2)


def _symmetric(padded: Tensor, weights: tuple[Tensor, ...], dim: int) -> Tensor:
    length = padded.shape[dim] - 2 * _REACH
    blurred = padded.narrow(dim, _REACH, length) * weights[0]
    for distance in range(1, _REACH + 1):
        pair = padded.narrow(dim, _REACH - distance, length) + padded.narrow(dim, _REACH + distance, length)
        blurred = torch.addcmul(blurred, pair, weights[distance])
    return blurred
