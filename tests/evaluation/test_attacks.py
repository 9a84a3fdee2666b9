"""attriqa.evaluation.attacks: budgets are kept, gains are what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from attriqa.evaluation.attacks import (
    fgsm,
    middle_squares,
    pgd,
    random_signs,
    random_start,
    score_all,
    slope,
    summarise_gains,
    to_8_bits,
)


def redness(images: Tensor) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2))


def bent(images: Tensor) -> Tensor:
    """Curved and with kinks, so that the way matters."""
    return (images[:, 1] - 0.5).abs().mean((1, 2)) + torch.tanh(9 * (images[:, 0] - images[:, 2]).mean((1, 2)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def clean() -> Tensor:
    return to_8_bits(torch.rand(3, 3, 40, 40, generator=generator()))


@pytest.mark.parametrize("epsilon", [2 / 255, torch.tensor([1.0, 4.0, 16.0]) / 255])
def test_budgets_are_kept_and_the_score_climbs(clean: Tensor, epsilon: float | Tensor) -> None:
    start = random_start(clean, epsilon, generator())
    reach = torch.as_tensor(epsilon).expand(3)
    for found in (start, pgd(bent, clean, epsilon, 5), pgd(bent, clean, epsilon, 5, start=start)):
        moved = (found - clean).abs().amax((1, 2, 3))
        assert (moved <= reach + 1e-6).all()
        assert (moved >= 0.7 * reach).all(), "each image has its own budget, and uses it"
        assert found.min() >= 0
        assert found.max() <= 1
        assert not found.requires_grad
    assert (bent(pgd(bent, clean, epsilon, 5)) > bent(clean)).all()
    assert (bent(pgd(bent, clean, epsilon, 5, start=start)) > bent(start)).all()


def test_pgd_finds_all_that_a_linear_scorer_can_give(clean: Tensor) -> None:
    goal = redness((clean + torch.tensor([3.0, -3.0, 0.0])[:, None, None] / 255).clamp(0, 1))
    for start in (None, random_start(clean, 3 / 255, generator())):
        torch.testing.assert_close(redness(pgd(redness, clean, 3 / 255, 6, start=start)), goal)
    torch.testing.assert_close(redness(fgsm(redness, clean, 3 / 255)), goal)


def test_random_directions_gain_nothing(clean: Tensor) -> None:
    found = random_signs(clean, 3 / 255, generator())
    inside = (clean > 3 / 255) & (clean < 252 / 255)
    torch.testing.assert_close((found - clean).abs()[inside], torch.full((int(inside.sum()),), 3 / 255))
    assert (redness(found) - redness(clean)).abs().max() < 1e-3


def test_random_starts_fill_the_ball_and_follow_the_seed(clean: Tensor) -> None:
    gray = torch.full_like(clean, 0.5)
    found = (random_start(gray, 0.1, generator()) - gray) / 0.1
    assert found.abs().mean().item() == pytest.approx(0.5, abs=0.02)
    assert found.mean().item() == pytest.approx(0, abs=0.02)
    assert torch.equal(random_start(clean, 0.1, generator(1)), random_start(clean, 0.1, generator(1)))
    assert not torch.equal(random_start(clean, 0.1, generator(1)), random_start(clean, 0.1, generator(2)))


def test_a_step_too_far_is_taken_back_and_halved(clean: Tensor) -> None:
    goals = redness(clean) + torch.tensor([0.3, 1.0, 9.0]) / 255

    def near(images: Tensor) -> Tensor:
        return -(redness(images) - goals).abs()

    found = pgd(near, clean, 4 / 255, steps=8)
    assert near(found)[0] > near(clean)[0] + 0.2 / 255, "the first steps of 2.5/255 all overshoot"
    assert (near(found) > near(clean)).all()
    gain = (near(found) - near(clean))[2].item()
    assert gain == pytest.approx(8 / 255, abs=1 / 255), "all of the budget, but what is clipped"


def test_the_best_of_all_steps_is_returned(clean: Tensor) -> None:
    seen: list[Tensor] = []

    def wavy(images: Tensor) -> Tensor:
        score = torch.sin(2000 * redness(images)) + torch.sin(700 * images[:, 2].mean((1, 2)))
        seen.append(score.detach())
        return score

    for steps in range(1, 7):
        seen.clear()
        found = pgd(wavy, clean, 6 / 255, steps)
        torch.testing.assert_close(torch.stack(seen).amax(0), wavy(found), rtol=0, atol=1e-3)


def test_a_batch_is_attacked_as_each_image_alone(clean: Tensor) -> None:
    epsilon = torch.tensor([1.0, 4.0, 16.0]) / 255
    together = pgd(bent, clean, epsilon, 6)
    for index in range(3):
        alone = pgd(bent, clean[index : index + 1], epsilon[index : index + 1], 6)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-6)


def test_the_slope_is_that_of_each_image(clean: Tensor) -> None:
    score, gradient = slope(redness, clean)
    torch.testing.assert_close(score, redness(clean))
    torch.testing.assert_close(gradient[:, 0], torch.full((3, 40, 40), 1 / 1600))
    assert not gradient[:, 2].any()
    assert not score.requires_grad


@pytest.mark.parametrize(
    ("epsilon", "steps", "start", "message"),
    [
        (0.0, 3, None, "steps, epsilon: expected positive numbers"),
        (torch.tensor([0.1, 0.0, 0.1]), 3, None, "steps, epsilon: expected positive numbers"),
        (0.1, 0, None, "expected positive numbers, got 0 and 0.1"),
        (0.1, 3, 0.2, "start: expected the shape of images, and to be within epsilon"),
    ],
)
def test_wrong_arguments_are_named(
    clean: Tensor, epsilon: float | Tensor, steps: int, start: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pgd(redness, clean, epsilon, steps, start=None if start is None else clean + start)
    with pytest.raises(ValueError, match="start: expected the shape of images"):
        pgd(redness, clean, 0.1, 3, start=clean[:2])


def test_scores_do_not_depend_on_the_batch(clean: Tensor) -> None:
    for batch in (1, 2, 3):
        found = score_all(bent, clean, batch=batch)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, bent(clean).numpy(), rtol=1e-6)


def test_middle_squares_are_cut_from_the_reduced_photo(tmp_path: Path) -> None:
    pixels = np.zeros((64, 256, 3), np.uint8)
    pixels[:, 96:160] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    found = middle_squares([tmp_path / "wide.png", tmp_path / "tall.png"], 32)
    assert found.shape == (2, 3, 32, 32)
    torch.testing.assert_close(found[:, :, 4:-4, 4:-4], torch.full((2, 3, 24, 24), 200 / 255))
    torch.testing.assert_close(found * 255, (found * 255).round(), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"wide.png: expected sides of at least 65 px, got \(64, 256\)"):
        middle_squares([tmp_path / "wide.png"], 65)


def test_gains_are_told_in_deviations_of_the_scorer() -> None:
    gains = np.random.default_rng(0).normal(0.3, 0.1, 200)
    told = summarise_gains(gains, 0.05, seed=0)
    assert told.mean == pytest.approx(gains.mean())
    assert told.in_sd == pytest.approx(gains.mean() / 0.05)
    assert told.in_sd_low < told.in_sd < told.in_sd_high
    assert told.in_sd_high - told.in_sd_low == pytest.approx(2 * 1.96 * (0.1 / 0.05) / 200**0.5, rel=0.2)
