"""What a loader draws when ExIQA learns to name distortions: images, and the strength of each distortion in them.

What it draws at ``(epoch, number)`` is a function of these and of a seed alone, so that a resumed run sees what a whole
one sees. Pixels travel as bytes: a distorted image that a user has is a file, too.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from attriqa.data.batches import CENTRAL
from attriqa.data.crops import crop_and_flip
from attriqa.data.sources import Source, applicable
from attriqa.distortions.mixtures import (
    COUNT,
    LEVELS,
    Recipe,
    apply_recipes,
    check_draw,
    draw_recipe,
    smallest_side,
    strengths,
)
from attriqa.images import ImageError, read

_MULTI, _SINGLE = 1, 2  # streams of the test sets' draws
_CLEAN = Recipe((), (), 0)


class Example(NamedTuple):
    """One image, or a batch of them (`stack`)."""

    image: Tensor  # (3, S, S) or (B, 3, S, S), uint8: as a file would hold it, a quarter of the memory on its way
    strengths: Tensor  # (D,) or (B, D) float32 in [0, 1]
    number: Any  # the item's number, or (B,) of them
    unreadable: dict[str, str]  # path -> reason; the image is then black

    def pixels(self, device: torch.device) -> Tensor:
        """``image`` on a device, float32 in [0, 1].

        Raises:
            ImageError: it could not be read.
        """
        for path, reason in self.unreadable.items():
            raise ImageError(path, reason)
        return self.image.to(device, non_blocking=True).float().div_(255)


def stack(examples: list[Example]) -> Example:
    """Examples -> one batch."""
    return Example(
        torch.stack([example.image for example in examples]),
        torch.stack([example.strengths for example in examples]),
        torch.tensor([example.number for example in examples]),
        {path: reason for example in examples for path, reason in example.unreadable.items()},
    )


class Files(Dataset[Example]):
    """Images that are distorted already: whole and resized, or cut out; flipped at random, but not in a test.

    Args:
        source: with strengths.
        prepare: ``(1, 3, H, W)`` -> ``(1, 3, S, S)`` in [0, 1]: the resize and crop of the model.
        crop: px, side of a square to cut out at the file's own size, instead of ``prepare``; 0: none.
        seed: of the draws.
    """

    def __init__(self, source: Source, prepare: Callable[[Tensor], Tensor], *, crop: int, seed: int) -> None:
        if source.strengths is None:
            raise ValueError(f"source: expected one with strengths, {source.name} has none")
        self.paths, self.strengths = source.paths, source.strengths
        self.prepare, self.crop, self.seed = prepare, crop, seed
        self.empty = torch.zeros(prepare(torch.zeros(1, 3, 32, 32)).shape[1:] if not crop else (3, crop, crop))

    def path(self, number: int) -> Path:
        """The file of an item."""
        return self.paths[number]

    def __getitem__(self, where: tuple[int, int]) -> Example:
        epoch, number = where
        rng = None if epoch == CENTRAL else np.random.default_rng([self.seed, epoch, number])
        image, reason = _read(self.paths[number], self.crop, None)
        if reason:
            return Example(_bytes(self.empty), self.strengths[number], number, {str(self.paths[number]): reason})
        image = _cut(image, self.crop, rng) if self.crop else self.prepare(image[None])[0]
        image = image.flip(2) if rng is not None and not self.crop and rng.random() < 0.5 else image
        return Example(_bytes(image), self.strengths[number], number, {})


class Mixtures(Dataset[Example]):
    """Random crops of pristine photos, each with distortions of its own, drawn anew in each epoch.

    They are applied at the crop's size. A loader asks for a whole batch at once: images with a step in common are
    distorted together, which saves most of the time that small crops take. Item n is of photo n modulo their number.

    Args:
        source: of photos.
        crop: px, side of the square that is cut out.
        most: distortions on one crop, at most.
        clean_share: of the crops that stay as they are, in [0, 1].
        seed: of the draws.
        shorter_edge: px that photos are read at; None: their own size.

    Raises:
        ValueError: the crop is too small for a distortion, or ``most`` or ``clean_share`` is out of its range.
    """

    def __init__(
        self, source: Source, *, crop: int, most: int, clean_share: float, seed: int, shorter_edge: int | None = None
    ) -> None:
        self.among = applicable(source.keys)
        check_draw(most, self.among)
        check_crop(crop, self.among)
        if not 0 <= clean_share <= 1:
            raise ValueError(f"--clean-share: expected a share in [0, 1], got {clean_share}")
        self.paths = source.paths
        self.crop, self.most, self.clean_share, self.seed = crop, most, clean_share, seed
        self.shorter_edge = shorter_edge

    def path(self, number: int) -> Path:
        """The photo of an item."""
        return self.paths[number % len(self.paths)]

    def __getitem__(self, where: tuple[int, int]) -> Example:
        return self.__getitems__([where])[0]

    def __getitems__(self, batch: Sequence[tuple[int, int]]) -> list[Example]:
        """The items of a batch, each at ``(epoch, number)``."""
        drawn = []
        for epoch, number in batch:
            rng, recipe = np.random.default_rng([self.seed, epoch, number]), _CLEAN
            if rng.random() >= self.clean_share:
                recipe = draw_recipe(rng, most=self.most, among=self.among)
            drawn.append(_Drawn(*_square(self.path(number), self.crop, self.shorter_edge, rng), recipe, number))
        return _distorted(drawn, self.among)


class FixedMixtures(Dataset[Example]):
    """Central crops of pristine photos with known recipes: a test that is the same each time.

    Args:
        source: of photos.
        recipes: number of the photo in ``source``, and recipe, of each item.
        crop: px, side of the square that is cut out.
        shorter_edge: px that photos are read at; None: their own size.

    Raises:
        ValueError: the crop is too small for a distortion.
    """

    def __init__(
        self, source: Source, recipes: Sequence[tuple[int, Recipe]], *, crop: int, shorter_edge: int | None = None
    ) -> None:
        self.among = applicable(source.keys)
        check_crop(crop, self.among)
        self.paths, self.recipes, self.crop, self.shorter_edge = source.paths, recipes, crop, shorter_edge

    def path(self, number: int) -> Path:
        """The photo of an item."""
        return self.paths[self.recipes[number][0]]

    def __getitem__(self, where: tuple[int, int]) -> Example:
        return self.__getitems__([where])[0]

    def __getitems__(self, batch: Sequence[tuple[int, int]]) -> list[Example]:
        """The items of a batch, each at ``(CENTRAL, number)``."""
        drawn = [
            _Drawn(*_square(self.path(number), self.crop, self.shorter_edge, None), self.recipes[number][1], number)
            for _, number in batch
        ]
        return _distorted(drawn, self.among)


def check_crop(crop: int, among: Sequence[int]) -> None:
    """Refuse, with a ``ValueError``, a crop that is too small for one of the distortions."""
    if crop < smallest_side(among):
        raise ValueError(f"--crop: expected at least {smallest_side(among)} px for these distortions, got {crop}")


class _Drawn(NamedTuple):
    image: Tensor
    unreadable: dict[str, str]
    recipe: Recipe
    number: int


def _distorted(drawn: Sequence[_Drawn], among: Sequence[int]) -> list[Example]:
    recipes = [_CLEAN if one.unreadable else one.recipe for one in drawn]
    images = apply_recipes(torch.stack([one.image for one in drawn]), recipes)
    target = strengths(recipes)[:, among]
    return [
        Example(_bytes(image), row, one.number, one.unreadable)
        for image, row, one in zip(images, target, drawn, strict=True)
    ]


def _square(
    path: Path, size: int, shorter_edge: int | None, rng: np.random.Generator | None
) -> tuple[Tensor, dict[str, str]]:
    image, reason = _read(path, size, shorter_edge)
    return (torch.zeros(3, size, size), {str(path): reason}) if reason else (_cut(image, size, rng).contiguous(), {})


def _read(path: Path, least: int, shorter_edge: int | None) -> tuple[Tensor, str]:
    """An image, or why it cannot be used. Errors of a loading process would lose their type on the way."""
    try:
        image = read(path, shorter_edge=shorter_edge)
    except ImageError as error:
        return torch.empty(0), error.reason
    side = min(image.shape[1:])
    return (image, "") if side >= least else (image, f"its shorter side has {side} px, less than a crop of {least}")


def _cut(image: Tensor, size: int, rng: np.random.Generator | None) -> Tensor:
    down, right = image.shape[1] - size, image.shape[2] - size
    top, left = (rng.integers(down + 1), rng.integers(right + 1)) if rng else (down // 2, right // 2)
    cut = image[:, top : top + size, left : left + size]
    return cut.flip(2) if rng is not None and rng.random() < 0.5 else cut


def _bytes(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)


def mixed_recipes(
    photos: Sequence[int], passes: int, most: int, among: Sequence[int], seed: int
) -> list[tuple[int, Recipe]]:
    """The test of several distortions at once: each photo ``passes`` times, K ~ U{1..most}."""
    return [
        (photo, draw_recipe(np.random.default_rng([seed, _MULTI, turn, photo]), most=most, among=among))
        for turn in range(passes)
        for photo in photos
    ]


def single_recipes(photos: Sequence[int], passes: int, among: Sequence[int], seed: int) -> list[tuple[int, Recipe]]:
    """The test of one distortion at a time: each at each of five levels on ``passes`` photos, which take turns."""
    rng = np.random.default_rng([seed, _SINGLE])
    found: list[tuple[int, Recipe]] = []
    for _ in range(passes):
        for index in among:
            for level in range(1, LEVELS + 1):
                if len(found) % len(photos) == 0:
                    turns = rng.permutation(photos)
                photo = int(turns[len(found) % len(photos)])
                found.append((photo, Recipe((index,), (level,), int(rng.integers(2**63)))))
    return found


def mean_strengths(count: int, most: int, clean_share: float = 0.0) -> Tensor:
    """The expected strengths of crops with K ~ U{1..most} of ``count`` distortions at levels U{1..5}.

    A constant predictor can do no better in squared error.

    Args:
        count: D, distortions that are drawn from.
        most: the greatest K; never more than ``count``.
        clean_share: of crops without any, in [0, 1].

    Returns:
        ``(D,)``, all equal.
    """
    present = (min(most, count) + 1) / 2 / count
    level = (LEVELS + 1) / 2 / LEVELS
    return torch.full((count,), (1 - clean_share) * present * level)


class HeldOut(NamedTuple):
    """Images that a model is tested on, the same each time."""

    name: str
    images: Files | FixedMixtures
    numbers: tuple[int, ...]  # of the items
    constant: Tensor  # (D,) strengths of the best constant predictor


def photo_tests(
    source: Source,
    photos: Sequence[int],
    *,
    most: int,
    passes: int,
    single_passes: int,
    crop: int,
    seed: int,
    shorter_edge: int | None = None,
) -> list[HeldOut]:
    """The two tests on pristine photos, drawn once: ``mixed``, several distortions at once, and ``single``, one.

    Args:
        source: of photos.
        photos: the numbers of those that are for the test.
        most: ``mixed``: K ~ U{1..most}.
        passes: ``mixed``: images per photo.
        single_passes: ``single``: images per distortion and level.
        crop: px, side of the central square.
        seed: of the draws.
        shorter_edge: px that photos are read at; None: their own size.
    """
    among = applicable(source.keys)
    recipes = {"mixed": mixed_recipes(photos, passes, most, among, seed)}
    recipes["single"] = single_recipes(photos, single_passes, among, seed)
    constant = {"mixed": mean_strengths(len(among), most), "single": mean_strengths(len(among), 1)}
    return [
        HeldOut(
            name,
            FixedMixtures(source, fixed, crop=crop, shorter_edge=shorter_edge),
            tuple(range(len(fixed))),
            constant[name],
        )
        for name, fixed in recipes.items()
    ]


class DistortedCrops(Dataset[tuple[Tensor, Tensor]]):
    """Random crops and flips of pristine photos, distorted at the crop's size by recipes that change with each epoch.

    Each draw is a function of (seed, epoch, index of the photo) alone: a resumed run sees what an uninterrupted one
    does, whatever the number of workers.

    Args:
        paths: the photos.
        crop: side of the square crop in pixels.
        most: the greatest number of distortions on one crop.
        seed: of the draws; `start_epoch` makes new ones.
        among: indices in `attriqa.distortions.DISTORTIONS` to draw from.
        clean_share: of the items that get no distortion, in [0, 1].
        shorter_edge: pixels, the size they are read at; `None`: their own.

    An item is ``((3, crop, crop) in [0, 1], strengths (25,))``; the order of the items is shuffled with each epoch.

    Raises:
        ValueError: an argument is out of its range, or the crop too small for one of the distortions.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        crop: int,
        most: int,
        seed: int,
        among: Sequence[int] = range(COUNT),
        clean_share: float = 0.1,
        shorter_edge: int | None = None,
    ) -> None:
        check_draw(most, among)
        if crop < smallest_side(among):
            raise ValueError(f"crop: expected at least {smallest_side(among)} px for these distortions, got {crop}")
        if not 0 <= clean_share <= 1:
            raise ValueError(f"clean_share: expected a share in [0, 1], got {clean_share}")
        self.paths = tuple(paths)
        self.crop = crop
        self.most = most
        self.seed = seed
        self.among = tuple(among)
        self.clean_share = clean_share
        self.shorter_edge = shorter_edge
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draws the items are; before the loader is iterated."""
        self.epoch = epoch
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        index = int(self.order[position])
        rng = np.random.default_rng([self.seed, self.epoch, index])
        photo = read(self.paths[index], shorter_edge=self.shorter_edge)
        height, width = photo.shape[1:]
        if min(height, width) < self.crop:
            side = min(height, width)
            raise ValueError(f"crop: expected at most the shorter side of {self.paths[index]}, {side}, got {self.crop}")
        image = crop_and_flip(photo, self.crop, rng).contiguous()
        if rng.random() < self.clean_share:
            return image, torch.zeros(COUNT)
        recipe = draw_recipe(rng, most=self.most, among=self.among)
        return apply_recipes(image[None], [recipe])[0], strengths([recipe])[0]
