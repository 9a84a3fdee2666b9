"""The comparison of ways of tuning: what is measured, the table, and the recipe."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attriqa import images
from attriqa.evaluation.preferences.files import read_pairs
from attriqa.evaluation.preferences.votes import COLUMNS, read_votes
from attriqa.judges import signal as signal_measures
from attriqa.models.assessment import Assessment
from attriqa_envs.evaluation import records as method_table
from attriqa_envs.evaluation.records import Records, measure, table_of_methods, table_text
from attriqa_envs.evaluation.recovery import PERTURBATIONS, perturb
from attriqa_envs.isp import KEYS, render
from attriqa_envs.raw.cache import RenditionCache
from attriqa_envs.raw.find import find_images
from attriqa_envs.raw.image_sets import ImageGroup, read_group, read_unseen, seeds_of
from tests.support.compare_helpers import load_recipe, write_photos, write_policy
from tests.support.isp_pictures import params
from tests.support.trees import fivek as fivek_tree

# What is measured.


def moments(pictures: Tensor) -> Assessment:
    flat = pictures.flatten(2)
    values = torch.stack((pictures.mean((1, 2, 3)), pictures.std((1, 2, 3)), *flat.mean(2).unbind(1)), 1)
    return Assessment(values[:, 0], values)


def test_clipped_and_oversaturated_pixels_are_counted() -> None:
    picture = torch.full((1, 3, 40, 40), 0.5)
    picture[0, :, :4] = 1.0  # a tenth is white: clipped, gray
    picture[0, :, 4:12, :] = torch.tensor([0.9, 0.003, 0.4])[:, None, None]  # a fifth is at the gamut's border
    picture[0, :, 12:16, :] = torch.tensor([0.1, 0.003, 0.1])[:, None, None]  # a tenth is dark
    picture[0, 0, 16:20, :] = 0.9999  # of another tenth, red alone is clipped
    (told,) = measure(picture, moments, {})
    assert (told["clipped"], told["oversaturated"]) == (pytest.approx(0.2), pytest.approx(0.2))
    assert told["score"] == pytest.approx(float(picture.mean()))
    assert next(iter(told["attributes"].values())) == pytest.approx(float(picture.mean()))


def test_pictures_are_judged_one_by_one_as_in_batches() -> None:
    pictures = torch.rand(21, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    judges = {"sharpness": signal_measures.sharpness}
    together = measure(pictures, moments, judges)
    for row in (0, 16, 20):
        (alone,) = measure(pictures[row : row + 1], moments, judges)
        assert together[row] == {
            name: pytest.approx(value, abs=1e-6) if isinstance(value, float) else pytest.approx(value, abs=1e-5)
            for name, value in alone.items()
        }
    with pytest.raises(ValueError, match="judge broken: expected 16 finite values"):
        measure(pictures, moments, {"broken": lambda some: some.mean((1, 2, 3)) / 0})


def record(
    file: str, method: str, *, reward: float, score: float, judge: float, seconds: float = 1.0
) -> dict[str, Any]:
    told = {"score": score, "clipped": 0.1, "oversaturated": 0.0, "attributes": {}, "judges": {"j": judge}}
    return {"file": file, "method": method, "renders": 5, "seconds": 1.0, "curve": [0.0, reward], "told": told}


def rows_of(files: int = 12) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    base = [record(f"f{n}", "default", reward=0.0, score=0.5, judge=2.0) for n in range(files)]
    for entry in base:
        entry["curve"] = [0.2]
    noise = rng.normal(0, 0.01, (3, files))

    def of(method: str, gain: float, judge: float, scatter: Any) -> list[dict[str, Any]]:
        return [
            record(f"f{n}", method, reward=0.2 + gain + scatter[n], score=0.5 + gain, judge=2 + judge + scatter[n])
            for n in range(files)
        ]

    rows = {"default": base, "adam": of("adam", 0.2, -0.5, noise[0]), "policy": of("policy", 0.15, 0.3, noise[1])}
    expert = [
        {**record(f"f{n}", "expert", reward=0.0, score=0.4, judge=2.0), "curve": None} for n in range(min(3, files))
    ]
    for entry in expert:
        entry |= {"renders": None, "seconds": None}
    return table_of_methods({**rows, "expert": expert})


def test_the_table_has_gains_over_the_default_with_intervals() -> None:
    rows = {row["method"]: row for row in rows_of()}
    assert rows["default"]["gains"]["reward"] == {"mean": 0, "low": 0, "high": 0}
    gain = rows["policy"]["gains"]["reward"]
    assert gain["low"] < gain["mean"] < gain["high"]
    assert gain["mean"] == pytest.approx(0.15, abs=0.01)
    assert rows["policy"]["of_adam"]["mean"] == pytest.approx(0.75, abs=0.05)
    assert rows["policy"]["of_adam"]["low"] < 0.75 < rows["policy"]["of_adam"]["high"]
    assert rows["adam"]["behind_policy"]["mean"] == pytest.approx(-0.05, abs=0.01)
    assert rows["policy"]["behind_policy"] is None
    assert rows["expert"]["n"] == 3
    assert "reward" not in rows["expert"]["gains"]
    assert rows["expert"]["gains"]["score"]["mean"] == pytest.approx(-0.1)
    text = table_text(rows_of())
    assert re.search(r"^expert +3 +-0.1000 \[", text, re.MULTILINE)
    assert re.search(r"^policy +12 +5 +1.00 +\+0.1\d+ \[.* 7\d % \[", text, re.MULTILINE)


def test_the_alarm_sounds_where_a_judge_falls() -> None:
    rows = {row["method"]: row for row in rows_of()}
    assert len(rows["adam"]["alarms"]) == 1
    assert "ALARM: adam: the score rises by 0.2" in rows["adam"]["alarms"][0]
    assert "judge j falls by 0.49" in rows["adam"]["alarms"][0]
    assert rows["policy"]["alarms"] == []
    assert rows["adam"]["alarms"][0] in table_text(rows_of())


def test_one_picture_has_no_interval() -> None:
    row = rows_of(1)[1]
    assert list(row["gains"]["reward"]) == ["mean"]
    assert row["alarms"] == []


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    records = Records(tmp_path, "dark")
    picture = torch.rand(3, 32, 40)
    assert not records.has("adam", "a b/c%.dng")
    records.write("adam", "a b/c%.dng", {"seconds": 1.5}, picture)
    assert records.has("adam", "a b/c%.dng")
    assert records.read("adam", "a b/c%.dng") == {"file": "a b/c%.dng", "method": "adam", "seconds": 1.5}
    assert float((records.picture("adam", "a b/c%.dng") - picture).abs().max()) <= 0.5 / 255 + 1e-6
    (path,) = (tmp_path / "records" / "dark" / "adam").iterdir()
    for text in ("{", '{"file": "other"}', "[]"):
        path.write_text(text)
        with pytest.raises(ValueError, match="delete it, and it is made again"):
            records.read("adam", "a b/c%.dng")


# The images.


def test_images_are_unseen_ones_and_the_same_in_any_company(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", 6)
    (root / "photo_5.png").write_bytes(b"no picture")
    cache, trained = RenditionCache(None, 48), {"photo_0.png", "photo_2.png"}

    def read(part: slice = slice(None), *, most: int = 9, seed: int = 0, trained: Collection[str] = ()) -> ImageGroup:
        files = find_images(root, kind="photo")[part]
        group = read_unseen(files, cache, root=root, trained=trained, most=most, seed=seed)
        return group.unprocessed(seeds_of(seed, group.files))

    every = read()
    assert every.files == tuple(f"photo_{n}.png" for n in range(5))
    (reason,) = every.left_out
    assert "photo_5.png" in reason
    few = read(most=2, seed=3, trained=trained)
    assert len(few.files) <= 2
    assert not trained & set(few.files)
    assert few.left_out[0] == "2 files that the policy was trained on"
    other = read(slice(1, 4))
    for file, picture in zip(other.files, other.linear, strict=True):
        assert torch.equal(picture, every.linear[every.files.index(file)])
    assert len(set(seeds_of(0, every.files))) == 5
    assert not torch.equal(read(slice(3), seed=1).linear, every.linear[:3])
    with pytest.raises(ValueError, match="expected some that the policy was not trained on; got none of 1"):
        read(slice(1), trained=trained)


def test_perturbed_groups_know_their_originals(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", 2)
    cache = RenditionCache(None, 48)
    group = read_group(find_images(root), cache, root=root)
    dark = perturb(group, [p for p in PERTURBATIONS if p.name == "dark"], 0)[0]
    assert dark.originals is not None
    undone = render(dark.linear.float(), params(2, exposure=2))
    assert float((undone - dark.originals).abs().max()) < 0.01


# The recipe.

recipe = load_recipe("compare_isp")


@pytest.fixture(scope="module")
def done(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished comparison, and its command."""
    root = tmp_path_factory.mktemp("compare")
    photos = write_photos(root / "photos", 4)
    policy = write_policy(root / "policy", trained=("photo_0.png", "photo_3.png"))
    words = ["--photos", photos, "--policy", policy, "--model", weights, "--judges", "contrast", "--smoke"]
    command = [*map(str, words), "--out", str(root / "out")]
    recipe.main(command)
    return root / "out", command


