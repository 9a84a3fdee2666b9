"""training/train_liqe.py; what it shares with others is in test_steps_contract.py."""

import json
from pathlib import Path

import pytest
import torch

from attriqa import load
from attriqa.images import read
from attriqa.models import checkpoint
from attriqa.training.losses import dynamic_weights
from tests.support import small_clip
from tests.support.clip_recipes import Recipe, result

RECIPE = "train_liqe"
pytestmark = pytest.mark.filterwarnings("ignore::attriqa.evaluation.metrics.FitWarning")  # few images, hardly trained
SIZE = ("--splits", 1, "--crops", 3, "--train-crops", 2, "--workers", 0, "--log-every", 2, "--save-every", 2)
FEW = (*SIZE, "--batch", 6, "--epochs", 3, "--steps-per-epoch", 2, "--lr", 1e-3, "--tasks", "none")


@pytest.mark.slow
def test_a_run_learns_and_writes_what_it_prints(
    run: Recipe, clip_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = ("--epochs", 12, "--steps-per-epoch", 3, "--batch", 12, "--half-period", 30)
    out = run("out", *FEW, *long, "--lr", 1e-3, "--logit-scale", 100)
    found, text = result(out), capsys.readouterr().out
    (fold,) = found["folds"]
    assert (fold["n_train"], fold["steps"], found["CLIVE"]["n"], found["labelled"]["scenes"]) == (26, 36, 6, 0)
    quality = [row["quality"] for row in fold["history"]]
    assert len(quality) == 12
    assert sum(quality[-3:]) < 0.85 * sum(quality[:3])
    assert "CLIVE: " + "  ".join(f"{key} {value:.4g}" for key, value in found["CLIVE"].items()) in text
    assert [row["scene"] for row in fold["history"]] == [0] * 12
    path = out / "split0" / "model.safetensors"
    net = load(path)
    saved = checkpoint.load(path)
    learnt = set(saved.provenance["data"]["CLIVE"])
    tests = [clip_tree / "clive" / "Images" / f"{i}.jpg" for i in range(32) if f"{i}.jpg" not in learnt]
    with torch.no_grad():
        scores = torch.stack([net.see(read(file)[None], "own").score[0] for file in tests])
    mos = torch.tensor([90 - 12 * (int(file.stem) * 5 % 32) / 32 * 6 for file in tests])
    plcc = torch.corrcoef(torch.stack([scores, mos]))[0, 1].item()
    assert plcc == pytest.approx(fold["tests"]["CLIVE"]["plcc"], abs=0.02), "weights are stored as float16"
    assert sorted(file.name for file in (out / "split0").iterdir()) == ["metrics.json", "model.safetensors"]


@pytest.mark.slow
def test_sets_and_tasks_are_learnt_together(run: Recipe, clip_tree: Path) -> None:
    data = ("--data", f"clive={clip_tree / 'clive'}", f"kadid={clip_tree / 'kadid'}")
    labels = ("--labels", f"clive={clip_tree / 'clive_clip.txt'}")
    flags = (*FEW, "--tasks", "all", "--batch", 4, "--steps-per-epoch", 1)
    found = result(run("out", *data, *labels, *flags))
    (fold,) = found["folds"]
    assert found["labelled"] == {"scenes": 32, "distortions": 107}
    assert (found["CLIVE"]["scene_n"], found["CLIVE"]["distortion_n"]) == (6, 6)
    assert found["KADID-10k"]["distortion_n"] == 15
    assert "scene_n" not in found["KADID-10k"]
    history = fold["history"]
    assert all(row["scene"] > 0 and row["distortion"] > 0 for row in history)
    means = [[row["quality"], row["scene"], row["distortion"]] for row in history]
    assert history[0]["total"] == pytest.approx(sum(means[0]))
    assert history[1]["total"] == pytest.approx(sum(means[1]))
    dynamic = sum(weight * loss for weight, loss in zip(dynamic_weights(means[:2]), means[2], strict=True))
    assert history[2]["total"] == pytest.approx(dynamic, rel=1e-4)
    equal = result(run("equal", *data, *labels, *flags, "--weighting", "equal", "--distortion-weight", 0.5))
    last = equal["folds"][0]["history"][2]
    assert last["total"] == pytest.approx(last["quality"] + last["scene"] + last["distortion"])
    assert equal["folds"][0]["history"][0]["distortion"] == pytest.approx(0.5 * history[0]["distortion"])


@pytest.mark.slow
def test_another_data_set_is_tested_whole(run: Recipe, clip_tree: Path) -> None:
    found = result(run("out", *FEW, "--epochs", 1, "--test", f"kadid={clip_tree / 'kadid'}"))
    assert (found["CLIVE"]["n"], found["KADID-10k"]["n"]) == (6, 75)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--labels", "clive=nowhere.txt"), "nowhere.txt"),
        (("--data", "koniq=nowhere"), "koniq10k_distributions_sets.csv: not found"),
        (("--crops", 0), "crops: expected at least 1, got 0"),
        (("--clip-config", "narrow"), "texts: narrow reads 12 tokens of a text, and so cannot tell"),
    ],
)
def test_what_cannot_be_run_is_refused(run: Recipe, tmp_path: Path, flags: tuple[object, ...], message: str) -> None:
    narrow = tmp_path / "narrow.json"
    narrow.write_text(json.dumps(small_clip.vit(12)))
    words = [narrow if flag == "narrow" else flag for flag in flags]
    assert message in run.refusal(*SIZE, "--batch", 6, *words)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "clive=x", "clive=y"), "--data: expected each NAME once, got clive=x clive=y"),
        (("--data", "clive=x", "--labels", "kadid=y"), "expected NAME=FILE with a NAME of --data, got kadid=y"),
        (("--temperature", 0), "--temperature: expected a number above 0, got 0.0"),
    ],
)
def test_wrong_flags_are_refused(
    run: Recipe, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.refusal(*flags)
    assert message in capsys.readouterr().err


def test_the_paper_s_numbers_are_the_defaults(run: Recipe) -> None:
    config = run.module.Config(
        data=tuple(f"{name}=x" for name in ("live", "CSIQ", "bid", "clive", "koniq", "kadid")), clip="c"
    )
    assert config.sizes() == [4, 4, 4, 4, 16, 16]
    assert (config.epochs, config.steps_per_epoch, config.lr, config.weight_decay) == (80, 200, 5e-6, 1e-3)
    assert (config.crops, config.train_crops, config.temperature, config.half_period) == (15, 3, 2.0, 5)
