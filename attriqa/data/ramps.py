"""Photos as training examples: what a loader draws from files, each draw a function of (seed, epoch, index) alone.

So a resumed run sees the same crops as an uninterrupted one, whatever the number of workers. The method that chooses
the epoch is not called ``set_epoch``: Accelerate's loaders call a method of that name with a count of their own.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from attriqa.attributes import ATTRIBUTES
from attriqa.data.crops import crop_and_flip
from attriqa.distortions import DEPARTURES, apply_ramp, develop, draw_departure
from attriqa.images import read, resize_shorter

MOST_BEFORE = 0.7  # severity at most that a departure ramp's photo already has along another axis


RAMPS = (*ATTRIBUTES, *DEPARTURES)
"""What `RampGroups` shows: a ramp of each attribute, and of each departure from a well-developed photo."""
HARMFUL = ("sharpness", "noisiness", *DEPARTURES)
"""Ramps whose lower levels are worse whatever the photo; where the others ought to be is the photographer's choice."""


class _Groups:
    """What both data sets of groups are told of."""

    def __init__(self, paths: Sequence[Path], crop: int, levels: int, seed: int) -> None:
        self.paths = tuple(paths)
        self.crop, self.levels, self.seed = crop, levels, seed


class RampGroups(_Groups, Dataset[tuple[Tensor, Tensor, int]]):
    """Groups of one crop at several levels of one ramp; half start from a photo that is changed in another way.

    Args:
        paths: pristine photos.
        crop: side in pixels; it is cut at 1 to 4/3 of that size and scaled down.
        levels: renderings per group.
        seed: of the draws; `start_epoch` makes new ones.

    An item is ``((levels, 3, crop, crop), level of each in [0, 1], index into RAMPS)``; item i shows ramp i modulo
    their number. The level of an attribute is `apply_ramp`'s; that of a departure one minus its
    severity (`draw_departure`), and one of each group is 1, the photo as it was developed.
    """

    epoch = 0

    def start_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draws the items are; before the loader is iterated."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.paths) * len(RAMPS)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        ramp = index % len(RAMPS)
        rng = np.random.default_rng([self.seed, self.epoch, index])
        image = draw_pristine(self.paths[index // len(RAMPS)], self.crop, rng)[None]
        level = torch.from_numpy(rng.random(self.levels)).float()
        if ramp < len(ATTRIBUTES):
            return _attribute_ramp(image, ramp, level, rng), level, ramp
        level[0] = 1.0
        return _departure_ramp(image, RAMPS[ramp], level, rng), level, ramp


def _attribute_ramp(image: Tensor, attribute: int, level: Tensor, rng: np.random.Generator) -> Tensor:
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    other = int(rng.integers(2 * len(ATTRIBUTES)))
    if other < len(ATTRIBUTES) and other != attribute:
        image = apply_ramp(image, ATTRIBUTES[other], torch.tensor([rng.random()]), generator)
    return apply_ramp(image.expand(len(level), -1, -1, -1), ATTRIBUTES[attribute], level, generator)


def _departure_ramp(image: Tensor, kind: str, level: Tensor, rng: np.random.Generator) -> Tensor:
    image = _departed(image, kind, rng, 0.5)
    return develop(image.expand(len(level), -1, -1, -1), (1 - level)[:, None] * draw_departure(kind, rng))


def _departed(image: Tensor, kind: str, rng: np.random.Generator, share: float, mends: tuple[str, ...] = ()) -> Tensor:
    """The photo that a departure starts from: a share of them depart already, along an axis that it does not mend.

    Two on one axis could undo each other, and a mixed one is along all.
    """
    if kind == "mixed" or rng.random() >= share:
        return image
    others = [other for other in DEPARTURES if DEPARTURES[other] not in (DEPARTURES[kind], "all", *mends)]
    before = draw_departure(others[int(rng.integers(len(others)))], rng)
    return develop(image, MOST_BEFORE * rng.random() * before[None])


DRAWN = (*["cast"] * 3, *["gray"] * 2, *["mixed"] * 2, "harsh", "oversharpened")
"""What `DepartureGroups` draws of each photo: mostly what a score that knows opinions alone hardly minds, or likes."""
_SIDES = (0.6, 0.8, 1.0)  # of the crops, over the largest
_MOST_NOISE = 0.15  # standard deviation, of pixel values in [0, 1]
_SHARE_CHANGED = 0.4  # of the groups that start from a noisy photo, and of those whose photo departs already


class DepartureGroups(_Groups, Dataset[tuple[Tensor, Tensor]]):
    """Groups of one crop at several severities of a departure; item i shows that of `DRAWN`, i modulo their number.

    Args:
        paths: pristine photos.
        crop: largest side in pixels, cut at 1 to 4 times its side and scaled down: small pictures are of whole scenes.
        levels: renderings per group.
        seed: of the draws.

    An item is ``((levels, 3, side, side), one minus the severity of each)``, the side being 0.6, 0.8 or 1.0 times the
    crop; the first is of severity 0. That photo may itself be noisy, or depart along another axis, but never in color
    where the group ends gray: that would mend it.
    """

    def __len__(self) -> int:
        return len(self.paths) * len(DRAWN)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        kind = DRAWN[index % len(DRAWN)]
        side = round(self.crop * _SIDES[int(rng.integers(len(_SIDES)))])
        image = draw_pristine(self.paths[index // len(DRAWN)], side, rng, most=4)[None]
        level = torch.from_numpy(rng.random(self.levels)).float()
        level[0] = 1.0
        departure = draw_departure(kind, rng)
        mends = ("balance",) if kind == "gray" else ()
        image = _departed(image, kind, rng, _SHARE_CHANGED, mends)
        if rng.random() < _SHARE_CHANGED:
            noise = torch.from_numpy(rng.standard_normal(image.shape)).float()
            image = (image + _MOST_NOISE * rng.random() ** 2 * noise).clamp(0, 1)
        return develop(image.expand(self.levels, -1, -1, -1), (1 - level)[:, None] * departure), level


def draw_pristine(path: Path, crop: int, rng: np.random.Generator, *, most: float = 4 / 3) -> Tensor:
    """A random crop of a pristine photo, cut at 1 to ``most`` times its size and scaled down, ``(3, crop, crop)``.

    Raises:
        ValueError: the photo is smaller.
        attriqa.images.ImageError: it cannot be read.
    """
    photo = read(path)
    cut = int(rng.integers(crop, max(crop, min(int(crop * most), *photo.shape[1:])) + 1))
    return resize_shorter(crop_and_flip(photo, cut, rng)[None], crop)[0]


def find_photos(folder: Path, pattern: str, least: int) -> list[Path]:
    """The files of a folder that match, sorted.

    Raises:
        ValueError: there are fewer than ``least``.
    """
    photos = sorted(folder.glob(pattern))
    if len(photos) < least:
        raise ValueError(f"photos: expected {least} or more {pattern} in {folder}, got {len(photos)}")
    return photos
