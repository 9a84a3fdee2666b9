"""The one place for the image contract: files and arrays to sRGB tensors, their check, sizes and crops.

A tensor of images is ``(B,3,H,W)``, float, sRGB, in [0,1], with sides of at least 32 px. What a file becomes:

- its first frame or page, upright by EXIF (or XMP). Gray keeps up to 16 bits; of 16-bit colour, Pillow keeps 8;
- an embedded ICC profile is converted to sRGB, relative colorimetric with black point compensation. A profile of
  another colour space than the pixels' describes nothing here and is ignored, as browsers do (an RGB profile on gray
  pixels is applied); a broken one is an error. Without a profile, pixels are sRGB and CMYK is ``(1-C)(1-K)``;
- alpha is composited on white, on encoded (not linear) values, as browsers do;
- float and 32-bit pixels have no known white and are refused; so are raw files and the preview pages of TIFFs.

A file must be whole. PNG: every checksum, up to IEND. JPEG: the end marker, and no blocks that the decoder had to
invent. JPEG 2000: the end marker. The others: what Pillow's decoders need. Damage inside pixel data that carries no
checksum (all formats but PNG and deflated TIFF) shows in the picture and cannot be told from the picture.
"""

import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageChops, ImageCms, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from attriqa.images.tensors import MAX_PIXELS, MIN_SIDE, target_size

MAX_FILE_BYTES = 2 << 30

# Only these decoders ever see a file: Pillow has others that start programs (EPS) or accept any bytes (TGA).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "AVIF", "PPM")
_TRANSPOSE = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A JPEG marker that has a length, or the end of the image; not stuffing, not a restart.
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
_JPEG_NOISE = bytes((97 * i + 31) % 255 for i in range(256))  # scan data, so without 0xFF


class ImageError(ValueError):
    """A file that cannot be read as an image: its ``path`` and, in one line, the ``reason``."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in args, so that it survives pickling between processes
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read(path: str | Path, *, shorter_edge: int | None = None, data: bytes | None = None) -> Tensor:
    """Read an image file.

    With ``shorter_edge`` the pixels are resized as `resize_shorter` would, but before they become floats (Pillow,
    antialiased bilinear on bytes), so that a 24-megapixel photo takes a quarter of the memory. The two ways differ by
    rounding only: at most 1.1/255, 0.35/255 on average.

    Args:
        path: a regular file; its content decides on its format, not its name.
        shorter_edge: length in px of the shorter side; see `target_size`.
        data: the file's content where it was read already, out of an archive; ``path`` is then its name in errors.

    Returns:
        ``(3,H,W)`` float32, contiguous, sRGB in [0,1], upright.

    Raises:
        ImageError: whatever is wrong with the file, sides under 32 px included.
        ValueError: ``shorter_edge`` is not an integer of at least 32.
    """
    if shorter_edge is not None:
        target_size(MIN_SIDE, MIN_SIDE, shorter_edge)  # a wrong argument is not the file's fault
    try:
        with _quiet_pillow():
            return to_tensor(_decode(_file_bytes(Path(path)) if data is None else data), shorter_edge=shorter_edge)
    except UnidentifiedImageError as error:
        raise ImageError(str(path), "not an image of a known format, or its header is broken") from error
    except Exception as error:  # decoders answer hostile bytes with every kind of exception, MemoryError included
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(str(path), " ".join(text.split())) from error


def to_tensor(image: Image.Image, *, shorter_edge: int | None = None) -> Tensor:
    """Convert an open Pillow image, which stays as it is, to the tensor that `read` gives.

    Raises:
        ValueError: pixels of an unknown scale, or a broken profile. What Pillow raises while decoding is not caught.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"image: expected a PIL image; got {type(image).__name__}")  # noqa: TRY004
    with _quiet_pillow():
        image.load()
        transpose = _orientation(image)
        image = _srgb(image)
        if shorter_edge is not None:
            height, width = target_size(image.height, image.width, shorter_edge)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if transpose is not None:  # last, when the picture is small; resizing commutes with it
            image = image.transpose(transpose)
    pixels = torch.from_numpy(np.array(image))  # (H,W) or (H,W,3); bytes, or float in [0,1]
    pixels = pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    pixels = pixels.contiguous()  # while it is bytes, and light
    return pixels if pixels.is_floating_point() else pixels.to(torch.float32).div_(255)


