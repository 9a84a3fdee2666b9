"""The images that a policy is trained and tested on, and those that are tuned: read, split by file, made into raws."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attriqa.data.splits import random_split
from attriqa_envs.isp.color import encode
from attriqa_envs.raw.bank import load_bank
from attriqa_envs.raw.cache import RenditionCache
from attriqa_envs.raw.find import ImageFile
from attriqa_envs.raw.unprocess import draw_conditions, unprocess

_CHUNK = 32  # photos that are unprocessed at once


@dataclass(frozen=True)
class ImageGroup:
    """The images of N files.

    Attributes:
        files: paths below the folder that was searched.
        linear: ``(N, 3, S, S)`` float16 linear light; V N images where each has V variants, variant by variant.
        left_out: files that are not among them, each with the reason.
        name: of the perturbation that they are under; empty for none.
        originals: ``(N, 3, S, S)`` sRGB that a perfect recovery would give, where that is known.
    """

    files: tuple[str, ...]
    linear: Tensor
    left_out: tuple[str, ...] = ()
    name: str = ""
    originals: Tensor | None = None

    def at(self, rows: Sequence[int]) -> "ImageGroup":
        """Some of the images, in another order."""
        return replace(self, files=tuple(self.files[row] for row in rows), linear=self.linear[torch.tensor(rows)])

    def to(self, device: torch.device | str) -> "ImageGroup":
        """With the linear light on a device."""
        return replace(self, linear=self.linear.to(device))

    def drawn(self, most: int, seed: int) -> "ImageGroup":
        """With at most so many images, drawn by the seed."""
        return self.at(np.random.default_rng(seed).permutation(len(self.files))[:most].tolist())

    def split(self, test_share: float, seed: int) -> "tuple[ImageGroup, ImageGroup]":
        """Two parts at random, by file, so that none is on both sides: to train on, and a share to test on.

        Raises:
            ValueError: they are too few for two sides.
        """
        count = len(self.files)
        if not 0 < round(test_share * count) < count:
            raise ValueError(
                f"images: expected enough to train on and a share of {test_share:g} to test on; {count} of "
                f"{count + len(self.left_out)} can be read"
            )
        train, test = random_split(self.files, seed, test_share)
        return self.at(train), replace(self.at(test), left_out=())

    def unprocessed(self, seeds: Sequence[int]) -> "ImageGroup":
        """With photos made into raw files, each under conditions of its own seed; V N seeds give V variants."""
        bank = encode(self.linear.repeat(len(seeds) // len(self.files), 1, 1, 1).float()).clamp(0, 1)
        parts = [(bank[k : k + _CHUNK], seeds[k : k + _CHUNK]) for k in range(0, len(bank), _CHUNK)]
        raws = [unprocess(photos, draw_conditions(some), some).half() for photos, some in parts]
        return replace(self, linear=torch.cat(raws))


def read_group(files: Sequence[ImageFile], cache: RenditionCache, *, root: Path) -> ImageGroup:
    """Read files below ``root`` as squares of the cache's size; a bad file ends nothing.

    Raises:
        ValueError: none of them can be read.
    """
    loaded = cache.read_all(files)
    names = tuple(str(Path(image.metadata.path).relative_to(root)) for image in loaded.images)
    return ImageGroup(names, load_bank(loaded.images, side=cache.shorter_edge), tuple(map(str, loaded.failures)))


def read_unseen(
    files: Sequence[ImageFile], cache: RenditionCache, *, root: Path, trained: Collection[str], most: int, seed: int
) -> ImageGroup:
    """Read some files, drawn by the seed, that a policy has not learnt from.

    Args:
        files: below ``root``.
        cache: of the size of the squares.
        root: what names are relative to.
        trained: names of files that are left out.
        most: images at most.
        seed: of the draw.

    Raises:
        ValueError: no file is left, or none of those drawn can be read.
    """
    unseen = [file for file in files if str(file.path.relative_to(root)) not in trained]
    if not unseen:
        raise ValueError(f"images: expected some that the policy was not trained on; got none of {len(files)}")
    drawn = sorted(np.random.default_rng(seed).permutation(len(unseen))[:most].tolist())
    group = read_group([unseen[place] for place in drawn], cache, root=root)
    seen = [f"{len(files) - len(unseen)} files that the policy was trained on"] * (len(unseen) < len(files))
    return replace(group, left_out=(*seen, *group.left_out))


def seeds_of(seed: int, files: Sequence[str]) -> list[int]:
    """Of each image's draws: it has the same in whatever company."""
    digests = (hashlib.sha256(f"{seed} {file}".encode()).digest() for file in files)
    return [int.from_bytes(digest[:4], "big") for digest in digests]


def seeds_from(key: Sequence[int], count: int) -> list[int]:
    """As many seeds, a function of the key."""
    seeds: list[int] = np.random.SeedSequence(list(key)).generate_state(count).tolist()
    return seeds
