"""Noise, and what is left after its removal (KADID-10k #11 to #15)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attriqa.distortions.kadid import per_image
from attriqa.distortions.kadid.colorspaces import rgb_to_ycbcr, ycbcr_to_rgb

TV_WEIGHT = 0.7  # of the noise's standard deviation: near the best PSNR on photos at each of the five levels
TV_STEPS = 12


def white_noise(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#11: independent Gaussian noise in R, G and B, not clipped.

    A value is the variance. Each generator draws ``(3, H, W)`` standard normals.
    """
    return _gaussian(images, values, generators).add_(images)


def white_noise_cc(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#12: independent Gaussian noise in Y, Cb and Cr (BT.601, studio swing), which are clipped to [0, 1].

    The result is not clipped. A value is the variance, on the scale on which Y runs from 16/255 to 235/255. Each
    generator draws ``(3, H, W)`` standard normals: Y, Cb, Cr.
    """
    noise = _gaussian(images, values, generators)
    return ycbcr_to_rgb(noise.add_(rgb_to_ycbcr(images)).clamp_(0, 1))


def impulse_noise(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#13: salt and pepper; each channel of each pixel is hit by itself, as often by 0 as by 1.

    A value is the density above 0: the share of the channel elements that is replaced. Drawn are not hits and misses,
    element by element, but the distances from hit to hit, which are geometric: as many as a batch of them needs to pass
    the end, and then a bit per hit, 0 or 1.

    Source: MATLAB's ``imnoise(..., 'salt & pepper', d)``, as KADIS-700k calls it.
    """
    out = images.clone(memory_format=torch.contiguous_format)
    for image, density, generator in zip(out, values.tolist(), generators, strict=True):
        hits = _hits(image.numel(), density, generator)
        struck = torch.randint(2, hits.shape, generator=generator)
        image.view(-1)[hits.to(out.device)] = struck.to(out)
    return out


def _hits(count: int, density: float, generator: torch.Generator) -> Tensor:
    """Which of ``count`` elements are hit, each by itself with probability ``density``; increasing."""
    batch = math.ceil(count * density + 6 * math.sqrt(count * density) + 1)  # one is enough but for once in 10^9
    last, batches = -1.0, []
    while last < count:
        gaps = torch.empty(batch, dtype=torch.float64).geometric_(density, generator=generator)
        batches.append(gaps.cumsum(0).add_(last))
        last = float(batches[-1][-1])
    hits = torch.cat(batches)
    return hits[hits < count].long()


def multiplicative_noise(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#14: speckle, ``I + n I`` with uniform ``n`` of mean 0, in R, G and B independently; not clipped.

    A value is the variance ``v`` of ``n``, which lies in ``(-sqrt(3 v), sqrt(3 v))``. Each generator draws
    ``(3, H, W)`` uniform numbers ``1 + n``.

    Source: MATLAB's ``imnoise(..., 'speckle', v)``, as KADIS-700k calls it.
    """
    factors = torch.empty(images.shape)
    for field, variance, generator in zip(factors, values.tolist(), generators, strict=True):
        reach = math.sqrt(3 * variance)
        field.uniform_(1 - reach, 1 + reach, generator=generator)
    return factors.to(images).mul_(images)


def denoise(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#15: white noise of variance ``v``, clipped to [0, 1], and then removed from each channel by total variation.

    KADIS-700k removes it with a DnCNN whose weights come with MATLAB. In its place stands the minimiser of Rudin, Osher
    and Fatemi, ``argmin_u |u - noisy|^2 / 2 + w TV(u)`` with ``w = 0.7 sqrt(v)`` (see `denoise_tv`): like the DnCNN's,
    its images have flat areas, lost texture and, at high levels, blotches where noise was taken for detail.

    Each generator draws ``(3, H, W)`` standard normals.
    """
    noisy = _gaussian(images, values, generators).add_(images).clamp_(0, 1)
    weights = TV_WEIGHT * values.sqrt()
    if images.device.type != "cpu":
        return denoise_tv(noisy, weights)
    for row in range(len(noisy)):  # image by image, they fit a CPU's caches
        noisy[row] = denoise_tv(noisy[row : row + 1], weights[row : row + 1])[0]
    return noisy


def denoise_tv(images: Tensor, weights: Tensor, steps: int = TV_STEPS) -> Tensor:
    """Total-variation denoising of each channel, ``argmin_u |u - image|^2 / 2 + w TV(u)``.

    The isotropic discrete TV of Chambolle (2004), minimised by the fast gradient projection of Beck and Teboulle (Fast
    gradient-based algorithms for constrained total variation image denoising and deblurring problems, IEEE TIP 2009,
    algorithm FGP without bounds) on its dual. A fixed number of steps makes an image's result its own, whatever the
    batch.

    Args:
        images: ``(B, 3, H, W)``.
        weights: ``(B,)`` positive ``w``.
        steps: of gradient projection.

    Returns:
        ``(B, 3, H, W)``.
    """
    weight = per_image(weights, images)
    noisy = (images / weight).contiguous()
    width = images.shape[-1]
    # The dual field is a vector (down, right) per pixel. It is 0 in the last row and in the last column: so the planes
    # can be handled as one long line, where the neighbour to the right is 1 further and that below is W further.
    down, right, ahead_down, ahead_right, step_down, step_right, length = (torch.zeros_like(noisy) for _ in range(7))
    momentum = 1.0
    for _ in range(steps):
        current = _plus_divergence(noisy, ahead_down, ahead_right)
        _ascend(current, ahead_down, width, step_down)
        _ascend(current, ahead_right, 1, step_right)
        step_down[..., -1, :] = 0
        step_right[..., -1] = 0
        torch.mul(step_down, step_down, out=length)
        length.addcmul_(step_right, step_right).clamp_(min=1).rsqrt_()
        step_down.mul_(length)
        step_right.mul_(length)
        faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        torch.lerp(down, step_down, 1 + (momentum - 1) / faster, out=ahead_down)
        torch.lerp(right, step_right, 1 + (momentum - 1) / faster, out=ahead_right)
        momentum = faster
        down, step_down, right, step_right = step_down, down, step_right, right
    return _plus_divergence(noisy, down, right).mul_(weight)


def _plus_divergence(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    total = (images + down).add_(right)
    line, width = total.view(-1), images.shape[-1]
    line[width:].sub_(down.view(-1)[:-width])
    line[1:].sub_(right.view(-1)[:-1])
    return total


def _ascend(current: Tensor, dual: Tensor, distance: int, out: Tensor) -> None:
    """``dual + 1/8`` times the difference of each pixel to the one ``distance`` further, on the long line."""
    line, ascended = current.view(-1), out.view(-1)[:-distance]
    torch.add(dual.view(-1)[:-distance], line[distance:], alpha=1 / 8, out=ascended)
    ascended.sub_(line[:-distance], alpha=1 / 8)


def _gaussian(images: Tensor, variances: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    noise = torch.empty(images.shape)
    for field, variance, generator in zip(noise, variances.tolist(), generators, strict=True):
        field.normal_(0, math.sqrt(variance), generator=generator)
    return noise.to(images)
