"""Fewer colours, fewer levels (KADID-10k #6 and #22). Neither draws anything; both work on the CPU."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attriqa.distortions.kadid.codecs import through_pictures

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


def color_quantization(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#6: as many colours as the value says, 1 to 256, chosen by minimum variance, and Floyd-Steinberg dithering.

    See `minimum_variance_palette`. Images are rounded to 8 bits, and results are multiples of 1/255. Pillow dithers: 7,
    3, 5 and 1 sixteenths of the error go to the right, below to the left, below, and below to the right, row by row
    from the left; the nearest colour is looked up with 6 bits per channel (MATLAB's ``rgb2ind`` does so with 5).

    Source: MATLAB's ``rgb2ind(image, n)``, as KADIS-700k calls it.
    """
    return through_pictures(images, values, _with_colors)


def _with_colors(picture: Image.Image, count: float) -> Image.Image:
    pixels = np.asarray(picture)
    holder = Image.new("P", (1, 1))
    holder.putpalette(minimum_variance_palette(pixels, round(count)).tobytes())
    # Pillow (libImaging/Convert.c) hands down the error of blue for all three channels at the end of a row: there shall
    # be a pixel of no picture.
    wider = Image.fromarray(np.pad(pixels, ((0, 0), (0, 1), (0, 0)), mode="edge"))
    dithered = wider.quantize(palette=holder, dither=Image.Dither.FLOYDSTEINBERG).convert("RGB")
    return dithered.crop((0, 0, *picture.size))


def minimum_variance_palette(pixels: Pixels, count: int) -> Pixels:
    """The mean colours of the boxes into which a picture's colours are cut.

    The box with the greatest sum of squared distances to its mean is cut, across the channel in which that is
    greatest, where the sum within both parts is least; again, until there are ``count`` boxes or nothing can be cut.
    Colours that agree in the upper 5 bits of each channel stay together and count as their mean (Wu, Efficient
    statistical computations for optimal color quantization, Graphics Gems II, 1991).

    Args:
        pixels: ``(H, W, 3)`` of 8 bits.
        count: of colours, at least 1.

    Returns:
        ``(count or fewer, 3)`` colours of 8 bits.
    """
    mass, colors = _cells(pixels)
    boxes = [np.arange(len(mass))]
    spreads = [_spread(mass, colors)]
    totals = [float(spreads[0].sum())]
    while len(boxes) < count and max(totals) > 0:
        largest = totals.index(max(totals))
        box, channel = boxes[largest], int(spreads[largest].argmax())
        parts = _cut(box, mass[box], colors[box, channel])
        parted = [_spread(mass[part], colors[part]) for part in parts]
        boxes[largest : largest + 1] = parts
        spreads[largest : largest + 1] = parted
        totals[largest : largest + 1] = [float(spread.sum()) for spread in parted]
    means = [mass[box] @ colors[box] / mass[box].sum() for box in boxes]
    return np.rint(means).astype(np.uint8)


def _cells(pixels: Pixels) -> tuple[Floats, Floats]:
    """How many pixels share the upper 5 bits of a colour ``(K,)``, and the mean of their colours ``(K, 3)``."""
    red, green, blue = ((channel >> 3).astype(np.uint16) for channel in np.moveaxis(pixels, -1, 0))
    cell = ((red << 10) | (green << 5) | blue).ravel().astype(np.intp)
    mass = np.bincount(cell, minlength=1 << 15)
    sums = np.stack([np.bincount(cell, channel.ravel(), 1 << 15) for channel in np.moveaxis(pixels, -1, 0)], -1)
    there = mass.nonzero()[0]
    return mass[there].astype(np.float64), sums[there] / mass[there, None]


def _spread(mass: Floats, colors: Floats) -> Floats:
    """Sum of squared distances to the mean, per channel; 0 exactly for a single cell."""
    mean = mass @ colors / mass.sum()
    return mass @ (colors - mean) ** 2 if len(mass) > 1 else np.zeros(3)


