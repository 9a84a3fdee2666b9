"""The ISP's parameters: one documented table, from which the action space, the documentation and the export follow.

*Params* ``(B, P)`` hold physical values in the order of `PARAMETERS`; all zero is the camera's default rendering. An
*action* ``(B, P)`` holds the same values scaled to [-1, 1] over their ranges.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Stage = Literal["linear", "tone", "colour", "detail"]

ISP_VERSION = 1  # goes up whenever the same params give another picture


@dataclass(frozen=True)
class Parameter:
    """One parameter of the ISP.

    Attributes:
        key: its name, in files and in the columns of tables.
        unit: of its physical value.
        low: the least value.
        high: the greatest value.
        meaning: what a higher value does.
        stage: the part of the pipeline it belongs to; all but ``"detail"`` act on each pixel by itself.
        default: the value of the camera's default rendering.
    """

    key: str
    unit: str
    low: float
    high: float
    meaning: str
    stage: Stage
    default: float = 0.0


TONE_KNOTS = 8

# The ends of a range must be exact in bfloat16 (at most 8 significant bits): then no change of dtype leaves the box.
PARAMETERS: tuple[Parameter, ...] = (
    Parameter("exposure", "EV", -3, 3, "brighter: linear light times 2^EV", "linear"),
    Parameter("temperature", "mired", -100, 100, "warmer: white moves by so much along the Planckian locus", "linear"),
    Parameter("tint", "EV", -1, 1, "more magenta: red and blue over green", "linear"),
    Parameter(
        "highlights", "EV", -1.25, 1.25, "brighter above middle gray: linear light times 2^EV from white on", "tone"
    ),
    Parameter("shadows", "EV", -1.5, 1.5, "brighter below middle gray: linear light times 2^EV in deep shadow", "tone"),
    *(
        Parameter(
            f"tone_{knot + 1}",
            "log2 slope",
            -1,
            1,
            f"steeper tone curve at lightness {knot}/{TONE_KNOTS - 1}, flatter elsewhere; black and white stay",
            "tone",
        )
        for knot in range(TONE_KNOTS)
    ),
    Parameter("contrast", "log2 slope", -1, 1, "more contrast, of lightness and chroma, about middle gray", "tone"),
    Parameter("saturation", "fraction", -1, 1, "more chroma; -1 is gray", "colour"),
    Parameter("vibrance", "fraction", -1, 1, "more chroma where there is little", "colour"),
    Parameter("hue", "degree", -30, 30, "hues turn from red towards yellow", "colour"),
    Parameter("luma_denoise", "fraction", 0, 1, "smoother lightness between edges", "detail"),
    Parameter("chroma_denoise", "fraction", 0, 1, "smoother chroma between edges of lightness", "detail"),
    Parameter("sharpen_amount", "fraction", 0, 2, "stronger unsharp mask on lightness", "detail"),
    Parameter("sharpen_radius", "log2 px", -1, 1, "wider unsharp mask: a Gaussian of sigma 2^radius px", "detail"),
)
KEYS: tuple[str, ...] = tuple(parameter.key for parameter in PARAMETERS)


def bounds(like: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest params, ``(P,)`` each, of the dtype and on the device of ``like``."""
    low = torch.tensor([p.low for p in PARAMETERS], dtype=like.dtype, device=like.device)
    high = torch.tensor([p.high for p in PARAMETERS], dtype=like.dtype, device=like.device)
    return low, high


def to_params(action: Tensor) -> Tensor:
    """Physical values of actions: ``(..., P)`` in [-1, 1] -> ``(..., P)``, linear from ``low`` to ``high``.

    The action of the default rendering is ``to_action(torch.zeros(P))``, which is not zero where a range is one-sided.

    Raises:
        ValueError: the last dimension is not P, the dtype is not floating point, or a value is NaN or out of [-1, 1].
    """
    _check_vector("action", action)
    outside = ~((action >= -1) & (action <= 1))
    if bool(outside.any()):
        raise ValueError(f"action: expected values in [-1, 1], got {_first(action, outside)}")
    low, high = bounds(action)
    return torch.minimum(torch.lerp(low, high, (action + 1) / 2), high)  # rounding must not lead out of the box


def to_action(params: Tensor) -> Tensor:
    """The inverse of `to_params`: physical ``(..., P)`` -> ``(..., P)`` in [-1, 1].

    Raises:
        ValueError: as `check_params`.
    """
    check_params(params)
    low, high = bounds(params)
    return (2 * (params - low) / (high - low) - 1).clamp(-1, 1)


def clip_params(params: Tensor) -> Tensor:
    """The nearest params within their ranges, ``(..., P)``; NaN stays, for `check_params` to find."""
    _check_vector("params", params)
    low, high = bounds(params)
    return torch.minimum(torch.maximum(params, low), high)


def check_params(params: Tensor) -> None:
    """Refuse params ``(..., P)`` that `attriqa_envs.isp.render` is not made for.

    Raises:
        ValueError: the last dimension is not P, the dtype is not floating point, or a value is NaN or out of its range.
    """
    _check_vector("params", params)
    low, high = bounds(params)
    outside = ~((params >= low) & (params <= high))
    if bool(outside.any()):
        raise ValueError(f"params: expected values within their ranges, got {_first(params, outside)}")


def _check_vector(name: str, values: Tensor) -> None:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {_kind(values)}")
    if values.ndim == 0 or values.shape[-1] != len(PARAMETERS):
        shape = tuple(values.shape)
        raise ValueError(f"{name}: expected {len(PARAMETERS)} values in the last dimension, got shape {shape}")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _first(values: Tensor, outside: Tensor) -> str:
    """The first wrong value in words, with its parameter's range."""
    where = tuple(int(index) for index in outside.nonzero()[0])
    parameter = PARAMETERS[where[-1]]
    place = f" of row {where[0]}" if len(where) > 1 else ""
    limits = f"[{parameter.low:g}, {parameter.high:g}] {parameter.unit}"
    return f"{parameter.key} = {values[where].item():g}{place} (range {limits})"


def table_hash() -> str:
    """A hash of what the numbers of a vector of params mean: keys, order, units, ranges and `ISP_VERSION`.

    A policy or a file of params made for another table carries another hash. The wording of a meaning does not count.
    """
    rows = [[p.key, p.unit, float(p.low), float(p.high), float(p.default), p.stage] for p in PARAMETERS]
    text = json.dumps({"isp_version": ISP_VERSION, "parameters": rows})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parameter_table_markdown() -> str:
    """The table for the documentation, in Markdown."""
    lines = ["| parameter | unit | range | a higher value | stage |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| `{p.key}` | {p.unit} | {p.low:g} .. {p.high:g} | {p.meaning} | {p.stage} |" for p in PARAMETERS]
    return "\n".join(lines) + "\n"
