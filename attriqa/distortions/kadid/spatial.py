"""Distortions that move pixels or cover them (KADID-10k #19, #20, #21 and #23)."""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

JITTER_ROUNDS = 5
PATCH = 16  # px, side of a patch that is copied
BLOCK = 32  # px, side of a block of colour


def jitter(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#19: five times, every pixel is fetched from a random place near it, by bicubic interpolation; not clipped.

    The kernel is Keys' with a = -1/2, as that of MATLAB's ``interp2``; beyond the border the nearest pixel stands. A
    value is the standard deviation of both shifts, in pixels. Each generator draws ``(2, H, W)`` standard normals five
    times: shifts down, shifts right.

    Source: R. Keys, "Cubic convolution interpolation", 1981; KADIS-700k.
    """
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for index, (sigma, generator) in enumerate(zip(values.tolist(), generators, strict=True)):
        image = images[index]
        for _ in range(JITTER_ROUNDS):
            shift = torch.empty(2, *image.shape[1:]).normal_(0, sigma, generator=generator)
            image = _fetch(image, shift.neg_())
        out[index] = image
    return out


def _fetch(image: Tensor, offset: Tensor) -> Tensor:
    """The image ``(3, H, W)`` at each pixel plus its offset ``(2, H, W)``, down and right, by Keys' cubic convolution.

    With a = -1/2 the kernel is linear interpolation of ``f - t (1 - t) / 2 * f''``, where ``f''`` is the second
    difference and t the position between two pixels: in two dimensions, four bilinear look-ups at one place.
    """
    margin = math.ceil(max(abs(float(extreme)) for extreme in offset.aminmax())) + 2
    offset = offset.to(image)
    padded = F.pad(image[None], (margin,) * 4, mode="replicate")
    across, down = _second_difference(padded, -1), _second_difference(padded, -2)
    both = _second_difference(down, -1)
    part = offset - offset.floor()
    bend_down, bend_right = (part - 1).mul_(part).mul_(0.5)  # -t (1 - t) / 2
    places = torch.empty_like(offset)  # right, down: from -1 to 1 over the padded image
    for axis, place in ((1, places[1]), (2, places[0])):
        step = 2 / (padded.shape[axis + 1] - 1)
        unmoved = (
            torch.arange(image.shape[axis], dtype=image.dtype, device=image.device).add_(margin).mul_(step).sub_(1)
        )
        torch.add(unmoved[:, None] if axis == 1 else unmoved, offset[axis - 1], alpha=step, out=place)
    grid = places.permute(1, 2, 0)[None]

    def look_up(planes: Tensor) -> Tensor:
        return F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0]

    fetched = look_up(padded).addcmul_(look_up(across), bend_right).addcmul_(look_up(down), bend_down)
    return fetched.addcmul_(look_up(both), bend_down.mul_(bend_right))


def _second_difference(planes: Tensor, dim: int) -> Tensor:
    """``f[i-1] - 2 f[i] + f[i+1]``, 0 at both ends."""
    inner = planes.shape[dim] - 2
    out = torch.empty_like(planes)
    out.select(dim, 0).zero_()
    out.select(dim, -1).zero_()
    bend = torch.add(planes.narrow(dim, 0, inner), planes.narrow(dim, 2, inner), out=out.narrow(dim, 1, inner))
    bend.sub_(planes.narrow(dim, 1, inner), alpha=2)
    return out


def non_eccentricity_patch(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#20: patches of 16 x 16 px are copied, one after another, to places up to 8 px away; later ones see earlier ones.

    A patch is taken from row ``16 + round(r (H - 48))`` and put up to 8 px above or below; columns likewise: sides have
    at least 48 px. A value is the number of patches ``n``. Each generator draws ``(n, 4)`` uniform numbers: per patch
    those of its row and column, and of the row and column of its copy.
    """
    out = images.to("cpu", copy=True, memory_format=torch.contiguous_format)
    free = torch.tensor(images.shape[-2:]) - 3 * PATCH
    for image, count, generator in zip(out, values.tolist(), generators, strict=True):
        drawn = torch.rand(round(count), 4, generator=generator)
        taken = _rounded(drawn[:, :2] * free) + PATCH
        put = _rounded((drawn[:, 2:] - 0.5) * PATCH + taken)
        pixels = image.numpy()
        for (y, x), (to_y, to_x) in zip(taken.tolist(), put.tolist(), strict=True):
            pixels[:, to_y : to_y + PATCH, to_x : to_x + PATCH] = pixels[:, y : y + PATCH, x : x + PATCH].copy()
    return out.to(images.device)


def _rounded(values: Tensor) -> Tensor:
    """To the nearest whole number, halves up, as MATLAB's ``round`` does with positive numbers."""
    return (values + 0.5).floor().long()


def pixelate(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#21: scaled down by ``z = 0.95 - s^0.6`` to ``ceil(z H) x ceil(z W)`` and back up, both by nearest neighbours.

    A value is the strength ``s``, below 0.91. Nearest neighbours go by the ratio of the sizes; all colours are the
    image's own.
    """
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    height, width = images.shape[-2:]
    for index, strength in enumerate(values.tolist()):
        scale = 0.95 - strength**0.6
        shown = (_nearest(height, scale)[:, None] * width + _nearest(width, scale)).view(-1).to(images.device)
        for plane, pixels in zip(out[index], images[index], strict=True):
            torch.index_select(pixels.reshape(-1), 0, shown, out=plane.view(-1))
    return out


def _nearest(side: int, scale: float) -> Tensor:
    """Which of ``side`` pixels stands at each of them after a line was scaled down by ``scale`` and back up."""
    small = math.ceil(scale * side)
    # By the sizes' own ratio: by the scale, which rounding up exceeds, the picture would move by up to a pixel, and the
    # first level differ more from the photo than the third.
    kept = ((torch.arange(small, dtype=torch.float64) + 0.5) * side / small).floor().long()
    shown = ((torch.arange(side, dtype=torch.float64) + 0.5) * small / side).floor().long()
    return kept[shown]


def color_block(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#23: opaque squares of 32 x 32 px in random colours, wholly inside the image; a later one lies on an earlier one.

    A value is the number of squares ``n``; sides have at least 32 px. Each generator draws ``(n, 5)`` uniform numbers:
    per square R, G, B, and those of its column and row, ``round(r (W - 32))`` and ``round(r (H - 32))``.
    """
    out = images.clone(memory_format=torch.contiguous_format)
    height, width = images.shape[-2:]
    for image, count, generator in zip(out, values.tolist(), generators, strict=True):
        drawn = torch.rand(round(count), 5, generator=generator)
        corners = _rounded(drawn[:, 3:] * torch.tensor([width - BLOCK, height - BLOCK]))
        for colour, (x, y) in zip(drawn[:, :3].to(out), cast(list[list[int]], corners.tolist()), strict=True):
            image[:, y : y + BLOCK, x : x + BLOCK] = colour[:, None, None]
    return out
