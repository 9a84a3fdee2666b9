"""The 25 distortions of KADID-10k at five levels, and the attribute ramps, on batches of sRGB images in [0, 1].

`distort` applies one of `DISTORTIONS` to a batch, at a level per image. What is random comes from one seed per image:
the same seed gives the same result on any device, alone or in a batch. `apply_ramp` is another, differentiable thing:
it moves one quality attribute up or down. `develop` makes what cameras and editors get wrong: casts, exposure.

Four entries of the table leave an image (nearly) as it is, although their level says otherwise: level 1 of
`gaussian_blur`, `motion_blur` and `color_saturation_2`, and level 3 of `mean_shift`.

Source: Lin, Hosu and Saupe, "KADID-10k: A Large-scale Artificially Distorted IQA Database" (QoMEX 2019), and the MATLAB
scripts of KADIS-700k (``imdist_generator.m``), whose numbers, levels and formulas these are.
"""

import difflib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attriqa.distortions.departures import DEPARTURES, SETTINGS, cast_of, develop, draw_departure
from attriqa.distortions.kadid import Apply, blur, codecs, color, noise, quantizers, spatial, tone
from attriqa.distortions.ramps import apply_ramp, gaussian_blur, luma

__all__ = [
    "DEPARTURES",
    "DISTORTIONS",
    "DISTORTION_KEYS",
    "SETTINGS",
    "Distortion",
    "apply_ramp",
    "cast_of",
    "develop",
    "distort",
    "distort_seeded",
    "draw_departure",
    "find_distortion",
    "gaussian_blur",
    "luma",
]

CHUNK_PIXELS = 1 << 18  # per thread: 3 MB of float32
Levels = tuple[float, float, float, float, float]
LevelOrder = Literal["kadid", "severity"]
Finalize = Literal["clip", "mapmm"]


@dataclass(frozen=True)
class Distortion:
    """One row of KADID-10k's table."""

    number: int  # 1 to 25
    key: str
    name: str
    parameter: str  # what a level's value means, and its unit
    levels: Levels  # the values of levels 1 to 5, in KADID-10k's order
    apply: Apply
    smallest: int = 1  # px, the shortest side it works on


# fmt: off
DISTORTIONS: tuple[Distortion, ...] = (
    Distortion(1, "gaussian_blur", "Gaussian blur", "sigma, px", (0.1, 0.5, 1, 2, 5), blur.gaussian_blur),
    Distortion(2, "lens_blur", "Lens blur", "radius, px", (1, 2, 4, 6, 8), blur.lens_blur),
    Distortion(3, "motion_blur", "Motion blur", "length, px", (1, 2, 4, 6, 10), blur.motion_blur),
    Distortion(4, "color_diffusion", "Color diffusion", "gain of a, b", (1, 3, 6, 8, 12), color.color_diffusion),
    Distortion(5, "color_shift", "Color shift", "shift, px", (1, 3, 6, 8, 12), color.color_shift),
    Distortion(6, "color_quantization", "Color quantization", "colors", (64, 48, 32, 16, 8),
               quantizers.color_quantization),
    Distortion(7, "color_saturation_1", "Color saturation 1", "factor of HSV's S", (0.4, 0.2, 0.1, 0, -0.4),
               color.color_saturation_1),
    Distortion(8, "color_saturation_2", "Color saturation 2", "factor of a, b", (1, 2, 3, 6, 9),
               color.color_saturation_2),
    Distortion(9, "jpeg2000", "JPEG2000", "compression ratio", (16, 32, 45, 120, 400), codecs.jpeg2000),
    Distortion(10, "jpeg", "JPEG", "quality", (43, 36, 24, 7, 4), codecs.jpeg),
    Distortion(11, "white_noise", "White noise", "variance", (0.001, 0.002, 0.003, 0.005, 0.01), noise.white_noise),
    Distortion(12, "white_noise_cc", "White noise in color component", "variance",
               (0.0001, 0.0005, 0.001, 0.002, 0.003), noise.white_noise_cc),
    Distortion(13, "impulse_noise", "Impulse noise", "density", (0.001, 0.005, 0.01, 0.02, 0.03), noise.impulse_noise),
    Distortion(14, "multiplicative_noise", "Multiplicative noise", "variance", (0.001, 0.005, 0.01, 0.02, 0.05),
               noise.multiplicative_noise),
    Distortion(15, "denoise", "Denoise", "variance of the noise", (0.01, 0.03, 0.05, 0.1, 0.15), noise.denoise),
    Distortion(16, "brighten", "Brighten", "amount", (0.1, 0.2, 0.4, 0.7, 1.1), tone.brighten),
    Distortion(17, "darken", "Darken", "amount", (0.05, 0.1, 0.2, 0.4, 0.8), tone.darken),
    Distortion(18, "mean_shift", "Mean shift", "offset", (0.15, 0.08, 0, -0.08, -0.15), tone.mean_shift),
    Distortion(19, "jitter", "Jitter", "sigma, px", (0.05, 0.1, 0.2, 0.5, 1), spatial.jitter),
    Distortion(20, "non_eccentricity_patch", "Non-eccentricity patch", "patches", (20, 40, 60, 80, 100),
               spatial.non_eccentricity_patch, smallest=48),
    Distortion(21, "pixelate", "Pixelate", "strength", (0.01, 0.05, 0.1, 0.2, 0.5), spatial.pixelate),
    Distortion(22, "quantization", "Quantization", "thresholds", (20, 16, 13, 10, 7), quantizers.quantization),
    Distortion(23, "color_block", "Color block", "blocks", (2, 4, 6, 8, 10), spatial.color_block, smallest=32),
    Distortion(24, "high_sharpen", "High sharpen", "amount", (1, 2, 3, 6, 12), blur.high_sharpen),
    Distortion(25, "contrast_change", "Contrast change", "amount", (0.3, 0.15, 0, -0.4, -0.6), tone.contrast_change),
)
# fmt: on
DISTORTION_KEYS: tuple[str, ...] = tuple(entry.key for entry in DISTORTIONS)

