"""Bayer mosaics to three channels: 2 x 2 binning, and linear interpolation with gradients (Malvar, He, Cutler 2004)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Pattern = tuple[int, int, int, int]  # colours 0 red, 1 green, 2 blue of the top left 2 x 2 sites, row by row

# Malvar, He, Cutler: High-quality linear interpolation for demosaicing of Bayer-patterned color images (ICASSP 2004),
# figure 2, in eighths: green at red and blue; a colour at a green site whose row neighbours have it (where its column
# neighbours have it: the transpose); red at blue and blue at red.
_GREEN = ((0, 0, -1, 0, 0), (0, 0, 2, 0, 0), (-1, 2, 4, 2, -1), (0, 0, 2, 0, 0), (0, 0, -1, 0, 0))
_ROW = ((0, 0, 0.5, 0, 0), (0, -1, 0, -1, 0), (-1, 4, 5, 4, -1), (0, -1, 0, -1, 0), (0, 0, 0.5, 0, 0))
_CROSS = ((0, 0, -1.5, 0, 0), (0, 2, 0, 2, 0), (-1.5, 0, 6, 0, -1.5), (0, 2, 0, 2, 0), (0, 0, -1.5, 0, 0))


def check_pattern(pattern: Pattern) -> None:
    """Refuse what is not a Bayer pattern: one red, one blue, and the two greens on a diagonal.

    Raises:
        ValueError: naming the pattern.
    """
    greens = [site for site, colour in enumerate(pattern) if colour == 1]
    if sorted(pattern) != [0, 1, 1, 2] or greens not in ([1, 2], [0, 3]):
        raise ValueError(f"pattern: expected a Bayer pattern (RGGB, BGGR, GRBG or GBRG); got {pattern}")


def bin_quads(mosaic: Tensor, pattern: Pattern) -> Tensor:
    """Half the size, no interpolation: each 2 x 2 quad becomes a pixel, its greens averaged.

    Args:
        mosaic: ``(H,W)``, float; an odd last row or column is dropped.
        pattern: of its top left corner.

    Returns:
        ``(3, H // 2, W // 2)``.
    """
    height, width = mosaic.shape[0] // 2 * 2, mosaic.shape[1] // 2 * 2
    return bin_sites([mosaic[y:height:2, x:width:2] for y in (0, 1) for x in (0, 1)], pattern)


def bin_sites(sites: Sequence[Tensor], pattern: Pattern) -> Tensor:
    """`bin_quads` of a mosaic whose four sites are given apart, row by row, ``(H,W)`` each -> ``(3,H,W)``."""
    check_pattern(pattern)
    first, second = (site for site, colour in zip(sites, pattern, strict=True) if colour == 1)
    return torch.stack([sites[pattern.index(0)], (first + second) / 2, sites[pattern.index(2)]])


def interpolate(mosaic: Tensor, pattern: Pattern) -> Tensor:
    """Full size, by the linear filters of Malvar, He and Cutler (2004); measured values stay as they are.

    Args:
        mosaic: ``(H,W)``, float, sides of at least 3 px; white balanced, as the filters carry edges of one channel
            over to the others.
        pattern: of its top left corner.

    Returns:
        ``(3,H,W)``; sharp edges may overshoot.
    """
    check_pattern(pattern)
    green, row, cross = (torch.tensor(kernel).to(mosaic) / 8 for kernel in (_GREEN, _ROW, _CROSS))
    kernels = torch.stack([green, row, row.T, cross])[:, None]
    padded = F.pad(mosaic[None, None], (2, 2, 2, 2), mode="reflect")  # keeps the parity of the pattern
    at_other, along_row, along_column, across = F.conv2d(padded, kernels)[0]
    pixels = mosaic.expand(3, -1, -1).clone()
    for site, colour in enumerate(pattern):
        y, x = divmod(site, 2)
        if colour == 1:
            beside = pattern[site ^ 1]  # the colour in the same row
            pixels[beside, y::2, x::2] = along_row[y::2, x::2]
            pixels[2 - beside, y::2, x::2] = along_column[y::2, x::2]
        else:
            pixels[1, y::2, x::2] = at_other[y::2, x::2]
            pixels[2 - colour, y::2, x::2] = across[y::2, x::2]
    return pixels
