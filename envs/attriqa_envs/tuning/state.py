"""What actions change in n episodes: the ISP's params, or the pictures themselves by tools.

`ParamsState` and `ToolsState` have the same methods; `attriqa_envs.tuning.core.ISPCore` uses either.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from attriqa_envs.isp import KEYS, render, to_action, to_params
from attriqa_envs.isp.tools import DONE, TOOLS, apply_tools
from attriqa_envs.tuning.task import TuningTask

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]  # indices of episodes


class _State:
    """What both have: the bank ``(N, 3, H, W)`` of linear light, and a way into its device."""

    def __init__(self, bank: Tensor) -> None:
        self._bank = bank

    def _at(self, rows: Rows) -> Tensor:
        return torch.from_numpy(rows).to(self._bank.device)


class ParamsState(_State):
    """Params on their way from the camera's default; each picture is rendered anew from its linear light."""

    key = "params"

    def __init__(self, task: TuningTask, bank: Tensor, count: int) -> None:
        super().__init__(bank)
        chosen = KEYS if task.parameters is None else task.parameters
        self.columns = torch.tensor([KEYS.index(key) for key in chosen], device=bank.device)
        self._task = task
        self._default = to_action(torch.zeros(len(KEYS), device=bank.device))
        self._values = self._default.repeat(count, 1)  # (n, P), normalised
        self._images = torch.zeros(count, dtype=torch.long, device=bank.device)
        self.action_space = spaces.Box(-1, 1, (len(chosen),), np.float32)
        self.space = spaces.Box(-1, 1, (len(chosen),), np.float32)

    def reset(self, rows: Rows, images: Sequence[int], generators: Sequence[np.random.Generator]) -> None:
        """Start at the default, or at random around it."""
        where = self._at(rows)
        self._images[where] = torch.tensor(images, device=self._bank.device)
        starts = self._default.repeat(len(rows), 1)
        reach = self._task.random_start
        if reach:
            size = len(self.columns)
            moves = np.stack([generator.uniform(-reach, reach, size) for generator in generators])
            starts[:, self.columns] += torch.from_numpy(moves).to(starts)
        self._values[where] = starts.clamp(-1, 1)

    def check(self, actions: object) -> NDArray[Any]:
        """Finite numbers of shape ``(n, P)``; beyond [-1, 1] they are clipped."""
        given = np.asarray(actions)
        shape = (len(self._values), len(self.columns))
        if given.shape != shape or given.dtype.kind not in "fiu":
            raise ValueError(f"actions: expected numbers of shape {shape}; got {given.dtype} of shape {given.shape}")
        wrong = np.argwhere(~np.isfinite(given))
        if len(wrong):
            row, column = wrong[0].tolist()
            got = f"{given[row, column]} at index {column} ({KEYS[int(self.columns[column])]})"
            raise ValueError(f"actions: expected finite numbers; environment {row} got {got}")
        return given.astype(np.float32).clip(-1, 1)

    def step(self, actions: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Move the params by ``step_size`` times the action, as far as their box goes."""
        moves = torch.from_numpy(actions).to(self._values) * self._task.step_size
        self._values[:, self.columns] = (self._values[:, self.columns] + moves).clamp(-1, 1)
        return np.ones(len(actions), np.bool_), np.zeros(len(actions), np.bool_)

    def place(self, rows: Rows) -> Tensor:
        """All P params, normalised: ``(len(rows), P)``; a copy."""
        return self._values[self._at(rows)]

    def pictures(self, rows: Rows, place: Tensor) -> Tensor:
        """Of params, rendered in one batch; differentiable in them."""
        linear = self._bank.index_select(0, self._images[self._at(rows)])  # indexing takes five times as long
        return render(linear.float(), to_params(place))

    def observation(self, rows: Rows) -> Floats:
        """The tuned params, normalised."""
        return self.place(rows)[:, self.columns].numpy(force=True).copy()

    def distance(self, place: Tensor) -> Tensor:
        """The mean over all P params of the squared distance from the default, normalised: ``(B, P)`` -> ``(B,)``."""
        return (place - self._default).square().mean(1)

    def facts(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """All P params, physical."""
        return {"params": to_params(self.place(rows)).numpy(force=True).copy()}


class ToolsState(_State):
    """Pictures that tools change one after the other, from the camera's default rendering on."""

    key = "tools"

    def __init__(self, task: TuningTask, bank: Tensor, count: int) -> None:
        super().__init__(bank)
        self._steps = task.steps
        self.columns = torch.zeros(0, dtype=torch.long, device=bank.device)
        self._pictures = torch.zeros(count, *bank.shape[1:], device=bank.device)
        self._used = np.zeros((count, len(TOOLS)), np.float32)
        self.action_space = spaces.Discrete(len(TOOLS) + 1)
        self.space = spaces.Box(0, 1, (len(TOOLS),), np.float32)

    def reset(self, rows: Rows, images: Sequence[int], generators: Sequence[np.random.Generator]) -> None:
        """Start at the default rendering, no tool used."""
        linear = self._bank[torch.tensor(images, device=self._bank.device)].float()
        self._pictures[self._at(rows)] = render(linear, torch.zeros(len(rows), len(KEYS), device=linear.device))
        self._used[rows] = 0

    def check(self, actions: object) -> NDArray[Any]:
        """Integers of shape ``(n,)`` from 0 to `DONE`."""
        given = np.asarray(actions)
        if given.shape != (len(self._used),) or given.dtype.kind not in "iu":
            expected = f"integers of shape ({len(self._used)},)"
            raise ValueError(f"actions: expected {expected}; got {given.dtype} of shape {given.shape}")
        wrong = np.flatnonzero((given < 0) | (given > DONE))
        if len(wrong):
            raise ValueError(f"actions: expected 0 to {DONE}; environment {wrong[0]} got {given[wrong[0]]}")
        return given

    def step(self, actions: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Apply the tools; `DONE` changes nothing and ends."""
        done = actions == DONE
        rows = np.flatnonzero(~done)
        if len(rows):
            where = self._at(rows)
            self._pictures[where] = apply_tools(self._pictures[where], actions[rows])
            self._used[rows, actions[rows]] += 1
        return ~done, done

    def place(self, rows: Rows) -> Tensor:
        """There are no params: ``(len(rows), 0)``."""
        return torch.zeros(len(rows), 0, device=self._bank.device)

    def pictures(self, rows: Rows, place: Tensor) -> Tensor:
        """As the tools left them."""
        return self._pictures[self._at(rows)]

    def observation(self, rows: Rows) -> Floats:
        """How often each tool has been used, over the steps of an episode."""
        return self._used[rows] / np.float32(self._steps)

    def distance(self, place: Tensor) -> Tensor:
        """No params, so no distance: zeros ``(B,)``."""
        return place.sum(1)

    def facts(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """The pictures tell all that there is."""
        return {}


def make_state(task: TuningTask, bank: Tensor, count: int) -> ParamsState | ToolsState:
    """The state of the task's mode, of ``count`` episodes at once."""
    return ParamsState(task, bank, count) if task.mode == "params" else ToolsState(task, bank, count)
