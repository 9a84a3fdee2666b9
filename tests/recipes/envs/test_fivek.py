"""FiveK: its layout, its splits, its experts' renderings in colour, and what the doctor finds."""

import json
import os
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from attriqa.images import ImageError, read
from attriqa_envs.fivek import COUNT, FiveK, read_split, read_splits
from attriqa_envs.fivek.doctor import Finding, examine_photo, examine_tree, runs
from attriqa_envs.fivek.expert import read_expert, read_profile
from attriqa_envs.raw.cache import RenditionCache
from tests.support import dng_files
from tests.support.compare_helpers import load_recipe
from tests.support.trees import fivek as fivek_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fivek_tree.write(tmp_path / "fivek_dataset")


def diagnose(root: Path, experts: str = "ce") -> set[tuple[str, str, str]]:
    """(kind, file, reason) of everything but what is missing."""
    fivek = FiveK(root)
    numbers = [photo.number for photo in fivek.photos]
    found = examine_tree(fivek, numbers, experts)
    for photo in fivek.photos:
        found += examine_photo(photo, fivek, experts)
    return {(finding.kind, Path(finding.what).name, finding.reason) for finding in found}


def test_the_true_layout_is_found(root: Path) -> None:
    for given in (root, root.parent):
        fivek = FiveK(given)
        assert fivek.root == root
        assert [photo.number for photo in fivek.photos] == [1, 700, 1127, 4999, 5000]
        assert {photo.number: photo.name for photo in fivek.photos} == fivek_tree.NAMES
        assert all(set(photo.experts) == {"c", "e"} for photo in fivek.photos)
        assert fivek.strays == []
    photo = fivek.select([1127, 3, 1])[0]
    assert photo.dng == root / "raw_photos" / "HQa701to1400" / "photos" / "a1127-2004-06-08 12-41-28 CRW_0371.dng"
    assert photo.experts["e"] == root / "tiff16_e" / "a1127-2004-06-08 12-41-28 CRW_0371.tif"
    assert [photo.number for photo in fivek.select([1127, 3, 1])] == [1127, 1]


@pytest.mark.parametrize("place", ["img/tiff16_c", "../tiff16_c", "raw_photos/HQa1to700/tiff16_c"])
def test_renderings_may_stand_in_other_places(root: Path, place: str) -> None:
    (root / place).parent.mkdir(exist_ok=True)
    (root / "tiff16_c").rename(root / place)
    assert all(set(photo.experts) == {"c", "e"} for photo in FiveK(root).photos)


def test_what_is_no_fivek_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"root: expected a folder with raw_photos or fivek_dataset/raw_photos; got"):
        FiveK(tmp_path)
    (tmp_path / "raw_photos" / "HQa1to700" / "photos").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"root: expected DNGs as raw_photos/HQa1to700/photos/a0001-\*\.dng"):
        FiveK(tmp_path)


def test_photos_go_through_the_cache_and_match_the_size_of_their_experts(root: Path) -> None:
    photos = FiveK(root).photos
    loaded = RenditionCache(root.parent / "cache", 32).read_all([photo.source for photo in photos], progress=False)
    assert not loaded.failures
    for photo, image in zip(photos, loaded.images, strict=True):
        expert = read_expert(photo.experts["c"], shorter_edge=32)
        assert expert.size == image.metadata.size
        assert expert.pixels.shape == image.pixels.shape


def test_a_split_is_a_list_of_numbers_or_names(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("17\n\na0018\n a1127-2004-06-08 12-41-28 CRW_0371 \n5000  # the last\n", encoding="utf-8-sig")
    assert read_split(path) == [17, 18, 1127, 5000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n0\n", "line 2: expected a number from 1 to 5000 or a FiveK name, got '0'"),
        ("5001", "line 1: expected a number from 1 to 5000"),
        ("b0001-x", "line 1: expected a number"),
        ("12\n a0012-abc.dng", "line 2: 12 is in line 1 already"),
        ("# nothing\n", "expected FiveK numbers or names, one a line; got none"),
    ],
)
def test_a_wrong_split_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_split(path)


