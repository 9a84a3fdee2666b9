"""training/train_mp_iqe.py; what it shares with others is in test_steps_contract.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

from attriqa.data.protocol import make_plan
from attriqa.evaluation import metrics
from attriqa.images import read
from attriqa.models import mp_iqe
from attriqa.models.clip.towers import load_clip
from attriqa.models.mp_iqe import KADID_NAMES, MPIQEConfig
from tests.support import small_clip
from tests.support.clip_recipes import VIT, Recipe, differing, result, weights
from tests.support.trees import clive as clive_tree

RECIPE = "train_mp_iqe"
SHAPE = ("--windows", 3, "--layers", 1, "--heads", 4, "--workers", 0)
TRAIN = (*SHAPE, "--crops", 2, "--splits", 1, "--epochs", 2, "--warmup", 1, "--lr", 1e-3, "--batch", 16)
pytestmark = pytest.mark.filterwarnings("ignore::attriqa.evaluation.metrics.FitWarning")  # scores after a few steps


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many draws as users get, an interval takes a second each time."""
    intervals, few = metrics.intervals, {"resamples": 20}
    monkeypatch.setattr(metrics, "intervals", lambda *args, **settings: intervals(*args, **settings | few))


@pytest.mark.slow
def test_a_run_learns_what_it_is_shown_and_writes_what_it_prints(
    run: Recipe, clip_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = (
        "--labels",
        clip_tree / "clive_clip.txt",
        "--test",
        f"clive={clive_tree.build(tmp_path / 'other', 9, 60, 60)}",
    )
    out = run(
        "out", *TRAIN, *labels, "--epochs", 12, "--lr", 3e-3, "--batch", 8, "--score-weight", 20, "--temperature", 0.1
    )
    found, text = result(out), capsys.readouterr().out
    (fold,) = found["folds"]
    assert (fold["n_train"], fold["steps"], found["test"]["n"], found["CLIVE"]["n"]) == (26, 12 * 6, 6, 9)
    assert found["labelled"] == {"scenes": 32, "distortions": 32}
    assert [row["epoch"] for row in fold["history"]] == list(range(1, 13))
    for name in ("total", "scene", "distortion", "score"):
        assert fold["history"][-1][name] < 0.9 * fold["history"][0][name], name
    for name in ("test", "CLIVE"):
        assert f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in found[name].items()) in text
    assert "32 images, 32 with scenes, 32 with distortions" in text
    assert sorted(path.name for path in (out / "split0").iterdir()) == ["metrics.json", "model.safetensors"]


def test_its_checkpoint_gives_the_scores_it_reports(run: Recipe, clip_tree: Path) -> None:
    out = run("out", *TRAIN, "--labels", clip_tree / "clive_clip.txt", "--save-every", 2)
    path = out / "split0" / "model.safetensors"
    net = mp_iqe.load(path)
    assert net.has_score
    plan = make_plan(f"clive={clip_tree / 'clive'}", splits=1)
    paths, test = plan.test_paths(plan.folds[0]), result(out)["test"]
    with torch.no_grad():
        scores = torch.cat([net(read(path)[None]).score for path in paths])
    mos = [plan.dataset.rows[i].mos for i in plan.folds[0].test]
    assert metrics.plcc(scores.tolist(), mos) == pytest.approx(test["plcc"], abs=0.02)


def test_towers_stay_as_they_are_and_out_of_the_file(run: Recipe, tmp_path: Path) -> None:
    name, tag = small_clip.tagged(tmp_path / "clip", "attriqa-small-towers", VIT)
    out = run("out", "--clip", f"{name}:{tag}", *TRAIN)
    kept = weights(out)
    assert not [key for key in kept if key.startswith("clip.")], "open_clip has them"
    net = mp_iqe.load(out / "split0" / "model.safetensors")
    assert differing(dict(net.clip.state_dict()), dict(load_clip(name, tag).model.state_dict())) == set()
    other = weights(run("other", "--clip", f"{name}:{tag}", *TRAIN, "--seed", 1))
    assert differing(kept, other) == set(kept)


