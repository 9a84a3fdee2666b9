"""Linear filters with a kernel per image and replicated borders.

An image is filtered by itself, so that nothing depends on what else is in the batch. Few taps are summed shift by
shift, which on a CPU is several times faster than a convolution of single channels; many go by a Fourier transform.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

MOST_SHIFTS = 80  # taps; above, a Fourier transform is faster


def gaussian(images: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Blur each image with its own Gaussian of ``2 ceil(2 sigma) + 1`` taps (the extent of MATLAB's ``imgaussfilt``).

    Args:
        images: ``(B, C, H, W)``.
        sigmas: B positive standard deviations in pixels.

    Returns:
        ``(B, C, H, W)``.
    """
    return _filter(images, [(taps[:, None], taps[None]) for taps in map(gaussian_taps, sigmas)])


def gaussian_taps(sigma: float) -> Tensor:
    """The ``(2 ceil(2 sigma) + 1,)`` weights of a Gaussian; float64, their sum is one."""
    radius = math.ceil(2 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return taps / taps.sum()


def correlate(images: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """Weigh the neighbourhood of each pixel with the kernel of its image.

    Args:
        images: ``(B, C, H, W)``.
        kernels: B CPU tensors of odd height and width, the middle on the pixel itself.

    Returns:
        ``(B, C, H, W)``.
    """
    return _filter(images, [(kernel,) for kernel in kernels])


def _filter(images: Tensor, kernels: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Correlate each image with its kernels, one after another, by the quicker way."""
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for image, its, result in zip(images, kernels, out, strict=True):
        if sum(int(kernel.count_nonzero()) for kernel in its) > MOST_SHIFTS:
            result.copy_(_by_fourier(image, *its))
        else:
            result.copy_(functools.reduce(_by_shifts, its, image))
    return out


def _by_shifts(image: Tensor, kernel: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    padded = _pad(image, kernel.shape[0] // 2, kernel.shape[1] // 2)
    out = torch.zeros_like(image, memory_format=torch.contiguous_format)
    shifts = list(zip(kernel.nonzero().tolist(), kernel[kernel != 0].tolist(), strict=True))
    # On a CPU channel by channel: the sum stays in its caches.
    channels = zip(padded, out, strict=True) if image.device.type == "cpu" else ((padded, out),)
    for channel, total in channels:
        for (y, x), weight in shifts:
            total.add_(channel[..., y : y + height, x : x + width], alpha=weight)
    return out


def _by_fourier(image: Tensor, *kernels: Tensor) -> Tensor:
    """Correlation with one kernel after another; ``image`` is ``(C, H, W)``."""
    height, width = image.shape[-2:]
    down, right = (sum(kernel.shape[axis] // 2 for kernel in kernels) for axis in (0, 1))
    size = (next_fast_len(height + 2 * down, real=True), next_fast_len(width + 2 * right, real=True))
    spectrum = torch.fft.rfft2(_pad(image, down, right), s=size)
    for kernel in kernels:
        spectrum *= torch.fft.rfft2(kernel.flip(0, 1).to(image), s=size)  # flipped: products of spectra convolve
    filtered: Tensor = torch.fft.irfft2(spectrum, s=size)
    return filtered[:, 2 * down : 2 * down + height, 2 * right : 2 * right + width]


def _pad(image: Tensor, down: int, right: int) -> Tensor:
    return F.pad(image, (right, right, down, down), mode="replicate")
