"""What files become, and what happens to tensors of images: conversions, sizes, crops, the search for files."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from attriqa import images
from tests.support import image_cases as cases

GRAY16 = (np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21).astype(np.uint16)  # 3072 levels


def read(folder: Path, data: bytes, shorter_edge: int | None = None) -> Tensor:
    (folder / "image").write_bytes(data)
    return images.read(folder / "image", shorter_edge=shorter_edge)


def flat(folder: Path, image: Image.Image, form: str, options: dict[str, Any] | None = None) -> list[float]:
    """The one colour of an image of one colour, 0 to 255."""
    pixels = read(folder, cases.encode(image, form, options)) * 255
    assert (pixels - pixels.mean((1, 2), keepdim=True)).abs().max() < 0.6
    return pixels.mean((1, 2)).tolist()


def array(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def test_bytes_become_the_same_values_over_255(tmp_path: Path) -> None:
    pixels = read(tmp_path, cases.encode(cases.scene(), "PNG"))
    assert pixels.dtype is torch.float32
    assert pixels.is_contiguous()
    assert torch.equal(pixels, array(cases.scene()))
    assert torch.equal(images.read(str(tmp_path / "image")), pixels)


def test_bytes_that_were_read_already_are_the_file(tmp_path: Path) -> None:
    data = cases.encode(cases.scene(), "PNG")
    (tmp_path / "image").write_bytes(data)
    for edge in (None, 40):
        expected = images.read(tmp_path / "image", shorter_edge=edge)
        assert torch.equal(images.read("shard.tar: key", shorter_edge=edge, data=data), expected)
    for damaged in (b"", data[:-20]):
        with pytest.raises(images.ImageError, match=r"^shard\.tar: key: ") as caught:
            images.read("shard.tar: key", data=damaged)
        assert caught.value.path == "shard.tar: key"


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "TIFF-lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path: Path, form: str, orientation: int) -> None:
    stored = np.asarray(cases.scene())
    upright = {  # EXIF 2.3: where row 0 and column 0 of the stored picture belong
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored[::-1].transpose(1, 0, 2),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    options: dict[str, Any] = {"exif": exif.tobytes(), "lossless": True}
    options |= {"compression": "tiff_lzw"} if form == "TIFF-lzw" else {}
    data = cases.encode(cases.scene(), form.split("-")[0], options)
    expected = torch.from_numpy(upright.copy()).permute(2, 0, 1) / 255
    assert torch.equal(read(tmp_path, data), expected)
    small = read(tmp_path, data, shorter_edge=40)
    assert (small - images.resize_shorter(expected[None], 40)[0]).abs().max() < 1.1 / 255


def test_xmp_orientation_counts_too(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    assert read(tmp_path, cases.encode(cases.scene(), "JPEG", {"xmp": xmp})).shape == (3, 64, 48)


def test_a_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (40, 40), (255, 0, 0))
    swapped = {"icc_profile": cases.icc_rgb(cases.icc_gamma(2.2), (1, 0, 2))}  # its red is the green of sRGB
    for form in ("PNG", "TIFF", "WEBP"):
        assert flat(tmp_path, red, form, swapped | {"lossless": True}) == pytest.approx([0, 255, 0], abs=1)
    linear = Image.new("RGB", (40, 40), (55, 55, 55))  # 55/255 of the light is sRGB 0.502 (IEC 61966-2-1)
    assert flat(tmp_path, linear, "JPEG", {"icc_profile": cases.icc_rgb(cases.icc_gamma(1.0))}) == pytest.approx(
        [128] * 3, abs=1
    )


def test_a_profile_that_is_srgb_changes_nothing(tmp_path: Path) -> None:
    v = np.linspace(0, 1, 32)
    light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1, coarsely: off by 1/255
    coarse = b"curv" + bytes(4) + struct.pack(">I", 32) + (light * 65535).round().astype(">u2").tobytes()
    for profile in (cases.srgb_profile(), cases.icc_rgb(coarse)):
        for image in (cases.scene(), cases.scene().convert("L")):
            tagged = read(tmp_path, cases.encode(image, "PNG", {"icc_profile": profile}))
            assert torch.equal(tagged, array(image))


def test_gray_profiles(tmp_path: Path) -> None:
    linear = {"icc_profile": cases.icc(b"GRAY", {b"kTRC": cases.icc_gamma(1.0)})}
    gray = Image.new("L", (40, 40), 55)
    assert flat(tmp_path, gray, "PNG", linear) == pytest.approx([128] * 3, abs=1)
    assert flat(tmp_path, gray, "PNG", {"icc_profile": cases.icc_rgb(cases.icc_gamma(1.0))}) == pytest.approx(
        [128] * 3, abs=1
    )
    half = Image.merge("LA", (gray, Image.new("L", (40, 40), 128)))
    assert flat(tmp_path, half, "PNG", linear) == pytest.approx([191] * 3, abs=1)
    deep = Image.fromarray(np.full((40, 40), 55 * 257, np.uint16))
    assert flat(tmp_path, deep, "PNG", linear) == pytest.approx([128] * 3, abs=1)


def test_a_profile_of_another_colour_space_is_ignored(tmp_path: Path) -> None:
    gray = {"icc_profile": cases.icc(b"GRAY", {b"kTRC": cases.icc_gamma(1.0)})}
    assert flat(tmp_path, Image.new("RGB", (40, 40), (9, 99, 199)), "PNG", gray) == pytest.approx([9, 99, 199])
    cyan = Image.new("CMYK", (40, 40), (255, 0, 0, 0))
    assert flat(tmp_path, cyan, "TIFF", {"icc_profile": cases.icc_rgb(cases.icc_gamma(1.0))}) == pytest.approx(
        [0, 255, 255]
    )


def test_a_cmyk_profile_is_used(tmp_path: Path) -> None:
    # A lut8 (ICC.1:2001-04, 6.5.7) with two points per ink: no ink is white, only cyan Lab (50, 0, 0), the rest black.
    corners = bytearray(16 * 3)
    corners[0:3], corners[8 * 3 : 8 * 3 + 3] = (255, 128, 128), (128, 128, 128)
    for corner in {*range(16)} - {0, 8}:
        corners[corner * 3 : corner * 3 + 3] = (0, 128, 128)
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + bytes(corners) + identity * 3
    profile = cases.icc(b"CMYK", {b"A2B0": lut, b"A2B1": lut}, connection=b"Lab ")
    cyan = Image.new("CMYK", (40, 40), (255, 0, 0, 0))
    assert flat(tmp_path, cyan, "TIFF", {"icc_profile": profile}) == pytest.approx([119] * 3, abs=2)  # L* 50
    assert flat(tmp_path, cyan, "TIFF") == pytest.approx([0, 255, 255])


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I;16"), ("JPEG2000", "I;16")]
)
def test_gray_keeps_its_sixteen_bits(tmp_path: Path, form: str, mode: str) -> None:
    image = Image.frombytes(mode, (64, 48), GRAY16.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    pixels = read(tmp_path, cases.encode(image, form))
    expected = torch.from_numpy(GRAY16.astype(np.float32) / 65535)
    assert torch.allclose(pixels, expected.expand(3, -1, -1), atol=1e-7)
    assert len(np.unique(pixels.numpy())) == 3072
    small = read(tmp_path, cases.encode(image, form), shorter_edge=36)
    assert torch.allclose(small, images.resize_shorter(pixels[None], 36)[0], atol=1e-6)


def test_tiffs_that_pillow_leaves_unscaled_or_negative(tmp_path: Path) -> None:
    twelve = GRAY16 % 4096
    bits = "".join(f"{value:012b}" for value in twelve.ravel())
    packed = int(bits, 2).to_bytes(len(bits) // 8, "big")
    pixels = read(tmp_path, cases.tiff(64, 48, packed, {258: (3, 1, 12)}))
    assert torch.allclose(pixels[0], torch.from_numpy(twelve.astype(np.float32) / 4095), atol=1e-7)
    negative = cases.tiff(64, 48, GRAY16.tobytes(), {258: (3, 1, 16), 262: (3, 1, 0)})
    assert torch.allclose(
        read(tmp_path, negative)[0], torch.from_numpy(1 - GRAY16.astype(np.float32) / 65535), atol=1e-7
    )


def test_sixteen_bit_colour_keeps_eight(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (48, 64, 3)).astype(np.uint16)
    expected = torch.from_numpy(values.astype(np.float32) / 65535).permute(2, 0, 1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    for data in (
        cases.png(64, 48, rows, depth=16),
        cases.tiff(64, 48, values.tobytes(), {258: (3, 1, 16), 262: (3, 1, 2), 277: (3, 1, 3)}),
    ):
        assert (read(tmp_path, data) - expected).abs().max() < 1 / 255


def test_planar_strips_must_cover_every_plane(tmp_path: Path) -> None:
    planes = np.asarray(cases.scene()).transpose(2, 0, 1).tobytes()
    where = 8 + 2 + 12 * 10 + 4  # after ten tags: the planes, then the three offsets
    tags = {258: (3, 1, 8), 262: (3, 1, 2), 277: (3, 1, 3), 284: (3, 1, 2), 279: (4, 1, 3072)}
    offsets = struct.pack("<3I", *(where + 3072 * plane for plane in range(3)))
    whole = cases.tiff(64, 48, planes + offsets, tags | {273: (4, 3, where + len(planes))})
    assert torch.equal(read(tmp_path, whole), array(cases.scene()))
    with pytest.raises(images.ImageError, match="cover only a part"):
        read(tmp_path, cases.tiff(64, 48, planes + offsets, tags | {273: (4, 2, where + len(planes))}))


def test_alpha_is_composited_on_white(tmp_path: Path) -> None:
    alpha = cases.scene(1).convert("L")
    colour, gray = cases.scene().convert("RGB"), cases.scene().convert("L")
    share = array(alpha)
    for form, opaque in (("PNG", colour), ("TIFF", colour), ("WEBP", colour), ("PNG", gray), ("TIFF", gray)):
        image = opaque.copy()
        image.putalpha(alpha)
        pixels = read(tmp_path, cases.encode(image, form, {"lossless": True, "exact": True}))
        assert (pixels - (share * array(opaque) + 1 - share)).abs().max() <= 0.75 / 255, form


def test_premultiplied_alpha_is_divided_out(tmp_path: Path) -> None:
    half = bytes([60, 128]) * (40 * 40)  # 60 of gray on 128 of alpha, premultiplied
    data = cases.tiff(40, 40, half, {258: (3, 1, 8), 277: (3, 1, 2), 338: (3, 1, 1)})
    assert (read(tmp_path, data) * 255)[:, 9, 9].tolist() == pytest.approx([60 + 255 - 128] * 3, abs=1)


def test_transparent_colours_of_palettes_and_grays_become_white(tmp_path: Path) -> None:
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.paste(0, (0, 0, 20, 40))
    for form, transparency in (("PNG", 0), ("PNG", b"\0\xff"), ("GIF", 0)):
        pixels = read(tmp_path, cases.encode(palette, form, {"transparency": transparency})) * 255
        assert pixels[:, 5, 5].tolist() == pytest.approx([255] * 3)
        assert pixels[:, 5, 35].tolist() == pytest.approx([200, 100, 50])
    half = cases.encode(palette, "PNG", {"transparency": b"\x80\xff"})
    assert (read(tmp_path, half) * 255)[:, 5, 5].tolist() == pytest.approx([132, 137, 142], abs=1)
    for depth in (8, 16):
        rows = (b"\0" + b"\x07" * (40 * depth // 16) + b"\x64" * (40 * depth // 16)) * 40
        key = b"\0\x07" if depth == 8 else b"\x07\x07"
        data = cases.png(40, 40, rows, depth=depth, colour=0, extra=cases.png_chunk(b"tRNS", key))
        assert (read(tmp_path, data) * 255)[:, 0, [0, 39]].T.flatten().tolist() == pytest.approx([255] * 3 + [100] * 3)


def test_lab_is_a_colour_space_by_itself(tmp_path: Path) -> None:
    middle = Image.new("LAB", (40, 40), (128, 128, 128))  # L* 50.2, a* and b* 0
    assert flat(tmp_path, middle, "TIFF") == pytest.approx([119] * 3, abs=1)


def test_cmyk_and_ycck_jpegs(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (40, 40), (0, 128, 255, 64))
    expected = [191, 95, 0]  # (1-C)(1-K) and so on
    data = cases.encode(ink, "JPEG", {"quality": 98})
    assert (read(tmp_path, data) * 255).mean((1, 2)).tolist() == pytest.approx(expected, abs=2)
    # The same file declared YCCK: what was stored, inks inverted, (255, 127, 0, 191), is now Y, Cb, Cr and K.
    ycck = data.replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2")
    assert ycck != data
    y, cb, cr = 255.0, 127.0 - 128, 0.0 - 128
    inks = np.clip([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 0, 255)  # JFIF 1.02
    assert (read(tmp_path, ycck) * 255).mean((1, 2)).tolist() == pytest.approx(
        ((255 - inks) * 191 / 255).tolist(), abs=2
    )


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", "WEBP", "MPO"])
def test_the_first_frame_is_read(tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ((200, 10, 10), (10, 200, 10), (10, 10, 200))]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    assert flat(tmp_path, frames[0], form, options) == pytest.approx([200, 10, 10], abs=2.5)


def test_to_tensor_leaves_the_image_and_agrees_with_read(tmp_path: Path) -> None:
    image = cases.scene()
    image.info["icc_profile"] = cases.icc_rgb(cases.icc_gamma(2.2), (1, 0, 2))
    image.getexif()[274] = 6
    before = image.tobytes()
    pixels = images.to_tensor(image)
    assert pixels.shape == (3, 64, 48)
    assert image.tobytes() == before
    exif = image.getexif().tobytes()
    data = cases.encode(image, "PNG", {"icc_profile": image.info["icc_profile"], "exif": exif})
    assert torch.equal(pixels, read(tmp_path, data))
    for wrong in (np.zeros((40, 40, 3), np.uint8), Image.new("F", (40, 40)), Image.new("I", (40, 40))):
        with pytest.raises(ValueError, match=r"image: expected a PIL image; got ndarray|range is unknown"):
            images.to_tensor(wrong)  # type: ignore[arg-type]
