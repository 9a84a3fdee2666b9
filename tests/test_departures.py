import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attriqa.distortions import DEPARTURES, apply_departure, luma
from attriqa.distortions.colorspaces import from_linear, to_linear

LEVELS = torch.linspace(0, 1, 6)


@pytest.fixture
def photo() -> Tensor:
    """(1, 3, 24, 32): a smooth colored picture without extremes."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 32), indexing="ij")
    return torch.stack([0.25 + 0.5 * x, 0.3 + 0.4 * y, 0.7 - 0.3 * x * y])[None]


@pytest.mark.parametrize("kind", DEPARTURES)
def test_severity_0_is_the_photo_and_more_is_further(photo: Tensor, kind: str) -> None:
    shown = apply_departure(photo.expand(6, -1, -1, -1), kind, LEVELS, 1.0)
    torch.testing.assert_close(shown[:1], photo, atol=1e-5, rtol=0)
    assert shown.min() >= 0
    assert shown.max() <= 1
    errors = (shown - photo).square().mean((1, 2, 3))
    assert (errors.diff() > 1e-4).all()


@pytest.mark.parametrize("kind", DEPARTURES)
def test_a_batch_is_its_images_one_by_one(photo: Tensor, kind: str) -> None:
    images = torch.cat([photo, photo.flip(3) * 0.7])
    severity = torch.tensor([0.3, 0.9])
    whole = apply_departure(images, kind, severity, 2.0)
    for i in range(2):
        torch.testing.assert_close(apply_departure(images[i : i + 1], kind, severity[i : i + 1], 2.0)[0], whole[i])


def test_each_does_what_its_name_says(photo: Tensor) -> None:
    full = {kind: apply_departure(photo, kind, torch.ones(1))[0] for kind in DEPARTURES}
    mean, chroma = photo.mean(), (photo.amax(1) - photo.amin(1)).mean()
    assert full["underexposed"].mean() < 0.6 * mean
    assert full["overexposed"].mean() > 1.4 * mean
    torch.testing.assert_close(full["gray"][0], full["gray"][1])
    assert (full["garish"].amax(0) - full["garish"].amin(0)).mean() > 1.5 * chroma
    assert luma(full["flat"][None]).std() < 0.3 * luma(photo).std()
    assert luma(full["harsh"][None]).std() > 1.5 * luma(photo).std()
    stops = to_linear(full["underexposed"]) / to_linear(photo[0])
    torch.testing.assert_close(stops, torch.full_like(stops, 2**-2.5), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("channel", "angle"), [(0, 0.0), (1, 2 * math.pi / 3), (2, 4 * math.pi / 3)])
def test_casts_go_round_the_circle_and_keep_the_light(channel: int, angle: float) -> None:
    photo = torch.full((1, 3, 8, 8), 0.4)
    shown = apply_departure(photo, "cast", torch.tensor([0.5]), angle)[0]
    means = shown.mean((1, 2))
    assert means.argmax() == channel
    others = [i for i in range(3) if i != channel]
    assert means[others[0]] == pytest.approx(means[others[1]].item(), abs=1e-4)
    light = to_linear(shown)
    assert (light[channel] / light[others[0]]).mean() == pytest.approx(math.exp(0.3 * 1.5), rel=1e-3)
    assert luma(light[None]).mean() == pytest.approx(luma(to_linear(photo)).mean().item(), rel=1e-3)


def test_black_stays_black() -> None:
    black = torch.zeros(1, 3, 8, 8)
    for kind in DEPARTURES:
        np.testing.assert_allclose(apply_departure(black, kind, torch.ones(1)).numpy(), 0, atol=1e-6)


def test_the_curves_are_each_others_inverse() -> None:
    values = torch.linspace(0, 1, 1001)
    torch.testing.assert_close(from_linear(to_linear(values)), values, atol=1e-5, rtol=0)


def test_wrong_input_is_named(photo: Tensor) -> None:
    with pytest.raises(ValueError, match=r"kind: expected one of cast, .*, got 'tint'"):
        apply_departure(photo, "tint", torch.ones(1))
    for wrong in (torch.ones(2), torch.tensor([1.1]), torch.tensor([-0.1]), torch.tensor([math.nan])):
        with pytest.raises(ValueError, match=r"severity: expected shape \(1,\) within \[0, 1\]"):
            apply_departure(photo, "gray", wrong)
