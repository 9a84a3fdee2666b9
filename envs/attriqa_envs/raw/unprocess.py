"""Ordinary photos to plausible raw files, so that training needs no raw collection.

The way back through a camera (Brooks et al. 2019, "Unprocessing Images for Learned Raw Denoising"): display values ->
inverse tone curve and sRGB encoding -> inverse colour matrix -> inverse white balance -> another exposure -> shot and
read noise, clipped where a sensor clips. Then forward again as `attriqa_envs.raw.decode` develops a raw file: the
result is the linear light that the ISP takes, with a raw's noise (stronger in red and blue, mixed by the matrix) and
blown highlights. Without randomness (`neutral`) that is the photo itself, linearised.

Unlike Brooks et al., noise is white over the pixels, not over the sites of a mosaic: the pictures here are far smaller
than a sensor, whose demosaicing they would not show.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attriqa.images import check
from attriqa_envs.isp.color import SRGB_TO_XYZ, decode
from attriqa_envs.raw.color import apply_matrix, rebuild_highlights

# CIE XYZ (D65) -> camera RGB, as cameras' DNG files give it in ColorMatrix, in 1/10,000.
_XYZ_TO_CAMERA = torch.tensor(
    [
        [6347, -479, -972, -8297, 15954, 2480, -1968, 2131, 7649],  # Canon EOS 5D
        [6018, -617, -965, -8645, 15881, 2975, -1530, 1719, 7642],  # Canon EOS 350D
        [6722, -635, -963, -4287, 12460, 2028, -908, 2162, 5668],  # Canon EOS 5D Mark III
        [9030, -1992, -715, -8465, 16302, 2255, -2689, 3217, 8069],  # Nikon D300
    ],
    dtype=torch.float64,
)
# Read noise given shot noise, both variances on a scale where white is 1, follows a line in logarithms, with scatter
# around it (Brooks et al. 2019, section 3.1, fitted to the Darmstadt Noise Dataset).
_READ_SLOPE, _READ_OFFSET, _READ_SCATTER = 2.18, 1.20, 0.26

Range = tuple[float, float]


@dataclass(frozen=True)
class UnprocessRanges:
    """From where `draw_conditions` draws, evenly between low and high.

    Attributes:
        exposure_ev: EV added to the photo's exposure.
        tone: how much of a camera's S curve the photo is taken to have had, 0 to 1; undoing it flattens the picture.
        red_gain: white balance gain of red over green, at least 1; it decides on noise and clipping, not on colour.
        blue_gain: of blue.
        cast_ev: log2 of the factor by which the as-shot white balance is wrong, of red and of blue apart.
        shot_noise: variance of shot noise at white, drawn evenly in its logarithm; (0, 0) for no noise at all.
    """

    exposure_ev: Range = (-2.0, 2.0)
    tone: Range = (0.0, 1.0)
    red_gain: Range = (1.9, 2.4)
    blue_gain: Range = (1.5, 1.9)
    cast_ev: Range = (-0.3, 0.3)
    shot_noise: Range = (1e-4, 0.012)

    def __post_init__(self) -> None:
        limits = {"exposure_ev": (-8, 8), "tone": (0, 1), "red_gain": (1, 16), "blue_gain": (1, 16)}
        limits |= {"cast_ev": (-2, 2), "shot_noise": (0, 1)}
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name}: expected {least} <= low <= high <= {most}, got {low:g}, {high:g}")
        if (self.shot_noise[0] == 0) != (self.shot_noise[1] == 0):
            raise ValueError(f"shot_noise: expected two positive variances, or (0, 0); got {self.shot_noise}")


class Conditions(NamedTuple):
    """Under which the sensor sees each of B photos; float32.

    Attributes:
        exposure_ev: ``(B,)``.
        tone: ``(B,)`` in [0,1].
        gains: ``(B,3)`` white balance of red, green (1) and blue, at least 1.
        cast: ``(B,3)`` factors by which that is wrong, green's being 1.
        camera_to_srgb: ``(B,3,3)`` white balanced camera RGB -> linear sRGB.
        shot_noise: ``(B,)`` variance per unit of signal, white being 1.
        read_noise: ``(B,)`` variance.
    """

    exposure_ev: Tensor
    tone: Tensor
    gains: Tensor
    cast: Tensor
    camera_to_srgb: Tensor
    shot_noise: Tensor
    read_noise: Tensor


def neutral(batch: int) -> Conditions:
    """No randomness: the first camera, the photo's own exposure and white balance, no tone curve, no noise."""
    zero = torch.zeros(batch)
    gains = torch.tensor([2.15, 1.0, 1.7]).expand(batch, 3)
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    matrix = _camera_to_srgb(weights).expand(batch, 3, 3)
    return Conditions(zero, zero, gains, torch.ones(batch, 3), matrix, zero, zero)


def draw_conditions(seeds: Sequence[int], ranges: UnprocessRanges | None = None) -> Conditions:
    """Draw conditions, each a function of its own seed alone.

    Args:
        seeds: one per photo.
        ranges: of the draws; those of `UnprocessRanges` unless given.
    """
    ranges = ranges or UnprocessRanges()
    return Conditions(*(torch.stack(values) for values in zip(*(_draw(seed, ranges) for seed in seeds), strict=True)))


