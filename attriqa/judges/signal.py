"""Classical measures of the five attributes, each from an image alone: no weights, no training.

Every function takes images (B, 3, H, W), float32 sRGB in [0, 1] with sides of at least 32 px, and returns (B,) float32,
higher for more of its attribute (noisiness: for a cleaner image). The images of a batch do not touch one another.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

VERSION = 1  # to be raised whenever a measure gives other numbers, as stored labels name it

_BLOCK = 16  # pixels: side of the squares that noise and edges are measured in
_SMOOTHEST = 0.1  # the quantile of blocks by noise: those so smooth that they show the noise alone
_TYPICAL = 0.5  # another: half of the blocks have more
_EDGE_SHARE = 0.1  # of an image's blocks holds its clearest edges
_FINE, _COARSE = 0.7, 3.0  # pixels: standard deviations of the two scales that edges are compared at
_NOISE_ANISOTROPY = 0.3  # of the gradient energy of white noise, taken off as not an edge's: see `sharpness`
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # Y of linear sRGB, IEC 61966-2-1


def brightness(images: Tensor) -> Tensor:
    """Mean lightness: CIELAB L* (CIE 1976, D65 white) averaged over the image, in [0, 100]."""
    return _lightness(images).mean((1, 2, 3))


def contrast(images: Tensor) -> Tensor:
    """RMS contrast (Peli, Contrast in complex images, JOSA A 7(10), 1990) of lightness: L*'s deviation, in [0, 50].

    Peli takes luminance scaled to [0, 1]; L* is spaced as people see it, so that a dark image's contrast counts. The
    variance of the noise is taken off (`_clean_variance`): noise is not contrast.
    """
    return _clean_variance(_lightness(images)).sqrt().squeeze(1)


def colorfulness(images: Tensor) -> Tensor:
    """M3 of Hasler and Suesstrunk (Measuring colourfulness in natural images, SPIE HVEI 2003), on values of 0 to 255.

    With rg = R - G and yb = (R + G) / 2 - B: ``sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2)``; 0 is gray,
    15 slightly, 59 quite and 109 extremely colorful by the authors' scale. The variances of the noise are taken off
    (`_clean_variance`): noise of deviation 0.2 would make a gray image highly colorful.
    """
    red, green, blue = (images * 255).unbind(1)
    opponent = torch.stack([red - green, (red + green) / 2 - blue], dim=1)  # (B, 2, H, W)
    spread = _clean_variance(opponent).sum(1).sqrt()
    return spread + 0.3 * opponent.mean((2, 3)).square().sum(1).sqrt()


def noisiness(images: Tensor) -> Tensor:
    """Minus the standard deviation of the noise, in [-1, 0] of full scale: 0 is clean; three channels' RMS."""
    return -noise_deviation(images).square().mean(1).sqrt()


def noise_deviation(planes: Tensor, quantile: float = _SMOOTHEST) -> Tensor:
    """Standard deviation of the white noise in each plane: (B, C, H, W) -> (B, C), in the planes' unit.

    The operator of Immerkaer (Fast noise variance estimation, CVIU 64(2), 1996), which is blind to planes and to edges
    along the axes: ``sqrt(pi / 2) / 6`` times the mean absolute response. His mean over the whole image takes texture
    for noise; here it is the mean within each block of 16 x 16 px, and of the blocks a low ``quantile``: the smoothest
    part of the image, where noise is what there is. It reads low by a tenth or so, and by more where values are cut off
    at black and white, as the noise is cut off with them.
    """
    across = planes[..., 2:] - 2 * planes[..., 1:-1] + planes[..., :-2]
    response = (across[..., 2:, :] - 2 * across[..., 1:-1, :] + across[..., :-2, :]).abs()
    level = F.avg_pool2d(response, _BLOCK).flatten(2).quantile(quantile, dim=2)  # of (B, C, blocks)
    return math.sqrt(math.pi / 2) / 6 * level


