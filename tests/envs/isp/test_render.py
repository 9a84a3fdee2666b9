"""The ISP as a function: its default rendering, its filters against other implementations, and its contract."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter
from torch import Tensor

from attriqa_envs.isp import MAX_LINEAR, bounds, render
from attriqa_envs.isp.color import MIDDLE_GRAY, decode, encode, from_opponent, soft_clip, to_opponent
from attriqa_envs.isp.filters import gaussian_blur, gaussian_weights, guided_smooth, smooth_within_edges
from tests.support.isp_pictures import P, awkward, gray_ramp, params, patches, picture, random_params

# The default rendering and the display encoding


def test_the_default_is_the_srgb_encoding_and_a_soft_clip() -> None:
    anything = awkward(50).double()
    torch.testing.assert_close(render(anything, params(50)), soft_clip(encode(anything)), rtol=0, atol=1e-9)
    linear = awkward(50).clamp(max=4)  # in float32, darks beside a channel at 1000 lose some digits
    srgb = render(linear, params(50))
    torch.testing.assert_close(srgb, soft_clip(encode(linear)), rtol=0, atol=2e-5)
    plain = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).clamp(0, 1)
    assert (srgb - plain).abs().max() <= 1 / 128 + 2e-5
    between = (plain > 1 / 512) & (plain < 1 - 1 / 64)
    torch.testing.assert_close(srgb[between], plain[between], rtol=0, atol=2e-5)


def test_the_encoding_is_srgb_and_has_an_inverse() -> None:
    known = torch.tensor([0.0, 0.001, 0.18, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.01292, 0.4613561, 0.7353570, 1.0], dtype=torch.float64)
    torch.testing.assert_close(encode(known), expected, rtol=0, atol=1e-6)
    wide = torch.linspace(-0.2, 3, 400, dtype=torch.float64)
    torch.testing.assert_close(decode(encode(wide)), wide, rtol=0, atol=1e-9)


def test_the_opponent_space_is_oklab_but_for_its_toe() -> None:
    linear = picture(2).double()
    torch.testing.assert_close(from_opponent(*to_opponent(linear)), linear, rtol=0, atol=1e-12)
    grays, white = gray_ramp(), torch.ones(1, 3, 1, 1, dtype=torch.float64)
    light, a, b = to_opponent(grays)
    assert max(a.abs().max(), b.abs().max()) < 1e-6
    assert (light - encode(grays)[:, :1]).abs().max() < 0.03
    assert to_opponent(white)[0].item() == pytest.approx(1, abs=1e-6)
    assert to_opponent(0.18 * white)[0].item() == pytest.approx(MIDDLE_GRAY, abs=1e-6)
    # Oklab of pure red, to 4 digits: L 0.6280, a 0.2249, b 0.1258; the toe moves little of its direction.
    _, a, b = to_opponent(torch.tensor([1.0, 0, 0], dtype=torch.float64).view(1, 3, 1, 1))
    assert math.degrees(math.atan2(b.item(), a.item())) == pytest.approx(29.2, abs=3)


def test_headroom_comes_back_with_less_exposure() -> None:
    linear = patches((1.2,) * 3, (1.8,) * 3, (3.0, 1.4, 2.0))
    assert (render(linear, params()) > 0.99).all()
    torch.testing.assert_close(render(linear, params(exposure=-2)), encode(linear / 4), rtol=0, atol=1e-5)


# The filters against other implementations


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_the_blur_is_scipys(sigma: float) -> None:
    plane = picture().double()[:, :1]
    found = gaussian_blur(plane, gaussian_weights(torch.full((1, 1, 1, 1), sigma, dtype=torch.float64)))
    expected = gaussian_filter(plane[0, 0].numpy(), sigma, mode="nearest", radius=6)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_the_guided_filter_is_that_of_the_paper(radius: int) -> None:
    guide, planes = picture(seed=1).double()[:, :1], picture(seed=2).double()[:, :2]
    variance = torch.full((1, 1, 1, 1), 0.003, dtype=torch.float64)
    found = guided_smooth(guide, planes, radius, variance)

    def box(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return uniform_filter(values, 2 * radius + 1, mode="nearest")

    image = guide[0, 0].numpy()
    for channel in range(2):
        plane = planes[0, channel].numpy()
        slope = (box(image * plane) - box(image) * box(plane)) / (box(image**2) - box(image) ** 2 + 0.003)
        expected = box(slope) * image + box(box(plane) - slope * box(image))
        np.testing.assert_allclose(found[0, channel].numpy(), expected, atol=1e-10)
    torch.testing.assert_close(
        smooth_within_edges(guide, radius, variance), guided_smooth(guide, guide, radius, variance), rtol=0, atol=1e-12
    )


# The contract of a batched function


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [
        ((7, 40, 48), torch.float32, 5e-6),
        ((3, 5, 6), torch.float32, 5e-6),
        ((2, 1, 1), torch.float32, 5e-6),
        ((3, 160, 160), torch.float32, 5e-6),  # more pixels than a chunk on a CPU has
        ((5, 20, 24), torch.float64, 1e-12),
    ],
)
def test_a_batch_is_its_images_one_by_one(shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float) -> None:
    linear, given = picture(*shape).to(dtype), random_params(shape[0])
    together = render(linear, given)
    assert together.shape == linear.shape
    for index in range(shape[0]):
        alone = render(linear[index : index + 1], given[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=tolerance)


def test_an_image_knows_nothing_of_the_params_beside_it() -> None:
    linear, given = picture(4), random_params(4)
    other = given.clone()
    other[2] = random_params(1, seed=9)[0]
    before, after = render(linear, given), render(linear, other)
    assert torch.equal(before[[0, 1, 3]], after[[0, 1, 3]])
    assert (before[2] - after[2]).abs().max() > 0.01
    order = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(render(linear[order], given[order]), before[order], rtol=0, atol=1e-6)


def test_it_changes_neither_its_inputs_nor_any_state() -> None:
    linear, given = picture(2), random_params(2)
    copies, state = (linear.clone(), given.clone()), torch.get_rng_state()
    first = render(linear, given)
    assert torch.equal(render(linear, given), first)
    assert torch.equal(linear, copies[0])
    assert torch.equal(given, copies[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_the_picture(dtype: torch.dtype) -> None:
    linear, given = picture(2).to(dtype), random_params(2)
    srgb = render(linear, given)
    assert srgb.dtype == dtype
    expected = render(linear.double(), given.double())
    torch.testing.assert_close(srgb.double(), expected, rtol=0, atol=1e-4 + torch.finfo(dtype).eps)


def test_autocast_changes_nothing() -> None:
    linear, given = picture(2), random_params(2)
    expected = render(linear, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(render(linear, given), expected)


def test_memory_layout_changes_nothing() -> None:
    linear, given = picture(2), random_params(2)
    strided = linear.to(memory_format=torch.channels_last)
    torch.testing.assert_close(render(strided, given), render(linear, given), rtol=0, atol=1e-6)
    turned = render(linear.transpose(2, 3), given).transpose(2, 3)
    torch.testing.assert_close(turned, render(linear, given), rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("linear", "words"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "linear: expected a floating-point tensor, got torch.uint8"),
        (np.zeros((1, 3, 8, 8)), "linear: expected a floating-point tensor, got ndarray"),
        (torch.zeros(3, 8, 8), r"linear: expected a non-empty \(B, 3, H, W\), got \(3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), r"linear: expected a non-empty \(B, 3, H, W\), got \(1, 4, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"linear: expected a non-empty \(B, 3, H, W\), got \(0, 3, 8, 8\)"),
        (torch.full((1, 3, 8, 8), torch.nan), r"linear: expected finite values in \[0, 1000\], .* got nan to nan"),
        (torch.full((1, 3, 8, 8), torch.inf), r"linear: expected finite values .* got inf to inf"),
        (torch.full((1, 3, 8, 8), -0.01), r"linear: expected finite values .* got -0.01 to -0.01"),
        (torch.full((1, 3, 8, 8), 4095.0), r"linear: expected finite values .* 1 being white, got 4095 to 4095"),
    ],
)
def test_a_wrong_picture_is_refused(linear: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        render(linear, params())


def test_one_bad_pixel_is_enough() -> None:
    for wrong in (torch.nan, torch.inf, -1e-3, 2 * MAX_LINEAR):
        linear = picture(2)
        linear[1, 2, 3, 4] = wrong
        with pytest.raises(ValueError, match="linear: expected finite values"):
            render(linear, params(2))


def test_wrong_params_are_refused() -> None:
    low, high = bounds(torch.zeros(1))
    render(picture(2), torch.stack((low, high)))  # the edges belong to the box
    for wrong, words in (
        (params(2) * torch.nan, "params: expected values within their ranges, got exposure = nan of row 0"),
        (params(2, hue=31.0).requires_grad_(), r"got hue = 31 of row 0 \(range \[-30, 30\] degree\)"),
        (params(2, luma_denoise=-0.1), "got luma_denoise = -0.1"),
        (params(2)[:, 1:], f"params: expected {P} values in the last dimension, got shape"),
        (params(3), rf"params: expected shape \(2, {P}\), as linear, got \(3, {P}\)"),
        (params(2)[0], rf"params: expected shape \(2, {P}\), as linear, got \({P},\)"),
        (params(2).int(), "params: expected a floating-point tensor, got torch.int32"),
    ):
        with pytest.raises(ValueError, match=words):
            render(picture(2), wrong)
