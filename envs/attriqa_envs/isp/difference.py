"""How far two pictures are apart: in decibels, and to the eye by CIEDE2000."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attriqa_envs.isp.color import SRGB_TO_XYZ, decode

Floats = NDArray[np.float64]

_WHITE = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)  # XYZ of D65
MAX_PSNR = 99.0  # dB; pictures that are equal would have infinity, which no mean and no JSON can hold


def psnr(pictures: Tensor, references: Tensor) -> Floats:
    """Peak signal-to-noise ratio of each of B pictures in [0, 1], ``(B,)`` in dB, at most `MAX_PSNR`."""
    error = (pictures - references).double().square().mean((1, 2, 3)).clamp(min=10 ** (-MAX_PSNR / 10))
    return (-10 * error.log10()).numpy(force=True)


def delta_e(pictures: Tensor, references: Tensor) -> Floats:
    """The mean CIEDE2000 colour difference over each of B pictures, ``(B,)``; 1 is just noticeable, side by side.

    Args:
        pictures: ``(B, 3, H, W)`` sRGB in [0, 1].
        references: of the same shape.
    """
    return ciede2000(lab_of(pictures), lab_of(references)).mean((1, 2)).numpy(force=True)


def lab_of(srgb: Tensor) -> Tensor:
    """SRGB ``(B, 3, H, W)`` to CIE L*a*b* under D65, 2 degree observer, float64 of the same shape."""
    linear = decode(srgb.double())
    ratios = torch.einsum("ij,bjhw->bihw", (SRGB_TO_XYZ / _WHITE[:, None]).to(srgb.device), linear)
    cube, line = ratios.clamp(min=0).pow(1 / 3), ratios * (841 / 108) + 4 / 29
    x, y, z = torch.where(ratios > (6 / 29) ** 3, cube, line).unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000 of L*a*b* colours ``(B, 3, ...)``, by scikit-image, weights of one: ``(B, ...)`` on the CPU."""
    from skimage.color import deltaE_ciede2000

    return torch.from_numpy(deltaE_ciede2000(first.numpy(force=True), second.numpy(force=True), channel_axis=1))
