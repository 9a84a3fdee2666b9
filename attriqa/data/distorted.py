"""What a loader draws when ExIQA learns to name distortions: images, and the strength of each distortion in them.

What it draws at ``(epoch, number)`` is a function of these and of a seed alone, so that a resumed run sees what a whole
one sees. Pixels travel as bytes: a distorted image that a user has is a file, too.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from attriqa.data.crops import Example, FileCrops, PhotoCrops, Rng, as_bytes, crop_and_flip, named
from attriqa.data.sources import DistortionSource, applicable
from attriqa.distortions.mixtures import (
    COUNT,
    LEVELS,
    Mixture,
    apply_mixtures,
    check_draw,
    draw_mixture,
    smallest_side,
    strengths,
)
from attriqa.images import ImageError, read

_MULTI, _SINGLE = 1, 2  # streams of the test sets' draws
_CLEAN = Mixture((), (), 0)


class Files(FileCrops):
    """Images that are distorted already: resized as they are, or a square of them; flipped at random, not in a test.

    Args:
        source: with strengths.
        prepare: ``(1, 3, H, W)`` -> ``(1, 3, S, S)`` in [0, 1]: the resize and crop of the model.
        crop: px, side of a square to cut out at the file's own size, instead of ``prepare``; 0: none.
        seed: of the draws.
    """

    def __init__(self, source: DistortionSource, prepare: Callable[[Tensor], Tensor], *, crop: int, seed: int) -> None:
        if source.strengths is None:
            raise ValueError(f"source: expected one with strengths, {source.name} has none")
        size = (crop, crop) if crop else _size(prepare(torch.zeros(1, 3, 32, 32)))
        super().__init__(source.paths, partial(crop_and_flip, size=size), _same if crop else prepare, seed=seed, keep=0)
        self.strengths = source.strengths

    def __getitem__(self, where: tuple[int, int]) -> Example:
        return super().__getitem__(where)._replace(strengths=self.strengths[where[1]])


def _same(image: Tensor) -> Tensor:
    return image


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[2], image.shape[3]


class _DistortedPhotos(Dataset[Example]):
    """Squares of pristine photos, distorted at their own size by a mixture each.

    A loader asks for a whole batch at once: images with a step in common are distorted together, which saves most of
    the time that small crops take.

    Raises:
        ValueError: the crop is too small for a distortion.
    """

    def __init__(self, source: DistortionSource, crop: int, shorter_edge: int | None) -> None:
        self.among = applicable(source.keys)
        check_crop(crop, self.among)
        self.paths, self.crop, self.shorter_edge = source.paths, crop, shorter_edge

    def path(self, number: int) -> Path:
        """The photo of an item."""
        return self.paths[number % len(self.paths)]

    def mixture(self, epoch: int, number: int) -> tuple[Mixture, Rng]:
        """What is done to an item, and the generator that it is cut by."""
        raise NotImplementedError

    def __getitem__(self, where: tuple[int, int]) -> Example:
        return self.__getitems__([where])[0]

    def __getitems__(self, batch: Sequence[tuple[int, int]]) -> list[Example]:
        """The items of a batch, each at ``(epoch, number)``."""
        examples, mixtures = [], []
        for epoch, number in batch:
            mixture, rng = self.mixture(epoch, number)
            image, unreadable = torch.zeros(3, self.crop, self.crop), tuple[ImageError, ...]()
            try:
                photo = read(self.path(number), shorter_edge=self.shorter_edge)
                image = crop_and_flip(photo, self.crop, rng).contiguous()
            except ValueError as error:
                mixture, unreadable = _CLEAN, (named(error, self.path(number)),)
            examples.append(Example(image, number, unreadable))
            mixtures.append(mixture)
        images = apply_mixtures(torch.stack([example.image for example in examples]), mixtures)
        targets = strengths(mixtures)[:, self.among]
        return [
            example._replace(image=as_bytes(image)[None], strengths=target)
            for example, image, target in zip(examples, images, targets, strict=True)
        ]


class Mixtures(_DistortedPhotos):
    """Random crops of pristine photos, each with distortions of its own, drawn anew in each epoch.

    Item n is of photo n modulo their number.

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
        self,
        source: DistortionSource,
        *,
        crop: int,
        most: int,
        clean_share: float,
        seed: int,
        shorter_edge: int | None = None,
    ) -> None:
        super().__init__(source, crop, shorter_edge)
        check_mixture(most, clean_share, self.among)
        self.most, self.clean_share, self.seed = most, clean_share, seed

    def mixture(self, epoch: int, number: int) -> tuple[Mixture, Rng]:
        """Drawn."""
        rng = np.random.default_rng([self.seed, epoch, number])
        if rng.random() < self.clean_share:
            return _CLEAN, rng
        return draw_mixture(rng, most=self.most, among=self.among), rng


