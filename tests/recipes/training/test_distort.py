"""training/distort.py in this process, and as users run it (slow)."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from attriqa.distortions import DISTORTION_KEYS, DISTORTIONS, distort_seeded
from attriqa.distortions.mixtures import Mixture, apply_mixtures, read_manifest
from attriqa.images import read
from tests.support.trees import unlabelled as unlabelled_tree

Run = Callable[..., None]
SINGLE = ("--single", "--distortions", "white_noise", "jpeg")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return unlabelled_tree.load_recipe("distort")


@pytest.fixture
def run(recipe: ModuleType) -> Run:
    """``run(images, out, *flags)``: two passes of up to four distortions, without another process."""

    def run(images: Path, out: Path, *flags: object) -> None:
        cheap = () if "--distortions" in flags else ("--distortions", "white_noise", "jpeg", "brighten", "color_block")
        recipe.main(["--images", str(images), "--out", str(out), "--smoke", *cheap, *map(str, flags)])

    return run


def pristine(root: Path, count: int, *, width: int = 88, height: int = 72, gray: bool = False) -> Path:
    """A folder of smooth photos in colour, or of gray ones; every second one lies in a folder inside."""
    (root / "sub").mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        image = image.convert("L") if gray else image
        image.save(root / (f"sub/{number}.png" if number % 2 else f"{number}.jpg"))
    return root


def contents(out: Path) -> dict[str, bytes]:
    """Every image and the manifest; what was left of a killed process does not count."""
    files = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]
    keep = [
        path for path in files if path.suffix in (".png", ".webp") or path.name in ("manifest.csv", "references.csv")
    ]
    return {str(path.relative_to(out)): path.read_bytes() for path in keep}


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_every_image_gets_so_many_versions_and_the_manifest_tells_which(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = pristine(tmp_path / "photos", 3), tmp_path / "out"
    run(root, out, "--passes", 5)
    table = rows(out)
    names = [f"{key}.{turn:02d}.png" for key in ("0.jpg", "2.jpg", "sub/1.png") for turn in (1, 2)]
    assert [row["image"] for row in table] == [f"images/{name}" for name in names]
    assert [row["ref"] for row in table] == [name.rsplit(".", 2)[0] for name in names]
    assert {path.relative_to(out / "images").as_posix() for path in (out / "images").rglob("*.*")} == set(names)
    found = read_manifest(out)
    assert len(found) == 6
    allowed = [DISTORTION_KEYS.index(key) for key in ("white_noise", "jpeg", "brighten", "color_block")]
    for image, row in zip(found, table, strict=True):
        assert pixels(image.path).shape == (3, 96, 117), "the size of --smoke"
        order = [int(number) - 1 for number in row["order"].split()]
        assert set(order) <= set(allowed)
        assert 1 <= len(order) <= 4
    assert len({row["order"] for row in table}) > 3
    summary, text = json.loads((out / "metrics.json").read_text()), capsys.readouterr().out
    assert summary["n"] == 6
    assert sum(summary["images_with"].values()) == sum(len(row["order"].split()) for row in table)
    assert f"6 images of 3 references, 0 unreadable, {summary['distortions_per_image']:.4g} distortions" in text


def test_an_image_is_what_its_recipe_makes(run: Run, recipe: ModuleType, tmp_path: Path) -> None:
    """No pixel is lost between the recipe and the file but for rounding to 8 bits."""
    root = pristine(tmp_path / "photos", 2)
    for name in ("png", "webp"):
        run(root, tmp_path / name, "--format", name, "--seed", 3)
    config = recipe.Config(images=str(root), seed=3, passes=2, most=4, distortions=("11", "10", "16", "23"))
    index = recipe.open_source(config)
    for number in range(2):
        for name, key, plan in recipe.entries(config, index, number):
            image = read(root / key, shorter_edge=96)[None]
            expected = (apply_mixtures(image, [plan])[0] * 255).round().to(torch.uint8)
            assert torch.equal(pixels(tmp_path / "png" / name), expected)
            webp = tmp_path / "webp" / f"{name.removesuffix('.png')}.webp"
            assert torch.equal(pixels(webp), expected)


def test_a_seed_gives_the_same_bytes_whatever_else_the_folder_holds(run: Run, tmp_path: Path) -> None:
    root = pristine(tmp_path / "photos", 3)
    run(root, tmp_path / "a")
    run(root, tmp_path / "b")
    first = contents(tmp_path / "a")
    assert len(first) == 7
    assert contents(tmp_path / "b") == first
    run(root, tmp_path / "other", "--seed", 1)
    other = contents(tmp_path / "other")
    assert all(other[name] != data for name, data in first.items())
    Image.open(root / "0.jpg").save(root / "00.png")
    for grown in ("a", "c"):  # one goes on, one is new
        run(root, tmp_path / grown)
        found = contents(tmp_path / grown)
        assert len(found) == 9
        assert all(found[name] == data for name, data in first.items() if name != "manifest.csv")
        assert len(rows(tmp_path / grown)) == 8


def test_an_image_that_is_there_is_never_made_again(run: Run, tmp_path: Path) -> None:
    root, out = pristine(tmp_path / "photos", 3), tmp_path / "out"
    run(root, out)
    before = contents(out)
    (out / "images/2.jpg.02.png").unlink()
    (out / "manifest.csv").unlink()
    times = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
    run(root, out)
    assert contents(out) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert json.loads((out / "metrics.json").read_text())["last_run"]["made"] == 1


def test_another_configuration_is_refused(run: Run, recipe: ModuleType, tmp_path: Path) -> None:
    root, out = pristine(tmp_path / "photos", 1), tmp_path / "out"
    run(root, out)
    with pytest.raises(SystemExit, match="seed: 0 there, 1 now"):
        run(root, out, "--seed", 1)
    plans = [recipe.claim_of(recipe.Config(images="photos", workers=n, out=Path(str(n)))) for n in (1, 5)]
    assert plans[0] == plans[1], "which the pixels do not depend on"


def test_other_draws_from_the_same_seed_are_refused(
    run: Run, recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest's labels are drawn again at the end: those of another NumPy would be wrong."""
    root, out = pristine(tmp_path / "photos", 1), tmp_path / "out"
    run(root, out)
    monkeypatch.setattr(recipe, "draw_mixture", lambda rng, **_: Mixture((9,), (int(rng.integers(1, 6)),), 0))
    with pytest.raises(SystemExit, match=r"draws: '.*' there, '.*' now"):
        run(root, out)


