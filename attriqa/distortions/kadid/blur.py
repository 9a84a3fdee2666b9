"""Blurs and sharpening (KADID-10k #1 to #3 and #24), after the MATLAB scripts of KADIS-700k."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attriqa.distortions.kadid import per_image
from attriqa.distortions.kadid.colorspaces import lab_to_rgb, rgb_to_lab
from attriqa.distortions.kadid.filters import correlate, gaussian

SHARPEN_SIGMA = 3.0  # px, of the unsharp mask


def gaussian_blur(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#1: Gaussian blur of each channel, truncated at ``ceil(2 sigma)`` pixels; a value is sigma in pixels."""
    return gaussian(images, values.tolist())


def lens_blur(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#2: the mean over a disk around each pixel, as a lens out of focus gives it.

    A value is the disk's radius, whole pixels.

    Source: MATLAB's ``fspecial('disk', radius)`` (see `disk_kernel`), as KADIS-700k calls it.
    """
    return correlate(images, [disk_kernel(round(radius)) for radius in values.tolist()])


def motion_blur(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#3: the mean along a line of random direction, as a moving camera gives it.

    A value is the line's length in pixels; 1 changes nothing. Each generator draws the angle, a whole number of 0 to
    180 degrees.

    Source: MATLAB's ``fspecial('motion', length, angle)`` (see `motion_kernel`), as KADIS-700k calls it.
    """
    angles = [int(torch.randint(181, (), generator=generator)) for generator in generators]
    kernels = [motion_kernel(length, angle) for length, angle in zip(values.tolist(), angles, strict=True)]
    return correlate(images, kernels)


def high_sharpen(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#24: unsharp masking of CIELAB's L, ``L + amount (L - blurred L)`` with a Gaussian of sigma 3 px.

    Source: MATLAB's ``imsharpen(image, Radius=3, Amount=amount, Threshold=0)``, as KADIS-700k calls it.
    """
    lab = rgb_to_lab(images)
    light = lab[:, :1]
    detail = gaussian(light, [SHARPEN_SIGMA] * len(images)).neg_().add_(light)
    light += detail.mul_(per_image(values, images))
    return lab_to_rgb(lab).clamp_(0, 1)


def disk_kernel(radius: int) -> Tensor:
    """The share of each pixel that a disk around the middle one covers.

    Args:
        radius: pixels, at least 1.

    Returns:
        ``(2 radius + 1, 2 radius + 1)`` float64 weights; their sum is one.
    """
    # A quarter: pixel 0 has its right half only, so the edges are 0, 0.5, 1.5, ...
    edges = np.concatenate([[0.0], np.arange(radius + 1) + 0.5])
    left, right = np.minimum(edges[:-1], radius), np.minimum(edges[1:], radius)
    low, high = left[:, None], right[:, None]  # of a row; `left`, `right` run along the columns
    # The arc is above the row up to x_high, crosses it up to x_low, and is below it from there.
    x_high = np.clip(np.sqrt(radius**2 - high**2), left, right)
    x_low = np.clip(np.sqrt(radius**2 - low**2), left, right)
    quarter = (high - low) * (x_high - left) + _arc(x_low, radius) - _arc(x_high, radius) - low * (x_low - x_high)
    half = np.concatenate([quarter[:0:-1], 2 * quarter[:1], quarter[1:]])
    disk = torch.from_numpy(np.concatenate([half[:, :0:-1], 2 * half[:, :1], half[:, 1:]], axis=1))
    return disk / disk.sum()


def _arc(x: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """The area under a circle's arc from 0 to ``x``."""
    return (x * np.sqrt(radius**2 - x**2) + radius**2 * np.arcsin(x / radius)) / 2


def motion_kernel(length: float, angle: float) -> Tensor:
    """A line through the middle pixel; the weight falls linearly to 0 at one pixel from it.

    As in MATLAB's ``fspecial('motion')``, pixels at least half a length from the middle are weighed by their distance
    to the line's end, the others by that to the line.

    Args:
        length: pixels; up to 1, the kernel is a single pixel.
        angle: degrees, counter-clockwise from the horizontal.

    Returns:
        Float64 weights of odd height and width; their sum is one.
    """
    half = (max(1.0, length) - 1) / 2
    phi = math.radians(angle % 180)
    reach = math.ceil(half) + 1
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    x, y = offsets[None], -offsets[:, None]  # y upwards, rows downwards
    along = x * math.cos(phi) + y * math.sin(phi)
    across = y * math.cos(phi) - x * math.sin(phi)
    past = torch.where(x**2 + y**2 >= half**2, along.abs() - half, 0.0)
    weights = (1 - torch.hypot(across, past)).clamp(min=0)
    weights[weights < 1e-12] = 0  # what rounding leaves at a distance of one pixel
    rows, columns = (reach - int(weights.sum(axis).nonzero()[0]) for axis in (1, 0))
    weights = weights[reach - rows : reach + rows + 1, reach - columns : reach + columns + 1]
    return weights / weights.sum()
