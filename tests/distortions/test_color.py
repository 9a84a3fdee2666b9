"""Colour spaces, changes of colour and tone curves against formulations by NumPy and SciPy, image by image."""

import colorsys
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import CubicSpline
from torch import Tensor

from attriqa.distortions.kadid import colorspaces
from attriqa.distortions.kadid.color import color_diffusion, color_saturation_1, color_saturation_2, color_shift
from attriqa.distortions.kadid.colorspaces import lab_to_rgb, rgb_to_lab, rgb_to_ycbcr, ycbcr_to_rgb
from attriqa.distortions.kadid.tone import brighten, contrast_change, darken, mean_shift
from tests.support.distortion_pictures import noise, seeded, values

Floats = NDArray[np.float64]


def pictures(count: int = 1, height: int = 37, width: int = 29) -> Tensor:
    """Every part of the gamut, also near black, where the curves are straight."""
    images = noise(count, height, width)
    images[..., :8, :] *= 0.06
    images[..., 0, :3] = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    return images


XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ.sum(1)


def to_lab(rgb: Floats) -> Floats:
    """(..., 3) sRGB, by the definitions of IEC 61966-2-1 and CIE 15."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ XYZ.T / WHITE
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def from_lab(lab: Floats) -> Floats:
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = WHITE * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = xyz @ np.linalg.inv(XYZ).T
    encoded: Floats = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.abs(np.maximum(linear, 0)) ** (1 / 2.4) - 0.055
    )
    return encoded


def last(image: Tensor) -> Floats:
    """(3, H, W) -> (H, W, 3)"""
    channels: Floats = image.permute(1, 2, 0).numpy()
    return channels


def test_lab_is_that_of_the_standards() -> None:
    images = pictures(2)
    lab = rgb_to_lab(images)
    for image, found in zip(images, lab, strict=True):
        np.testing.assert_allclose(last(found), to_lab(last(image)), atol=1e-5)
    torch.testing.assert_close(lab_to_rgb(lab), images, rtol=0, atol=1e-7)
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(images.float())), images.float(), rtol=0, atol=2e-5)


def test_strips_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(2)
    lab = rgb_to_lab(images)
    monkeypatch.setattr(colorspaces, "STRIP_PIXELS", 5 * images.shape[3] // torch.get_num_threads())
    torch.testing.assert_close(rgb_to_lab(images), lab, rtol=0, atol=1e-10)
    torch.testing.assert_close(lab_to_rgb(lab), images, rtol=0, atol=1e-7)


def test_known_colours_in_lab() -> None:
    """Red, green, blue and white, to the two decimals that colour calculators print."""
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.float64).T[None, :, None]
    expected = [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [100.0, 0.0, 0.0]]
    np.testing.assert_allclose(last(rgb_to_lab(colours)[0])[0], expected, atol=0.03)


def test_colours_outside_srgb_come_back_finite_and_in_order() -> None:
    lab = torch.zeros(1, 3, 1, 81, dtype=torch.float64)
    lab[0, 0, 0] = torch.linspace(-200, 1400, 81)
    lab[0, 2, 0] = 40
    rgb = lab_to_rgb(lab)
    assert rgb.isfinite().all()
    assert (rgb.diff(dim=3) > 0).all()
    np.testing.assert_allclose(last(rgb[0]), from_lab(last(lab[0])), atol=1e-7)


def test_gray_is_neutral_in_both_spaces() -> None:
    gray = torch.linspace(0, 1, 50, dtype=torch.float64).expand(1, 3, 2, 50)
    assert rgb_to_lab(gray)[:, 1:].abs().max() < 1e-9
    torch.testing.assert_close(rgb_to_ycbcr(gray)[:, 1:], torch.full((1, 2, 2, 50), 128 / 255, dtype=torch.float64))


def test_ycbcr_has_studio_swing() -> None:
    black_white = torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)]).double()
    np.testing.assert_allclose(rgb_to_ycbcr(black_white)[:, 0].flatten() * 255, [16, 235], atol=1e-9)
    blue, red = torch.tensor([[0.0, 0, 1], [1, 0, 0]], dtype=torch.float64)[:, None, :, None, None]
    assert rgb_to_ycbcr(blue)[0, 1, 0, 0] * 255 == pytest.approx(240)
    assert rgb_to_ycbcr(red)[0, 2, 0, 0] * 255 == pytest.approx(240)
    images = pictures(2)
    luma = (0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]) * 219 + 16
    found = rgb_to_ycbcr(images)
    torch.testing.assert_close(found[:, 0] * 255, luma, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        found[:, 2] * 255, 128 + 112 / 0.701 * (images[:, 0] - (luma - 16) / 219), rtol=0, atol=0.2
    )
    torch.testing.assert_close(ycbcr_to_rgb(found), images)


@pytest.mark.parametrize("amount", [1, 3, 12])
def test_color_diffusion_blurs_and_amplifies_a_and_b(amount: float) -> None:
    image = pictures()
    lab = to_lab(last(image[0]))
    sigma = 1.5 * amount + 2
    for channel in (1, 2):
        blurred = ndimage.gaussian_filter(lab[..., channel], sigma, mode="nearest", radius=math.ceil(2 * sigma))
        lab[..., channel] = amount * blurred
    found = last(color_diffusion(image, values(amount), [])[0])
    np.testing.assert_allclose(found, np.clip(from_lab(lab), 0, 1), atol=1e-6)


def edges(rgb: Floats) -> Floats:
    def stretched(x: Floats) -> Floats:
        spread: Floats = (x - x.min()) / (x.max() - x.min())
        return spread

    gray = rgb @ [0.2989, 0.5870, 0.1140]
    along = [ndimage.correlate1d(gray, [-0.5, 0, 0.5], axis=axis, mode="nearest") for axis in (0, 1)]
    e = stretched(ndimage.gaussian_filter(np.hypot(*along), 4, mode="nearest", radius=8))
    e = stretched(np.clip(e, 0.1, 1))
    return stretched(np.clip(e, *np.percentile(e, (1, 99))))


@pytest.mark.parametrize("length", [1, 6, 12])
@pytest.mark.parametrize("seed", [0, 1])
def test_color_shift_moves_green_at_edges(length: int, seed: int) -> None:
    image = torch.from_numpy(ndimage.gaussian_filter(pictures()[0].numpy(), (0, 2, 2)))[None]
    direction = torch.rand(2, generator=seeded(seed), dtype=torch.float64).numpy()
    down, right = np.round(direction / np.linalg.norm(direction) * length).astype(int)
    rgb = last(image[0]).copy()
    border = max(down, right)
    padded = np.pad(rgb[..., 1], border, mode="edge")
    shifted = np.roll(padded, (down, right), (0, 1))[border:-border, border:-border]
    e = edges(rgb)
    rgb[..., 1] = e * shifted + (1 - e) * rgb[..., 1]
    found = last(color_shift(image, values(length), [seeded(seed)])[0])
    np.testing.assert_allclose(found, rgb, atol=1e-9)


@pytest.mark.parametrize("factor", [0.4, 0.1, 0.0, -0.4])
def test_saturation_1_is_that_of_hsv(factor: float) -> None:
    image = pictures(1, 10, 7)
    found = color_saturation_1(image, values(factor), [])
    for y in range(10):
        for x in range(7):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[0, :, y, x].tolist())
            expected = colorsys.hsv_to_rgb(hue, factor * saturation, value)
            assert found[0, :, y, x].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("factor", [1, 3, 9])
def test_saturation_2_is_that_of_lab(factor: float) -> None:
    image = pictures()
    lab = to_lab(last(image[0])) * [1, factor, factor]
    found = color_saturation_2(image, values(factor), [])
    np.testing.assert_allclose(last(found[0]), np.clip(from_lab(lab), 0, 1), atol=1e-6)


def spline(tones: Floats, x: list[float], y: list[float]) -> Floats:
    return np.clip(CubicSpline(x, y, bc_type="not-a-knot")(tones), 0, 1)


@pytest.mark.parametrize("amount", [0.1, 0.4, 1.1])
def test_brighten_is_the_spline_on_rgb_and_then_on_lightness(amount: float) -> None:
    image = pictures()
    knots = ([0, 0.5, 1], [0, 0.5 + amount / 2, 1])
    once = spline(last(image[0]), *knots)
    lab = to_lab(once)
    lab[..., 0] = 100 * spline(lab[..., 0] / 100, *knots)
    expected = (2 * once + np.clip(from_lab(lab), 0, 1)) / 3
    found = brighten(image, values(amount), [])
    np.testing.assert_allclose(last(found[0]), expected, atol=1e-7)
    assert (found >= image - 1e-9).all()


@pytest.mark.parametrize("amount", [0.05, 0.2, 0.8])
def test_darken_is_the_spline_on_rgb(amount: float) -> None:
    image = pictures()
    expected = spline(last(image[0]), [0, 0.5, 1], [0, 0.5 - amount / 2, 1])
    found = darken(image, values(amount), [])
    np.testing.assert_allclose(last(found[0]), expected, atol=1e-12)
    assert (found <= image + 1e-9).all()


@pytest.mark.parametrize("amount", [0.3, 0.15, 0, -0.2, -0.4, -0.6])
def test_contrast_change_is_the_spline_through_five_points(amount: float) -> None:
    image = pictures()
    y = [0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1]
    expected = spline(last(image[0]), [0, 0.3, 0.5, 0.7, 1], y)
    found = contrast_change(image, values(amount), [])
    np.testing.assert_allclose(last(found[0]), expected, atol=1e-12)
    middle = image[(image > 0.3) & (image < 0.7)]
    spread = found[(image > 0.3) & (image < 0.7)].std() / middle.std()
    assert np.sign(round(spread.item() - 1, 6)) == np.sign(round(amount + 0.2, 6))


def test_mean_shift_adds_and_clips() -> None:
    images = pictures(3)
    found = mean_shift(images, values(0.15, 0, -0.15), [])
    np.testing.assert_allclose(found[0], np.clip(images[0].numpy() + 0.15, 0, 1))
    assert torch.equal(found[1], images[1])
    np.testing.assert_allclose(found[2], np.clip(images[2].numpy() - 0.15, 0, 1))
