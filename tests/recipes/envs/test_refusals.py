"""What the recipes refuse, each with the reason: command lines, and files that are not what they should be."""

import re
from pathlib import Path

import pytest
import torch
from stable_baselines3 import DQN

from attriqa_envs.agents.policy import policy_options, save_policy
from attriqa_envs.tuning import TuningTask
from attriqa_envs.tuning.core import ISPCore
from attriqa_envs.tuning.sb3 import ISPTuningSB3
from tests.support.compare_helpers import load_recipe, write_photos
from tests.support.tuning_helpers import BrightnessScorer, bank

RECIPES = {name: load_recipe(name) for name in ("train_isp", "compare_isp", "tune", "fivek")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train_isp", "--photos, --raw, --fivek: expected one"),
        ("train_isp --photos a --raw b", "--photos, --raw, --fivek: expected one"),
        ("train_isp --photos a --split x y", "--split: expected none without --fivek"),
        ("train_isp --photos a --batch 7", "--batch: expected a divisor of .* = 640; got 7"),
        ("train_isp --photos a --eval-every 0", "--eval-every: expected at least 1, got 0"),
        ("train_isp --photos a --parameters colour", "parameters: expected different ones"),
        ("train_isp --photos a --algo dqn --random-start 0.1", "expected none in tools mode"),
        ("train_isp --photos a --test-share 1", r"--test-share: \(0, 1\)"),
        ("compare_isp", "--photos, --raw, --fivek: expected one"),
        ("compare_isp --photos a --images 0", "--images: expected at least 1, got 0"),
        ("compare_isp --photos a --policy p --parameters hue", "--parameters: expected none with --policy"),
        ("compare_isp --photos a --methods grid", "invalid choice: 'grid'"),
        ("tune", "--images"),
        ("tune a --method policy", "--policy: expected one with --method policy"),
        ("tune a --method adam --policy p", "--policy: expected one with --method policy, and none"),
        ("tune a --renders 0", "--renders: expected at least 1, got 0"),
        ("tune a --batch 0", "--batch: expected at least 1, got 0"),
        ("tune a --quality 101", "--quality: expected at most 100"),
        ("tune a --side 16", "--side: expected at least 32 px, got 16"),
        ("fivek", "the following arguments are required: command"),
        ("fivek cure x", r"invalid choice: 'cure' \(choose from"),
        ("fivek doctor nowhere --experts z", "experts: expected letters a to e, got z"),
    ],
)
def test_wrong_command_lines(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *words = line.split()
    with pytest.raises(SystemExit) as error:
        RECIPES[name].main(words)
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train_isp --photos empty", "expected photos in .*empty; found 0 raw files and 0 photos"),
        ("train_isp --raw photos", "expected raw files in .*; found 0 raw files and 1 photos"),
        ("train_isp --fivek empty", "raw_photos"),
        ("train_isp --photos photos --test-share 0.1", "1 of 1 can be read"),
        ("compare_isp --photos none", "there is no .*none"),
        ("compare_isp --photos photos --photo-pattern x*", "--photo-pattern: .* got none of 1"),
        ("compare_isp --photos photos --model no.safetensors", "no.safetensors"),
        ("compare_isp --photos photos --policy empty", "folder: expected one with policy.safetensors"),
        ("compare_isp --photos photos --policy tools", "--policy: expected one that sets ISP parameters"),
        ("compare_isp --photos photos --judges small.safetensors", "judge: expected one that is not optimised"),
        ("compare_isp --photos photos --judges nobody", "there is no nobody"),
        ("tune empty", "expected raw files or photos in"),
        ("fivek doctor nowhere", "root: expected a folder with raw_photos or fivek_dataset/raw_photos; got nowhere"),
    ],
)
def test_wrong_files(line: str, message: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / weights.name).symlink_to(weights)
    name, *words = line.split()
    if "tools" in words:
        write_policy_of_tools(tmp_path / "tools")
    if name != "fivek" and "--model" not in words:
        words += ["--model", weights.name]
    with pytest.raises(SystemExit, match=message):
        RECIPES[name].main([*words, "--out", "out"])
    assert name == "train_isp" or not (tmp_path / "out" / "config.json").exists(), "nothing is claimed"


def write_policy_of_tools(folder: Path) -> None:
    """A folder that says so; its weights are never asked."""
    task = TuningTask("tools")
    env = ISPTuningSB3(ISPCore(bank(1), BrightnessScorer(), 1, task))
    with torch.random.fork_rng(devices=[]):
        model = DQN("MultiInputPolicy", env, buffer_size=4, policy_kwargs=policy_options("dqn"), seed=0)
    save_policy(folder, model.policy, algorithm="dqn", task=task, about={})
