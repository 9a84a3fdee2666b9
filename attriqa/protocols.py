"""How models are tested: splits from a seed alone, and controlled ramps for the attribute heads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from attriqa.distortions import apply_ramp
from attriqa.images import read
from attriqa.prompts import ATTRIBUTES

RAMP_LEVELS = 9


def random_split(groups: Sequence[str], seed: int, test_fraction: float = 0.2) -> tuple[list[int], list[int]]:
    """A random split that keeps each group whole.

    Args:
        groups: the group of each row.
        seed: the split's number: equal seeds and groups give equal splits.
        test_fraction: the share of groups in the test side, in (0, 1).

    Returns:
        Row indices ``(train, test)``, each ascending.

    Raises:
        ValueError: a side would be empty, or ``test_fraction`` is outside (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number within (0, 1), got {test_fraction}")
    names = list(dict.fromkeys(groups))
    held_out = round(test_fraction * len(names))
    if not 0 < held_out < len(names):
        raise ValueError(f"groups: {len(names)} groups are too few to split with test_fraction={test_fraction}")
    order = np.random.default_rng(seed).permutation(len(names))
    test_names = {names[i] for i in order[:held_out]}
    test = [i for i, group in enumerate(groups) if group in test_names]
    train = [i for i, group in enumerate(groups) if group not in test_names]
    return train, test


class RampTable(NamedTuple):
    """How heads answer to ramps; rows are the ramp's attribute, columns the head's, both in the order of ATTRIBUTES."""

    srocc: list[list[float]]  # mean over photos of the SROCC between level and head
    change: list[list[float]]  # mean over photos of the head at level 1 minus the head at level 0
    photos: int


def follow_ramps(
    attributes: Callable[[Tensor], Tensor], photos: Sequence[Path], *, seed: int = 0, progress: bool = True
) -> RampTable:
    """Render each photo at nine levels of each attribute (`apply_ramp`) and see what every head makes of them.

    A head that does not move at all over a ramp counts as SROCC 0 there.

    Args:
        attributes: ``(B, 3, H, W)`` in [0, 1] -> ``(B, 5)``.
        photos: pristine photos, better ones that no head has learnt from.
        seed: of the noise ramp.
        progress: show a progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    level = torch.linspace(0, 1, RAMP_LEVELS)
    count = len(ATTRIBUTES)
    srocc = np.zeros((len(photos), count, count))
    change = np.zeros_like(srocc)
    for i, path in enumerate(tqdm(photos, "ramps", leave=False, disable=not progress)):
        photo = read(path)[None].expand(RAMP_LEVELS, -1, -1, -1)
        for row, name in enumerate(ATTRIBUTES):
            heads = attributes(apply_ramp(photo, name, level, generator)).double().cpu().numpy()  # (L, 5)
            change[i, row] = heads[-1] - heads[0]
            for column in range(count):
                moves = np.ptp(heads[:, column]) > 0
                srocc[i, row, column] = spearmanr(level, heads[:, column]).statistic if moves else 0.0
    return RampTable(srocc.mean(0).tolist(), change.mean(0).tolist(), len(photos))