def test_the_comparison_has_every_method_on_unseen_images(done: tuple[Path, list[str]]) -> None:
    metrics = json.loads((done[0] / "metrics.json").read_text())
    assert metrics["files"] == ["photo_1.png", "photo_2.png"]
    rows = {row["method"]: row for row in metrics["rows"]}
    assert list(rows) == ["default", "random", "cmaes", "adam", "policy"]
    assert [row["renders"] for row in rows.values()] == [0, 3, 3, 3, 2]  # the policy's horizon
    assert all(row["n"] == 2 and row["seconds"] > 0 for row in rows.values())
    assert set(rows["policy"]["gains"]) > {"reward", "score", "sharpness", "judge contrast"}
    assert all(rows[name]["gains"]["reward"]["mean"] >= 0 for name in ("random", "cmaes", "adam"))
    assert "that the policy was not trained on" in metrics["protocol"]
    assert "the policy was trained for another reward" in metrics["protocol"]
    moved = method_table.Records(done[0]).read("policy", "photo_1.png")["params"]
    assert {key for key, value in moved.items() if abs(value) > 1e-6} == {"exposure", "tint", "contrast"}
    assert list(moved) == list(KEYS)


def test_a_run_goes_on_where_it_stopped(done: tuple[Path, list[str]]) -> None:
    out, command = done
    records = sorted((out / "records").rglob("photo*.json"))
    assert len(records) == 10
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in records}
    gone = out / "records" / "adam" / "photo_2.png.json"
    gone.unlink()
    (out / "metrics.json").unlink()
    recipe.main(command)
    for path in records:
        content, when = before[path]
        if path != gone:
            assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, when)
    first, second = json.loads(before[gone][0]), json.loads(gone.read_bytes())
    first.pop("seconds")
    second.pop("seconds")
    assert first["params"] == pytest.approx(second["params"], abs=1e-3)
    assert (out / "metrics.json").is_file()


