"""Result files of every recipe: plain JSON, and files that are there whole or not at all."""

import dataclasses
import json
import os
import typing
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types: a path becomes a string, a tuple a list."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config), default=_plain)))


def _plain(value: Any) -> Any:
    """What JSON writes for a value it does not know. NumPy's numbers stay numbers: ``str`` would quote them."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no place in a JSON file: {value!r:.80}")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path`` that is synced and takes its place only when the block ends well.

    Whatever happens inside, a reader of ``path`` sees the old file or the new one, whole. The new file has the
    permissions of the one it replaces, or those of any new file; a symbolic link stays and its target is replaced. Only
    a process that is killed leaves its temporary file (``.NAME.*.tmp``), which nothing reads.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    temporary.touch(exist_ok=False)
    try:
        mode = (path if path.exists() else temporary).stat().st_mode & 0o777
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the system can do so."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    Paths become strings and NumPy numbers and arrays become numbers and lists.

    Raises:
        ValueError: a number in it is NaN or infinite, which JSON cannot hold.
        TypeError: it holds something else that JSON cannot hold, as a tensor.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n"
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