def test_splits_share_no_photo(tmp_path: Path) -> None:
    sizes = {"a": range(1, 2001), "b": range(2001, 4001), "test": range(4001, 5001)}
    for name, numbers in sizes.items():
        (tmp_path / name).write_text("\n".join(map(str, numbers)))
    splits = read_splits({name: tmp_path / name for name in sizes})
    assert {name: len(numbers) for name, numbers in splits.items()} == {"a": 2000, "b": 2000, "test": 1000}
    (tmp_path / "test").write_text("4001\n7\n2004")
    with pytest.raises(ValueError, match="a, test: expected lists that share no photo; both have 7"):
        read_splits({name: tmp_path / name for name in sizes})


TABLE = np.linspace(0, 1, 500) ** 2.1
PROFILES = {
    "prophoto": fivek_tree.profile(),
    "adobe": fivek_tree.profile(fivek_tree.ADOBE_RGB, fivek_tree.gamma_curve(563 / 256)),
    "table": fivek_tree.profile(fivek_tree.ADOBE_RGB, fivek_tree.table_curve(TABLE)),
    "parametric": fivek_tree.profile(
        curve=fivek_tree.parametric_curve(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    ),
    "sRGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
}


@pytest.mark.parametrize("name", PROFILES)
def test_colours_are_those_that_littlecms_gives(tmp_path: Path, name: str) -> None:
    """Which converts 8 bits, within a step or two."""
    stored = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint16)
    stored[:10, :10] = np.arange(10)[:, None, None] * 28  # grays
    path = fivek_tree.write_tiff(tmp_path / "a.tif", stored * 257, PROFILES[name])
    expert = read_expert(path)
    assert (expert.profile, expert.bits, expert.size) == ("embedded", 16, (40, 48))
    theirs = ImageCms.profileToProfile(
        Image.fromarray(stored.astype(np.uint8)),
        ImageCms.ImageCmsProfile(BytesIO(PROFILES[name])),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    assert theirs is not None
    apart = (expert.pixels.permute(1, 2, 0) * 255 - torch.from_numpy(np.array(theirs, np.float32))).abs()
    assert float(apart.quantile(0.99)) < 1.5
    assert float(apart.max()) < 4


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    """A ramp of 1,000 levels between two of 8 bits."""
    ramp = np.linspace(30_000, 30_400, 32 * 40).round().astype(np.uint16).reshape(32, 40, 1).repeat(3, 2)
    pixels = read_expert(fivek_tree.write_tiff(tmp_path / "a.tif", ramp, PROFILES["prophoto"])).pixels
    assert len(pixels[1].unique()) > 350
    assert bool((pixels[1].flatten().diff() >= 0).all())


def test_without_profile_prophoto_is_assumed_and_told(tmp_path: Path) -> None:
    stored = fivek_tree.rendering(1)
    tagged = read_expert(fivek_tree.write_tiff(tmp_path / "a.tif", stored, fivek_tree.profile()))
    bare = read_expert(fivek_tree.write_tiff(tmp_path / "b.tif", stored, None))
    assert bare.profile == "assumed ProPhoto"
    assert float((bare.pixels - tagged.pixels).abs().max()) < 0.02
    as_srgb = torch.from_numpy(stored.astype(np.float32) / 65535).permute(2, 0, 1)
    assert float((bare.pixels - as_srgb).abs().mean()) > 0.05, "what it would be, read as sRGB"
    spread = [float((pixels.amax(0) - pixels.amin(0)).mean()) for pixels in (bare.pixels, as_srgb)]
    assert spread[0] > 1.2 * spread[1], "which looks flat"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_and_bits_of_a_tiff(tmp_path: Path, orientation: int) -> None:
    stored = (fivek_tree.rendering(1) >> 8).astype(np.uint8)
    path = fivek_tree.write_tiff(tmp_path / "a.tif", stored, PROFILES["sRGB"], orientation)
    expert = read_expert(path)
    assert expert.bits == 8
    assert expert.size == expert.pixels.shape[1:]
    assert float((expert.pixels - read(path)).abs().max()) < 2 / 255


def test_a_rendering_is_resized_in_linear_light(tmp_path: Path) -> None:
    """Black and white lines become the gray that they look from afar, 0.735, not 0.5."""
    lines = np.zeros((128, 128, 3), np.uint16)
    lines[::2] = 65535
    pixels = read_expert(fivek_tree.write_tiff(tmp_path / "a.tif", lines, PROFILES["prophoto"]), shorter_edge=32).pixels
    assert pixels.shape == (3, 32, 32)
    assert float((pixels - 0.7354).abs()[:, 2:-2, 2:-2].max()) < 5e-3


@pytest.mark.parametrize(
    ("rows", "icc", "message"),
    [
        (60, fivek_tree.profile(space=b"GRAY"), "an ICC profile of GRAY; expected RGB"),
        (60, fivek_tree.profile(pcs=b"Lab "), "an ICC profile of tables"),
        (60, b"no profile" * 30, "broken ICC profile"),
        (60, fivek_tree.profile()[:300], "broken ICC profile"),
        (60, fivek_tree.profile((fivek_tree.PROPHOTO[0],) * 3), "its colours lie on a plane"),
        (20, fivek_tree.profile(), "90 x 20 px; sides must be at least 32 px"),
    ],
)
def test_a_bad_rendering_is_refused_with_the_reason(tmp_path: Path, rows: int, icc: bytes, message: str) -> None:
    path = fivek_tree.write_tiff(tmp_path / "a.tif", fivek_tree.rendering(1)[:rows], icc)
    with pytest.raises(ImageError, match=message) as caught:
        read_expert(path)
    assert caught.value.path == str(path)


def test_files_that_are_no_rendering_are_refused(tmp_path: Path) -> None:
    path = fivek_tree.write_tiff(tmp_path / "a.tif", fivek_tree.rendering(1), None)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ImageError, match="truncated"):
        read_expert(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError):
        read_expert(path)
    Image.new("F", (40, 40)).save(path)
    with pytest.raises(ImageError, match="expected RGB of 8 or 16 bits"):
        read_expert(path)
    with pytest.raises(ImageError, match="No such file"):
        read_expert(tmp_path / "none.tif")
    with pytest.raises(ValueError, match="shorter_edge: expected an integer of at least 32"):
        read_expert(path, shorter_edge=8)


