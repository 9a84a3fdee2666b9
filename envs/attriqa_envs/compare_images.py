"""The images on which ways of tuning are compared: drawn among those a policy was not trained on, as linear light."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attriqa.images import ImageError
from attriqa_envs.expert import read_expert
from attriqa_envs.image_bank import load_bank
from attriqa_envs.isp_color import encode
from attriqa_envs.raw_cache import RenditionCache, Source
from attriqa_envs.recovery import Perturbation, originals
from attriqa_envs.unprocess import draw_conditions, unprocess


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
        unprocessed: make raw files of photos, see `attriqa_envs.unprocess`.
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


def perturb(group: Group, perturbations: Sequence[Perturbation], seed: int) -> list[Group]:
    """A group's images under each perturbation, with the originals."""
    light, seeds = group.linear.float(), seeds_of(seed, group.files)
    known = originals(light)
    return [Group(change.name, group.files, change.apply(light, seeds).half(), known) for change in perturbations]


def expert_square(path: Path, side: int) -> Tensor:
    """The central square ``(1, 3, side, side)`` of an expert's rendering, sRGB in [0, 1].

    Raises:
        ImageError: the file cannot be read, or is so long that its shorter side falls under ``side``.
    """
    whole = read_expert(path, shorter_edge=side).pixels
    if min(whole.shape[1:]) < side:
        raise ImageError(str(path), f"too long a panorama for a square of {side} px")
    top, left = ((length - side) // 2 for length in whole.shape[1:])
    return whole[None, :, top : top + side, left : left + side].contiguous()
