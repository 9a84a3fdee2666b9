"""training/train_clip_probe.py: a linear probe of a frozen CLIP."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from attriqa.data.splits import random_split
from attriqa.evaluation import metrics, ridge
from attriqa.images import read
from attriqa.images.crops import seeded_crops
from attriqa.models.clip.towers import load_clip
from tests.support import clip_recipes, small_clip
from tests.support.trees import clive as clive_tree
from tests.support.trees import exiqa as exiqa_tree

pytestmark = pytest.mark.filterwarnings("ignore::attriqa.evaluation.metrics.FitWarning")  # few images


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    clive_tree.build(root / "clive", 24, 80, 64)
    exiqa_tree.kadid(root / "kadid", 1)
    (root / "vit.json").write_text(json.dumps(small_clip.VIT))
    return root


@pytest.fixture
def recipe() -> Iterator[ModuleType]:
    with clip_recipes.loaded("train_clip_probe") as module:
        yield module


def words(tree: Path, out: Path, *more: object) -> list[str]:
    start = ("--clip-config", tree / "vit.json", "--data", f"clive={tree / 'clive'}", "--out", out, "--workers", 0)
    return [str(word) for word in (*start, *more)]


def test_it_is_a_ridge_on_mean_embeddings_of_the_crops(
    recipe: ModuleType, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.main(words(tree, tmp_path / "out", "--splits", 2, "--crops", 3, "--test", f"kadid={tree / 'kadid'}"))
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert f"srocc {found['test']['srocc']:.4g}" in capsys.readouterr().out
    assert [fold["tests"]["KADID-10k"]["n"] for fold in found["folds"]] == [15, 15]

    towers = load_clip(str(tree / "vit.json"))
    plan = recipe.make_plan(f"clive={tree / 'clive'}", (), protocol="splits", splits=2)
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "clive=x"], "--clip, --clip-config, --init: expected one of them"),
        (["--data", "clive=x", "--clip", "y", "--crops", "0"], "--crops: expected at least 1, got 0"),
    ],
)
def test_wrong_flags_are_named(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert message in clip_recipes.refusal(recipe, tmp_path / "out", capsys, flags)


def test_a_file_that_is_no_image_is_named(recipe: ModuleType, tree: Path, tmp_path: Path) -> None:
    clive_tree.build(tmp_path / "clive", 24, 80, 64)
    bad = sorted((tmp_path / "clive" / "Images").glob("*.*"))[0]
    bad.write_bytes(b"no image")
    with pytest.raises(SystemExit, match=bad.name):
        recipe.main([*words(tree, tmp_path / "bad", "--splits", 1), "--data", f"clive={tmp_path / 'clive'}"])
