"""Attacks on a scorer: the small changes of pixels that raise its score most, and what they gain.

A budget is the largest change of any pixel value, in units of [0, 1]. What an attack gains is the score after less the
score before, in standard deviations of the scorer over clean photos: scorers of any scale can then be compared, and one
that gains by saying less about everything does not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from attriqa.evaluation.metrics import mean_interval
from attriqa.images import read

Scorer = Callable[[Tensor], Tensor]
"""``(B, 3, H, W)`` in [0, 1] -> ``(B,)``, every image for itself; more is better."""


def random_signs(images: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """All of the budget spent in random directions: what it does without a gradient."""
    signs = torch.randint(2, images.shape, generator=generator).to(images) * 2 - 1
    return (images + epsilon * signs).clamp(0, 1)


def random_start(images: Tensor, epsilon: float | Tensor, generator: torch.Generator) -> Tensor:
    """A uniformly random point of the budget around each image, for `pgd` to start at.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        epsilon: the budget, or ``(B,)`` one for each image.
        generator: of the draws, on the CPU.
    """
    offsets = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
    return (images + _reach(images, epsilon) * offsets).clamp(0, 1)


def fgsm(scorer: Scorer, images: Tensor, epsilon: float) -> Tensor:
    """One step of the budget along the sign of the gradient (Goodfellow et al. 2015, arXiv 1412.6572).

    Args:
        scorer: what is attacked.
        images: ``(B, 3, H, W)`` in [0, 1].
        epsilon: the budget.
    """
    return (images + epsilon * slope(scorer, images)[1].sign()).clamp(0, 1)


def pgd(scorer: Scorer, images: Tensor, epsilon: float | Tensor, steps: int, *, start: Tensor | None = None) -> Tensor:
    """Steps along that sign, back into the budget; the best of where they led (Madry et al. 2018, arXiv 1706.06083).

    The first half walks on whatever happens, which leads out of a reward's kinks. The others start at the best so far,
    and are halved where they do not help, which a scorer with a narrow peak needs.

    Args:
        scorer: what is attacked.
        images: ``(B, 3, H, W)`` in [0, 1].
        epsilon: the budget, or ``(B,)`` one for each image.
        steps: how many, at first 2.5 budgets over their number long.
        start: where they begin, within the budget of ``images``; ``None``: there. The result is at least as good.

    Returns:
        ``(B, 3, H, W)`` in [0, 1], within the budget up to rounding, detached.

    Raises:
        ValueError: ``epsilon`` or ``steps`` is not positive, or ``start`` is out of the budget.
    """
    reach = _reach(images, epsilon)
    if steps < 1 or not bool((reach > 0).all()):
        raise ValueError(f"steps, epsilon: expected positive numbers, got {steps} and {epsilon}")
    if start is not None and (start.shape != images.shape or bool(((start - images).abs() > reach + 1e-6).any())):
        raise ValueError("start: expected the shape of images, and to be within epsilon of them")
    low, high = (images - reach).clamp(min=0), (images + reach).clamp(max=1)
    best = here = images if start is None else start
    score, gradient = slope(scorer, best)
    direction = gradient
    step = (2.5 * reach / steps).expand(len(images), 1, 1, 1)
    for index in range(steps):
        settling = index >= steps // 2
        if settling:
            here, direction = best, gradient
        here = torch.minimum(torch.maximum(here + step * direction.sign(), low), high)
        reached, direction = slope(scorer, here)
        better = reached > score
        score, chosen = torch.where(better, reached, score), better[:, None, None, None]
        best, gradient = torch.where(chosen, here, best), torch.where(chosen, direction, gradient)
        if settling:
            step = torch.where(chosen, step, step / 2)
    return best.detach()


def slope(scorer: Scorer, images: Tensor) -> tuple[Tensor, Tensor]:
    """The score of each image ``(B,)`` and its gradient ``(B, 3, H, W)``, both detached."""
    images = images.detach().requires_grad_()
    score = scorer(images)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    return score.detach(), gradient


def _reach(images: Tensor, epsilon: float | Tensor) -> Tensor:
    """A budget as ``(1 or B, 1, 1, 1)``."""
    return torch.as_tensor(epsilon, dtype=images.dtype, device=images.device).reshape(-1, 1, 1, 1)


def to_8_bits(images: Tensor) -> Tensor:
    """Rounded as a file would have them."""
    return (images * 255).round() / 255


@torch.no_grad()
def score_all(
    scorer: Scorer, images: Tensor, *, batch: int, device: str | torch.device | None = None
) -> NDArray[np.float64]:
    """What a scorer says of images, ``(N,)``, so many of them at once."""
    return torch.cat([scorer(part.to(device)).double().cpu() for part in images.split(batch)]).numpy()


def middle_squares(paths: Sequence[Path], side: int) -> Tensor:
    """The middle squares of photos reduced to a shorter edge of ``side`` px, ``(N, 3, side, side)``, in 8-bit steps.

    Raises:
        ValueError: a photo is smaller.
        attriqa.images.ImageError: a file cannot be read.
    """
    squares = []
    for path in paths:
        image = read(path)
        if min(image.shape[1:]) < side:
            raise ValueError(f"{path}: expected sides of at least {side} px, got {tuple(image.shape[1:])}")
        image = read(path, shorter_edge=side)
        top, left = ((length - side) // 2 for length in image.shape[1:])
        squares.append(image[:, top : top + side, left : left + side])
    return to_8_bits(torch.stack(squares))


class Gain(NamedTuple):
    """What an attack gains, as mean over photos."""

    mean: float  # in units of the score
    in_sd: float  # in standard deviations of the scorer over the clean photos
    in_sd_low: float  # of its 95 % interval
    in_sd_high: float


def summarise_gains(gains: ArrayLike, sd: float, *, seed: int) -> Gain:
    """The mean of gains and its bootstrap interval over photos.

    Args:
        gains: ``(N,)`` score after less score before, N >= 2.
        sd: standard deviation of the score over clean photos.
        seed: of the bootstrap.
    """
    values = np.asarray(gains, dtype=np.float64)
    found = mean_interval(values / sd, rng=np.random.default_rng(seed))
    return Gain(float(values.mean()), float(values.mean()) / sd, found.low, found.high)
