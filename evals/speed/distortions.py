"""How fast are the 25 distortions?

    python evals/speed/distortions.py --photos photos --out runs/speed_distort

Images/s per core of `attriqa.distortions` on a batch against a port of the same formulas: image by image, in NumPy,
SciPy, scikit-image and Pillow, on (H, W, 3) arrays of float32, each with the fastest vectorised call that these have.
Three differ in method: the port's jitter interpolates by cubic splines (`map_coordinates`), ours by Keys' kernel; its
denoiser is scikit-image's, which stops at a tolerance, ours takes a fixed number of faster steps on the same function;
its palette cuts single colours, ours cells of 5 bits. JPEG and JPEG 2000 are Pillow's on both sides.

Both sides run in turn, round after round; a ratio is the median of the rounds' ratios. Levels 1 to 5 take turns in the
batch. The mix is every distortion once. `rms_change`, how far the images moved, says that both sides do the same work.
With `--device cuda` the GPU is measured beside the two. Results go to OUT/metrics.json. Keep the machine idle.
"""

import io
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy.interpolate import CubicSpline
from scipy.ndimage import correlate, gaussian_filter, map_coordinates
from scipy.signal import fftconvolve
from skimage import color
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor
from tqdm import tqdm

from attriqa.config import check_least, opt, run_command
from attriqa.distortions import DISTORTION_KEYS, distort_seeded, find_distortion
from attriqa.distortions.kadid.blur import disk_kernel, motion_kernel
from attriqa.evaluation.timing import Numbers, interleave, load_photos, measure_parts, per_second, ratios

