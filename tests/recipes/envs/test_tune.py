"""Tuning a folder of files: renderings, parameters and sidecars of each, whatever one of them holds."""

import io
import json
import re
import xml.etree.ElementTree as ET
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import attriqa_envs
from attriqa import images
from attriqa_envs.export import load_params
from attriqa_envs.export.full_size import render_levels, write_picture
from attriqa_envs.isp import render
from attriqa_envs.raw import decode
from attriqa_envs.raw.find import ImageFile, find_images
from tests.support import dng_files
from tests.support.compare_helpers import load_recipe, write_photos, write_policy
from tests.support.isp_pictures import picture, random_params


def write_dngs(folder: Path, names: tuple[str, ...] = ("a.dng", "trip/b c.dng")) -> Path:
    for number, name in enumerate(names):
        scene = dng_files.smooth_scene(96, 128, number)
        dng_files.write_dng(folder / name, dng_files.mosaic_of(scene), orientation=6 if number else 1)
    return folder


recipe = load_recipe("tune")


# Rendering whole pictures.


def test_a_picture_in_strips_is_the_picture_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attriqa_envs.export.full_size._STRIP_PIXELS", 17 * 48)
    light = picture(1, 90, 48)
    for seed in range(3):
        chosen = random_params(1, seed=seed, inside=0.8)
        at_once = (render(light, chosen)[0] * 255).permute(1, 2, 0)
        levels = render_levels(light[0].half(), chosen[0])
        exact = (render(light.half().float(), chosen)[0] * 255).permute(1, 2, 0)
        assert levels.shape == at_once.shape
        assert float((torch.from_numpy(levels.astype(np.float32)) - exact).abs().max()) <= 0.51
    assert render_levels(light[0], chosen[0].half()).dtype == np.uint8


def test_pictures_are_written_with_their_profile(tmp_path: Path) -> None:
    levels = (picture(1, 40, 48)[0] * 255).byte().permute(1, 2, 0).numpy()
    for suffix in (".png", ".jpg"):
        write_picture(tmp_path / f"a{suffix}", levels, quality=98)
        with Image.open(tmp_path / f"a{suffix}") as opened:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(opened.info["icc_profile"])).profile
        assert "sRGB" in (profile.profile_description or "")
        assert profile.creation_date == datetime(2000, 1, 1)
        back = images.read(tmp_path / f"a{suffix}").permute(1, 2, 0).numpy() * 255
        assert np.abs(back - levels).mean() < (0.01 if suffix == ".png" else 2.0)
    with pytest.raises(ValueError, match=r"expected .png or .jpg, and 1 to 100; got '.tif', 95"):
        write_picture(tmp_path / "a.tif", levels)


# The package.


def test_load_policy_is_in_the_package_and_imported_late(tmp_path: Path) -> None:
    policy = attriqa_envs.load_policy(write_policy(tmp_path / "policy"))
    assert policy.task.steps == 2
    with pytest.raises(AttributeError, match="no attribute 'load_polic'"):
        attriqa_envs.__getattr__("load_polic")


# The recipe.


def test_a_folder_of_dngs_becomes_renderings_and_sidecars(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_dngs(tmp_path / "raws"), tmp_path / "out"
    (folder / "broken.dng").write_bytes(b"no raw file")
    policy = write_policy(tmp_path / "policy")
    words = [folder, "--policy", policy, "--model", weights, "--format", "png", "--out", out]
    with pytest.raises(SystemExit, match=r"1 files were left out:\n.*broken.dng"):
        recipe.main([*map(str, words)])
    for name, size in (("a", (96, 128)), ("trip/b c", (128, 96))):
        params = load_params(out / f"{name}.json")
        assert float(params.abs().max()) > 0
        whole = decode(folder / f"{name}.dng").pixels
        expected = (render(whole[None], params[None])[0] * 255).round()
        shown = images.read(out / f"{name}.png") * 255
        assert tuple(shown.shape[1:]) == size
        assert float((shown - expected).abs().max()) <= 1
        (about,) = (
            ET.parse(out / f"{name}.xmp").getroot().iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
        )
        assert about.attrib["{http://ns.adobe.com/camera-raw-settings/1.0/}RawFileName"] == Path(name).name + ".dng"
        assert float(about.attrib["{urn:attriqa:isp}RenderError_delta_e"]) < 6
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["files"]) == ["a", "trip/b c"]
    assert metrics["n"] == 2
    assert "broken.dng" in metrics["left_out"][0]
    row = metrics["files"]["a"]
    assert row["score_before"] != row["score_after"]
    text = capsys.readouterr().out
    assert re.search(rf"^{row['score_before']:.4f} -> {row['score_after']:.4f}  a.png  XMP off by", text, re.MULTILINE)