def _cut(box: NDArray[np.intp], mass: Floats, values: Floats) -> list[NDArray[np.intp]]:
    """Cut cells in two at the value between which the sum of squares within both parts is least."""
    order = values.argsort(kind="stable")
    values, mass = values[order], mass[order]
    below, sums = mass.cumsum()[:-1], (mass * values).cumsum()
    # The least sum of squares within the parts is the greatest between them. It is convex in how many of one value's
    # pixels stand below, so that cells of one value are never parted.
    between = sums[:-1] ** 2 / below + (sums[-1] - sums[:-1]) ** 2 / (mass.sum() - below)
    at = int(between.argmax()) + 1
    return [box[order[:at]], box[order[at:]]]


def quantization(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#22: fewer levels, the same for R, G and B, with thresholds between them by Otsu's method on all three pooled.

    With thresholds ``t_1 < ... < t_N``, N the value, 1 to 255: 0 up to and with ``t_1``, ``t_{k+1}`` above ``t_k`` up
    to and with ``t_{k+1}``, 1 above ``t_N``: all of an image's values are among N + 1. See `otsu_thresholds`; the
    histogram's 256 bins end at the 8-bit levels, ``((k-1)/255, k/255]``.

    Source: MATLAB's ``multithresh`` and ``imquantize``, as KADIS-700k calls them.
    """
    out = torch.empty(images.shape, dtype=images.dtype)
    for index, count in enumerate(values.tolist()):
        # The 1e-3: a level of 8 bits that floating point has moved by a hair stays in its own bin.
        bins = (images[index].cpu() * 255).sub_(1e-3).ceil_().long().flatten()
        histogram = torch.bincount(bins, minlength=256).numpy()
        thresholds = otsu_thresholds(histogram, round(count))
        shown = np.append(thresholds / 255, 1.0)
        shown[0] = 0.0
        table = torch.from_numpy(shown[np.searchsorted(thresholds, np.arange(256))]).to(out.dtype)
        torch.index_select(table, 0, bins, out=out[index].view(-1))
    return out.to(images.device)


def otsu_thresholds(histogram: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The thresholds that part a histogram into classes with the greatest variance between them, exactly.

    Otsu's criterion for several thresholds, maximised by dynamic programming over the last bin of each class: ``count``
    steps of ``bins^2 / 2``. Of equally good thresholds the lowest are taken, from the last class down.

    Args:
        histogram: ``(bins,)`` counts.
        count: of thresholds, at least 1 and fewer than bins.

    Returns:
        ``(count,)`` increasing bin numbers: the last of every class but the uppermost. Each class has at least one bin.

    Raises:
        ValueError: so many thresholds do not fit between the bins.
    """
    size = len(histogram)
    if not 1 <= count < size:
        raise ValueError(f"count: expected 1 to {size - 1} thresholds for {size} bins, got {count}")
    gain = _class_gains(histogram)
    best = [gain[0]]  # best[k][j]: the greatest sum for k + 1 classes that end with bin j
    room = np.empty_like(gain)
    for _ in range(count):
        np.add(best[-1][:-1, None], gain[1:], out=room[1:])
        best.append(room[1:].max(0))
    last, thresholds = size - 1, []
    for sums in best[-2::-1]:
        last = int((sums[:last] + gain[1 : last + 1, last]).argmax())
        thresholds.append(last)
    return np.array(thresholds[::-1])


def _class_gains(histogram: NDArray[np.int64]) -> Floats:
    """``(bins, bins)``: what a class from bin i to bin j adds to the variance between classes; -inf for i > j."""
    position = np.arange(len(histogram))
    counts = np.append(0, histogram.cumsum()).astype(np.float64)
    sums = np.append(0, (histogram * position).cumsum()).astype(np.float64)
    mass = counts[None, 1:] - counts[:-1, None]
    moment = sums[None, 1:] - sums[:-1, None]
    gain = np.divide(moment**2, mass, out=np.zeros_like(mass), where=mass > 0)
    gain[position[:, None] > position] = -np.inf
    return gain