def test_pictures_of_the_table_are_what_their_params_render(done: tuple[Path, list[str]]) -> None:
    records = Records(done[0])
    shown = {name: records.picture(name, "photo_1.png") for name in ("default", "adam", "policy")}
    assert float((shown["default"] - shown["policy"]).abs().mean()) > 2 / 255
    (told,) = measure(shown["adam"][None], moments, {"contrast": signal_measures.contrast})
    kept = records.read("adam", "photo_1.png")["told"]["judges"]["contrast"]
    assert told["judges"]["contrast"] == pytest.approx(kept, abs=0.01)


def test_changed_weights_are_refused(done: tuple[Path, list[str]]) -> None:
    out, command = done
    kept = out / "records" / "config.json"
    text = kept.read_text()
    kept.write_text(text.replace('"small-', '"other-'))
    try:
        with pytest.raises(SystemExit, match=r"another configuration \(reward: 'other-.* there, 'small-.* now"):
            recipe.main(command)
    finally:
        kept.write_text(text)


def test_the_blind_page_of_two_methods(done: tuple[Path, list[str]], tmp_path: Path) -> None:
    recipe.main(["ab", str(done[0]), "--a", "policy", "--b", "adam", "--out", str(tmp_path)])
    pairs = read_pairs(tmp_path / "pairs.csv", judged=False)
    assert [(pair.image_a, pair.image_b) for pair in pairs] == [
        (f"policy/photo_{n}.png.png", f"adam/photo_{n}.png.png") for n in (1, 2)
    ]
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 4
    answers = tmp_path / "answers.csv"
    answers.write_text(
        "pair,image_a,image_b,prompt,left,preferred,seconds,rater\n"
        f"photo_1.png,{pairs[0].image_a},{pairs[0].image_b},,b,a,1.0,Ann\n"
    )
    assert read_votes(answers)[0].preferred == "a"  # what evals/sd_pairs.py tally counts
    with pytest.raises(SystemExit, match=r"\(adam, cmaes, default, policy, random\); got expert"):
        recipe.main(["ab", str(done[0]), "--a", "expert", "--b", "adam", "--out", str(tmp_path)])


