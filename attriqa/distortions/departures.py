"""Departures from a well-developed photo: what a camera or an editor gets wrong in light, contrast and color.

KADID-10k's distortions know neither a wrong white balance nor a wrong exposure of the light itself, and the attribute
ramps pass through the photo as it was, so neither tells a score that a well-developed photo is better than the same
photo with a color cast. What `apply_departure` makes of a good photo is worse than it, the more the further.
"""

import math

import torch
from torch import Tensor

from attriqa.distortions.colorspaces import from_linear, to_linear
from attriqa.distortions.ramps import luma

DEPARTURES = {
    "cast": "balance",
    "underexposed": "light",
    "overexposed": "light",
    "gray": "color",
    "garish": "color",
    "flat": "contrast",
    "harsh": "contrast",
}
"""Kinds of `apply_departure` and the axis of each: two along one axis can undo one another."""

MAX_CAST = 0.6  # largest log gain of a channel against the mean of the three, at severity 1: 1.8 times
MAX_STOPS = 2.5  # of exposure, at severity 1


def apply_departure(images: Tensor, kind: str, severity: Tensor, angle: float = 0.0) -> Tensor:
    """Render each image at a severity of one departure.

    ============  ======================================================================
    kind          what changes with severity s = 0 .. 1
    ============  ======================================================================
    cast          linear light: gains ``exp(0.6 s d)`` of the channels, d at ``angle`` on
                  the circle of zero sum and largest entry 1; its mean luma is kept
    underexposed  linear light: ``-2.5 s`` stops
    overexposed   linear light: ``+2.5 s`` stops, clipped
    gray          distance from gray scaled by ``1 - s``
    garish        distance from gray scaled by ``1 + 2 s``
    flat          scaling about the mean luma by ``1 - 0.8 s``
    harsh         scaling about the mean luma by ``1 + 1.5 s``
    ============  ======================================================================

    Args:
        images: ``(B, 3, H, W)`` sRGB in [0, 1].
        kind: one of `DEPARTURES`.
        severity: ``(B,)`` in [0, 1]; 0 is the image as it is.
        angle: of the cast, radians; 0 is red, 2/3 pi green, 4/3 pi blue.

    Returns:
        ``(B, 3, H, W)`` clipped to [0, 1].

    Raises:
        ValueError: ``kind`` or ``severity`` is none of these.
    """
    if kind not in DEPARTURES:
        raise ValueError(f"kind: expected one of {', '.join(DEPARTURES)}, got {kind!r}")
    if severity.shape != images.shape[:1] or not bool(((severity >= 0) & (severity <= 1)).all()):
        raise ValueError(
            f"severity: expected shape ({images.shape[0]},) within [0, 1], got {tuple(severity.shape)}: {severity}"
        )
    amount = severity.to(images).view(-1, 1, 1, 1)
    if kind == "cast":
        light = to_linear(images)
        hue = images.new_tensor([math.cos(angle - third * 2 * math.pi / 3) for third in range(3)])
        cast = light * (MAX_CAST * amount * (hue / hue.abs().max()).view(1, 3, 1, 1)).exp()
        kept = luma(light).mean((2, 3), keepdim=True) / luma(cast).mean((2, 3), keepdim=True).clamp(min=1e-6)
        changed = from_linear((cast * kept).clamp(0, 1))
    elif kind in ("underexposed", "overexposed"):
        stops = MAX_STOPS * amount * (1 if kind == "overexposed" else -1)
        changed = from_linear((to_linear(images) * torch.exp2(stops)).clamp(0, 1))
    elif kind in ("gray", "garish"):
        middle = luma(images)
        changed = middle + (images - middle) * (1 - amount if kind == "gray" else 1 + 2 * amount)
    else:
        middle = luma(images).mean((2, 3), keepdim=True)
        changed = middle + (images - middle) * (1 - 0.8 * amount if kind == "flat" else 1 + 1.5 * amount)
    return changed.clamp(0, 1)
