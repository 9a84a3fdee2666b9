"""Natural scene statistics: locally normalised luminance and asymmetric generalised Gaussians fitted to it.

What NIQE (Mittal, Soundararajan, Bovik, IEEE Signal Processing Letters 2013) and BRISQUE (Mittal, Moorthy, Bovik, IEEE
TIP 2012) share. Everything is computed in the dtype that comes in; both use float64.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import gammaln, psi
from torch import Tensor

from attriqa import images as image_io

CHUNK_PIXELS = 1 << 22  # worked on at once, whatever the batch: about 2 GB with gradients
_SHAPES = (0.2, 10.0, 0.001)  # the published search grid of a shape: from, to, step


class AGGD(NamedTuple):
    """Asymmetric generalised Gaussians, one to each row of values; fields of an unusable row mean nothing."""

    shape: Tensor  # (...) 2 is a Gaussian, 1 a Laplacian
    left: Tensor  # (...) root mean square of the negative values
    right: Tensor  # (...) of the positive values
    usable: Tensor  # (...) bool: there are negative and positive values


def round_straight_through(values: Tensor) -> Tensor:
    """To the nearest integer, with the gradient of doing nothing: published values are of 8-bit luminance."""
    return values + (values.round() - values).detach()


def in_chunks(measure: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``measure (N, 3, H, W) -> (N,)`` of ``(B, 3, H, W)``, a few images at a time; images are checked first."""
    image_io.check(images)
    return torch.cat([measure(chunk) for chunk in images.split(max(1, CHUNK_PIXELS // images[0, 0].numel()))])


def weighted(images: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted sum of the channels of ``(B, 3, H, W)``, in float64: ``(B, H, W)``."""
    return reduce(torch.add, [weight * plane for weight, plane in zip(weights, images.double().unbind(1), strict=True)])


def mscn(luminance: Tensor, taps: Sequence[float], *, constant: float, flat: float) -> Tensor:
    """Mean-subtracted, contrast-normalised coefficients (BRISQUE, equations 1 to 3), with the edge repeated outside.

    Args:
        luminance: ``(B, H, W)``.
        taps: an odd number of weights that sum to 1; the local window is their product over rows and columns.
        constant: added to the local deviation, in units of ``luminance``.
        flat: departures from the local mean smaller than this are zero, which they would be but for rounding: their
            sign decides whether a pixel counts as negative or positive, so flat areas would be fitted to noise.

    Returns:
        ``(B, H, W)``; gradients are finite on flat images too.
    """
    half = len(taps) // 2
    padded = F.pad(luminance[:, None], (half,) * 4, mode="replicate")[:, 0]
    mean = _blur(padded, taps)
    variance = _blur(padded.square(), taps) - mean.square()
    rough = variance > flat**2
    deviation = torch.where(rough, variance, 1.0).sqrt() * rough  # no square root at 0, where its slope is infinite
    departure = luminance - mean
    return torch.where(departure.abs() < flat, 0.0, departure) / (deviation + constant)


def _blur(padded: Tensor, taps: Sequence[float]) -> Tensor:
    """Weighted means over windows that lie inside (B, H + K - 1, W + K - 1): (B, H, W)."""
    height, width = (side - len(taps) + 1 for side in padded.shape[1:])
    rows = [weight * padded[:, tap : tap + height] for tap, weight in enumerate(taps)]
    summed = reduce(torch.add, rows)
    return reduce(torch.add, [weight * summed[:, :, tap : tap + width] for tap, weight in enumerate(taps)])


def fit_aggd(values: Tensor) -> AGGD:
    """Fit by moment matching (Lasmar, Stitou, Berthoumieu, ICIP 2009), the shape to the nearest 0.001 in [0.2, 10].

    The shape comes from a table; its gradient is that of the function which the table samples.

    Args:
        values: ``(..., N)``.
    """
    negative, positive = values < 0, values > 0
    usable = negative.any(-1) & positive.any(-1)
    left = _root_mean_square(values, negative, usable)
    right = _root_mean_square(values, positive, usable)
    square = torch.where(usable, values.square().mean(-1), 1.0)
    ratio = left / right
    moment = values.abs().mean(-1).square() / square
    return AGGD(_shape(moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2), left, right, usable)


def _root_mean_square(values: Tensor, chosen: Tensor, usable: Tensor) -> Tensor:
    total = torch.where(chosen, values, 0.0).square().sum(-1) / chosen.sum(-1).clamp(min=1)
    return torch.where(usable, total, 1.0).sqrt()


def _shape(moment: Tensor) -> Tensor:
    """The shape whose ``gamma(2/a)^2 / (gamma(1/a) gamma(3/a))`` is nearest to the moment."""
    shapes, moments, slopes = (torch.from_numpy(column).to(moment) for column in _shape_table())
    after = torch.searchsorted(moments, moment.detach().contiguous()).clamp(1, len(moments) - 1)
    nearer = (moment.detach() - moments[after - 1]) <= (moments[after] - moment.detach())
    nearest = after - nearer.long()
    inside = (moment > moments[0]) & (moment < moments[-1])
    pull = torch.where(inside, moment - moment.detach(), 0.0) / slopes[nearest]
    return shapes[nearest] + pull


@lru_cache(maxsize=1)
def _shape_table() -> tuple[NDArray[np.float64], ...]:
    """Shapes, their moments and the moments' derivatives."""
    first, last, step = _SHAPES
    a = np.asarray(first + step * np.arange(round((last - first) / step) + 1), np.float64)
    moments = np.exp(2 * gammaln(2 / a) - gammaln(1 / a) - gammaln(3 / a))
    slopes = moments * (psi(1 / a) + 3 * psi(3 / a) - 4 * psi(2 / a)) / a**2
    return a, np.asarray(moments), np.asarray(slopes)


def gamma_ratio(shape: Tensor, over: int, under: int) -> Tensor:
    """``gamma(over / shape) / gamma(under / shape)``."""
    return torch.exp(torch.lgamma(over / shape) - torch.lgamma(under / shape))
