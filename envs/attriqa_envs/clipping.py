"""Clipped pixels: those with a channel at or beyond what a display shows."""

import torch
from torch import Tensor

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
