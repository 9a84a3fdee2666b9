"""training/train_liqe.py in this process where one is enough, and as users run it (slow)."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from attriqa import load
from attriqa.images import read
from attriqa.models import checkpoint
from attriqa.models.clip.towers import clip_of
from attriqa.training.losses import dynamic_weights
from tests.support import clip_recipes, small_clip
from tests.support.clip_recipes import Run, cut_off, differing, on_processes, result, steps_of, weights
from tests.support.trees import clive as clive_tree
from tests.support.trees import exiqa as exiqa_tree
from tests.support.trees import unlabelled as unlabelled_tree

pytestmark = pytest.mark.filterwarnings("ignore::attriqa.evaluation.metrics.FitWarning")  # few images, hardly trained
VIT = small_clip.vit(40)
SIZE = ("--splits", 1, "--crops", 3, "--train-crops", 2, "--workers", 0, "--log-every", 2, "--save-every", 2)
FEW = (*SIZE, "--batch", 6, "--epochs", 3, "--steps-per-epoch", 2, "--lr", 1e-3, "--tasks", "none")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rated sets, annotations of one, a CLIP's configuration."""
    root = tmp_path_factory.mktemp("tree")
    clive_tree.build(root / "clive", 32, 80, 64)
    exiqa_tree.kadid(root / "kadid", 5)
    lines = (f"Images/{i}.jpg\t{-(i * 5 % 32)}\trealistic blur\tanimal\tplant\tinvalid" for i in range(32))
    (root / "clive_clip.txt").write_text("\n".join(lines) + "\n")
    (root / "vit.json").write_text(json.dumps(VIT))
    return root


@pytest.fixture
def recipe() -> Iterator[ModuleType]:
    with clip_recipes.loaded("train_liqe") as module:
        yield module


@pytest.fixture
def run(recipe: ModuleType, tree: Path, tmp_path: Path) -> Run:
    """``run(name, *flags)`` -> its folder; by default on CLIVE, with a random CLIP."""
    return clip_recipes.runner(recipe, tmp_path, data=f"clive={tree / 'clive'}", clip=tree / "vit.json")


