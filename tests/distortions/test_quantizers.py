import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.filters import threshold_multiotsu

from attriqa.distortions.kadid.quantizers import (
    color_quantization,
    minimum_variance_palette,
    otsu_thresholds,
    quantization,
)
from tests.support.distortion_pictures import generators, picture, values

Floats = NDArray[np.float64]


def pixels_of(image: torch.Tensor) -> NDArray[np.uint8]:
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


# Otsu


def between_classes(histogram: NDArray[np.int64], thresholds: tuple[int, ...]) -> float:
    position, edges = np.arange(len(histogram)), [-1, *thresholds, len(histogram) - 1]
    mean, total = np.average(position, weights=histogram), 0.0
    for low, high in itertools.pairwise(edges):
        counts = histogram[low + 1 : high + 1]
        if counts.sum():
            centre = np.average(position[low + 1 : high + 1], weights=counts)
            total += counts.sum() * (centre - mean) ** 2
    return float(total)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("empty", [0.0, 0.5])
def test_otsu_finds_what_trying_all_finds(count: int, empty: float) -> None:
    rng = np.random.default_rng(count)
    for _ in range(10):
        histogram = rng.integers(1, 50, 13) * (rng.random(13) >= empty)
        histogram[[0, 12]] += 1
        best = max(between_classes(histogram, tried) for tried in itertools.combinations(range(12), count))
        found = tuple(otsu_thresholds(histogram, count).tolist())
        assert sorted(set(found)) == list(found)
        assert len(found) == count
        assert between_classes(histogram, found) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_otsu_agrees_with_skimage_on_a_photo(photos: list[NDArray[np.uint8]], count: int) -> None:
    histogram = np.bincount(photos[0].ravel(), minlength=256)
    found = otsu_thresholds(histogram, count)
    theirs = threshold_multiotsu(hist=(histogram, np.arange(256)), classes=count + 1)  # in float32
    np.testing.assert_allclose(found, theirs, atol=1)
    assert between_classes(histogram, tuple(found)) >= between_classes(histogram, tuple(theirs)) * (1 - 1e-12)


@pytest.mark.parametrize("count", [0, 13])
def test_otsu_refuses_more_thresholds_than_bins(count: int) -> None:
    with pytest.raises(ValueError, match=f"count: expected 1 to 12 thresholds for 13 bins, got {count}"):
        otsu_thresholds(np.ones(13, dtype=np.int64), count)


@pytest.mark.parametrize("count", [20, 7])
def test_quantization_is_the_formula(count: int) -> None:
    image = picture()
    # Between the 8-bit levels too: the comparison is that of the values themselves.
    beyond = 0.1 + 0.3 * torch.rand(56, 20, generator=generators(0)[0])
    image[..., :20] = (image[..., :20] + beyond / 255).clamp(0, 1)
    numbers = image.double().numpy()
    histogram = np.bincount(np.ceil(numbers * 255 - 1e-3).astype(int).ravel(), minlength=256)
    thresholds = otsu_thresholds(histogram, count) / 255
    expected = np.ones_like(numbers)
    for low, high in reversed(list(itertools.pairwise(thresholds))):
        expected[numbers <= high + 1e-6] = high
        expected[numbers <= low + 1e-6] = low
    expected[numbers <= thresholds[0] + 1e-6] = 0
    found = quantization(image, values(count), generators(0)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(np.unique(found)) == count + 1


# Colours


def reference_palette(colours: Floats, count: int) -> Floats:
    """Every plane is tried, on single pixels; nothing is summed up beforehand."""
    boxes = [colours]
    while len(boxes) < count:
        boxes.sort(key=lambda box: float(box.var(0).sum() * len(box)))
        box = boxes.pop()
        channel = int(box.var(0).argmax())
        planes = np.unique(box[:, channel])[:-1]
        parts = [(box[box[:, channel] <= plane], box[box[:, channel] > plane]) for plane in planes]
        boxes += min(parts, key=lambda two: sum(part[:, channel].var() * len(part) for part in two))
    return np.array([box.mean(0) for box in boxes])


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16, 64])
def test_the_palette_cuts_where_the_variance_falls_most(count: int) -> None:
    rng = np.random.default_rng(count)
    # Colours that differ in the upper 5 bits, so that none stand together in a cell.
    colours = 8 * rng.permutation(32**3)[:200]
    distinct = np.stack([colours // 8 // 1024, colours // 8 // 32 % 32, colours // 8 % 32], -1) * 8 + 3
    pixels = distinct[rng.integers(0, 200, (30, 30))].astype(np.uint8)
    found = minimum_variance_palette(pixels, count)
    expected = np.rint(reference_palette(pixels.reshape(-1, 3).astype(np.float64), count))
    np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(expected.astype(np.uint8), axis=0))


def dithered(pixels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Floyd and Steinberg's error diffusion, pixel by pixel, in whole numbers, sixteenths cut off towards 0."""
    height, width = pixels.shape[:2]
    owed = np.zeros((height + 1, width + 2, 3), dtype=np.int64)  # sixteenths; a column more on either side
    colours, out = palette.astype(np.int64), np.zeros_like(pixels)
    for y, x in np.ndindex(height, width):
        wanted = np.clip(pixels[y, x] + np.trunc(owed[y, x + 1] / 16).astype(np.int64), 0, 255)
        nearest = int((((wanted & ~3) - colours) ** 2).sum(1).argmin())  # looked up with 6 bits
        out[y, x] = palette[nearest]
        error = wanted - colours[nearest]
        owed[y, x + 2] += 7 * error
        owed[y + 1, x] += 3 * error
        owed[y + 1, x + 1] += 5 * error
        owed[y + 1, x + 2] += error
    return out


@pytest.mark.parametrize("count", [64, 8])
def test_dithering_is_floyds_and_steinbergs(count: int) -> None:
    image = picture(24, 100)
    palette = minimum_variance_palette(pixels_of(image[0]), count)
    found = pixels_of(color_quantization(image, values(count), generators(0))[0])
    # What happens to the error of the last column is each program's own affair; a row down it moves a column inwards.
    np.testing.assert_array_equal(found[:, :-24], dithered(pixels_of(image[0]), palette)[:, :-24])


def test_a_picture_of_few_colours_keeps_them() -> None:
    colours = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    image = colours[torch.randint(0, 5, (1, 40, 40), generator=generators(0)[0])].permute(0, 3, 1, 2).contiguous()
    assert torch.equal(color_quantization(image, values(8), generators(0)), image)
