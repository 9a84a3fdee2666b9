import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attriqa.distortions.kadid.spatial import color_block, jitter, non_eccentricity_patch, pixelate
from tests.support.distortion_pictures import generators, picture, values

Floats = NDArray[np.float64]


def keys(distance: float, a: float = -0.5) -> float:
    """Keys' kernel (1981, equation 4), as printed there for any a."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def fetched(image: Floats, y: float, x: float) -> Floats:
    height, width = image.shape[:2]
    total = np.zeros(3)
    for row in range(math.floor(y) - 1, math.floor(y) + 3):
        for column in range(math.floor(x) - 1, math.floor(x) + 3):
            pixel = image[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
            total += keys(y - row) * keys(x - column) * pixel
    return total


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 3.0])
def test_jitter_is_five_rounds_of_bicubic_fetching(sigma: float) -> None:
    image, generator = picture(17, 22), generators(4)[0]
    expected = image[0].permute(1, 2, 0).double().numpy()
    for _ in range(5):
        shift = sigma * torch.randn(2, 17, 22, generator=generator).double().numpy()
        before = expected.copy()
        for y, x in np.ndindex(17, 22):
            expected[y, x] = fetched(before, y - shift[0, y, x], x - shift[1, y, x])
    found = jitter(image, values(sigma), generators(4))[0].permute(1, 2, 0)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_jitter_keeps_a_constant_and_all_channels_together() -> None:
    flat = torch.full((1, 3, 40, 40), 0.3)
    torch.testing.assert_close(jitter(flat, values(1.0), generators(0)), flat)
    gray = picture()[:, :1].expand(-1, 3, -1, -1)
    moved = jitter(gray, values(1.0), generators(0))
    torch.testing.assert_close(moved[:, 0], moved[:, 1])
    torch.testing.assert_close(moved[:, 0], moved[:, 2])


@pytest.mark.parametrize("size", [(48, 48), (64, 90)])
def test_patches_are_copied_in_order(size: tuple[int, int]) -> None:
    height, width = size
    image, count = picture(height, width), 100
    expected = image[0].permute(1, 2, 0).numpy().copy()
    at_once = expected.copy()
    drawn = torch.rand(count, 4, generator=generators(8)[0]).numpy()
    for r0, r1, r2, r3 in drawn:
        y, x = math.floor(r0 * (height - 48) + 0.5) + 16, math.floor(r1 * (width - 48) + 0.5) + 16
        to_y, to_x = (
            math.floor((r2 - np.float32(0.5)) * 16 + y + 0.5),
            math.floor((r3 - np.float32(0.5)) * 16 + x + 0.5),
        )
        assert min(to_y, to_x) >= 8
        assert to_y + 16 <= height - 8
        assert to_x + 16 <= width - 8
        expected[to_y : to_y + 16, to_x : to_x + 16] = expected[y : y + 16, x : x + 16].copy()
        at_once[to_y : to_y + 16, to_x : to_x + 16] = image[0].permute(1, 2, 0).numpy()[y : y + 16, x : x + 16]
    found = non_eccentricity_patch(image, values(count), generators(8))[0].permute(1, 2, 0)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert (at_once != expected).any()  # else later copies of earlier ones are not seen


@pytest.mark.parametrize("strength", [0.01, 0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("size", [(66, 73), (384, 512)])
def test_pixelate_is_nearest_down_and_up(strength: float, size: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *size, generator=generators(0)[0])
    scale = 0.95 - strength**0.6
    expected = image[0].permute(1, 2, 0).numpy()
    small = [math.ceil(scale * side) for side in size]
    for axis in (0, 1):
        for old, new in ((size[axis], small[axis]), (small[axis], size[axis])):
            expected = expected.take(nearest(old, new), axis)
    found = pixelate(image, values(strength), generators(0))[0].permute(1, 2, 0)
    np.testing.assert_array_equal(found.numpy(), expected)
    cells = len(np.unique(expected[:, :, 0]))
    assert cells == pytest.approx(small[0] * small[1], rel=0.01)  # a few of the random values are equal


def nearest(old: int, new: int) -> list[int]:
    """The old pixel that each new one's centre lies in, in whole numbers."""
    return [(2 * place + 1) * old // (2 * new) for place in range(new)]


def test_blocks_are_opaque_and_lie_on_each_other() -> None:
    image = picture(70, 80)
    expected = image[0].numpy().copy()
    for red, green, blue, across, down in torch.rand(10, 5, generator=generators(3)[0]).numpy():
        y, x = math.floor(down * 38 + 0.5), math.floor(across * 48 + 0.5)
        expected[:, y : y + 32, x : x + 32] = np.array([red, green, blue])[:, None, None]
    np.testing.assert_array_equal(color_block(image, values(10), generators(3))[0].numpy(), expected)
