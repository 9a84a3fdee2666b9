"""What each parameter of the ISP does, and what it leaves alone."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from attriqa_envs.isp import KEYS, PARAMETERS, render
from attriqa_envs.isp.color import LUMINANCE, decode, encode, from_opponent, soft_clip, to_opponent
from tests.support.isp_pictures import P, corners, gray_ramp, params, patches, picture, random_params

TABLE = {parameter.key: parameter for parameter in PARAMETERS}


def tuned(linear: Tensor, **values: float) -> Tensor:
    return render(linear, params(len(linear), linear.dtype, **values))


def luminance(linear: Tensor) -> Tensor:
    return (linear * torch.tensor(LUMINANCE, dtype=linear.dtype).view(1, 3, 1, 1)).sum(1)


def lightness(srgb: Tensor) -> Tensor:
    return to_opponent(decode(srgb))[0]


def chroma(srgb: Tensor) -> Tensor:
    _, a, b = to_opponent(decode(srgb))
    return (a**2 + b**2).sqrt()


def green_over_others(srgb: Tensor) -> Tensor:
    return srgb.mean((2, 3))[:, 1] / srgb.mean((2, 3))[:, [0, 2]].mean(1)


def patch(srgb: Tensor, index: int, size: int = 4) -> Tensor:
    return srgb[..., index * size : (index + 1) * size]


def hue_angle(srgb: Tensor) -> Tensor:
    _, a, b = to_opponent(decode(srgb.double()))
    return torch.atan2(b, a).mean((1, 2, 3))


def slope_at(knot: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Two grays beside a knot of the tone curve, and the difference of their lightness."""
    middle = min(max(knot / 7, 0.03), 0.97)
    light = torch.tensor([middle - 0.02, middle + 0.02]).view(1, 1, 1, 2)
    linear = from_opponent(light, torch.zeros_like(light), torch.zeros_like(light)).clamp(min=0)
    return linear, lambda srgb: lightness(srgb).diff(dim=3).flatten(1).mean(1)


def noise(colour: bool) -> Tensor:
    """A flat gray with noise in lightness, or at equal lightness in chroma."""
    light = torch.full((1, 1, 32, 32), 0.6)
    random = 0.02 * torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    none = torch.zeros_like(light)
    return from_opponent(light, random[:, :1], random[:, 1:]) if colour else from_opponent(
        light + random[:, :1], none, none)  # fmt: skip


EDGE = torch.where(torch.arange(32) < 16, 0.2, 0.4).expand(1, 3, 32, 32)
DARK, BRIGHT, MUTED, VIVID = (0.03,) * 3, (0.7,) * 3, (0.3, 0.26, 0.24), (0.5, 0.12, 0.1)

# Parameter -> linear picture, a measure of (B, 3, H, W) -> (B,) that a higher value raises, and what else is set.
MEASURES: dict[str, tuple[Tensor, Callable[[Tensor], Tensor], dict[str, float]]] = {
    "exposure": (picture() / 8, lambda srgb: srgb.mean((1, 2, 3)), {}),
    "temperature": (picture(), lambda srgb: srgb[:, 0].mean((1, 2)) / srgb[:, 2].mean((1, 2)), {}),
    "tint": (picture(), lambda srgb: 1 / green_over_others(srgb), {}),
    "highlights": (patches(BRIGHT), lambda srgb: srgb.mean((1, 2, 3)), {"exposure": -0.5}),
    "shadows": (patches(DARK), lambda srgb: srgb.mean((1, 2, 3)), {}),
    **{f"tone_{knot + 1}": (*slope_at(knot), {}) for knot in range(8)},
    "contrast": (picture(), lambda srgb: lightness(srgb).std((1, 2, 3)), {"exposure": -0.5}),
    "saturation": (patches(MUTED), lambda srgb: chroma(srgb).mean((1, 2, 3)), {}),
    "vibrance": (patches(MUTED), lambda srgb: chroma(srgb).mean((1, 2, 3)), {}),
    "hue": (patches(VIVID), hue_angle, {"saturation": -0.5}),
    "luma_denoise": (noise(False), lambda srgb: -lightness(srgb).std((1, 2, 3)), {}),
    "chroma_denoise": (noise(True), lambda srgb: -chroma(srgb).mean((1, 2, 3)), {}),
    "sharpen_amount": (EDGE, lambda srgb: srgb.amax((1, 2, 3)) - srgb.amin((1, 2, 3)), {}),
    "sharpen_radius": (EDGE, lambda srgb: srgb.std((1, 2, 3)), {"sharpen_amount": 0.5}),
}


