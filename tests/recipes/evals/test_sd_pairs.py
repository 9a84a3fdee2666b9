"""The recipe that makes pairs of generated images, collects votes on them, and scores scorers by these."""

import csv
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attriqa.attributes import ATTRIBUTES
from attriqa.evaluation.preferences.files import image_name
from attriqa.evaluation.preferences.votes import COLUMNS
from attriqa.reward import FileScore
from tests.support.trees import unlabelled as unlabelled_tree

Run = Callable[..., subprocess.CompletedProcess[str]]
PROMPTS = ("a cat", "Ein Baum, groß", "東京", "a cat!")


class FakePipeline:
    """Pictures of their generator's noise; black for a prompt with ``nsfw``, flagged on demand."""

    def __init__(self, *, flags: bool = False, fail_after: int | None = None) -> None:
        self.flags, self.fail_after = flags, fail_after
        self.drawn: list[str] = []

    def __call__(
        self,
        prompt: Sequence[str],
        num_inference_steps: int,
        generator: Sequence[torch.Generator],
        output_type: str,
        height: int = 40,
        width: int = 48,
    ) -> SimpleNamespace:
        if self.fail_after is not None and len(self.drawn) >= self.fail_after:
            raise KeyboardInterrupt
        pictures = []
        for text, source in zip(prompt, generator, strict=True):
            noise = torch.rand(height, width, 3, generator=source) * ("nsfw" not in text)
            pictures.append(Image.fromarray((noise * 255).byte().numpy()))
        self.drawn += prompt
        return SimpleNamespace(images=pictures, nsfw_content_detected=[self.flags] * len(prompt))


class FakeReward:
    """Scores a file by its mean brightness."""

    names = ("score", *ATTRIBUTES)

    def __init__(self, model: str = "default", **_: object) -> None:
        self.identity = f"{Path(model).stem}-0123456789ab/full"
        self.sign = -1 if "wrong" in model else 1
        self.asked: list[str] = []
        REWARDS.append(self)

    def score_files(self, paths: Iterable[str | Path], *, threads: int | None = None) -> Iterator[FileScore]:
        for path in paths:
            self.asked.append(Path(path).name)
            mean = float(np.asarray(Image.open(path)).mean()) / 255
            yield FileScore(str(path), 0.5 + self.sign * (mean - 0.5), (mean, 0.1, 0.2, 0.3, 0.4), None)


REWARDS: list[FakeReward] = []


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = unlabelled_tree.load_recipe("sd_pairs", "evals")
    monkeypatch.setattr(module.attriqa, "QualityReward", FakeReward)
    REWARDS.clear()
    return module


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    return path


