"""Image files in folders."""

import os
from collections.abc import Iterable
from pathlib import Path

_NAMES = "png apng jpg jpeg jpe jfif mpo webp gif bmp tif tiff jp2 jpx j2k avif ppm pgm pbm pnm"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())  # of what `find` takes for an image inside a folder


def find(paths: str | Path | Iterable[str | Path], *, recursive: bool = False) -> list[Path]:
    """Image files among ``paths`` and inside the folders among them, sorted, each once.

    A named file is kept whatever its suffix. Inside folders, files count by `SUFFIXES` in any case (a dangling link
    too: reading it tells), and names that begin with a dot do not. Links to folders are followed, each folder once.

    Raises:
        FileNotFoundError: naming the path that does not exist.
    """
    files: dict[str, Path] = {}
    seen: set[Path] = set()
    pending = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    for path in pending:  # which grows by the folders inside folders
        if path.is_dir():
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            for entry in sorted(entry for entry in path.iterdir() if not entry.name.startswith(".")):
                if entry.is_dir():
                    pending += [entry] if recursive else []
                elif entry.suffix.lower() in SUFFIXES:
                    files.setdefault(os.path.abspath(entry), entry)  # noqa: PTH100 (resolve would merge links)
        elif path.exists():
            files.setdefault(os.path.abspath(path), path)  # noqa: PTH100
        else:
            raise FileNotFoundError(f"no such file or folder: {path}")
    return sorted(files.values())
