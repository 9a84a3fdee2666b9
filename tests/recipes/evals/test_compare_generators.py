"""The recipe that compares generators: its folders, prompts, cache, faults and files."""

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from attriqa import QualityReward, images
from tests.support import small_net
from tests.support.fake_scorer import FakeScorer, Result
from tests.support.trees import agiqa as agiqa_tree
from tests.support.trees import unlabelled as unlabelled_tree

Run = Callable[..., int]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return unlabelled_tree.load_recipe("compare_generators", "evals")


@pytest.fixture
def run(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``run(*flags, scorer=...)``: the recipe in this process, with results in ``tmp_path/out``."""

    def run(*flags: object, scorer: FakeScorer | None = None, smallest: bool = True) -> int:
        monkeypatch.setattr(recipe, "make_scorer", lambda config: scorer or FakeScorer(distortions=True))
        words = ["--out", tmp_path / "out", *flags, *(["--resamples", 100] if smallest else [])]
        status: int = recipe.main([str(word) for word in words])
        return status

    return run


@pytest.fixture
def judged(recipe: ModuleType, tmp_path: Path) -> Run:
    """``judged(*flags)``: as ``run``, with a real model, ``tmp_path/small.safetensors``."""

    def run(*flags: object) -> int:
        weights = tmp_path / "small.safetensors"
        if not weights.exists():
            small_net.save(weights)
        words = ["--out", tmp_path / "out", "--model", weights, "--resamples", 100, *flags]
        status: int = recipe.main([str(word) for word in words])
        return status

    return run


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))
    return found


def paint(path: Path, red: int, size: tuple[int, int] = (40, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 90, 40)).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """Two generators of six prompts; the second has another size and format, and is better but for ``p4``."""
    for n in range(6):
        paint(tmp_path / "a" / f"p{n}.png", 100 + 10 * n)
        paint(tmp_path / "b" / f"p{n}.jpg", 20 if n == 4 else 130 + 10 * n, (64, 48))
    return f"A={tmp_path / 'a'}", f"B={tmp_path / 'b'}"


# What it gives


def test_two_folders_are_compared_name_by_name(run: Run, tmp_path: Path, folders: tuple[str, str]) -> None:
    assert run("--generator", *folders, "--seed", 3) == 0
    found = result_of(tmp_path)
    assert list(found["generators"]) == ["B", "A"]
    (duel,) = found["duels"]
    assert (duel["first"], duel["paired"], duel["n"], duel["rate"]) == ("B", True, 6, 5 / 6)
    assert found["baseline"] == "A"
    change = found["changes"]["B"]
    assert (change["worse"], change["better"], change["only_other"]) == (1, 5, 0)
    assert change["worst"][0]["prompt"] == "p4"
    assert change["worst"][0]["image_after"] == str(tmp_path / "b" / "p4.jpg")
    assert found["notes"] == []
    assert found["left_out"] == {"A": {}, "B": {}}
    assert set(found["generators"]["A"]["summary"]) == {*FakeScorer(distortions=True).names}
    assert found["config"]["seed"] == 3
    assert (tmp_path / "out" / "page.html").read_text(encoding="utf-8").count("data:image/jpeg") > 4


def test_what_is_printed_is_in_the_file(
    run: Run, tmp_path: Path, folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--generator", *folders) == 0
    printed, found = capsys.readouterr().out, result_of(tmp_path)
    score = found["generators"]["B"]["summary"]["score"]
    assert f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in printed
    assert "B beats A in 83.3 %" in printed
    assert "A -> B: 1 of 6 prompts worse" in printed
    assert found["identity"] in printed


def test_a_file_of_prompts_says_which_images_belong_together(run: Run, tmp_path: Path) -> None:
    lines = ["image,prompt"]
    for name, base in (("a", 60), ("b", 120)):
        for n in range(4):
            paint(tmp_path / name / f"{name}_{n}.png", base + 9 * n)
            lines.append(f"{name}_{n}.png,{'a cat' if n < 2 else 'a dog'}")
    lines.append("elsewhere.png,a cow")
    (tmp_path / "prompts.csv").write_text("\n".join(lines), encoding="utf-8")
    generators = (f"A={tmp_path / 'a'}", f"B={tmp_path / 'b'}")
    assert run("--generator", *generators, "--prompts", tmp_path / "prompts.csv", "--baseline", "B") == 0
    found = result_of(tmp_path)
    assert (found["duels"][0]["n"], found["generators"]["A"]["images"]) == (2, 4)
    assert found["changes"]["A"]["worse"] == 2
    assert found["notes"] == [f"{tmp_path / 'prompts.csv'}: 1 of its images are in no folder"]


def test_prompts_of_one_side_are_counted_and_not_compared(run: Run, tmp_path: Path, folders: tuple[str, str]) -> None:
    paint(tmp_path / "a" / "alone.png", 250)
    assert run("--generator", *folders) == 0
    found = result_of(tmp_path)
    assert found["duels"][0]["n"] == 6
    assert found["changes"]["B"]["only_baseline"] == 1
    assert found["generators"]["A"]["images"] == 7
    assert found["notes"] == ["A: 1 of 7 prompts are no other generator's, so these are unpaired"]


def test_folders_without_a_prompt_in_common_are_still_compared(run: Run, tmp_path: Path) -> None:
    for n in range(5):
        paint(tmp_path / "a" / f"a{n}.png", 60 + 10 * n)
        paint(tmp_path / "b" / f"b{n}.png", 95 + 10 * n)
    assert run("--generator", f"A={tmp_path / 'a'}", f"B={tmp_path / 'b'}") == 0
    duel = result_of(tmp_path)["duels"][0]
    assert (duel["paired"], duel["n"]) == (False, 10)
    assert 0.5 < duel["rate"] < 1


def test_agiqas_settings_against_peoples_order(run: Run, tmp_path: Path) -> None:
    tree = agiqa_tree.build(tmp_path / "AGIQA-3K")
    assert run("--agiqa", tree, "--baseline", "sd1.5_normal") == 0
    found = result_of(tmp_path)
    assert set(found["generators"]) == set(agiqa_tree.SETTINGS)
    assert (found["order"]["n"], found["order"]["prompts"]) == (10, len(agiqa_tree.PROMPTS))
    assert found["order"]["tau"] > 0.7  # brighter is better liked in that tree, and this scorer likes red
    assert found["order"]["tau_low"] <= found["order"]["tau"] <= found["order"]["tau_high"]
    assert len(found["changes"]) == 9
    assert found["notes"] == [f"AGIQA-3K: {agiqa_tree.N} images of the 2,982 of the official set, 6 prompts"]
    (tree / "glide_normal_001.jpg").unlink()
    with pytest.raises(SystemExit, match="1 of 60 images are missing"):
        run("--agiqa", tree)
    assert run("--agiqa", tree, "--allow-missing") == 0
    assert "AGIQA-3K: 1 images of data.csv are missing" in result_of(tmp_path)["notes"]


def test_smoke_takes_prompts_that_all_have(run: Run, tmp_path: Path) -> None:
    for n in range(20):
        paint(tmp_path / "a" / f"{n:02}.png", 60)
        paint(tmp_path / "b" / f"{n + 10:02}.png", 80)
    assert run("--generator", f"A={tmp_path / 'a'}", f"B={tmp_path / 'b'}", "--smoke") == 0
    found = result_of(tmp_path)
    assert (found["duels"][0]["paired"], found["duels"][0]["n"]) == (True, 8)


# Images that cannot count


def test_black_images_are_flagged_and_in_no_mean(
    judged: Run, tmp_path: Path, folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 32), (1, 2, 0)).save(tmp_path / "a" / "p0.png")
    assert judged("--generator", *folders) == 0
    found = result_of(tmp_path)
    note = "A: 1 of 6 images left out: all black, as safety checkers leave them"
    assert found["notes"][0] == note
    assert note in capsys.readouterr().out
    assert note in (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert list(found["left_out"]["A"]) == [str(tmp_path / "a" / "p0.png")]
    assert found["generators"]["A"]["images"] == 5
    rest = QualityReward(tmp_path / "small.safetensors").score_files(tmp_path / "a" / f"p{n}.png" for n in range(1, 6))
    mean = sum(row.score or 0 for row in rest) / 5
    assert found["generators"]["A"]["summary"]["score"]["mean"] == pytest.approx(mean, abs=1e-5)
    assert found["duels"][0]["n"] == 5
    assert judged("--generator", *folders) == 0
    assert "A: 6 of 6 images were looked at before" in capsys.readouterr().out
    assert result_of(tmp_path)["notes"] == found["notes"]


def test_only_what_is_all_black_loses_its_score(recipe: ModuleType, tmp_path: Path) -> None:
    weights = small_net.save(tmp_path / "small.safetensors")
    pictures = {"a.png": (0, 0, 0), "b.jpg": (2, 3, 1), "c.png": (0, 0, 9), "d.jpg": (12, 12, 12), "e.png": (200, 9, 9)}
    for name, colour in pictures.items():
        Image.new("RGB", (40, 32), colour).save(tmp_path / name)
    night = Image.new("RGB", (640, 480))
    night.paste((255, 255, 255), (300, 200, 340, 240))
    night.save(tmp_path / "f.png")
    paths = [tmp_path / name for name in (*pictures, "f.png")]
    plain = QualityReward(weights, view="full")
    scorer = recipe.make_scorer(recipe.Config(generator=("a", "b"), model=str(weights), view="full"))
    rows = list(scorer.score_files(paths))
    assert [row.score == float("-inf") for row in rows] == [True, True, False, False, False, False]
    for row, expected in zip(rows[2:], list(plain.score_files(paths))[2:], strict=True):
        assert row == expected
    assert scorer.identity == plain.identity


def test_a_model_without_finite_scores_is_not_called_black(
    judged: Run, recipe: ModuleType, tmp_path: Path, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Any) -> QualityReward:
        scorer: QualityReward = recipe.RewardUnlessBlack(small_net.build())
        for name, buffer in scorer.model.named_buffers():
            if "regressor" in name and buffer.is_floating_point():
                buffer.fill_(torch.nan)
        return scorer

    monkeypatch.setattr(recipe, "make_scorer", broken)
    with pytest.raises(SystemExit, match="A: none of its 6 images can be used: the model gave no finite score"):
        judged("--generator", *folders)


def test_unreadable_images_are_counted_and_change_the_exit_status(
    run: Run, tmp_path: Path, folders: tuple[str, str]
) -> None:
    (tmp_path / "b" / "p1.jpg").write_bytes(b"no image")
    assert run("--generator", *folders) == 1
    found = result_of(tmp_path)
    assert found["notes"][0] == "B: 1 of 6 images left out: they could not be scored"
    assert found["duels"][0]["n"] == 5
    paint(tmp_path / "b" / "p1.jpg", 200)
    assert run("--generator", *folders) == 0
    assert result_of(tmp_path)["duels"][0]["n"] == 6


def test_a_generator_of_nothing_but_black_images_is_refused(
    judged: Run, tmp_path: Path, folders: tuple[str, str]
) -> None:
    for path in (tmp_path / "a").iterdir():
        Image.new("RGB", (40, 32)).save(path)
    with pytest.raises(SystemExit, match="A: none of its 6 images can be used: all black"):
        judged("--generator", *folders)


# The cache


class Interrupted(FakeScorer):
    """Ctrl-C after a few images."""

    def score_files(self, paths: Iterable[str | Path], *, threads: int | None = None) -> Iterator[Result]:
        for result in super().score_files(paths, threads=threads):
            if len(self.asked) > 8:
                raise KeyboardInterrupt
            yield result


def test_a_killed_run_goes_on_and_ends_as_any_other(run: Run, tmp_path: Path, folders: tuple[str, str]) -> None:
    scorer, rest = Interrupted(), FakeScorer()
    assert run("--generator", *folders, scorer=scorer) == 130
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert run("--generator", *folders, scorer=rest) == 0
    assert len(rest.asked) == 12 - 8
    resumed = result_of(tmp_path)
    whole = FakeScorer()
    assert run("--generator", *folders, "--out", tmp_path / "out2" / "out", scorer=whole) == 0
    assert len(whole.asked) == 12
    once = result_of(tmp_path / "out2")
    for changing in ("config", "scoring_seconds"):
        del resumed[changing], once[changing]
    assert resumed == once


def test_an_image_that_changed_is_scored_again_and_only_it(run: Run, tmp_path: Path, folders: tuple[str, str]) -> None:
    assert run("--generator", *folders) == 0
    changed = tmp_path / "a" / "p2.png"
    later = (tmp_path / "out" / "scores" / "A.csv").stat().st_mtime + 5
    paint(changed, 250)
    os.utime(changed, (later, later))
    scorer = FakeScorer(distortions=True)
    assert run("--generator", *folders, scorer=scorer) == 0
    assert scorer.asked == [str(changed)]
    assert result_of(tmp_path)["generators"]["A"]["summary"]["score"]["quantiles"][-1] > 0.8


def test_an_image_that_has_become_black_counts_no_longer(judged: Run, tmp_path: Path, folders: tuple[str, str]) -> None:
    assert judged("--generator", *folders) == 0
    changed, table = tmp_path / "a" / "p2.png", tmp_path / "out" / "scores" / "A.csv"
    Image.new("RGB", (40, 32)).save(changed)
    os.utime(changed, (table.stat().st_mtime + 5,) * 2)
    assert judged("--generator", *folders) == 0
    assert result_of(tmp_path)["generators"]["A"]["images"] == 5


def test_one_name_for_another_folder_takes_no_score_of_the_first(
    run: Run, tmp_path: Path, folders: tuple[str, str]
) -> None:
    assert run("--generator", *folders) == 0
    assert run("--generator", f"A={tmp_path / 'b'}", f"B={tmp_path / 'a'}") == 0
    assert list(result_of(tmp_path)["generators"]) == ["A", "B"]


def test_an_image_is_read_once_to_be_scored_and_again_only_to_be_shown(
    judged: Run, tmp_path: Path, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    read = images.read

    def counted(path: str | Path, **options: Any) -> torch.Tensor:
        opened.append(Path(path))
        return read(path, **options)

    monkeypatch.setattr(images, "read", counted)
    assert judged("--generator", *folders, "--gallery", 1) == 0
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    shown = page.count("data:image/jpeg")
    assert len(set(opened[:12])) == 12
    assert len(opened) == 12 + shown
    assert shown == 2 * 2 + 2  # the worst and the best of each, and the pair that fell most


# What is wrong with the command line or the folders


def test_faults_are_told_before_anything_is_scored(run: Run, tmp_path: Path, folders: tuple[str, str]) -> None:
    a, b = folders
    (tmp_path / "empty").mkdir()
    paint(tmp_path / "twice" / "p1.png", 9)
    paint(tmp_path / "twice" / "p1.jpg", 9)
    (tmp_path / "prompts.csv").write_text("image,prompt\np1.png,a cat\n", encoding="utf-8")
    cases: dict[tuple[object, ...], str] = {
        (a,): "generator: expected two or more, got A",
        (a, str(tmp_path / "b")): "generator: expected NAME=FOLDER",
        (a, f"../x={tmp_path / 'b'}"): "generator: expected NAME=FOLDER",
        (a, f"A={tmp_path / 'b'}"): "generator: two are called A",
        (a, f"C={tmp_path / 'none'}"): "generator: C: expected a folder, got",
        (a, f"C={tmp_path / 'empty'}"): "C: no images in .*empty; --recursive",
        (a, f"C={tmp_path / 'twice'}"): r"C: expected each name once, got p1.jpg, p1.png \(1 such names\) in",
        (a, b, "--baseline", "C"): "baseline: expected one of A, B, got C",
        (a, b, "--prompts", tmp_path / "prompts.csv"): "A: 5 of 6 images have no prompt.*: p0.png, p2.png",
        (a, b, "--prompts", tmp_path / "none.csv"): "No such file",
    }
    scorer = FakeScorer()
    for words, message in cases.items():
        with pytest.raises(SystemExit, match=message):
            run("--generator", *words, scorer=scorer)
    assert scorer.asked == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected --generator or --agiqa, one of them"),
        (("--generator", "A=a", "--agiqa", "x"), "expected --generator or --agiqa, one of them"),
        (("--agiqa", "x", "--prompts", "y"), "prompts: AGIQA-3K has its own"),
        (("--agiqa", "x", "--gallery", 0), "gallery: expected at least 1, got 0"),
        (("--agiqa", "x", "--threads", 0), "threads: expected at least 1, got 0"),
        (("--agiqa", "x", "--resamples", 5), "resamples: expected at least 100, got 5"),
    ],
)
def test_wrong_flags_end_with_the_usage(
    run: Run, words: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*words, smallest=False)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_as_users_run_it(
    tmp_path: Path, folders: tuple[str, str], run_recipe: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    weights = small_net.save(tmp_path / "small.safetensors")
    words = ("--generator", *folders, "--model", weights, "--out", tmp_path / "out", "--smoke")
    done = run_recipe("evals/compare_generators.py", *words)
    assert done.returncode == 0, done.stderr
    found = result_of(tmp_path)
    assert found["identity"].startswith("small-")
    assert found["generators"].keys() == {"A", "B"}
    again = run_recipe("evals/compare_generators.py", *words)
    assert "A: 6 of 6 images were looked at before" in again.stdout
    assert result_of(tmp_path)["duels"] == found["duels"]
