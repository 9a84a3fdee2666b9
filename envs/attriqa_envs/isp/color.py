"""Colour for the ISP: the opponent space it works in, and the display encoding.

All functions are pointwise on ``(B, 3, H, W)``, smooth where pictures have their awkward pixels (black, gray, clipped),
and have bounded, non-zero gradients there. Matrices are applied as sums of planes: neither TF32 nor autocast, which
change matrix products and convolutions, touches them.
"""

import torch
from torch import Tensor

LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear sRGB (ITU-R BT.709)

# Oklab (Ottosson 2020, "A perceptual color space for image processing"): linear sRGB -> cone responses -> Lab.
_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
_TOE = 0.004  # added to the cone responses; with it, lightness of grays follows the sRGB encoding within 0.03
_TOE_ROOT: float = _TOE ** (1 / 3)
_SCALE: float = 1 / ((1 + _TOE) ** (1 / 3) - _TOE_ROOT)  # so that white has lightness 1

_SHOULDER = 1 / 64  # width of the soft clip at white, in encoded units
_FOOT = 1 / 512  # and at black


def _inverse(matrix: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    rows = torch.linalg.inv(torch.tensor(matrix, dtype=torch.float64)).tolist()
    return tuple(tuple(row) for row in rows)


_TO_SCALED_LAB = tuple(tuple(value * _SCALE for value in row) for row in _TO_LAB)  # from roots as they are
_FROM_CONES = _inverse(_TO_CONES)
_FROM_SCALED_LAB = _inverse(_TO_SCALED_LAB)

MIDDLE_GRAY: float = ((0.18 + _TOE) ** (1 / 3) - _TOE_ROOT) * _SCALE  # lightness of 18 % reflectance, 0.487


def lightness_of(linear: Tensor) -> Tensor:
    """The shifted cube root of non-negative light, any shape: 0 -> 0, 1 -> 1, slope at black 15.7."""
    return _root(linear) * _SCALE


def _root(linear: Tensor) -> Tensor:
    return (linear + _TOE).pow(1 / 3) - _TOE_ROOT


def _mix(planes: tuple[Tensor, Tensor, Tensor], matrix: tuple[tuple[float, ...], ...]) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (
        torch.add(torch.add(planes[0] * row[0], planes[1], alpha=row[1]), planes[2], alpha=row[2]) for row in matrix
    )
    return first, second, third


def to_opponent(linear: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Linear sRGB ``(B, 3, H, W)``, >= 0, -> lightness and two chroma planes, ``(B, 1, H, W)`` each.

    Oklab with the cube root of `lightness_of`, whose slope at black is finite. As in Oklab, grays have no chroma, hue
    lines are nearly straight, and white has lightness 1.
    """
    cones = torch.cat(_mix((linear[:, :1], linear[:, 1:2], linear[:, 2:]), _TO_CONES), 1)
    first, second, third = _root(cones).split(1, 1)
    return _mix((first, second, third), _TO_SCALED_LAB)


def from_opponent(lightness: Tensor, chroma_a: Tensor, chroma_b: Tensor) -> Tensor:
    """The inverse of `to_opponent`; colours outside the gamut come back negative or above 1."""
    roots = torch.cat(_mix((lightness, chroma_a, chroma_b), _FROM_SCALED_LAB), 1)
    first, second, third = ((roots + _TOE_ROOT).pow(3) - _TOE).split(1, 1)
    return torch.cat(_mix((first, second, third), _FROM_CONES), 1)


def encode(linear: Tensor) -> Tensor:
    """The sRGB transfer function (IEC 61966-2-1), without clipping: its straight part goes on below zero."""
    curve = 1.055 * linear.clamp(min=0.0031308).pow(1 / 2.4) - 0.055
    return torch.minimum(12.92 * linear, curve)  # they meet at 0.0031308; below, the line is the lower one


def decode(srgb: Tensor) -> Tensor:
    """The inverse of `encode`."""
    curve = ((srgb.clamp(min=0.04045) + 0.055) / 1.055).pow(2.4)
    return torch.where(srgb <= 0.04045, srgb / 12.92, curve)


def soft_clip(encoded: Tensor) -> Tensor:
    """Clip encoded values to (0, 1) with gradients that stay alive outside.

    The identity in [1/512, 1 - 1/64]. Beyond either end, the distance u to it becomes ``w u / (w + u)``, w the width
    left to 0 or 1: 1 becomes 1 - 1/128 and 0 becomes 1/1024, and no result is further from the hard clip's than that,
    two of 255 steps at white and none at black. The slope, ``(w / (w + u))^2``, is one where the parts meet.
    """
    inside = encoded.clamp(_FOOT, 1 - _SHOULDER) + (_SHOULDER - _FOOT)
    over = (encoded + (2 * _SHOULDER - 1)).clamp(min=_SHOULDER)  # w + u; w u / (w + u) is w - w^2 / (w + u)
    under = (2 * _FOOT - encoded).clamp(min=_FOOT)
    one = encoded.new_ones(())
    return inside.addcdiv(one, over, value=-(_SHOULDER**2)).addcdiv(one, under, value=_FOOT**2)


# Where `render`'s soft clip stands for encoded values of 0 and 1, beyond which a hard clip would have cut; a little
# further in, so that black and white that come out of the opponent space with a rounding error still count.
_LOW, _HIGH = 1 / 1024 + 1e-5, 1 - 1 / 128 - 1e-5
# Half-widths of the sigmoids through which it is differentiated, in display values: those of `soft_clip`'s ends.
_LOW_WIDTH, _HIGH_WIDTH = 1 / 1024, 1 / 256


def clipped_share(pictures: Tensor) -> Tensor:
    """The share of clipped pixels: ``(B, 3, H, W)`` sRGB in [0, 1] -> ``(B,)``; with the gradient of a soft count."""
    with torch.no_grad():
        hard = ((pictures.amin(1) <= _LOW) | (pictures.amax(1) >= _HIGH)).float().mean((1, 2))
    if not (pictures.requires_grad and torch.is_grad_enabled()):
        return hard
    low = torch.sigmoid((_LOW - pictures) / _LOW_WIDTH)
    high = torch.sigmoid((pictures - _HIGH) / _HIGH_WIDTH)
    soft = torch.maximum(low, high).amax(1).mean((1, 2))
    return soft + (hard - soft.detach())
