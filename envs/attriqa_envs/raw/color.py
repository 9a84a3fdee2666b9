"""Colour between a sensor and linear sRGB: 3 x 3 matrices, clipped highlights.

Tensors are channel-first, ``(..., 3, H, W)``, float.
"""

import torch
from torch import Tensor

CLIPPED = 0.95  # of the sensor's range: from here to 1 a value counts as clipped more and more


def apply_matrix(pixels: Tensor, matrix: Tensor) -> Tensor:
    """Mix channels: ``(3,H,W)`` by ``(3,3)``, or ``(B,3,H,W)`` by one ``(3,3)`` or by ``(B,3,3)``."""
    return torch.matmul(matrix.to(pixels), pixels.flatten(-2)).reshape(pixels.shape)


def rebuild_highlights(balanced: Tensor, ceilings: Tensor) -> Tensor:
    """Give clipped channels a value that the channels beside them suggest.

    White balance lifts the levels at which the channels of a sensor clip to different heights, so a blown neutral
    area would turn magenta. A clipped channel takes the mean of the channels that are not clipped there, or, where all
    are, the largest of the three, if that is more than its own value: exact for neutral light, and never darker.
    Between `CLIPPED` and 1 of the range both values are mixed, so that no edge appears.

    Args:
        balanced: camera RGB after white balance, ``(3,H,W)`` or ``(B,3,H,W)``.
        ceilings: where each channel clips: the white balance gains, ``(3,)`` or ``(B,3)``, positive.

    Returns:
        The shape of ``balanced``; a new tensor only where something is clipped.
    """
    if bool((balanced.amax((-2, -1)) <= CLIPPED * ceilings).all()):
        return balanced
    fraction = balanced / ceilings[..., None, None]
    hit = (fraction > CLIPPED).any(dim=-3)  # ([B,]H,W); mostly a few pixels, and only they are touched
    rows = balanced.movedim(-3, -1)[hit]  # (N,3)
    clipped = ((fraction.movedim(-3, -1)[hit] - CLIPPED) / (1 - CLIPPED)).clamp(0, 1)
    kept = 1 - clipped
    beside = (rows * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(1e-6)
    largest = rows.amax(-1, keepdim=True)
    none_left = clipped.amin(-1, keepdim=True)
    suggested = torch.lerp(beside.minimum(largest), largest, none_left)
    rebuilt = balanced.movedim(-3, -1).clone()
    rebuilt[hit] = rows + clipped * (suggested - rows).clamp_min(0)
    return rebuilt.movedim(-1, -3)
