import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from attriqa_envs.export import load_params, save_params, write_cube
from attriqa_envs.isp import KEYS, PARAMETERS, render, table_hash
from attriqa_envs.isp.color import decode, encode
from tests.support.isp_pictures import P, params, picture, random_params

POINTWISE = torch.tensor([float(p.stage != "detail") for p in PARAMETERS])


# Params as JSON


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_read_back_renders_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    linear = picture().to(dtype)
    for seed in range(6):
        given = random_params(1, seed=seed, dtype=dtype)
        save_params(tmp_path / "a.json", given[0], source="a0001 x.dng")
        read = load_params(tmp_path / "a.json")
        assert read.dtype == dtype
        assert torch.equal(read, given[0])
        assert torch.equal(render(linear, read[None]), render(linear, given))
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["source"] == "a0001 x.dng"
    assert record["table"] == table_hash()
    assert list(record["params"]) == list(KEYS)


def test_half_precision_loses_nothing(tmp_path: Path) -> None:
    given = random_params(1, inside=0.9).to(torch.bfloat16)[0]
    save_params(tmp_path / "a.json", given)
    assert torch.equal(load_params(tmp_path / "a.json"), given.float())


def test_the_result_of_a_search_can_be_saved(tmp_path: Path) -> None:
    given = params(hue=3.5)[0].requires_grad_()
    save_params(tmp_path / "a.json", given)
    assert torch.equal(load_params(tmp_path / "a.json"), given.detach())


def written(folder: Path, **changes: Any) -> Path:
    """A file of params with other values for some of its fields; ``None`` removes one."""
    path = folder / "changed.json"
    save_params(path, params(exposure=0.5)[0])
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"table": "0123456789abcdef", "isp_version": 7}, r"another ISP \(version 7, table 0123456789abcdef\)"),
        ({"table": None}, "another ISP"),
        ({"format": "other"}, "expected a file with format 'attriqa-isp-params'"),
        ({"params": None}, "params: expected a number for each of exposure, temperature"),
        ({"params": {"exposure": 1.0}}, "params: expected a number for each of"),
        ({"params": dict.fromkeys(KEYS, "0")}, "params: expected a number for each of"),
        ({"params": dict.fromkeys(KEYS, True)}, "params: expected a number for each of"),
        ({"params": dict.fromkeys(KEYS, 2.0)}, r"params: expected values within their ranges, got tint = 2"),
        ({"params": dict.fromkeys(KEYS, float("nan"))}, r"params: expected values .* got exposure = nan"),
        ({"dtype": "int32"}, "dtype: expected one of float32, float64, got 'int32'"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=rf"changed\.json: .*{words}"):
        load_params(written(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"3"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.json: expected"):
        load_params(path)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (params(2), rf"params: expected one picture's, \({P},\), got shape \(2, {P}\)"),
        (params()[0, 1:], "values in the last dimension"),
        (params(exposure=9)[0], "got exposure = 9"),
        (params(tint=torch.nan)[0], "got tint = nan"),
    ],
)
def test_wrong_params_leave_no_file(tmp_path: Path, wrong: Tensor, words: str) -> None:
    for write, name in ((save_params, "a.json"), (write_cube, "a.cube")):
        with pytest.raises(ValueError, match=words):
            write(tmp_path / name, wrong)
    assert list(tmp_path.iterdir()) == []


# The LUT


