"""The tuning environment for stable-baselines3: its `VecEnv` on the same core, so that all its algorithms run on it.

`gymnasium.make_vec` gives nothing that stable-baselines3 takes, and its own `DummyVecEnv` would render and score the
environments one after the other.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from attriqa_envs.tuning.core import Arrays, ISPCore, rows_of
from attriqa_envs.tuning.gym_envs import check_options, check_render_mode


class ISPTuningSB3(VecEnv):
    """A core's environments as `stable_baselines3.common.vec_env.VecEnv`.

    An episode that ends begins anew in the same step. Its last info has ``"terminal_observation"``;
    ``"TimeLimit.truncated"``, True only where ``max_episode_steps`` cut it off, so that algorithms bootstrap there and
    not after the horizon, which is part of the task; and ``"episode"`` with ``"r"``, ``"l"`` and ``"t"`` (sum of
    rewards, steps, seconds since this object was made), as `Monitor` writes it: no `VecMonitor` is needed.
    ``reset_infos`` has what a new episode starts with.

    With a seed s (``seed(s)``, or that of an algorithm), environment i does what a single
    `attriqa_envs.tuning.ISPTuningEnv` with seed s + i does.

    Args:
        core: holds the images, the scorer and the episodes; no one else may step it.
        max_episode_steps: truncates longer episodes; `None`: none.
        render_mode: `None` or ``"rgb_array"``.
    """

    def __init__(self, core: ISPCore, *, max_episode_steps: int | None = None, render_mode: str | None = None) -> None:
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps: expected at least 1; got {max_episode_steps}")
        self.core, self.max_episode_steps = core, max_episode_steps
        self.render_mode = check_render_mode(render_mode)  # before super(): it asks for it
        self.num_envs = len(core)
        super().__init__(self.num_envs, core.observation_space, core.action_space)
        self._all = np.arange(self.num_envs)
        self._generators = [seeding.np_random()[0] for _ in self._all]
        self._returns = np.zeros(self.num_envs)
        self._actions: NDArray[Any] | None = None
        self._began = time.monotonic()

    def reset(self) -> Arrays:
        """Begin all episodes, with the seeds and options set before; the options may hold ``"image"``."""
        for options in self._options:
            check_options(options)
        for row, seed in enumerate(self._seeds):
            if seed is not None:
                self._generators[row] = seeding.np_random(seed)[0]
        self.core.reset(self._all, self._generators, [options.get("image") for options in self._options])
        self._returns[:] = 0
        self.reset_infos = rows_of(self.core.facts(self._all))
        self._reset_seeds()
        self._reset_options()
        return self.core.observe(self._all)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take one step of every episode, and begin those anew that end."""
        rewards, terminated, parts = self.core.step(self._actions)
        truncated = self.core.steps >= (self.max_episode_steps or np.inf)
        infos = rows_of({**self.core.facts(self._all), **parts})
        self._returns += rewards
        for info, cut in zip(infos, (truncated & ~terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = cut
        done = terminated | truncated
        if done.any():
            self._finish(np.flatnonzero(done), infos)
        return self.core.observe(self._all), rewards.astype(np.float32), done, infos

    def _finish(self, rows: NDArray[np.intp], infos: list[dict[str, Any]]) -> None:
        seconds = round(time.monotonic() - self._began, 6)
        last = self.core.observe(rows)
        for place, row in enumerate(rows.tolist()):
            infos[row]["terminal_observation"] = {name: values[place].copy() for name, values in last.items()}
            total, length = round(float(self._returns[row]), 6), int(self.core.steps[row])
            infos[row]["episode"] = {"r": total, "l": length, "t": seconds}
        self._returns[rows] = 0
        self.core.reset(rows, [self._generators[row] for row in rows])
        for row, facts in zip(rows.tolist(), rows_of(self.core.facts(rows)), strict=True):
            self.reset_infos[row] = facts

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """The pictures as they are now, ``(H, W, 3)`` each."""
        return [None] * self.num_envs if self.render_mode is None else list(self.core.frames(self._all))

    def close(self) -> None:
        """Ends with the process: there is no window and no worker."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of this object, once per environment: they share all of them."""
        return [getattr(self, attr_name) for _ in self._rows(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not possible: the environments share their attributes."""
        raise NotImplementedError(f"{attr_name}: environments of one core have no attributes of their own")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Not possible: the environments are no objects of their own."""
        raise NotImplementedError(f"{method_name}: environments of one core have no methods of their own")

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor`, whose ``info["episode"]`` is here; False for all others."""
        return [wrapper_class is Monitor for _ in self._rows(indices)]

    def _rows(self, indices: VecEnvIndices) -> Iterable[int]:
        return self._get_indices(indices)