def test_every_parameter_is_measured() -> None:
    assert set(MEASURES) == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_a_higher_value_does_what_the_table_says(key: str) -> None:
    linear, measure, others = MEASURES[key]
    steps = torch.linspace(TABLE[key].low, TABLE[key].high, 9)
    given = params(9)
    given[:, [KEYS.index(other) for other in others]] = torch.tensor(list(others.values()))
    given[:, KEYS.index(key)] = steps
    measured = measure(render(linear.expand(9, -1, -1, -1), given))
    assert (measured.diff() > 0).all(), measured


def test_exposure_is_in_stops_of_linear_light() -> None:
    linear = picture() / 10
    for stops in (-3.0, 1.0, 3.0):
        torch.testing.assert_close(
            tuned(linear, exposure=stops), soft_clip(encode(linear * 2**stops)), rtol=0, atol=2e-5
        )


def test_white_balance_scales_channels_and_keeps_the_luminance_of_gray() -> None:
    gray = patches((0.2,) * 3)
    for values in ({"temperature": 70.0}, {"temperature": -100.0, "tint": 0.5}, {"tint": -1.0}):
        linear = decode(tuned(gray, **values))
        torch.testing.assert_close(luminance(linear), luminance(gray), rtol=1e-3, atol=0)
        gains = linear / gray
        torch.testing.assert_close(
            decode(tuned(picture() / 3, **values)), picture() / 3 * gains[..., :1, :1], rtol=2e-3, atol=1e-5
        )


def planckian_white(mired: float) -> Tensor:
    """Linear sRGB of a black body at luminance 1; colour matching functions of Wyman, Sloan and Shirley (JCGT 2013)."""
    nm = torch.arange(380, 781, 2, dtype=torch.float64)

    def lobe(height: float, peak: float, below: float, above: float) -> Tensor:
        return height * torch.exp(-0.5 * ((nm - peak) * torch.where(nm < peak, below, above)) ** 2)

    x = lobe(1.056, 599.8, 0.0264, 0.0323) + lobe(0.362, 442.0, 0.0624, 0.0374) + lobe(-0.065, 501.1, 0.0490, 0.0382)
    y = lobe(0.821, 568.8, 0.0213, 0.0247) + lobe(0.286, 530.9, 0.0613, 0.0322)
    z = lobe(1.217, 437.0, 0.0845, 0.0278) + lobe(0.681, 459.0, 0.0385, 0.0725)
    light = 1 / (nm**5 * torch.expm1(0.014388 * mired / (nm * 1e-9) / 1e6))
    to_srgb = [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ]
    white = torch.tensor(to_srgb, dtype=torch.float64) @ (torch.stack((x, y, z)) * light).sum(1)
    return white / (white * torch.tensor(LUMINANCE, dtype=torch.float64)).sum()


@pytest.mark.parametrize("mired", [-100, -50, 50, 100])
def test_temperature_moves_white_along_the_planckian_locus(mired: int) -> None:
    about = 182.0  # 5500 K
    ratio = planckian_white(about + mired) / planckian_white(about)
    gray = patches((0.15,) * 3).double()
    gains = decode(tuned(gray, temperature=mired))[0, :, 0, 0] / 0.15
    stops = (gains / gains[1] / (ratio / ratio[1])).log2()
    assert stops.abs().max() < 0.1, stops


def test_white_balance_can_undo_any_cast_of_gains_to_1_3() -> None:
    """Within the ranges of temperature, tint and exposure, and exactly."""
    steps = torch.tensor([1 / 1.3, 1, 1.3], dtype=torch.float64)
    casts = torch.cartesian_prod(steps, steps, steps)
    red, green, blue = casts.log().T
    given = params(27, torch.float64)
    given[:, KEYS.index("temperature")] = (blue - red) / (0.0037 + 0.0061)
    given[:, KEYS.index("tint")] = (green - red - 0.0037 * given[:, KEYS.index("temperature")]) / math.log(2)
    linear = picture(1, 8, 8).double() / 4
    found = decode(render(linear * casts[:, :, None, None], given))
    gains = (linear / found).mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(found * gains, linear.expand_as(found), rtol=1e-6, atol=1e-7)
    assert gains.log2().abs().max() < TABLE["exposure"].high


