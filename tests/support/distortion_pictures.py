"""Small pictures, seeds and values for the tests of distortions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(*seeds: int) -> list[torch.Generator]:
    return [seeded(seed) for seed in seeds]


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def noise(count: int = 1, height: int = 37, width: int = 29) -> Tensor:
    """(B, 3, H, W) float64, uniform and independent."""
    return torch.rand(count, 3, height, width, generator=seeded(), dtype=torch.float64)


def detailed(count: int, height: int, width: int, scales: Sequence[int], seed: int | None = None) -> Tensor:
    """(B, 3, H, W), a mean of coarse and fine noise; without a seed, each scale is drawn by itself."""
    generator = None if seed is None else seeded(seed)
    drawn = [torch.rand(count, 3, n, n, generator=generator or seeded(n)) for n in scales]
    return torch.stack([F.interpolate(coarse, (height, width), mode="bilinear") for coarse in drawn]).mean(0)


def picture(height: int = 56, width: int = 64, seed: int = 0) -> Tensor:
    """(1, 3, H, W) on the 8-bit grid, with detail at several scales and the whole range of values."""
    stretched = (detailed(1, height, width, (3, 10, 40), seed) - 0.5) * 2.5 + 0.5
    return (stretched.clamp(0, 1) * 255).round() / 255
