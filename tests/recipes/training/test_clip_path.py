"""ATTIQA's whole path on a small random CLIP, each step as its user runs it: label, pretrain, fine-tune, benchmark."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attriqa.models import load, load_with_provenance
from attriqa.training.teachers import CLIPTeacher
from tests.support import small_clip
from tests.support.trees import clive as clive_tree

Recipe = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_clip_to_the_table(run_recipe: Recipe, tmp_path: Path) -> None:
    name = small_clip.write(tmp_path / "clip")
    photos = clive_tree.build_photos(tmp_path / "photos", count=40, side=96)
    clive = clive_tree.build(tmp_path / "ChallengeDB_release", count=16, width=350, height=340)

    labels = tmp_path / "labels"
    done = run_recipe("training/label.py", "--images", photos, "--teacher", f"clip:{name}", "--out", labels, "--smoke")
    assert done.returncode == 0, done.stderr

    pretrained = tmp_path / "pretrain" / "model.safetensors"
    words: list[object] = ["--images", photos, "--labels", labels, "--net", "compact", "--lr", "0.01", "--smoke"]
    done = run_recipe("training/pretrain.py", *words, "--out", pretrained.parent, timeout=400)
    assert done.returncode == 0, done.stderr
    metrics = load_with_provenance(pretrained).provenance["metrics"]
    assert metrics["teacher"] == CLIPTeacher(name).identity

    out = tmp_path / "benchmark"
    words = ["--data", f"clive={clive}", "--experiments", "in-domain", "linear-probe", "--smoke", "--out", out]
    done = run_recipe("evals/benchmark.py", *words, f"--finetune=--init {pretrained} --workers 0", timeout=800)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    assert len(rows) == 2
    assert all(-1 <= row["five_crop"]["srocc"] <= 1 for row in rows)
    linear = next(path for path in out.rglob("model.safetensors") if "linear" in str(path))
    before, after = load(pretrained).state_dict(), load(linear).state_dict()
    for key, value in before.items():  # the checkpoint of fine-tuning holds half precision
        if not key.startswith(("regressor", "attribute_")):
            torch.testing.assert_close(after[key], value, rtol=2e-3, atol=1e-3)
