import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from attriqa.distortions.kadid import Apply
from attriqa.distortions.kadid.codecs import jpeg, jpeg2000
from tests.support.distortion_pictures import generators, picture, values

JP2: dict[str, Any] = {"format": "JPEG2000", "quality_mode": "rates", "irreversible": True}


def saved(image: torch.Tensor, **options: Any) -> tuple[NDArray[np.uint8], int]:
    """What a file of Pillow holds after a plain save, and its bytes."""
    pixels = np.rint(image.permute(1, 2, 0).double().numpy() * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **options)
    with Image.open(file) as loaded:
        return np.array(loaded), len(file.getvalue())


def as_pixels(image: torch.Tensor) -> NDArray[np.uint8]:
    scaled = image.double() * 255
    torch.testing.assert_close(scaled, scaled.round(), rtol=0, atol=1e-4)
    return scaled.round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("quality", [43, 36, 24, 7, 4])
def test_jpeg_is_pillows_bit_for_bit(quality: int) -> None:
    image = picture()
    expected, _ = saved(image[0], format="JPEG", quality=quality, subsampling=2)
    np.testing.assert_array_equal(as_pixels(jpeg(image, values(quality), generators(0))[0]), expected)


@pytest.mark.parametrize("ratio", [16, 45, 400])
def test_jpeg2000_is_pillows_bit_for_bit(ratio: int) -> None:
    image = picture()
    expected, _ = saved(image[0], quality_layers=[ratio], **JP2)
    np.testing.assert_array_equal(as_pixels(jpeg2000(image, values(ratio), generators(0))[0]), expected)


def test_the_ratio_is_that_of_the_bytes() -> None:
    image = picture(200, 240)
    for ratio in (16, 45):
        # The file that is decoded in the test above: at most so many bytes, and the headers (some 100).
        _, size = saved(image[0], quality_layers=[ratio], **JP2)
        assert 0.7 * image.numel() / ratio < size < image.numel() / ratio + 150


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("distort", "parameter"), [(jpeg, 24), (jpeg2000, 45)])
def test_threads_change_nothing(distort: Apply, parameter: float) -> None:
    images = torch.cat([picture(seed=seed) for seed in range(5)])
    outputs = []
    for count in (1, 4):
        torch.set_num_threads(count)
        outputs.append(distort(images, values(*[parameter] * 5), generators(*range(5))))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("distort", [jpeg, jpeg2000])
def test_values_between_levels_are_rounded(distort: Apply) -> None:
    image = picture()
    expected = distort(image, values(40), generators(0))
    moved = (image + 0.4 / 255).clamp(0, 1)
    assert torch.equal(distort(moved, values(40), generators(0)), expected)


def test_an_error_in_a_codec_is_raised() -> None:
    with pytest.raises((OSError, ValueError)):
        jpeg(torch.rand(2, 3, 8, 70000), values(40, 40), generators(0, 1))  # wider than a JPEG can be