def test_a_curve_type_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="a tone curve of type data"):
        read_profile(fivek_tree.profile(curve=b"data" + b"\0" * 12))
    with pytest.raises(ValueError, match="parametric curve of type 9"):
        read_profile(fivek_tree.profile(curve=fivek_tree.parametric_curve(9, 1.0)))


def test_the_doctor_finds_nothing_in_a_sound_tree(root: Path) -> None:
    assert diagnose(root) == set()


def test_the_doctor_names_each_fault_and_its_reason(root: Path) -> None:
    """One of each kind in a tree where all else is sound."""
    scene = dng_files.smooth_scene(68, 102)
    dng = {number: fivek_tree.dng_of(root, number) for number in fivek_tree.NAMES}
    tiff = {number: fivek_tree.tiff_of(root, number) for number in fivek_tree.NAMES}
    dng[1].write_bytes(dng[1].read_bytes()[:4000])
    dng_files.write_dng(dng[700], np.full((68, 102), 500, np.uint16), crop=(7, 5, 90, 60))
    dng_files.write_dng(dng[1127], dng_files.mosaic_of(scene), crop=(7, 5, 90, 60), neutral=(0.0, 1.0, 1.0))
    tiff[1127].rename(tiff[1127].with_name("a1127-of another name.tif"))
    fivek_tree.write_tiff(tiff[700], fivek_tree.rendering(700), None)
    fivek_tree.write_tiff(tiff[4999], fivek_tree.rendering(4999, 60, 84), fivek_tree.profile())
    fivek_tree.write_tiff(tiff[5000], fivek_tree.rendering(5000, 60, 90), fivek_tree.profile())
    (root / "tiff16_c" / "Thumbs.db").touch()
    fivek_tree.write_tiff(root / "tiff16_e" / "a0002-other.tif", fivek_tree.rendering(2), None)
    (root / "filesAdobe.txt").unlink()
    (root / "filesAdobeMIT.txt").unlink()
    found = diagnose(root)
    reasons = {(kind, name): reason for kind, name, reason in found}
    names = fivek_tree.NAMES
    stray = "not the name of a photo here (aNNNN-*), or a second file of one"
    assert "LibRaw cannot read it" in reasons.pop(("unreadable", f"{names[1]}.dng"))
    assert reasons == {
        ("corrupt", f"{names[700]}.dng"): "black throughout: no value is above the black level, 500 at most",
        ("note", f"{names[1127]}.dng"): "no as-shot white balance; taken: daylight",
        ("missing", "expert c of 1127"): "no such file",
        ("note", f"{names[700]}.tif"): "no ICC profile; taken for ProPhoto",
        ("size", f"{names[4999]}.tif"): "84 x 60 px, and its DNG 90 x 60",
        ("size", f"{names[5000]}.tif"): "90 x 60 px, and its DNG 60 x 90 (turned by 90 degrees)",
        ("stray", "Thumbs.db"): stray,
        ("stray", "a0002-other.tif"): stray,
        ("stray", "a1127-of another name.tif"): stray,
        ("note", "filesAdobe.txt, filesAdobeMIT.txt"): "without them it is not known which photo has which licence",
    }