@pytest.mark.slow
def test_ablations_and_shares_of_the_data(run: Recipe, clip_tree: Path) -> None:
    labels = ("--labels", clip_tree / "clive_clip.txt")
    out = run("a", *TRAIN, *labels, "--no-scenes", "--prompt-kind", "none", "--fraction", 0.4, "--batch", 8)
    assert "contexts.scenes.context" not in weights(out)
    assert "prompts.prompts" not in weights(out)
    (fold,) = result(out)["folds"]
    assert fold["n_train"] == 10  # of 26
    assert fold["labelled"]["scenes"] == 0 < fold["labelled"]["distortions"]
    assert fold["history"][0]["scene"] == 0 < fold["history"][0]["distortion"]
    out = run("b", *TRAIN, *labels, "--distortions", "none", "--prompt-kind", "first", "--context", 3, "--prompts", 2)
    assert weights(out)["prompts.prompts"].shape == (1, 2, 32)
    assert weights(out)["contexts.scenes.context"].shape == (3, 16)
    assert "contexts.distortions.context" not in weights(out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "koniq=nowhere"), "koniq10k_distributions_sets.csv: not found"),
        (("--labels", "nowhere.txt"), "nowhere.txt"),
        (("--windows", 7), "windows: expected at most 3, the patches on a side, got 7"),
        (("--context", 40), "context: expected at most 36 in texts of 40 tokens, got 40"),
        (("--fraction", 0.0), "fraction: expected a number within (0, 1], got 0.0"),
    ],
)
def test_what_cannot_be_run_is_refused(run: Recipe, flags: tuple[str, ...], message: str) -> None:
    assert message in run.refusal(*TRAIN, *flags)


def test_scores_that_are_all_the_same_are_no_result(run: Recipe) -> None:
    message = "split0, test on test: predictions: all 6 are 0.5; a correlation with a constant is undefined"
    with pytest.raises(SystemExit, match=message):
        run("out", *TRAIN, "--lr", 0.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "x", "--epochs", "0"), "--epochs: expected at least 1, got 0"),
        (("--data", "x", "--warmup", "30"), "--warmup: expected 0 to 29 of the 30 epochs, got 30"),
        ((), "the following arguments are required: --data"),
    ],
)
def test_wrong_flags_are_refused(
    run: Recipe, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.module.main([*flags, "--clip", "y"])
    assert message in capsys.readouterr().err


def test_the_papers_numbers_are_the_defaults(run: Recipe) -> None:
    recipe = run.module

    def numbers(data: str, **values: Any) -> tuple[Any, ...]:
        config = recipe.settled(recipe.Config(data=data, clip="c", **values))
        return config.batch, config.distortion_weight, config.score_weight

    assert numbers("clive=x") == numbers("koniq=x") == numbers("kadid=x") == (64, 1.0, 0.5)
    assert numbers("LIVE=x") == numbers("csiq=x") == (32, 1.0, 0.1)
    assert numbers("bid=x") == (32, 1.0, 0.5)
    assert numbers("live=x", batch=5, score_weight=0.0) == (5, 1.0, 0.0)
    config = recipe.settled(recipe.Config(data="clive=x", clip="c"))
    assert (config.epochs, config.warmup, config.lr, config.weight_decay, config.splits) == (30, 5, 3e-5, 0, 10)
    shape = recipe.shape_of(config)
    assert shape == MPIQEConfig()
    assert (shape.context, shape.prompts, shape.prompt_kind, shape.layers, shape.crops) == (8, 4, "deep", 3, 8)
    assert recipe.settled(recipe.Config(data="clive=x", clip="c", prompt_kind="none")).prompts == 0
    assert recipe.shape_of(recipe.Config(data="x", clip="c", distortions="kadid")).distortions == KADID_NAMES
