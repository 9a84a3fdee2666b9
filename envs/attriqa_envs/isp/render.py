"""The ISP: linear light and params in, display picture out; one pure, batched, differentiable function.

`render` is what the environment, the optimisers and the export share. The stages, in order:

1. *linear light*: exposure, white balance, highlights and shadows;
2. *opponent space* (`attriqa_envs.isp.color`): denoising, by guided filters;
3. *tone*: the tone curve and contrast; lightness and chroma are scaled together, so that colours stay as vivid;
4. *colour*: vibrance, saturation, hue, on chroma only, so hue and lightness stay where they are not meant to change;
5. *detail*: an unsharp mask on lightness;
6. *display*: the sRGB encoding and a clip whose gradients stay alive.

With all params zero, stages 1 to 5 do nothing: what remains is the camera's default rendering, encoding and clip alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attriqa_envs.isp.color import LUMINANCE, MIDDLE_GRAY, encode, from_opponent, lightness_of, soft_clip, to_opponent
from attriqa_envs.isp.filters import gaussian_blur, gaussian_weights, guided_smooth, smooth_within_edges
from attriqa_envs.isp.parameters import KEYS, TONE_KNOTS, check_params

MAX_LINEAR = 1000.0  # ten stops above white: more is not light but raw counts that were never divided by white

# Logs of red and blue over green of a black body's white, in linear sRGB, per mired, about 5500 K (CIE 1931 observer).
# They vary by few per cent from 3500 to 15000 K (in Wien's approximation of Planck's law they are constant). Constants
# let shifts add up and undo one another.
_RED_PER_MIRED, _BLUE_PER_MIRED = 0.0037, -0.0061

_DEEP_SHADOW = 0.15  # lightness below which shadows act in full, 4 stops under middle gray
_CHROMA_SCALE = 0.1  # chroma at which vibrance has half its effect; a vivid sRGB colour has 0.2 to 0.35
_DENOISE_SIGMA = 0.02, 0.04  # standard deviation of smoothed detail at a denoise parameter of 0, and what 1 adds
_LUMA_RADIUS, _CHROMA_RADIUS = 2, 4  # px
_CHUNK_PIXELS = 1 << 16  # on a CPU: planes that stay in its cache render three times as fast as a batch of 32


def render(linear: Tensor, params: Tensor) -> Tensor:
    """Render linear light for display, each image with its own params.

    Differentiable in both arguments, with gradients that are finite everywhere, clipped and black pixels included, and
    nowhere cut to zero by clipping. Lengths (denoising, sharpening) are in pixels of the image that is given.

    Args:
        linear: ``(B, 3, H, W)`` linear light with sRGB primaries, in [0, 1000]; 1 is display white, more is headroom
            that exposure or highlights may bring back. Half precision is computed in float32.
        params: ``(B, P)`` physical values within their ranges, see `attriqa_envs.isp.parameters.PARAMETERS`.

    Returns:
        ``(B, 3, H, W)`` sRGB in [0, 1] of the dtype and on the device of ``linear``. With params of zero, it is
        ``soft_clip(encode(linear))``, within 1/128 of the plain clipped sRGB encoding.

    Raises:
        ValueError: a wrong shape or dtype, NaN, infinity, or a value out of its range.
    """
    _check_linear(linear)
    check_params(params)
    if params.shape[:-1] != linear.shape[:1]:
        raise ValueError(f"params: expected shape ({len(linear)}, {len(KEYS)}), as linear, got {tuple(params.shape)}")
    values = linear.float() if linear.dtype in (torch.float16, torch.bfloat16) else linear
    chunk = len(values)
    if values.device.type == "cpu":
        chunk = max(1, _CHUNK_PIXELS // (values.shape[2] * values.shape[3]))
    settings = _settings(params.to(values))
    parts = zip(values.split(chunk), *(setting.split(chunk) for setting in settings), strict=True)
    return torch.cat([_stages(part, _Settings(*some)) for part, *some in parts]).to(linear.dtype)


def _check_linear(linear: Tensor) -> None:
    if not isinstance(linear, Tensor) or not linear.is_floating_point():
        kind = linear.dtype if isinstance(linear, Tensor) else type(linear).__name__
        raise ValueError(f"linear: expected a floating-point tensor, got {kind}")
    if linear.ndim != 4 or linear.shape[1] != 3 or linear.numel() == 0:
        raise ValueError(f"linear: expected a non-empty (B, 3, H, W), got {tuple(linear.shape)}")
    low, high = (float(end) for end in linear.detach().aminmax())
    if not (low >= 0 and high <= MAX_LINEAR):
        raise ValueError(
            f"linear: expected finite values in [0, {MAX_LINEAR:g}], 1 being white, got {low:g} to {high:g}"
        )


class _Settings(NamedTuple):
    """What B images' params say to the stages; computed for all of them at once."""

    gains: Tensor  # (B, 3, 1, 1) of exposure and white balance together
    highlights: Tensor  # (B, 1, 1, 1), as what follows but for where another shape is given
    shadows: Tensor
    luma_denoise: Tensor
    luma_variance: Tensor
    chroma_denoise: Tensor
    chroma_variance: Tensor
    curve: Tensor  # (B, 9, 1, 1), see _curve_gain
    offset: Tensor
    saturation: Tensor  # a factor
    vibrance: Tensor
    cosine: Tensor  # of the turn of hue
    sine: Tensor
    sharpen: Tensor
    blur: Tensor  # (B, 7, 1, 1), see gaussian_weights


