"""Recovery with ground truth: photos whose original is known are perturbed, tuned, and compared with the original.

A perturbation acts on linear light or on display values, never through the ISP that is to undo it, so that no method
is asked to guess the very parameter that was turned. What it changes stays within reach: light that it drives above
white is kept as a raw file's headroom, and only what falls below black is lost. How much of it the ISP can undo at all,
the original being known, is the ceiling that `toward` measures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attriqa.evaluation import metrics
from attriqa_envs.agents.search import Score
from attriqa_envs.isp import KEYS, render
from attriqa_envs.isp.color import decode, encode
from attriqa_envs.isp.difference import delta_e, psnr
from attriqa_envs.raw.image_sets import ImageGroup, seeds_of
from attriqa_envs.raw.unprocess import draw_normal


@dataclass(frozen=True)
class Perturbation:
    """A known change of linear light.

    Attributes:
        name: in tables and files.
        meaning: in words.
        apply: ``(B, 3, H, W)`` linear light >= 0 and one seed per picture -> the same, changed.
    """

    name: str
    meaning: str
    apply: Callable[[Tensor, Sequence[int]], Tensor]


def _gains(linear: Tensor, seeds: Sequence[int], *, gains: tuple[float, float, float]) -> Tensor:
    return linear * linear.new_tensor(gains)[:, None, None]


def _contrast(linear: Tensor, seeds: Sequence[int], *, factor: float) -> Tensor:
    """Display values scaled about one half."""
    return decode(0.5 + factor * (encode(linear) - 0.5)).clamp(min=0)


def _noise(linear: Tensor, seeds: Sequence[int], *, shot: float, read: float) -> Tensor:
    """Gaussian noise of variance ``shot * light + read``."""
    return (linear + draw_normal(linear, seeds) * (shot * linear + read).sqrt()).clamp(min=0)


PERTURBATIONS: tuple[Perturbation, ...] = (
    Perturbation("bright", "exposure +2 EV", partial(_gains, gains=(4.0, 4.0, 4.0))),
    Perturbation("dark", "exposure -2 EV", partial(_gains, gains=(0.25, 0.25, 0.25))),
    Perturbation("warm", "red x 1.3, blue / 1.3", partial(_gains, gains=(1.3, 1.0, 1 / 1.3))),
    Perturbation("cool", "red / 1.3, blue x 1.3", partial(_gains, gains=(1 / 1.3, 1.0, 1.3))),
    Perturbation("green", "green x 1.3", partial(_gains, gains=(1.0, 1.3, 1.0))),
    Perturbation("magenta", "green / 1.3", partial(_gains, gains=(1.0, 1 / 1.3, 1.0))),
    Perturbation("flat", "display contrast x 0.6", partial(_contrast, factor=0.6)),
    Perturbation("harsh", "display contrast x 1.5", partial(_contrast, factor=1.5)),
    Perturbation("noise", "noise of variance 0.008 x light + 0.0002", partial(_noise, shot=0.008, read=2e-4)),
)


def originals(linear: Tensor) -> Tensor:
    """The pictures ``(B, 3, H, W)`` that a perfect recovery would give: default renderings of unperturbed light."""
    with torch.no_grad():
        return render(linear.float(), torch.zeros(len(linear), len(KEYS), device=linear.device))


def toward(references: Tensor) -> Score:
    """The score that knows the originals ``(N, 3, H, W)``: minus the mean squared error of display values."""

    def score(pictures: Tensor, rows: Tensor) -> Tensor:
        return -(pictures - references[rows]).square().mean((1, 2, 3))

    return score


def errors(pictures: Tensor, references: Tensor) -> list[dict[str, float]]:
    """Of each of B pictures: ``psnr`` in dB and the mean CIEDE2000 ``delta_e``, both to its original."""
    pairs = zip(psnr(pictures, references).tolist(), delta_e(pictures, references).tolist(), strict=True)
    return [{"psnr": ratio, "delta_e": difference} for ratio, difference in pairs]


def mean_errors(before: Sequence[dict[str, float]], after: Sequence[dict[str, float]], seed: int = 0) -> dict[str, Any]:
    """Means over n pictures of one perturbation and one method, what `errors` told of each.

    Returns:
        ``n``; ``psnr_before``, ``psnr_after``, ``psnr_gain`` in dB and ``delta_e_before``, ``delta_e_after``,
        ``delta_e_gain``, higher being nearer to the original; the gains with ``_low`` and ``_high`` of their 95 %
        bootstrap interval over pictures, where there are two; ``nearer``: pictures whose colour difference fell.

    Raises:
        ValueError: there is no picture, or other numbers of pictures before than after.
    """
    if not before or len(before) != len(after):
        raise ValueError(f"before, after: expected as many of each, at least one; got {len(before)} and {len(after)}")
    result: dict[str, Any] = {"n": len(after)}
    for name, sign in (("psnr", 1), ("delta_e", -1)):
        start, end = (np.array([row[name] for row in rows]) for rows in (before, after))
        gains = sign * (end - start)
        result |= {f"{name}_before": start.mean(), f"{name}_after": end.mean(), f"{name}_gain": gains.mean()}
        if len(gains) > 1:
            low, high = metrics.mean_interval(gains, rng=np.random.default_rng(seed))
            result |= {f"{name}_gain_low": low, f"{name}_gain_high": high}
        result["nearer"] = int((gains > 0).sum())  # of the last one, the colour difference
    return result


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `mean_errors` as a table.

    Each row also has its ``perturbation`` and ``method``, and mean scores: ``score_original``, ``score_before`` and
    ``score_after``. Where the last is above the first, the score asks for something else than the original.
    """
    lines = [
        f"{'perturbation':13}{'method':10}{'n':>4}{'PSNR dB':>16}{'CIEDE2000':>16}    {'less by [95 %]':21}"
        f"{'nearer':>8}{'score':>16}{'of originals':>14}"
    ]
    last = None
    for row in rows:
        gain = f"{row['delta_e_gain']:8.2f}"
        if "delta_e_gain_low" in row:
            gain += f" [{row['delta_e_gain_low']:.2f}, {row['delta_e_gain_high']:.2f}]"
        name = "" if row["perturbation"] == last else row["perturbation"]
        nearer = f"{row['nearer']}/{row['n']}"
        lines.append(
            f"{name:13}{row['method']:10}{row['n']:>4}{row['psnr_before']:>7.2f} ->{row['psnr_after']:>6.2f}"
            f"{row['delta_e_before']:>7.2f} ->{row['delta_e_after']:>6.2f}{gain:25}{nearer:>8}"
            f"{row['score_before']:>7.3f} ->{row['score_after']:>6.3f}{row['score_original']:>14.3f}"
        )
        last = row["perturbation"]
    return "\n".join(lines)


def perturb(group: ImageGroup, perturbations: Sequence[Perturbation], seed: int) -> list[ImageGroup]:
    """A group's images under each perturbation, with the originals."""
    light, seeds = group.linear.float(), seeds_of(seed, group.files)
    known = originals(light)
    return [
        replace(group, name=change.name, linear=change.apply(light, seeds).half(), originals=known)
        for change in perturbations
    ]
