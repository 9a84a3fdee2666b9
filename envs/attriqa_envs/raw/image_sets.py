"""The images that a policy is trained and tested on: read, split by file, photos made into raw files."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attriqa.data.splits import random_split
from attriqa_envs.isp.color import encode
from attriqa_envs.raw.bank import load_bank
from attriqa_envs.raw.cache import RenditionCache
from attriqa_envs.raw.find import Source
from attriqa_envs.raw.unprocess import draw_conditions, unprocess

_CHUNK = 32  # photos that are unprocessed at once


@dataclass(frozen=True)
class Pictures:
    """Two banks for `attriqa_envs.tuning.core.ISPCore`.

    Attributes:
        train: ``(N, 3, H, W)`` float16 linear light.
        test: ``(M, 3, H, W)``, of other files.
        train_files: what ``train`` is of, in its order; several times as many images where photos have variants.
        test_files: what ``test`` is of, in its order.
        unreadable: files that were left out, each with the reason.
    """

    train: Tensor
    test: Tensor
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    unreadable: tuple[str, ...]

    def names(self) -> dict[str, list[str]]:
        """Which files, in JSON types."""
        return {
            "train": list(self.train_files),
            "test": list(self.test_files),
            "unreadable": list(self.unreadable),
        }

    def sample_test(self, most: int, seed: int) -> "Pictures":
        """With at most so many test images, drawn by the seed."""
        rows = np.random.default_rng(seed).permutation(len(self.test))[:most]
        files = tuple(self.test_files[row] for row in rows)
        return replace(self, test=self.test[torch.from_numpy(rows)], test_files=files)

    def unprocessed(self, variants: int, seed: int) -> "Pictures":
        """With photos made into raw files, under ``variants`` conditions each to train on and one to test on."""
        train = torch.cat([unprocess_bank(self.train, [seed, 0, variant]) for variant in range(variants)])
        return replace(self, train=train, test=unprocess_bank(self.test, [seed, 1, 0]))

    def to(self, device: torch.device | str) -> "Pictures":
        """On a device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def read_pictures(train: Sequence[Source], test: Sequence[Source], cache: RenditionCache, *, root: Path) -> Pictures:
    """Read two lists of files below ``root`` as squares of the cache's size; a bad file ends nothing.

    Raises:
        ValueError: a list has no file that can be read.
    """
    sides = [_read(sources, cache, root) for sources in (train, test)]
    (train_files, train_bank, first), (test_files, test_bank, second) = sides
    return Pictures(train_bank, test_bank, train_files, test_files, (*first, *second))


def split_pictures(
    sources: Sequence[Source], cache: RenditionCache, *, root: Path, test_share: float, seed: int
) -> Pictures:
    """Read files below ``root``, and split those that can be read at random: by file, so that none is on both sides.

    Raises:
        ValueError: none can be read, or they are too few for two sides.
    """
    files, bank, unreadable = _read(sources, cache, root)
    if not 0 < round(test_share * len(files)) < len(files):
        raise ValueError(
            f"images: expected enough to train on and a share of {test_share:g} to test on; {len(files)} of "
            f"{len(sources)} can be read"
        )
    train, test = random_split(files, seed, test_share)
    some, others = (tuple(files[row] for row in rows) for rows in (train, test))
    return Pictures(bank[train], bank[test], some, others, unreadable)


def _read(
    sources: Sequence[Source], cache: RenditionCache, root: Path
) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
    loaded = cache.read_all(sources)
    files = tuple(str(Path(image.metadata.path).relative_to(root)) for image in loaded.images)
    bank = load_bank(loaded.images, side=cache.shorter_edge)
    return files, bank, tuple(map(str, loaded.failures))


def unprocess_bank(bank: Tensor, key: Sequence[int]) -> Tensor:
    """Linearised photos as raw files, each under conditions of its own, developed to linear light.

    Args:
        bank: ``(N, 3, H, W)`` linear light of photos, in [0, 1].
        key: of the draws; the result is a function of it and of the bank.

    Returns:
        ``(N, 3, H, W)`` float16.
    """
    seeds = np.random.SeedSequence(list(key)).generate_state(len(bank)).tolist()
    parts = []
    for first in range(0, len(bank), _CHUNK):
        some = seeds[first : first + _CHUNK]
        photos = encode(bank[first : first + _CHUNK].float()).clamp(0, 1)
        parts.append(unprocess(photos, draw_conditions(some), some).half())
    return torch.cat(parts)


@dataclass(frozen=True)
class Group:
    """N images that are tuned.

    Attributes:
        name: of the perturbation that they are under; empty for none.
        files: paths below the folder that was searched.
        linear: ``(N, 3, S, S)`` float16 linear light.
        known: ``(N, 3, S, S)`` sRGB that a perfect recovery would give, where that is known.
        left_out: files that are not among them, each with the reason.
    """

    name: str
    files: tuple[str, ...]
    linear: Tensor
    known: Tensor | None = None
    left_out: tuple[str, ...] = field(default=())


def seeds_of(seed: int, files: Sequence[str]) -> list[int]:
    """Of each image's draws: it has the same in whatever company."""
    digests = (hashlib.sha256(f"{seed} {file}".encode()).digest() for file in files)
    return [int.from_bytes(digest[:4], "big") for digest in digests]


def load_group(
    sources: Sequence[Source],
    cache: RenditionCache,
    *,
    root: Path,
    trained: Collection[str] = (),
    most: int,
    seed: int,
    unprocessed: bool,
    device: torch.device | str = "cpu",
) -> Group:
    """Read central squares of some images, drawn by the seed; a bad file ends nothing.

    Args:
        sources: files below ``root``.
        cache: of the size of the squares.
        root: what names are relative to.
        trained: names of files that are left out: a policy has learnt from them.
        most: images at most.
        seed: of the draw, and of the conditions under which photos are unprocessed.
        unprocessed: make raw files of photos, see `attriqa_envs.raw.unprocess`.
        device: of the result.

    Raises:
        ValueError: no image is left, or none of those can be read.
    """
    names = [str(source.path.relative_to(root)) for source in sources]
    seen = set(trained)
    unseen = [source for source, name in zip(sources, names, strict=True) if name not in seen]
    if not unseen:
        raise ValueError(f"images: expected some that the policy was not trained on; got none of {len(sources)}")
    drawn = sorted(np.random.default_rng(seed).permutation(len(unseen))[:most].tolist())
    loaded = cache.read_all([unseen[place] for place in drawn])
    files = tuple(str(Path(image.metadata.path).relative_to(root)) for image in loaded.images)
    linear = load_bank(loaded.images, side=cache.shorter_edge)
    if unprocessed:
        seeds = seeds_of(seed, files)
        linear = unprocess(encode(linear.float()).clamp(0, 1), draw_conditions(seeds), seeds).half()
    left_out = [f"{len(sources) - len(unseen)} files that the policy was trained on"] * (len(unseen) < len(sources))
    return Group("", files, linear.to(device), left_out=(*left_out, *map(str, loaded.failures)))
