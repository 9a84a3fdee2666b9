"""The weights inside the package, on real photos."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attriqa import ATTRIBUTES, QualityReward, images
from attriqa.distortions import apply_ramp
from tests.reward.test_quality import gradient

# The weights inside the package


@pytest.fixture(scope="module")
def default() -> QualityReward:
    return QualityReward()


def as_batch(photo: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255


def test_the_default_keeps_the_contract_on_real_photos(default: QualityReward, photos: list[NDArray[np.uint8]]) -> None:
    assert default.identity.startswith("default-")
    narrow = QualityReward(dtype=torch.bfloat16)
    for photo in photos:
        batch = as_batch(photo)
        exact = default.assess(batch)
        assert (narrow(batch) - exact.score).abs().item() < 0.01
        assert all(0 <= exact.attribute(name).item() <= 1 for name in ATTRIBUTES)
        found = gradient(default, batch)
        assert found.isfinite().all()
        assert found.abs().max() > 1e-5


def test_the_default_says_the_same_of_a_file_and_its_pixels(
    default: QualityReward, photos: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    for photo in photos:
        Image.fromarray(photo).save(tmp_path / "photo.png")
        (row,) = default.score_files([tmp_path / "photo.png"])
        exact = default.assess(as_batch(photo))
        assert row.score == pytest.approx(exact.score.item(), abs=0.005)
        assert row.attributes == pytest.approx([exact.attribute(name).item() for name in ATTRIBUTES], abs=0.02)


@pytest.mark.slow
def test_the_default_sees_what_was_done_to_a_photo(default: QualityReward, photos: list[NDArray[np.uint8]]) -> None:
    """The head of each ramp falls and rises with it."""
    for photo in photos:
        batch = images.resize_shorter(as_batch(photo), 300)
        for attribute in ATTRIBUTES:
            low, high = (
                default.assess(apply_ramp(batch, attribute, torch.tensor([level]), torch.Generator().manual_seed(0)))
                for level in (0.1, 0.9)
            )
            assert low.attribute(attribute) < high.attribute(attribute), attribute


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("attribute", ["sharpness", "noisiness"])
def test_the_default_scores_blur_and_noise_lower(
    default: QualityReward, photos: list[NDArray[np.uint8]], index: int, attribute: str
) -> None:
    batch = images.resize_shorter(as_batch(photos[index]), 400)
    ruined = apply_ramp(batch, attribute, torch.zeros(1), torch.Generator().manual_seed(0))
    assert default(ruined) < default(batch)
