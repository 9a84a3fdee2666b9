"""DNG files and headerless mosaics that tests write."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

# XYZ -> camera RGB of no camera that LibRaw knows.
COLOR_MATRIX = (0.65, -0.12, -0.09, -0.40, 1.17, 0.25, -0.05, 0.16, 0.61)
NEUTRAL = (0.5, 1.0, 0.625)  # camera response to white as shot: gains of 2, 1, 1.6
XTRANS = "GBGGRG RGRBGB GBGGRG GRGGBG BGBRGR GRGGBG"


def rationals(values: Sequence[float], denominator: int = 10_000) -> list[int]:
    return [number for value in values for number in (round(value * denominator), denominator)]


def write_dng(
    path: Path,
    values: NDArray[np.uint16],
    *,
    pattern: str = "RGGB",
    black: int | Sequence[int] = 512,
    white: int = 15_000,
    neutral: Sequence[float] | None = NEUTRAL,
    white_xy: Sequence[float] | None = None,
    color_matrix: Sequence[float] | None = COLOR_MATRIX,
    orientation: int = 1,
    active_area: Sequence[int] | None = None,
    crop: Sequence[int] | None = None,
    make: str = "Acme",
    model: str = "Acme One",
    compression: str | None = None,
    extra: Sequence[tuple[int, str, int, Any, bool]] = (),
) -> Path:
    """A DNG of a mosaic (H, W), or of demosaiced pixels (H, W, 3).

    ``active_area`` is top, left, bottom, right; ``crop`` left, top within it, width, height, as the tags have them.
    """
    tags: list[tuple[int, str, int, Any, bool]] = [
        (271, "s", 0, make, True),
        (272, "s", 0, model, True),
        (274, "H", 1, orientation, True),
        (50706, "B", 4, (1, 4, 0, 0), True),
        (50707, "B", 4, (1, 1, 0, 0), True),
        (50708, "s", 0, model, True),
        (50717, "H", 1 if values.ndim == 2 else 3, white if values.ndim == 2 else (white,) * 3, True),
    ]
    if values.ndim == 2:
        side = math.isqrt(len(pattern.replace(" ", "")))
        colors = bytes("RGB".index(letter) for letter in pattern.replace(" ", ""))
        tags += [(33421, "H", 2, (side, side), True), (33422, "B", side * side, colors, True)]
    if isinstance(black, int):
        count = 1 if values.ndim == 2 else 3
        tags.append((50714, "H", count, black if count == 1 else (black,) * 3, True))
    else:
        tags += [(50713, "H", 2, (2, 2), True), (50714, "H", 4, tuple(black), True)]
    if color_matrix is not None:
        tags += [(50721, "2i", 9, rationals(color_matrix), True), (50778, "H", 1, 21, True)]
    if neutral is not None:
        tags.append((50728, "2I", 3, rationals(neutral), True))
    if white_xy is not None:
        tags.append((50729, "2I", 2, rationals(white_xy), True))
    if active_area is not None:
        tags.append((50829, "I", 4, tuple(active_area), True))
    if crop is not None:  # as rationals, which converters write too
        tags += [(50719, "2I", 2, rationals(crop[:2], 1), True), (50720, "2I", 2, rationals(crop[2:], 1), True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    photometric = 32803 if values.ndim == 2 else 34892  # CFA, LinearRaw
    tifffile.imwrite(
        path, values, photometric=photometric, extratags=[*tags, *extra], compression=compression, metadata=None
    )
    return path


def set_compression(path: Path, code: int) -> None:
    """Let the file claim another compression than it has."""
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].aspage().tags[259].overwrite(code)


def write_mosaic(path: Path, values: NDArray[np.uint16], **fields: Any) -> Path:
    """``path`` and its JSON; ``fields`` replace those of the JSON, or leave one out where they are `None`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values.astype(">u2" if fields.get("byte_order") == "big" else "<u2").tofile(path)
    header: dict[str, Any] = {
        "width": values.shape[1],
        "height": values.shape[0],
        "pattern": "RGGB",
        "black": 512,
        "white": 15_000,
        "gains": [2.0, 1.0, 1.6],
    }
    header = {name: value for name, value in (header | fields).items() if value is not None}
    path.with_suffix(".json").write_text(json.dumps(header))
    return path


def smooth_scene(height: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    """Camera RGB (H, W, 3) in [0, 1] before white balance, with slow waves of colour and no edge."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [
        0.5 + 0.35 * np.sin(2 * np.pi * (fy * y + fx * x) + phase) for fy, fx, phase in rng.uniform(0.3, 1.2, (3, 3))
    ]
    scene: NDArray[np.float64] = np.stack(waves, -1) * np.array(NEUTRAL) * 0.9
    return scene


def mosaic_of(
    scene: NDArray[np.float64], pattern: str = "RGGB", black: int | Sequence[int] = 512, white: int = 15_000
) -> NDArray[np.uint16]:
    """What a sensor with that pattern stores of a scene; ``black`` by site."""
    letters = pattern.replace(" ", "")
    side = math.isqrt(len(letters))
    levels = np.broadcast_to(black, side * side)
    mosaic = np.empty(scene.shape[:2])
    for site, letter in enumerate(letters):
        y, x = divmod(site, side)
        plane = scene[y::side, x::side, "RGB".index(letter)]
        mosaic[y::side, x::side] = levels[site] + plane * (white - levels[site])
    return mosaic.round().clip(0, 65_535).astype(np.uint16)
