"""Linear pictures and params for the tests of the ISP."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa_envs.isp import KEYS, bounds

P = len(KEYS)


def params(batch: int = 1, dtype: torch.dtype = torch.float32, **values: float) -> Tensor:  # of a test, by key
    """``(batch, P)`` of zeros but for the named ones."""
    made = torch.zeros(batch, P, dtype=dtype)
    for key, value in values.items():
        made[:, KEYS.index(key)] = value
    return made


def random_params(batch: int, seed: int = 0, inside: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """``(batch, P)``, uniform in the box, or in its middle ``inside`` part."""
    share = torch.rand(batch, P, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = bounds(torch.zeros(1, dtype=torch.float64))
    return (low + (high - low) * (0.5 + inside * (share - 0.5))).to(dtype)


def corners(batch: int, seed: int = 0) -> Tensor:
    """``(batch, P)`` corners of the box, the lowest and the highest first."""
    low, high = bounds(torch.zeros(1))
    chosen = torch.rand(batch, P, generator=torch.Generator().manual_seed(seed)) < 0.5
    chosen[0], chosen[1] = False, True
    return torch.where(chosen, high, low)


def picture(batch: int = 1, height: int = 40, width: int = 48, seed: int = 0) -> Tensor:
    """``(batch, 3, H, W)`` in about 0.03 .. 0.6 with detail at several scales, nothing of it clipped."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        F.interpolate(torch.rand(batch, 3, n, n, generator=generator), (height, width), mode="bilinear")
        for n in (4, 12, 32)
    ]
    return (0.2 + 0.6 * torch.stack(drawn).mean(0)) ** 2


def patches(*colours: tuple[float, float, float], size: int = 4) -> Tensor:
    """``(1, 3, size, size * len(colours))``: flat patches beside one another."""
    return torch.tensor(colours).T[None, :, None, :].expand(1, 3, size, -1).repeat_interleave(size, 3)


def gray_ramp(last: float = 1.0, count: int = 256, dtype: torch.dtype = torch.float64) -> Tensor:
    """``(1, 3, 1, count)`` grays, from black to ``last``, even to the eye."""
    return (torch.linspace(0, 1, count, dtype=dtype) ** 2.4 * last).expand(1, 3, 1, count)


def awkward(batch: int, seed: int = 0, side: int = 8) -> Tensor:
    """``(batch, 3, side, side)``: black, gray, pure colours, headroom to 1000, flat and noisy pictures of any scale."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 3, side, side, generator=generator)
    images = images * 10 ** (8 * torch.rand(batch, 1, 1, 1, generator=generator) - 5)
    kind = torch.arange(batch) % 5
    images[kind == 1] = images[kind == 1].mean(1, keepdim=True)  # gray
    images[kind == 2] = images[kind == 2].mean((2, 3), keepdim=True)  # flat
    images[kind == 3] *= torch.rand(images[kind == 3].shape, generator=generator) < 0.5  # black, and pure colours
    images[kind == 4, :, : side // 2] = 0
    images[0] = 0
    return images.clamp(0, 1000)


def psnr(first: Tensor, second: Tensor) -> float:
    """Decibels between two pictures of any shape, 1 being white."""
    return float(-10 * torch.log10((first - second).square().mean()))