@pytest.mark.slow
def test_a_run_learns_and_writes_what_it_prints(run: Run, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert saved.provenance["metrics"] == json.loads((out / "split0" / "metrics.json").read_text())
    assert str(tree) not in json.dumps([saved.provenance, saved.config])
    learnt = set(saved.provenance["data"]["CLIVE"])
    tests = [tree / "clive" / "Images" / f"{i}.jpg" for i in range(32) if f"{i}.jpg" not in learnt]
    with torch.no_grad():
        scores = torch.stack([net.see(read(file)[None], "own").score[0] for file in tests])
    mos = torch.tensor([90 - 12 * (int(file.stem) * 5 % 32) / 32 * 6 for file in tests])
    plcc = torch.corrcoef(torch.stack([scores, mos]))[0, 1].item()
    assert plcc == pytest.approx(fold["tests"]["CLIVE"]["plcc"], abs=0.02), "weights are stored as float16"
    assert sorted(file.name for file in (out / "split0").iterdir()) == ["metrics.json", "model.safetensors"]


@pytest.mark.slow
def test_sets_and_tasks_are_learnt_together(run: Run, tree: Path) -> None:
    data = ("--data", f"clive={tree / 'clive'}", f"kadid={tree / 'kadid'}")
    labels = ("--labels", f"clive={tree / 'clive_clip.txt'}")
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
def test_another_data_set_is_tested_whole(run: Run, tree: Path) -> None:
    found = result(run("out", *FEW, "--epochs", 1, "--test", f"kadid={tree / 'kadid'}"))
    assert (found["CLIVE"]["n"], found["KADID-10k"]["n"]) == (6, 75)


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_weights_of_a_whole_one(run: Run, recipe: ModuleType) -> None:
    whole = run("whole", *FEW)
    cut_off(recipe, run, 3, "out", *FEW)
    with steps_of(recipe) as taken:
        out = run("out", *FEW)
    assert taken == [2, 3, 4, 5]
    assert differing(weights(out), weights(whole)) == set()
    assert result(out) == result(whole)
    assert differing(weights(run("seed", *FEW, "--seed", 1)), weights(whole))


@pytest.mark.slow
def test_a_finished_run_only_prints(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("out", *FEW, "--epochs", 1)
    text, before = capsys.readouterr().out, (out / "split0" / "model.safetensors").stat().st_mtime_ns
    run("out", *FEW, "--epochs", 1)
    assert capsys.readouterr().out == text
    assert (out / "split0" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match=r"another configuration \(seed: 0 there, 1 now\)"):
        run("out", *FEW, "--epochs", 1, "--seed", 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch", 600), "batch: expected a multiple of the 1 processes, at most the 26 images, got 600"),
        (("--labels", "clive=nowhere.txt"), r"nowhere\.txt"),
        (("--data", "koniq=nowhere"), "koniq10k_distributions_sets.csv: not found"),
        (("--init", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--crops", 0), "crops: expected at least 1, got 0"),
        (("--clip-config", "narrow"), "texts: narrow reads 12 tokens of a text, and so cannot tell"),
    ],
)
def test_what_cannot_be_run_is_refused(run: Run, tmp_path: Path, flags: tuple[object, ...], message: str) -> None:
    narrow = tmp_path / "narrow.json"
    narrow.write_text(json.dumps(small_clip.vit(12)))
    words = [narrow if flag == "narrow" else flag for flag in flags]
    with pytest.raises(SystemExit, match=message):
        run("out", *SIZE, "--batch", 6, *words)


def test_a_start_that_knows_the_test_side_is_refused(run: Run, tmp_path: Path) -> None:
    words = (*FEW, "--epochs", 1)
    seed = run("first", *words) / "split0" / "model.safetensors"
    again = run("again", *words, "--init", seed) / "split0" / "model.safetensors"
    assert checkpoint.load(again).provenance["init"] == checkpoint.load(seed).provenance
    with pytest.raises(
        SystemExit, match=rf"--init: {again} has learnt from \d of the 6 files that split1 is tested on"
    ):
        run("other", *words, "--init", again, "--splits", 2)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "clive=x"), "--clip, --clip-config, --init: expected one of them"),
        (("--data", "clive=x", "clive=y", "--clip", "z"), "--data: expected each NAME once, got clive=x clive=y"),
        (
            ("--data", "clive=x", "--clip", "z", "--labels", "kadid=y"),
            "--labels: expected NAME=FILE with a NAME of --data, got kadid=y",
        ),
        (("--data", "clive=x", "--clip", "z", "--save-every", "0"), "--save-every: expected at least 1, got 0"),
    ],
)
def test_wrong_flags_are_refused(
    recipe: ModuleType, tmp_path: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in clip_recipes.refusal(recipe, tmp_path / "out", capsys, flags)


def test_the_paper_s_numbers_are_the_defaults(recipe: ModuleType) -> None:
    config = recipe.Config(
        data=tuple(f"{name}=x" for name in ("live", "CSIQ", "bid", "clive", "koniq", "kadid")), clip="c"
    )
    assert config.sizes() == [4, 4, 4, 4, 16, 16]
    assert (config.epochs, config.steps_per_epoch, config.lr, config.weight_decay) == (80, 200, 5e-6, 1e-3)
    assert (config.crops, config.train_crops, config.temperature, config.half_period) == (15, 3, 2.0, 5)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tree: Path, tmp_path: Path) -> None:
    """Pairs are made of all images of a batch, wherever they are."""
    data = ["--data", f"clive={tree / 'clive'}", f"kadid={tree / 'kadid'}", "--clip-config", tree / "vit.json"]
    flags = [*FEW, "--batch", 4, "--tasks", "distortions", "--lr", 1e-4]
    outs = [on_processes("train_liqe", processes, tmp_path / str(processes), data + flags) for processes in (1, 2)]
    ours, theirs = (result(out)["folds"][0]["history"] for out in outs)
    for one, two in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, rel=1e-3)
    first, second = map(weights, outs)
    name = "clip.visual.transformer.resblocks.1.mlp.c_fc.weight"
    start = clip_of(str(tree / "vit.json")).model.state_dict()[name.removeprefix("clip.")]
    assert (first[name] - second[name]).norm() < 0.1 * (first[name] - start).norm()


@pytest.mark.slow
def test_the_documented_command_runs_small(tree: Path, tmp_path: Path) -> None:
    name = small_clip.write(tmp_path / "clip", VIT)
    words = [*unlabelled_tree.command("train_liqe"), "--clip", name, "--data", f"clive={tree / 'clive'}", "--smoke"]
    done = unlabelled_tree.shell(*words, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "in-domain: CLIVE" in done.stdout
    assert load(f"liqe:{tmp_path / 'out' / 'split0' / 'model.safetensors'}").names == ("score",)
