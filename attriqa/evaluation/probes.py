"""How heads and score follow controlled changes of pristine photos: ramps of attributes, and departures."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from attriqa.attributes import ATTRIBUTES
from attriqa.distortions import DEPARTURES, apply_ramp, develop, draw_departure
from attriqa.images import read

RAMP_LEVELS = 9


def unseen_photos(folder: Path, pattern: str, held_out: Collection[str] | None) -> list[Path]:
    """The files of a folder that match, sorted; only those that a model's record says were held out, if given.

    Raises:
        ValueError: there is none.
    """
    photos = sorted(path for path in folder.glob(pattern) if path.is_file())
    photos = [path for path in photos if held_out is None or path.name in held_out]
    if not photos:
        which = "" if held_out is None else " (held-out photos of the model, unless --all-photos)"
        raise ValueError(f"photos: no usable photo in {folder}: expected files that match {pattern!r}{which}")
    return photos


class RampTable(NamedTuple):
    """How heads answer to ramps; rows are the ramp's attribute, columns the head's, both in the order of ATTRIBUTES."""

    srocc: list[list[float]]  # mean over photos of the SROCC between level and head
    change: list[list[float]]  # mean over photos of the head at level 1 minus the head at level 0
    photos: int


def follow_ramps(
    attributes: Callable[[Tensor], Tensor | None],
    photos: Sequence[Path],
    *,
    seed: int = 0,
    shorter_edge: int | None = None,
    progress: bool = True,
) -> RampTable:
    """Render each photo at nine levels of each attribute (`apply_ramp`) and see what every head makes of them.

    A head that does not move at all over a ramp counts as SROCC 0 there.

    Args:
        attributes: ``(B, 3, H, W)`` in [0, 1] -> ``(B, 5)``.
        photos: pristine photos, better ones that no head has learnt from.
        seed: of the noise ramp.
        shorter_edge: px that the photos are reduced to; `None`: they stay as they are.
        progress: show a progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    level = torch.linspace(0, 1, RAMP_LEVELS)
    count = len(ATTRIBUTES)
    srocc = np.zeros((len(photos), count, count))
    change = np.zeros_like(srocc)
    for i, path in enumerate(tqdm(photos, "ramps", leave=False, disable=not progress)):
        photo = read(path, shorter_edge=shorter_edge)[None].expand(RAMP_LEVELS, -1, -1, -1)
        for row, name in enumerate(ATTRIBUTES):
            said = attributes(apply_ramp(photo, name, level, generator))
            if said is None:
                raise ValueError("attributes: expected a model that tells the five attributes, got one that does not")
            heads = said.double().cpu().numpy()  # (L, 5)
            change[i, row] = heads[-1] - heads[0]
            for column in range(count):
                moves = np.ptp(heads[:, column]) > 0
                srocc[i, row, column] = spearmanr(level, heads[:, column]).statistic if moves else 0.0
    return RampTable(srocc.mean(0).tolist(), change.mean(0).tolist(), len(photos))


class DepartureRow(NamedTuple):
    """How a score answers to one departure from well-developed photos, as it grows."""

    srocc: float  # mean over photos of the SROCC between severity and score, its sign turned: 1 is always less
    first: float  # share of photos that score higher than all their departures from severity 0.5 on
    loss: float  # mean fall of the score at severity 0.5


def follow_departures(
    score: Callable[[Tensor], Tensor],
    photos: Sequence[Path],
    *,
    seed: int = 0,
    shorter_edge: int | None = None,
    progress: bool = True,
) -> dict[str, DepartureRow]:
    """Render each photo at five severities of each departure (`draw_departure`) and see what a score makes of them.

    Args:
        score: ``(B, 3, H, W)`` in [0, 1] -> ``(B,)``, higher is better.
        photos: pristine photos, better ones that nothing was learnt from.
        seed: of the departures that are drawn, one of each kind per photo.
        shorter_edge: px that the photos are reduced to; `None`: they stay as they are.
        progress: show a progress bar.
    """
    severity = torch.linspace(0, 1, 5)
    rng = np.random.default_rng(seed)
    found = {kind: np.zeros((len(photos), 3)) for kind in DEPARTURES}
    for i, path in enumerate(tqdm(photos, "departures", leave=False, disable=not progress)):
        photo = read(path, shorter_edge=shorter_edge)[None].expand(len(severity), -1, -1, -1)
        for kind, values in found.items():
            said = score(develop(photo, severity[:, None] * draw_departure(kind, rng))).double().cpu().numpy()
            order = -spearmanr(severity, said).statistic if np.ptp(said) > 0 else 0.0
            values[i] = order, said[0] > said[2:].max(), said[0] - said[2]
    return {kind: DepartureRow(*values.mean(0).tolist()) for kind, values in found.items()}
