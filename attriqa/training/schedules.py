"""Learning rates over a run."""

import math
from collections.abc import Sequence
from typing import Any


def rate(epoch: int, half_period: int = 5) -> float:
    """Share of the learning rate in an epoch, from 0: a cosine down to zero and up again, over and over.

    As LIQE's code steps it: the epoch in which it would be zero is left out.
    """
    turn = 2 * half_period - 1  # epochs until it is where it began
    place = epoch % turn
    return 0.5 * (1 + math.cos(math.pi * (place + (place >= half_period)) / half_period))


def cosine(done: float, warmup: float = 0.0) -> float:
    """Share of the peak learning rate at ``done`` in [0, 1] of a run: a rise over ``warmup``, then a cosine to zero."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def set_rates(optimizer: Any, peaks: Sequence[float], done: float) -> None:
    """Linear warm-up over the first tenth, then cosine to zero; ``done`` in [0, 1]."""
    factor = min(1.0, done / 0.1) * 0.5 * (1 + math.cos(math.pi * max(0.0, (done - 0.1) / 0.9)))
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * factor
