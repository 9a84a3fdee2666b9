"""Sensor values and what is known about them, whatever file they come from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from attriqa.images import MIN_SIDE
from attriqa_envs.raw.demosaic import Pattern

Triple = tuple[float, float, float]
Matrix = tuple[Triple, Triple, Triple]

IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class RawMetadata:
    """What a file says about its picture, and what was assumed where it says nothing.

    Attributes:
        path: of the file.
        kind: ``"raw"`` (read by LibRaw), ``"mosaic"`` (headerless, with a JSON beside) or ``"photo"`` (display values,
            linearised).
        camera: make and model; ``None`` where unknown.
        white_balance: gains of red, green and blue that were applied, the smallest 1.
        white_balance_source: ``"as shot"``; ``"daylight"`` of the colour matrix, where the file has no or a zero one;
            ``"none"`` (gains of 1), where it has no matrix either.
        camera_to_srgb: white balanced camera RGB -> linear sRGB; rows sum to 1.
        matrix_source: ``"file"`` (or LibRaw's table of known cameras), or ``"none"``: the identity was taken.
        black: sensor value of no light, for red, green, blue and the second green.
        white: sensor value at which it clips.
        orientation: EXIF's 1 to 8, as stored; the pixels were turned upright.
        size: height and width in px of the upright picture at full size; of a photo, as it was read.
        iso: sensitivity; ``None`` where unknown, as the following.
        exposure_s: exposure time, seconds.
        aperture: f-number.
        baseline_exposure_ev: EV that a DNG asks converters to add; not applied, as LibRaw does not.
    """

    path: str
    kind: Literal["raw", "mosaic", "photo"]
    size: tuple[int, int]
    camera: str | None = None
    white_balance: Triple = (1.0, 1.0, 1.0)
    white_balance_source: Literal["as shot", "daylight", "none"] = "none"
    camera_to_srgb: Matrix = IDENTITY
    matrix_source: Literal["file", "none"] = "none"
    black: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    white: float = 1.0
    orientation: int = 1
    iso: float | None = None
    exposure_s: float | None = None
    aperture: float | None = None
    baseline_exposure_ev: float | None = None


@dataclass(frozen=True)
class Sensor:
    """Values as they left the sensor, cut to its active area.

    Attributes:
        values: ``(H,W)`` a mosaic, or ``(H,W,3)`` where the file is demosaiced already; uint16, or float32 where
            LibRaw demosaiced it, on the same scale.
        colors: indices 0 red, 1 green, 2 blue, 3 second green of the top left 2 x 2 sites, row by row; ``None`` for
            ``(H,W,3)``.
        crop: top, left, height and width of the picture within ``values``.
        metadata: the rest.
    """

    values: NDArray[Any]
    colors: tuple[int, int, int, int] | None
    crop: tuple[int, int, int, int]
    metadata: RawMetadata

    def color_at(self, y: int, x: int) -> int:
        """The colour index of a site of a mosaic."""
        if self.colors is None:
            raise ValueError("values: expected a mosaic; these are demosaiced")
        return self.colors[y % 2 * 2 + x % 2]

    def pattern_at(self, y: int, x: int) -> Pattern:
        """The Bayer pattern that starts at a site."""
        first, second, third, fourth = (
            1 if color == 3 else color for color in (self.color_at(y + i, x + j) for i in (0, 1) for j in (0, 1))
        )
        return first, second, third, fourth

    def check(self) -> None:
        """Refuse what cannot be developed.

        Raises:
            ValueError: a picture under 32 px a side, a crop outside the values, a white level not above black.
        """
        top, left, height, width = self.crop
        rows, columns = self.values.shape[:2]
        if min(height, width) < MIN_SIDE:
            raise ValueError(f"{width} x {height} px; sides must be at least {MIN_SIDE} px")
        if min(top, left) < 0 or top + height > rows or left + width > columns:
            raise ValueError(f"its crop {self.crop} leaves its {columns} x {rows} sensor")
        white, black = self.metadata.white, max(self.metadata.black)
        if not white > black:
            raise ValueError(f"its white level, {white:g}, is not above its black level, {black:g}")


def normalized_gains(values: Sequence[float]) -> Triple | None:
    """Gains of red, green and blue, the smallest made 1; `None` where one of the three is not positive and finite.

    More values are ignored: LibRaw gives a fourth, for the second green, that is 0 in most files.
    """
    red, green, blue = (float(value) for value in values[:3])
    if not all(math.isfinite(gain) and gain > 0 for gain in (red, green, blue)):
        return None
    least = min(red, green, blue)
    return red / least, green / least, blue / least