def test_single_distortions_are_named_as_in_kadid(run: Run, tmp_path: Path) -> None:
    root, out = pristine(tmp_path / "photos", 2), tmp_path / "out"
    run(root, out, *SINGLE)
    names = [f"I{ref:02d}_{kind}_{level:02d}" for ref in (1, 2) for kind in (11, 10) for level in range(1, 6)]
    assert [row["image"] for row in rows(out)] == [f"images/{name}.png" for name in names]
    assert {path.stem for path in (out / "images").iterdir()} == {*names, "I01", "I02"}
    assert (out / "references.csv").read_text() == "ref,source\nimages/I01.png,0.jpg\nimages/I02.png,sub/1.png\n"
    assert torch.equal(pixels(out / "images/I01.png"), (read(root / "0.jpg", shorter_edge=96) * 255).round().byte())
    found = read_manifest(out)
    assert {image.reference for image in found} == {"images/I01.png", "images/I02.png"}
    for image, name in zip(found, names, strict=True):
        _, kind, level = name.split("_")
        expected = torch.zeros(25)
        expected[int(kind) - 1] = int(level) / 5
        assert torch.equal(image.strengths, expected)
    reference = read(out / "images/I02.png")
    jpeg = distort_seeded(read(root / "sub/1.png", shorter_edge=96)[None], "jpeg", 5, [0])[0]
    assert torch.equal(pixels(out / "images/I02_10_05.png"), (jpeg * 255).round().byte())
    errors = [(read(out / f"images/I02_11_{level:02d}.png") - reference).square().mean() for level in range(1, 6)]
    assert errors == sorted(errors)


def test_a_source_that_has_grown_would_shift_the_numbers(run: Run, tmp_path: Path) -> None:
    root, out = pristine(tmp_path / "photos", 1), tmp_path / "out"
    for _ in range(2):
        run(root, out, *SINGLE)
    Image.open(root / "0.jpg").save(root / "00.png")
    with pytest.raises(SystemExit, match=r"references\.csv numbers other images than .*photos holds now"):
        run(root, out, *SINGLE)


