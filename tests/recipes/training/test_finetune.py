"""The training recipe as users run it, on made-up photos; nothing here says that it learns well."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attriqa import ATTRIBUTES, QualityReward, load
from attriqa.evaluation.folds import TESTED_VIEWS
from attriqa.models import load_with_provenance
from tests.support.trees import clive as clive_tree
from tests.support.trees import unlabelled as unlabelled_tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "training/finetune.py")
PLAIN = (sys.executable, "training/finetune.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("data")
    clive = clive_tree.build(root / "ChallengeDB_release", count=24)
    photos = clive_tree.build_photos(root / "photos", count=8)
    return ["--data", f"clive={clive}", "--photos", str(photos), "--smoke"]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return unlabelled_tree.shell(*words, timeout=1500)


def finetune(data: list[str], out: Path, *words: object) -> dict[str, Any]:
    """What a run that ends well says in metrics.json."""
    done = run(*PLAIN, *data, "--out", out, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def refused(data: list[str], out: Path, *words: object) -> str:
    """What a run is refused with, before it makes its folder."""
    done = run(*PLAIN, *data, "--out", out, *words)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not out.exists()
    return done.stderr


class Finished:
    """An uninterrupted run."""

    def __init__(self, out: Path, data: list[str]) -> None:
        self.out = out
        self.done = run(*LAUNCH, *data, "--out", out)
        assert self.done.returncode == 0, self.done.stderr[-3000:]
        self.metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: list[str]) -> Finished:
    return Finished(tmp_path_factory.mktemp("whole") / "out", data)


def test_metrics_are_complete_and_those_printed(whole: Finished) -> None:
    metrics, text = whole.metrics, whole.done.stdout
    assert [fold["fold"] for fold in metrics["folds"]] == ["all", "split0"]
    every, split = metrics["folds"]
    assert every["n_train"] == 24
    assert split["n_train"] + split["full"]["n"] == 24
    assert "80/20" in metrics["protocol"]
    for view in TESTED_VIEWS:
        assert view not in every, "a model of all photos has none left to be tested on"
        assert {"srocc", "plcc", "plcc_fitted", "krocc", "rmse", "n"} <= set(metrics[view])
        assert metrics[view]["srocc"] == split[view]["srocc"], "the median of one"
        line = re.search(rf"^{view} +SROCC (\S+)  PLCC (\S+)  ", text, re.MULTILINE)
        assert line is not None, text
        assert [line[1], line[2]] == [f"{metrics[view][key]:.4f}" for key in ("srocc", "plcc")]
    assert 0.5 < split["feature_cosine"] <= 1
    assert f"median cosine: {split['feature_cosine']:.3f}" in text
    assert list(every["ramp_srocc"]) == list(ATTRIBUTES)
    assert every["ramp_photos"] == 2
    heads = "  ".join(f"{name} {value:.3f}" for name, value in every["ramp_srocc"].items())
    assert f"all ramps: {heads}" in text
    assert "ramp_srocc" not in split
    for fold in metrics["folds"]:
        assert json.loads((whole.out / fold["fold"] / "metrics.json").read_text()) == fold
    assert json.loads((whole.out / "config.json").read_text())["smoke"] is True
    assert not list(whole.out.rglob("state.safetensors"))


def test_its_checkpoint_loads_everywhere(whole: Finished, tmp_path: Path) -> None:
    path = whole.out / "all" / "model.safetensors"
    assert load(path).config.shorter_edge == 384
    provenance = load_with_provenance(path).provenance
    assert len(provenance["data"]["CLIVE"]) == 24
    assert not set(provenance["data"]["ramps"]) & set(provenance["ramp_test_photos"])
    assert provenance["metrics"] == whole.metrics["folds"][0]
    assert str(unlabelled_tree.ROOT) not in json.dumps(provenance)
    assert str(whole.out.parent) not in json.dumps(provenance)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "gray.png")
    (row,) = QualityReward(path).score_files([tmp_path / "gray.png"])
    assert row.error is None


def test_a_killed_run_goes_on_to_the_very_same_weights(whole: Finished, data: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    unlabelled_tree.killed([*PLAIN, *data, "--out", out], (out / "all" / "state.safetensors").exists, 1200)
    assert not (out / "all" / "metrics.json").exists(), "it was killed too late to test anything"
    kept = (out / "statistics.safetensors").stat().st_mtime_ns
    done = run(*PLAIN, *data, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "epoch 2 of 2" in done.stderr
    assert "all: epoch 1 of 2" not in done.stderr, "the first epoch was there already"
    assert (out / "statistics.safetensors").stat().st_mtime_ns == kept
    for fold in ("all", "split0"):
        ours, theirs = (load(base / fold / "model.safetensors").state_dict() for base in (out, whole.out))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((out / "metrics.json").read_text()) == whole.metrics
    before = (out / "all" / "model.safetensors").stat().st_mtime_ns
    assert run(*PLAIN, *data, "--out", out).stdout == done.stdout, "a finished run only prints"
    assert (out / "all" / "model.safetensors").stat().st_mtime_ns == before


def test_another_configuration_is_refused(whole: Finished, data: list[str]) -> None:
    before = (whole.out / "metrics.json").read_bytes()
    done = run(*PLAIN, *data, "--out", whole.out, "--seed", 1)
    assert done.returncode == 1
    assert "another configuration (seed: 0 there, 1 now)" in done.stderr
    assert (whole.out / "metrics.json").read_bytes() == before


def test_wrong_folders_and_splits_are_refused(data: list[str], tmp_path: Path) -> None:
    assert "the layout of CLIVE is" in refused(data, tmp_path / "out", "--data", f"clive={tmp_path}")
    assert "expected an official split" in refused(data, tmp_path / "out", "--protocol", "official")


def changed(before: Path, after: Path) -> set[str]:
    """The parts of the net whose weights differ."""
    ours, theirs = load(before).state_dict(), load(after).state_dict()
    return {name.partition(".")[0] for name in ours if not torch.equal(ours[name], theirs[name])}


CALIBRATION = {"attribute_shift", "attribute_scale"}


@pytest.mark.parametrize(
    ("mode", "learnt"), [("linear", {"regressor"}), ("probe", {"regressor", "heads_in", "heads_out", "departure_head"})]
)
def test_modes_train_what_they_say_from_a_checkpoint(
    whole: Finished, data: list[str], tmp_path: Path, mode: str, learnt: set[str]
) -> None:
    start = whole.out / "split0" / "model.safetensors"
    words = ["--init", start, "--mode", mode, "--protocol", "splits", "--fraction", 0.5]
    metrics = finetune(data, tmp_path, *words)
    assert changed(start, tmp_path / "split0" / "model.safetensors") - CALIBRATION == learnt
    assert "50% of each training side" in metrics["protocol"]
    (fold,) = metrics["folds"]
    (whole_fold,) = (entry for entry in whole.metrics["folds"] if entry["fold"] == "split0")
    assert fold["n_train"] == round(0.5 * whole_fold["n_train"])
    assert fold["full"]["n"] == whole_fold["full"]["n"], "the test side stays as it was"
    assert "feature_cosine" not in fold
    assert load_with_provenance(tmp_path / "split0" / "model.safetensors").provenance["init"]["metrics"]


def test_without_ramps_and_on_other_data(data: list[str], tmp_path: Path) -> None:
    """No --photos; a CSV of other photos as a stranger; its own photos as a stranger are refused."""
    clive = Path(data[1].partition("=")[2])
    strangers = clive_tree.build_photos(tmp_path / "strangers", count=6)
    names = sorted(path.name for path in strangers.iterdir())
    table = tmp_path / "strangers" / "table.csv"
    table.write_text("path,mos\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names)))
    words = ["--data", data[1], "--smoke", "--mode", "probe", "--protocol", "splits"]
    ((name, entry),) = finetune(words, tmp_path / "out", "--test", f"csv={table}")["cross"].items()
    assert (name, entry["n"]) == ("table", 6)
    net = load_with_provenance(tmp_path / "out" / "split0" / "model.safetensors").model
    assert net.config.departure_width == 0, "without ramps nothing would teach that head"
    own = tmp_path / "own.csv"
    first = next(path for path in sorted((clive / "Images").rglob("*")) if path.is_file())
    own.write_text(f"path,mos\n{first},1\n{strangers / names[0]},2\n")
    said = refused(words, tmp_path / "leak", "--test", f"csv={own}")
    assert "1 test files are training files too" in said


def test_a_regressor_on_the_attributes_of_distortions(data: list[str], tmp_path: Path) -> None:
    words = ["--init", "default", "--regressor-reads", "attributes", "--mode", "probe", "--protocol", "all"]
    finetune(data, tmp_path, *words)
    path = tmp_path / "all" / "model.safetensors"
    assert changed(Path("default"), path) - CALIBRATION == {"regressor", "heads_in", "heads_out", "departure_head"}
    assert load_with_provenance(path).model.config.regressor_reads == "attributes"


def test_a_start_that_knows_the_test_side_is_refused(whole: Finished, data: list[str], tmp_path: Path) -> None:
    words = ["--init", whole.out / "all" / "model.safetensors", "--mode", "linear", "--protocol", "splits"]
    said = refused(data, tmp_path / "out", *words)
    assert "all/model.safetensors has learnt from 5 of the 5 files that split0 is tested on" in said
