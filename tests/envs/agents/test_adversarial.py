"""attriqa_envs.agents.adversarial: a score's own optimum, as far as it is from the photo, and no further."""

import numpy as np
import pytest
import torch
from torch import Tensor

from attriqa_envs.agents.adversarial import tuned


@pytest.fixture
def photos() -> Tensor:
    """(6, 3, 16, 16)"""
    noise = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return 0.2 + 0.6 * torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def run(photos: Tensor, like: object, renders: int = 12) -> dict[str, Tensor]:
    def read(raw: Tensor) -> Tensor:
        assert callable(like)
        score: Tensor = like(raw.float().view(-1, 3, 16, 16))
        return score

    return tuned(photos, pixels, read, np.random.default_rng(0), renders=renders, levels=4, chunk=4)


def test_what_a_score_likes_is_found_and_lies_as_low_as_it_is_far(photos: Tensor) -> None:
    found = run(photos, lambda images: images.mean((1, 2, 3)))  # the brighter, the better
    assert found["ramps"].shape == (6, 4, 768)
    assert found["levels"].shape == (6, 4)
    assert torch.equal(found["ramps"][:, 0], pixels(photos).half())
    assert torch.equal(found["levels"][:, 0], torch.ones(6))
    assert (found["gain"] > 0.2).all()
    assert (found["levels"][:, -1] == 0).all()
    far = (found["ramps"].float() - pixels(photos)[:, None]).square().mean(2).sqrt()
    torch.testing.assert_close(found["levels"], (1 - far / 0.2).clamp(min=0), atol=2e-3, rtol=0)


def test_a_score_that_likes_the_photo_best_ends_near_it(photos: Tensor) -> None:
    """From wherever the departures led: what is found is no example against such a score."""

    def like(images: Tensor) -> Tensor:
        errors = (images[:, None] - photos).square().mean((2, 3, 4))
        return -errors.amin(1)

    found = run(photos, like, renders=40)
    assert (found["levels"][:, -1] > 0.85).all()
    departed = found["levels"].amin(1) < 0.85
    assert 1 <= int(departed.sum()) <= 5, "two of three depart first"
    assert (found["levels"][departed, -1] > found["levels"][departed, 1]).all()
