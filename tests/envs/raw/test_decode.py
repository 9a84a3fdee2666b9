"""Raw files to linear light: levels, white balance, matrix, demosaic, crop, orientation, bad files."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rawpy
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from attriqa.images import ImageError
from attriqa_envs.isp.color import SRGB_TO_XYZ, encode
from attriqa_envs.raw import decode, upright
from attriqa_envs.raw.color import rebuild_highlights
from attriqa_envs.raw.demosaic import bin_quads, interpolate
from tests.support import dng_files
from tests.support.dng_files import COLOR_MATRIX, NEUTRAL, mosaic_of, smooth_scene, write_dng
from tests.support.isp_pictures import psnr

BAYER = ("RGGB", "BGGR", "GRBG", "GBRG")
GAINS = 1 / np.array(NEUTRAL)


def camera_to_srgb() -> NDArray[np.float64]:
    """Of COLOR_MATRIX, from the definition: sRGB -> camera with rows scaled to sum to 1, then inverted."""
    to_camera = np.array(COLOR_MATRIX).reshape(3, 3) @ SRGB_TO_XYZ.numpy()
    return np.asarray(np.linalg.inv(to_camera / to_camera.sum(1, keepdims=True)))


def expected(scene: NDArray[np.float64]) -> Tensor:
    """Linear sRGB (3, H, W) of camera RGB (H, W, 3)."""
    return torch.from_numpy((scene * GAINS) @ camera_to_srgb().T).permute(2, 0, 1).float().clamp(min=0)


def binned(scene: NDArray[np.float64], pattern: str) -> NDArray[np.float64]:
    """Each 2 x 2 quad as a pixel: what its sites saw."""
    sites = {color: [site for site, letter in enumerate(pattern) if letter == color] for color in "RGB"}
    seen = [[scene[s // 2 :: 2, s % 2 :: 2, "RGB".index(color)] for s in sites[color]] for color in "RGB"]
    return np.stack([np.mean(planes, 0) for planes in seen], -1)


def libraw(path: Path, **settings: Any) -> Tensor:
    """LibRaw's own rendering in linear sRGB."""
    with rawpy.imread(str(path)) as raw:
        pixels = raw.postprocess(
            use_camera_wb=True, no_auto_bright=True, output_bps=16, gamma=(1, 1), adjust_maximum_thr=0.0, **settings
        )
    return torch.from_numpy(pixels.astype(np.float32) / 65535).permute(2, 0, 1)


@pytest.mark.parametrize("pattern", BAYER)
@pytest.mark.parametrize("half_size", [True, False])
def test_a_scene_comes_back_from_its_dng(tmp_path: Path, pattern: str, half_size: bool) -> None:
    scene = smooth_scene(96, 128)
    image = decode(write_dng(tmp_path / "a.dng", mosaic_of(scene, pattern), pattern=pattern), half_size=half_size)
    wanted = expected(binned(scene, pattern) if half_size else scene)
    assert image.pixels.dtype == torch.float32
    assert image.pixels.shape == wanted.shape
    assert psnr(image.pixels, wanted) > (70 if half_size else 50)
    assert image.metadata.camera == "Acme One"
    assert image.metadata.white_balance == pytest.approx((2.0, 1.0, 1.6), rel=1e-4)
    assert image.metadata.white_balance_source == "as shot"
    np.testing.assert_allclose(image.metadata.camera_to_srgb, camera_to_srgb(), atol=2e-3)
    assert image.metadata.size == (96, 128)


@pytest.mark.parametrize(("pattern", "orientation"), list(zip(BAYER, (1, 3, 6, 8), strict=True)))
def test_it_agrees_with_libraw(tmp_path: Path, pattern: str, orientation: int) -> None:
    path = write_dng(
        tmp_path / "a.dng", mosaic_of(smooth_scene(96, 128), pattern), pattern=pattern, orientation=orientation
    )
    image = decode(path, half_size=True, highlights="clip")
    theirs = libraw(path, half_size=True)
    assert image.pixels.shape == theirs.shape == ((3, 64, 48) if orientation > 4 else (3, 48, 64))
    assert psnr(image.pixels.clamp(max=1), theirs) > 70
    assert image.metadata.orientation == orientation
    assert image.metadata.size == ((128, 96) if orientation > 4 else (96, 128))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_what_pillow_makes_of_it(orientation: int) -> None:
    stored = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    picture = Image.fromarray(stored)
    picture.getexif()[274] = orientation
    theirs = torch.from_numpy(np.array(ImageOps.exif_transpose(picture)))
    assert torch.equal(upright(torch.from_numpy(stored).permute(2, 0, 1), orientation).permute(1, 2, 0), theirs)