def test_more_than_99_images_get_wider_numbers(recipe: ModuleType, tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number:03d}.png").touch()
    config = recipe.Config(images=str(tmp_path), single=True, distortions=("jpeg",))
    index = recipe.open_source(config)
    assert [name for name, *_ in recipe.entries(config, index, 6)][:2] == ["images/I007.png", "images/I007_10_01.png"]


def test_level_order_and_finalize(run: Run, tmp_path: Path) -> None:
    root = pristine(tmp_path / "photos", 1)
    flags = ("--single", "--distortions", "mean_shift")
    run(root, tmp_path / "kadid", *flags)
    run(root, tmp_path / "severity", *flags, "--level-order", "severity")
    run(root, tmp_path / "mapmm", *flags, "--finalize", "mapmm")
    images = {name: read(tmp_path / name / "images/I01_18_01.png") for name in ("kadid", "severity", "mapmm")}
    reference = read(tmp_path / "kadid/images/I01.png")
    assert images["kadid"].mean() > reference.mean() + 0.05
    assert torch.equal(images["severity"], reference), "an offset of 0"
    assert images["mapmm"].min() == 0
    assert images["mapmm"].max() == 1


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ((), (96, 117)),
        (("--shorter-edge", 72), (72, 88)),
        (("--shorter-edge", 72, "--crop", "80x64"), (64, 80)),
        (("--crop", "60x60"), (60, 60)),
        (("--crop", "88x50"), (50, 88)),
    ],
)
def test_sizes(run: Run, tmp_path: Path, flags: tuple[object, ...], size: tuple[int, int]) -> None:
    root = pristine(tmp_path / "photos", 1)
    run(root, tmp_path / "out", *SINGLE, *flags)
    reference = pixels(tmp_path / "out/images/I01.png")
    assert tuple(reference.shape[1:]) == size
    assert pixels(tmp_path / "out/images/I01_10_01.png").shape == reference.shape
    if "--shorter-edge" in flags:
        height, width = size
        top, left = (72 - height) // 2, (88 - width) // 2
        whole = pixels(root / "0.jpg")
        assert torch.equal(reference, whole[:, top : top + height, left : left + width]), "the centre"
    elif "60x60" in flags:
        scaled = Image.open(root / "0.jpg").resize((73, 60), Image.Resampling.BILINEAR)
        expected = np.asarray(scaled, dtype=float)[:, 6:66]
        difference = np.abs(reference.permute(1, 2, 0).numpy() - expected)
        assert difference.max() <= 2, "the centre of the photo scaled until it just covers"


