import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attriqa.distortions import DEPARTURES, SETTINGS, cast_of, develop, draw_departure, luma
from attriqa.distortions.kadid.colorspaces import from_linear, to_linear

LEVELS = torch.linspace(0, 1, 6)


@pytest.fixture
def photo() -> Tensor:
    """(1, 3, 24, 32): a smooth colored picture without extremes, but for a fine grid."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 32), indexing="ij")
    grid = 0.15 * ((torch.arange(24)[:, None] + torch.arange(32)[None]) % 2)
    return torch.stack([0.25 + 0.5 * x, 0.3 + 0.4 * y, 0.7 - 0.3 * x * y])[None] + grid


def drawn(kind: str, seed: int = 0) -> Tensor:
    return draw_departure(kind, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", DEPARTURES)
def test_severity_0_is_the_photo_and_more_is_further(photo: Tensor, kind: str) -> None:
    shown = develop(photo.expand(6, -1, -1, -1), LEVELS[:, None] * drawn(kind))
    torch.testing.assert_close(shown[:1], photo, atol=1e-5, rtol=0)
    assert 0 <= shown.min() <= shown.max() <= 1
    errors = (shown - photo).square().mean((1, 2, 3))
    assert (errors.diff() > 1e-4).all()


@pytest.mark.parametrize("kind", DEPARTURES)
def test_a_batch_is_its_images_one_by_one(photo: Tensor, kind: str) -> None:
    images = torch.cat([photo, photo.flip(3) * 0.7])
    settings = torch.tensor([[0.3], [0.9]]) * drawn(kind)
    whole = develop(images, settings)
    for i in range(2):
        torch.testing.assert_close(develop(images[i : i + 1], settings[i : i + 1])[0], whole[i])


def test_each_does_what_its_name_says(photo: Tensor) -> None:
    full = {kind: develop(photo, drawn(kind)[None])[0] for kind in DEPARTURES}
    mean, chroma = photo.mean(), (photo.amax(1) - photo.amin(1)).mean()
    assert full["underexposed"].mean() < 0.6 * mean
    assert full["overexposed"].mean() > 1.3 * mean
    torch.testing.assert_close(full["gray"][0], full["gray"][1])
    assert (full["garish"].amax(0) - full["garish"].amin(0)).mean() > 1.5 * chroma
    assert luma(full["flat"][None]).std() < 0.3 * luma(photo).std()
    assert luma(full["harsh"][None]).std() > 1.5 * luma(photo).std()
    stops = to_linear(full["underexposed"]) / to_linear(photo[0])
    torch.testing.assert_close(stops, torch.full_like(stops, 2**-2.5), rtol=1e-3, atol=0)
    edges = {kind: full[kind].diff(dim=2).abs().mean() / photo.diff(dim=3).abs().mean() for kind in full}
    assert edges["soft"] < 0.5
    assert edges["oversharpened"] > 2


@pytest.mark.parametrize(("channel", "angle"), [(0, 0.0), (1, 2 * math.pi / 3), (2, 4 * math.pi / 3)])
def test_casts_go_round_the_circle_and_keep_the_light(channel: int, angle: float) -> None:
    photo = torch.full((1, 3, 8, 8), 0.4)
    shown = develop(photo, 0.5 * cast_of(angle)[None])[0]
    means = shown.mean((1, 2))
    assert means.argmax() == channel
    others = [i for i in range(3) if i != channel]
    assert means[others[0]] == pytest.approx(means[others[1]].item(), abs=1e-4)
    light = to_linear(shown)
    assert (light[channel] / light[others[0]]).mean() == pytest.approx(math.exp(0.3 * 1.5), rel=1e-3)
    assert luma(light[None]).mean() == pytest.approx(luma(to_linear(photo)).mean().item(), rel=1e-3)


def test_what_is_drawn() -> None:
    mixed = torch.stack([drawn("mixed", seed) for seed in range(40)])
    torch.testing.assert_close(mixed.norm(dim=1), torch.ones(40))
    assert ((mixed > 0.1).any(0) & (mixed < -0.1).any(0)).all()  # every setting, both ways
    casts = torch.stack([drawn("cast", seed) for seed in range(40)])
    others = [name not in ("red", "green") for name in SETTINGS]
    assert not casts[:, others].any()
    assert len({tuple(row.tolist()) for row in casts}) == 40
    assert torch.equal(drawn("gray", 0), drawn("gray", 1))
    assert torch.equal(drawn("mixed", 7), drawn("mixed", 7))


def test_gradients_reach_photo_and_settings(photo: Tensor) -> None:
    """Against differences, in float64; a photo with black and white pixels, at 0 and away from it."""
    image = photo.double()[..., :6, :5].clone()
    image[0, :, 0, 0], image[0, :, 1, 1] = 0.0, 1.0
    image.requires_grad_()
    away = (0.2 * torch.tensor([[-0.5, 0.7, -0.3, 0.4, -0.6, 0.5]], dtype=torch.float64)).requires_grad_()
    inside = image.detach().clamp(0.1, 0.9).requires_grad_()
    assert torch.autograd.gradcheck(develop, (inside, away), eps=1e-7, atol=1e-4)
    settings = torch.zeros(1, len(SETTINGS), dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(develop(image, settings).sum(), (image, settings))
    assert all(bool(gradient.isfinite().all()) for gradient in found)


def test_black_stays_black() -> None:
    black = torch.zeros(1, 3, 8, 8)
    for kind in DEPARTURES:
        np.testing.assert_allclose(develop(black, drawn(kind)[None]).numpy(), 0, atol=1e-6)


def test_the_curves_are_each_others_inverse() -> None:
    values = torch.linspace(0, 1, 1001)
    torch.testing.assert_close(from_linear(to_linear(values)), values, atol=1e-5, rtol=0)


def test_wrong_input_is_named(photo: Tensor) -> None:
    with pytest.raises(ValueError, match=r"kind: expected one of cast, .*, got 'tint'"):
        drawn("tint")
    for wrong in (torch.zeros(2, 6), torch.zeros(1, 5), torch.full((1, 6), 1.1), torch.full((1, 6), math.nan)):
        with pytest.raises(ValueError, match=r"settings: expected shape \(1, 6\) within \[-1, 1\]"):
            develop(photo, wrong)