def test_highlights_and_shadows_leave_the_other_half_alone() -> None:
    ramp = gray_ramp(0.9)
    plain = render(ramp, params(dtype=torch.float64))
    dark = (ramp < 0.18)[0, 0, 0]
    for value in (-1.25, 1.25):
        for key, still in (("highlights", dark), ("shadows", ~dark)):
            changed = (tuned(ramp, **{key: value}) - plain).abs()[0, 0, 0]
            assert changed[still].max() < 1e-5, key
            assert changed[~still].max() > 0.05, key


def test_highlights_and_shadows_are_in_stops_of_linear_light() -> None:
    bright = patches((2.0,) * 3, (3.0, 2.0, 2.5))
    recovered = decode(tuned(bright, highlights=-1.25, exposure=-1))
    torch.testing.assert_close(recovered, bright * 2**-2.25, rtol=1e-4, atol=0)
    dark = patches((0.0,) * 3, (0.005,) * 3, (0.01, 0.005, 0.015))
    lifted = tuned(dark, shadows=1.5)
    torch.testing.assert_close(lifted, soft_clip(encode(dark * 2**1.5)), rtol=0, atol=2e-5)


def test_highlights_and_shadows_flatten_no_tones() -> None:
    """Light after them grows as the power 0.2 of light before, or faster."""
    grays = torch.logspace(-2.5, -0.1, 200, dtype=torch.float64)
    for highlights in (TABLE["highlights"].low, TABLE["highlights"].high):
        for shadows in (TABLE["shadows"].low, TABLE["shadows"].high):
            srgb = tuned(grays.expand(1, 3, 1, -1), highlights=highlights, shadows=shadows)[0, 1, 0]
            shown = (srgb > 1 / 512) & (srgb < 1 - 1 / 64)
            powers = decode(srgb[shown]).log().diff() / grays[shown].log().diff()
            assert powers.min() > 0.2
            assert powers.max() < 2


def test_the_order_of_tones_is_kept_whatever_the_params() -> None:
    pointwise = torch.tensor([float(p.stage != "detail") for p in PARAMETERS])
    given = torch.cat((random_params(60), corners(60))).double() * pointwise
    ramp = gray_ramp(4, 96).expand(120, -1, -1, -1)
    neutral = given.clone()
    neutral[:, [KEYS.index("temperature"), KEYS.index("tint")]] = 0
    assert (render(ramp, neutral).diff(dim=3) > 0).all()
    # With a colour cast, a channel may leave the gamut; what it loses there is not seen.
    given[:, [place for place, p in enumerate(PARAMETERS) if p.stage == "colour"]] = 0
    assert (render(ramp, given).diff(dim=3) > -1 / 2550).all()


def test_the_tone_curve_keeps_black_and_white_and_means_nothing_when_even() -> None:
    ends = patches((0.0,) * 3, (1.0,) * 3).double()
    tone = [KEYS.index(f"tone_{knot + 1}") for knot in range(8)]
    given = torch.zeros(40, P, dtype=torch.float64)
    given[:, tone] = random_params(40, dtype=torch.float64)[:, tone]
    expected = soft_clip(encode(ends)).expand(40, -1, -1, -1)
    torch.testing.assert_close(render(ends.expand(40, -1, -1, -1), given), expected, rtol=0, atol=1e-6)
    for value in (-1.0, 0.5, 1.0):
        even = params()
        even[:, tone] = value
        torch.testing.assert_close(render(picture(), even), render(picture(), params()), rtol=0, atol=1e-5)


def test_the_tone_curve_is_the_integral_of_its_slopes() -> None:
    """Against sums of the piecewise linear slope."""
    values = random_params(1, seed=3, dtype=torch.float64)[0, 5:13]
    light = torch.linspace(0, 1, 1001, dtype=torch.float64)
    knots = np.arange(8) / 7
    slope = np.interp(light.numpy(), knots, 2 ** values.numpy())
    curve = np.concatenate(([0], np.cumsum((slope[1:] + slope[:-1]) / 2) * 0.001))
    curve /= curve[1000]
    flat = light.view(1, 1, 1, -1)
    linear = from_opponent(flat, torch.zeros_like(flat), torch.zeros_like(flat)).clamp(min=0)
    given = params(dtype=torch.float64)
    given[0, 5:13] = values
    found = lightness(render(linear, given))[0, 0, 0]
    inside = (curve > 0.01) & (curve < 0.98)
    np.testing.assert_allclose(found.numpy()[inside], curve[inside], atol=1e-5)


