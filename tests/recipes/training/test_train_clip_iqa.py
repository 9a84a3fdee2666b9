"""training/train_clip_iqa.py; what it shares with others is in test_steps_contract.py."""

from pathlib import Path

import pytest
import torch

from attriqa import load
from attriqa.models.clip.towers import load_clip
from attriqa.models.clip_iqa import ClipIQA, ClipIQAPlus
from tests.support import small_clip
from tests.support.clip_recipes import VIT, Recipe, result, weights

RECIPE = "train_clip_iqa"
pytestmark = pytest.mark.filterwarnings("ignore::attriqa.evaluation.metrics.FitWarning")  # few images, hardly trained
FEW = ("--splits", 1, "--workers", 0, "--log-every", 2, "--save-every", 2, "--crop", 48, 48, "--batch", 12,
       "--epochs", 3, "--optimizer", "adam", "--lr", 0.02)  # fmt: skip


def test_a_run_learns_words_and_writes_what_it_prints(
    run: Recipe, clip_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, tag = small_clip.tagged(tmp_path / "clip", "attriqa-small-words", VIT)
    out = run("out", *FEW, "--clip", f"{name}:{tag}", "--epochs", 10, "--test", f"kadid={clip_tree / 'kadid'}")
    found, text = result(out), capsys.readouterr().out
    (fold,) = found["folds"]
    assert (fold["n_train"], fold["steps"], found["test"]["n"], found["KADID-10k"]["n"]) == (26, 20, 6, 75)
    losses = [row["mse"] for row in fold["history"]]
    assert len(losses) == 10
    assert losses[-1] < 0.9 * losses[0]
    assert "test: " + "  ".join(f"{key} {value:.4g}" for key, value in found["test"].items()) in text
    assert set(weights(out)) == {"context.context"}, "open_clip has the rest"
    net = load(out / "split0" / "model.safetensors")
    assert isinstance(net, ClipIQAPlus)
    frozen = load_clip(name, tag).model.state_dict()
    kept = {key: value for key, value in net.clip.state_dict().items() if key != "visual.positional_embedding"}
    assert all(torch.equal(value, frozen[key]) for key, value in kept.items())
    assert sorted(file.name for file in (out / "split0").iterdir()) == ["metrics.json", "model.safetensors"]


def test_without_words_it_is_clip_iqa_on_the_same_splits(run: Recipe, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.toml"
    pairs.write_text('joy = ["Happy photo.", "Sad photo."]\n')
    out = run("out", *FEW, "--context", 0, "--splits", 2, "--pairs", pairs)
    found = result(out)
    assert [fold["tests"]["test"]["n"] for fold in found["folds"]] == [6, 6]
    assert [fold["n_train"] for fold in found["folds"]] == [0, 0]
    net = load(f"clip-iqa:{out / 'split1' / 'model.safetensors'}")
    assert isinstance(net, ClipIQA)
    assert net.names == ("score", "joy")
    assert load(run("five", *FEW, "--context", 0) / "split0" / "model.safetensors").names[1] == "sharpness"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--context", 80), "context: expected at most 36 in texts of 40 tokens, got 80"),
        (("--data", "koniq=nowhere"), "koniq10k_distributions_sets.csv: not found"),
        (("--context", 0, "--pairs", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_what_cannot_be_run_is_refused(run: Recipe, flags: tuple[object, ...], message: str) -> None:
    assert message in run.refusal(*FEW, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--crop", 16, 64), "--crop: expected sides of at least 32 px, got 16 64"),
        (("--pairs", "p.toml"), "--pairs: expected --context 0 with it, got 16"),
        (("--epochs", 0), "--epochs: expected at least 1, got 0"),
    ],
)
def test_wrong_flags_are_refused(
    run: Recipe, flags: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.refusal(*flags)
    assert message in capsys.readouterr().err
