"""Folders of raws or photos, and a cache of their linear light at tuning size.

Decoding a raw file takes hundreds of times as long as reading its rendition, so it is done once: each rendition is
kept as float16 in a safetensors file of its own. Its name depends on the file's content (size, time of change, first
and last bytes), the options and the code that decodes, so nothing stale is ever read. Files appear whole or not at all,
and one that does not fit its checksum is made again.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import safetensors
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from attriqa import images
from attriqa.images import ImageError
from attriqa.recipe import atomic_path
from attriqa_envs import camera_color, demosaic, isp_color, raw, raw_libraw, raw_mosaic, raw_tags, sensor
from attriqa_envs.raw import LinearImage, decode
from attriqa_envs.raw_mosaic import header_of
from attriqa_envs.sensor import Matrix, RawMetadata

Kind = Literal["raw", "mosaic", "photo"]
_RAW_NAMES = "3fr arw bin cr2 cr3 crw dcr dng erf iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
RAW_SUFFIXES = frozenset(f".{name}" for name in _RAW_NAMES.split())
_PROBE_BYTES = 1 << 16  # of each end of a file that go into its key
_CODE: tuple[ModuleType, ...] = (camera_color, demosaic, raw, raw_libraw, raw_mosaic, raw_tags, sensor)
_CODE_OF_PHOTOS: tuple[ModuleType, ...] = (images, isp_color)


@dataclass(frozen=True)
class Source:
    """A file that can be read as linear light: a raw file, a headerless mosaic with its JSON, or a photo."""

    path: Path
    kind: Kind

    def read(self, shorter_edge: int | None = None) -> LinearImage:
        """Read it, ``shorter_edge`` px on its shorter side; see `read_linear`.

        Raises:
            ImageError: whatever is wrong with the file.
        """
        return read_linear(self, shorter_edge=shorter_edge)


@dataclass(frozen=True)
class Loaded:
    """What a set of sources gave.

    Attributes:
        images: float16, in the order of the sources, without those that cannot be read.
        failures: of those, with path and reason.
    """

    images: list[LinearImage]
    failures: list[ImageError]


def find_images(root: Path | str, *, kind: Literal["any", "raw", "photo"] = "any") -> list[Source]:
    """The pictures in a folder and the folders in it, sorted by path.

    Args:
        root: a folder, or one file.
        kind: ``"raw"``: raw files and headerless mosaics. ``"photo"``: what `attriqa.images.read` takes. ``"any"``:
            raws where there are some, photos otherwise: a photo beside raws is a rendering of one of them.

    Raises:
        ValueError: ``root`` does not exist, or holds nothing of that kind; it says what it holds.
    """
    root = Path(root)
    if kind not in ("any", "raw", "photo"):
        raise ValueError(f"kind: expected any, raw or photo; got {kind!r}")
    if not root.exists():
        raise ValueError(f"root: expected a folder of raw files or photos; there is no {root}")
    raws = [Source(path, "raw" if header_of(path) is None else "mosaic") for path in _raw_files(root)]
    photos = [Source(path, "photo") for path in images.find(root, recursive=True) if not _is_raw(path)]
    found = raws if kind == "raw" else photos if kind == "photo" else raws or photos
    if not found:
        wanted = {"raw": "raw files", "photo": "photos"}.get(kind, "raw files or photos")
        raise ValueError(f"root: expected {wanted} in {root}; found {len(raws)} raw files and {len(photos)} photos")
    return found


def _is_raw(path: Path) -> bool:
    return path.suffix.lower() in RAW_SUFFIXES


def _raw_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if _is_raw(root) else []
    found = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        new = os.path.realpath(folder) not in seen
        seen.add(os.path.realpath(folder))
        folders[:] = [name for name in folders if new and not name.startswith(".")]
        names = names if new else []
        found += [Path(folder, name) for name in names if not name.startswith(".") and _is_raw(Path(name))]
    # A .bin is a mosaic only where a JSON says so; much else is called that.
    return sorted(path for path in found if path.suffix.lower() != ".bin" or header_of(path) is not None)


def read_linear(source: Source, *, shorter_edge: int | None = None) -> LinearImage:
    """Linear light of a source, float32; a photo's sRGB values are decoded, its tone curve stays in it.

    Raises:
        ImageError: whatever is wrong with the file.
        ValueError: ``shorter_edge`` is not an integer of at least 32.
    """
    if source.kind != "photo":
        return decode(source.path, shorter_edge=shorter_edge)
    pixels = isp_color.decode(images.read(source.path, shorter_edge=shorter_edge))
    height, width = pixels.shape[1:]
    return LinearImage(pixels, RawMetadata(str(source.path), "photo", (height, width)))


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

    def read(self, source: Source) -> LinearImage:
        """The rendition of a source, float16; decoded where it is not in the cache.

        Raises:
            ImageError: whatever is wrong with the file.
        """
        if self.folder is None:
            return _half(read_linear(source, shorter_edge=self.shorter_edge))
        entry = self.entry(source)
        kept = _load(entry)
        if kept is not None:  # the file may have moved since
            return LinearImage(kept.pixels, dataclasses.replace(kept.metadata, path=str(source.path)))
        image = _half(read_linear(source, shorter_edge=self.shorter_edge))
        _save(entry, image)
        return image

    def read_all(self, sources: Sequence[Source], *, threads: int | None = None, progress: bool = True) -> Loaded:
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

    def entry(self, source: Source) -> Path:
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
    """Of the code that makes a rendition: whoever changes a line of it need not think of the cache."""
    digest = hashlib.sha256()
    for module in _CODE_OF_PHOTOS if kind == "photo" else _CODE:
        digest.update(inspect.getsource(module).encode())
    if kind == "raw":
        import rawpy

        digest.update(repr(rawpy.libraw_version).encode())
    return digest.hexdigest()


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
