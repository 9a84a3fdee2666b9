"""Raw files through LibRaw: sensor values, levels, white balance and colour matrix."""

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from attriqa.images import MAX_FILE_BYTES
from attriqa_envs.raw.mosaic import SUFFIXES as MOSAIC_SUFFIXES
from attriqa_envs.raw.sensor import IDENTITY, Matrix, RawMetadata, Sensor, Triple, normalized_gains
from attriqa_envs.raw.tags import Area, RawTags, read_tags

_EXIF_OF_FLIP = (1, 2, 4, 3, 5, 8, 6, 7)  # LibRaw's flip, a bit each for columns, rows and the transpose -> EXIF


def read_libraw(path: Path) -> Sensor:
    """Read a raw file.

    Raises:
        ValueError: LibRaw cannot read it, or its colours are not red, green and blue.
        OSError: it cannot be opened.
    """
    import rawpy

    if not 0 < path.stat().st_size <= MAX_FILE_BYTES:
        raise ValueError(f"a file of {path.stat().st_size} bytes; expected 1 to {MAX_FILE_BYTES}")
    if path.suffix.lower() in MOSAIC_SUFFIXES and not _has_header(path):
        # LibRaw would take it for the camera, of a few headerless ones that it knows, whose files have that size.
        raise ValueError(f"a headerless mosaic needs a {path.with_suffix('.json').name} beside it")
    tags = read_tags(path)
    try:
        with rawpy.imread(str(path)) as raw:
            return _of_libraw(raw, tags, path)
    except rawpy.LibRawError as error:
        reason = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else error
        raise ValueError(f"LibRaw cannot read it: {reason}{_hint(tags)}") from error


def _has_header(path: Path) -> bool:
    """Whether a ``.raw`` is one of Panasonic's or Leica's."""
    with path.open("rb") as file:
        return file.read(2) in (b"II", b"MM")


def _hint(tags: RawTags) -> str:
    if tags.compression in (8, 32946, 52546):
        name = "JPEG XL" if tags.compression == 52546 else "deflate"
        return f" (its pixels are compressed with {name}; convert it to an uncompressed or lossless JPEG DNG)"
    return ""


def _of_libraw(raw: Any, tags: RawTags, path: Path) -> Sensor:
    values, colors, area = _values(raw, tags)
    matrix = np.array(raw.color_matrix, np.float64)[:, :3]
    known = bool(np.isfinite(matrix).all()) and abs(float(np.linalg.det(matrix))) > 1e-6
    gains, source = _white_balance(raw, tags, known)
    top, left, height, width = _crop(raw, tags, area)
    orientation = _EXIF_OF_FLIP[raw.sizes.flip & 7]
    other = raw.other
    metadata = RawMetadata(
        path=str(path),
        kind="raw",
        size=(width, height) if orientation > 4 else (height, width),
        camera=tags.camera,
        white_balance=gains,
        white_balance_source=source,
        camera_to_srgb=cast(Matrix, tuple(tuple(row) for row in matrix.tolist())) if known else IDENTITY,
        matrix_source="file" if known else "none",
        black=_black(raw, tags, colors),
        white=float(raw.white_level),
        orientation=orientation,
        iso=_positive(other.iso_speed),
        exposure_s=_positive(other.shutter_speed),
        aperture=_positive(other.aperture),
        baseline_exposure_ev=tags.baseline_exposure_ev,
    )
    return Sensor(values, colors, (top - area[0], left - area[1], height, width), metadata)


def _values(raw: Any, tags: RawTags) -> tuple[NDArray[Any], tuple[int, int, int, int] | None, Area]:
    """Sensor values of the active area, their colours, and that area: top, left, height, width on the sensor."""
    import rawpy

    if raw.num_colors != 3:
        raise ValueError(f"a sensor of {raw.num_colors} colours ({raw.color_desc.decode()}); expected red, green, blue")
    sizes = raw.sizes
    area = sizes.top_margin, sizes.left_margin, sizes.height, sizes.width  # LibRaw moves these to even numbers
    if tags.active_area is not None and tags.raw_size == (sizes.raw_height, sizes.raw_width):
        area = tags.active_area
    top, left, height, width = area
    if raw.raw_type != rawpy.RawType.Flat:
        return raw.raw_image[top : top + height, left : left + width, :3].copy(), None, area
    plain = raw.raw_pattern is not None and raw.raw_pattern.shape == (2, 2)
    if not plain or tags.staggered or sizes.pixel_aspect != 1:
        pixels = _demosaiced(raw)
        return pixels, None, (sizes.top_margin, sizes.left_margin, *pixels.shape[:2])
    sites = ((top + y - sizes.top_margin, left + x - sizes.left_margin) for y in (0, 1) for x in (0, 1))
    first, second, third, fourth = (int(raw.raw_pattern[y % 2, x % 2]) for y, x in sites)
    return raw.raw_image[top : top + height, left : left + width].copy(), (first, second, third, fourth), area


def _demosaiced(raw: Any) -> NDArray[np.float32]:
    """X-Trans, shifted rows, oblong pixels, by LibRaw: camera RGB on the sensor's own scale."""
    import rawpy

    pixels = raw.postprocess(
        output_color=rawpy.ColorSpace.raw,
        user_wb=[1.0, 1.0, 1.0, 1.0],
        gamma=(1, 1),
        no_auto_bright=True,
        adjust_maximum_thr=0.0,
        output_bps=16,
        user_flip=0,
    )
    black, white = float(raw.black_level_per_channel[0]), float(raw.white_level)
    scaled: NDArray[np.float32] = pixels.astype(np.float32) * np.float32((white - black) / 65535) + np.float32(black)
    return scaled


def _crop(raw: Any, tags: RawTags, area: Area) -> Area:
    """The picture as its maker crops it, on the sensor; LibRaw's figures are rounded to whole quads of the mosaic."""
    if tags.crop is not None and tags.active_area is not None and area[:2] == tags.active_area[:2]:
        top, left, height, width = tags.crop
        top, left = top + area[0], left + area[1]
    else:
        sizes = raw.sizes
        top, left, height, width = sizes.crop_top_margin, sizes.crop_left_margin, sizes.crop_height, sizes.crop_width
    inside = top >= area[0] and left >= area[1] and top + height <= area[0] + area[2]
    if inside and left + width <= area[1] + area[3] and min(height, width) > 0:
        return top, left, height, width
    return area


def _black(raw: Any, tags: RawTags, colors: tuple[int, ...] | None) -> tuple[float, float, float, float]:
    """Black levels by colour; LibRaw takes those of a 2 x 2 block from wrong sites where the active area is odd."""
    levels = [float(level) for level in raw.black_level_per_channel]
    if colors is not None and len(tags.black_quad) == 4 and tags.active_area is not None:
        for color, level in zip(colors, tags.black_quad, strict=True):
            levels[color] = level
    first, second, third, fourth = levels[:4]
    return first, second, third, fourth if colors is not None else second


def _white_balance(raw: Any, tags: RawTags, known: bool) -> tuple[Triple, Literal["as shot", "daylight", "none"]]:
    """As-shot gains; see `RawMetadata` for what stands in for them."""
    shot = normalized_gains(raw.camera_whitebalance)
    daylight = normalized_gains(raw.daylight_whitebalance)
    if shot is not None:
        return shot, "as shot"
    if daylight is None or not known:
        return (1.0, 1.0, 1.0), "none"
    # A white given as a chromaticity LibRaw works into the matrix, and so into what it calls daylight.
    return daylight, "daylight" if tags.white_xy is None else "as shot"


def _positive(value: float) -> float | None:
    return float(value) if value > 0 else None