def test_a_run_goes_on_where_it_stopped(weights: Path, tmp_path: Path) -> None:
    folder, out = write_photos(tmp_path / "photos", 3), tmp_path / "out"
    words = [folder, "--method", "random", "--renders", "2", "--side", "48", "--batch", "2", "--model", weights]
    command = [*map(str, words), "--out", str(out)]
    recipe.main(command)
    assert sorted(path.name for path in out.glob("*.xmp")) == []  # photos need none
    first = json.loads((out / "metrics.json").read_text())
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("photo_*")}
    del (forgotten := json.loads((out / "metrics.json").read_text()))["files"]["photo_1"]
    (out / "metrics.json").write_text(json.dumps(forgotten))
    recipe.main(command)
    for path, (content, when) in kept.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == when) == ("photo_1" not in path.name)
    again = json.loads((out / "metrics.json").read_text())
    assert set(again["files"]) == set(first["files"])
    other = json.loads((out / "metrics.json").read_text()) | {"identity": {}}
    (out / "metrics.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="holds pictures tuned by other weights"):
        recipe.main(command)


@pytest.mark.slow
def test_searches_raise_the_reward(weights: Path, tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 2)
    free = ["--distance-weight", "0", "--clipping-weight", "0", "--side", "48"]
    for method in ("adam", "cmaes", "random"):
        words = [folder, "--method", method, "--renders", "6", "--model", weights, "--out", tmp_path / method, *free]
        recipe.main([*map(str, words)])
        rows = json.loads((tmp_path / method / "metrics.json").read_text())["files"].values()
        assert all(row["score_after"] >= row["score_before"] - 1e-5 for row in rows), method


def test_names_clash_nowhere(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png", "sub/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = recipe.names_of(find_images(tmp_path), tmp_path)
    assert sorted(names.values()) == ["a.jpg", "a.png", "b", "sub/a"]
    assert recipe.names_of([ImageFile(tmp_path / "b.png", "photo")], tmp_path / "b.png") == {
        ImageFile(tmp_path / "b.png", "photo"): "b"
    }


def test_a_folder_of_bad_files_has_no_rows(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "raws").mkdir()
    (tmp_path / "raws" / "a.dng").write_bytes(b"broken")
    with pytest.raises(SystemExit, match="1 files were left out"):
        recipe.main([str(tmp_path / "raws"), "--model", str(weights), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["n"] == 0


@pytest.mark.slow
def test_the_command_of_the_documentation(run_recipe: Any, weights: Path, tmp_path: Path) -> None:
    folder = write_dngs(tmp_path / "raws")
    words = [folder, "--method", "adam", "--smoke", "--model", weights, "--out", tmp_path / "out"]
    done = run_recipe("envs/tune.py", *words)
    assert done.returncode == 0, done.stderr
    assert "2 files by adam" in done.stdout
    assert {path.suffix for path in (tmp_path / "out").glob("a.*")} == {".jpg", ".json", ".xmp"}


@pytest.mark.slow
@pytest.mark.shared_data
def test_a_true_dng(run_recipe: Any, shared_data: Path, weights: Path, tmp_path: Path) -> None:
    words = ["--method", "random", "--renders", "2", "--side", "64", "--model", weights, "--out", tmp_path / "out"]
    done = run_recipe("envs/tune.py", shared_data / "raw" / "colorchart.dng", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "colorchart.xmp").is_file()
