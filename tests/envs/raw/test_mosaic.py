"""Headerless mosaics with a JSON beside them."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from attriqa.images import ImageError
from attriqa_envs.raw import decode, upright
from tests.envs.raw.test_decode import camera_to_srgb, expected
from tests.support.dng_files import mosaic_of, smooth_scene, write_mosaic
from tests.support.isp_pictures import psnr


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, {}),
        ({"pattern": "GBRG"}, {}),
        ({"byte_order": "big", "gains": [2.0, 1.0, 1.0, 1.6]}, {}),
        ({"camera": "Lab", "iso": 200, "exposure_s": 0.01}, {"camera": "Lab", "iso": 200, "exposure_s": 0.01}),
        ({"orientation": 8}, {"orientation": 8, "size": (96, 64)}),
        ({"black": [400, 500, 600, 700]}, {"black": (400, 500, 700, 600)}),
    ],
)
def test_a_headerless_mosaic_is_read_as_its_json_says(
    tmp_path: Path, fields: dict[str, Any], wanted: dict[str, Any]
) -> None:
    scene = smooth_scene(64, 96)
    mosaic = mosaic_of(scene, fields.get("pattern", "RGGB"), fields.get("black", 512))
    image = decode(write_mosaic(tmp_path / "a.raw", mosaic, matrix=camera_to_srgb().tolist(), **fields))
    assert psnr(image.pixels, upright(expected(scene), fields.get("orientation", 1))) > 45
    assert image.metadata.kind == "mosaic"
    for name, value in wanted.items():
        assert getattr(image.metadata, name) == value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 98}, r"12288 bytes; a\.json says 98 x 64 values of 2 bytes after 0: 12544"),
        ({"white": None}, "missing: white"),
        ({"gain": 1}, "unknown: gain"),
        ({"pattern": "RGBG"}, "pattern: expected RGGB, BGGR, GRBG or GBRG, got 'RGBG'"),
        ({"gains": [1, 1]}, r"gains: expected three or four numbers, got \[1, 1\]"),
        ({"gains": [1, True, 1]}, "gains: expected three or four numbers"),
        ({"matrix": [[1, 1, 1]] * 3}, "matrix: expected three rows of three numbers that sum to 1"),
        ({"orientation": 9}, "orientation: expected 1 to 8, got 9"),
        ({"white": 400}, "white level, 400, is not above its black level, 512"),
        ({"width": 6144, "height": 1}, "6144 x 1 px; sides must be at least 32 px"),
    ],
)
def test_a_wrong_json_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = write_mosaic(tmp_path / "a.raw", mosaic_of(smooth_scene(64, 96)), **fields)
    with pytest.raises(ImageError, match=message) as caught:
        decode(path)
    assert caught.value.path == str(path)


def test_gains_of_zero_in_a_json_mean_no_white_balance(tmp_path: Path) -> None:
    path = write_mosaic(tmp_path / "a.raw", mosaic_of(smooth_scene(64, 96)), gains=[0, 1, 1])
    assert decode(path).metadata.white_balance_source == "none"
    (tmp_path / "a.json").write_text("[1, 2")
    with pytest.raises(ImageError, match="expected a JSON object"):
        decode(path)
    (tmp_path / "a.json").unlink()
    with pytest.raises(ImageError, match=r"a headerless mosaic needs a a\.json beside it"):
        decode(path)


@pytest.mark.shared_data
@pytest.mark.parametrize("highlights", ["rebuild", "clip"])
def test_a_real_headerless_mosaic(shared_data: Path, tmp_path: Path, highlights: Literal["rebuild", "clip"]) -> None:
    path = tmp_path / "DSC_1339_768x512_rggb.raw"
    path.write_bytes((shared_data / "raw" / path.name).read_bytes())
    header = {
        "width": 768,
        "height": 512,
        "pattern": "RGGB",
        "black": 600,
        "white": 15520,
        "gains": [1.949, 1, 1, 1.344],
    }
    path.with_suffix(".json").write_text(json.dumps(header))
    pixels = decode(path, highlights=highlights).pixels
    assert pixels.shape == (3, 512, 768)
    assert bool(pixels.isfinite().all())
    assert float(pixels.max()) <= (1.4 if highlights == "clip" else 2.5)
    red, green, blue = pixels.mean((1, 2)).tolist()
    assert red > 2 * green > 2 * blue, "a red rose before leaves"
    petal = pixels[:, 200:280, 500:560].mean((1, 2))
    leaf = pixels[:, 110:150, 95:125].mean((1, 2))
    assert int(leaf.argmax()) != 2
    assert float(petal[0] / petal[1]) > 3 * float(leaf[0] / leaf[1])
