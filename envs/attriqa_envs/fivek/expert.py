"""Expert renderings: 16-bit RGB TIFFs with their ICC profile to sRGB, in floating point.

Pillow reads 8 of the 16 bits and LittleCMS is not made to convert the rest, so the profile is evaluated here: three
tone curves and a matrix to the profile connection space (ICC.1:2022, the three-component matrix-based model), which is
what RGB working spaces as ProPhoto, Adobe RGB and sRGB are. Colours outside sRGB are clipped, as relative colorimetric
does.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attriqa.images import MIN_SIDE, ImageError, resize_shorter
from attriqa_envs.isp.color import encode
from attriqa_envs.raw import upright
from attriqa_envs.raw.bank import centre
from attriqa_envs.raw.color import apply_matrix

Curve = NDArray[np.float32]

# Linear ProPhoto (ROMM RGB, ANSI/I3A IT10.7666) -> XYZ under D50, and sRGB under D50 (Bradford) as in ICC profiles.
_PROPHOTO_TO_XYZ = [[0.7976749, 0.1351917, 0.0313534], [0.2880402, 0.7118741, 0.0000857], [0.0, 0.0, 0.8252100]]
_SRGB_TO_XYZ_D50 = [
    [0.4360747, 0.3850649, 0.1430804],
    [0.2225045, 0.7168786, 0.0606169],
    [0.0139322, 0.0971045, 0.7141733],
]
_XYZ_D50_TO_SRGB = torch.linalg.inv(torch.tensor(_SRGB_TO_XYZ_D50, dtype=torch.float64))
_STEPS = 65536


@dataclass(frozen=True)
class Expert:
    """An expert's rendering.

    Attributes:
        pixels: ``(3,H,W)`` float32, sRGB in [0,1], upright.
        profile: ``"embedded"``, or ``"assumed ProPhoto"`` where the file has none: FiveK's renderings are ProPhoto, and
            read as sRGB they would look flat.
        size: height and width of the file's picture, upright.
        bits: per sample, 8 or 16.
    """

    pixels: Tensor
    profile: Literal["embedded", "assumed ProPhoto"]
    size: tuple[int, int]
    bits: int


def read_expert(path: Path | str, *, shorter_edge: int | None = None) -> Expert:
    """Read a TIFF of 8 or 16 bits per sample, RGB; resized, where asked to, in linear light with antialiasing.

    Args:
        path: of the file.
        shorter_edge: px of the shorter side; `None`: as it is.

    Raises:
        ImageError: whatever is wrong with the file.
        ValueError: ``shorter_edge`` is not an integer of at least 32.
    """
    if shorter_edge is not None and (not isinstance(shorter_edge, int) or shorter_edge < MIN_SIDE):
        raise ValueError(f"shorter_edge: expected an integer of at least {MIN_SIDE} px; got {shorter_edge!r}")
    try:
        values, icc, orientation = _tiff(Path(path))
        curves, to_xyz = _prophoto() if icc is None else read_profile(icc)
    except ImportError:
        raise
    except Exception as error:  # decoders answer hostile bytes with every kind of exception, MemoryError included
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(str(path), " ".join(text.split())) from error
    bits = 8 * values.dtype.itemsize
    index = values if bits == 16 else values.astype(np.uint16) * np.uint16(257)
    linear = torch.from_numpy(np.stack([curve[index[..., channel]] for channel, curve in enumerate(curves)]))
    linear = upright(linear, orientation).contiguous()
    size = (linear.shape[1], linear.shape[2])
    if shorter_edge is not None:
        linear = resize_shorter(linear[None], shorter_edge)[0]
    srgb = encode(apply_matrix(linear, _XYZ_D50_TO_SRGB @ torch.from_numpy(to_xyz)).clamp(0, 1))
    return Expert(srgb.clamp_(0, 1), "assumed ProPhoto" if icc is None else "embedded", size, bits)


def _tiff(path: Path) -> tuple[NDArray[Any], bytes | None, int]:
    """Pixels ``(H,W,3)`` of uint8 or uint16, the profile, and EXIF's orientation."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0].aspage()
        profile, orientation = page.tags.valueof(34675), page.tags.valueof(274, 1)
        if page.photometric != tifffile.PHOTOMETRIC.RGB or page.dtype not in (np.uint8, np.uint16):
            kind = getattr(page.photometric, "name", page.photometric)
            raise ValueError(f"expected RGB of 8 or 16 bits; got {kind} of {page.bitspersample} bits")
        if min(page.imagelength, page.imagewidth) < MIN_SIDE:
            raise ValueError(f"{page.imagewidth} x {page.imagelength} px; sides must be at least {MIN_SIDE} px")
        ends = zip(page.dataoffsets, page.databytecounts, strict=True)
        if not page.databytecounts or max(start + count for start, count in ends) > file.filehandle.size:
            raise ValueError("truncated: its pixels go on behind its end")
        values = page.asarray()
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        values = np.moveaxis(values, 0, -1)
    return values[..., :3], bytes(profile) if profile else None, int(orientation) if 1 <= orientation <= 8 else 1


