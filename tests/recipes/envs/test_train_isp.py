"""The recipe that trains a policy: all its sources and algorithms, interruption, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from attriqa_envs.agents.policy import load_policy
from attriqa_envs.raw.cache import RenditionCache
from attriqa_envs.raw.find import find_images
from attriqa_envs.raw.image_sets import read_group, seeds_from
from tests.support.compare_helpers import write_photos
from tests.support.trees import fivek as fivek_tree

ROOT = Path(__file__).resolve().parents[3]
RECIPE = ROOT / "envs" / "train_isp.py"
Run = Callable[..., subprocess.CompletedProcess[str]]


# The images.


def test_the_split_is_by_file_and_a_bad_file_is_left_out(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", 10)
    (root / "photo_3.png").write_bytes(b"no picture")
    group = read_group(find_images(root, kind="photo"), RenditionCache(None, 48), root=root)
    assert group.files == tuple(f"photo_{n}.png" for n in range(10) if n != 3)
    (reason,) = group.left_out
    assert "photo_3.png" in reason
    train, test = group.split(0.3, seed=0)
    assert (len(train.linear), len(test.linear)) == (6, 3)
    assert sorted((*train.files, *test.files)) == list(group.files)
    assert (*train.left_out, *test.left_out) == group.left_out
    assert test.files == group.split(0.3, seed=0)[1].files != group.split(0.3, seed=1)[1].files
    few = test.drawn(2, seed=0)
    for name, picture in zip(few.files, few.linear, strict=True):  # pictures and names stay together
        assert torch.equal(picture, group.linear[group.files.index(name)])


def test_photos_become_raws_by_their_seed(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", 3)
    group = read_group(find_images(root, kind="photo"), RenditionCache(None, 48), root=root)
    first, again, other, single = (
        group.unprocessed(seeds_from([key], count)).linear for key, count in ((0, 6), (0, 6), (1, 6), (0, 3))
    )
    assert first.shape == (6, 3, 48, 48)
    assert first.dtype == torch.float16
    assert torch.equal(first, again)
    assert torch.equal(first[:3], single)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:3], first[3:])


# Whole runs.


def check(out: Path, algo: str, files: int) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    assert metrics["curve"][0]["step"] == 0
    assert metrics["curve"][-1]["step"] == metrics["step"] >= 32
    for entry in metrics["curve"]:
        assert entry["score_gain"] == pytest.approx(np.mean(entry["images"]["score_gain"]))
        assert set(entry["judge_gains"]) == {"judge", "noisiness"}
    with Image.open(out / "learning_curve.png") as picture:
        assert picture.size[0] == 700
    policy = load_policy(out / "policy")
    assert policy.algorithm == algo
    images = policy.about["images"]
    assert len(images["train"]) + len(images["test"]) == files
    assert not set(images["train"]) & set(images["test"])
    assert not any(name.startswith("/") for name in images["train"])
    return metrics


@pytest.mark.slow
def test_a_folder_with_a_bad_file_trains_to_the_end(run_recipe: Run, tmp_path: Path, weights: Path) -> None:
    photos = write_photos(tmp_path / "photos", 8)
    (photos / "photo_2.png").write_bytes(b"no picture")
    words = (RECIPE, "--photos", photos, "--smoke", "--model", weights, "--out", tmp_path / "out")
    done = run_recipe(*words)
    assert done.returncode == 0, done.stderr
    assert "left out: " in done.stderr
    metrics = check(tmp_path / "out", "ppo", 7)
    assert len(metrics["unreadable"]) == 1
    assert f"step {metrics['step']}: reward {metrics['curve'][-1]['reward']:+.4f}" in done.stdout
    again = run_recipe(*words)
    assert again.returncode == 0
    assert again.stdout.splitlines() == done.stdout.splitlines()[-len(again.stdout.splitlines()) :]
    other = run_recipe(*words, "--lr", "1e-3")
    assert other.returncode == 1
    assert "lr: 0.0003 there, 0.001 now" in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["td3", "dqn"])
def test_fivek_trains_on_its_lists(algo: str, run_recipe: Run, tmp_path: Path, weights: Path) -> None:
    root = fivek_tree.write(tmp_path / "fivek")
    (tmp_path / "train.txt").write_text("1\n700\n1127\n")
    (tmp_path / "test.txt").write_text("4999\n5000\n")
    split = ("--split", tmp_path / "train.txt", tmp_path / "test.txt")
    out = tmp_path / "out"
    done = run_recipe(RECIPE, "--fivek", root, *split, "--smoke", "--algo", algo, "--model", weights, "--out", out)
    assert done.returncode == 0, done.stderr
    check(out, algo, 5)
    images = load_policy(out / "policy").about["images"]
    assert {Path(name).name[:5] for name in images["test"]} == {"a4999", "a5000"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "number", "more"),
    [
        ("ppo", signal.SIGINT, ("--guided", 0)),
        # Starts at random are scored in the same batches by both runs. The default's are scored once, in batches that
        # differ, and guided steps make more of that rounding: up to 3e-5 was seen.
        ("ppo", signal.SIGINT, ("--guided", 1, "--random-start", 0.2)),
        ("sac", signal.SIGTERM, ()),
        ("sac", signal.SIGKILL, ()),
    ],
)
def test_an_interrupted_run_ends_with_the_weights_of_a_whole_one(
    algo: str, number: signal.Signals, more: tuple[Any, ...], run_recipe: Run, tmp_path: Path, weights: Path
) -> None:
    photos = write_photos(tmp_path / "photos", 8)
    words = [RECIPE, "--photos", photos, "--smoke", "--algo", algo, "--model", weights, *more, "--out"]
    whole = run_recipe(*words, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "interrupted"
    interrupt_after("step 16:", [*words, out], number)
    assert not (out / "policy").exists()
    if number != signal.SIGKILL:
        standing = json.loads((out / "checkpoints" / "checkpoint.json").read_text())["standing"]
        assert 16 <= standing["num_timesteps"] < 32
    rest = run_recipe(*words, out)
    assert rest.returncode == 0, rest.stderr
    file = Path("policy", "policy.safetensors")
    mine, theirs = load_file(out / file), load_file(tmp_path / "whole" / file)
    for name, value in theirs.items():  # the score of an image differs by rounding with the batch it is scored in
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-6)
    curves = [json.loads((folder / "metrics.json").read_text())["curve"] for folder in (out, tmp_path / "whole")]
    for entry, other in zip(*curves, strict=True):
        assert entry["step"] == other["step"]
        assert entry["images"]["score_gain"] == pytest.approx(other["images"]["score_gain"], abs=1e-5)
    if algo == "ppo":
        (photos / "photo_1.png").unlink()
        (out / "metrics.json").unlink()
        changed = run_recipe(*words, out)
        assert changed.returncode == 1
        assert "other images: its files have changed" in changed.stderr


def interrupt_after(line: str, words: list[Any], number: signal.Signals) -> None:
    """Start the recipe, send it a signal as soon as it has printed a line, and wait for its end."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "envs")))}
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        for printed in process.stdout:
            if printed.startswith(line):
                break
        process.send_signal(number)
        process.stdout.close()
        expected = -number if number == signal.SIGKILL else 130
        assert process.wait(60) == expected
    finally:
        process.kill()
        process.wait()