def _settings(params: Tensor) -> _Settings:
    p = dict(zip(KEYS, params.T.reshape(len(KEYS), -1, 1, 1, 1).unbind(0), strict=True))
    slope, angle = torch.exp2(p["contrast"]), torch.deg2rad(p["hue"])
    start, more = _DENOISE_SIGMA
    return _Settings(
        gains=_white_balance(p["temperature"], p["tint"]) * torch.exp2(p["exposure"]),
        highlights=p["highlights"],
        shadows=p["shadows"],
        luma_denoise=p["luma_denoise"],
        luma_variance=(start + more * p["luma_denoise"]) ** 2,
        chroma_denoise=p["chroma_denoise"],
        chroma_variance=(start + more * p["chroma_denoise"]) ** 2,
        curve=slope * _curve(torch.exp2(torch.cat([p[f"tone_{knot + 1}"] for knot in range(TONE_KNOTS)], 1))),
        offset=MIDDLE_GRAY * (1 - slope),
        saturation=1 + p["saturation"],
        vibrance=p["vibrance"],
        cosine=angle.cos(),
        sine=angle.sin(),
        sharpen=p["sharpen_amount"],
        blur=gaussian_weights(torch.exp2(p["sharpen_radius"])),
    )


def _stages(linear: Tensor, s: _Settings) -> Tensor:
    light = linear * s.gains
    light = light * _zone_gain(light, s.highlights, s.shadows)
    lightness, chroma_a, chroma_b = to_opponent(light)
    lightness, chroma_a, chroma_b = _denoise(lightness, chroma_a, chroma_b, s)
    gain = _curve_gain(lightness, s.curve)
    lightness = torch.addcmul(s.offset, lightness, gain)
    chroma_a, chroma_b = _colour(chroma_a * gain, chroma_b * gain, s)
    lightness = torch.lerp(lightness, gaussian_blur(lightness, s.blur), -s.sharpen)
    return soft_clip(encode(from_opponent(lightness, chroma_a, chroma_b)))


def _white_balance(temperature: Tensor, tint: Tensor) -> Tensor:
    """Channel gains ``(B, 3, 1, 1)`` that leave the luminance of gray as it is."""
    red = torch.exp(_RED_PER_MIRED * temperature)
    blue = torch.exp(_BLUE_PER_MIRED * temperature)
    green = torch.exp2(-tint)
    return torch.cat((red, green, blue), 1) / (LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue)


