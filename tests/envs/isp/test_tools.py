"""The tools of DRL-ISP: which they are, and what each does, against plain loops and other libraries."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate
from skimage import color
from torch import Tensor

from attriqa_envs.isp.tools import DONE, TOOLS, apply_tools
from tests.support.isp_pictures import picture

Floats = NDArray[np.float64]
NAMES = [tool.name for tool in TOOLS]


def images(batch: int = 2, height: int = 36, width: int = 44, seed: int = 0) -> Tensor:
    """sRGB with colour, detail and noise, on the 8-bit grid."""
    shown = (2.2 * picture(batch, height, width, seed)).sqrt()
    noise = torch.randn(shown.shape, generator=torch.Generator().manual_seed(seed)) * 0.02
    return (shown + noise).clamp(0, 1).mul(255).round() / 255


def use(name: str, batch: Tensor) -> Tensor:
    return apply_tools(batch, [NAMES.index(name)] * len(batch))


def test_the_37_tools_are_those_of_drl_isp() -> None:
    factors = {
        "brightness": ["+0.05", "+0.15", "+0.3", "-0.05", "-0.15", "-0.3"],
        "contrast": ["*1.25", "*1.5", "*2.0", "/1.25", "/1.5", "/2.0"],
        "gamma": ["0.7", "0.45", "0.3", "1.2", "1.45", "1.8"],
        "hue": ["+0.2", "+0.5", "+1.0", "-0.2", "-0.5", "-1.0"],
        "saturation": ["*1.2", "*1.4", "*1.8", "*0.8", "*0.6", "*0.4"],
    }
    expected = [f"{kind} {factor}" for kind, them in factors.items() for factor in them]
    expected += ["sharpen", "box blur", "gaussian blur", "bilateral blur", "equalize histogram"]
    assert [*expected, "equalize histogram adaptively", "gray-world white balance"] == NAMES
    assert len(TOOLS) == DONE == 37


@pytest.mark.parametrize("name", NAMES)
def test_a_tool_changes_a_picture_and_stays_in_range(name: str) -> None:
    batch = images()
    out = use(name, batch)
    assert out.shape == batch.shape
    assert out.dtype == batch.dtype
    assert out.min() >= 0
    assert out.max() <= 1
    assert (out - batch).abs().mean() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_pictures_of_any_gray_are_no_trouble(name: str, level: float) -> None:
    out = use(name, torch.full((1, 3, 32, 40), level))
    assert torch.isfinite(out).all()
    assert (out.amax((2, 3)) - out.amin((2, 3))).max() < 1e-5  # nothing appears that was not there
    assert (out.amax(1) - out.amin(1)).max() < 1e-4  # gray stays gray


def test_each_image_gets_its_own_tool_whatever_is_beside_it() -> None:
    batch = images(DONE + 1)
    order = np.random.default_rng(0).permutation(DONE + 1)
    together = apply_tools(batch, order)
    for row, tool in enumerate(order.tolist()):
        alone = apply_tools(batch[row : row + 1], [tool])
        assert (together[row] - alone[0]).abs().max() < 1e-6, tool
    assert torch.equal(together[order.tolist().index(DONE)], batch[order.tolist().index(DONE)])


def test_the_given_images_are_left_alone() -> None:
    batch = images(DONE)
    kept = batch.clone()
    apply_tools(batch, range(DONE))
    apply_tools(batch, [DONE] * DONE).zero_()
    assert torch.equal(batch, kept)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([0], "expected 2 integers"),
        ([0.0, 1.0], "expected 2 integers"),
        ([0, 38], "0 to 37; got 0 to 38"),
        ([-1, 3], "got -1 to 3"),
    ],
)
def test_indices_that_are_no_tools_are_refused(tools: Sequence[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_tools(images(), tools)


def test_images_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="images: expected"):
        apply_tools(images() * 2, [0, 0])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("brightness +0.15", 0.4, 0.55),
        ("brightness +0.3", 0.8, 1.0),
        ("brightness -0.3", 0.4, 0.1),
        ("contrast *2.0", 0.3, 0.6),
        ("contrast /1.25", 0.5, 0.4),
        ("gamma 0.45", 0.25, 1.2 * 0.25**0.45),
        ("gamma 0.3", 0.9, 1.0),
        ("gamma 1.8", 0.5, 1.2 * 0.5**1.8),
    ],
)
def test_tools_of_single_values(name: str, value: float, expected: float) -> None:
    out = use(name, torch.full((1, 3, 32, 32), value))
    assert (out - expected).abs().max() < 1e-6


@pytest.mark.parametrize(("name", "turn", "factor"), [
    ("hue +0.5", 0.5, 1.0), ("hue -1.0", -1.0, 1.0), ("saturation *1.8", 0.0, 1.8), ("saturation *0.4", 0.0, 0.4)
])  # fmt: skip
def test_hue_and_saturation_are_those_of_hsv(name: str, turn: float, factor: float) -> None:
    batch = images(1, 32, 32)
    awkward = [(0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.0, 0.0, 0.7), (0.9, 0.5, 0.1), (0.0, 0.0, 0.0)]
    batch[0, :, 0, :6] = torch.tensor(awkward).T
    out = use(name, batch)
    for before, after in zip(batch[0].flatten(1).T.tolist(), out[0].flatten(1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb((hue + turn / (2 * math.pi)) % 1, min(1, saturation * factor), value)
        assert after == pytest.approx(expected, abs=1e-5)


def test_the_filters_of_nine_pixels() -> None:
    batch = images(1)
    image = batch[0].permute(1, 2, 0).double().numpy()
    bell = np.exp(-0.5 * (np.array([-1, 0, 1]) / 1.5) ** 2)
    weights = {
        "sharpen": np.array([[-1.0, -1, -1], [-1, 9, -1], [-1, -1, -1]]),
        "box blur": np.full((3, 3), 1 / 9),
        "gaussian blur": np.outer(bell, bell) / bell.sum() ** 2,
    }
    for name, weight in weights.items():
        out = use(name, batch)[0].permute(1, 2, 0).numpy()
        expected = correlate(image, weight[..., None], mode="mirror").clip(0, 1)  # OpenCV's default border
        assert np.abs(out - expected).max() < 1e-5, name


def test_the_bilateral_filter_pixel_by_pixel() -> None:
    batch = images(1, 32, 33)
    image = batch[0].permute(1, 2, 0).double().numpy()
    padded = np.pad(image, ((7, 7), (7, 7), (0, 0)), mode="reflect")
    y, x = np.mgrid[-7:8, -7:8]
    disc, space = y**2 + x**2 <= 49, (y**2 + x**2) / (2 * 75**2)
    out = use("bilateral blur", batch)[0].permute(1, 2, 0).numpy()
    for row, column in [(0, 0), (0, 20), (31, 32), (15, 16), (16, 2), (9, 30)]:
        window = padded[row : row + 15, column : column + 15]
        difference = 255 * np.abs(window - image[row, column]).sum(-1)
        weight = disc * np.exp(-space - difference**2 / (2 * 75**2))
        expected = (weight[..., None] * window).sum((0, 1)) / weight.sum()
        assert out[row, column] == pytest.approx(expected, abs=1e-5)


def luma(image: Floats) -> NDArray[np.int64]:
    return np.rint(image @ [0.299, 0.587, 0.114] * 255).astype(np.int64)


def test_the_histogram_of_luma_becomes_even_and_chroma_stays() -> None:
    batch = images(1, 64, 64, seed=3) * 0.4 + 0.3
    image = batch[0].permute(1, 2, 0).double().numpy()
    levels = luma(image)
    counts = np.bincount(levels.ravel(), minlength=256)
    least = counts[counts > 0][0]
    curve = np.rint((counts.cumsum() - least).clip(0) / (counts.sum() - least) * 255)
    out = use("equalize histogram", batch)[0].permute(1, 2, 0).double().numpy()
    moved = out - image
    inside = (out > 0).all(-1) & (out < 1).all(-1)
    assert np.ptp(moved[inside], axis=-1).max() < 1e-5
    difference = np.abs(out @ [0.299, 0.587, 0.114] * 255 - curve[levels])[inside]
    step = np.diff(curve).max()
    assert difference.mean() < step / 2  # between levels the curve is interpolated, which 8 bits cannot show
    exact = np.abs(image @ [0.299, 0.587, 0.114] * 255 - levels)[inside] < 0.02
    assert exact.sum() > 50
    assert difference[exact].max() < 0.05 * step
    spread = np.histogram(out[inside] @ [0.299, 0.587, 0.114], 8, (0, 1))[0] / inside.sum()
    assert spread.max() < 0.16


def clahe(levels: NDArray[np.int64]) -> Floats:
    """Zuiderveld's, in plain loops, with 8 x 8 tiles and a limit of 2."""
    height, width = levels.shape
    levels = np.pad(levels, ((0, -height % 8), (0, -width % 8)), mode="reflect")
    tall, wide = levels.shape[0] // 8, levels.shape[1] // 8
    curves = np.zeros((8, 8, 256))
    for row in range(8):
        for column in range(8):
            tile = levels[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
            counts = np.bincount(tile.ravel(), minlength=256)
            limit = max(1, int(2.0 * tile.size / 256))
            excess = int((counts - limit).clip(0).sum())
            counts = counts.clip(max=limit) + excess // 256
            rest = excess % 256
            for place in range(0, 256, max(1, 256 // max(1, rest))):
                if rest > 0:
                    counts[place] += 1
                    rest -= 1
            curves[row, column] = np.rint(counts.cumsum() * 255 / tile.size).clip(max=255)
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            down, right = y / tall - 0.5, x / wide - 0.5
            top, left = math.floor(down), math.floor(right)
            for row, share_y in ((top, 1 - down + top), (top + 1, down - top)):
                for column, share_x in ((left, 1 - right + left), (left + 1, right - left)):
                    curve = curves[min(max(row, 0), 7), min(max(column, 0), 7)]
                    out[y, x] += share_y * share_x * curve[levels[y, x]]
    return out


@pytest.mark.parametrize(("height", "width"), [(64, 80), (61, 75), (160, 160)])
def test_contrast_limited_equalization_against_plain_loops(height: int, width: int) -> None:
    gray = (0.2 + 0.5 * images(1, height, width, seed=1)[:, :1]).mul(255).round() / 255
    batch = gray.expand(-1, 3, -1, -1)
    out = use("equalize histogram adaptively", batch)[0]
    expected = clahe(luma(batch[0].permute(1, 2, 0).double().numpy()))
    assert np.abs(out.numpy() * 255 - expected).max() < 0.05


def test_white_balance_takes_the_cast_away_from_gray_world() -> None:
    batch = images(1) * torch.tensor([1.0, 0.8, 0.6])[:, None, None]
    image = batch[0].permute(1, 2, 0).double().numpy()
    lab = color.rgb2lab(image)
    cast = lab[..., 1:].mean((0, 1))
    balanced = lab.copy()
    balanced[..., 1:] -= 1.1 * cast * lab[..., :1] / 100
    expected = color.lab2rgb(balanced)
    out = use("gray-world white balance", batch)[0].permute(1, 2, 0).numpy()
    inside = (expected > 1e-3).all(-1) & (expected < 1 - 1e-3).all(-1)
    assert inside.mean() > 0.8
    assert np.abs(out - expected)[inside].max() < 2e-3  # scikit-image rounds the white point otherwise
    assert np.abs(color.rgb2lab(out)[..., 1:].mean((0, 1))).max() < 0.6 * np.abs(cast).max()
