"""Headerless mosaics: ``NAME.raw`` (or ``.bin``) of 16-bit values, row by row, and ``NAME.json`` that describes them.

    {"width": 768, "height": 512, "pattern": "RGGB", "black": 600, "white": 15520, "gains": [1.949, 1, 1.344]}

| key               | meaning                                                                                     |
|-------------------|---------------------------------------------------------------------------------------------|
| `width`, `height` | px; the file holds exactly so many values                                                   |
| `pattern`         | colours of the top left 2 x 2 sites, row by row: RGGB, BGGR, GRBG or GBRG                   |
| `black`           | sensor value of no light: one number, or four in the order of `pattern`                     |
| `white`           | sensor value at which it clips                                                              |
| `gains`           | as-shot white balance: of red, green, blue; or of red, green, green, blue                   |
| `matrix`          | 3 x 3, white balanced camera RGB -> linear sRGB, rows that sum to 1; the identity if absent |
| `byte_order`      | "little" (if absent) or "big"                                                               |
| `offset`          | bytes to skip at the start of the file; 0 if absent                                         |
| `orientation`     | EXIF's 1 to 8; 1 if absent                                                                  |
| `camera`          | make and model; unknown if absent, as are `iso` and `exposure_s` (seconds)                  |
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from attriqa_envs.raw.demosaic import check_pattern
from attriqa_envs.raw.sensor import IDENTITY, Matrix, RawMetadata, Sensor, normalized_gains

_NEEDED = ("width", "height", "pattern", "black", "white", "gains")
_OPTIONAL = ("matrix", "byte_order", "offset", "orientation", "camera", "iso", "exposure_s")
_DTYPES = {"little": "<u2", "big": ">u2"}
SUFFIXES = frozenset({".raw", ".bin"})


def header_of(path: Path) -> Path | None:
    """The JSON that describes a headerless mosaic; `None` where there is none."""
    header = path.with_suffix(".json")
    return header if path.suffix.lower() in SUFFIXES and header.is_file() else None


def read_mosaic(path: Path, header: Path) -> Sensor:
    """Read a headerless mosaic.

    Raises:
        ValueError: the JSON is wrong, naming field, expectation and value, or the file has another size than it says.
        OSError: one of the two cannot be read.
    """
    fields = _fields(header)
    width, height, offset = fields["width"], fields["height"], fields.get("offset", 0)
    needed, held = 2 * width * height + offset, path.stat().st_size
    if held != needed:
        raise ValueError(
            f"{held} bytes; {header.name} says {width} x {height} values of 2 bytes after {offset}: {needed}"
        )
    stored = np.fromfile(path, _DTYPES[fields.get("byte_order", "little")], offset=offset)
    greens = iter((1, 3))
    first, second, third, fourth = (next(greens) if c == "G" else "RGB".index(c) for c in fields["pattern"])
    black = np.broadcast_to(fields["black"], 4).tolist()
    levels = dict(zip((first, second, third, fourth), map(float, black), strict=True))
    red, green, *_, blue = fields["gains"]
    balance = normalized_gains((red, green, blue))
    orientation = fields.get("orientation", 1)
    metadata = RawMetadata(
        path=str(path),
        kind="mosaic",
        size=(width, height) if orientation > 4 else (height, width),
        camera=fields.get("camera"),
        white_balance=balance or (1.0, 1.0, 1.0),
        white_balance_source="none" if balance is None else "as shot",
        camera_to_srgb=cast(Matrix, tuple(tuple(map(float, row)) for row in fields.get("matrix", IDENTITY))),
        matrix_source="file" if "matrix" in fields else "none",
        black=(levels[0], levels[1], levels[2], levels[3]),
        white=float(fields["white"]),
        orientation=orientation,
        iso=fields.get("iso"),
        exposure_s=fields.get("exposure_s"),
    )
    values = stored.reshape(height, width).astype(np.uint16)
    return Sensor(values, (first, second, third, fourth), (0, 0, height, width), metadata)


def _fields(header: Path) -> dict[str, Any]:
    """The JSON's fields, each of the type and range that the table at the top gives."""
    try:
        fields = json.loads(header.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{header.name}: expected a JSON object, got {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{header.name}: expected a JSON object, got a {type(fields).__name__}")  # noqa: TRY004
    missing = [name for name in _NEEDED if name not in fields]
    unknown = [name for name in fields if name not in (*_NEEDED, *_OPTIONAL)]
    if missing or unknown:
        raise ValueError(
            f"{header.name}: expected {', '.join(_NEEDED)} and, as far as known, {', '.join(_OPTIONAL)};"
            f" missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    for name, (holds, expected) in _EXPECTED.items():
        if name in fields and not holds(fields[name]):
            raise ValueError(f"{header.name}: {name}: expected {expected}, got {fields[name]!r:.80}")
    return cast(dict[str, Any], fields)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _numbers(value: object, counts: Sequence[int]) -> bool:
    return isinstance(value, list) and len(value) in counts and all(map(_number, value))


def _bayer(value: object) -> bool:
    if not isinstance(value, str) or len(value) != 4 or set(value) - set("RGB"):
        return False
    first, second, third, fourth = ("RGB".index(letter) for letter in value)
    try:
        check_pattern((first, second, third, fourth))
    except ValueError:
        return False
    return True


def _rows(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 3 or not all(_numbers(row, (3,)) for row in value):
        return False
    return all(abs(sum(row) - 1) < 1e-2 for row in value)


_EXPECTED = {
    "width": (_whole, "a whole number of px"),
    "height": (_whole, "a whole number of px"),
    "pattern": (_bayer, "RGGB, BGGR, GRBG or GBRG"),
    "black": (lambda value: _number(value) or _numbers(value, (4,)), "a number, or four"),
    "white": (_number, "a number"),
    "gains": (lambda value: _numbers(value, (3, 4)), "three or four numbers"),
    "matrix": (_rows, "three rows of three numbers that sum to 1"),
    "byte_order": (lambda value: value in ("little", "big"), "little or big"),
    "offset": (_whole, "a whole number of bytes"),
    "orientation": (lambda value: _whole(value) and 1 <= value <= 8, "1 to 8"),
    "camera": (lambda value: isinstance(value, str), "a text"),
    "iso": (_number, "a number"),
    "exposure_s": (_number, "a number of seconds"),
}
