"""The recipe that trains a policy: all its sources and algorithms, interruption, and what it refuses."""

import importlib.util
import json
import os
import re
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
from attriqa_envs.raw.image_sets import read_pictures, split_pictures
from tests.support import small_net
from tests.support.trees import fivek as fivek_tree

ROOT = Path(__file__).resolve().parents[3]
RECIPE = ROOT / "envs" / "train_isp.py"
Run = Callable[..., subprocess.CompletedProcess[str]]


def write_photos(folder: Path, count: int = 8) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC).save(folder / f"photo_{number}.png")
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_net.save(tmp_path_factory.mktemp("weights") / "small.safetensors")


# The images.


def test_the_split_is_by_file_and_a_bad_file_is_left_out(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", 10)
    (root / "photo_3.png").write_bytes(b"no picture")
    sources, cache = find_images(root, kind="photo"), RenditionCache(None, 48)
    first = split_pictures(sources, cache, root=root, test_share=0.3, seed=0)
    assert (len(first.train), len(first.test)) == (6, 3)
    assert sorted((*first.train_files, *first.test_files)) == [f"photo_{n}.png" for n in range(10) if n != 3]
    assert len(first.unreadable) == 1
    assert "photo_3.png" in first.unreadable[0]
    again = split_pictures(sources, cache, root=root, test_share=0.3, seed=0)
    other = split_pictures(sources, cache, root=root, test_share=0.3, seed=1)
    assert first.test_files == again.test_files != other.test_files
    few = first.sample_test(2, seed=0)
    for row, name in enumerate(few.test_files):  # pictures and names stay together
        assert torch.equal(few.test[row], first.test[first.test_files.index(name)])


def test_photos_become_raws_by_their_seed(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", 5)
    sources, cache = find_images(root, kind="photo"), RenditionCache(None, 48)
    pictures = read_pictures(sources[:3], sources[3:], cache, root=root)
    first, again, other = (pictures.unprocessed(2, seed) for seed in (0, 0, 1))
    assert first.train.shape == (6, 3, 48, 48)
    assert first.test.shape == (2, 3, 48, 48)
    assert first.train.dtype == torch.float16
    assert torch.equal(first.train, again.train)
    assert torch.equal(first.test, again.test)
    for a, b in ((first.train, other.train), (first.test, other.test), (first.train[:3], first.train[3:])):
        assert not torch.equal(a, b)


# What is refused.


@pytest.fixture(scope="module")
def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("recipe_train_isp", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--photos, --raw, --fivek: expected one"),
        (["--photos", "a", "--raw", "b"], "--photos, --raw, --fivek: expected one"),
        (["--photos", "a", "--split", "x", "y"], "--split: expected none without --fivek"),
        (["--photos", "a", "--batch", "7"], "--batch: expected a divisor of .* = 640; got 7"),
        (["--photos", "a", "--eval-every", "0"], "--eval-every: expected at least 1, got 0"),
        (["--photos", "a", "--parameters", "colour"], "parameters: expected different ones"),
        (["--photos", "a", "--algo", "dqn", "--random-start", "0.1"], "expected none in tools mode"),
        (["--photos", "a", "--test-share", "1"], r"--test-share: \(0, 1\)"),
    ],
)
def test_wrong_command_lines(recipe: Any, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        recipe.main(words)
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_wrong_images_and_judges(recipe: Any, tmp_path: Path, weights: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    photos = write_photos(tmp_path / "photos", 3)
    model = ["--model", str(weights)]
    for words, message in (
        (["--photos", empty], "expected photos in .*empty; found 0 raw files and 0 photos"),
        (["--photos", tmp_path / "none"], "there is no .*none"),
        (["--raw", photos], "expected raw files in .*; found 0 raw files and 3 photos"),
        (["--fivek", empty], "raw_photos"),
        (["--photos", photos, "--photo-pattern", "x*"], "--photo-pattern: .* got none of 3"),
        (["--photos", photos, "--test-share", "0.1"], "3 of 3 can be read"),
        (["--photos", photos, "--model", tmp_path / "no.safetensors"], "no.safetensors"),
        (["--photos", photos, *model, "--judges", weights], "judge: expected one that is not optimised"),
        (["--photos", photos, *model, "--judges", "nobody"], "there is no nobody"),
    ):
        with pytest.raises(SystemExit, match=message):
            recipe.main([*map(str, words), "--side", "48", "--out", str(tmp_path / "out" / str(abs(hash(message))))])


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
    photos = write_photos(tmp_path / "photos")
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
    photos = write_photos(tmp_path / "photos")
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