TARGETS = {"mix.ratio": (">=", 3.0), "mix.least_ratio": (">=", 1.0)}
EXIQA_IMAGES, EXIQA_MEAN_DISTORTIONS, CORES = 100_000, 13, 16  # ExIQA-100k: 1 to 25 distortions, equally often
FEW_TAPS = 60  # up to which the port filters directly
Pixels = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Config:
    """What a run measures."""

    photos: Path | None = opt(None, "folder of photos; without it, three that scikit-image ships")
    out: Path = opt(Path("runs/speed_distort"), "where metrics.json and config.json go")
    distortions: tuple[str, ...] = opt(DISTORTION_KEYS, "which, by key")
    batch: int = opt(16, "images per call")
    size: tuple[int, int] = opt((512, 384), "px, width and height")
    threads: int = opt(1, "threads of torch; images/s are per thread")
    device: Literal["cpu", "cuda"] = opt("cpu", "cuda: measure the GPU too")
    rounds: int = opt(5, "rounds")
    seed: int = opt(0, "of all that is random")
    smoke: bool = opt(False, "sizes that show that it works, and nothing of speed")

    def __post_init__(self) -> None:
        check_least(self, batch=1, threads=1, rounds=1)
        for key in self.distortions:
            smallest = find_distortion(key).smallest
            if min(self.size) < smallest:
                raise ValueError(f"size: expected sides of {smallest} px or more for {key}, got {self.size}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """The recipe, after its command line."""
    if config.smoke:
        config = replace(config, batch=5, size=(96, 72), rounds=1)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cuda, but PyTorch finds no GPU here")
    images = load_images(config)
    rows: dict[str, Numbers] = {}
    seconds: dict[str, list[float]] = {}

    def each() -> dict[str, Numbers]:
        seconds.update(interleave(tasks_of(config, images), config.rounds, "distort"))
        for key, changes in compare(config, images).items():
            rows[key] = measure(config, seconds, [key]) | changes
        return rows

    def mix() -> Numbers:
        numbers = measure(config, seconds, config.distortions)
        hours = EXIQA_IMAGES * EXIQA_MEAN_DISTORTIONS / numbers["images_per_s_per_core"] / CORES / 3600
        least = min(row["ratio"] for row in rows.values())
        return numbers | {"least_ratio": least, f"exiqa_100k_hours_on_{CORES}_cores": hours}

    parts: dict[str, Callable[[], Mapping[str, Any]]] = {"distortions": each, "mix": mix}
    measure_parts(config, parts, TARGETS, batch=len(images), size=config.size, rounds=config.rounds)


def load_images(config: Config) -> Tensor:
    """``(batch, 3, H, W)`` photos on the 8-bit grid, scaled to the size; taken in turn where they are too few."""
    size = config.size[::-1]
    scaled = [
        F.interpolate(photo[None], size, mode="bilinear", antialias=True)[0]
        for photo in load_photos(config.photos, config.batch)
    ]
    return torch.stack(list(islice(cycle(scaled), config.batch))).clamp(0, 1).mul(255).round() / 255


def tasks_of(config: Config, images: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed: ``SIDE KEY`` for each distortion; the sides of one distortion follow each other."""
    arrays = as_arrays(images)
    on_gpu = images.cuda() if config.device == "cuda" else None
    tasks: dict[str, Callable[[], object]] = {}
    for key in config.distortions:
        tasks[f"ours {key}"] = partial(ours, key, images, config.seed)
        tasks[f"port {key}"] = partial(port, key, arrays, config.seed)
        if on_gpu is not None:
            tasks[f"gpu {key}"] = partial(ours, key, on_gpu, config.seed)
    return tasks


def as_arrays(images: Tensor) -> list[Pixels]:
    """The batch as the port takes it: ``(H, W, 3)`` each."""
    return [image.permute(1, 2, 0).contiguous().numpy() for image in images]


def ours(key: str, images: Tensor, seed: int) -> Tensor:
    """The batch, distorted at once."""
    return distort_seeded(images, key, torch.arange(len(images)) % 5 + 1, range(seed, seed + len(images)))


def port(key: str, arrays: Sequence[Pixels], seed: int) -> list[Pixels]:
    """The batch, distorted image by image."""
    levels, rng = find_distortion(key).levels, np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scikit-image counts the colours that sRGB lacks
        return [np.clip(PORT[key](array, levels[row % 5], rng), 0, 1) for row, array in enumerate(arrays)]


def measure(config: Config, seconds: Mapping[str, Sequence[float]], keys: Sequence[str]) -> Numbers:
    """Speeds and ratios of the given distortions together, each equally often."""

    def rounds(side: str, among: Sequence[str] = keys) -> list[float]:
        return [sum(times) for times in zip(*(seconds[f"{side} {key}"] for key in among), strict=True)]

    images = config.batch * len(keys)
    ours_s = [config.threads * time for time in rounds("ours")]  # of one core
    result = {
        "images_per_s_per_core": per_second(images, ours_s),
        "port_images_per_s_per_core": per_second(images, rounds("port")),
        **ratios("ratio", rounds("port"), ours_s),
        "share": statistics.median(rounds("ours")) / statistics.median(rounds("ours", config.distortions)),
    }
    if config.device == "cuda":
        result["gpu_images_per_s"] = per_second(images, rounds("gpu"))
        result |= ratios("gpu_to_16_cores", [time / CORES for time in ours_s], rounds("gpu"))
    return result


def compare(config: Config, images: Tensor) -> dict[str, Numbers]:
    """By how much each side changes the images (root mean square)."""
    arrays, changes = as_arrays(images), {}
    for key in tqdm(config.distortions, "compare", leave=False, disable=None):
        there = torch.from_numpy(np.stack(port(key, arrays, config.seed))).permute(0, 3, 1, 2)
        here = ours(key, images, config.seed)
        rms = {"rms_change": here - images, "port_rms_change": there - images}
        changes[key] = {name: float(change.square().mean().sqrt()) for name, change in rms.items()}
    return changes


# The port.


def _blurred(image: Pixels, sigma: float) -> Pixels:
    sigmas = (sigma, sigma, 0.0)[: image.ndim]
    return np.asarray(gaussian_filter(image, sigmas, mode="nearest", truncate=np.ceil(2 * sigma) / sigma))


def _filtered(image: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    if np.count_nonzero(kernel) <= FEW_TAPS:
        return np.asarray(correlate(image, kernel[:, :, None], mode="nearest"))
    reach = kernel.shape[0] // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    return np.asarray(fftconvolve(padded, kernel[::-1, ::-1, None].astype(np.float32), mode="valid", axes=(0, 1)))


def _color_diffusion(image: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    lab = color.rgb2lab(image)
    lab[..., 1:] = amount * _blurred(lab[..., 1:], 1.5 * amount + 2)
    return np.asarray(color.lab2rgb(lab))


def _stretched(values: Pixels) -> Pixels:
    return np.asarray((values - values.min()) / max(np.ptp(values), np.finfo(np.float32).tiny))


def _color_shift(image: Pixels, length: float, rng: np.random.Generator) -> Pixels:
    gray = np.pad(image @ np.array([0.2989, 0.5870, 0.1140], dtype=np.float32), 1, mode="edge")
    gradient = np.hypot(gray[2:, 1:-1] - gray[:-2, 1:-1], gray[1:-1, 2:] - gray[1:-1, :-2]) / 2
    edges = _stretched(np.clip(_stretched(_blurred(gradient, 4.0)), 0.1, 1))
    edges = _stretched(np.clip(edges, *np.percentile(edges, (1, 99)).astype(np.float32)))
    direction = rng.random(2)
    down, right = np.floor(direction / np.hypot(*direction) * length + 0.5).astype(int)
    rows, columns = (np.maximum(np.arange(side) - by, 0) for side, by in zip(edges.shape, (down, right), strict=True))
    out, green = image.copy(), image[..., 1]
    out[..., 1] = edges * green[np.ix_(rows, columns)] + (1 - edges) * green
    return out


def _bytes(image: Pixels) -> NDArray[np.uint8]:
    return np.rint(image * 255).astype(np.uint8)


def _color_quantization(image: Pixels, count: float, rng: np.random.Generator) -> Pixels:
    pixels = _bytes(image)
    packed, mass = np.unique(pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1]), return_counts=True)
    boxes = [(np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.float64), mass)]
    spreads = [_spread(*boxes[0])]
    while len(boxes) < count and max(map(sum, spreads)) > 0:
        largest = int(np.argmax([spread.sum() for spread in spreads]))
        (colors, mass), channel = boxes.pop(largest), int(spreads.pop(largest).argmax())
        order = colors[:, channel].argsort()
        colors, mass = colors[order], mass[order]
        below, sums = mass.cumsum(), (mass * colors[:, channel]).cumsum()
        between = (sums[:-1] - sums[-1] * below[:-1] / below[-1]) ** 2 / (below[:-1] * (below[-1] - below[:-1]))
        at = int(between.argmax()) + 1
        boxes += [(colors[:at], mass[:at]), (colors[at:], mass[at:])]
        spreads += [_spread(*box) for box in boxes[-2:]]
    holder = Image.new("P", (1, 1))
    holder.putpalette(np.rint([np.average(colors, 0, mass) for colors, mass in boxes]).astype(np.uint8).tobytes())
    dithered = Image.fromarray(pixels).quantize(palette=holder, dither=Image.Dither.FLOYDSTEINBERG)
    return np.asarray(dithered.convert("RGB"), dtype=np.float32) / 255