# Two rows whose levels do not rise in strength, sorted by the mean opinion scores that KADID-10k has for them.
_BY_SEVERITY: dict[str, Levels] = {
    "mean_shift": (0, 0.08, -0.08, 0.15, -0.15),
    "contrast_change": (0, -0.4, 0.15, 0.3, -0.6),
}


def find_distortion(name: str | int) -> Distortion:
    """A row of `DISTORTIONS` by its key or its number, 1 to 25.

    Raises:
        ValueError: there is none; the message suggests the nearest key.
    """
    for entry in DISTORTIONS:
        if name == entry.key or (name == entry.number and not isinstance(name, bool)):
            return entry
    nearest = difflib.get_close_matches(str(name).lower(), DISTORTION_KEYS, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else f" ({', '.join(DISTORTION_KEYS)})"
    raise ValueError(f"distortion: expected a key of DISTORTIONS or a number of 1 to 25, got {name!r}{hint}")


def distort(
    images: Tensor,
    distortion: str | int,
    levels: Tensor | int,
    generator: torch.Generator,
    *,
    level_order: LevelOrder = "kadid",
    finalize: Finalize = "clip",
) -> Tensor:
    """Apply one distortion to a batch.

    Args:
        images: ``(B, 3, H, W)`` sRGB in [0, 1], float32 or float64, on any device.
        distortion: key or number of a row of `DISTORTIONS`.
        levels: 1 to 5, one for all images, or ``(B,)`` integers.
        generator: draws one seed per image, in order: a batch of four is four calls of one.
        level_order: ``"kadid"``: as KADID-10k's files are numbered; ``"severity"``: `mean_shift` and `contrast_change`
            are sorted by their mean opinion scores, so that a higher level is worse.
        finalize: ``"clip"`` to [0, 1]; ``"mapmm"``: each image is stretched to the whole of [0, 1] before and after
            (all channels alike; a constant image stays), as the scripts of KADIS-700k do.

    Returns:
        ``(B, 3, H, W)`` in [0, 1], same dtype and device; without a gradient.

    Raises:
        ValueError: an argument is not as described, or the images are smaller than the distortion's ``smallest``.
    """
    # torch.randint per image and not per batch: a vector of draws need not be the sequence of single ones.
    seeds = [
        int(torch.randint(2**63 - 1, (), dtype=torch.int64, generator=generator, device=generator.device))
        for _ in range(len(images))
    ]
    return distort_seeded(images, distortion, levels, seeds, level_order=level_order, finalize=finalize)


@torch.no_grad()
def distort_seeded(
    images: Tensor,
    distortion: str | int,
    levels: Tensor | int,
    seeds: Sequence[int] | Tensor,
    *,
    level_order: LevelOrder = "kadid",
    finalize: Finalize = "clip",
) -> Tensor:
    """`distort` with a seed per image: B integers from 0 to ``2**63 - 1``."""
    _check_images(images)
    entry = find_distortion(distortion)
    if min(images.shape[2:]) < entry.smallest:
        height, width = images.shape[2:]
        raise ValueError(f"images: expected sides of {entry.smallest} px or more for {entry.key}, got {height}x{width}")
    if level_order not in ("kadid", "severity"):
        raise ValueError(f"level_order: expected 'kadid' or 'severity', got {level_order!r}")
    if finalize not in ("clip", "mapmm"):
        raise ValueError(f"finalize: expected 'clip' or 'mapmm', got {finalize!r}")
    table = entry.levels if level_order == "kadid" else _BY_SEVERITY.get(entry.key, entry.levels)
    values = torch.tensor(table, dtype=torch.float64)[_as_levels(levels, len(images)) - 1]
    generators = _generators(seeds, len(images))
    out = _empty_like(images)
    for start in range(0, len(images), size := _chunk(images)):
        part = slice(start, start + size)
        some = images[part].contiguous()
        if finalize == "mapmm":
            out[part] = _stretch(entry.apply(_stretch(some), values[part], generators[part]))
        else:
            torch.clamp(entry.apply(some, values[part], generators[part]), 0, 1, out=out[part])
    return out


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not min(images.shape[2:]):
        raise ValueError(f"images: expected shape (B, 3, H, W), got {tuple(images.shape)}")
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images: expected float32 or float64, got {images.dtype}")
    if len(images):
        low, high = (float(value) for value in images.detach().aminmax())
        if not (low >= 0 and high <= 1):  # NaN compares false
            raise ValueError(f"images: expected values in [0, 1], got {low:g} to {high:g}")


def _as_levels(levels: Tensor | int, count: int) -> Tensor:
    """Indices ``(count,)``, 1 to 5, on the CPU."""
    if not isinstance(levels, Tensor):
        try:
            levels = torch.full((count,), operator.index(levels))
        except TypeError:
            raise ValueError(f"levels: expected an integer or a tensor of integers, got {levels!r}") from None
    integral = not (levels.is_floating_point() or levels.is_complex() or levels.dtype == torch.bool)
    if levels.shape != (count,) or not integral:
        got = f"{tuple(levels.shape)} of {levels.dtype}"
        raise ValueError(f"levels: expected one integer or shape ({count},) of integers, got {got}")
    levels = levels.cpu().long()
    if not bool(((levels >= 1) & (levels <= 5)).all()):
        raise ValueError(f"levels: expected 1 to 5, got {levels.tolist()}")
    return levels


def _generators(seeds: Sequence[int] | Tensor, count: int) -> list[torch.Generator]:
    if isinstance(seeds, Tensor) and (seeds.ndim != 1 or seeds.is_floating_point()):
        raise ValueError(f"seeds: expected shape ({count},) of integers, got {tuple(seeds.shape)} of {seeds.dtype}")
    numbers = seeds.tolist() if isinstance(seeds, Tensor) else [operator.index(seed) for seed in seeds]
    if len(numbers) != count:
        raise ValueError(f"seeds: expected one for each of {count} images, got {len(numbers)}")
    if not all(0 <= number < 2**63 for number in numbers):
        raise ValueError(f"seeds: expected 0 to 2**63 - 1, got {numbers}")
    # PyTorch's CPU generator reads the lower 32 bits of its seed only: the upper ones shall count too.
    return [torch.Generator().manual_seed((number ^ number >> 32) & 0xFFFFFFFF) for number in numbers]


def _empty_like(images: Tensor) -> Tensor:
    if images.device.type != "cpu":
        return torch.empty_like(images, memory_format=torch.contiguous_format)
    # NumPy asks Linux for huge pages, where PyTorch takes a fresh batch in pages of 4 KiB: at 16 x 512 x 384, to get
    # them takes as long as some of the distortions.
    dtype = np.float32 if images.dtype == torch.float32 else np.float64
    return torch.from_numpy(np.empty(tuple(images.shape), dtype))


def _chunk(images: Tensor) -> int:
    """How many images to work on at a time: on a CPU, as many as keep what lies between the steps in its caches."""
    if images.device.type != "cpu":
        return max(1, len(images))
    return max(1, CHUNK_PIXELS * torch.get_num_threads() // (images.shape[2] * images.shape[3]))


def _stretch(images: Tensor) -> Tensor:
    """Each image onto [0, 1], its three channels alike; a constant one stays as it is, but clipped."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    spread = torch.where(high > low, high - low, 1)
    return torch.where(high > low, (images - low) / spread, images).clamp(0, 1)