def records(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def result(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return values


def draw(recipe: ModuleType, pipeline: FakePipeline, prompts: Path, out: Path, *flags: object) -> dict[str, bytes]:
    """Generate with the pipeline; gives the images' bytes by name."""
    recipe.load_pipeline = lambda config: pipeline  # type: ignore[attr-defined]
    words = ["generate", "--model", "m", "--prompts", prompts, "--out", out, *flags]
    recipe.main([str(word) for word in words])
    return {path.name: path.read_bytes() for path in (out / "images").iterdir()}


def test_two_images_per_prompt_with_safe_names(recipe: ModuleType, prompts: Path, tmp_path: Path) -> None:
    found = draw(recipe, FakePipeline(), prompts, tmp_path / "out")
    assert len(found) == len(set(found.values())) == 2 * len(PROMPTS), "no two images are the same"
    assert all(name.isascii() and not set(name) & set(' /\\:*?"<>|!,') for name in found)
    manifest = records(tmp_path / "out" / "manifest.csv")
    assert [row["prompt"] for row in manifest] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert {Path(row["path"]).name for row in manifest} == set(found)
    pairs = records(tmp_path / "out" / "pairs.csv")
    assert [row["prompt"] for row in pairs] == list(PROMPTS)
    assert all((tmp_path / "out" / row[side]).is_file() for row in pairs for side in ("image_a", "image_b"))


def test_names_differ_in_what_file_systems_take_for_equal() -> None:
    texts = ["a cat", "A cat", "a  cat", "a/cat", "", "x" * 300, "x" * 301, "../../etc", "CON", "."]
    names = [image_name(text, number).lower() for text in texts for number in (0, 1)]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 80
    assert not any("/" in name or name.startswith(".") for name in names)


def test_an_image_depends_on_seed_and_prompt_and_not_on_batch_or_list(
    recipe: ModuleType, prompts: Path, tmp_path: Path
) -> None:
    together = draw(recipe, FakePipeline(), prompts, tmp_path / "a", "--batch", 8)
    assert draw(recipe, FakePipeline(), prompts, tmp_path / "b", "--batch", 1) == together
    other = draw(recipe, FakePipeline(), prompts, tmp_path / "c", "--seed", 1)
    assert all(other[name] != data for name, data in together.items())
    prompts.write_text("new\n" + "\n".join(reversed(PROMPTS)), encoding="utf-8")
    longer = draw(recipe, FakePipeline(), prompts, tmp_path / "d", "--batch", 3)
    assert {name: longer[name] for name in together} == together


def test_a_killed_run_goes_on_where_it_stopped(recipe: ModuleType, prompts: Path, tmp_path: Path) -> None:
    whole = draw(recipe, FakePipeline(), prompts, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        draw(recipe, FakePipeline(fail_after=4), prompts, tmp_path / "out", "--batch", 2)
    assert not (tmp_path / "out" / "pairs.csv").exists()
    second = FakePipeline()
    assert draw(recipe, second, prompts, tmp_path / "out", "--batch", 3) == whole
    assert len(second.drawn) == len(whole) - 4
    third = FakePipeline()
    draw(recipe, third, prompts, tmp_path / "out")
    assert third.drawn == []
    with pytest.raises(SystemExit, match="steps: 50 there, 7 now"):
        draw(recipe, third, prompts, tmp_path / "out", "--steps", 7)


@pytest.mark.parametrize("flags", [False, True])
def test_blanked_images_are_told_and_make_no_pair(
    recipe: ModuleType, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: bool
) -> None:
    prompts.write_text("a cat\nnsfw thing\n", encoding="utf-8")
    draw(recipe, FakePipeline(flags=flags), prompts, tmp_path / "out")
    blanked = ["a cat", "nsfw thing"] if flags else ["nsfw thing"]
    assert result(tmp_path / "out")["blanked_prompts"] == blanked
    assert len(records(tmp_path / "out" / "pairs.csv")) == 2 - len(blanked)
    assert f"{len(blanked)} prompts are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a cat\n\na cat\n", "each prompt once, got 'a cat' again"),
        (b"\n \n", "expected prompts, got none"),
        (b"\xff", "UTF-8"),
    ],
)
def test_bad_prompt_files_are_refused(
    recipe: ModuleType, prompts: Path, tmp_path: Path, text: bytes, message: str
) -> None:
    prompts.write_bytes(text)
    with pytest.raises(SystemExit, match=message):
        draw(recipe, FakePipeline(), prompts, tmp_path / "out")


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Six pairs; the brighter image is better liked in five of the six, and the clearer the brighter it is."""
    folder = tmp_path / "judged"
    folder.mkdir()
    rows = [["image_a", "image_b", "prompt", "votes_a", "votes_b"]]
    for n in range(6):
        Image.new("RGB", (40, 40), (100 + 10 * n,) * 3).save(folder / f"{n}a.png")
        Image.new("RGB", (40, 40), (90,) * 3).save(folder / f"{n}b.png")
        rows.append([f"{n}a.png", f"{n}b.png", f"p{n % 3}", *(("4", "6") if n == 0 else (str(4 + n), str(6 - n)))])
    rows[-2][3:] = ["9", "1"]
    (folder / "pairs.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    return folder / "pairs.csv"


def run_score(recipe: ModuleType, pairs: Path, out: Path, *flags: object) -> dict[str, Any]:
    recipe.main(["score", str(pairs), "--out", str(out), *map(str, flags)])
    return result(out)


def test_score_compares_scorers_and_people(
    recipe: ModuleType, judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.csv"
    rows = [f"{judged.parent / f'{n}{side}.png'},{int(side == 'a' and n > 2)}" for n in range(6) for side in "ab"]
    other.write_text("path,score\n" + "\n".join(rows) + "\n")
    found = run_score(
        recipe, judged, tmp_path / "out", "--model", "default", "wrong.safetensors", "--scores", f"other={other}"
    )
    scorers = found["scorers"]
    assert list(scorers) == ["default", "wrong", "other"]
    # Pair 1 has 5 votes on either side: a tie of people, without a right answer.
    assert [scorers[name]["n"] for name in scorers] == [5, 5, 5]
    assert scorers["default"]["human_ties"] == 1
    assert scorers["default"]["accuracy"] == 4 / 5
    assert scorers["wrong"]["accuracy"] == pytest.approx(1 / 5)
    assert scorers["other"]["accuracy"] == (3 + 0.5 + 0.5) / 5
    assert scorers["other"]["score_ties"] == 2
    tests = {(test["first"], test["second"]): test for test in found["tests"]}
    assert tests["default", "wrong"]["only_first"] == 4
    assert tests["default", "wrong"]["only_second"] == 1
    assert tests["default", "wrong"]["p"] == pytest.approx(0.375)
    assert sum(entry["n"] for entry in scorers["default"]["margins"]) == 5
    assert json.loads((tmp_path / "out" / "margins.json").read_text())["other"] == scorers["other"]["margins"]
    with Image.open(tmp_path / "out" / "margins.png") as picture:
        assert picture.width > 500
    text = capsys.readouterr().out
    assert "80.0    [37.6, 96.4]" in text
    assert "ATTIQA                      71.0    [64.4, 76.8]" in text, "the paper's row and its interval"
    assert text.index("Other data, not to be ranked") < text.index("71.0")
    assert found["published"]["rows"]["ATTIQA"]["n"] == 200


def test_no_image_is_scored_twice(recipe: ModuleType, judged: Path, tmp_path: Path) -> None:
    first = run_score(recipe, judged, tmp_path / "out")
    assert len(REWARDS[-1].asked) == 12
    assert run_score(recipe, judged, tmp_path / "out") == first
    assert REWARDS[-1].asked == []


def test_winners_without_votes_have_no_curve(recipe: ModuleType, judged: Path, tmp_path: Path) -> None:
    judged.write_text("image_a,image_b,prompt,preferred\n1a.png,1b.png,p,a\n2a.png,2b.png,q,b\n")
    found = run_score(recipe, judged, tmp_path / "out")
    assert found["scorers"]["default"]["accuracy"] == 0.5
    assert found["scorers"]["default"]["margins"] == []
    assert not (tmp_path / "out" / "margins.png").exists()


def test_black_images_are_counted_and_their_pairs_left_out(
    recipe: ModuleType, judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 40)).save(judged.parent / "5a.png")
    found = run_score(recipe, judged, tmp_path / "out")
    assert (found["black_images"], found["pairs_left_out_for_black"]) == (["5a.png"], 1)
    assert found["scorers"]["default"]["n"] == 4
    assert "1 left out for 1 all-black images (5a.png)" in capsys.readouterr().out


def test_what_cannot_be_scored_is_told(recipe: ModuleType, judged: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,score\n0a.png,1\n")
    for flags, message in (
        (("--scores", f"t={table}", "--model", "none"), "no score of 11 of 12 images"),
        (("--scores", str(table)), "expected NAME=FILE"),
        (("--scores", f"default={table}"), "each with a name of its own"),
        (("--model", "a/x.safetensors", "b/x.safetensors"), "two scorers are called x"),
        (("--model", "none"), "expected scorers"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_score(recipe, judged, tmp_path / "out", *flags)
    (judged.parent / "3b.png").unlink()
    with pytest.raises(SystemExit, match=r"1 of 12 images are not in .*: 3b\.png"):
        run_score(recipe, judged, tmp_path / "out")
    (judged.parent / "3b.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"3b\.png: "):
        run_score(recipe, judged, tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_agiqas_pairs_stand_in(recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "agiqa"
    root.mkdir()
    lines = ["name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align"]
    for n, (prompt, mos) in enumerate([("p", 1.0), ("p", 1.2), ("p", 2.0), ("q", 3.0), ("q", 3.4), ("r", 1.0)]):
        Image.new("RGB", (40, 40), (int(50 * mos),) * 3).save(root / f"glide_normal_{n:03}.jpg")
        lines.append(f"glide_normal_{n:03}.jpg,{prompt},,,,{mos},0.5,0.4,0.6")
    (root / "data.csv").write_text("\n".join(lines) + "\n")
    recipe.main(["score", "--agiqa", str(root), "--out", str(tmp_path / "out")])
    found = result(tmp_path / "out")
    entry = found["scorers"]["default"]
    assert (found["pairs"], found["images"], entry["n"], entry["accuracy"]) == (4, 5, 4, 1.0)
    assert [entry["above"][text]["n"] for text in ("0.25", "0.5")] == [3, 2]
    assert "margin > 0.25" in capsys.readouterr().out


def test_the_command_line_is_told_apart(recipe: ModuleType, judged: Path) -> None:
    wrong = [[], ["draw"], ["score"], ["score", str(judged), "--agiqa", "x"], ["generate", "--model", "m"]]
    for words in wrong:
        with pytest.raises(SystemExit) as refusal:
            recipe.main(words)
        assert refusal.value.code == 2


def answers(path: Path, rater: str, *given: tuple[int, str, str]) -> Path:
    rows = [[f"pair {n}", f"{n}a.png", f"{n}b.png", "p", left, preferred, "1.0", rater] for n, left, preferred in given]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def test_answers_become_pairs_that_score_reads(
    recipe: ModuleType, judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = answers(tmp_path / "1.csv", "", (0, "a", "a"), (1, "b", "a"), (2, "a", "tie"))
    two = answers(tmp_path / "2.csv", "", (0, "b", "a"), (1, "b", "b"), (2, "a", "b"))
    recipe.main(["tally", str(one), str(two), "--out", str(tmp_path / "tally")])
    rows = records(tmp_path / "tally" / "pairs.csv")
    assert [[row[name] for name in ("votes_a", "votes_b", "votes_tie", "n_votes")] for row in rows] == [
        ["2", "0", "0", "2"],
        ["1", "1", "0", "2"],
        ["0", "1", "1", "2"],
    ]
    assert "6 answers of 2 people to 3 pairs" in capsys.readouterr().out
    assert result(tmp_path / "tally")["win_rate_a"]["rate"] == 0.5
    assert result(tmp_path / "tally")["left_share"] == 2 / 5
    found = run_score(recipe, tmp_path / "tally" / "pairs.csv", tmp_path / "out", "--images", judged.parent)
    assert (found["scorers"]["default"]["n"], found["scorers"]["default"]["accuracy"]) == (2, 0.5)
    copy = answers(tmp_path / "3.csv", "ann", (0, "a", "a"))
    with pytest.raises(SystemExit, match="is one a copy"):
        recipe.main(["tally", str(copy), str(copy), "--out", str(tmp_path / "tally")])


def test_collect_makes_a_page_of_pairs_that_are_there(recipe: ModuleType, judged: Path, tmp_path: Path) -> None:
    recipe.main(["collect", str(judged), "--out", str(tmp_path / "page"), "--question", "Sharper?"])
    page = (tmp_path / "page" / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 12
    assert "Sharper?" in page
    Image.new("RGB", (40, 40)).save(judged.parent / "5a.png")
    with pytest.raises(SystemExit, match=r"1 pictures are all black.*5a\.png"):
        recipe.main(["collect", str(judged), "--out", str(tmp_path / "other")])
    (judged.parent / "5a.png").unlink()
    with pytest.raises(SystemExit, match="1 of 12 images are not in"):
        recipe.main(["collect", str(judged), "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_real_pipeline_draws_and_says_what_it_lacks(recipe: ModuleType, prompts: Path, tmp_path: Path) -> None:
    from tests.support import small_diffusion

    model = small_diffusion.write(tmp_path / "model")
    words = ["generate", "--model", str(model), "--prompts", str(prompts), "--steps", "2"]
    recipe.main([*words, "--out", str(tmp_path / "a"), "--batch", "3"])
    recipe.main([*words, "--out", str(tmp_path / "b"), "--batch", "1"])
    names = sorted(path.name for path in (tmp_path / "a" / "images").iterdir())
    assert len(names) == 2 * len(PROMPTS)
    for name in names:
        one, other = (np.asarray(Image.open(tmp_path / out / "images" / name), dtype=int) for out in "ab")
        assert one.shape == (32, 32, 3)
        assert abs(one - other).max() <= 1, "batch as one by one, up to rounding"
    every = {(tmp_path / "a" / "images" / name).read_bytes() for name in names}
    assert len(every) == len(names)
    for part in (model / "scheduler").iterdir():
        part.unlink()
    with pytest.raises(SystemExit, match=r"cannot be loaded as a diffusers pipeline: .*scheduler"):
        recipe.main([*words, "--out", str(tmp_path / "c")])
    with pytest.raises(SystemExit, match="cannot be loaded as a diffusers pipeline"):
        recipe.main(["generate", "--model", str(tmp_path), "--prompts", str(prompts), "--out", str(tmp_path / "d")])


@pytest.mark.slow
def test_the_default_scores_pairs_as_a_command(judged: Path, tmp_path: Path, run_recipe: Run) -> None:
    words = ("evals/sd_pairs.py", "score", judged, "--smoke", "--out", tmp_path / "out")
    first = run_recipe(*words)
    assert first.returncode == 0, first.stderr
    found = result(tmp_path / "out")
    entry = found["scorers"]["default"]
    assert f"{100 * entry['accuracy']:<8.1f}[{100 * entry['accuracy_low']:.1f}" in first.stdout
    second = run_recipe(*words)
    assert "12 of 12 images were scored before" in second.stdout
    assert result(tmp_path / "out") == found
