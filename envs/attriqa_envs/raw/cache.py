"""Folders of raws or photos, and a cache of their linear light at tuning size.

Decoding a raw file takes hundreds of times as long as reading its rendition, so it is done once: each rendition is
kept as float16 in a safetensors file of its own. Its name depends on the file's content (size, time of change, first
and last bytes), the options and `VERSION`, so nothing stale is ever read. Files appear whole or not at all,
and one that does not fit its checksum is made again.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import safetensors
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from attriqa import images
from attriqa.files import atomic_path
from attriqa.images import ImageError
from attriqa_envs.raw.decode import LinearImage
from attriqa_envs.raw.find import ImageFile, Kind
from attriqa_envs.raw.mosaic import header_of
from attriqa_envs.raw.sensor import Matrix, RawMetadata

_PROBE_BYTES = 1 << 16  # of each end of a file that go into its key
VERSION = 1  # goes up whenever the code that decodes makes other light of the same file


@dataclass(frozen=True)
class Loaded:
    """What a set of sources gave.

    Attributes:
        images: float16, in the order of the sources, without those that cannot be read.
        failures: of those, with path and reason.
    """

    images: list[LinearImage]
    failures: list[ImageError]


class RenditionCache:
    """Linear light of files at one size, kept in a folder.

    Several processes may use one folder at the same time. What a killed one leaves behind (``.*.tmp``) is never read.

    Args:
        folder: made where it does not exist; `None` keeps nothing.
        shorter_edge: px of the shorter side of what comes out.
    """

    def __init__(self, folder: Path | str | None, shorter_edge: int = 256) -> None:
        images.target_size(shorter_edge, shorter_edge, shorter_edge)  # refuses what is no size
        self.folder = None if folder is None else Path(folder)
        self.shorter_edge = shorter_edge

    def read(self, source: ImageFile) -> LinearImage:
        """The rendition of a source, float16; decoded where it is not in the cache.

        Raises:
            ImageError: whatever is wrong with the file.
        """
        if self.folder is None:
            return _half(source.read(self.shorter_edge))
        entry = self.entry(source)
        kept = _load(entry)
        if kept is not None:  # the file may have moved since
            return LinearImage(kept.pixels, dataclasses.replace(kept.metadata, path=str(source.path)))
        image = _half(source.read(self.shorter_edge))
        _save(entry, image)
        return image

    def read_all(self, sources: Sequence[ImageFile], *, threads: int | None = None, progress: bool = True) -> Loaded:
        """The renditions of many sources, decoded by several threads; a bad file ends nothing.

        Args:
            sources: at least one.
            threads: how many; one per CPU, up to 8, unless given.
            progress: show a bar.

        Raises:
            ValueError: none of them can be read; it gives the first reasons.
        """
        loaded = Loaded([], [])
        pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1))
        try:
            results = [pool.submit(self.read, source) for source in sources]
            for result in tqdm(results, "linear light", unit="image", disable=None if progress else True):
                try:
                    loaded.images.append(result.result())
                except ImageError as error:
                    loaded.failures.append(error)
        finally:
            pool.shutdown(cancel_futures=True)  # or else an interrupt would wait for all that was submitted
        if not loaded.images:
            reasons = "; ".join(map(str, loaded.failures[:3]))
            raise ValueError(f"sources: expected one that can be read among {len(sources)}; got none ({reasons})")
        return loaded

    def entry(self, source: ImageFile) -> Path:
        """Where the rendition of a source is kept.

        Raises:
            ImageError: the file cannot be read.
        """
        if self.folder is None:
            raise ValueError("folder: expected one; this cache keeps nothing")
        digest = hashlib.sha256(f"{source.kind} {self.shorter_edge} {_code_version(source.kind)}".encode())
        try:
            digest.update(_fingerprint(source.path))
            header = header_of(source.path) if source.kind == "mosaic" else None
            digest.update(b"" if header is None else header.read_bytes())
        except OSError as error:
            raise ImageError(str(source.path), error.strerror or str(error)) from error
        return self.folder / f"{digest.hexdigest()[:32]}.safetensors"


def _fingerprint(path: Path) -> bytes:
    """Of a file's content, without reading all of it: its size, time of change, and both ends."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        head = file.read(_PROBE_BYTES)
        file.seek(max(0, status.st_size - _PROBE_BYTES))
        ends = head + file.read(_PROBE_BYTES)
    return f"{status.st_size} {status.st_mtime_ns} ".encode() + ends


@cache
def _code_version(kind: Kind) -> str:
    """Of the code that makes a rendition."""
    if kind == "photo":
        return f"{VERSION}"
    import rawpy

    return f"{VERSION} {rawpy.libraw_version!r}"


def _half(image: LinearImage) -> LinearImage:
    return LinearImage(image.pixels.half(), image.metadata)


def _checksum(pixels: Tensor) -> str:
    return f"{zlib.crc32(pixels.contiguous().numpy().tobytes()):08x}"


def _save(entry: Path, image: LinearImage) -> None:
    notes = {"metadata": json.dumps(dataclasses.asdict(image.metadata)), "crc32": _checksum(image.pixels)}
    with atomic_path(entry) as temporary:
        save_file({"pixels": image.pixels.contiguous()}, temporary, metadata=notes)


def _load(entry: Path) -> LinearImage | None:
    """What an entry holds; `None` where there is none, or where it is damaged."""
    if not entry.is_file():
        return None
    try:
        with safetensors.safe_open(entry, "pt") as file:
            notes, pixels = file.metadata() or {}, file.get_tensor("pixels")
    except (OSError, safetensors.SafetensorError):
        return None
    if notes.get("crc32") != _checksum(pixels):
        return None
    return LinearImage(pixels, _metadata(json.loads(notes["metadata"])))


def _metadata(fields: dict[str, Any]) -> RawMetadata:
    """From JSON, which knows no tuples."""
    for name in ("size", "white_balance", "black"):
        fields[name] = tuple(fields[name])
    fields["camera_to_srgb"] = cast(Matrix, tuple(map(tuple, fields["camera_to_srgb"])))
    return RawMetadata(**fields)