def _draw(seed: int, ranges: UnprocessRanges) -> Conditions:
    generator = torch.Generator().manual_seed(seed)
    exposure, tone, red, blue, cast_red, cast_blue, noise = torch.rand(
        7, generator=generator, dtype=torch.float64
    ).tolist()
    weights = torch.rand(len(_XYZ_TO_CAMERA), generator=generator, dtype=torch.float64)
    scatter = torch.randn((), generator=generator, dtype=torch.float64).item()
    shot = read = 0.0
    if ranges.shot_noise[1] > 0:
        low, high = ranges.shot_noise
        log_shot = _between((math.log(low), math.log(high)), noise)
        shot, read = math.exp(log_shot), math.exp(_READ_SLOPE * log_shot + _READ_OFFSET + _READ_SCATTER * scatter)
    cast = [2 ** _between(ranges.cast_ev, cast_red), 1.0, 2 ** _between(ranges.cast_ev, cast_blue)]
    return Conditions(
        exposure_ev=torch.tensor(_between(ranges.exposure_ev, exposure)),
        tone=torch.tensor(_between(ranges.tone, tone)),
        gains=torch.tensor([_between(ranges.red_gain, red), 1.0, _between(ranges.blue_gain, blue)]),
        cast=torch.tensor(cast),
        camera_to_srgb=_camera_to_srgb(weights / weights.sum()),
        shot_noise=torch.tensor(shot),
        read_noise=torch.tensor(read),
    )


def _between(ends: Range, position: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * position


def _camera_to_srgb(weights: Tensor) -> Tensor:
    """``(3,3)`` of a mixture of the cameras; rows sum to 1, so that white stays white."""
    xyz_to_camera = torch.tensordot(weights, _XYZ_TO_CAMERA, 1).reshape(3, 3)
    srgb_to_camera = xyz_to_camera @ SRGB_TO_XYZ
    matrix: Tensor = torch.linalg.inv(srgb_to_camera / srgb_to_camera.sum(1, keepdim=True))
    return matrix.float()


@torch.no_grad()
def unprocess(images: Tensor, conditions: Conditions, seeds: Sequence[int]) -> Tensor:
    """Photos as a camera's raw files would have held them, developed to linear light.

    Args:
        images: ``(B,3,H,W)`` sRGB in [0,1], float32 or float64.
        conditions: of each, on any device; see `draw_conditions` and `neutral`.
        seeds: of each photo's noise; one image gives the same result in every batch.

    Returns:
        ``(B,3,H,W)`` linear light, sRGB primaries, >= 0, 1 being white, as `attriqa_envs.raw.LinearImage` has it; on
        the device of ``images``, without gradients.

    Raises:
        ValueError: wrong images, or another number of conditions or seeds than of images.
    """
    check(images)
    if not len(images) == len(conditions.tone) == len(seeds):
        raise ValueError(
            f"conditions, seeds: expected {len(images)}, as many as images; got {len(conditions.tone)} and {len(seeds)}"
        )
    c = Conditions(*(value.to(images) for value in conditions))
    tone = c.tone[:, None, None, None]
    linear = decode(torch.lerp(images, _inverse_smoothstep(images), tone))
    balanced = apply_matrix(linear, torch.linalg.inv(c.camera_to_srgb)) * torch.exp2(c.exposure_ev)[:, None, None, None]
    sensor = _noisy(balanced / c.gains[:, :, None, None], c, seeds).clamp(max=1)
    ceilings = c.gains * c.cast
    ceilings = ceilings / ceilings.amin(1, keepdim=True).clamp(max=1)  # every channel reaches white, as in raw.decode
    rebuilt = rebuild_highlights(sensor * ceilings[:, :, None, None], ceilings)
    return apply_matrix(rebuilt, c.camera_to_srgb).clamp_(min=0)


def _inverse_smoothstep(images: Tensor) -> Tensor:
    """The inverse of ``3 x^2 - 2 x^3`` on [0,1] (Brooks et al. 2019, section 3.7)."""
    return 0.5 - torch.sin(torch.asin(1 - 2 * images.clamp(0, 1)) / 3)


def _noisy(sensor: Tensor, conditions: Conditions, seeds: Sequence[int]) -> Tensor:
    """Add noise of variance ``shot * signal + read``."""
    variance = conditions.shot_noise[:, None, None, None] * sensor.clamp(min=0)
    variance = variance + conditions.read_noise[:, None, None, None]
    if not bool((variance > 0).any()):
        return sensor
    return sensor + draw_normal(sensor, seeds) * variance.sqrt()


def draw_normal(like: Tensor, seeds: Sequence[int]) -> Tensor:
    """Standard normal noise of the shape of ``like (B, ...)``, a seed per image; the same on every device."""
    pairs = zip(like, seeds, strict=True)
    drawn = [torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)) for image, seed in pairs]
    return torch.stack(drawn).to(like)
