"""Policies that tune the ISP: their network, and the folder in which a trained one is kept.

A folder holds ``policy.safetensors``, weights and all that is needed to act, and ``policy.json``, the same but for the
weights, for people. No pickle is written or read.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import MultiInputPolicy as DQNPolicy
from stable_baselines3.sac.policies import MultiInputPolicy as SACPolicy
from stable_baselines3.td3.policies import MultiInputPolicy as TD3Policy
from torch import Tensor, nn

from attriqa.files import write_json
from attriqa.models import checkpoint
from attriqa.models.assessment import Assessment
from attriqa_envs.isp import PARAMETERS, table_hash
from attriqa_envs.isp.tools import TOOLS
from attriqa_envs.tuning import TuningTask
from attriqa_envs.tuning.core import Arrays, ISPCore

Algorithm = Literal["ppo", "sac", "td3", "dqn"]

POLICY_CLASSES: dict[str, type[BasePolicy]] = {
    "ppo": MultiInputActorCriticPolicy,
    "sac": SACPolicy,
    "td3": TD3Policy,
    "dqn": DQNPolicy,
}
FILE = "policy.safetensors"
_ARCHITECTURE = "ISPTuningPolicy"
_LOG_STD = -1.0  # a standard deviation of 1 would leave the box of actions in a third of the draws
_HIDDEN = 128


class ThumbnailFeatures(BaseFeaturesExtractor):
    """Features of an observation: a small CNN on the thumbnail, and all vectors as they are.

    Args:
        observation_space: of `attriqa_envs.tuning.core.ISPCore`; stable-baselines3 gives images of [0, 1].
    """

    def __init__(self, observation_space: spaces.Dict) -> None:
        self.vectors = [name for name in observation_space if name != "image"]
        width = sum(cast("tuple[int]", observation_space[name].shape)[0] for name in self.vectors)
        super().__init__(observation_space, _HIDDEN + width)
        self.thumbnail = nn.Sequential(  # 64 px -> 15 -> 6 -> 4
            nn.Conv2d(3, 16, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, _HIDDEN),
            nn.ReLU(),
        )

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of ``(B, ...)`` -> ``(B, features_dim)``."""
        return torch.cat([self.thumbnail(observations["image"]), *(observations[name] for name in self.vectors)], 1)


def policy_options(algorithm: Algorithm) -> dict[str, Any]:
    """The ``policy_kwargs`` of an algorithm's ``"MultiInputPolicy"``; a new dict each time."""
    options: dict[str, Any] = {"features_extractor_class": ThumbnailFeatures, "net_arch": [_HIDDEN, _HIDDEN]}
    return options | ({"log_std_init": _LOG_STD, "activation_fn": nn.ReLU} if algorithm == "ppo" else {})


@dataclass(frozen=True)
class Policy:
    """A trained policy.

    Attributes:
        algorithm: that trained it.
        task: that it was trained for; an environment that it acts in should have the same.
        about: its training, as `save_policy` was given it.
        network: stable-baselines3's policy object.
        sha256: of its file.
    """

    algorithm: Algorithm
    task: TuningTask
    about: Mapping[str, Any]
    network: BasePolicy
    sha256: str

    def act(self, observation: Arrays) -> NDArray[Any]:
        """The deterministic action for an observation of one environment, or those for a batch of n.

        Returns:
            ``(P,)`` or ``(n, P)`` in [-1, 1]; in tools mode the index of a tool, ``()`` or ``(n,)``.

        Raises:
            ValueError: the observation is that of another environment: a missing key, or another shape.
        """
        wanted = cast(spaces.Dict, self.network.observation_space)
        for name, space in wanted.items():
            shape = np.shape(observation.get(name, ()))
            if name not in observation or space.shape not in (shape, shape[1:]):
                got = shape if name in observation else "nothing"
                raise ValueError(f"observation: expected {name} of shape {space.shape}, or a batch of these; got {got}")
        known = {name: observation[name] for name in wanted}
        return self.network.predict(known, deterministic=True)[0]


def save_policy(
    folder: Path | str,
    network: BasePolicy,
    *,
    algorithm: Algorithm,
    task: TuningTask,
    about: Mapping[str, Any],
) -> None:
    """Write a policy, whole or not at all.

    Args:
        folder: made where it does not exist.
        network: ``model.policy`` of stable-baselines3, made with `policy_options`.
        algorithm: that trained it.
        task: that it was trained for.
        about: its training, in JSON types: data, reward model, numbers.

    Raises:
        ValueError: a weight is NaN or infinite, or ``about`` is not JSON.
    """
    space = cast(spaces.Dict, network.observation_space)
    config = {
        "algorithm": algorithm,
        "task": dataclasses.asdict(task),
        "scores": cast("tuple[int]", space["attributes"].shape)[0],
        "parameter_table": table_hash(),
        "tools": [tool.name for tool in TOOLS] if task.mode == "tools" else None,
    }
    folder = Path(folder)
    checkpoint.save(
        folder / FILE,
        network.state_dict(),
        architecture=_ARCHITECTURE,
        config=config,
        provenance=dict(about),
        dtype=None,
    )
    table = [dataclasses.asdict(parameter) for parameter in PARAMETERS]
    write_json(folder / "policy.json", {**config, "parameters": table, "about": dict(about)})


def load_policy(folder: Path | str, *, device: torch.device | str = "cpu") -> Policy:
    """Read what `save_policy` wrote.

    Args:
        folder: that of the policy.
        device: where it computes.

    Raises:
        ValueError: there is no policy; or it was trained for another table of parameters, or other tools, than this
            version has (both are named); or (`attriqa.models.checkpoint.CheckpointError`) its file is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise ValueError(f"folder: expected one with {FILE}, as envs/train_isp.py writes it; got {folder}")
    saved = checkpoint.load(path)
    if saved.architecture != _ARCHITECTURE:
        raise checkpoint.CheckpointError(path, f"expected an {_ARCHITECTURE}, got {saved.architecture}")
    config = saved.config
    if config["parameter_table"] != table_hash():
        theirs = config["parameter_table"]
        raise checkpoint.CheckpointError(
            path, f"trained for the parameter table {theirs}; this version has {table_hash()}; train it anew"
        )
    if config["tools"] is not None and config["tools"] != [tool.name for tool in TOOLS]:
        raise checkpoint.CheckpointError(
            path, f"trained for the tools {', '.join(config['tools'])}; this version has others"
        )
    task = TuningTask(**config["task"])
    network = _network(config["algorithm"], task, config["scores"])
    checkpoint.load_into(network, saved.state, path)
    return Policy(config["algorithm"], task, saved.provenance, network.to(device).eval(), saved.sha256)


def _network(algorithm: Algorithm, task: TuningTask, scores: int) -> BasePolicy:
    """An untrained one. Its spaces are those of a core, so that nothing here can disagree with it."""

    def scorer(images: Tensor) -> Assessment:
        return Assessment(0 * images.mean((1, 2, 3)), images.new_zeros(len(images), scores - 1))

    core = ISPCore(torch.zeros(1, 3, 32, 32, dtype=torch.float16), scorer, 1, task)
    with torch.random.fork_rng(devices=[]):  # layers draw their initial values from the global generator
        make = cast(Any, POLICY_CLASSES[algorithm])  # their constructors differ in what they are not given here
        network: BasePolicy = make(
            core.observation_space, core.action_space, lambda _: 0.0, **policy_options(algorithm)
        )
    return network
