import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from attriqa.distortions.kadid.noise import (
    TV_WEIGHT,
    denoise,
    denoise_tv,
    impulse_noise,
    multiplicative_noise,
    white_noise,
    white_noise_cc,
)
from tests.support.distortion_pictures import generators, picture, values

GRAY = torch.full((1, 3, 256, 256), 0.5)
# ITU-R BT.601, 8-bit studio swing: Y in 16 .. 235, Cb and Cr in 16 .. 240.
YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
OFFSET = np.array([16.0, 128.0, 128.0]) / 255


def test_white_noise_is_the_picture_plus_the_generators_normals() -> None:
    images = torch.cat([picture(), picture(seed=1)])
    found = white_noise(images, values(0.001, 0.01), generators(5, 6))
    for image, out, variance, generator in zip(images, found, (0.001, 0.01), generators(5, 6), strict=True):
        expected = image.numpy() + np.sqrt(variance) * torch.randn(image.shape, generator=generator).numpy()
        np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)


def test_colour_noise_is_the_formula() -> None:
    image = (picture() * 3 - 1).clamp(0, 1)  # much of it black or white
    found = white_noise_cc(image, values(0.003), generators(5))[0]
    noise = np.sqrt(0.003) * torch.randn(image.shape[1:], generator=generators(5)[0]).double().numpy()
    planes = np.einsum("ij,jhw->ihw", YCBCR, image[0].double().numpy()) + OFFSET[:, None, None]
    clipped = np.clip(planes + noise, 0, 1)
    assert (clipped != planes + noise).mean() > 0.01  # else the clipping is not seen
    expected = np.einsum("ij,jhw->ihw", np.linalg.inv(YCBCR), clipped - OFFSET[:, None, None])
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_impulses_hit_each_channel_by_itself() -> None:
    density, count = 0.2, GRAY[0].numel()
    noisy = impulse_noise(GRAY, values(density), generators(1))[0]
    assert set(noisy.unique().tolist()) == {0.0, 0.5, 1.0}
    tolerance = 4 * math.sqrt(density / count)
    assert (noisy == 0).float().mean().item() == pytest.approx(density / 2, abs=tolerance)
    assert (noisy == 1).float().mean().item() == pytest.approx(density / 2, abs=tolerance)
    hits = (noisy != 0.5).sum(0)  # how many channels of a pixel: binomial
    for number, expected in enumerate((0.512, 0.384, 0.096, 0.008)):
        assert (hits == number).float().mean().item() == pytest.approx(expected, abs=0.01)


def test_impulses_leave_the_rest_alone() -> None:
    image = picture() * 0.8 + 0.1
    noisy = impulse_noise(image, values(0.03), generators(1))
    hit = (noisy == 0) | (noisy == 1)
    assert 0.02 < hit.float().mean() < 0.04
    assert torch.equal(noisy[~hit], image[~hit])


def test_speckle_is_uniform_and_grows_with_the_value() -> None:
    image = picture()
    found = multiplicative_noise(image, values(0.05), generators(1))
    drawn = torch.rand(image.shape[1:], generator=generators(1)[0])
    torch.testing.assert_close(found, image * (1 + math.sqrt(3 * 0.05) * (2 * drawn - 1)), rtol=0, atol=1e-6)


def objective(found: NDArray[np.float64], noisy: NDArray[np.float64], weight: float) -> float:
    down = np.diff(found, axis=0, append=found[-1:])
    right = np.diff(found, axis=1, append=found[:, -1:])
    return float(((found - noisy) ** 2).sum() / 2 + weight * np.sqrt(down**2 + right**2).sum())


def noisy_picture(variance: float) -> Tensor:
    return white_noise(picture(48, 40), values(variance), generators(2)).clamp(0, 1)


@pytest.mark.parametrize("variance", [0.01, 0.15])
def test_total_variation_is_minimised(variance: float) -> None:
    noisy, weight = noisy_picture(variance), TV_WEIGHT * math.sqrt(variance)
    converged = denoise_tv(noisy.double(), values(weight), steps=2000)[0].numpy()
    found = denoise_tv(noisy, values(weight))[0].double().numpy()
    for channel, best, ours in zip(noisy[0].double().numpy(), converged, found, strict=True):
        expected = denoise_tv_chambolle(channel, weight=weight, eps=1e-12, max_num_iter=6000)
        np.testing.assert_allclose(best, expected, atol=2e-3)
        least = objective(best, channel, weight)
        assert least <= objective(expected, channel, weight) * (1 + 1e-6)
        usual = denoise_tv_chambolle(channel, weight=weight)  # which stops at a tolerance
        assert objective(ours, channel, weight) < min(1.03 * objective(usual, channel, weight), 1.05 * least)


def test_denoising_keeps_means_and_constants() -> None:
    noisy = noisy_picture(0.05)
    torch.testing.assert_close(denoise_tv(noisy, values(0.2)).mean((2, 3)), noisy.mean((2, 3)), rtol=0, atol=1e-5)
    flat = torch.full((1, 3, 32, 32), 0.25)
    torch.testing.assert_close(denoise_tv(flat, values(0.2)), flat)


def test_denoise_adds_noise_clips_it_and_removes_it() -> None:
    image = picture()
    found = denoise(image, values(0.05), generators(9))
    noisy = (image + math.sqrt(0.05) * torch.randn(image.shape[1:], generator=generators(9)[0])).clamp(0, 1)
    torch.testing.assert_close(found, denoise_tv(noisy, values(TV_WEIGHT * math.sqrt(0.05))), rtol=0, atol=1e-5)


def scaled(photos: Sequence[NDArray[np.uint8]], side: int) -> Tensor:
    tensors = [torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255 for photo in photos]
    return torch.cat([torch.nn.functional.interpolate(t, (side, side), mode="area") for t in tensors])


def test_the_weight_is_near_the_best_at_every_level(photos: list[NDArray[np.uint8]]) -> None:
    images = scaled(photos, 64)
    for variance in (0.01, 0.05, 0.15):
        noisy = white_noise(images, values(*[variance] * 3), generators(0, 1, 2)).clamp(0, 1)

        def decibel(factor: float, noisy: Tensor = noisy, variance: float = variance) -> float:
            cleaned = denoise_tv(noisy, values(*[factor * math.sqrt(variance)] * 3))
            return -10 * (cleaned - images).square().mean((1, 2, 3)).log10().mean().item()

        assert decibel(TV_WEIGHT) > max(decibel(factor) for factor in (0.35, 0.5, 1.4)) - 0.1
