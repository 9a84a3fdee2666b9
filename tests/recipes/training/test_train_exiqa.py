"""training/train_exiqa.py; what it shares with others is in test_steps_contract.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from attriqa.data.sources import rated_plan
from attriqa.distortions.attributes import DISTORTION_ATTRIBUTES, table_hash
from attriqa.distortions.mixtures import Mixture, write_manifest
from attriqa.images import read
from attriqa.models import checkpoint, exiqa
from attriqa.models.clip.towers import load_clip
from tests.support import small_clip
from tests.support.clip_recipes import VIT, Recipe, differing, result, watched_steps, weights
from tests.support.trees import exiqa as exiqa_tree

RECIPE = "train_exiqa"
KEYS = tuple(exiqa_tree.TYPES.values())
WHAT = ("--distortions", *KEYS, "--workers", 0, "--log-every", 2, "--batch", 20, "--regressor-epochs", 20)
WHOLE = (*WHAT, "--tune", "all", "--lr", 1e-3, "--weight-lr", 0.01, "--epochs", 2, "--tests", 2, "--save-every", 3)
PROMPTS = (*WHAT, "--prompts", 3, "--epochs", 2, "--save-every", 3)


@pytest.fixture(autouse=True)
def drawn(request: pytest.FixtureRequest, run: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a confusion matrix takes a second each time."""
    if "writes_what_it_prints" not in request.node.name:
        monkeypatch.setattr(run.module, "write_confusion", lambda *_: None)


def photos(clip_tree: Path) -> tuple[object, ...]:
    names = ("--photo-pattern", "train_*", "--test-pattern", "test_*", "--single-passes", 1, "--crop", 48)
    return ("--photos", clip_tree / "photos", *names, "--passes", 7, "--most", 2)


@pytest.mark.slow
def test_a_run_learns_what_it_is_shown_and_writes_what_it_prints(
    run: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run("drawn", *WHOLE, "--lr", 3e-3, "--epochs", 20, "--warmup", 0.1)
    found, text = result(out), capsys.readouterr().out
    (fold,) = found["folds"]
    assert (fold["n_train"], fold["n_test"], fold["steps"], found["test"]["n"]) == (120, 30, 120, 30)
    assert [row["step"] for row in fold["history"]] == [60, 120]
    assert fold["history"][1]["loss"] < 0.9 * fold["history"][0]["loss"]
    assert found["test"]["rmse"] < 0.9 * found["test"]["rmse_mean"] < 0.9 * found["test"]["rmse_zero"]
    assert found["test"]["top1"] > 0.5, "chance is a third"
    assert found["score"]["n"] == 30
    assert found["score"]["regressor_loss"] < (0.25 * 0.7) ** 2 * 2, "the variance of five even levels"
    for name in ("test", "score"):
        assert f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in found[name].items()) in text
    counts = np.array(json.loads((out / "confusion.json").read_text())["counts"])
    assert counts.sum(1).tolist() == [10, 10, 10]
    assert np.trace(counts) / 30 == pytest.approx(found["test"]["top1"])
    with Image.open(out / "confusion.png") as picture:
        assert picture.width > 100
    assert sorted(path.name for path in (out / "split0").iterdir()) == ["metrics.json", "model.safetensors"]


def test_its_checkpoint_gives_the_numbers_it_reports(run: Recipe, clip_tree: Path) -> None:
    out = run("out", *WHOLE)
    path = out / "split0" / "model.safetensors"
    net = exiqa.load(path)
    assert net.has_score
    assert tuple(entry.key for entry in net.config.table) == KEYS
    saved = checkpoint.load(path)
    assert saved.prompts_hash == table_hash(net.config.table)
    test = json.loads((out / "split0" / "metrics.json").read_text())["identification"]["test"]
    plan = rated_plan(f"kadid={clip_tree / 'kadid10'}", DISTORTION_ATTRIBUTES, KEYS, splits=1, held_out=0.2)
    rows = plan.folds[0].test
    with torch.no_grad():
        images = torch.stack([read(plan.source.paths[row]) for row in rows])
        assessment = net(images)
    source = plan.source.only(rows)
    assert source.strengths is not None
    assert source.mos is not None
    assert (assessment.distortions - source.strengths).square().mean().sqrt().item() == pytest.approx(
        test["rmse"], abs=1e-3
    )
    score = np.corrcoef(assessment.score, source.mos)[0, 1]
    assert score == pytest.approx(result(out)["score"]["plcc"], abs=0.02)


