"""Raw files and photos in folders, and each as linear light."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from attriqa import images
from attriqa_envs.isp import color as isp_color
from attriqa_envs.raw.decode import LinearImage, decode
from attriqa_envs.raw.mosaic import header_of
from attriqa_envs.raw.sensor import RawMetadata

Kind = Literal["raw", "mosaic", "photo"]
_RAW_NAMES = "3fr arw bin cr2 cr3 crw dcr dng erf iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
RAW_SUFFIXES = frozenset(f".{name}" for name in _RAW_NAMES.split())


@dataclass(frozen=True)
class ImageFile:
    """A file that can be read as linear light: a raw file, a headerless mosaic with its JSON, or a photo."""

    path: Path
    kind: Kind

    def read(self, shorter_edge: int | None = None) -> LinearImage:
        """Its linear light, float32; a photo's sRGB values are decoded, its tone curve stays in it.

        Args:
            shorter_edge: px of the shorter side; `None`: as it is.

        Raises:
            ImageError: whatever is wrong with the file.
            ValueError: ``shorter_edge`` is not an integer of at least 32.
        """
        if self.kind != "photo":
            return decode(self.path, shorter_edge=shorter_edge)
        pixels = isp_color.decode(images.read(self.path, shorter_edge=shorter_edge))
        height, width = pixels.shape[1:]
        return LinearImage(pixels, RawMetadata(str(self.path), "photo", (height, width)))


def find_images(root: Path | str, *, kind: Literal["any", "raw", "photo"] = "any") -> list[ImageFile]:
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
    raws = [ImageFile(path, "raw" if header_of(path) is None else "mosaic") for path in _raw_files(root)]
    photos = [ImageFile(path, "photo") for path in images.find(root, recursive=True) if not _is_raw(path)]
    files = raws if kind == "raw" else photos if kind == "photo" else raws or photos
    if not files:
        wanted = {"raw": "raw files", "photo": "photos"}.get(kind, "raw files or photos")
        raise ValueError(f"root: expected {wanted} in {root}; found {len(raws)} raw files and {len(photos)} photos")
    return files


def _is_raw(path: Path) -> bool:
    return path.suffix.lower() in RAW_SUFFIXES


def _raw_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if _is_raw(root) else []
    paths = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        new = os.path.realpath(folder) not in seen
        seen.add(os.path.realpath(folder))
        folders[:] = [name for name in folders if new and not name.startswith(".")]
        names = names if new else []
        paths += [Path(folder, name) for name in names if not name.startswith(".") and _is_raw(Path(name))]
    # A .bin is a mosaic only where a JSON says so; much else is called that.
    return sorted(path for path in paths if path.suffix.lower() != ".bin" or header_of(path) is not None)


_RENAMED: dict[str, Any] = {"Source": ImageFile, "read_linear": ImageFile.read}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(f"{__name__}.{name} is now {new.__qualname__}", DeprecationWarning, stacklevel=2)
        return new
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
