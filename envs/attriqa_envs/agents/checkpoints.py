"""Checkpoints of a stable-baselines3 algorithm in training, of which no pickle is ever read.

A folder holds ``checkpoint.json``, written last, and the folder that it names: ``model.zip`` (weights and optimizers,
as ``model.save`` writes them; its pickled settings are for others to read) and, for algorithms with a replay buffer,
``replay.npz``. A killed run leaves the checkpoint before whole.
"""

import json
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file

from attriqa.files import atomic_path, write_json
from attriqa.training.state import StateError

_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls", "exploration_rate")
_DAMAGE = (OSError, ValueError, KeyError, RuntimeError, AttributeError, zipfile.BadZipFile, pickle.UnpicklingError)


def standing_of(model: BaseAlgorithm) -> dict[str, Any]:
    """Where a training stands besides its tensors: counters, and how full the replay buffer is."""
    standing = {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)}
    buffer = _buffer(model)
    return standing if buffer is None else standing | {"buffer_pos": buffer.pos, "buffer_full": buffer.full}


def save_run(folder: Path, model: BaseAlgorithm, standing: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a checkpoint in the place of the one before.

    Args:
        folder: of the checkpoints.
        model: not yet changed since ``standing`` but by collecting experience.
        standing: `standing_of` the model.
        about: JSON types, given back by `load_run`.
    """
    place = folder / f"step-{standing['num_timesteps']}"
    with atomic_path(place / "model.zip") as temporary, temporary.open("wb") as file:
        model.save(file)
    buffer = _buffer(model)
    if buffer is not None:
        used = buffer.buffer_size if standing["buffer_full"] else standing["buffer_pos"]
        with atomic_path(place / "replay.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: array[:used] for name, array in _arrays(buffer).items()})  # type: ignore[arg-type]
    write_json(folder / "checkpoint.json", {"folder": place.name, "standing": dict(standing), "about": dict(about)})
    for other in folder.glob("step-*"):
        if other != place:
            shutil.rmtree(other)


def load_run(folder: Path, model: BaseAlgorithm) -> dict[str, Any] | None:
    """Bring a newly made model to where the checkpoint stands.

    Returns:
        What `save_run` was given; `None` where there is no checkpoint.

    Raises:
        StateError: it is damaged, or of another algorithm or network.
    """
    path = folder / "checkpoint.json"
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        place = folder / saved["folder"]
        _, parameters, variables = load_from_zip_file(place / "model.zip", load_data=False, device=model.device)
        model.set_parameters(parameters, exact_match=True)
        for name, value in (variables or {}).items():  # SAC's entropy coefficient; its optimizer holds the tensor
            getattr(model, name).data.copy_(value)
        for name in _COUNTERS:
            if name in saved["standing"]:
                setattr(model, name, saved["standing"][name])
        _load_buffer(place / "replay.npz", model, saved["standing"])
        about: dict[str, Any] = saved["about"]
    except _DAMAGE as error:
        raise StateError(f"{path}: cannot be resumed ({error}); delete {folder} to start afresh") from error
    return about


def _buffer(model: BaseAlgorithm) -> DictReplayBuffer | None:
    buffer = model.replay_buffer if isinstance(model, OffPolicyAlgorithm) else None
    return buffer if isinstance(buffer, DictReplayBuffer) else None


def _arrays(buffer: DictReplayBuffer) -> dict[str, NDArray[Any]]:
    arrays = {name: getattr(buffer, name) for name in ("actions", "rewards", "dones", "timeouts")}
    arrays |= {f"observations.{name}": array for name, array in buffer.observations.items()}
    return arrays | {f"next_observations.{name}": array for name, array in buffer.next_observations.items()}


def _load_buffer(path: Path, model: BaseAlgorithm, standing: Mapping[str, Any]) -> None:
    buffer = _buffer(model)
    if buffer is None:
        return
    buffer.pos, buffer.full = standing["buffer_pos"], standing["buffer_full"]
    used = buffer.buffer_size if buffer.full else buffer.pos
    with np.load(path, allow_pickle=False) as kept:
        for name, array in _arrays(buffer).items():
            array[:used] = kept[name]