def read_cube(path: Path) -> Tensor:
    """A ``.cube`` file as ``(size, size, size, 3)``, indexed by blue, green, red: what the format says of its order."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    header = [line for line in lines if line[0].isalpha()]
    rows = [[float(word) for word in line.split()] for line in lines[len(header) :]]
    assert lines[: len(header)] == header
    (size,) = (int(line.split()[1]) for line in header if line.startswith("LUT_3D_SIZE"))
    assert {"DOMAIN_MIN 0 0 0", "DOMAIN_MAX 1 1 1"} <= set(header)
    return torch.tensor(rows, dtype=torch.float64).reshape(size, size, size, 3)


def apply(lut: Tensor, srgb: Tensor) -> Tensor:
    """Trilinear interpolation of a LUT at the colours of ``(1, 3, H, W)``."""
    axes = (np.linspace(0, 1, len(lut)),) * 3
    places = srgb[0].flip(0).flatten(1).T.numpy()  # (N, 3): blue, green, red
    return torch.from_numpy(RegularGridInterpolator(axes, lut.numpy())(places)).T.reshape(srgb.shape)


def test_the_lut_of_the_default_is_the_identity_but_for_the_soft_clip(tmp_path: Path) -> None:
    write_cube(tmp_path / "a.cube", params()[0], size=5)
    steps = torch.linspace(0, 1, 5, dtype=torch.float64)
    blue, green, red = torch.meshgrid(steps, steps, steps, indexing="ij")
    expected = torch.stack((red, green, blue), 3)
    torch.testing.assert_close(read_cube(tmp_path / "a.cube"), expected, rtol=0, atol=1 / 128 + 1e-6)


def test_the_grid_holds_the_rendering_itself(tmp_path: Path) -> None:
    given = random_params(1, seed=4)
    write_cube(tmp_path / "a.cube", given[0], size=4)
    lut = read_cube(tmp_path / "a.cube")
    for r, g, b in ((0, 0, 0), (3, 0, 1), (1, 2, 3)):
        encoded = torch.tensor([r, g, b], dtype=torch.float64).view(1, 3, 1, 1) / 3
        linear = torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        expected = render(linear, given.double() * POINTWISE).flatten()
        torch.testing.assert_close(lut[b, g, r], expected, rtol=0, atol=1e-6)


MILD = params(exposure=0.7, temperature=20, tint=-0.1, highlights=-0.5, shadows=0.5, contrast=0.2, saturation=0.2,
              vibrance=0.2, hue=5, tone_2=0.3, tone_6=-0.3, luma_denoise=0.5, sharpen_amount=1)  # fmt: skip


def test_a_lut_renders_photos_alike(tmp_path: Path, photos: list[NDArray[np.uint8]]) -> None:
    """What the documentation of `write_cube` says of 33 points per side, for usual params and for any."""
    limits = [(MILD, 0.5, 8.0), (random_params(1, seed=0), 1.0, 10.0)]
    for given, mean, most in limits:
        write_cube(tmp_path / "a.cube", given[0])
        lut = read_cube(tmp_path / "a.cube")
        for photo in photos:
            srgb = torch.from_numpy(photo[::20, ::20].copy()).permute(2, 0, 1)[None].double() / 255
            error = 255 * (apply(lut, srgb) - render(decode(srgb), given.double() * POINTWISE)).abs()
            assert error.mean() < mean
            assert error.quantile(0.99) < most


def test_a_finer_grid_is_closer(tmp_path: Path) -> None:
    linear = picture(1, 32, 32).double()
    expected = render(linear, MILD.double() * POINTWISE)
    errors = []
    for size in (5, 9, 17):
        write_cube(tmp_path / "a.cube", MILD[0], size=size)
        errors.append(float((apply(read_cube(tmp_path / "a.cube"), encode(linear)) - expected).abs().mean()))
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


def test_the_comments_tell_the_pointwise_params_and_their_table(tmp_path: Path) -> None:
    write_cube(tmp_path / "a.cube", MILD[0], size=2)
    comments = [line for line in (tmp_path / "a.cube").read_text().splitlines() if line.startswith("#")]
    assert table_hash() in comments[0]
    assert [line.split()[1] for line in comments[1:]] == [p.key for p in PARAMETERS if p.stage != "detail"]
    assert "# exposure 0.7 EV" in comments


@pytest.mark.parametrize("size", [1, 0, 257])
def test_a_wrong_size_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"size: expected 2 to 256 points per side, got {size}"):
        write_cube(tmp_path / "a.cube", params()[0], size=size)


def test_pillow_reads_the_grid_alike(tmp_path: Path) -> None:
    """Pillow's own trilinear filter wants red fastest, as the format does."""
    from PIL import Image, ImageFilter

    write_cube(tmp_path / "a.cube", MILD[0], size=17)
    lut = read_cube(tmp_path / "a.cube")
    linear = picture(1, 32, 32).double()
    pixels = (encode(linear)[0] * 255).round().byte()
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    filtered = image.filter(ImageFilter.Color3DLUT(17, lut.flatten().tolist()))
    expected = apply(lut, pixels[None].double() / 255)[0].permute(1, 2, 0) * 255
    np.testing.assert_allclose(np.asarray(filtered, dtype=np.float64), expected.numpy(), atol=1)