def test_recovery_tells_how_near_each_method_comes(weights: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    words = ["--photos", photos, "--model", weights, "--recover", "--methods", "random", "--smoke", "--out", tmp_path]
    recipe.main([*map(str, words)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rows = {(row["perturbation"], row["method"]): row for row in metrics["rows"]}
    assert set(rows) == {(name, method) for name in ("bright", "dark") for method in ("random", "ceiling")}
    assert rows["dark", "ceiling"]["psnr_gain"] > 1  # in three steps
    assert rows["dark", "ceiling"]["psnr_gain"] > rows["dark", "random"]["psnr_gain"]
    assert rows["dark", "random"]["score_original"] == rows["bright", "random"]["score_original"]
    assert rows["dark", "random"]["score_after"] >= rows["dark", "random"]["score_before"] - 0.01
    assert rows["dark", "random"]["psnr_before"] == rows["dark", "ceiling"]["psnr_before"]
    page = (tmp_path / "page.html").read_text()
    assert all(text in page for text in ('"original"', "bright: photo_0.png", "CIEDE2000", '"ceiling"'))


@pytest.mark.slow
def test_the_experts_renderings_stand_beside(weights: Path, tmp_path: Path) -> None:
    root = fivek_tree.write(tmp_path / "fivek")
    out = tmp_path / "out"
    words = ["--fivek", root, "--model", weights, "--methods", "random", "--random-renders", "2", "--side", "48"]
    recipe.main([*map(str, words), "--out", str(out)])
    rows = {row["method"]: row for row in json.loads((out / "metrics.json").read_text())["rows"]}
    assert 0 < rows["expert"]["n"] <= rows["default"]["n"]
    assert rows["expert"]["seconds"] is None
    assert "judge sharpness" in rows["expert"]["gains"]
    file = next(iter((out / "pictures" / "expert").iterdir()))
    assert images.read(file).shape == (3, 48, 48)
    assert '"expert"' in (out / "page.html").read_text()


@pytest.mark.slow
def test_the_command_of_the_documentation(run_recipe: Any, weights: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    words = ["--photos", photos, "--model", weights, "--smoke", "--out", tmp_path / "out"]
    done = run_recipe("envs/compare_isp.py", *words)
    assert done.returncode == 0, done.stderr
    assert "method" in done.stdout
    assert (tmp_path / "out" / "page.html").is_file()
    done = run_recipe("envs/compare_isp.py", *words, "--seed", "1")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"{tmp_path / 'out'} holds a run with another configuration")


@pytest.mark.slow
def test_answers_to_the_blind_page_are_counted(run_recipe: Any, done: tuple[Path, list[str]], tmp_path: Path) -> None:
    told = run_recipe("envs/compare_isp.py", "ab", done[0], "--a", "adam", "--out", tmp_path / "ab")
    assert told.returncode == 0, told.stderr
    assert "2 pairs, adam against default" in told.stdout
    rows = (tmp_path / "ab" / "pairs.csv").read_text().splitlines()[1:]
    answers = [f"{row.split(',')[0]},{row},b,{'ab'[n]},1.0,Ann" for n, row in enumerate(rows)]
    (tmp_path / "answers.csv").write_text("\n".join([",".join(COLUMNS), *answers]))
    told = run_recipe("evals/sd_pairs.py", "tally", tmp_path / "answers.csv", "--out", tmp_path / "judged")
    assert told.returncode == 0, told.stderr
    assert "image_a wins 50.0 %" in told.stdout
