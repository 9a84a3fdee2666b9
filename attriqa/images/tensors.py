"""The contract of image tensors, ``(B, 3, H, W)`` sRGB in [0, 1], and resizing within it."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SIDE = 32  # px; the shortest side of an image that can be scored
MAX_PIXELS = 170_000_000  # that a file may declare; Pillow itself, unless told otherwise, refuses over 179 million

MAX_ASPECT = 4  # `target_size` gives at most so many times the area of the square on the shorter edge


def check(images: object, *, name: str = "images") -> None:
    """Refuse what is not ``(B,3,H,W)``, float, in [0,1], B >= 1, sides >= 32 px; one pass, one device synchronisation.

    All four float dtypes pass. Values may leave [0,1] by 1e-6, as float32 resizing does.

    Raises:
        ValueError: naming the argument ``name``, what was expected and what came.
    """
    expected = f"{name}: expected a float tensor (B,3,H,W) in [0,1], B >= 1, sides of at least {MIN_SIDE} px; got "
    if not isinstance(images, Tensor):
        raise ValueError(expected + type(images).__name__)  # noqa: TRY004 (the contract: always ValueError)
    got = f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
    floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    if images.dtype not in floats or images.layout is not torch.strided:
        raise ValueError(f"{expected}{got}, {images.layout}")
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] < 1 or min(images.shape[2:]) < MIN_SIDE:
        raise ValueError(expected + got)
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()  # one NaN makes both NaN
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise ValueError(f"{expected}{got}, " + ("with NaN" if low != low else f"from {low:g} to {high:g}"))


def target_size(height: int, width: int, shorter_edge: int, max_pixels: int | None = None) -> tuple[int, int]:
    """The ``(height, width)`` that an image takes at ``shorter_edge``; files and tensors share it.

    The shorter side becomes ``shorter_edge``, the longer one keeps the aspect, rounded to the nearest px (half up).
    Where that has more than ``max_pixels`` (`MAX_ASPECT` times ``shorter_edge`` squared unless given: only panoramas
    over 4:1 do) both sides shrink to fit, down to 32 px for the shorter one; beyond that only the longer one shrinks,
    and the aspect changes.

    Raises:
        ValueError: a side that is not positive, ``shorter_edge`` not an integer >= 32, ``max_pixels`` < 32 squared.
    """
    if min(height, width) < 1:
        raise ValueError(f"height, width: expected at least 1 px; got {height}, {width}")
    if not isinstance(shorter_edge, int) or shorter_edge < MIN_SIDE:
        raise ValueError(f"shorter_edge: expected an integer of at least {MIN_SIDE} px; got {shorter_edge!r}")
    limit = MAX_ASPECT * shorter_edge**2 if max_pixels is None else max_pixels
    if limit < MIN_SIDE**2:
        raise ValueError(f"max_pixels: expected at least {MIN_SIDE**2}; got {max_pixels}")
    short, long = sorted((height, width))
    small = shorter_edge
    large = (2 * long * small + short) // (2 * short)
    if small * large > limit:
        small = max(MIN_SIDE, min(small, isqrt(limit * short // long)))
        large = min((2 * long * small + short) // (2 * short), limit // small)
    return (small, large) if height <= width else (large, small)


def resize_shorter(images: Tensor, size: int, max_pixels: int | None = None) -> Tensor:
    """Resize to `target_size` with antialiased bilinear interpolation; differentiable.

    Every result is a weighted mean of pixels, so it stays in their range (up to 1e-6 of float32 rounding, which
    `check` grants); no clamp that would stop gradients is needed. Half precision is computed in float32.

    Returns:
        ``(B,C,H',W')`` of the dtype of ``images (B,C,H,W)``; ``images`` themselves where they have the size already.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images: expected float (B,C,H,W); got {images.dtype} of shape {tuple(images.shape)}")
    height, width = target_size(images.shape[2], images.shape[3], size, max_pixels)
    if (height, width) == tuple(images.shape[2:]):
        return images
    wide = images.to(torch.float32) if images.dtype in (torch.float16, torch.bfloat16) else images
    return F.interpolate(wide, (height, width), mode="bilinear", antialias=True).to(images.dtype)
