import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from attriqa import ATTRIBUTES
from attriqa.evaluation import metrics
from tests.support.trees import agiqa as small

PROMISED = {
    f"{name}{end}" for name in ("srocc", "plcc", "plcc_fitted", "krocc", "rmse") for end in ("", "_low", "_high")
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return small.build(tmp_path / "AGIQA-3K")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tree: Path) -> small.Run:
    return small.runner(monkeypatch, tree)


# What it gives


@pytest.mark.slow
def test_the_command_as_users_run_it(
    tree: Path, tmp_path: Path, run_recipe: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    from attriqa.models import AttributeNet, AttributeNetConfig, checkpoint

    net = AttributeNet(AttributeNetConfig(backbone="mobilenet_v1", taps=(2,), head_width=8, shorter_edge=40, crop=32))
    config = json.loads(json.dumps(net.config.__dict__))
    weights = tmp_path / "untrained.safetensors"
    checkpoint.save(weights, net.state_dict(), architecture="AttributeNet", config=config, provenance={})
    done = run_recipe(
        "evals/agiqa.py", "--root", tree, "--out", tree / "out", "--model", weights, "--view", "five_crop"
    )
    assert done.returncode == 0, done.stderr
    result = small.result_of(tree)
    assert result["identity"].startswith("untrained-")
    assert result["identity"].endswith("/five_crop")
    assert result["view"] == "five_crop"
    assert result["n"] == small.N == len(small.scores_of(tree))
    assert result["identity"] in done.stdout
    assert "zero-shot, if this checkpoint was trained on no AGIQA-3K image" in done.stdout
    assert (tree / "out" / "scatter.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_are_those_of_the_table_of_scores(run: small.Run, tree: Path) -> None:
    assert run("--seed", 5) == 0
    result, rows = small.result_of(tree), small.scores_of(tree)
    assert list(rows[0]) == ["name", "score", *ATTRIBUTES, "mos_quality", "generator", "prompt"]
    assert [row["name"] for row in rows] == [
        f"{s}_{i:03}.jpg" for s in small.SETTINGS for i in range(len(small.PROMPTS))
    ]
    assert {row["prompt"] for row in rows} == set(small.PROMPTS)
    score, mos = (np.array([float(row[name]) for row in rows]) for name in ("score", "mos_quality"))
    expected = metrics.report(score, mos, seed=5, resamples=result["resamples"])
    assert {name: result[name] for name in (*PROMISED, "n")} == pytest.approx(expected)
    assert result["srocc"] == pytest.approx(stats.spearmanr(score, mos).statistic)
    modern = np.array([not row["generator"].startswith(("AttnGAN", "glide")) for row in rows])
    assert modern.sum() == 8 * len(small.PROMPTS) == result["without_attngan_glide"]["n"]
    assert result["srocc_without_attngan_glide"] == pytest.approx(stats.spearmanr(score[modern], mos[modern]).statistic)
    assert result["srocc_without_attngan_glide_low"] < result["srocc_without_attngan_glide"]
    within = [
        stats.spearmanr(
            *np.transpose([(float(r["score"]), float(r["mos_quality"])) for r in rows if r["prompt"] == p])
        )[0]
        for p in small.PROMPTS
    ]
    assert result["srocc_within_prompt"] == pytest.approx(np.mean(within))
    assert result["srocc_within_prompt_low"] < result["srocc_within_prompt"] < result["srocc_within_prompt_high"]
    assert result["pairs"] == len(small.PROMPTS) * 45
    assert set(result["per_generator"]) == set(small.SETTINGS)
    glide = [row for row in rows if row["generator"] == "glide_normal"]
    assert result["per_generator"]["glide_normal"]["n"] == len(glide) == len(small.PROMPTS)
    assert result["per_generator"]["glide_normal"]["mean_mos"] == pytest.approx(
        np.mean([float(row["mos_quality"]) for row in glide])
    )
    assert result["excluded"] == {"n": 0, "reasons": {}}


def test_what_is_printed(run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out, result = capsys.readouterr().out, small.result_of(tree)
    assert "zero-shot: trained on no AGIQA-3K image; 60 images of 2,982 of the official set, 6 prompts" in out
    assert result["protocol"] in out
    for name in ("srocc", "plcc", "plcc_fitted", "krocc", "rmse", "srocc_within_prompt", "srocc_without_attngan_glide"):
        low, high = result[f"{name}_low"], result[f"{name}_high"]
        assert f"{result[name]:.3f} [{low:.3f}, {high:.3f}]" in out
    for name, entry in result["per_generator"].items():
        line = next(line for line in out.splitlines() if line.startswith(name))
        assert f"{entry['mean_mos']:.3f}" in line
        assert f"{entry['srocc']:.3f} [" in line
    assert "ATTIQA      SROCC 0.854  PLCC 0.911" in out
    assert "trained on KonIQ-10k, all 2,982 images" in out


def test_a_model_against_people_is_negative_and_its_fit_failure_is_told(
    run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scorer=small.FakeScorer(sign=-1)) == 0
    result = small.result_of(tree)
    assert max(result[name] for name in ("srocc_high", "plcc_high", "plcc_fitted_high", "krocc_high")) < 0
    assert result["srocc_within_prompt_high"] < 0
    assert result["pair_accuracy_high"] < 0.5
    assert result["logistic"] is None
    assert "run against mos" in result["logistic_failure"]
    assert "the logistic fit failed, PLCC fitted and RMSE are of raw scores" in capsys.readouterr().out
    recipe = small.load_recipe()  # the plot has no curve then, and is there
    rows, _ = recipe.read_table(tree)
    scores = {row["name"]: float(row["score"]) for row in small.scores_of(tree)}
    recipe.plot(recipe.Config(root=tree, out=tree / "out"), result, rows, scores)
    with Image.open(tree / "out" / "scatter.png") as picture:
        assert picture.size == (1350, 840)


def test_within_prompt_by_hand() -> None:
    recipe = small.load_recipe()
    rows = [
        recipe.Row(f"{prompt}{index}", mos, "glide_normal", prompt)
        for prompt, opinions in {"a": (1, 2, 3), "b": (1, 2, 3), "two": (1, 2), "flat": (2, 2, 2)}.items()
        for index, mos in enumerate(opinions)
    ]
    scores = np.array([0.1, 0.2, 0.3, 0.9, 0.7, 0.8, 0.5, 0.5, 0.1, 0.2, 0.3])
    config = recipe.Config(root=Path())
    result = recipe.within_prompt(rows, scores, np.array([row.mos for row in rows], float), config)
    assert result["srocc_within_prompt"] == pytest.approx((1 - 0.5) / 2)
    assert (result["prompts_within"], result["prompts_undefined"]) == (2, 1)  # "two" is too small, "flat" undefined
    assert result["pairs"] == 3 + 3 + 1
    assert result["pair_accuracy"] == pytest.approx((3 + 1 + 0.5) / 7)  # the tie of "two" is a half


def test_smoke_is_forty_images_of_all_generators(run: small.Run, tree: Path) -> None:
    assert run("--smoke") == 0
    assert small.result_of(tree)["n"] == 40 == len(small.scores_of(tree))
    assert len(small.result_of(tree)["per_generator"]) == 10
    assert run() == 0  # the same folder then takes the rest
    assert small.result_of(tree)["n"] == small.N == len(small.scores_of(tree))


def test_too_little_for_a_part_is_told_and_the_rest_is_given(
    run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.edit(tree, lambda lines: lines.__setitem__(slice(9, None), []))  # eight images: AttnGAN and two of DALLE2
    assert run() == 0
    result = small.result_of(tree)
    assert result["srocc_without_attngan_glide"] is None
    assert "at least 3 points, got 2" in result["without_attngan_glide"]["undefined"]
    assert result["per_generator"]["DALLE2_normal"]["srocc"] is None
    assert result["srocc_within_prompt"] is None
    assert "at least 3 points, got 2" in capsys.readouterr().out


def test_a_constant_model_has_no_correlation(run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(scorer=small.FakeScorer(sign=0)) == 1
    assert "no correlation: predictions: all 60 are 0.5" in capsys.readouterr().err
    assert not (tree / "out" / "metrics.json").exists()


# Resuming


def start(tree: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(small.ROOT)])}
    code = "from tests.support.trees import agiqa; agiqa.drive()"
    command = [sys.executable, "-c", code, "--root", str(tree), "--out", str(tree / "out")]
    return subprocess.Popen(
        command, env=environment, cwd=small.ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for_rows(tree: Path, count: int) -> None:
    path = tree / "out" / "scores.csv"
    deadline = time.monotonic() + 200  # a busy machine takes long to start
    while not path.exists() or path.read_bytes().count(b"\n") <= count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_run_goes_on_where_it_stopped(kill: signal.Signals, status: int, run: small.Run, tree: Path) -> None:
    with start(tree) as process:
        wait_for_rows(tree, 7)
        process.send_signal(kill)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status
    if kill == signal.SIGINT:
        assert "interrupted; the same command goes on" in err
        assert "Traceback" not in err
    before = len(small.scores_of(tree))
    assert 7 <= before < small.N
    assert not (tree / "out" / "metrics.json").exists()
    scorer = small.FakeScorer()
    assert run(scorer=scorer) == 0
    assert len(scorer.asked) == small.N - before
    resumed = (tree / "out" / "scores.csv").read_bytes(), small.result_of(tree)
    for name in ("scores.csv", "metrics.json"):
        (tree / "out" / name).unlink()
    assert run() == 0
    assert ((tree / "out" / "scores.csv").read_bytes(), small.result_of(tree)) == resumed


def test_numbers_of_an_earlier_run_do_not_outlive_it(run: small.Run, tree: Path) -> None:
    assert run("--smoke") == 0
    assert (tree / "out" / "metrics.json").exists()
    scored = {row["name"] for row in small.scores_of(tree)}
    unread = next(path for path in sorted(tree.glob("*.jpg")) if path.name not in scored)
    unread.write_bytes(b"")
    assert run() == 1
    assert not (tree / "out" / "metrics.json").exists()


def test_a_finished_run_is_not_repeated(run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    first = small.result_of(tree), (tree / "out" / "scores.csv").read_bytes()
    scorer = small.FakeScorer()
    assert run(scorer=scorer) == 0
    assert scorer.asked == []
    assert "60 of 60 images were scored before" in capsys.readouterr().out
    assert (small.result_of(tree), (tree / "out" / "scores.csv").read_bytes()) == first


def test_scores_of_another_model_or_data_csv_are_refused(
    run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    names = ("scores.csv", "scores.csv.meta.json", "metrics.json")
    before = [(tree / "out" / name).read_bytes() for name in names]
    other = small.FakeScorer("other-ba9876543210/five_crop")
    assert run(scorer=other) == 1
    err = capsys.readouterr().err
    assert "made by fake-0123456789ab/full, these would be made by other-ba9876543210/five_crop" in err
    assert "choose another --out" in err
    assert other.asked == []
    small.set_mos("4.25")(tree)
    assert run() == 1
    assert "expected 4.25,glide_normal,house of the dragon at the end of" in capsys.readouterr().err
    assert [(tree / "out" / name).read_bytes() for name in names] == before


def test_a_run_of_the_version_before_goes_on(run: small.Run, tree: Path) -> None:
    """It kept what made the scores in run.json."""
    assert run("--smoke") == 0
    old, new = tree / "out" / "run.json", tree / "out" / "scores.csv.meta.json"
    identity = json.loads(new.read_text())["identity"]
    for made_by, status in (("another/full", 1), (identity, 0)):
        old.write_text(json.dumps({"identity": made_by, "config": {}}))
        new.unlink()
        scorer = small.FakeScorer()
        assert run(scorer=scorer) == status
        assert len(scorer.asked) == (0 if status else 20)
    assert not old.exists()


# Real data


@pytest.mark.shared_data
def test_the_true_table(shared_data: Path) -> None:
    rows, problems = small.load_recipe().read_table(shared_data / "AGIQA-3K")
    assert problems == {}
    assert len(rows) == 1246
    assert len({row.prompt for row in rows}) == 125
    counts = {name: sum(row.generator == name for row in rows) for name in small.SETTINGS}
    assert sum(counts.values()) == 1246
    assert set(counts.values()) == {123, 124, 125}
    assert min(row.mos for row in rows) == 0
    assert max(row.mos for row in rows) == pytest.approx(4.488740784)
