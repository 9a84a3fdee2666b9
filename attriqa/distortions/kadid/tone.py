"""Tone curves (KADID-10k #16 to #18 and #25).

KADIS-700k's curves are not-a-knot cubic splines through a few points, clipped to [0, 1]. Through three points such a
spline is a parabola, and through five that lie symmetrically about (0.5, 0.5) it is one cubic: both are written out.
``a`` is the value.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attriqa.distortions.kadid import per_image
from attriqa.distortions.kadid.colorspaces import lab_to_rgb, rgb_to_lab


def brighten(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#16: a curve through ``(0.5, 0.5 + a / 2)`` on R, G and B, mixed 2 : 1 with its repetition on CIELAB's L."""
    middle = 0.5 + per_image(values, images) / 2
    once = parabola(images, middle)
    lab = rgb_to_lab(once)
    lab[:, :1] = parabola(lab[:, :1] / 100, middle).mul_(100)
    return once.mul_(2).add_(lab_to_rgb(lab).clamp_(0, 1)).div_(3)


def darken(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#17: a curve through ``(0.5, 0.5 - a / 2)`` on R, G and B."""
    return parabola(images, 0.5 - per_image(values, images) / 2)


def mean_shift(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#18: an offset to R, G and B, clipped to [0, 1]; 0 changes nothing."""
    return (images + per_image(values, images)).clamp_(0, 1)


def contrast_change(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#25: a curve through ``(0.3, 0.25 - a / 4)``, ``(0.5, 0.5)`` and ``(0.7, 0.75 + a / 4)`` on R, G and B.

    Above -0.2, which changes nothing, contrast rises with ``a``; below it falls.
    """
    return s_curve(images, 0.75 + per_image(values, images) / 4)


def parabola(tones: Tensor, middle: Tensor) -> Tensor:
    """The parabola through (0, 0), (0.5, ``middle``) and (1, 1), clipped to [0, 1]; the arguments broadcast."""
    return (tones * (2 - 4 * middle)).add_(4 * middle - 1).mul_(tones).clamp_(0, 1)


def s_curve(tones: Tensor, upper: Tensor) -> Tensor:
    """The cubic, odd about (0.5, 0.5), through (1, 1) and (0.7, ``upper``), clipped to [0, 1]; broadcasts."""
    cubic = (0.7 - upper) / 0.042  # solves slope / 2 + cubic / 8 = 1 / 2 and slope / 5 + cubic / 125 = upper - 1 / 2
    slope = 1 - cubic / 4
    centred = tones - 0.5
    return centred.square().mul_(cubic).add_(slope).mul_(centred).add_(0.5).clamp_(0, 1)
