"""Unlabelled images in any number: a folder, a list of files, or WebDataset shards, each image readable by position.

A source is scanned once into arrays (a key, a file, a place in it), so that shuffling is a permutation of numbers and
an interrupted pass goes on at any position; pixels are read when they are asked for. The scan of shards reads the
headers alone and can be kept in a cache file.

A key names an image in tables of labels. It depends on the source alone, never on where the source lies: the path
relative to the folder; the line of the list; the ``__key__`` that the webdataset package gives (a member's path up to
the first dot of its name). It is unique within a source.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attriqa.files import atomic_path
from attriqa.images import SUFFIXES, read

UNREADABLE_SHARE = 0.001  # of a source: more images than this (and more than one) that cannot be read end a run
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # a key and an extension, as webdataset splits them
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BLOCK = 512  # bytes; a tar file ends with at least one block of zeros
_CACHE_VERSION = 1


class SourceError(ValueError):
    """A source of images that cannot be used as a whole: nothing in it, a key twice, a shard that is cut off."""


class TooManyUnreadableError(RuntimeError):
    """More images of a source than `UNREADABLE_SHARE` cannot be read."""


class Strings:
    """Many short texts in one block of memory: a million keys cost what their letters cost, in every process.

    Args:
        data: the texts in UTF-8, one after another.
        ends: where each ends in ``data``.
    """

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.data = data
        self.ends = ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Strings":
        """Pack ``texts``; one that is not valid Unicode (a file name in another encoding) is a `SourceError`."""
        data, ends = bytearray(), []
        for text in texts:
            try:
                data += text.encode()
            except UnicodeEncodeError as error:
                raise SourceError(f"expected names in UTF-8, got {text!a}") from error
            ends.append(len(data))
        return cls(np.frombuffer(bytes(data), np.uint8), np.array(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        return self._bytes(index).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def digests(self) -> NDArray[np.uint64]:
        """64 bits of each text's BLAKE2b: the same on every machine, and spread evenly."""
        each = (int.from_bytes(blake2b(self._bytes(i), digest_size=8).digest()) for i in range(len(self)))
        return np.fromiter(each, np.uint64, len(self))

    def _bytes(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        start = int(self.ends[index - 1]) if index else 0
        return self.data[start : int(self.ends[index])].tobytes()


@dataclass(frozen=True)
class ImageIndex:
    """Where each of N images is; made by `index_images`, small enough to be handed to loading processes."""

    keys: Strings  # N, each once
    files: Strings  # paths: of the images, or of the shards
    file: NDArray[np.int32]  # (N,) which of ``files`` an image is in
    offset: NDArray[np.int64]  # (N,) bytes from the start of the file
    size: NDArray[np.int64]  # (N,) bytes; -1: the whole file

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, index: int) -> str:
        """The image's file; for one in a shard, the shard and the key."""
        path = self.files[int(self.file[index])]
        return path if self.size[index] < 0 else f"{path}: {self.keys[index]}"

    def read(self, index: int, *, shorter_edge: int | None = None) -> Tensor:
        """Read one image.

        Args:
            index: 0 to N - 1.
            shorter_edge: length in px of the shorter side; `None`: as stored.

        Returns:
            ``(3, H, W)`` float32 in [0, 1], as `attriqa.images.read` gives it.

        Raises:
            attriqa.images.ImageError: the file is missing or damaged.
        """
        path, size = self.files[int(self.file[index])], int(self.size[index])
        if size < 0:
            return read(path, shorter_edge=shorter_edge)
        with open(path, "rb") as shard:  # noqa: PTH123 (a path object for each image would cost more than opening it)
            shard.seek(int(self.offset[index]))
            return read(self.where(index), shorter_edge=shorter_edge, data=shard.read(size))

    def digest(self) -> str:
        """32 hexadecimal digits over all keys in order: whether two runs speak of the same images."""
        return blake2b(self.keys.data.tobytes() + self.keys.ends.tobytes(), digest_size=16).hexdigest()