@pytest.mark.parametrize("orientation", [2, 4, 5, 7])
def test_mirrored_orientations_survive_libraw(tmp_path: Path, orientation: int) -> None:
    mosaic = mosaic_of(smooth_scene(64, 96))
    plain = decode(write_dng(tmp_path / "plain.dng", mosaic), half_size=True).pixels
    turned = decode(write_dng(tmp_path / "turned.dng", mosaic, orientation=orientation), half_size=True)
    assert turned.metadata.orientation == orientation
    assert torch.equal(turned.pixels, upright(plain, orientation))


def test_a_matrix_of_the_file_wins_over_libraws_table(tmp_path: Path) -> None:
    mosaic = mosaic_of(smooth_scene(64, 96))
    unknown = decode(write_dng(tmp_path / "a.dng", mosaic))
    known = decode(write_dng(tmp_path / "b.dng", mosaic, make="NIKON", model="NIKON D70"))
    assert known.metadata.camera == "NIKON D70"
    np.testing.assert_allclose(known.metadata.camera_to_srgb, camera_to_srgb(), atol=2e-3)
    torch.testing.assert_close(known.pixels, unknown.pixels)


@pytest.mark.parametrize("corner", [(4, 6), (3, 6), (4, 5), (3, 5)])
@pytest.mark.parametrize("half_size", [True, False])
def test_active_area_crop_and_black_levels_are_exact_where_they_are_odd(
    tmp_path: Path, corner: tuple[int, int], half_size: bool
) -> None:
    """LibRaw rounds both to even sites, and then takes the black levels of other sites."""
    scene, black = smooth_scene(80, 112), (400, 500, 600, 700)
    top, left = corner
    sensor = np.full((90, 124), 20_000, np.uint16)
    sensor[top : top + 80, left : left + 112] = mosaic_of(scene, "GRBG", black)
    path = write_dng(
        tmp_path / "a.dng", sensor, pattern="GRBG", black=black, active_area=(top, left, top + 80, left + 112),
        crop=(15, 7, 90, 60),
    )  # fmt: skip
    image = decode(path, half_size=half_size)
    seen = scene[7:67, 15:105]
    wanted = expected(binned(seen, "GBRG") if half_size else seen)
    assert image.metadata.black == (500, 400, 600, 700), "of red, green, blue, and the green beside blue"
    assert image.metadata.size == (60, 90)
    assert image.pixels.shape == wanted.shape
    assert psnr(image.pixels, wanted) > 45


def test_a_crop_that_makes_no_sense_is_ignored(tmp_path: Path) -> None:
    path = write_dng(tmp_path / "a.dng", mosaic_of(smooth_scene(64, 96)), crop=(50, 50, 400, 400))
    assert decode(path, half_size=False).pixels.shape == (3, 64, 96)


@pytest.mark.parametrize("xy", [(0.3127, 0.3290), (0.4476, 0.4074), (0.28, 0.30)])
def test_a_white_given_as_a_chromaticity_is_used(tmp_path: Path, xy: tuple[float, float]) -> None:
    path = write_dng(tmp_path / "a.dng", mosaic_of(smooth_scene(64, 96)), neutral=None, white_xy=xy)
    response = np.array(COLOR_MATRIX).reshape(3, 3) @ np.array([xy[0] / xy[1], 1, (1 - sum(xy)) / xy[1]])
    metadata = decode(path).metadata
    assert metadata.white_balance == pytest.approx(response.max() / response, rel=5e-3)
    assert metadata.white_balance_source == "as shot"


@pytest.mark.parametrize("neutral", [None, (0.0, 1.0, 1.0)])
def test_without_white_balance_daylight_is_taken_and_told(tmp_path: Path, neutral: tuple[float, ...] | None) -> None:
    path = write_dng(tmp_path / "a.dng", mosaic_of(smooth_scene(64, 96)), neutral=neutral)
    daylight = np.array(COLOR_MATRIX).reshape(3, 3) @ SRGB_TO_XYZ.numpy() @ np.ones(3)
    image = decode(path)
    assert image.metadata.white_balance == pytest.approx(daylight.max() / daylight, rel=5e-3)
    assert image.metadata.white_balance_source == "daylight"
    assert bool(image.pixels.isfinite().all())


def test_without_matrix_too_the_pixels_stay_camera_rgb(tmp_path: Path) -> None:
    scene = smooth_scene(64, 96)
    image = decode(write_dng(tmp_path / "a.dng", mosaic_of(scene), neutral=None, color_matrix=None))
    assert (image.metadata.white_balance_source, image.metadata.matrix_source) == ("none", "none")
    assert psnr(image.pixels, torch.from_numpy(scene).permute(2, 0, 1).float()) > 45