def _spread(colors: NDArray[np.float64], mass: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(mass @ (colors - np.average(colors, 0, mass)) ** 2)


def _coded(image: Pixels, form: str, **options: Any) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(_bytes(image)).save(file, form, **options)
    return np.asarray(Image.open(file), dtype=np.float32) / 255


def _gaussian(image: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    return rng.standard_normal(image.shape, dtype=np.float32) * np.float32(np.sqrt(variance))


def _white_noise_cc(image: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    planes = np.clip(color.rgb2ycbcr(image) / 255 + _gaussian(image, variance, rng), 0, 1)
    return np.asarray(color.ycbcr2rgb(planes * 255))


def _impulse_noise(image: Pixels, density: float, rng: np.random.Generator) -> Pixels:
    drawn, out = rng.random(image.shape, dtype=np.float32), image.copy()
    out[drawn < density] = 1
    out[drawn < density / 2] = 0
    return out


def _multiplicative_noise(image: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    reach = float(np.sqrt(3 * variance))
    return image + image * (rng.random(image.shape, dtype=np.float32) * (2 * reach) - reach)


def _denoise(image: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    noisy = np.clip(image + _gaussian(image, variance, rng), 0, 1)
    return np.asarray(denoise_tv_chambolle(noisy, weight=0.7 * np.sqrt(variance), channel_axis=2))


def _curve(tones: Pixels, knots: Mapping[float, float]) -> Pixels:
    return np.clip(CubicSpline(list(knots), list(knots.values()))(tones), 0, 1).astype(np.float32)


def _brighten(image: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    knots = {0.0: 0.0, 0.5: 0.5 + amount / 2, 1.0: 1.0}
    once = _curve(image, knots)
    lab = color.rgb2lab(once)
    lab[..., 0] = 100 * _curve(lab[..., 0] / 100, knots)
    return np.asarray((2 * once + np.clip(color.lab2rgb(lab), 0, 1)) / 3)


def _jitter(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    places = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    for _ in range(5):
        moved = places - sigma * rng.standard_normal(places.shape, dtype=np.float32)
        image = np.stack([map_coordinates(image[..., c], moved, order=3, mode="nearest") for c in range(3)], axis=-1)
    return image


def _non_eccentricity_patch(image: Pixels, count: float, rng: np.random.Generator) -> Pixels:
    out, free = image.copy(), np.array(image.shape[:2]) - 48
    for _ in range(int(count)):
        y, x = np.floor(rng.random(2) * free + 0.5).astype(int) + 16
        to_y, to_x = np.floor((rng.random(2) - 0.5) * 16 + (y, x) + 0.5).astype(int)
        out[to_y : to_y + 16, to_x : to_x + 16] = out[y : y + 16, x : x + 16].copy()
    return out


def _pixelate(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    scale, shown = 0.95 - strength**0.6, []
    for side in image.shape[:2]:
        small = int(np.ceil(scale * side))
        kept = np.floor((np.arange(small) + 0.5) * side / small).astype(int)
        shown.append(kept[np.floor((np.arange(side) + 0.5) * small / side).astype(int)])
    return image[np.ix_(*shown)]


def _quantization(image: Pixels, count: float, rng: np.random.Generator) -> Pixels:
    mass = np.bincount(_bytes(image).ravel(), minlength=256)
    counts, sums = (np.append(0, part.cumsum()).astype(np.float64) for part in (mass, mass * np.arange(256)))
    weight, moment = counts[None, 1:] - counts[:-1, None], sums[None, 1:] - sums[:-1, None]
    gain = np.where(weight > 0, moment**2 / np.maximum(weight, 1), 0)
    gain[np.tril_indices(256, -1)] = -np.inf
    best, before = gain[0], []
    for _ in range(int(count)):
        scores = best[:-1, None] + gain[1:]
        before.append(scores.argmax(0))
        best = scores.max(0)
    thresholds = [int(before[-1][255])]
    for steps in before[-2::-1]:
        thresholds.append(int(steps[thresholds[-1]]))
    levels = np.array(thresholds[::-1], dtype=np.float32) / 255
    return np.concatenate([[0], levels[1:], [1]]).astype(np.float32)[np.digitize(image, levels, right=True)]


def _color_block(image: Pixels, count: float, rng: np.random.Generator) -> Pixels:
    out = image.copy()
    for _ in range(int(count)):
        y, x = np.floor(rng.random(2) * (np.array(image.shape[:2]) - 32) + 0.5).astype(int)
        out[y : y + 32, x : x + 32] = rng.random(3)
    return out


def _high_sharpen(image: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    lab = color.rgb2lab(image)
    lab[..., 0] += amount * (lab[..., 0] - _blurred(lab[..., 0], 3.0))
    return np.asarray(color.lab2rgb(lab))


PORT: dict[str, Callable[[Pixels, float, np.random.Generator], Pixels]] = {
    "gaussian_blur": lambda image, sigma, rng: _blurred(image, sigma),
    "lens_blur": lambda image, radius, rng: _filtered(image, disk_kernel(int(radius)).numpy()),
    "motion_blur": lambda image, length, rng: _filtered(image, motion_kernel(length, float(rng.integers(181))).numpy()),
    "color_diffusion": _color_diffusion,
    "color_shift": _color_shift,
    "color_quantization": _color_quantization,
    "color_saturation_1": lambda image, factor, rng: color.hsv2rgb(
        color.rgb2hsv(image) * np.array([1, factor, 1], "f4")
    ),
    "color_saturation_2": lambda image, factor, rng: color.lab2rgb(
        color.rgb2lab(image) * np.array([1, factor, factor], "f4")
    ),
    "jpeg2000": lambda image, ratio, rng: _coded(
        image, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True
    ),
    "jpeg": lambda image, quality, rng: _coded(image, "JPEG", quality=int(quality)),
    "white_noise": lambda image, variance, rng: image + _gaussian(image, variance, rng),
    "white_noise_cc": _white_noise_cc,
    "impulse_noise": _impulse_noise,
    "multiplicative_noise": _multiplicative_noise,
    "denoise": _denoise,
    "brighten": _brighten,
    "darken": lambda image, amount, rng: _curve(image, {0.0: 0.0, 0.5: 0.5 - amount / 2, 1.0: 1.0}),
    "mean_shift": lambda image, offset, rng: image + np.float32(offset),
    "jitter": _jitter,
    "non_eccentricity_patch": _non_eccentricity_patch,
    "pixelate": _pixelate,
    "quantization": _quantization,
    "color_block": _color_block,
    "high_sharpen": _high_sharpen,
    "contrast_change": lambda image, amount, rng: _curve(
        image, {0.0: 0.0, 0.3: 0.25 - amount / 4, 0.5: 0.5, 0.7: 0.75 + amount / 4, 1.0: 1.0}
    ),
}


if __name__ == "__main__":
    main()
