"""Seeded malformed and odd inputs, for every test that takes files or tensors of images.

`malformed_files` yields `FileCase`s and says of each what reading it must give; `malformed_tensors` gives what every
function that takes images must refuse with a ValueError. The small writers below make files that Pillow cannot.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

HEIGHT, WIDTH = 48, 64


class FileCase(NamedTuple):
    """A file's content and what reading it must give.

    expect: ``"error"``; ``"valid"``: the pixels of ``original``; ``"whole"``: those or an error; ``"sane"``: a picture
    in the contract, or an error (damage that the format cannot reveal).
    """

    family: str
    name: str
    data: bytes
    expect: Literal["error", "valid", "whole", "sane"]
    original: bytes | None = None


class TensorCase(NamedTuple):
    """A value that is not ``(B,3,H,W)`` float in [0,1], and a word that the refusal must contain."""

    name: str
    value: object
    word: str


def scene(seed: int = 0) -> Image.Image:
    """A gradient with noise, RGB, 64 x 48: every part of it differs from every other."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramp = np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, (x * y) % 256], -1)
    return Image.fromarray((ramp // 2 + rng.integers(0, 128, ramp.shape)).astype(np.uint8))


def encode(image: Image.Image, form: str, options: dict[str, Any] | None = None) -> bytes:
    """``image`` as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **(options or {}))
    return buffer.getvalue()


@lru_cache(maxsize=1)
def originals() -> dict[str, bytes]:
    """Intact files of every kind, by name."""
    image = scene()
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (image, "PNG", {}),
        "png-palette": (image.quantize(200), "PNG", {}),
        "jpeg": (image, "JPEG", {"quality": 90}),
        "jpeg-progressive": (image, "JPEG", {"progressive": True}),
        "jpeg-gray": (image.convert("L"), "JPEG", {}),
        "jpeg-cmyk": (image.convert("CMYK"), "JPEG", {}),
        "jpeg-restarts": (image, "JPEG", {"restart_marker_blocks": 2}),
        "webp": (image, "WEBP", {}),
        "webp-lossless": (image, "WEBP", {"lossless": True}),
        "gif": (image.quantize(200), "GIF", {}),
        "bmp": (image, "BMP", {}),
        "tiff": (image, "TIFF", {}),
        "tiff-lzw": (image, "TIFF", {"compression": "tiff_lzw"}),
        "tiff-deflate": (image, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jp2": (image, "JPEG2000", {}),
        "jp2-tiles": (image, "JPEG2000", {"tile_size": (32, 32)}),
        "j2k": (image, "JPEG2000", {"no_jp2": True}),
        "ppm": (image, "PPM", {}),
    }
    if features.check("avif"):
        kinds["avif"] = (image, "AVIF", {})
    return {name: encode(picture, form, options) for name, (picture, form, options) in kinds.items()}


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    """One PNG chunk with a right checksum."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(width: int, height: int, pixels: bytes, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG from rows that begin with their filter byte; ``extra`` chunks go before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(width: int, height: int, pixels: bytes, tags: dict[int, tuple[int, int, int]], order: str = "<") -> bytes:
    """An uncompressed TIFF of one strip; ``tags`` are (type, count, value) and override the defaults."""
    entries = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    entries |= {277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, len(pixels))} | tags
    entries.setdefault(273, (4, 1, 8 + 2 + 12 * (len(entries) + 1) + 4))
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    for tag, (kind, count, value) in sorted(entries.items()):
        packed = struct.pack(order + ("HH" if kind == 3 else "I"), *((value, 0) if kind == 3 else (value,)))
        out += struct.pack(order + "HHI", tag, kind, count) + packed
    return out + bytes(4) + pixels


def icc(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """A version 2 ICC display profile of ``tags`` (ICC.1:2001-04, sections 6.1 and 6.2), white D50."""
    tags = {b"wtpt": icc_xyz(0.9642, 1.0, 0.8249)} | tags
    offset = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for tag, payload in tags.items():
        table += tag + struct.pack(">II", offset + len(data), len(payload))
        data += payload + bytes(-len(payload) % 4)
    header = struct.pack(">I4sI4s4s4s", offset + len(data), bytes(4), 0x02200000, b"mntr", space, connection)
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">I", 0)
    return (header + icc_xyz(0.9642, 1.0, 0.8249)[8:]).ljust(128, b"\0") + table + data


def icc_xyz(x: float, y: float, z: float) -> bytes:
    """The payload of an XYZ tag."""
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in (x, y, z)))


def icc_gamma(gamma: float) -> bytes:
    """The payload of a tone curve that is a power."""
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