def index_images(source: str | Path, *, cache: Path | None = None) -> ImageIndex:
    """Find every image of a source.

    Args:
        source: a folder of images (recursive; links to folders followed, names with a leading dot left out); a folder
            of ``.tar`` shards; one shard; a pattern of shards (``shards-{000..009}.tar``, ``shards-*.tar``); or a text
            file of paths relative to it, one in a line. Shards are uncompressed, as the webdataset package writes
            them; of a sample the member counts whose whole extension is that of an image (``jpg``, not ``mask.png``).
        cache: for shards: a file that keeps the scan and is used again while no shard's size or time of change differs.

    Raises:
        FileNotFoundError: there is no such source.
        SourceError: no image in it; a key twice; a line that is not a relative path; a shard that is cut off, damaged
            or compressed (named, with the key of the last image that is whole).
    """
    path, text = Path(source), str(source)
    if not path.exists() and re.search(r"[{*?\[]", text):
        return _index_shards(_expand(text), text, cache)
    if not path.exists():
        raise FileNotFoundError(f"source: no such folder, list or shard: {text}")
    if path.is_dir():
        shards = sorted(entry for entry in path.glob("*.tar") if not entry.name.startswith("."))
        if shards:
            if any(entry.suffix.lower() in SUFFIXES for entry in path.iterdir()):
                raise SourceError(f"source: {text} holds both shards and images; give a pattern such as {text}/*.tar")
            return _index_shards(shards, text, cache)
        return _index_files(path, sorted(_walk(str(path))), text)
    if text.endswith((".tar", *_COMPRESSED)):
        return _index_shards([path], text, cache)
    return _index_files(path.parent, _listed(path), text)


def _index_files(root: Path, names: list[str], source: str) -> ImageIndex:
    if not names:
        raise SourceError(f"source: no image in {source}; expected files ending in {' '.join(sorted(SUFFIXES))}")
    count = len(names)
    files = Strings.of(os.path.join(root, name) for name in names)  # noqa: PTH118 (millions of them)
    return ImageIndex(
        Strings.of(names), files, np.arange(count, dtype=np.int32), np.zeros(count, np.int64), np.full(count, -1)
    )


def _walk(root: str) -> Iterator[str]:
    """Image files below ``root``, relative to it, with forward slashes."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122
                yield prefix + name


def _listed(path: Path) -> list[str]:
    """The lines of a list, tidied (``./a//b.jpg`` is ``a/b.jpg``) and checked."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"source: {path} is not a text file of paths, a folder or .tar shards") from error
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if os.path.isabs(line):  # noqa: PTH117 (millions of them)
            raise SourceError(f"{path}, line {number}: expected a path relative to the list, got {line}")
        name = os.path.normpath(line).replace(os.sep, "/")
        if name in first:
            raise SourceError(f"{path}, line {number}: {name} is in line {first[name]} already")
        first[name] = number
    return list(first)


def _expand(pattern: str) -> list[Path]:
    """The files that a pattern with ``{000..009}`` or with ``*`` stands for, in order."""
    ranges = []
    for first, last in _BRACES.findall(pattern):
        if int(first) > int(last):
            raise SourceError(f"source: expected a rising range in {pattern}, got {{{first}..{last}}}")
        ranges.append([f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)])
    paths: list[Path] = []
    for numbers in map(iter, product(*ranges)):
        name = _BRACES.sub(lambda _, numbers=numbers: next(numbers), pattern)  # type: ignore[misc]
        path = Path(name)
        if path.exists():
            paths.append(path)
            continue
        if not re.search(r"[*?\[]", name):
            raise FileNotFoundError(f"source: no such shard: {name}")
        anchor = Path(path.anchor)
        paths += sorted(anchor.glob(str(path.relative_to(anchor))))
    if not paths:
        raise FileNotFoundError(f"source: no shard matches {pattern}")
    return paths


