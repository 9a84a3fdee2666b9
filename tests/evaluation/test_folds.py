import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attriqa.data.leaks import LeakError
from attriqa.data.protocol import make_plan, refuse_learnt
from attriqa.evaluation import metrics
from attriqa.evaluation.folds import evaluate_fold, mean_cosine, table_of_folds
from attriqa.images import read
from attriqa.models.views import View
from tests.support.trees import clive as clive_tree


@pytest.fixture(scope="module")
def clive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clive_tree.build(tmp_path_factory.mktemp("data") / "ChallengeDB_release", count=40, width=72, height=64)


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    folder = clive_tree.build_photos(tmp_path / "strangers", count=6, side=64)
    rows = [f"{path.name},{mos}" for mos, path in enumerate(sorted(folder.iterdir()))]
    (folder / "table.csv").write_text("\n".join(["path,mos", *rows]) + "\n")
    return folder / "table.csv"


def brightness(image: Tensor, view: View) -> Tensor:
    return image.mean((1, 2, 3)) if view == "full" else 1 - image.mean((1, 2, 3))


def test_protocols_cut_what_they_say(clive: Path) -> None:
    plan = make_plan(f"clive={clive}", protocol="both", splits=2)
    assert [fold.name for fold in plan.folds] == ["all", "split0", "split1"]
    assert len(plan.folds[0].train) == 40
    assert not plan.folds[0].test
    for fold in plan.folds[1:]:
        assert (len(fold.train), len(fold.test)) == (32, 8)
        assert not set(plan.train_paths(fold)) & set(plan.test_paths(fold))
    assert float(plan.mos.min()) >= 0
    assert float(plan.mos.max()) <= 1
    assert plan.mos[3].item() == pytest.approx(plan.dataset.rows[3].mos / 100)
    half = make_plan(f"clive={clive}", protocol="splits", splits=2, fraction=0.5)
    assert [len(fold.train) for fold in half.folds] == [16, 16]
    assert [fold.test for fold in half.folds] == [fold.test for fold in plan.folds[1:]]
    assert "50% of each training side" in half.protocol
    with pytest.raises(ValueError, match="expected an official split"):
        make_plan(f"clive={clive}", protocol="official")


def test_a_copy_stays_on_one_side_and_a_stranger_must_be_one(clive: Path, tmp_path: Path) -> None:
    names = sorted((clive / "Images").glob("*.jpg"))
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(names[0].read_bytes())
    table = tmp_path / "table.csv"
    lines = [f"{path},{mos}" for mos, path in enumerate([*names, copy])]
    table.write_text("\n".join(["path,score", *lines]) + "\n")
    for fold in make_plan(f"csv={table}", splits=10).folds:
        assert (0 in fold.train) == (40 in fold.train)
    with pytest.raises(LeakError, match="41 test files are training files too"):
        make_plan(f"clive={clive}", [f"csv={table}"])


@pytest.mark.filterwarnings("ignore::attriqa.evaluation.metrics.FitWarning")
def test_a_fold_is_tested_in_each_view_and_on_strangers(clive: Path, strangers: Path) -> None:
    plan = make_plan(f"clive={clive}", [f"csv={strangers}"], protocol="both", splits=3)
    results = [evaluate_fold(plan, fold, brightness, shorter_edge=64) for fold in plan.folds]
    everything, first = results[:2]
    assert "full" not in everything, "nothing is left to test on"
    assert everything["n_train"] == 40
    assert first["full"]["n"] == 8
    assert first["full"]["srocc"] == pytest.approx(-first["five_crop"]["srocc"]), "each view has its own scores"
    assert all(result["cross"]["table"]["n"] == 6 for result in results)

    summary, lines = table_of_folds(plan, results)
    json.dumps(summary)
    values = sorted(result["full"]["srocc"] for result in results[1:])
    assert summary["full"]["srocc"] == values[1], "the median of three"
    assert summary["full"]["folds"] == 3
    assert set(metrics.STATISTICS) <= set(summary["cross"]["table"])
    for name in ("five_crop", "full", "on table"):
        (line,) = (text for text in lines if text.startswith(name))
        entry: dict[str, Any] = summary["cross"]["table"] if name == "on table" else summary[name]
        assert f"SROCC {entry['srocc']:.4f}" in line


def test_smoke_takes_a_few_rows(tmp_path: Path) -> None:
    clive = clive_tree.build(tmp_path / "ChallengeDB_release", count=50, width=40, height=40)
    assert len(make_plan(f"clive={clive}", splits=1, smoke=True).dataset.rows) == 40


def test_mean_cosine_is_one_for_the_same_features_and_falls_with_the_angle(strangers: Path) -> None:
    paths = sorted(strangers.parent.glob("*.png"))

    def features(image: Tensor) -> Tensor:
        return image.mean((2, 3))

    def turned(image: Tensor) -> Tensor:
        return torch.cat([features(image)[:, 1:], -features(image)[:, :1]], 1)

    assert mean_cosine(paths, features, features, shorter_edge=64) == pytest.approx(1)
    colours = [read(path)[None].mean((2, 3))[0] for path in paths]
    each = [float((r * g + g * b - b * r) / (r * r + g * g + b * b)) for r, g, b in colours]
    assert max(each) - min(each) > 0.01
    assert mean_cosine(paths, features, turned, shorter_edge=64) == pytest.approx(sum(each) / 6, abs=1e-3)


def test_a_start_that_has_learnt_from_test_files_is_refused(clive: Path) -> None:
    plan = make_plan(f"clive={clive}", protocol="both", splits=2)
    split = plan.folds[1]
    train, test = ([path.name for path in side] for side in (plan.train_paths(split), plan.test_paths(split)))
    one = plan._replace(folds=(split,))
    refuse_learnt(one, {"data": {"CLIVE": train, "ramps": test}}, "start")
    refuse_learnt(one, {"data": {"Others": test}, "init": None}, "start")
    refuse_learnt(one, {}, "start")
    refuse_learnt(plan._replace(folds=plan.folds[:1]), {"data": {"CLIVE": test}}, "start")
    with pytest.raises(LeakError, match=f"start has learnt from 1 of the {len(test)} files that split0 is tested on"):
        refuse_learnt(one, {"data": {"CLIVE": [*train, test[-1]]}}, "start")
    with pytest.raises(LeakError, match=f"start has learnt from {len(test)} of"):
        refuse_learnt(one, {"data": {"ramps": train}, "init": {"init": {"data": {"CLIVE": test}}}}, "start")
