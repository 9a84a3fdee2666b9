"""The images of a tuning environment, however they come."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from attriqa_envs.raw import LinearImage
from attriqa_envs.raw.bank import load_bank
from attriqa_envs.raw.sensor import RawMetadata
from tests.support.isp_pictures import picture


def test_a_bank_is_taken_as_it_is() -> None:
    given = picture(3, 32, 40).half()
    assert load_bank(given) is given


def test_all_forms_give_the_same_bank() -> None:
    given = picture(2, 32, 40)
    images = [LinearImage(image, RawMetadata("a.dng", "raw", (32, 40))) for image in given]
    for form in (given, list(given), images, list(given.double())):
        assert torch.equal(load_bank(form), given.half())


def test_sizes_that_differ_need_a_side_and_keep_their_centre() -> None:
    images = [torch.full((3, 40, 60), 0.2), torch.full((3, 90, 33), 0.4), torch.full((3, 32, 400), 0.6)]
    images[0][:, :, :8] = 5  # outside the central square
    with pytest.raises(ValueError, match="got 3 sizes"):
        load_bank(images)
    bank = load_bank(images, side=40)
    assert bank.shape == (3, 3, 40, 40)
    assert bank.flatten(1).amax(1).tolist() == pytest.approx([0.2, 0.4, 0.6], abs=1e-3)


def test_a_folder_is_read_at_256_px_unless_told_otherwise(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (320, 300), (255, 0, 0)).save(tmp_path / "a.png")
    bank = load_bank(tmp_path)
    assert bank.shape == (1, 3, 256, 256)
    assert bank[0].mean((1, 2)).tolist() == pytest.approx([1, 0, 0], abs=1e-3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least one"),
        ([torch.rand(3, 32, 32), torch.full((3, 32, 32), float("nan"))], "image 1 has NaN"),
        ([torch.rand(3, 32, 32), -torch.ones(3, 32, 32)], "image 1 goes from -1"),
        ([torch.full((3, 32, 32), 2000.0)], "image 0 goes from 2000 to 2000"),
        ([torch.rand(3, 31, 40)], r"image 0 is float32 of shape \(3, 31, 40\)"),
        ([torch.rand(1, 40, 40)], "image 0 is"),
        ([torch.zeros(3, 40, 40, dtype=torch.uint8)], "image 0 is uint8"),
        (torch.rand(3, 40, 40), "image 0 is"),
        (["a.png"], "image 0 is a str"),
    ],
)
def test_what_is_no_linear_image_is_named(images: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_bank(images)