def _index_shards(shards: list[Path], source: str, cache: Path | None) -> ImageIndex:
    stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in shards]
    stamp = json.dumps([_CACHE_VERSION, stamps])
    if cache is not None and cache.exists():
        with np.load(cache, allow_pickle=False) as kept:
            if str(kept["stamp"]) == stamp:
                keys = Strings(kept["keys"], kept["ends"])
                return ImageIndex(keys, Strings.of(map(str, shards)), kept["shard"], kept["offset"], kept["size"])
    scans = [_scan_shard(path) for path in shards]
    keys = Strings.of(key for scan in scans for key, _, _ in scan)
    file = np.repeat(np.arange(len(shards), dtype=np.int32), [len(scan) for scan in scans])
    if not len(keys):
        raise SourceError(f"source: no image in the shards of {source}")
    _refuse_duplicates(keys, file, shards)
    offset = np.array([place for scan in scans for _, place, _ in scan], np.int64)
    size = np.array([length for scan in scans for _, _, length in scan], np.int64)
    if cache is not None:
        with atomic_path(cache) as temporary, temporary.open("wb") as handle:
            np.savez(
                handle, stamp=np.array(stamp), keys=keys.data, ends=keys.ends, shard=file, offset=offset, size=size
            )
    return ImageIndex(keys, Strings.of(map(str, shards)), file, offset, size)


def _scan_shard(path: Path) -> list[tuple[str, int, int]]:
    """(key, offset, size in bytes) of every image of a shard.

    `tarfile` stops without a word at a header that is cut or damaged, so that what follows the last member is looked
    at here: a whole archive goes on with zeros.
    """
    if path.name.endswith(_COMPRESSED):
        raise SourceError(f"{path}: a compressed shard cannot be read at any position; decompress it")
    length, end = path.stat().st_size, 0
    images: list[tuple[str, int, int]] = []
    fault = ""
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if member.offset_data + member.size > length:
                    break
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                match = _MEMBER.fullmatch(member.name)
                if match and member.isreg() and not member.issparse() and f".{match[2].lower()}" in SUFFIXES:
                    images.append((match[1], member.offset_data, member.size))
    except tarfile.TarError as error:
        fault = f" ({error})"
    with path.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            last = f"the last whole image is {images[-1][0]}" if images else "no image in it is whole"
            raise SourceError(f"{path}: cut off or damaged from byte {end} of {length} on; {last}{fault}")
    return images


def _refuse_duplicates(keys: Strings, file: NDArray[np.int32], shards: list[Path]) -> None:
    digests = keys.digests()
    order = np.argsort(digests, kind="stable")
    for place in np.flatnonzero(digests[order][1:] == digests[order][:-1]):
        first, second = int(order[place]), int(order[place + 1])
        if keys[first] == keys[second]:
            places = f"{shards[file[first]]} and in {shards[file[second]]}"
            raise SourceError(f"source: the key {keys[first]} comes twice, in {places}; labels need unique keys")


class Unreadable:
    """The images of a source that could not be read, each counted once.

    Args:
        total: the images of the source. `UNREADABLE_SHARE` of them may be unreadable, and one always may.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.allowed = max(1, int(total * UNREADABLE_SHARE))
        self.reasons: dict[str, str] = {}

    def add(self, reasons: Mapping[str, str]) -> None:
        """Count images, key -> reason.

        Raises:
            TooManyUnreadableError: that was one too many; it names the first few.
        """
        self.reasons.update(reasons)
        if len(self.reasons) > self.allowed:
            shown = "; ".join(f"{key}: {reason}" for key, reason in list(self.reasons.items())[:5])
            raise TooManyUnreadableError(
                f"{len(self.reasons)} of {self.total} images cannot be read, more than the {self.allowed} allowed "
                f"({UNREADABLE_SHARE:.1%}, at least one): {shown}"
            )