def sharpness(images: Tensor) -> Tensor:
    """How much stronger the clearest edges are at a fine scale than at a coarse one: a log ratio, about -2.5 to 1.

    An ideal step edge has gradients in inverse proportion to the blur it is seen through, so that the ratio of
    gradients at two scales tells its own blur, whatever its contrast (as in Zhuo and Sim, Defocus map estimation from a
    single image, Pattern Recognition 44(9), 2011). Against noise, which has more gradient at a fine scale than any
    photo, gradients count by the structure tensor (Bigun and Granlund, ICCV 1987): an edge has one direction and
    raises one eigenvalue, noise has none and raises both alike, so the difference of the eigenvalues stays. (Singular
    values so compared are what keeps the measure of Zhu and Milanfar, IEEE TIP 19(12), 2010, from taking noise for
    detail.) In a block of few pixels noise has some direction by chance, 0.11 of its energy in the mean; 0.3 is taken
    off, as the noise that is found is often less than there is: what does not stand out of the noise is no detail.

    The tenth of the blocks that is most edge-like at the coarse scale, which is the same before and after noise or a
    little blur, is what is measured.
    """
    gray = (images * images.new_tensor(_LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
    fine, coarse = (_edge_energy(_gaussian(gray, sigma)) for sigma in (_FINE, _COARSE))  # (B, blocks)
    clearest = coarse >= coarse.quantile(1 - _EDGE_SHARE, dim=1, keepdim=True)
    fine, coarse = ((energy * clearest).sum(1) / clearest.sum(1) for energy in (fine, coarse))
    chance = _NOISE_ANISOTROPY * noise_deviation(gray).squeeze(1).square() * _noise_energy(_FINE)
    # Edges alone have no ratio below one: a tenth keeps what drowns in noise near that. An image without edges is not
    # sharp; the other two numbers are less than 8-bit steps make.
    return 0.5 * torch.log(((fine - chance).clamp(min=0) + 0.1 * coarse + 1e-8) / (coarse + 1e-6))


def _lightness(images: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB -> (B, 1, H, W) L* in [0, 100]."""
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    luminance = (linear * images.new_tensor(_LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
    cube_root = luminance.clamp(min=216 / 24389) ** (1 / 3)
    return torch.where(luminance > 216 / 24389, 116 * cube_root - 16, luminance * (24389 / 27))


def _clean_variance(planes: Tensor) -> Tensor:
    """Variance of each plane less that of its noise, not below zero: (B, C, H, W) -> (B, C).

    The noise is that of the median block. The smoothest ones are often the darkest or lightest, where most of it is cut
    off; here texture that passes for noise costs little, as it has little variance.
    """
    return (planes.var((2, 3), correction=0) - noise_deviation(planes, _TYPICAL).square()).clamp(min=0)


def _gaussian(gray: Tensor, sigma: float) -> Tensor:
    """(B, 1, H, W) through a Gaussian of ``sigma`` pixels, cut at three of them; borders are replicated.

    Sums of shifted copies: a convolution of one channel is slower on a CPU, and on a GPU may round to TF32.
    """
    radius = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    for axis, sides in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        length, padded = gray.shape[axis], F.pad(gray, sides, mode="replicate")
        gray = torch.zeros_like(gray)
        for start, weight in enumerate(weights):
            gray.add_(padded.narrow(axis, start, length), alpha=weight / sum(weights))
    return gray


def _gradients(gray: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along x and y of (B, 1, H, W), each (B, 1, H - 2, W - 2)."""
    across = (gray[:, :, 1:-1, 2:] - gray[:, :, 1:-1, :-2]) / 2
    down = (gray[:, :, 2:, 1:-1] - gray[:, :, :-2, 1:-1]) / 2
    return across, down


def _edge_energy(gray: Tensor) -> Tensor:
    """Difference of the structure tensor's eigenvalues in each block: (B, 1, H, W) -> (B, blocks)."""
    across, down = _gradients(gray)
    xx, yy, xy = (F.avg_pool2d(product, _BLOCK) for product in (across**2, down**2, across * down))
    return torch.hypot(xx - yy, 2 * xy).flatten(1)


def _noise_energy(sigma: float) -> float:
    """Mean squared gradient of white noise of variance one behind a Gaussian of ``sigma`` pixels."""
    radius = math.ceil(3 * sigma) + 2
    impulse = torch.zeros(1, 1, 2 * radius + 1, 2 * radius + 1)
    impulse[..., radius, radius] = 1
    across, down = _gradients(_gaussian(impulse, sigma))
    return float((across**2 + down**2).sum())