def test_contrast_turns_about_middle_gray_and_undoes_itself() -> None:
    middle = patches((0.18,) * 3)
    for value in (-1.0, 1.0):
        torch.testing.assert_close(tuned(middle, contrast=value), render(middle, params()), rtol=0, atol=1e-5)
    linear = 0.1 + 0.2 * picture()
    there = decode(tuned(linear, contrast=-0.7))
    torch.testing.assert_close(decode(tuned(there, contrast=0.7)), linear, rtol=1e-3, atol=1e-5)


def test_colour_stages_leave_grays_and_lightness_alone() -> None:
    grays = gray_ramp(0.9)
    colours = patches(MUTED, (0.2, 0.25, 0.3), (0.3, 0.2, 0.3)).double()
    for values in ({"saturation": 0.6}, {"vibrance": 1.0}, {"hue": 30.0}, {"saturation": -1.0}, {"vibrance": -1.0}):
        torch.testing.assert_close(
            tuned(grays, **values), render(grays, params(dtype=torch.float64)), rtol=0, atol=1e-5
        )
        before, after = (
            lightness(srgb) for srgb in (render(colours, params(dtype=torch.float64)), tuned(colours, **values))
        )
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_no_saturation_is_gray_and_hue_turns_by_its_angle() -> None:
    linear = picture().double()
    assert chroma(tuned(linear, saturation=-1)).max() < 1e-6
    red = patches(MUTED).double()
    for degrees in (-30.0, 12.0, 30.0):
        turned = hue_angle(tuned(red, hue=degrees)) - hue_angle(render(red, params(dtype=torch.float64)))
        assert math.degrees(turned.item()) == pytest.approx(degrees, abs=1e-3)
        torch.testing.assert_close(
            chroma(tuned(red, hue=degrees)), chroma(render(red, params(dtype=torch.float64))), rtol=1e-6, atol=0
        )


def test_vibrance_moves_muted_colours_most() -> None:
    linear = patches(MUTED, VIVID)
    ratio = chroma(tuned(linear, vibrance=0.5)) / chroma(render(linear, params()))
    assert patch(ratio, 0).mean() > 1.3
    assert patch(ratio, 1).mean() < 1.2


def test_denoising_keeps_edges() -> None:
    light = torch.where(torch.arange(40) < 20, 0.35, 0.7).expand(1, 1, 40, 40)
    noisy = light + 0.03 * torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    none = torch.zeros_like(light)
    srgb = tuned(from_opponent(noisy, none, none), luma_denoise=1)
    found = lightness(srgb)
    assert found[..., 3:17].std() < 0.5 * noisy[..., 3:17].std()
    step = found[..., 20:23].mean() - found[..., 17:20].mean()
    assert step.item() == pytest.approx(0.35, abs=0.03)


def test_chroma_denoising_leaves_lightness_alone() -> None:
    linear = noise(True) * 0.9
    torch.testing.assert_close(
        lightness(tuned(linear, chroma_denoise=1)), lightness(render(linear, params())), rtol=0, atol=1e-4
    )
    light, dark = 0.6 * torch.ones(1, 1, 16, 16), 0.3 * torch.ones(1, 1, 16, 16)
    sides = torch.cat((light, dark), 3)
    linear = from_opponent(sides, 0.08 * (sides > 0.5), torch.zeros_like(sides))  # red beside gray, on an edge
    red = chroma(tuned(linear, chroma_denoise=1))
    assert red[..., :15].min() > 0.06
    assert red[..., 17:].max() < 0.02


def test_detail_leaves_a_flat_picture_alone() -> None:
    flat = patches((0.3, 0.2, 0.1), size=12)
    changed = tuned(flat, luma_denoise=1, chroma_denoise=1, sharpen_amount=2, sharpen_radius=1)
    torch.testing.assert_close(changed, render(flat, params()), rtol=0, atol=2e-5)
