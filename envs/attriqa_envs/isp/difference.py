"""How far two pictures are apart: in decibels, and to the eye by CIEDE2000."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attriqa_envs.isp.color import decode

Floats = NDArray[np.float64]

# Linear sRGB (D65) -> XYZ over that of white, each row summing to 1 (IEC 61966-2-1).
_TO_XYZ = (
    (0.4124564 / 0.9504700, 0.3575761 / 0.9504700, 0.1804375 / 0.9504700),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.0888300, 0.1191920 / 1.0888300, 0.9503041 / 1.0888300),
)
_25_TO_7 = 25.0**7
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
    ratios = torch.einsum("ij,bjhw->bihw", torch.tensor(_TO_XYZ, dtype=torch.float64, device=srgb.device), linear)
    cube, line = ratios.clamp(min=0).pow(1 / 3), ratios * (841 / 108) + 4 / 29
    x, y, z = torch.where(ratios > (6 / 29) ** 3, cube, line).unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000 of L*a*b* colours ``(B, 3, ...)``, weights of one (Sharma, Wu and Dalal 2005, equations 2 to 22)."""
    (l1, a1, b1), (l2, a2, b2) = first.unbind(1), second.unbind(1)
    mean_chroma = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * (mean_chroma**7 / (mean_chroma**7 + _25_TO_7)).sqrt()
    a1, a2 = stretch * a1, stretch * a2
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = torch.atan2(b1, a1) % math.tau, torch.atan2(b2, a2) % math.tau
    turn = (h2 - h1 + math.pi) % math.tau - math.pi  # the shorter way round
    turn = torch.where((h2 - h1).abs() == math.pi, h2 - h1, turn)
    apart = 2 * (c1 * c2).sqrt() * torch.sin(turn / 2)  # 0 where one is gray, whose hue then plays no part
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    total = h1 + h2
    far = (h1 - h2).abs() > math.pi
    hue = torch.where(far, torch.where(total < math.tau, total + math.tau, total - math.tau), total) / 2
    weight = (
        1
        - 0.17 * torch.cos(hue - math.radians(30))
        + 0.24 * torch.cos(2 * hue)
        + 0.32 * torch.cos(3 * hue + math.radians(6))
        - 0.20 * torch.cos(4 * hue - math.radians(63))
    )
    blue = math.radians(60) * torch.exp(-(((torch.rad2deg(hue) - 275) / 25) ** 2))
    rotation = -torch.sin(blue) * 2 * (chroma**7 / (chroma**7 + _25_TO_7)).sqrt()
    off = (lightness - 50) ** 2
    light_part = (l2 - l1) / (1 + 0.015 * off / (20 + off).sqrt())
    chroma_part = (c2 - c1) / (1 + 0.045 * chroma)
    hue_part = apart / (1 + 0.015 * chroma * weight)
    square = light_part**2 + chroma_part**2 + hue_part**2 + rotation * chroma_part * hue_part
    return square.clamp(min=0).sqrt()
