"""Controlled changes to photos: batched, differentiable torch functions on (B, 3, H, W) sRGB in [0, 1].

`apply_ramp` moves one quality attribute up or down by a known amount, which is how an attribute head learns, and is
tested on, what its name means (the proxy task of ATTIQA's prompt selection; the paper leaves its distortions open).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.attributes import ATTRIBUTES

MAX_BLUR_SIGMA = 4.0  # pixels, at ramp level 0
MAX_NOISE_VARIANCE = 0.05  # at ramp level 0
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own Gaussian; borders are replicated.

    Args:
        images: ``(B, 3, H, W)``.
        sigma: ``(B,)`` standard deviations in pixels; below 0.05 the image comes back as it is.

    The kernel reaches ``ceil(3 * max(sigma))`` pixels, so that a level does not depend on what else is in the batch
    beyond 1e-3.
    """
    radius = max(1, math.ceil(3 * float(sigma.max())))
    position = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)  # (2r+1,)
    kernel = torch.exp(-0.5 * (position / sigma.clamp(min=0.05).to(images)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # (B*3, 2r+1)
    b, c, h, w = images.shape
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate").reshape(1, b * c, h + 2 * radius, -1)
    rows = F.conv2d(padded, kernel[:, None, None, :], groups=b * c)
    blurred = F.conv2d(rows, kernel[:, None, :, None], groups=b * c).reshape(b, c, h, w)
    return torch.where((sigma < 0.05).to(images.device)[:, None, None, None], images, blurred)


def luma(images: Tensor) -> Tensor:
    """BT.601 luma of gamma-encoded RGB: ``(B, 3, H, W)`` -> ``(B, 1, H, W)``."""
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def apply_ramp(images: Tensor, attribute: str, level: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Render each image at a level of one attribute; a higher level has more of it.

    | attribute    | what changes with level 0 .. 1                            | unchanged photo at |
    |--------------|-----------------------------------------------------------|--------------------|
    | sharpness    | Gaussian blur, sigma ``4 (1 - level)^1.5`` pixels         | 1                  |
    | contrast     | scaling about the mean luma by 0.2 .. 1.8                 | 0.5                |
    | brightness   | parabolic tone curve through (0.5, c), c = 0.275 .. 0.725 | 0.5                |
    | colorfulness | distance from gray scaled by 0 .. 2                       | 0.5                |
    | noisiness    | white noise of variance ``0.05 (1 - level)^2``            | 1                  |

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        attribute: one of `ATTRIBUTES`.
        level: ``(B,)`` in [0, 1].
        generator: where the noise comes from; needed for ``"noisiness"`` only.

    Returns:
        ``(B, 3, H, W)`` clipped to [0, 1].
    """
    if attribute not in ATTRIBUTES:
        raise ValueError(f"attribute: expected one of {', '.join(ATTRIBUTES)}, got {attribute!r}")
    if level.shape != images.shape[:1] or not bool(((level >= 0) & (level <= 1)).all()):
        raise ValueError(f"level: expected shape ({images.shape[0]},) within [0, 1], got {tuple(level.shape)}: {level}")
    amount = level.to(images).view(-1, 1, 1, 1)
    if attribute == "sharpness":
        return gaussian_blur(images, MAX_BLUR_SIGMA * (1 - level) ** 1.5)
    if attribute == "contrast":
        mean = luma(images).mean((2, 3), keepdim=True)
        changed = mean + (images - mean) * (0.2 + 1.6 * amount)
    elif attribute == "brightness":
        middle = 0.275 + 0.45 * amount
        changed = (4 * middle - 1) * images + (2 - 4 * middle) * images.square()
    elif attribute == "colorfulness":
        gray = luma(images)
        changed = gray + (images - gray) * (2 * amount)
    else:
        if generator is None:
            raise ValueError("generator: the noisiness ramp needs a torch.Generator, got None")
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=generator.device)
        changed = images + noise.to(images.device) * (MAX_NOISE_VARIANCE**0.5 * (1 - amount))
    return changed.clamp(0, 1)
