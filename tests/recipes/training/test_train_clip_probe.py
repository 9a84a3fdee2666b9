"""training/train_clip_probe.py: a linear probe of a frozen CLIP."""

from pathlib import Path

import numpy as np
import pytest
import torch

from attriqa.data.protocol import make_plan
from attriqa.data.splits import random_split
from attriqa.evaluation import metrics, ridge
from attriqa.images import read
from attriqa.images.crops import seeded_crops
from attriqa.models.clip.towers import load_clip
from tests.support.clip_recipes import Recipe, result
from tests.support.trees import clive as clive_tree

RECIPE = "train_clip_probe"
pytestmark = pytest.mark.filterwarnings("ignore::attriqa.evaluation.metrics.FitWarning")  # few images


def test_it_is_a_ridge_on_mean_embeddings_of_the_crops(
    run: Recipe, clip_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = result(run("out", "--splits", 2, "--crops", 3, "--workers", 0, "--test", f"kadid={clip_tree / 'kadid'}"))
    assert f"srocc {found['test']['srocc']:.4g}" in capsys.readouterr().out
    assert [fold["tests"]["KADID-10k"]["n"] for fold in found["folds"]] == [75, 75]

    towers = load_clip(str(clip_tree / "vit.json"))
    plan = make_plan(f"clive={clip_tree / 'clive'}", splits=2)
    features = []
    with torch.no_grad():
        for row in plan.dataset.rows:
            crops = seeded_crops(read(row.path)[None], towers.preprocess.size, 3)[0]
            shown = towers.preprocess.normalize((crops * 255).round() / 255)
            features.append(towers.model.visual(shown).mean(0).double().numpy())
    x, mos = np.stack(features), np.array([row.mos for row in plan.dataset.rows])
    train, test = random_split([row.path.name for row in plan.dataset.rows], seed=1)
    told = ridge.fit(x[train], mos[train])(x[test])
    assert found["folds"][1]["tests"]["test"]["srocc"] == pytest.approx(metrics.srocc(told, mos[test]), abs=1e-6)


def test_wrong_flags_are_named(run: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    run.refusal("--crops", 0)
    assert "--crops: expected at least 1, got 0" in capsys.readouterr().err


def test_a_file_that_is_no_image_is_named(run: Recipe, tmp_path: Path) -> None:
    clive_tree.build(tmp_path / "clive", 24, 80, 64)
    bad = sorted((tmp_path / "clive" / "Images").glob("*.*"))[0]
    bad.write_bytes(b"no image")
    with pytest.raises(SystemExit, match=bad.name):
        run("bad", "--splits", 1, "--workers", 0, "--data", f"clive={tmp_path / 'clive'}")