class FixedMixtures(_DistortedPhotos):
    """Central crops of pristine photos with known mixtures: a test that is the same each time.

    Args:
        source: of photos.
        mixtures: number of the photo in ``source``, and mixture, of each item.
        crop: px, side of the square that is cut out.
        shorter_edge: px that photos are read at; None: their own size.
    """

    def __init__(
        self,
        source: DistortionSource,
        mixtures: Sequence[tuple[int, Mixture]],
        *,
        crop: int,
        shorter_edge: int | None = None,
    ) -> None:
        super().__init__(source, crop, shorter_edge)
        self.mixtures = mixtures

    def path(self, number: int) -> Path:
        """The photo of an item."""
        return self.paths[self.mixtures[number][0]]

    def mixture(self, epoch: int, number: int) -> tuple[Mixture, Rng]:
        """As it was given."""
        return self.mixtures[number][1], None


def check_crop(crop: int, among: Sequence[int]) -> None:
    """Refuse, with a ``ValueError``, a crop that is too small for one of the distortions."""
    if crop < smallest_side(among):
        raise ValueError(f"crop: expected at least {smallest_side(among)} px for these distortions, got {crop}")


def check_mixture(most: int, clean_share: float, among: Sequence[int]) -> None:
    """Refuse, with a ``ValueError``, what no mixture can be drawn from."""
    check_draw(most, among)
    if not 0 <= clean_share <= 1:
        raise ValueError(f"clean_share: expected a share in [0, 1], got {clean_share}")


def several_distortions(
    photos: Sequence[int], passes: int, most: int, among: Sequence[int], seed: int
) -> list[tuple[int, Mixture]]:
    """The test of several distortions at once: each photo ``passes`` times, K ~ U{1..most}."""
    return [
        (photo, draw_mixture(np.random.default_rng([seed, _MULTI, turn, photo]), most=most, among=among))
        for turn in range(passes)
        for photo in photos
    ]


def one_distortion(photos: Sequence[int], passes: int, among: Sequence[int], seed: int) -> list[tuple[int, Mixture]]:
    """The test of one distortion at a time: each at each of five levels on ``passes`` photos, which take turns."""
    rng = np.random.default_rng([seed, _SINGLE])
    found: list[tuple[int, Mixture]] = []
    for _ in range(passes):
        for index in among:
            for level in range(1, LEVELS + 1):
                if len(found) % len(photos) == 0:
                    turns = rng.permutation(photos)
                photo = int(turns[len(found) % len(photos)])
                found.append((photo, Mixture((index,), (level,), int(rng.integers(2**63)))))
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
    source: DistortionSource,
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
    mixtures = {"mixed": several_distortions(photos, passes, most, among, seed)}
    mixtures["single"] = one_distortion(photos, single_passes, among, seed)
    constant = {"mixed": mean_strengths(len(among), most), "single": mean_strengths(len(among), 1)}
    return [
        HeldOut(
            name,
            FixedMixtures(source, fixed, crop=crop, shorter_edge=shorter_edge),
            tuple(range(len(fixed))),
            constant[name],
        )
        for name, fixed in mixtures.items()
    ]


class DistortedCrops(PhotoCrops):
    """Random crops and flips of pristine photos, distorted at the crop's size by mixtures that change with each epoch.

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
        check_mixture(most, clean_share, among)
        check_crop(crop, among)
        super().__init__(paths, shorter_edge, crop, seed)
        self.most, self.among, self.clean_share = most, tuple(among), clean_share

    def __getitem__(self, position: int) -> tuple[Tensor, Any]:
        image, _, rng = self.draw(position)
        if rng.random() < self.clean_share:
            return image.contiguous(), torch.zeros(COUNT)
        mixture = draw_mixture(rng, most=self.most, among=self.among)
        return apply_mixtures(image.contiguous()[None], [mixture])[0], strengths([mixture])[0]
