"""A small FiveK: its true layout, DNGs that LibRaw opens, 16-bit ProPhoto TIFFs with a profile."""

import struct
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from tests.support import dng_files

NAMES = {  # number -> name, two of them with spaces, as in the data set
    1: "a0001-jmac_DSC1459",
    700: "a0700-dgw_005",
    1127: "a1127-2004-06-08 12-41-28 CRW_0371",
    4999: "a4999-Duggan_090201_4999",
    5000: "a5000-kme 0204",
}
FOLDERS = {1: "HQa1to700", 700: "HQa1to700", 1127: "HQa701to1400", 4999: "HQa4201to5000", 5000: "HQa4201to5000"}
EMPTY = ("HQa1400to2100", "HQa2101to2800", "HQa2801to3500", "HQa3501to4200")
HEIGHT, WIDTH = 60, 90  # of the pictures, upright, all but 5000, which was held upright

PROPHOTO = ((0.79766, 0.28804, 0.0), (0.13519, 0.71187, 0.0), (0.03134, 0.00009, 0.82491))  # columns: XYZ of R, G, B
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def gamma_curve(gamma: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"


def table_curve(values: NDArray[np.float64]) -> bytes:
    table = (values * 65535).round().astype(">u2").tobytes()
    return b"curv" + struct.pack(">II", 0, len(values)) + table + b"\0" * (-len(table) % 4)


def parametric_curve(kind: int, *numbers: float) -> bytes:
    return (
        b"para"
        + struct.pack(">IHH", 0, kind, 0)
        + struct.pack(f">{len(numbers)}i", *(round(n * 65536) for n in numbers))
    )


def profile(
    columns: tuple[tuple[float, ...], ...] = PROPHOTO,
    curve: bytes | None = None,
    space: bytes = b"RGB ",
    pcs: bytes = b"XYZ ",
) -> bytes:
    """An ICC profile of three curves and a matrix, which LittleCMS reads too."""
    curve = gamma_curve(1.8) if curve is None else curve

    def point(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    d50 = (0.9642, 1.0, 0.8249)
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 79
    bodies = [(b"desc", text), (b"cprt", b"text\0\0\0\0none\0\0\0\0"), (b"wtpt", point(d50))]
    bodies += list(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(point, columns), strict=True))
    bodies += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, data, start = b"", b"", 132 + 12 * len(bodies)
    for name, body in bodies:
        padded = body + b"\0" * (-len(body) % 4)
        table += name + struct.pack(">II", start + len(data), len(body))
        data += padded
    header = struct.pack(">I4sI4s4s4s", start + len(data), b"\0\0\0\0", 0x02400000, b"mntr", space, pcs)
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    header += struct.pack(">3i", *(round(value * 65536) for value in d50)) + b"\0" * 48
    return header + struct.pack(">I", len(bodies)) + table + data


def write_tiff(
    path: Path, values: NDArray[np.uint8] | NDArray[np.uint16], icc: bytes | None, orientation: int = 1
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    extra = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(path, values, photometric="rgb", iccprofile=icc, extratags=extra, metadata=None)
    return path


def rendering(number: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint16]:
    """What an expert made of a photo: waves of colour, 16 bits."""
    scene = dng_files.smooth_scene(height, width, number) / np.array(dng_files.NEUTRAL)
    values: NDArray[np.uint16] = (scene * 65535).round().astype(np.uint16)
    return values


def dng_of(root: Path, number: int) -> Path:
    return root / "raw_photos" / FOLDERS[number] / "photos" / f"{NAMES[number]}.dng"


def tiff_of(root: Path, number: int, expert: str = "c") -> Path:
    return root / f"tiff16_{expert}" / f"{NAMES[number]}.tif"


def write(root: Path) -> Path:
    """Five photos, each with experts C and E; nothing is wrong but that 4,995 are missing."""
    for number in NAMES:
        scene = dng_files.smooth_scene(HEIGHT + 8, WIDTH + 12, number)
        orientation = 8 if number == 5000 else 1
        mosaic = dng_files.mosaic_of(scene)
        dng_files.write_dng(dng_of(root, number), mosaic, crop=(7, 5, WIDTH, HEIGHT), orientation=orientation)
        size = (WIDTH, HEIGHT) if orientation == 8 else (HEIGHT, WIDTH)
        for expert in "ce":
            write_tiff(tiff_of(root, number, expert), rendering(number, *size), profile())
    for folder in EMPTY:
        (root / "raw_photos" / folder / "photos").mkdir(parents=True)
    for name in ("filesAdobe.txt", "filesAdobeMIT.txt"):
        (root / name).write_text("")
    return root
