"""attriqa.training.adversarial: what tempts a score is found, is far from the photo, and is kept as a ramp."""

import numpy as np
import pytest
import torch
from torch import Tensor

from attriqa.distortions import SETTINGS, develop, draw_departure
from attriqa.training.adversarial import NEAREST, tempting, tempting_settings


@pytest.fixture
def photos() -> Tensor:
    """(3, 3, 16, 20)"""
    noise = torch.rand(3, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    return 0.2 + 0.6 * torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)


def starts(count: int) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.stack([0.5 * draw_departure("mixed", rng) for _ in range(count)])


def red(images: Tensor) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def test_a_score_that_likes_red_is_tempted_by_red(photos: Tensor) -> None:
    found = tempting_settings(red, photos, starts(3), 12)
    assert (found[:, SETTINGS.index("red")] > 0.4).all()
    assert (red(develop(photos, found)) > red(develop(photos, starts(3)))).all()
    lengths = found.norm(dim=1)
    assert (lengths >= NEAREST - 1e-5).all()
    assert (lengths <= 1 + 1e-5).all()


def test_a_score_that_likes_the_photo_best_is_tempted_back_to_it(photos: Tensor) -> None:
    def like(images: Tensor) -> Tensor:
        return -(images - photos).square().mean((1, 2, 3))

    found = tempting_settings(like, photos, starts(3), 30)
    assert (like(develop(photos, found)) > 0.3 * like(develop(photos, starts(3)))).all()
    assert (found.norm(dim=1) >= NEAREST - 1e-5).all(), "but no nearer"


def test_each_image_is_tempted_by_itself(photos: Tensor) -> None:
    whole = tempting_settings(red, photos, starts(3), 5)
    for i in range(3):
        alone = tempting_settings(red, photos[i : i + 1], starts(3)[i : i + 1], 5)
        torch.testing.assert_close(alone[0], whole[i])


def test_ramps_go_from_the_photo_to_what_tempts(photos: Tensor) -> None:
    def pool(images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def read(raw: Tensor) -> Tensor:
        return raw.float()[:, 0] - raw.float()[:, 1:].mean(1)

    found = tempting(photos, pool, read, np.random.default_rng(0), steps=8, levels=4, chunk=2)
    assert found["ramps"].shape == (3, 4, 3)
    torch.testing.assert_close(found["ramps"][:, 0], pool(photos).half())
    assert (found["gain"] > 0.02).all()
    assert found["levels"].shape == (3, 4)
    torch.testing.assert_close(found["levels"][:, 0], torch.ones(3))
    torch.testing.assert_close(found["levels"].diff(dim=1, n=2), torch.zeros(3, 2), atol=1e-6, rtol=0)
    assert (found["levels"][:, -1] <= 1 - NEAREST + 1e-5).all()


def test_some_ramps_end_in_noise_and_all_begin_without(photos: Tensor) -> None:
    def pool(images: Tensor) -> Tensor:
        return torch.stack([images.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (2, 3)], 1)

    crops = photos.repeat(4, 1, 1, 1)
    found = tempting(crops, pool, lambda raw: raw.sum(1), np.random.default_rng(0), steps=1, levels=3, chunk=12)
    torch.testing.assert_close(found["ramps"][:, 0], pool(crops).half())
    rough = found["ramps"].float().sum(2)
    assert 3 <= int((rough[:, 2] > 3 * rough[:, 0]).sum()) <= 11, "two of three, where they are not blurred"


def test_a_start_that_is_too_near_or_too_far_is_named(photos: Tensor) -> None:
    for length in (0.1, 1.2):
        wrong = starts(3) * 2 * length
        with pytest.raises(ValueError, match=r"start: expected settings of length 0.3 to 1"):
            tempting_settings(red, photos, wrong, 2)
