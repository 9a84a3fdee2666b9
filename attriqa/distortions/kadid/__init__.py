"""KADID-10k's 25 distortions at five levels, one module for each family.

Each is a function of ``(images, values, generators)``, an `Apply`. Its docstring says what a value means, what is
drawn, and where the result is not clipped (else it stays in [0, 1], but for rounding); the rest holds for all:

- ``images``: ``(B, 3, H, W)`` sRGB in [0, 1], float32 or float64, on any device; they stay as they are;
- ``values``: ``(B,)`` float64 on the CPU, one per image;
- ``generators``: a CPU generator per image. Every draw is made on the CPU, by the generator of the image that it is
  for, whatever the images' dtype: the same seed gives the same result on any device and in any batch;
- the result: ``(B, 3, H, W)`` of the same dtype and device. Not differentiable: steps may work in place.

Source of them all: ``imdist_generator.m`` of KADIS-700k.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Apply = Callable[[Tensor, Tensor, Sequence[torch.Generator]], Tensor]


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """``(B,)`` -> ``(B, 1, 1, 1)``, with the dtype and on the device of ``like``."""
    return values.to(like)[:, None, None, None]