def read_profile(icc: bytes) -> tuple[list[Curve], NDArray[np.float64]]:
    """The tone curves and the matrix of an RGB profile.

    Returns:
        Three curves of 65,536 values in [0,1], device value -> linear light; and ``(3,3)``, linear -> XYZ under D50.

    Raises:
        ValueError: the profile is broken, of another colour space, or made of tables, not of curves and a matrix.
    """
    if len(icc) < 132 or icc[36:40] != b"acsp":
        raise ValueError("broken ICC profile")
    if icc[16:20] != b"RGB ":
        raise ValueError(f"an ICC profile of {icc[16:20].decode('latin-1').strip()}; expected RGB")
    if icc[20:24] != b"XYZ ":
        raise ValueError("an ICC profile of tables; expected one of curves and a matrix, as RGB working spaces have")
    tags = {}
    (count,) = struct.unpack_from(">I", icc, 128)
    for number in range(min(count, 100)):
        name, start, length = struct.unpack_from(">4sII", icc, 132 + 12 * number)
        tags[name] = icc[start : start + length]
    try:
        columns = [np.frombuffer(tags[name], ">i4", 3, 8) / 65536 for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
        curves = [_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")]
    except (KeyError, ValueError, struct.error) as error:
        raise ValueError(f"broken ICC profile ({error})") from error
    matrix = np.stack(columns, 1)
    if abs(np.linalg.det(matrix)) < 1e-6:
        raise ValueError("broken ICC profile (its colours lie on a plane)")
    return curves, matrix


def _curve(tag: bytes) -> Curve:
    """``curv`` or ``para`` (ICC.1:2022, 10.6 and 10.18), sampled at every 16-bit value."""
    x = np.linspace(0, 1, _STEPS)
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            return x.astype(np.float32)
        values = np.frombuffer(tag, ">u2", count, 12)
        if count == 1:
            return (x ** (int(values[0]) / 256)).astype(np.float32)
        return np.interp(x, np.linspace(0, 1, count), values / 65535).astype(np.float32)
    if tag[:4] == b"para":
        (kind,) = struct.unpack_from(">H", tag, 8)
        if kind > 4:
            raise ValueError(f"parametric curve of type {kind}")
        given = np.frombuffer(tag, ">i4", (1, 3, 4, 5, 7)[kind], 12) / 65536
        return _parametric(x, kind, [float(value) for value in given])
    raise ValueError(f"a tone curve of type {tag[:4].decode('latin-1')}")


def _parametric(x: NDArray[np.float64], kind: int, given: list[float]) -> Curve:
    """``(a x + b)^g + e`` from ``d`` on, ``c x + f`` below; the types leave some of the constants out."""
    gamma, a, b, c, d, e, f = *given, *(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)[len(given) - 1 :]
    if kind in (1, 2):
        c, d, e, f = 0.0, -b / a, c, c  # the third constant of type 2 is added on both sides
    curve = np.where(x >= d, np.maximum(a * x + b, 0) ** gamma + e, c * x + f)
    return curve.clip(0, 1).astype(np.float32)


def _prophoto() -> tuple[list[Curve], NDArray[np.float64]]:
    """ROMM RGB: gamma 1.8, straight below 16/512."""
    x = np.linspace(0, 1, _STEPS)
    curve = np.where(x < 16 / 512, x / 16, x**1.8).astype(np.float32)
    return [curve] * 3, np.array(_PROPHOTO_TO_XYZ)


def expert_square(path: Path, side: int) -> Tensor:
    """The central square ``(1, 3, side, side)`` of an expert's rendering, sRGB in [0, 1].

    Raises:
        ImageError: the file cannot be read, or is so long that its shorter side falls under ``side``.
    """
    pixels = read_expert(path, shorter_edge=side).pixels
    if min(pixels.shape[1:]) < side:
        raise ImageError(str(path), f"too long a panorama for a square of {side} px")
    return centre(pixels[None], side).contiguous()