def _file_bytes(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to open a named pipe is to wait for ever
        raise ValueError("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if not 0 < status.st_size <= MAX_FILE_BYTES:
        raise ValueError(f"a file of {status.st_size} bytes; expected 1 to {MAX_FILE_BYTES}")
    return path.read_bytes()


def _open(data: bytes) -> Image.Image:
    Image.init()  # to know which formats this Pillow has; asked for another, it would raise KeyError
    return Image.open(BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])


def _decode(data: bytes) -> Image.Image:
    """The first frame, decoded, as stored (not yet upright), of a file that is whole."""
    image = _open(data)
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"{image.width} x {image.height} px; sides must be at least {MIN_SIDE} px")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} px; at most {MAX_PIXELS} pixels are read")
    if image.format == "PNG":
        _open(data).verify()  # decoding alone skips the checksums of the pixel data; this reads on to IEND
    elif image.format == "JPEG2000" and not -1 < data.rfind(b"\xff\x90") < data.rfind(b"\xff\xd9"):
        raise ValueError("truncated: no end-of-codestream marker")
    _check_tiles(image, data)
    image.load()
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(image, data)
    return image


def _check_jpeg(image: Image.Image, data: bytes) -> None:
    """Refuse a JPEG cut short, with zeros after the cut, or with an end marker set upon it.

    Up to the marker it is walked here. Blocks that it lacks, libjpeg paints mid-gray and tells nobody, and a gray
    picture has such blocks too. So where the last pixel is mid-gray, noise goes in before the marker: a whole picture
    stays as it is, one that lacked data takes the noise for it. (A progressive JPEG cut and closed is just softer.)
    """
    position = 2
    while match := _JPEG_MARKER.search(data, position):
        if data[match.start() + 1] == 0xD9:
            break
        position = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    if match is None:
        raise ValueError("truncated: no end-of-image marker")
    corner = np.array(image.crop((image.width - 1, image.height - 1, image.width, image.height)), dtype=int)
    if np.abs(corner - 128).max() <= 1:
        noisy = _open(data[: match.start()] + _JPEG_NOISE + data[match.start() :])
        noisy.load()
        if ImageChops.difference(image, noisy).getbbox():
            raise ValueError("truncated: the end-of-image marker comes before the last blocks")


def _check_tiles(image: Image.Image, data: bytes) -> None:
    """Refuse TIFFs whose first page is not the picture, and any file whose parts do not cover the picture."""
    tiles, planes = getattr(image, "tile", []), 1
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        if 50706 in tags or tags.get(254, 0) & 1 or data[8:10] == b"CR":  # DNGVersion; NewSubfileType: reduced
            raise ValueError("a raw file, or a TIFF that begins with a preview: develop or convert it first")
        if tags.get(284) == 2 and tiles[0].codec_name == "raw":  # each plane has strips of its own
            planes = len(image.getbands())
    boxes = [tile.extents or (0, 0, *image.size) for tile in tiles]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if boxes and covered < image.width * image.height * planes:  # Pillow would leave the rest black
        raise ValueError("its strips, tiles or frame cover only a part of the picture")


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever is wrong with the metadata, the pixels are whole: as stored, as viewers do
        return None


