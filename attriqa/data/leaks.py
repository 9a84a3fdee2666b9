"""Test images that are training images: the same picture under two names, within a set and between sets."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

_BEGINNING = 16_384  # bytes: past the headers of an image


class LeakError(ValueError):
    """The same file content on both sides of a split, or in two data sets that should be strangers."""


def identical_files(paths: Sequence[Path]) -> list[list[int]]:
    """Which files have the same content: size first, then the beginning, then SHA-256 of the whole.

    Few files are read whole, so a data set of 250,000 takes minutes, not hours. A photo that was saved anew is another
    file: this finds copies, not likenesses.

    Returns:
        Lists of two or more indices, each ascending, ordered by their first.

    Raises:
        OSError: a file cannot be read.
    """
    alike = [list(range(len(paths)))]
    for key in (_size, _beginning, _content):
        alike = [part for indices in alike for part in _parted(indices, (key(paths[i]) for i in indices))]
    return sorted(alike)


def _size(path: Path) -> Hashable:
    return path.stat().st_size


def _beginning(path: Path) -> Hashable:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_BEGINNING)).digest()


def _content(path: Path) -> Hashable:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _parted(indices: Iterable[int], keys: Iterable[Hashable]) -> list[list[int]]:
    """The indices by key, without those that are alone."""
    parts = defaultdict(list)
    for index, key in zip(indices, keys, strict=True):
        parts[key].append(index)
    return [part for part in parts.values() if len(part) > 1]


def merge_duplicates(paths: Sequence[Path], groups: Sequence[str]) -> list[str]:
    """Groups in which identical files are together, and with them all that was in a group with one of them.

    Args:
        paths: the files.
        groups: the group of each.

    Returns:
        The group of each row; merged ones have the name of the one that comes first in ``groups``.

    Raises:
        ValueError: the lengths differ.
        OSError: a file cannot be read.
    """
    if len(paths) != len(groups):
        raise ValueError(f"paths and groups: expected equal lengths, got {len(paths)} and {len(groups)}")
    leader = {group: group for group in groups}
    rank = {group: i for i, group in enumerate(leader)}

    def lead(group: str) -> str:
        while leader[group] != group:
            group = leader[group]
        return group

    for indices in identical_files(paths):
        first, *others = sorted({lead(groups[i]) for i in indices}, key=rank.__getitem__)
        for other in others:
            leader[other] = first
    return [lead(group) for group in groups]


def find_leaks(train: Sequence[Path], test: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of a training and a test file with the same content, or that are one file; each test file once.

    Raises:
        OSError: a file cannot be read.
    """
    both = [*train, *test]
    pairs = []
    for indices in identical_files(both):
        if indices[0] < len(train):
            pairs += [(both[indices[0]], both[i]) for i in indices if i >= len(train)]
    return pairs


def check_leak(train: Sequence[Path], test: Sequence[Path], *, what: str = "training and test files") -> None:
    """Refuse to go on when a test image is among the training images, within a data set or across two.

    Args:
        train: files that a model learns from.
        test: files that it is tested on.
        what: the two sides, for the error.

    Raises:
        LeakError: some are; they are counted, and ten pairs named.
        OSError: a file cannot be read.
    """
    pairs = find_leaks(train, test)
    if pairs:
        lines = [f"  {a} = {b}" if a != b else f"  {a} on both sides" for a, b in pairs[:10]]
        lines += [f"  and {len(pairs) - 10} more"] if len(pairs) > 10 else []
        raise LeakError("\n".join([f"{what}: {len(pairs)} test files are training files too:", *lines]))