def test_xtrans_is_demosaiced_by_libraw(tmp_path: Path) -> None:
    scene = smooth_scene(520, 540)  # LibRaw refuses to demosaic less than 512 px
    path = write_dng(tmp_path / "a.dng", mosaic_of(scene, dng_files.XTRANS), pattern=dng_files.XTRANS)
    assert psnr(decode(path, half_size=False).pixels, expected(scene)) > 45
    half = torch.nn.functional.avg_pool2d(expected(scene)[None], 2)[0]
    assert psnr(decode(path, half_size=True).pixels, half) > 45


@pytest.mark.parametrize("black", [0, 512])
def test_a_demosaiced_dng_is_read(tmp_path: Path, black: int) -> None:
    scene = smooth_scene(64, 96)
    stored = (black + scene * (15_000 - black)).round().astype(np.uint16)
    path = write_dng(tmp_path / "a.dng", stored, black=black, orientation=6)
    assert psnr(decode(path, half_size=False).pixels, expected(scene).transpose(1, 2).flip(2)) > 60


def test_light_above_the_first_clipping_channel_is_kept(tmp_path: Path) -> None:
    """A gray ramp up to twice white: green clips at 1, blue at 1.6, red at 2, and the picture stays gray throughout."""
    level = np.linspace(0.1, 2.0, 64).repeat(2)
    scene = np.minimum(np.broadcast_to(level[None, :, None] / GAINS, (64, 128, 3)), 1)
    path = write_dng(tmp_path / "a.dng", mosaic_of(scene))
    ramp = torch.from_numpy(level[::2]).float().expand(3, 32, -1)
    rebuilt = decode(path, half_size=True).pixels
    assert float((rebuilt / ramp - 1).abs().max()) < 0.01
    clipped = decode(path, half_size=True, highlights="clip").pixels
    assert float(clipped.max()) < 1.001
    assert psnr(clipped, ramp.clamp(max=1)) > 45


def test_highlights_below_the_sensors_range_are_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    gains = torch.tensor([2.0, 1.0, 1.6])
    pixels = torch.rand(2, 3, 40, 50, generator=generator) * 0.94 * gains[:, None, None]
    assert torch.equal(rebuild_highlights(pixels, gains.expand(2, 3)), pixels)
    pixels[1, 1, 3, 4] = 1.0
    pixels[1, (0, 2), 3, 4] = torch.tensor([1.5, 1.3])
    rebuilt = rebuild_highlights(pixels, gains.expand(2, 3))
    assert torch.equal(rebuilt[0], rebuild_highlights(pixels[0], gains))
    assert rebuilt[1, :, 3, 4].tolist() == pytest.approx([1.5, 1.4, 1.3])
    assert bool((rebuilt >= pixels).all())
    assert int((rebuilt != pixels).sum()) == 1


def test_an_all_black_frame_is_black(tmp_path: Path) -> None:
    image = decode(write_dng(tmp_path / "a.dng", np.full((64, 96), 300, np.uint16)))
    assert image.pixels.abs().max() == 0


