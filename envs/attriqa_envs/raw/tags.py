"""What LibRaw does not tell of a TIFF-based raw file (DNG, NEF, CR2, ...), read from its tags.

LibRaw rounds a DNG's active area and default crop to whole quads of the mosaic (one pixel off against every other
converter), and its Python binding tells neither make and model nor whether a white was given as a chromaticity.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Area = tuple[int, int, int, int]  # top, left, height, width in px

_CFA, _LINEAR_RAW = 32803, 34892  # PhotometricInterpretation
_DNG_VERSION = 50706


@dataclass(frozen=True)
class RawTags:
    """Tags of the file and, for a DNG, of its raw picture; what is absent or makes no sense is `None` or empty.

    Attributes:
        camera: make and model.
        compression: TIFF's code.
        raw_size: height and width of the whole sensor.
        active_area: of the sensor, on it.
        crop: DefaultCrop, within the active area.
        black_quad: black levels of a 2 x 2 block, from the active area's top left.
        white_xy: chromaticity of the as-shot white.
        baseline_exposure_ev: EV.
        staggered: the mosaic's rows or columns are shifted (Fuji's SuperCCD).
    """

    camera: str | None = None
    compression: int | None = None
    raw_size: tuple[int, int] | None = None
    active_area: Area | None = None
    crop: Area | None = None
    black_quad: tuple[float, ...] = ()
    white_xy: tuple[float, float] | None = None
    baseline_exposure_ev: float | None = None
    staggered: bool = False


def read_tags(path: Path) -> RawTags:
    """Read them; a file that is no TIFF, or a broken one, has none: whether its pixels are whole, LibRaw says."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(path) as file:
            first = file.pages[0].aspage()
            if _DNG_VERSION not in first.tags:
                return RawTags(camera=_camera(first.tags))
            raw = next((page for page in _pages(first) if page.photometric in (_CFA, _LINEAR_RAW)), None)
            return RawTags(camera=_camera(first.tags)) if raw is None else _of_dng(first.tags, raw.tags)
    except Exception:  # hostile bytes raise everything, and metadata is no reason to refuse a picture
        return RawTags()


def _pages(first: Any) -> Iterator[Any]:
    yield first
    for page in first.pages or ():
        if not int(page.tags.valueof(254, 0)) & 1:  # NewSubfileType: no preview
            yield page.aspage()


def _of_dng(shared: Any, raw: Any) -> RawTags:
    height, width = int(raw.valueof(257)), int(raw.valueof(256))
    top, left, bottom, right = (int(value) for value in raw.valueof(50829, (0, 0, height, width)))
    valid = 0 <= top < bottom <= height and 0 <= left < right <= width
    active = (top, left, bottom - top, right - left) if valid else (0, 0, height, width)
    origin, size = _numbers(raw, 50719), _numbers(raw, 50720)
    crop = None
    if len(origin) == len(size) == 2:
        crop = (round(origin[1]), round(origin[0]), round(size[1]), round(size[0]))
    black, block = _numbers(raw, 50714), _numbers(raw, 50713)
    xy, baseline = _numbers(shared, 50729), _numbers(shared, 50730)
    return RawTags(
        camera=_camera(shared),
        compression=int(raw.valueof(259, 1)),
        raw_size=(height, width),
        active_area=active,
        crop=crop,
        black_quad=black if block == (2.0, 2.0) and len(black) == 4 else (),
        white_xy=(xy[0], xy[1]) if len(xy) == 2 and min(xy) > 0 and sum(xy) < 1 else None,
        baseline_exposure_ev=baseline[0] if len(baseline) == 1 else None,
        staggered=raw.valueof(50711, 1) != 1,
    )


def _numbers(tags: Any, code: int) -> tuple[float, ...]:
    """A tag's values; empty where it is absent or one of them is not finite."""
    tag = tags.get(code)
    if tag is None:
        return ()
    values = tuple(float(number) for number in (tag.value if isinstance(tag.value, tuple) else (tag.value,)))
    if tag.dtype in (5, 10):  # rationals come as numerator, denominator, numerator, ...
        if 0 in values[1::2]:
            return ()
        values = tuple(above / below for above, below in zip(values[::2], values[1::2], strict=True))
    return values if all(map(math.isfinite, values)) else ()


def _camera(tags: Any) -> str | None:
    make, model = (str(tags.valueof(code, "")).strip("\0 ") for code in (271, 272))
    name = model if model.lower().startswith(make.lower()) else f"{make} {model}"
    return name.strip() or str(tags.valueof(50708, "")).strip("\0 ") or None
