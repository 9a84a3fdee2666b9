"""Photos to plausible raw files: the way back, its randomness, its noise."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from attriqa_envs.isp import PARAMETERS, render
from attriqa_envs.isp.color import decode, encode
from attriqa_envs.raw.color import apply_matrix
from attriqa_envs.raw.unprocess import Conditions, UnprocessRanges, draw_conditions, neutral, unprocess
from tests.support.isp_pictures import psnr

SEEDS = [3, 4, 5]
EXACT = UnprocessRanges((0, 0), (0, 0), (2, 2), (1.6, 1.6), (0, 0), (0, 0))


@pytest.fixture
def photos() -> Tensor:
    """(3, 3, 40, 56) with black, white, and colours of all kinds."""
    images = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    images[:, :, :4], images[:, :, 4:8] = 0, 1
    return images


@pytest.mark.parametrize("conditions", [neutral, lambda n: draw_conditions(range(n), EXACT)])
def test_without_randomness_the_default_rendering_is_the_photo(
    photos: Tensor, conditions: Callable[[int], Conditions]
) -> None:
    linear = unprocess(photos, conditions(3), SEEDS)
    assert psnr(encode(linear), photos) > 100
    rendered = render(linear, torch.zeros(3, len(PARAMETERS)))
    assert psnr(rendered, photos) > 45, "the default rendering clips softly"
    assert float(linear.min()) >= 0


def test_one_photo_gives_the_same_in_every_batch(photos: Tensor) -> None:
    together = unprocess(photos, draw_conditions(SEEDS), SEEDS)
    for index, seed in enumerate(SEEDS):
        alone = unprocess(photos[index : index + 1], draw_conditions([seed]), [seed])
        torch.testing.assert_close(alone[0], together[index], atol=1e-6, rtol=1e-5)
    again = unprocess(photos, draw_conditions(SEEDS), SEEDS)
    assert torch.equal(again, together)
    other = unprocess(photos, draw_conditions(SEEDS), [seed + 1 for seed in SEEDS])
    assert not torch.equal(other, together)


def test_nothing_global_is_drawn(photos: Tensor) -> None:
    before = torch.random.get_rng_state()
    unprocess(photos, draw_conditions(SEEDS), SEEDS)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("ev", [-2.0, -1.0, 1.0])
def test_exposure_scales_light_until_the_sensor_clips(photos: Tensor, ev: float) -> None:
    dim = photos * 0.4  # whose linear values stay below what one EV more clips
    linear = unprocess(dim, neutral(3)._replace(exposure_ev=torch.full((3,), ev)), SEEDS)
    torch.testing.assert_close(linear, decode(dim) * 2**ev, atol=1e-5, rtol=1e-4)


def test_what_overexposes_loses_detail_but_no_neutrality() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 32, 64).contiguous()
    linear = unprocess(ramp, neutral(1)._replace(exposure_ev=torch.tensor([2.0])), [0])
    assert float((linear.amax(1) - linear.amin(1)).max()) < 1e-3, "gray stays gray"
    row = linear[0, 0, 0]
    assert bool((row.diff() >= -1e-5).all())
    assert float(row[-1]) == pytest.approx(2.15, rel=1e-3), "where red clips"
    assert float(row[-8:].max() - row[-8:].min()) < 1e-3, "and nothing is left beyond it"


def test_a_cast_is_a_wrong_white_balance(photos: Tensor) -> None:
    dim = photos * 0.5
    base = neutral(3)
    cast = torch.tensor([1.2, 1.0, 0.9]).expand(3, 3)
    linear = unprocess(dim, base._replace(cast=cast), SEEDS)
    camera = apply_matrix(decode(dim), torch.linalg.inv(base.camera_to_srgb)) * cast[:, :, None, None]
    wanted = apply_matrix(camera, base.camera_to_srgb).clamp(min=0)
    torch.testing.assert_close(linear, wanted, atol=1e-5, rtol=1e-4)


def test_undoing_the_tone_curve_flattens() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 32, 64).contiguous()
    rows = [
        encode(unprocess(ramp, neutral(1)._replace(tone=torch.tensor([tone])), [0]))[0, 1, 0]
        for tone in (0.0, 0.5, 1.0)
    ]
    torch.testing.assert_close(3 * rows[2] ** 2 - 2 * rows[2] ** 3, ramp[0, 0, 0], atol=1e-4, rtol=0)
    middles = [float(row[33] - row[30]) for row in rows]
    assert middles[0] > middles[1] > middles[2]
    for row in rows:
        assert float(row[0]) == pytest.approx(0, abs=1e-4)
        assert float(row[-1]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("level", [0.3, 0.8])
def test_noise_has_the_variance_that_the_model_gives(level: float) -> None:
    """In camera RGB, before white balance: shot times signal, and read."""
    shot, read = 1e-3, 1e-5
    gray = encode(torch.tensor(level)).expand(1, 3, 200, 200).contiguous()
    base = neutral(1)
    conditions = base._replace(shot_noise=torch.tensor([shot]), read_noise=torch.tensor([read]))
    linear = unprocess(gray, conditions, [7]).double()
    camera = (
        apply_matrix(linear, torch.linalg.inv(base.camera_to_srgb.double()))[0] / base.gains[0].double()[:, None, None]
    )
    for channel, gain in enumerate(base.gains[0].tolist()):
        noise = camera[channel] - level / gain
        assert float(noise.mean()) == pytest.approx(0, abs=6 * (shot * level + read) ** 0.5 / 200)
        assert float(noise.var()) == pytest.approx(shot * level / gain + read, rel=0.04)
    first, second = (camera[channel].flatten() for channel in (0, 2))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.05


def test_draws_fill_their_ranges_and_follow_their_seeds() -> None:
    ranges = UnprocessRanges()
    drawn = draw_conditions(range(400), ranges)
    spans = [
        (drawn.exposure_ev, ranges.exposure_ev), (drawn.tone, ranges.tone), (drawn.gains[:, 0], ranges.red_gain),
        (drawn.gains[:, 2], ranges.blue_gain), (drawn.cast[:, 0].log2(), ranges.cast_ev),
        (drawn.cast[:, 2].log2(), ranges.cast_ev),
    ]  # fmt: skip
    for values, span in spans:
        low, high = span
        width = high - low
        assert low - 1e-5 <= float(values.min()) < low + 0.05 * width
        assert high + 1e-5 >= float(values.max()) > high - 0.05 * width
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.1 * width)
    assert 1e-4 <= float(drawn.shot_noise.min()) < float(drawn.shot_noise.median()) < 3e-3, "evenly in the logarithm"
    assert float(drawn.shot_noise.max()) <= 0.012
    scatter = drawn.read_noise.log() - (2.18 * drawn.shot_noise.log() + 1.2)
    assert float(scatter.std()) == pytest.approx(0.26, rel=0.15)
    assert float(drawn.camera_to_srgb.sum(2).sub(1).abs().max()) < 1e-5
    inverse = torch.linalg.inv(drawn.camera_to_srgb)
    assert float(inverse.min()) > -0.05, "a camera sees little negative light in what sRGB can show"
    torch.testing.assert_close(draw_conditions([17])[4], drawn.camera_to_srgb[17:18])


def test_wrong_arguments_are_refused(photos: Tensor) -> None:
    with pytest.raises(ValueError, match="conditions, seeds: expected 3, as many as images; got 2 and 3"):
        unprocess(photos, neutral(2), SEEDS)
    with pytest.raises(ValueError, match="conditions, seeds: expected 3, as many as images; got 3 and 1"):
        unprocess(photos, neutral(3), [1])
    with pytest.raises(ValueError, match="images: expected a float tensor"):
        unprocess(photos * 2, neutral(3), SEEDS)


@pytest.mark.parametrize("name", [field.name for field in fields(UnprocessRanges)])
def test_wrong_ranges_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        UnprocessRanges(**{name: (0.9, 0.5)})
    with pytest.raises(ValueError, match=f"{name}: expected"):
        UnprocessRanges(**{name: (-9.0, 20.0)})
