"""Departures from a well-developed photo: what a camera or an editor gets wrong in light, color, contrast and detail.

KADID-10k's distortions know neither a wrong white balance nor a wrong exposure of the light itself, and the attribute
ramps pass through the photo as it was, so neither tells a score that a well-developed photo is better than the same
photo with a color cast. What `develop` makes of a good photo is worse than it, the more the further.
"""

import numpy as np
import torch
from torch import Tensor

from attriqa.distortions.ramps import gaussian_blur, luma

SETTINGS = ("light", "red", "green", "color", "contrast", "detail")
"""What `develop` sets; red and green are the two axes of color casts."""

MAX_STOPS = 2.5  # of exposure, at a setting of 1
MAX_CAST = 0.6  # largest log gain of a channel against the mean of the three: 1.8 times

_SINGLE = {
    "underexposed": ("light", -1.0),
    "overexposed": ("light", 1.0),
    "gray": ("color", -1.0),
    "garish": ("color", 1.0),
    "flat": ("contrast", -1.0),
    "harsh": ("contrast", 1.0),
    "soft": ("detail", -1.0),
    "oversharpened": ("detail", 1.0),
}
DEPARTURES = {"cast": "balance", **{kind: axis for kind, (axis, _) in _SINGLE.items()}, "mixed": "all"}
"""Kinds of departures and the axis of each: two along one axis can undo one another."""


def draw_departure(kind: str, rng: np.random.Generator) -> Tensor:
    """Settings ``(6,)`` of a departure at severity 1; scaled by a severity, they are those of that severity.

    A cast is of a random hue, a mixed one of a random direction and Euclidean length 1; others are not random.

    Raises:
        ValueError: ``kind`` is none of `DEPARTURES`.
    """
    if kind == "mixed":
        drawn = rng.standard_normal(len(SETTINGS))
        return torch.from_numpy(drawn / np.linalg.norm(drawn)).float()
    if kind == "cast":
        return cast_of(float(rng.uniform(0, 2 * np.pi)))
    if kind not in _SINGLE:
        raise ValueError(f"kind: expected one of {', '.join(DEPARTURES)}, got {kind!r}")
    axis, sign = _SINGLE[kind]
    return torch.tensor([sign if name == axis else 0.0 for name in SETTINGS])


def cast_of(angle: float) -> Tensor:
    """Settings ``(6,)`` of a full color cast: 0 is red, 2/3 pi green, 4/3 pi blue; its largest log gain 0.52 to 0.6."""
    found = {"red": np.cos(angle), "green": np.sin(angle)}
    return torch.tensor([float(found.get(name, 0.0)) for name in SETTINGS])


def develop(images: Tensor, settings: Tensor) -> Tensor:
    """Render each image with settings of its own; differentiable in both.

    What each setting s changes, in this order; 0 leaves the image as it is:

    - light: linear light, by ``2.5 s`` stops.
    - red, green: linear light, gains of the three channels, the exponentials of 0.6 times ``s_red cos(k) +
      s_green sin(k)``, k = 0, 2/3 pi, 4/3 pi; the mean luma is kept.
    - color: distance from gray, scaled by ``1 + s`` below 0, by ``1 + 2 s`` above.
    - contrast: scaling about the mean luma by ``1 + 0.8 s`` below 0, by ``1 + 1.5 s`` above.
    - detail: below 0, blended with a Gaussian blur of 1.5 px by ``-s``; above, unsharp mask of that blur, ``3 s``
      strong.

    Args:
        images: ``(B, 3, H, W)`` sRGB in [0, 1].
        settings: ``(B, 6)`` in the order of `SETTINGS`, each in [-1, 1].

    Returns:
        ``(B, 3, H, W)`` clipped to [0, 1].

    Raises:
        ValueError: ``settings`` is none of these.
    """
    if settings.shape != (len(images), len(SETTINGS)) or not bool((settings.abs() <= 1 + 1e-5).all()):
        wanted = (len(images), len(SETTINGS))
        raise ValueError(f"settings: expected shape {wanted} within [-1, 1], got {tuple(settings.shape)}: {settings}")
    light, red, green, color, contrast, detail = settings.to(images).view(-1, len(SETTINGS), 1, 1, 1).unbind(1)
    linear = _to_linear(images) * torch.exp2(MAX_STOPS * light)
    third = torch.arange(3, dtype=images.dtype, device=images.device).view(1, 3, 1, 1) * (2 * torch.pi / 3)
    cast = linear * (MAX_CAST * (red * third.cos() + green * third.sin())).exp()
    kept = luma(linear).mean((2, 3), keepdim=True) / luma(cast).mean((2, 3), keepdim=True).clamp(min=1e-6)
    # Clipped as a camera would, after both; what is above white has no chroma to be scaled.
    changed = _from_linear((cast * kept).clamp(0, 1))
    middle = luma(changed)
    changed = middle + (changed - middle) * (1 + torch.where(color < 0, color, 2 * color))
    middle = luma(changed).mean((2, 3), keepdim=True)
    changed = middle + (changed - middle) * (1 + torch.where(contrast < 0, 0.8 * contrast, 1.5 * contrast))
    blurred = gaussian_blur(changed, torch.full((len(images),), 1.5))
    changed = changed + (changed - blurred) * torch.where(detail < 0, detail, 3 * detail)
    return changed.clamp(0, 1)


# The transfer curve of sRGB (IEC 61966-2-1), with gradients; `attriqa.distortions.kadid.colorspaces` has faster ones
# without.


def _to_linear(images: Tensor) -> Tensor:
    return torch.where(images <= 0.04045, images / 12.92, ((images.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def _from_linear(linear: Tensor) -> Tensor:
    power = linear.clamp(min=0.04045 / 12.92) ** (1 / 2.4)
    return torch.where(linear <= 0.04045 / 12.92, 12.92 * linear, 1.055 * power - 0.055)