def test_a_gray_folder_is_refused_unless_allowed(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = pristine(tmp_path / "photos", 2, gray=True), tmp_path / "out"
    with pytest.raises(SystemExit, match=r"all 2 images are gray: distortions of colour.*--allow-gray"):
        run(root, out)
    assert not out.exists()
    run(root, out, "--allow-gray")
    assert len(rows(out)) == 4
    assert "warning: 2 of 2 photos are gray" in capsys.readouterr().err


def test_some_gray_photos_are_told(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = pristine(tmp_path / "photos", 3), tmp_path / "out"
    Image.open(root / "0.jpg").convert("L").convert("RGB").save(root / "0.jpg")
    run(root, out)
    assert "warning: 1 of 3 photos are gray" in capsys.readouterr().err
    assert json.loads((out / "metrics.json").read_text())["last_run"]["gray"] == 1
    assert len(rows(out)) == 6


def test_one_unreadable_image_is_told_and_left_out(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = pristine(tmp_path / "photos", 3), tmp_path / "out"
    (root / "0.jpg").write_bytes((root / "0.jpg").read_bytes()[:300])
    run(root, out)
    assert "unreadable, left out: 0.jpg: " in capsys.readouterr().err
    assert list(json.loads((out / "unreadable.json").read_text())) == ["0.jpg"]
    assert json.loads((out / "metrics.json").read_text())["unreadable"] == 1
    assert {row["ref"] for row in rows(out)} == {"2.jpg", "sub/1.png"}


def test_the_only_image_must_be_readable(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"no image of .*photos could be used: .*a\.png.*a file of 0 bytes"):
        run(tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "out/manifest.csv").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--crop", "89x60"), "88 x 72 px; --crop 89x60 does not upscale"),
        (
            ("--distortions", "non_eccentricity_patch", "--shorter-edge", 40),
            "49 x 40 px; these distortions need sides of at least 48 px",
        ),
    ],
)
def test_images_that_are_too_small_end_the_run(
    run: Run, tmp_path: Path, flags: tuple[object, ...], reason: str
) -> None:
    root, out = pristine(tmp_path / "photos", 2), tmp_path / "out"
    with pytest.raises(SystemExit, match="2 of 2 images cannot be read") as fault:
        run(root, out, *flags)
    assert f"0.jpg: {reason}" in str(fault.value)
    assert len(json.loads((out / "unreadable.json").read_text())) == 2
    assert not (out / "manifest.csv").exists()


def test_wrong_sources_are_refused(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SystemExit, match=r"no image in .*empty"):
        run(empty, tmp_path / "out")
    with pytest.raises(SystemExit, match=r"no such folder, list or shard: .*nowhere"):
        run(tmp_path / "nowhere", tmp_path / "out")
    root = pristine(tmp_path / "photos", 1)
    with pytest.raises(SystemExit, match="would be taken for pristine ones"):
        run(root, root / "distorted")
    (tmp_path / "list").mkdir()
    (tmp_path / "list/images.txt").write_text("../photos/0.jpg\n")
    with pytest.raises(SystemExit, match=r"expected images inside its own folder, got \.\./photos/0\.jpg"):
        run(tmp_path / "list/images.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--distortions", "jpg"), "jpeg"),
        (("--distortions", "26"), "26"),
        (("--distortions", "jpeg", "10"), "distortions: expected each once, got jpeg 10"),
        (("--crop", "512"), "crop: expected WIDTHxHEIGHT in px, as 512x384, got 512"),
        (("--passes", "0"), "passes: expected at least 1, got 0"),
    ],
)
def test_wrong_flags_are_refused(
    run: Run, tmp_path: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "out", *flags)
    assert message in capsys.readouterr().err


def test_each_recipe_may_use_all_25(recipe: ModuleType, tmp_path: Path) -> None:
    config = recipe.Config(images=str(tmp_path))
    assert config.among == tuple(range(25))
    pristine(tmp_path, 4)
    index = recipe.open_source(config)
    plans: list[Mixture] = [plan for number in range(4) for *_, plan in recipe.entries(config, index, number)]
    assert len(plans) == 40
    assert {index for plan in plans for index in plan.order} == set(range(25))
    assert max(len(plan.order) for plan in plans) > 20
    assert len({plan.seed for plan in plans}) == 40


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(recipe: ModuleType, tmp_path: Path) -> None:
    """SIGKILL to all processes of a run in its middle; the rest is made by this one, which has made it all before."""
    root = pristine(tmp_path / "photos", 6, width=64, height=64)
    words = ["--images", str(root), "--passes", "6", "--most", "25"]
    recipe.main([*words, "--workers", "0", "--out", str(tmp_path / "whole")])
    whole = contents(tmp_path / "whole")
    assert len(whole) == 37
    killed = tmp_path / "killed"
    command = [*unlabelled_tree.command("distort"), *words, "--workers", 2, "--out", killed]
    unlabelled_tree.killed(command, lambda: len(contents(killed)) >= 5)
    part = contents(killed)
    assert 5 <= len(part) < 36
    assert all(whole[name] == data for name, data in part.items()), "what is there is whole"
    assert "manifest.csv" not in part
    recipe.main([*words, "--workers", "0", "--out", str(killed)])
    assert contents(killed) == whole


@pytest.mark.slow
def test_small_images_work_with_every_distortion(run: Run, tmp_path: Path) -> None:
    keys = [entry.key for entry in DISTORTIONS]
    least = max(entry.smallest for entry in DISTORTIONS)
    root = pristine(tmp_path / "photos", 1)
    run(root, tmp_path / "out", "--single", "--distortions", *keys, "--shorter-edge", least)
    assert len(read_manifest(tmp_path / "out")) == 125
    assert len(list((tmp_path / "out/images").iterdir())) == 126
