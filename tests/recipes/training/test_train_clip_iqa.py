"""training/train_clip_iqa.py in this process where one is enough, and as users run it (slow)."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from attriqa import load
from attriqa.models import checkpoint
from attriqa.models.clip.towers import load_clip
from attriqa.models.clip_iqa import ClipIQA, ClipIQAPlus
from tests.support import clip_recipes, small_clip
from tests.support.clip_recipes import Run, cut_off, differing, on_processes, result, steps_of, weights
from tests.support.trees import clive as clive_tree
from tests.support.trees import exiqa as exiqa_tree
from tests.support.trees import unlabelled as unlabelled_tree

pytestmark = pytest.mark.filterwarnings("ignore::attriqa.evaluation.metrics.FitWarning")  # few images, hardly trained
VIT = small_clip.vit(26)
FEW = ("--splits", 1, "--workers", 0, "--log-every", 2, "--save-every", 2, "--crop", 48, 48, "--batch", 12,
       "--epochs", 3, "--optimizer", "adam", "--lr", 0.02)  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    clive_tree.build(root / "clive", 32, 80, 64)
    exiqa_tree.kadid(root / "kadid", 5)
    (root / "vit.json").write_text(json.dumps(VIT))
    return root


@pytest.fixture
def recipe() -> Iterator[ModuleType]:
    with clip_recipes.loaded("train_clip_iqa") as module:
        yield module


@pytest.fixture
def run(recipe: ModuleType, tree: Path, tmp_path: Path) -> Run:
    """``run(name, *flags)`` -> its folder; by default on CLIVE, with a random CLIP."""
    return clip_recipes.runner(recipe, tmp_path, data=f"clive={tree / 'clive'}", clip=tree / "vit.json")


def test_a_run_learns_words_and_writes_what_it_prints(
    run: Run, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, tag = small_clip.tagged(tmp_path / "clip", "attriqa-small-words", VIT)
    out = run("out", *FEW, "--clip", f"{name}:{tag}", "--epochs", 10, "--test", f"kadid={tree / 'kadid'}")
    found, text = result(out), capsys.readouterr().out
    (fold,) = found["folds"]
    assert (fold["n_train"], fold["steps"], found["test"]["n"], found["KADID-10k"]["n"]) == (26, 20, 6, 75)
    losses = [row["mse"] for row in fold["history"]]
    assert len(losses) == 10
    assert losses[-1] < 0.9 * losses[0]
    assert "test: " + "  ".join(f"{key} {value:.4g}" for key, value in found["test"].items()) in text
    path = out / "split0" / "model.safetensors"
    assert set(weights(out)) == {"context.context"}, "open_clip has the rest"
    net = load(path)
    assert isinstance(net, ClipIQAPlus)
    frozen = load_clip(name, tag).model.state_dict()
    kept = {key: value for key, value in net.clip.state_dict().items() if key != "visual.positional_embedding"}
    assert all(torch.equal(value, frozen[key]) for key, value in kept.items())
    saved = checkpoint.load(path)
    assert saved.provenance["metrics"] == json.loads((out / "split0" / "metrics.json").read_text())
    assert str(tree) not in json.dumps([saved.provenance, saved.config])
    assert sorted(file.name for file in (out / "split0").iterdir()) == ["metrics.json", "model.safetensors"]


def test_without_words_it_is_clip_iqa_on_the_same_splits(run: Run, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_words_of_a_whole_one(run: Run, recipe: ModuleType) -> None:
    whole = run("whole", *FEW)
    cut_off(recipe, run, 5, "out", *FEW)
    with steps_of(recipe) as taken:
        out = run("out", *FEW)
    assert taken == [4, 5]
    assert differing(weights(out), weights(whole)) == set()
    assert result(out) == result(whole)
    assert "context.context" in differing(weights(run("seed", *FEW, "--seed", 1)), weights(whole))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch", 600), "batch: expected a multiple of the 1 processes, at most the 26 images, got 600"),
        (("--context", 80), "context: expected at most 22 in texts of 26 tokens, got 80"),
        (("--data", "koniq=nowhere"), "koniq10k_distributions_sets.csv: not found"),
        (("--init", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--context", 0, "--pairs", "nowhere.toml"), r"nowhere\.toml"),
        (("--clip", "RN5O:openai"), "expected one of open_clip's"),
    ],
)
def test_what_cannot_be_run_is_refused(run: Run, flags: tuple[object, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run("out", *FEW, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--clip, --clip-config, --init: expected one of them"),
        (("--clip", "z", "--crop", "16", "64"), "--crop: expected sides of at least 32 px, got 16 64"),
        (("--clip", "z", "--pairs", "p.toml"), "--pairs: expected --context 0 with it, got 16"),
        (("--clip", "z", "--epochs", "0"), "--epochs: expected at least 1, got 0"),
    ],
)
def test_wrong_flags_are_refused(
    recipe: ModuleType, tmp_path: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in clip_recipes.refusal(recipe, tmp_path / "out", capsys, ["--data", "clive=x", *flags])


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tree: Path, tmp_path: Path) -> None:
    flags = ["--data", f"clive={tree / 'clive'}", "--clip-config", tree / "vit.json", *FEW, "--optimizer", "sgd"]
    outs = [on_processes("train_clip_iqa", processes, tmp_path / str(processes), flags) for processes in (1, 2)]
    one, two = (weights(out)["context.context"] for out in outs)
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    ours, theirs = (result(out)["folds"][0] for out in outs)
    for first, second in zip(ours["history"], theirs["history"], strict=True):
        assert first == pytest.approx(second, rel=1e-4)
    assert ours["tests"]["test"]["plcc"] == pytest.approx(theirs["tests"]["test"]["plcc"], abs=1e-2)


@pytest.mark.slow
def test_the_documented_command_runs_small(tree: Path, tmp_path: Path) -> None:
    name = small_clip.write(tmp_path / "clip", VIT)
    words = [*unlabelled_tree.command("train_clip_iqa"), "--clip", name, "--data", f"clive={tree / 'clive'}", "--smoke"]
    done = unlabelled_tree.shell(*words, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "16 learnt words" in done.stdout
    assert load(f"clip-iqa-plus:{tmp_path / 'out' / 'split0' / 'model.safetensors'}").names == ("score",)
