"""XMP sidecars: what each parameter becomes, the white that becomes neutral, and the error that is stated."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch

from attriqa_envs.export.xmp import (
    Camera,
    camera_of,
    emulate,
    kelvin_and_tint,
    render_error,
    to_camera_raw,
    white_xyz,
    write_xmp,
)
from attriqa_envs.isp import render
from attriqa_envs.isp.color import decode, encode
from attriqa_envs.isp.difference import delta_e
from attriqa_envs.raw import decode as decode_raw
from attriqa_envs.raw.find import ImageFile
from tests.support import dng_files
from tests.support.isp_pictures import gray_ramp, params, picture, random_params

CRS, RDF = "{http://ns.adobe.com/camera-raw-settings/1.0/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
D65, A = np.array([0.95047, 1.0, 1.08883]), np.array([1.09850, 1.0, 0.35585])
CAMERA = Camera(
    np.array([2.0, 1.0, 1.6]),
    np.array([2.2, 1.0, 1.5]),
    np.array([[1.6, -0.5, -0.1], [-0.2, 1.5, -0.3], [0, -0.5, 1.5]]),
)


def one(**values: float) -> torch.Tensor:
    return params(1, torch.float32, **values)[0]


def test_the_temperature_of_standard_illuminants() -> None:
    for xyz, kelvin in ((D65, 6504), (A, 2856)):
        found, tint = kelvin_and_tint(xyz)
        assert found == pytest.approx(kelvin, rel=0.005)
        assert abs(tint) < 12
    assert kelvin_and_tint(D65)[1] == pytest.approx(9.6, abs=1)  # D65 lies 0.0032 above the locus, to green
    assert abs(kelvin_and_tint(A)[1]) < 1


@pytest.mark.parametrize("kelvin", [2200, 3400, 5500, 9000])
@pytest.mark.parametrize("tint", [-40, 0, 60])
def test_whites_come_back(kelvin: float, tint: float) -> None:
    found = kelvin_and_tint(white_xyz(kelvin, tint))
    np.testing.assert_allclose(found, (kelvin, tint), rtol=1e-3, atol=0.3)


def test_a_cameras_as_shot_white_follows_from_its_file(tmp_path: Path) -> None:
    """Through LibRaw: what the file calls neutral is the light whose temperature we give."""
    matrix = np.array(dng_files.COLOR_MATRIX).reshape(3, 3)
    for kelvin, tint in ((3200.0, 0.0), (6500.0, 15.0)):
        neutral = matrix @ white_xyz(kelvin, tint)
        mosaic = dng_files.mosaic_of(dng_files.smooth_scene(64, 64))
        path = dng_files.write_dng(tmp_path / f"{kelvin:.0f}.dng", mosaic, neutral=(neutral / neutral.max()).tolist())
        camera = camera_of(decode_raw(path).metadata)
        assert camera is not None
        np.testing.assert_allclose(camera.white(np.ones(3)), (kelvin, tint), rtol=0.01, atol=2)
        warmer = to_camera_raw(one(temperature=40), camera).settings
        assert 1e6 / kelvin - 1e6 / warmer["Temperature"] == pytest.approx(40, rel=0.25)
        pinker = to_camera_raw(one(tint=0.3), camera).settings
        assert pinker["Tint"] > tint + 10


def test_photos_and_files_without_white_balance_have_no_camera(tmp_path: Path) -> None:
    mosaic = dng_files.mosaic_of(dng_files.smooth_scene(64, 64))
    for name, options in (("a", {"neutral": None}), ("b", {"color_matrix": None})):
        path = dng_files.write_dng(tmp_path / f"{name}.dng", mosaic, **options)  # type: ignore[arg-type]
        assert camera_of(decode_raw(path).metadata) is None, name
    path = dng_files.write_mosaic(tmp_path / "c.raw", mosaic)
    assert camera_of(ImageFile(path, "mosaic").read().metadata) is None
    sidecar = to_camera_raw(one(temperature=30, tint=0.2, hue=5))
    assert sidecar.dropped == ("hue", "temperature", "tint")
    assert "Temperature" not in sidecar.settings


def test_the_default_changes_nothing() -> None:
    sidecar = to_camera_raw(one(), CAMERA)
    assert sidecar.dropped == ()
    assert all(before == after for before, after in sidecar.curve)
    assert {name: value for name, value in sidecar.settings.items() if value} == {"SharpenRadius": 1.0}
    light = picture(1)
    assert render_error(light[0], one(), sidecar, CAMERA)["delta_e"] < 0.01


@pytest.mark.parametrize(
    "values",
    [{"contrast": 0.5}, {"highlights": -0.8, "shadows": 0.9}, {"tone_1": -0.9, "tone_4": 0.9, "tone_7": -0.6}],
)
def test_tone_is_exact_on_gray(values: dict[str, float]) -> None:
    chosen = one(**values)
    sidecar = to_camera_raw(chosen)
    at_points = decode(torch.arange(15, 241, 15) / 255).expand(1, 3, 1, -1).double()
    for grays, least in ((at_points, 1 / 255), (gray_ramp(0.97), 0.03)):  # between them, a curve has no kink
        wanted, got = render(grays, chosen[None].double()), emulate(grays, sidecar)
        assert float((wanted - render(grays, 0 * chosen[None].double())).abs().max()) > 0.05
        assert float((wanted - got).abs().max()) < least
    assert [point[0] for point in sidecar.curve] == sorted({point[0] for point in sidecar.curve})
    assert [point[1] for point in sidecar.curve] == sorted(point[1] for point in sidecar.curve)


def test_white_balance_agrees_on_gray_and_nearly_on_colours() -> None:
    chosen = one(temperature=35, tint=-0.2)
    grays = gray_ramp(0.5)
    sidecar = to_camera_raw(chosen, CAMERA)
    assert delta_e(emulate(grays, sidecar, CAMERA), render(grays, chosen[None].double()))[0] < 0.3
    light = picture(1)
    without = delta_e(encode(light), render(light, chosen[None]))[0]
    stated = render_error(light[0], chosen, sidecar, CAMERA)["delta_e"]
    assert stated < without / 4
    with pytest.raises(ValueError, match="camera: expected the one that the settings were made with"):
        emulate(light, sidecar)


def test_the_stated_error_counts_what_is_dropped_and_what_is_rounded() -> None:
    light = picture(1)[0]
    errors = {}
    for name, value in (("hue", 20.0), ("exposure", 0.504), ("saturation", 0.3), ("sharpen_amount", 1.0)):
        chosen = one(**{name: value})
        errors[name] = render_error(light, chosen, to_camera_raw(chosen, CAMERA), CAMERA)["delta_e"]
        assert errors[name] < delta_e(render(light[None], chosen[None]), render(light[None], one()[None]))[0] + 1e-6
    assert errors["hue"] > 1  # all of it
    assert max(errors[name] for name in ("saturation", "sharpen_amount")) < 0.05
    assert 0 < errors["exposure"] < 0.2


def test_random_params_give_a_sidecar_that_reads_back(tmp_path: Path) -> None:
    for number, chosen in enumerate(random_params(6, inside=0.6)):
        sidecar = to_camera_raw(chosen, CAMERA)
        write_xmp(tmp_path / "a.xmp", sidecar, source='a "b" <&>.nef', error={"delta_e": 1.5})
        (about,) = ET.parse(tmp_path / "a.xmp").getroot().iter(f"{RDF}Description")
        fields = {name.removeprefix(CRS): value for name, value in about.attrib.items()}
        assert fields["RawFileName"] == 'a "b" <&>.nef'
        assert fields["WhiteBalance"] == "Custom"
        assert fields["{urn:attriqa:isp}RenderError_delta_e"] == "1.500"
        assert {name: float(fields[name]) for name in sidecar.settings} == pytest.approx(dict(sidecar.settings))
        points = [item.text for item in about.iter(f"{RDF}li")]
        assert points == [f"{before}, {after}" for before, after in sidecar.curve], number
        assert -5 <= float(fields["Exposure2012"]) <= 5
        assert 0 <= float(fields["Sharpness"]) <= 150
        assert 0.5 <= float(fields["SharpenRadius"]) <= 3


def test_wrong_params_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one picture's"):
        to_camera_raw(params(2))
    with pytest.raises(ValueError, match=r"exposure = 9 \(range"):
        to_camera_raw(one(exposure=9))
