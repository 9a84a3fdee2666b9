"""The 37 traditional tools of DRL-ISP, for batches in which each image has its own tool.

Shin, Lee, Kweon: DRL-ISP: Multi-Objective Camera ISP with Deep Reinforcement Learning (IROS 2022). The factors are
those of its published implementation, which calls OpenCV on one 8-bit image at a time; here the tools are torch
functions on floating-point sRGB, ``(B, 3, H, W)`` in [0, 1], on any device. So nothing is rounded to 8 bits, results
that 8 bits would wrap around are clipped instead, and an image's result does not depend on the batch. Its 14 networks
are not among them. Not made for gradients.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attriqa.distortions.kadid.colorspaces import lab_to_rgb, rgb_to_lab
from attriqa.images import check

_GAMMA_GAIN = 1.2  # DRL-ISP multiplies by it whichever way gamma goes
_BILATERAL_RADIUS = 7  # px: a diameter of 15
_BILATERAL_SIGMA = 75.0  # of distance in px, and of the sum of the channels' differences in levels of 255
_GAUSSIAN_SIGMA = 1.5  # px
_CLAHE_LIMIT, _CLAHE_TILES = 2.0, 8
_CAST = 1.1  # share of the mean a and b of CIELAB that white balance takes away at L = 100
_LEVELS = 256


@dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes:
        name: in tables and logs.
        apply: ``(B, 3, H, W)`` -> ``(B, 3, H, W)``; the result may leave [0, 1], `apply_tools` clips it.
    """

    name: str
    apply: Callable[[Tensor], Tensor]


def apply_tools(images: Tensor, tools: Sequence[int] | NDArray[np.integer]) -> Tensor:
    """Apply one tool to each image; the images of one tool go through it together.

    Args:
        images: ``(B, 3, H, W)`` sRGB in [0, 1], sides of at least 32 px.
        tools: B indices into `TOOLS`; `DONE` leaves an image as it is.

    Returns:
        ``(B, 3, H, W)`` in [0, 1], a new tensor, without gradients.

    Raises:
        ValueError: wrong images, or ``tools`` are not B indices from 0 to `DONE`.
    """
    check(images)
    chosen = np.asarray(tools)
    if chosen.shape != (len(images),) or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"tools: expected {len(images)} integers; got {chosen.dtype} of shape {chosen.shape}")
    if chosen.min() < 0 or chosen.max() > DONE:
        raise ValueError(f"tools: expected indices from 0 to {DONE}; got {chosen.min()} to {chosen.max()}")
    out = images.detach().clone()
    with torch.no_grad():
        for index in np.unique(chosen[chosen != DONE]).tolist():
            rows = torch.from_numpy(np.flatnonzero(chosen == index)).to(images.device)
            out[rows] = TOOLS[index].apply(images[rows]).clamp(0, 1)
    return out


def _add(images: Tensor, amount: float) -> Tensor:
    return images + amount


def _multiply(images: Tensor, factor: float) -> Tensor:
    return images * factor


def _gamma(images: Tensor, exponent: float) -> Tensor:
    return _GAMMA_GAIN * images.clamp(min=0).pow(exponent)


def _hue(images: Tensor, radians: float) -> Tensor:
    """Turn the hue of HSV, keep its saturation and value."""
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    divisor = chroma.clamp(min=torch.finfo(images.dtype).tiny)
    sector = torch.where(value == red, (green - blue) / divisor, 4 + (red - green) / divisor)
    sector = torch.where((value == green) & (value != red), 2 + (blue - red) / divisor, sector)
    turned = sector + radians * 3 / math.pi
    channels = []
    for offset in (5, 3, 1):  # of red, green and blue on the circle of six sectors
        place = (turned + offset) % 6
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, 1)


def _saturate(images: Tensor, factor: float) -> Tensor:
    """Multiply the saturation of HSV, up to 1; hue and value stay."""
    value = images.amax(1, keepdim=True)
    chroma = (value - images.amin(1, keepdim=True)).clamp(min=torch.finfo(images.dtype).tiny)
    return value - (value - images) * (value / chroma).clamp(max=factor)