def test_noise_around_black_averages_out_before_it_is_cut_off(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mosaic = rng.normal(512, 100, (256, 256)).round().clip(0).astype(np.uint16)
    path = write_dng(tmp_path / "a.dng", mosaic)
    assert float(decode(path, half_size=True).pixels.mean()) > 3 * float(decode(path, shorter_edge=32).pixels.mean())


@pytest.mark.parametrize(("edge", "half"), [(40, True), (41, False), (80, False)])
def test_the_mosaic_is_binned_where_that_is_large_enough(tmp_path: Path, edge: int, half: bool) -> None:
    path = write_dng(tmp_path / "a.dng", mosaic_of(smooth_scene(80, 120)))
    image = decode(path, shorter_edge=edge)
    assert image.pixels.shape == (3, edge, (3 * edge + 1) // 2)
    torch.testing.assert_close(image.pixels, decode(path, shorter_edge=edge, half_size=half).pixels)


@pytest.mark.parametrize("pattern", list(itertools.product(range(2), range(2))))
def test_demosaicing_is_exact_for_gray_planes_and_keeps_what_was_measured(pattern: tuple[int, int]) -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(26.0), indexing="ij")
    mosaic = 3 + 2 * y - 0.5 * x
    shifted = {(0, 0): (0, 1, 1, 2), (0, 1): (1, 0, 2, 1), (1, 0): (1, 2, 0, 1), (1, 1): (2, 1, 1, 0)}[pattern]
    full = interpolate(mosaic, shifted)
    torch.testing.assert_close(full[:, 2:-2, 2:-2], mosaic.expand(3, -1, -1)[:, 2:-2, 2:-2])
    noise = torch.rand(20, 26, generator=torch.Generator().manual_seed(0))
    measured = interpolate(noise, shifted)
    for site, color in enumerate(shifted):
        assert torch.equal(measured[color, site // 2 :: 2, site % 2 :: 2], noise[site // 2 :: 2, site % 2 :: 2])
    half = bin_quads(noise, shifted)
    red = shifted.index(0)
    assert torch.equal(half[0], noise[red // 2 :: 2, red % 2 :: 2])
    with pytest.raises(ValueError, match="expected a Bayer pattern"):
        interpolate(noise, (0, 0, 1, 2))


def test_what_libraw_refuses_is_told_with_the_reason(tmp_path: Path) -> None:
    mosaic = mosaic_of(smooth_scene(64, 96))
    deflated = write_dng(tmp_path / "deflate.dng", mosaic, compression="zlib")
    with pytest.raises(ImageError, match=r"LibRaw cannot read it: .* compressed with deflate; convert it"):
        decode(deflated)
    jxl = write_dng(tmp_path / "jxl.dng", mosaic)
    dng_files.set_compression(jxl, 52546)
    with pytest.raises(ImageError, match=r"LibRaw cannot read it: .* compressed with JPEG XL; convert it"):
        decode(jxl)
    (tmp_path / "empty.dng").touch()
    with pytest.raises(ImageError, match="a file of 0 bytes"):
        decode(tmp_path / "empty.dng")
    (tmp_path / "text.nef").write_text("no raw file at all" * 100)
    with pytest.raises(ImageError, match="LibRaw cannot read it"):
        decode(tmp_path / "text.nef")
    with pytest.raises(ImageError, match="No such file"):
        decode(tmp_path / "none.dng")
    with pytest.raises(ImageError, match="48 x 30 px; sides must be at least 32 px"):
        decode(write_dng(tmp_path / "small.dng", mosaic, crop=(0, 0, 48, 30)))
    with pytest.raises(ImageError, match="white level, 500, is not above its black level, 512"):
        decode(write_dng(tmp_path / "levels.dng", mosaic, white=500))


def test_damaged_bytes_give_a_picture_or_an_image_error(tmp_path: Path) -> None:
    whole = write_dng(tmp_path / "a.dng", mosaic_of(smooth_scene(64, 96)), crop=(4, 4, 80, 50)).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(40):
        data = bytearray(whole)
        for place in rng.integers(0, 700, 1 + number % 4):  # the header and the tags
            data[place] = rng.integers(256)
        if number % 3 == 0:
            del data[int(rng.integers(len(data))) :]
        (tmp_path / "b.dng").write_bytes(data)
        try:
            pixels = decode(tmp_path / "b.dng").pixels
        except ImageError:
            refused += 1
        else:
            assert bool(pixels.isfinite().all())
            assert float(pixels.min()) >= 0
    assert 5 < refused < 35


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shorter_edge": 31}, "shorter_edge"),
        ({"shorter_edge": 64.0}, "shorter_edge"),
        ({"highlights": "no"}, "highlights"),
    ],
)
def test_wrong_arguments_are_not_the_files_fault(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        decode(tmp_path / "none.dng", **arguments)
    assert not isinstance(caught.value, ImageError)


def test_threads_decode_what_one_does(tmp_path: Path) -> None:
    paths = [write_dng(tmp_path / f"{seed}.dng", mosaic_of(smooth_scene(64, 96, seed))) for seed in range(6)]
    alone = [decode(path).pixels for path in paths]
    with ThreadPoolExecutor(3) as pool:
        together = [image.pixels for image in pool.map(decode, paths * 3)]
    assert all(torch.equal(first, second) for first, second in zip(alone * 3, together, strict=True))
    assert threading.active_count() < 10


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("half_size", "settings", "least"),
    [
        (True, {}, 60.0),  # the same pixels, so what differs is rounding
        (False, {"demosaic_algorithm": rawpy.DemosaicAlgorithm.AHD}, 38.0),  # another demosaicing, of a noisy picture
    ],
)
def test_a_real_dng_agrees_with_libraw(
    shared_data: Path, half_size: bool, settings: dict[str, Any], least: float
) -> None:
    path = shared_data / "raw" / "colorchart.dng"
    image = decode(path, half_size=half_size, highlights="clip")
    found = psnr(encode(image.pixels.clamp(0, 1)), encode(libraw(path, half_size=half_size, **settings)))
    print(f"colorchart.dng, sRGB, half size {half_size}: PSNR to LibRaw {found:.1f} dB")
    assert found > least
    assert image.metadata.camera == "Canon EOS Kiss X4"
    assert image.metadata.size == (1156, 1734)


@pytest.mark.shared_data
def test_a_real_kdc_has_no_matrix_and_agrees_with_libraw_in_camera_rgb(shared_data: Path) -> None:
    path = shared_data / "raw" / "RAW_KODAK_DC50_e.KDC"
    image = decode(path, half_size=True)
    assert image.metadata.matrix_source == "none"
    assert psnr(image.pixels, libraw(path, half_size=True, output_color=rawpy.ColorSpace.raw)) > 60