def test_a_raw_filled_with_zeros_behind_a_cut_is_found(root: Path) -> None:
    mosaic = dng_files.mosaic_of(dng_files.smooth_scene(68, 102))
    mosaic[50:] = 0
    dng_files.write_dng(fivek_tree.dng_of(root, 1), mosaic, crop=(7, 5, 90, 60))
    assert diagnose(root) == {
        ("corrupt", "a0001-jmac_DSC1459.dng", "its last 15 of 60 rows hold one value: probably cut short")
    }


def test_what_is_missing_is_told_in_ranges(root: Path) -> None:
    (root / "raw_photos" / "HQa2801to3500" / "photos").rmdir()
    found = examine_tree(FiveK(root), range(1, COUNT + 1), "a")
    assert Finding("missing", "raw_photos/HQa2801to3500/photos", "no such folder") in found
    listed = [finding.what for finding in found if finding.what.startswith("DNG of")]
    assert listed == ["DNG of 2-699", "DNG of 701-1126", "DNG of 1128-4998"]
    assert [finding.what for finding in found if finding.what.startswith("expert")] == [
        f"expert a of {run}" for run in ("1", "700", "1127", "4999-5000")
    ]
    assert runs([]) == []


def doctor(*words: object) -> int:
    """Run the recipe in this process; its exit status."""
    try:
        load_recipe("fivek").main(["doctor", *map(str, words)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_recipe_reports_resumes_and_ends_with_a_status(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split, out = root.parent / "list.txt", root.parent / "out"
    split.write_text("\n".join(fivek_tree.NAMES.values()))
    words = (root, "--splits", split, "--out", out)
    assert doctor(*words) == 0
    assert "5 photos examined, experts c e: 0 faults (0 missing" in capsys.readouterr().out
    assert json.loads((out / "metrics.json").read_text())["n"] == 5
    path = fivek_tree.tiff_of(root, 4999, "e")
    data = path.read_bytes()
    path.write_bytes(data[:-500])
    examined = json.loads((out / "examined.json").read_text())
    examined["photos"][fivek_tree.NAMES[1]]["findings"] = [{"kind": "note", "what": "kept", "reason": "as it was"}]
    (out / "examined.json").write_text(json.dumps(examined))
    assert doctor(*words) == 1
    text = capsys.readouterr().out
    assert f"unreadable  tiff16_e/{path.name}: truncated: its pixels go on behind its end" in text
    assert "kept: as it was" in text, "what was examined is not examined again"
    assert "1 faults (0 missing, 0 stray, 1 unreadable, 0 corrupt, 0 size, 1 note)" in text
    assert json.loads((out / "metrics.json").read_text())["unreadable"] == 1
    path.write_bytes(data)
    os.utime(path)
    assert doctor(*words) == 0


@pytest.mark.slow
def test_the_doctor_runs_from_the_command_line(
    root: Path, run_recipe: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_recipe("envs/fivek.py", "doctor", root, "--smoke", "--out", root.parent / "out")
    assert done.returncode == 1
    assert "missing     DNG of 2-699: no such file" in done.stdout
    assert "5 photos examined" in done.stdout
    assert "Traceback" not in done.stderr