def _three_by_three(images: Tensor, side: float) -> Tensor:
    """The separable filter of taps (side, 1 - 2 side, side), borders mirrored without repeating the edge."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    rows = side * (padded[..., :-2] + padded[..., 2:]) + (1 - 2 * side) * padded[..., 1:-1]
    return side * (rows[..., :-2, :] + rows[..., 2:, :]) + (1 - 2 * side) * rows[..., 1:-1, :]


def _sharpen(images: Tensor) -> Tensor:
    """Nine times a pixel minus its eight neighbours."""
    return 10 * images - 9 * _three_by_three(images, 1 / 3)


def _blur_box(images: Tensor) -> Tensor:
    return _three_by_three(images, 1 / 3)


def _blur_gaussian(images: Tensor) -> Tensor:
    beside = math.exp(-0.5 / _GAUSSIAN_SIGMA**2)
    return _three_by_three(images, beside / (1 + 2 * beside))


def _blur_bilateral(images: Tensor) -> Tensor:
    """Weights of distance and colour over a disc (Tomasi and Manduchi 1998), each pair of pixels weighed once."""
    reach = _BILATERAL_RADIUS
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    total, weight = padded.clone(), torch.ones_like(padded[:, :1])
    height, width = padded.shape[2:]
    for down in range(reach + 1):
        for right in range(-reach if down else 1, reach + 1):
            if down**2 + right**2 > reach**2:
                continue
            left = max(0, -right)
            here = (..., slice(0, height - down), slice(left, width - max(0, right)))
            there = (..., slice(down, height), slice(left + right, width - max(0, right) + right))
            difference = 255 * (padded[here] - padded[there]).abs().sum(1, keepdim=True)
            square = (difference**2 + (down**2 + right**2)) / (2 * _BILATERAL_SIGMA**2)
            pair = torch.exp(-square)
            total[here] += pair * padded[there]
            total[there] += pair * padded[here]
            weight[here] += pair
            weight[there] += pair
    return (total / weight)[..., reach:-reach, reach:-reach]


def _luma(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601, ``(B, H, W)``."""
    return 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]


def _histograms(levels: Tensor) -> Tensor:
    """Counts of the integers 0 to 255 in each row of ``(N, M)``: ``(N, 256)``, float64."""
    counts = torch.zeros(len(levels), _LEVELS, dtype=torch.float64, device=levels.device)
    return counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))


def _look_up(curves: Tensor, index: Tensor, level: Tensor) -> Tensor:
    """Values of curves ``(N, 256)`` at ``level`` in [0, 255], interpolated between levels; ``index`` says which curve.

    The curves are in levels; interpolation keeps the smooth gradients of a picture that has more than 8 bits.
    """
    below = level.floor().clamp(0, _LEVELS - 2)
    at = index * _LEVELS + below.long()
    flat = curves.flatten().to(level.dtype)
    return torch.lerp(flat[at], flat[at + 1], level - below)


def _equalize(images: Tensor) -> Tensor:
    """Spread luma evenly over its range; U and V of YUV stay, so all channels move by the same amount."""
    luma = _luma(images)
    level = 255 * luma.clamp(0, 1)
    counts = _histograms(level.round().long().flatten(1))
    first = counts.gather(1, (counts > 0).int().argmax(1, keepdim=True))
    others = counts.sum(1, keepdim=True) - first
    curves = ((counts.cumsum(1) - first).clamp(min=0) / others.clamp(min=1) * 255).round()
    rows = torch.arange(len(images), device=images.device)[:, None, None]
    equalized = _look_up(curves, rows, level)
    equalized = torch.where(others[:, :, None] > 0, equalized, level)  # one level alone has no range to spread over
    return images + (equalized / 255 - luma)[:, None]


