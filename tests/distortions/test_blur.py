"""Filters, blurs and sharpening against formulations by NumPy and SciPy, image by image."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from attriqa.distortions.kadid import filters
from attriqa.distortions.kadid.blur import (
    disk_kernel,
    gaussian_blur,
    high_sharpen,
    lens_blur,
    motion_blur,
    motion_kernel,
)
from attriqa.distortions.kadid.colorspaces import rgb_to_lab
from tests.support.distortion_pictures import generators, noise, seeded, values

Floats = NDArray[np.float64]


def filtered(image: Tensor, kernel: Floats) -> Floats:
    return np.stack([ndimage.correlate(channel, kernel, mode="nearest") for channel in image.numpy()])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 1), (9, 3), (11, 13), (1, 41)])
@pytest.mark.parametrize("most_shifts", [0, 10**6])
def test_correlation_is_scipys_by_either_way(
    shape: tuple[int, int], most_shifts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "MOST_SHIFTS", most_shifts)
    images = noise(2)
    kernels = [torch.rand(shape, generator=seeded(seed), dtype=torch.float64) for seed in range(2)]
    found = filters.correlate(images, kernels)
    for image, kernel, result in zip(images, kernels, found, strict=True):
        np.testing.assert_allclose(result.numpy(), filtered(image, kernel.numpy()), atol=1e-12)
    single = filters.correlate(images.float(), [kernel / kernel.sum() for kernel in kernels])
    scaled = found / torch.stack([kernel.sum() for kernel in kernels])[:, None, None, None]
    torch.testing.assert_close(single, scaled.float(), rtol=0, atol=1e-6)


def test_few_taps_and_many_go_their_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    real = torch.fft.rfft2
    monkeypatch.setattr(torch.fft, "rfft2", lambda x, s: lengths.append(s) or real(x, s))  # type: ignore[func-returns-value]
    lens_blur(noise(1), values(2), [])
    assert not lengths
    lens_blur(noise(1), values(8), [])
    assert lengths


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1, 2, 5, 6.5, 20])
def test_gaussian_blur_is_scipys_truncated_at_two_sigma(sigma: float) -> None:
    images = noise(1)
    found = gaussian_blur(images, values(sigma), [])
    radius = math.ceil(2 * sigma)
    for channel, result in zip(images[0], found[0], strict=True):
        expected = ndimage.gaussian_filter(channel.numpy(), sigma, mode="nearest", radius=radius)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)
    assert len(filters.gaussian_taps(sigma)) == 2 * radius + 1


def test_a_blur_keeps_constants() -> None:
    flat = torch.full((3, 3, 20, 24), 0.3)
    for blur, strengths in ((gaussian_blur, (0.1, 5, 20)), (lens_blur, (1, 4, 8)), (motion_blur, (1, 4, 10))):
        torch.testing.assert_close(blur(flat, values(*strengths), generators(0, 1, 2)), flat)


@pytest.mark.parametrize("radius", [1, 2, 4, 6, 8])
def test_a_disk_covers_each_pixel_by_its_share(radius: int) -> None:
    kernel = disk_kernel(radius).numpy()
    assert kernel.shape == (2 * radius + 1, 2 * radius + 1)
    assert kernel.sum() == pytest.approx(1)
    # The disk lies within the kernel, so that a pixel wholly inside has 1 of its area.
    inside = np.hypot(*np.mgrid[-radius : radius + 1, -radius : radius + 1]) < radius - 0.75
    np.testing.assert_allclose(kernel[inside], 1 / (math.pi * radius**2), rtol=1e-12)
    for other in (kernel.T, kernel[::-1], kernel[:, ::-1]):
        np.testing.assert_allclose(other, kernel, atol=1e-15)
    fine = 100
    line = (np.arange((2 * radius + 1) * fine) + 0.5) / fine - radius - 0.5
    hits = (np.hypot(line[:, None], line) < radius).reshape(2 * radius + 1, fine, 2 * radius + 1, fine)
    np.testing.assert_allclose(kernel, hits.mean((1, 3)) / (math.pi * radius**2), atol=4e-4 / radius**2)


def test_lens_blur_is_the_mean_over_the_disk() -> None:
    images = noise(3)
    found = lens_blur(images, values(1, 4, 8), [])
    for image, radius, result in zip(images, (1, 4, 8), found, strict=True):
        np.testing.assert_allclose(result.numpy(), filtered(image, disk_kernel(radius).numpy()), atol=1e-12)


def line_kernel(length: float, angle: float, reach: int) -> Floats:
    """Pixel by pixel, from where the line and its ends are."""
    half, phi = (length - 1) / 2, math.radians(angle)
    direction = np.array([math.cos(phi), math.sin(phi)])
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for row in range(2 * reach + 1):
        for column in range(2 * reach + 1):
            point = np.array([column - reach, reach - row])
            at = point @ direction
            if np.linalg.norm(point) >= half - 1e-12:
                distance = np.linalg.norm(point - math.copysign(half, at) * direction)
            else:
                distance = np.linalg.norm(point - at * direction)
            kernel[row, column] = max(0.0, 1 - float(distance))
    kernel[kernel < 1e-9] = 0
    normalised: Floats = kernel / kernel.sum()
    return normalised


@pytest.mark.parametrize("length", [1, 2, 4, 6, 10])
@pytest.mark.parametrize("angle", [0, 1, 30, 45, 77, 90, 120, 135, 179, 180])
def test_a_motion_kernel_is_a_line(length: int, angle: int) -> None:
    kernel = motion_kernel(length, angle).numpy()
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)
    reach = 8
    padded = np.pad(kernel, [(reach - side // 2, reach - side // 2) for side in kernel.shape])
    np.testing.assert_allclose(padded, line_kernel(length, angle, reach), atol=1e-9)
    assert kernel[0].any()
    assert kernel[:, 0].any()


def test_known_motion_kernels() -> None:
    np.testing.assert_allclose(motion_kernel(1, 33), [[1.0]])
    np.testing.assert_allclose(motion_kernel(3, 0), [[1 / 3] * 3])
    np.testing.assert_allclose(motion_kernel(2, 0), [[1 / 4, 1 / 2, 1 / 4]])
    np.testing.assert_allclose(motion_kernel(9, 90), np.full((9, 1), 1 / 9))
    rising = motion_kernel(7, 45).numpy()
    middle = len(rising) // 2
    assert rising[middle - 2, middle + 2] > 0  # counter-clockwise: from the lower left to the upper right
    assert rising[middle + 2, middle - 2] > 0
    assert rising[middle - 2, middle - 2] == 0


def test_motion_blur_draws_an_angle_per_image() -> None:
    images = noise(4)
    found = motion_blur(images, values(4, 6, 10, 10), [seeded(seed) for seed in (5, 6, 7, 8)])
    angles = [int(torch.randint(181, (), generator=seeded(seed))) for seed in (5, 6, 7, 8)]
    assert len(set(angles)) == 4
    for image, length, angle, result in zip(images, (4, 6, 10, 10), angles, found, strict=True):
        np.testing.assert_allclose(result.numpy(), filtered(image, line_kernel(length, angle, 8)), atol=1e-9)


@pytest.mark.parametrize("amount", [1, 3, 12])
def test_sharpening_moves_lightness_away_from_its_blur(amount: float) -> None:
    images = 0.4 + 0.2 * noise(1)
    before = rgb_to_lab(images)[0].numpy()
    sharpened = high_sharpen(images, values(amount), [])
    after = rgb_to_lab(sharpened)[0].numpy()
    wanted = before[0] + amount * (before[0] - ndimage.gaussian_filter(before[0], 3, mode="nearest", radius=6))
    unclipped = ((sharpened > 0) & (sharpened < 1)).all(1)[0].numpy()
    assert unclipped.mean() > 0.1
    np.testing.assert_allclose(after[0][unclipped], wanted[unclipped], atol=1e-6)
    np.testing.assert_allclose(after[1:, unclipped], before[1:, unclipped], atol=1e-6)
    assert 0 <= sharpened.min() <= sharpened.max() <= 1
