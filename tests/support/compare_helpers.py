"""What the tests of the comparison and of the tuning recipe share: recipes as modules, photos, an untrained policy."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from stable_baselines3 import PPO

from attriqa_envs.agents.policy import policy_options, save_policy
from attriqa_envs.tuning import TuningTask
from attriqa_envs.tuning.core import ISPCore
from attriqa_envs.tuning.sb3 import ISPTuningSB3
from tests.support.tuning_helpers import BrightnessScorer, bank

ROOT = Path(__file__).resolve().parents[2]
TASK = TuningTask(parameters=("exposure", "tint", "contrast"), horizon=2)


def load_recipe(name: str) -> Any:
    """``envs/NAME.py`` as a module, without starting a process."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "envs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_photos(folder: Path, count: int = 4) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC).save(folder / f"photo_{number}.png")
    return folder


def write_policy(folder: Path, *, trained: tuple[str, ...] = (), task: TuningTask = TASK, seed: int = 0) -> Path:
    """An untrained policy, of 48 px, that says it was trained on some files."""
    env = ISPTuningSB3(ISPCore(bank(), BrightnessScorer(), 1, task))
    with torch.random.fork_rng(devices=[]):
        model = PPO("MultiInputPolicy", env, n_steps=2, batch_size=2, seed=seed, policy_kwargs=policy_options("ppo"))
    with torch.no_grad():  # an untrained one hardly moves
        for parameter in model.policy.action_net.parameters():
            parameter.mul_(100)
    about = {"config": {"side": 48}, "images": {"train": list(trained)}, "weights of the reward": "another"}
    save_policy(folder, model.policy, algorithm="ppo", task=task, about=about)
    return folder
