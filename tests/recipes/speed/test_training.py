import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.trees import clive as clive_tree

Recipe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_it_prints_what_it_writes(run_recipe: Recipe, tmp_path: Path) -> None:
    photos = clive_tree.build_photos(tmp_path / "photos", count=2, side=96)
    done = run_recipe("evals/speed/training.py", "--photos", photos, "--smoke", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    numbers = record["pretrain"]
    for name, value in numbers.items():
        assert value > 0, name
        assert f"| {name} | {value:.4g} |" in done.stdout
    # One round: its ratio is that of the two speeds.
    assert numbers["ratio"] == pytest.approx(numbers["step_images_per_s"] / numbers["encoder_images_per_s"])
    cores = numbers["step_images_per_s"] / numbers["input_images_per_s_per_core"]
    assert numbers["cores_to_feed_it"] == pytest.approx(cores)