def test_photos_are_distorted_as_they_come(run: Recipe, clip_tree: Path) -> None:
    out = run("out", *photos(clip_tree), *WHOLE)
    found = result(out)
    assert found["protocol"] == "photos: tested on photos unseen (test_*)"
    assert (found["mixed"]["n"], found["single"]["n"]) == (4, 15)
    assert found["folds"][0]["steps"] == 2 * (6 * 7 // 20)
    assert "top1_level_5" in found["single"]
    assert "score" not in found
    assert found["mixed"]["rmse_mean"] < found["mixed"]["rmse_zero"]
    assert not exiqa.load(out / "split0" / "model.safetensors").has_score


def test_a_manifest_is_learnt_from(run: Recipe, clip_tree: Path, tmp_path: Path) -> None:
    root = exiqa_tree.photos(tmp_path / "set", 10, side=48)
    entries = [(f"pristine_{i}.png", str(i // 2), Mixture((0, 10)[: i % 3], (2, 4)[: i % 3], 0)) for i in range(10)]
    write_manifest(root / "manifest.csv", entries, single=False)
    out = run("out", "--manifest", root, *WHOLE, "--batch", 4)
    assert result(out)["test"]["n"] == 2
    (root / "pristine_3.png").unlink()
    with pytest.raises(SystemExit, match=r"1 of its 10 images are gone, first .*pristine_3\.png"):
        run("other", "--manifest", root, *WHOLE)


@pytest.mark.slow
def test_prompts_leave_the_towers_as_they_are(run: Recipe, clip_tree: Path, tmp_path: Path) -> None:
    known = small_clip.tagged(tmp_path / "clip", "attriqa-small-identify", VIT)
    name = ":".join(known)
    out = run("out", "--clip", name, *PROMPTS)
    kept = weights(out)
    assert not [key for key in kept if key.startswith("clip.")], "open_clip has them"
    net = exiqa.load(out / "split0" / "model.safetensors")
    before = load_clip(*known).model.state_dict()
    assert differing(dict(net.clip.state_dict()), dict(before)) == set()
    other = weights(run("none", "--clip", name, *PROMPTS, "--lr", 0, "--weight-lr", 0))
    moved = differing(kept, other)
    assert {"prompts.prompts", "weights"} <= moved
    deep = weights(run("deep", "--clip", name, *PROMPTS, "--prompt-kind", "deep"))
    assert len(deep["prompts.prompts"]) == VIT["vision_cfg"]["layers"] > len(kept["prompts.prompts"])


@pytest.mark.slow
def test_tuning_all_moves_both_towers_and_not_the_scale(run: Recipe) -> None:
    moved = differing(weights(run("out", *WHOLE)), weights(run("none", *WHOLE, "--lr", 0)))
    assert {"clip.visual.proj", "clip.text_projection", "clip.token_embedding.weight"} <= moved
    assert "clip.logit_scale" not in moved


@pytest.mark.slow
def test_the_text_tower_may_stand_still(run: Recipe) -> None:
    still = weights(run("still", *WHOLE, "--text-lr", 0, "--weight-decay", 0))
    moved = differing(still, weights(run("none", *WHOLE, "--lr", 0, "--text-lr", 0, "--weight-lr", 0)))
    assert {"clip.visual.proj", "weights"} <= moved
    assert not {name for name in moved if name.startswith("clip.") and not name.startswith("clip.visual.")}


@pytest.mark.slow
def test_splits_are_runs_of_their_own_and_the_summary_is_their_median(run: Recipe) -> None:
    found = result(run("out", *PROMPTS, "--splits", 3))
    assert [fold["fold"] for fold in found["folds"]] == ["split0", "split1", "split2"]
    for key in ("rmse", "accuracy"):
        assert found["test"][key] == pytest.approx(
            np.median([fold["identification"]["test"][key] for fold in found["folds"]])
        )
    assert found["protocol"] == "KADID-10k: random 80% / 20% splits by reference, median of 3"


@pytest.mark.slow
def test_a_run_stopped_in_phase_2_does_not_repeat_phase_1(run: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run("whole", *PROMPTS)
    with monkeypatch.context() as patch:
        patch.setattr(run.module, "fit_regressor", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("out", *PROMPTS)
    with watched_steps() as taken:
        out = run("out", *PROMPTS)
    assert taken == [], "steps of phase 1"
    assert differing(weights(out), weights(whole)) == set()
    assert result(out) == result(whole)


@pytest.mark.slow
def test_a_model_goes_on_from_another(run: Recipe) -> None:
    first = run("first", *WHOLE, "--epochs", 6)
    init = ("--init", first / "split0" / "model.safetensors", "--workers", 0, "--batch", 20)
    still = run("still", *init, "--epochs", 0)
    assert result(still)["test"] == pytest.approx(result(first)["test"], rel=1e-4), "as it was, and with its own table"
    assert differing(weights(still), weights(first)) <= {name for name in weights(first) if "regressor" in name}
    fewer = run("fewer", *init, "--epochs", 0, "--distortions", KEYS[0], KEYS[2])
    assert result(fewer)["distortions"] == [KEYS[0], KEYS[2]]
    prompted = run("prompted", *init, "--prompts", 3, "--epochs", 1)
    towers = [
        {key: value for key, value in weights(out).items() if key.startswith("clip.")} for out in (prompted, first)
    ]
    assert differing(*towers) == set(), "prompts on top of what was learnt"


@pytest.mark.slow
def test_a_score_can_be_learnt_without_the_names_of_what_is_seen(run: Recipe, clip_tree: Path, tmp_path: Path) -> None:
    """ExIQA, table V: the attributes of one data set, the opinions of another."""
    first = run("first", *WHOLE, "--distortions", KEYS[0])
    init = ("--init", first / "split0" / "model.safetensors", "--workers", 0, "--batch", 20)
    found = result(run("score", *init, "--epochs", 0))
    assert found["test"] == {"n": 30}
    assert -1 <= found["score"]["srocc"] <= 1
    with pytest.raises(SystemExit, match=r"--table: expected attributes for each .* none for darken, white_noise"):
        run("no", *init, "--epochs", 1)


def test_a_table_of_ones_own(run: Recipe, tmp_path: Path) -> None:
    entries = [
        f'[[distortion]]\nkey = "{key}"\nname = "{key}"\nexplanation = "e"\nattributes = ["{key} one", "{key} two"]\n'
        for key in KEYS
    ]
    (tmp_path / "table.toml").write_text("\n".join(entries))
    out = run("out", "--table", tmp_path / "table.toml", *PROMPTS)
    assert weights(out)["weights"].shape == (3, 2)


@pytest.mark.slow
def test_half_precision(run: Recipe) -> None:
    exact = result(run("fp32", *WHOLE))["test"]["rmse"]
    AcceleratorState._reset_state(reset_partial_state=True)
    rounded = result(run("bf16", *WHOLE, "--precision", "bf16"))["test"]["rmse"]
    assert rounded == pytest.approx(exact, abs=0.1)
    assert rounded != exact


def test_a_bad_file_is_named(run: Recipe, tmp_path: Path) -> None:
    root = exiqa_tree.kadid(tmp_path / "bad", 5)
    for path in (root / "images").glob("I03_*"):
        path.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"I03_\d\d_0\d\.png: a file of 0 bytes"):
        run("out", "--data", f"kadid={root}", *WHOLE)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--distortions", "jpg"), "--distortions: expected keys of the table, got jpg; did you mean jpeg?"),
        (("--data", "koniq=nowhere"), "koniq10k_distributions_sets.csv: not found"),
        (("--held-out", 1.0), "test_fraction: expected a number within (0, 1), got 1.0"),
        (("--table", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_what_cannot_be_run_is_refused(run: Recipe, flags: tuple[str, ...], message: str) -> None:
    assert message in run.refusal(*WHAT, *flags)


@pytest.mark.parametrize("flags", [(), ("--data", "kadid=x", "--photos", "y")])
def test_wrong_flags_are_refused(run: Recipe, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.module.main([*flags, "--clip", "y"])
    assert "--data, --manifest, --photos: expected one of them" in capsys.readouterr().err


def test_the_papers_numbers_are_the_defaults(run: Recipe) -> None:
    def numbers(**values: Any) -> tuple[Any, ...]:
        config = run.module.settled(run.module.Config(clip="c", **values))
        return config.tune, config.prompts, config.epochs, config.lr, config.weight_decay

    assert numbers(data="kadid=x") == numbers(data="TID2013=x") == ("prompts", 100, 100, 2e-3, 0)
    assert [numbers(data=f"{name}=x")[1] for name in ("csiq", "lvq", "live")] == [15, 30, 15]
    assert numbers(manifest=Path("x"), tune="all") == ("all", 0, 5, 5e-5, 1e-2)
    assert numbers(data="kadid=x", prompts=7, epochs=3, lr=0.0) == ("prompts", 7, 3, 0.0, 0)
