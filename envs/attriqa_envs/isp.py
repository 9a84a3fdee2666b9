"""The ISP: linear light and params in, display picture out; one pure, batched, differentiable function.

`render` is what the environment, the optimisers and the export share. The stages, in order:

1. *linear light*: exposure, white balance, highlights and shadows;
2. *opponent space* (`attriqa_envs.isp_color`): denoising, by guided filters;
3. *tone*: the tone curve and contrast; lightness and chroma are scaled together, so that colours stay as vivid;
4. *colour*: vibrance, saturation, hue, on chroma only, so hue and lightness stay where they are not meant to change;
5. *detail*: an unsharp mask on lightness;
6. *display*: the sRGB encoding and a clip whose gradients stay alive.

With all params zero, stages 1 to 5 do nothing: what remains is the camera's default rendering, encoding and clip alone.
"""

from itertools import pairwise

import torch
from torch import Tensor

from attriqa_envs.isp_color import (
    LUMINANCE,
    MIDDLE_GRAY,
    encode,
    from_opponent,
    lightness_of,
    soft_clip,
    to_opponent,
)
from attriqa_envs.isp_filters import gaussian_blur, guided_smooth
from attriqa_envs.parameters import KEYS, TONE_KNOTS, check_params

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
        params: ``(B, P)`` physical values within their ranges, see `attriqa_envs.parameters.PARAMETERS`.

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
    columns = params.to(values).T.reshape(len(KEYS), -1, 1, 1, 1)  # (P, B, 1, 1, 1)
    chunk = len(values)
    if values.device.type == "cpu":
        chunk = max(1, _CHUNK_PIXELS // (values.shape[2] * values.shape[3]))
    parts = zip(values.split(chunk), columns.split(chunk, 1), strict=True)
    rendered = [_stages(part, dict(zip(KEYS, some.unbind(0), strict=True))) for part, some in parts]
    return torch.cat(rendered).to(linear.dtype)


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


def _stages(linear: Tensor, p: dict[str, Tensor]) -> Tensor:
    light = linear * (_white_balance(p["temperature"], p["tint"]) * torch.exp2(p["exposure"]))
    light = light * _zone_gain(light, p["highlights"], p["shadows"])
    lightness, chroma_a, chroma_b = to_opponent(light)
    lightness, chroma_a, chroma_b = _denoise(lightness, chroma_a, chroma_b, p["luma_denoise"], p["chroma_denoise"])
    slope = torch.exp2(p["contrast"])
    gain = slope * _curve_gain(lightness, [p[f"tone_{knot + 1}"] for knot in range(TONE_KNOTS)])
    lightness = lightness * gain + MIDDLE_GRAY * (1 - slope)
    chroma_a, chroma_b = _colour(chroma_a * gain, chroma_b * gain, p["saturation"], p["vibrance"], p["hue"])
    blurred = gaussian_blur(lightness, torch.exp2(p["sharpen_radius"]))
    lightness = lightness + p["sharpen_amount"] * (lightness - blurred)
    return soft_clip(encode(from_opponent(lightness, chroma_a, chroma_b)))


def _white_balance(temperature: Tensor, tint: Tensor) -> Tensor:
    """Channel gains ``(B, 3, 1, 1)`` that leave the luminance of gray as it is."""
    red = torch.exp(_RED_PER_MIRED * temperature)
    blue = torch.exp(_BLUE_PER_MIRED * temperature)
    green = torch.exp2(-tint)
    return torch.cat((red, green, blue), 1) / (LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue)


def _denoise(
    lightness: Tensor, chroma_a: Tensor, chroma_b: Tensor, luma: Tensor, chroma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Blend towards guided smoothing; the parameter sets both how far and how strong an edge must be to stay.

    A blend and not the filter's own strength alone, whose derivative at zero is zero: a search that starts at the
    default would never learn that denoising helps.
    """
    start, more = _DENOISE_SIGMA
    smooth = guided_smooth(lightness, lightness, _LUMA_RADIUS, (start + more * luma) ** 2)
    lightness = torch.lerp(lightness, smooth, luma)
    colours = torch.cat((chroma_a, chroma_b), 1)
    colours = torch.lerp(
        colours, guided_smooth(lightness, colours, _CHROMA_RADIUS, (start + more * chroma) ** 2), chroma
    )
    return lightness, colours[:, :1], colours[:, 1:]


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


def _curve_gain(lightness: Tensor, log_slopes: list[Tensor]) -> Tensor:
    """``f(x) / x`` of the tone curve f at each lightness x.

    The slope of f is piecewise linear through ``2^p`` at the knots 0, 1/7, .. 1, constant outside, and scaled so that
    f(1) = 1. So f is monotone whatever the parameters, smooth, and the identity when they are equal. It is evaluated as
    a sum of truncated parabolas, one per knot, already divided by x; below the first knot that division is exact.
    """
    segments = len(log_slopes) - 1
    slopes = [torch.exp2(value) for value in log_slopes]
    rises = [(after - before) * segments for before, after in pairwise(slopes)]
    bends = [rises[0], *(after - before for before, after in pairwise(rises)), -rises[-1]]
    area = torch.stack([(before + after) / 2 for before, after in pairwise(slopes)]).sum(0) / segments
    total = slopes[0] + bends[0] / 2 * lightness.clamp(min=0)
    inverse = 1 / lightness.clamp(min=1 / segments)
    for knot in range(1, segments + 1):
        beyond = (lightness - knot / segments).clamp(min=0)
        total = torch.addcmul(total, beyond * beyond * inverse, bends[knot] / 2)
    return total / area


def _colour(
    chroma_a: Tensor, chroma_b: Tensor, saturation: Tensor, vibrance: Tensor, hue: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and turn chroma. It works on the square of chroma only: neither root nor angle, both singular at gray."""
    strength = (chroma_a * chroma_a + chroma_b * chroma_b) / _CHROMA_SCALE**2
    scale = (1 + saturation) * (1 + vibrance / (1 + strength))
    angle = torch.deg2rad(hue)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    return cosine * chroma_a - sine * chroma_b, sine * chroma_a + cosine * chroma_b