def _denoise(lightness: Tensor, chroma_a: Tensor, chroma_b: Tensor, s: _Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Blend towards guided smoothing; the parameter sets both how far and how strong an edge must be to stay.

    A blend and not the filter's own strength alone, whose derivative at zero is zero: a search that starts at the
    default would never learn that denoising helps.
    """
    smooth = smooth_within_edges(lightness, _LUMA_RADIUS, s.luma_variance)
    lightness = torch.lerp(lightness, smooth, s.luma_denoise)
    colours = torch.cat((chroma_a, chroma_b), 1)
    smooth = guided_smooth(lightness, colours, _CHROMA_RADIUS, s.chroma_variance)
    chroma_a, chroma_b = torch.lerp(colours, smooth, s.chroma_denoise).split(1, 1)
    return lightness, chroma_a, chroma_b


def _smoothstep(position: Tensor) -> Tensor:
    inside = position.clamp(0, 1)
    return inside * inside * (3 - 2 * inside)


def _zone_gain(light: Tensor, highlights: Tensor, shadows: Tensor) -> Tensor:
    """Gains ``(B, 1, H, W)`` of linear light: 1 at middle gray, in full from white on and from deep shadow down.

    The order of tones is kept: within the table's ranges, light after the gain grows as the power 0.2 of light before,
    or faster.
    """
    red, green, blue = light.split(1, 1)
    luminance = torch.add(torch.add(red * LUMINANCE[0], green, alpha=LUMINANCE[1]), blue, alpha=LUMINANCE[2])
    lightness = lightness_of(luminance)
    bright = _smoothstep((lightness - MIDDLE_GRAY) / (1 - MIDDLE_GRAY))
    dark = _smoothstep((MIDDLE_GRAY - lightness) / (MIDDLE_GRAY - _DEEP_SHADOW))
    return torch.exp2(highlights * bright + shadows * dark)


def _curve(slopes: Tensor) -> Tensor:
    """The tone curve with slopes ``(B, K, 1, 1)`` at K knots: its slope at 0, and half its bend at each knot.

    ``(B, K + 1, 1, 1)``, scaled as `_curve_gain` says.
    """
    segments = slopes.shape[1] - 1
    rises = slopes.diff(dim=1) * segments
    bends = torch.cat((rises[:, :1], rises.diff(dim=1), -rises[:, -1:]), 1)
    area = (slopes.sum(1, keepdim=True) - (slopes[:, :1] + slopes[:, -1:]) / 2) / segments
    return torch.cat((slopes[:, :1], bends / 2), 1) / area


def _curve_gain(lightness: Tensor, curve: Tensor) -> Tensor:
    """``f(x) / x`` of the tone curve f at each lightness x.

    The slope of f is piecewise linear through ``2^p`` at the knots 0, 1/7, .. 1, constant outside, and scaled so that
    f(1) = 1. So f is monotone whatever the parameters, smooth, and the identity when they are equal. It is evaluated as
    a sum of truncated parabolas, one per knot, divided by x; that of the first knot, which alone is there below the
    second, without a division.
    """
    slope, first, *others = curve.split(1, 1)
    segments = len(others)
    parabolas = torch.zeros_like(lightness)
    for knot, half_bend in enumerate(others, 1):
        beyond = (lightness - knot / segments).clamp(min=0)
        parabolas = torch.addcmul(parabolas, beyond * half_bend, beyond)
    return torch.addcmul(slope, first, lightness.clamp(min=0)) + parabolas / lightness.clamp(min=1 / segments)


def _colour(chroma_a: Tensor, chroma_b: Tensor, s: _Settings) -> tuple[Tensor, Tensor]:
    """Scale and turn chroma. It works on the square of chroma only: neither root nor angle, both singular at gray."""
    strength = (chroma_a * chroma_a + chroma_b * chroma_b) / _CHROMA_SCALE**2
    scale = s.saturation * (1 + s.vibrance / (1 + strength))
    cosine, sine = scale * s.cosine, scale * s.sine
    return cosine * chroma_a - sine * chroma_b, sine * chroma_a + cosine * chroma_b
