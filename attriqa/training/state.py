"""What a killed run goes on from: its state, and tensors computed once; safetensors and JSON, no pickle."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from attriqa.files import atomic_path

PART = 16  # items of `in_parts` whose tensors go into one file: what a killed search loses at most


class StateError(ValueError):
    """A saved training state that belongs to another run or is damaged."""


def save_state(
    path: Path | str, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, counters: Mapping[str, Any]
) -> None:
    """Write everything that a run needs to go on, whole or not at all.

    Args:
        path: the file to write.
        modules: by name; their parameters and buffers are kept.
        optimizer: its per-parameter tensors and its group settings are kept.
        counters: JSON types: where the run stands, and its configuration, which `load_state` compares.
    """
    tensors = {
        f"{name}.{key}": value.contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    saved = optimizer.state_dict()
    for index, slots in saved["state"].items():
        for slot, value in slots.items():
            tensors[f"optimizer.{index}.{slot}"] = torch.as_tensor(value).contiguous()
    about = {"groups": json.dumps(saved["param_groups"]), "counters": json.dumps(dict(counters))}
    with atomic_path(path) as temporary:
        save_file({key: value.detach().clone() for key, value in tensors.items()}, temporary, metadata=about)


def load_state(
    path: Path | str, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, *, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Restore what `save_state` wrote, in place.

    Args:
        path: a file of `save_state` whose counters hold a ``"config"``.
        modules: as they were saved.
        optimizer: over the same parameters in the same order.
        config: the configuration of this run; it must equal the saved one.

    Returns:
        The counters.

    Raises:
        StateError: the file is damaged, or its configuration differs (each differing field is named with both values).
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        counters: dict[str, Any] = json.loads(about["counters"])
        groups = json.loads(about["groups"])
    except Exception as error:
        raise StateError(
            f"{path}: not a training state that can be resumed ({error}); delete it to start afresh"
        ) from error
    found = counters["config"]
    if found != dict(config):
        differing = [
            f"{key}: {found.get(key)!r} there, {config.get(key)!r} now"
            for key in {**found, **config}
            if found.get(key) != config.get(key)
        ]
        raise StateError(
            f"{path} belongs to a run with another configuration ({'; '.join(differing)}); choose another --out"
        )
    for name, module in modules.items():
        prefix = f"{name}."
        module.load_state_dict(
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        )
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, slot = key.split(".", 2)
            slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    for parameter, state in optimizer.state.items():  # as the run had them: strides decide how sums are rounded
        for slot, value in state.items():
            if value.shape == parameter.shape:
                state[slot] = torch.empty_like(parameter).copy_(value)
    return counters


def keep(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a file holds, on the CPU; unless it is there, it is made, and written whole or not at all."""
    if not path.exists():
        made = make()
        with atomic_path(path) as temporary:
            save_file(made, temporary)
    return load_file(path)


def in_parts(
    folder: Path,
    title: str,
    items: Sequence[Any],
    find: Callable[[Any, np.random.Generator], dict[str, Tensor]],
    seed: int,
) -> dict[str, Tensor]:
    """What a search finds of some items, a part of them at a time, each kept in a file.

    Args:
        folder: of the files.
        title: of the search, in their names, on the progress bar and in the draws.
        items: what is searched.
        find: maps some of them and a generator to tensors, along whose first dimension parts are joined.
        seed: of the draws.
    """
    parts = []
    for first in tqdm(range(0, len(items), PART), title, leave=False):
        rng = np.random.default_rng([seed, *title.encode(), first])
        parts.append(keep(folder / f"{title}-{first:05d}.safetensors", partial(find, items[first : first + PART], rng)))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