# The sRGB primaries, adapted to D50 (IEC 61966-2-1 with the Bradford transform, as in every sRGB profile).
SRGB_PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


def icc_rgb(curve: bytes, order: tuple[int, int, int] = (0, 1, 2)) -> bytes:
    """An RGB profile whose channels are the sRGB primaries in another ``order``, with one tone ``curve``."""
    tags = {name + b"XYZ": icc_xyz(*SRGB_PRIMARIES[i]) for name, i in zip((b"r", b"g", b"b"), order, strict=True)}
    return icc(b"RGB ", tags | {name + b"TRC": curve for name in (b"r", b"g", b"b")})


def srgb_profile() -> bytes:
    """LittleCMS's own sRGB, without the date."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + bytes(12) + profile[36:]


def malformed_files(seed: int = 0) -> Iterator[FileCase]:
    """Well over 500 files, the same for the same ``seed``."""
    rng = np.random.default_rng(seed)
    yield from _truncated(rng)
    yield from _closed_again(rng)
    yield from _flipped(rng)
    yield from _foreign(rng)
    yield from _wrong_sizes()
    yield from _metadata(rng)
    yield from _odd_modes()


def _truncated(rng: np.random.Generator) -> Iterator[FileCase]:
    for name, data in originals().items():
        inside = rng.integers(9, len(data) - 16, size=12)
        tiles = [match.end() for match in re.finditer(b"\xff\x90", data)] if name.startswith("j") else []  # JPEG 2000
        for keep in sorted({1, 8, 14, 30, *map(int, inside), *(len(data) - cut for cut in (16, 12, 4, 2, 1)), *tiles}):
            yield FileCase("truncated", f"{name}-{keep}", data[:keep], "whole", data)


def _closed_again(rng: np.random.Generator) -> Iterator[FileCase]:
    """A part of the file, then what makes a careless decoder content: zeros, or the end marker."""
    ends = {"jpeg": b"\xff\xd9", "jpeg-gray": b"\xff\xd9", "jpeg-cmyk": b"\xff\xd9", "jpeg-restarts": b"\xff\xd9"}
    ends |= {"gif": b"\0;", "png": png_chunk(b"IEND", b""), "jp2": b"\xff\xd9", "tiff-lzw": b"", "tiff-deflate": b""}
    for name, end in ends.items():
        data = originals()[name]
        for share in rng.uniform(0.3, 0.85, size=6):
            part = data[: int(len(data) * share)]
            yield FileCase("closed again", f"{name}-zeros-{len(part)}", part + bytes(len(data) - len(part)), "error")
            yield FileCase("closed again", f"{name}-end-{len(part)}", part + end, "error")


def _flipped(rng: np.random.Generator) -> Iterator[FileCase]:
    for name, data in originals().items():
        for _ in range(12):
            damaged = bytearray(data)
            position = int(rng.integers(8, len(data)))
            damaged[position] ^= 1 << int(rng.integers(8))
            checked = name.startswith("png")  # every byte of a PNG is under a checksum, or is a length or a name
            yield FileCase("flipped", f"{name}-{position}", bytes(damaged), "whole" if checked else "sane", data)
        header = bytearray(data)
        header[8:24] = rng.bytes(16)
        yield FileCase("flipped", f"{name}-header", bytes(header), "sane", data)


def _foreign(rng: np.random.Generator) -> Iterator[FileCase]:
    """Not images, or not what their first bytes say."""
    texts = {
        "empty": b"",
        "text": b"a photo, believe me\n" * 40,
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect width="9" height="9"/></svg>',
        "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(500),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n",
        "zip": b"PK\x03\x04" + bytes(200),
        "mp4": b"\0\0\0\x18ftypmp42" + bytes(300),
        "zeros": bytes(5000),
        "tga": bytes([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 64, 0, 24, 0]) + bytes(64 * 64 * 3),
        "pfm": b"Pf\n64 48\n-1.0\n" + bytes(64 * 48 * 4),
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
    }
    for name, data in texts.items():
        yield FileCase("foreign", name, data, "error")
    for name, data in originals().items():
        signature = data[: 12 if name != "webp" else 16]
        yield FileCase("foreign", f"{name}-signature", signature, "error")
        yield FileCase(
            "foreign", f"{name}-signature-noise", signature + rng.bytes(3000), "error" if name != "ppm" else "sane"
        )
        yield FileCase("foreign", f"{name}-wrong-magic", bytes([data[0] ^ 0x55]) + data[1:], "error")
        yield FileCase("foreign", f"{name}-shifted", b"\n" + data, "error")


def _wrong_sizes() -> Iterator[FileCase]:
    """Declared sizes that are enormous, nothing, too small for us, or more than the pixels that follow."""
    whole = originals()
    start = whole["jpeg"].index(b"\xff\xc0") + 5
    for width, height in ((60000, 60000), (13200, 13200), (0, 64), (64, 0), (0, 0), (31, 64), (64, 31), (1, 1)):
        files = {
            "png": png(width, height, bytes(100)),
            "jpeg": whole["jpeg"][:start] + struct.pack(">HH", height, width) + whole["jpeg"][start + 4 :],
            "gif": whole["gif"][:6] + struct.pack("<HH", width, height) + whole["gif"][10:],
            "bmp": whole["bmp"][:18] + struct.pack("<ii", width, height) + whole["bmp"][26:],
            "tiff": tiff(width, height, bytes(3072), {}),
            "ppm": b"P6\n%d %d\n255\n" % (width, height) + bytes(9216),
            "j2k": whole["j2k"][:8] + struct.pack(">II", width, height) + whole["j2k"][16:],
        }
        for name, data in files.items():  # a GIF's frame may be larger than its screen
            expect: Literal["error", "whole"] = "whole" if name == "gif" else "error"
            yield FileCase("sizes", f"{name}-{width}x{height}", data, expect, whole.get(name))
    for name, data in {
        "png": png(2000, 2000, bytes(9000)),
        "jpeg": whole["jpeg"][:start] + struct.pack(">HH", 200, 300) + whole["jpeg"][start + 4 :],
        "bmp": whole["bmp"][:18] + struct.pack("<ii", 300, 200) + whole["bmp"][26:],
        "tiff": tiff(300, 200, bytes(3072), {}),
        "tiff-strip-short": tiff(64, 48, bytes(3072), {278: (4, 1, 20)}),
        "tiff-endless-strips": tiff(64, 48, bytes(3072), {273: (4, 2**31, 8)}),
        "webp": whole["webp"][:26] + struct.pack("<HH", 16383, 16383) + whole["webp"][30:],
    }.items():
        yield FileCase("sizes", f"{name}-more-than-there-is", data, "error")


def _metadata(rng: np.random.Generator) -> Iterator[FileCase]:
    """Broken EXIF leaves the pixels whole; a broken profile leaves their colours unknown; bombs are refused."""
    image = scene()
    loop = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    huge = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 274, 3, 2**31, 2**31) + bytes(4)
    wrong = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 274, 2, 4, 0x41424344) + bytes(4)
    blocks = [loop, huge, wrong, b"Exif\0\0", b"Exif\0\0no TIFF", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
    blocks += [b"Exif\0\0II*\0" + rng.bytes(60) for _ in range(6)]
    for form in ("JPEG", "PNG", "WEBP"):
        plain = encode(image, form, {"lossless": True} if form == "WEBP" else {})
        for index, block in enumerate(blocks):
            options = {"exif": block} | ({"lossless": True} if form == "WEBP" else {})
            yield FileCase("exif", f"{form}-{index}", encode(image, form, options), "valid", plain)
    profile = srgb_profile()
    broken = [rng.bytes(200), profile[:100], profile[:200], b"\0", bytes(128), profile[:36] + b"xxxx" + profile[40:]]
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        for index, block in enumerate(broken):
            yield FileCase("icc", f"{form}-{index}", encode(image, form, {"icc_profile": block}), "error")
        for _ in range(4):
            position = int(rng.integers(128, len(profile)))
            flipped = profile[:position] + bytes([profile[position] ^ 0xFF]) + profile[position + 1 :]
            yield FileCase("icc", f"{form}-{position}", encode(image, form, {"icc_profile": flipped}), "sane")
    split = encode(image, "JPEG", {"icc_profile": profile}).replace(b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\2")
    yield FileCase("icc", "JPEG-part-missing", split, "error")
    rows = np.concatenate([np.zeros((HEIGHT, 1), np.uint8), np.asarray(image).reshape(HEIGHT, -1)], 1).tobytes()
    plain, bomb = png(WIDTH, HEIGHT, rows), zlib.compress(bytes(20_000_000))
    for name, chunk in {
        "zTXt": png_chunk(b"zTXt", b"Comment\0\0" + bomb),
        "iTXt": png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb),
        "iCCP": png_chunk(b"iCCP", b"profile\0\0" + bomb),
        "iCCP-not-deflated": png_chunk(b"iCCP", b"profile\0\0" + b"nonsense"),
        "tEXt-wrong-checksum": png_chunk(b"tEXt", b"Comment\0hello")[:-1] + b"?",
    }.items():
        yield FileCase("bombs", name, png(WIDTH, HEIGHT, rows, extra=chunk), "error")
    yield FileCase("bombs", "IDAT-longer-than-the-image", png(WIDTH, HEIGHT, rows + bytes(20_000_000)), "whole", plain)
    yield FileCase(
        "bombs", "acTL-twice", png(WIDTH, HEIGHT, rows, extra=png_chunk(b"acTL", bytes(8)) * 2), "whole", plain
    )


def _odd_modes() -> Iterator[FileCase]:
    """Unusual, and right."""
    image = scene()
    deep: NDArray[np.uint16] = np.asarray(image.convert("L")).astype(np.uint16) * 257
    clear = image.convert("RGBA")
    clear.putalpha(image.convert("L"))
    pictures = {"1": image.convert("1"), "L": image.convert("L"), "P": image.quantize(17), "RGB": image, "RGBA": clear}
    pictures |= {"LA": clear.convert("LA"), "I;16": Image.fromarray(deep), "CMYK": image.convert("CMYK")}
    pictures |= {"LAB": image.convert("LAB"), "YCbCr": image.convert("YCbCr"), "PA": clear.quantize(9).convert("PA")}
    pictures["LAB"].info.clear()  # of a profile that bears the time of day
    homes = {
        "PNG": "1 L P RGB RGBA LA I;16",
        "TIFF": "1 L P RGB RGBA LA I;16 CMYK LAB YCbCr PA",
        "GIF": "1 L P RGB RGBA",
    }
    homes |= {
        "JPEG": "1 L RGB CMYK YCbCr",
        "WEBP": "L RGB RGBA",
        "BMP": "1 L P RGB RGBA",
        "JPEG2000": "L RGB RGBA I;16",
    }
    homes |= {"PPM": "1 L RGB I;16", "AVIF": "L RGB RGBA"} if features.check("avif") else {"PPM": "1 L RGB I;16"}
    for form, modes in homes.items():
        for mode in modes.split():
            data = original = encode(pictures[mode], form)
            if (
                form not in ("JPEG", "WEBP", "AVIF")
                and mode in ("1", "L", "P", "RGB", "CMYK")[: 3 if form == "GIF" else 5]
            ):
                original = encode(pictures[mode].convert("RGB"), "PNG")
            yield FileCase("modes", f"{form}-{mode}", data, "valid", original)
    for name, values in {"float": np.float32, "integer": np.int32}.items():
        data = encode(Image.fromarray(np.asarray(deep, dtype=values)), "TIFF")
        yield FileCase("modes", f"TIFF-{name}", data, "error")


# fmt: off
WRONG_SHAPES: tuple[tuple[int, ...], ...] = (
    (), (3,), (40, 48), (3, 40, 48), (1, 2, 3, 40, 48), (1, 1, 40, 48), (1, 2, 40, 48), (1, 4, 40, 48), (1, 40, 48, 3),
    (0, 3, 40, 48), (1, 3, 31, 48), (1, 3, 48, 31), (1, 3, 0, 48), (1, 3, 1, 1), (1, 0, 40, 48),
)
# fmt: on


def malformed_tensors() -> list[TensorCase]:
    """What is no batch of images. Each must be refused with a ValueError that names the argument."""
    good = torch.full((2, 3, 40, 48), 0.5)
    cases = [
        TensorCase(type(value).__name__, value, type(value).__name__)
        for value in (None, 1, "photo.png", [good], good.numpy(), scene(), {"images": good}, b"\xff")
    ]
    cases += [TensorCase(f"shape {shape}", torch.zeros(shape), str(shape)) for shape in WRONG_SHAPES]
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64):
        cases += [TensorCase(f"{dtype}", good.to(dtype), str(dtype).removeprefix("torch."))]
    for value in (float("nan"), float("inf"), float("-inf"), -0.01, 1.01, 255.0, -1.0, 1e30, 1.0001, -0.0001):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            bad = good.to(dtype).clone()
            bad[1, 2, 39, 47] = value
            if abs(value) > 1.001 or value < -0.001 or value != value or dtype in (torch.float32, torch.float64):
                cases.append(TensorCase(f"{value} in {dtype}", bad, "NaN" if value != value else "from"))
    cases.append(TensorCase("0 to 255", good * 255, "from"))
    cases.append(TensorCase("normalised", good * 4 - 2.5, "from"))
    cases.append(TensorCase("all NaN", good * float("nan"), "NaN"))
    cases.append(TensorCase("NaN and infinity", torch.stack([good[0] * float("nan"), good[0] / 0]), "NaN"))
    cases.append(TensorCase("sparse", good.to_sparse(), "sparse"))
    return cases