def _srgb(image: Image.Image) -> Image.Image:
    """Mode L or RGB (8 bits, sRGB), or F (float gray in [0,1], sRGB), from a decoded image of any mode."""
    profile = image.info.get("icc_profile")
    if "icc_profile" in image.info and not isinstance(profile, bytes):
        raise ValueError("broken ICC profile")  # Pillow keeps None for one whose pieces do not fit
    if image.mode.startswith("I"):
        return _deep_gray(image, profile)
    if image.mode == "LAB":  # a colour space that needs no profile
        return image.convert("RGB")
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        gray = image.mode in ("1", "L", "LA", "La")
        image = _profiled(rgba.getchannel("R") if gray else rgba.convert("RGB"), profile)
        return Image.composite(image, Image.new(image.mode, image.size, "white"), rgba.getchannel("A"))
    if image.mode in ("L", "RGB", "CMYK"):
        return _profiled(image, profile)
    if image.mode in ("1", "P", "YCbCr", "HSV", "RGBX"):
        return _profiled(image.convert("L" if image.mode == "1" else "RGB"), profile)
    raise ValueError(f"pixels of mode {image.mode}, whose range is unknown")


def _deep_gray(image: Image.Image, profile: bytes | None) -> Image.Image:
    bits, negative = 16, False
    if isinstance(image, TiffImageFile):  # Pillow neither scales 12 bits nor turns a white-is-zero picture round
        bits, negative = image.tag_v2.get(258, (16,))[0], image.tag_v2.get(262) == 0
    if image.mode == "I" and image.format != "PPM":
        raise ValueError("integer pixels of more than 16 bits, or signed, whose range is unknown")
    values = np.array(image)
    gray = values.astype(np.float32) / np.float32((1 << bits) - 1)
    gray = 1 - gray if negative else gray
    if profile:
        ramp = np.arange(256, dtype=np.uint8)
        curve = np.array(_profiled(Image.fromarray(ramp[None]), profile).convert("RGB"))[0, :, 1]
        gray = np.interp(gray, ramp / 255.0, curve / 255.0).astype(np.float32)
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = 1
    return Image.fromarray(gray)


def _profiled(image: Image.Image, profile: bytes | None) -> Image.Image:
    """L, RGB or CMYK pixels under ``profile`` -> L or RGB in sRGB."""
    mode, transform = _transform(profile, image.mode) if profile else (image.mode, None)
    if transform is not None:
        return transform.apply(image if image.mode == mode else image.convert(mode))
    return image.convert("RGB") if image.mode == "CMYK" else image


@lru_cache(maxsize=16)  # to build one takes as long as to decode a small photo, and a folder's photos share a few
def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that pixels must have and the way to sRGB: none if the profile is foreign to them, or sRGB itself."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        mode = "RGB" if (mode, space) == ("L", "RGB") else mode
        if space != ("GRAY" if mode == "L" else mode):
            return mode, None
        srgb = ImageCms.createProfile("sRGB")
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", intent, flags)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"broken ICC profile ({error})") from error
    if mode == "CMYK":
        return mode, transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    probe = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, len(levels), 3)).convert(mode)
    apart = ImageChops.difference(transform.apply(probe), probe.convert("RGB")).getextrema()
    return mode, transform if np.max(apart) > 1 else None  # pixels tagged sRGB stay what untagged ones are


_HERE = threading.local()


class _AnyWarningHere(type):
    def __subclasscheck__(cls, subclass: type) -> bool:
        return getattr(_HERE, "decoding", 0) > 0


class _Silenced(Warning, metaclass=_AnyWarningHere):
    """The superclass of every warning, but only in a thread that decodes: the category of one permanent filter."""


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Drop what Pillow warns of (corrupt EXIF, large images) in this thread, whatever the filters say.

    ``warnings.catch_warnings`` swaps the filters of the whole process and cannot be used from several threads. One
    filter that asks which thread it is in can; it moves to the front again where others (pytest's) came before it.
    """
    if not any(entry[2] is _Silenced for entry in warnings.filters[:1]):
        warnings.simplefilter("ignore", _Silenced)
    _HERE.decoding = getattr(_HERE, "decoding", 0) + 1
    try:
        yield
    finally:
        _HERE.decoding -= 1