def _equalize_adaptively(images: Tensor) -> Tensor:
    """Equalize luma in 8 x 8 tiles with limited contrast (Zuiderveld 1994), interpolated between the tiles' middles."""
    luma = _luma(images)
    count, height, width = luma.shape
    down, right = -height % _CLAHE_TILES, -width % _CLAHE_TILES
    level = 255 * F.pad(luma[:, None], (0, right, 0, down), mode="reflect")[:, 0].clamp(0, 1)
    tall, wide = level.shape[1] // _CLAHE_TILES, level.shape[2] // _CLAHE_TILES
    tiles = level.unflatten(2, (_CLAHE_TILES, wide)).unflatten(1, (_CLAHE_TILES, tall)).transpose(2, 3)
    counts = _limited(_histograms(tiles.round().long().reshape(-1, tall * wide)), tall * wide)
    curves = (counts.cumsum(1) * 255 / (tall * wide)).round().clamp(max=255)
    first_row, second_row, row_share = _between_tiles(height, tall, luma)
    first_column, second_column, column_share = _between_tiles(width, wide, luma)
    start = torch.arange(count, device=images.device)[:, None, None] * _CLAHE_TILES**2
    level = level[:, :height, :width]

    def along(row: Tensor) -> Tensor:
        corner = start + row[:, None] * _CLAHE_TILES
        left, over = (_look_up(curves, corner + column, level) for column in (first_column, second_column))
        return torch.lerp(left, over, column_share)

    equalized = torch.lerp(along(first_row), along(second_row), row_share[:, None])
    return images + (equalized / 255 - luma)[:, None]


def _limited(counts: Tensor, pixels: int) -> Tensor:
    """Cut histograms ``(N, 256)`` at the limit and spread what was cut: evenly, the rest at even distances."""
    limit = max(1, int(_CLAHE_LIMIT * pixels / _LEVELS))
    kept = counts.clamp(max=limit)
    cut = (counts - kept).sum(1, keepdim=True)
    each = (cut / _LEVELS).floor()
    rest = cut - each * _LEVELS
    stride = (_LEVELS / rest.clamp(min=1)).floor()
    place = torch.arange(_LEVELS, dtype=counts.dtype, device=counts.device)
    return kept + each + ((place % stride == 0) & (place / stride < rest)).to(counts.dtype)


def _between_tiles(side: int, tile: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel along a side: the tiles before and after it, and the share of the latter."""
    place = (torch.arange(side, dtype=like.dtype, device=like.device)) / tile - 0.5
    before = place.floor()
    last = _CLAHE_TILES - 1
    return before.long().clamp(min=0), (before.long() + 1).clamp(max=last), place - before


def _balance(images: Tensor) -> Tensor:
    """Gray world in CIELAB: takes away the mean a and b, in proportion to lightness."""
    lab = rgb_to_lab(images)
    cast = lab[:, 1:].mean((2, 3), keepdim=True)
    balanced = torch.cat((lab[:, :1], lab[:, 1:] - _CAST * cast * lab[:, :1] / 100), 1)
    return lab_to_rgb(balanced)


TOOLS: tuple[Tool, ...] = (
    *(Tool(f"brightness +{amount}", partial(_add, amount=amount)) for amount in (0.05, 0.15, 0.3)),
    *(Tool(f"brightness -{amount}", partial(_add, amount=-amount)) for amount in (0.05, 0.15, 0.3)),
    *(Tool(f"contrast *{factor}", partial(_multiply, factor=factor)) for factor in (1.25, 1.5, 2.0)),
    *(Tool(f"contrast /{factor}", partial(_multiply, factor=1 / factor)) for factor in (1.25, 1.5, 2.0)),
    *(Tool(f"gamma {exponent}", partial(_gamma, exponent=exponent)) for exponent in (0.7, 0.45, 0.3, 1.2, 1.45, 1.8)),
    *(Tool(f"hue +{angle}", partial(_hue, radians=angle)) for angle in (0.2, 0.5, 1.0)),
    *(Tool(f"hue -{angle}", partial(_hue, radians=-angle)) for angle in (0.2, 0.5, 1.0)),
    *(Tool(f"saturation *{factor}", partial(_saturate, factor=factor)) for factor in (1.2, 1.4, 1.8, 0.8, 0.6, 0.4)),
    Tool("sharpen", _sharpen),
    Tool("box blur", _blur_box),
    Tool("gaussian blur", _blur_gaussian),
    Tool("bilateral blur", _blur_bilateral),
    Tool("equalize histogram", _equalize),
    Tool("equalize histogram adaptively", _equalize_adaptively),
    Tool("gray-world white balance", _balance),
)
DONE = len(TOOLS)  # the index of the action that ends an episode
