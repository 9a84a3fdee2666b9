import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import small_net

Recipe = Callable[..., subprocess.CompletedProcess[str]]


def measured(run_recipe: Recipe, folder: Path, *words: object) -> dict[str, dict[str, float]]:
    weights = small_net.save(folder / "small.safetensors")
    about = ("--model", weights, "--out", folder / "out")
    done = run_recipe("evals/speed/score.py", "--smoke", *about, *words, timeout=280)
    assert done.returncode == 0, done.stderr
    record: dict[str, dict[str, float]] = json.loads((folder / "out" / "metrics.json").read_text())
    assert {"cpu", "threads", "torch", "dtype", "n", "model"} <= set(record)
    for part in {"score", "reward", "memory", "cold"} & set(record):
        for name, value in record[part].items():
            assert f"| {name} | {value:.4g} |" in done.stdout
            assert value > 0 or (name == "max_difference_from_fp32" and value == 0), (part, name)
    return record


@pytest.mark.slow
def test_one_part(run_recipe: Recipe, tmp_path: Path) -> None:
    record = measured(run_recipe, tmp_path, "--what", "reward")
    reward = record["reward"]
    assert "score" not in record
    for dtype in ("fp32", "bf16"):
        for name in ("ratio", "ratio_folded"):
            assert reward[f"{dtype}_{name}_low"] <= reward[f"{dtype}_{name}"] <= reward[f"{dtype}_{name}_high"]
        whole, bare = reward[f"{dtype}_reward_s"], reward[f"{dtype}_encoder_s"]
        assert reward[f"{dtype}_ratio"] == pytest.approx(whole / bare)  # one round: the medians are that round's


@pytest.mark.slow
def test_every_part(run_recipe: Recipe, tmp_path: Path) -> None:
    record = measured(run_recipe, tmp_path)
    assert {"score", "reward", "memory", "cold"} <= set(record)
    score = record["score"]
    slower = min(score["decode_images_per_s"], score["encoder_images_per_s"])
    assert score["ratio"] == pytest.approx(score["score_images_per_s"] / slower)
    assert score["n"] == 4
    memory = record["memory"]
    for view in ("full", "five_crop"):
        assert memory[f"{view}_backward_bytes_per_pixel"] > 1.5 * memory[f"{view}_forward_bytes_per_pixel"]
    cold = record["cold"]
    assert cold["import_s"] + cold["load_s"] + cold["first_score_s"] < cold["wall_s"]
    assert cold["import_torch_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--photos", "no-such-folder", "--what", "score"), "no-such-folder"),
        (("--n", "0"), "n: expected at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_named(run_recipe: Recipe, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    weights = small_net.save(tmp_path / "small.safetensors")
    done = run_recipe("evals/speed/score.py", "--smoke", "--model", weights, "--out", tmp_path, *words)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
