"""Tuning a camera's ISP as a Gymnasium environment, one by one or as a batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from attriqa_envs.raw.bank import Images, load_bank
from attriqa_envs.tuning.core import Arrays, ISPCore, Scorer, rows_of
from attriqa_envs.tuning.task import Mode, TuningTask

Observation = dict[str, NDArray[Any]]

_OPTIONS = {"image"}


class ISPTuningEnv(gymnasium.Env[Observation, Any]):
    """Tune a camera's ISP, picture by picture, towards what a quality model likes.

    ## Description

    A picture from a camera's sensor (linear light) is rendered by a differentiable ISP (`attriqa_envs.isp.render`).
    Each step changes the ISP's params a little, renders the picture anew from its linear light, so that nothing
    drifts, and is rewarded for what a no-reference quality model says of it: section 5.2 of ATTIQA (Kwon et al. 2024)
    with a continuous ISP in place of a fixed set of tools. ``mode="tools"`` is closer to that paper's experiment: the
    37 traditional tools of DRL-ISP (Shin et al. 2022) and `done`, applied one after the other to the rendered picture.

    ## Action Space

    `params` mode: `Box(-1, 1, (P,), float32)`, one number per parameter of `attriqa_envs.isp.parameters.PARAMETERS` (or
    of `parameters`), in that order: by how much it changes, in units of `step_size`, where every parameter's range is
    scaled to [-1, 1]. Params stay within their ranges. Finite actions beyond [-1, 1] are clipped, as the policies of
    most libraries are Gaussians without bounds; NaN or infinity is a `ValueError` that names the environment and the
    index, and changes nothing.

    `tools` mode: `Discrete(38)`: an index into `attriqa_envs.isp.tools.TOOLS`, or 37, `done`.

    ## Observation Space

    A `Dict`:

    | Key          | Space                          | Meaning                                                       |
    |--------------|--------------------------------|---------------------------------------------------------------|
    | `image`      | `Box(0, 255, (3, 64, 64), u8)` | the rendered picture, averaged down to 64 x 64                |
    | `params`     | `Box(-1, 1, (P,), f32)`        | `params` mode: where the tuned params are in their ranges     |
    | `tools`      | `Box(0, 1, (37,), f32)`        | `tools` mode: how often each tool was used, over the horizon  |
    | `attributes` | `Box(-1, 1, (S,), f32)`        | the score, and then the attributes where the scorer has them: |
    |              |                                | S = 6 with the default scorer; clipped to [-1, 1]             |
    | `step`       | `Box(0, 1, (1,), f32)`         | steps taken over the horizon                                  |
    | `gradient`   | `Box(-1, 1, (P,), f32)`        | with `observe_gradient`: where the potential (see Rewards)    |
    |              |                                | rises: its gradient g by the tuned params, here, ranges       |
    |              |                                | scaled to [-1, 1], as g / (abs(g) + root mean square of g)    |

    ## Rewards

    The growth of a potential, so that an episode's rewards add up to the potential at its end minus that at its start:

    *score_weight * score - distance_weight * distance - clipping_weight * clipped*

    - *score*: the scorer's, of the whole picture.
    - *distance*: the mean over all parameters of the squared distance from the camera's default, ranges scaled to
      [-1, 1]; 0 in `tools` mode.
    - *clipped*: the share of pixels with a channel at or beyond black or white, where a display clips.

    `info` has the three summands of each step's reward as `reward_score`, `reward_distance` and `reward_clipping`,
    and `score`, `distance`, `clipped`, `image` (its index in the bank) and, in `params` mode, `params`: the physical
    values of all parameters, from which `attriqa_envs.isp.render` makes the same picture.

    ## Starting State

    An image drawn from the bank, each as likely as any other, or `reset(options={"image": index})`; the camera's
    default rendering. With `random_start` = r in `params` mode, each tuned parameter starts off the default by a
    uniform draw from [-r, r], ranges scaled to [-1, 1], clipped to its range.

    ## Episode End

    - Termination: after `horizon` steps (5; in `tools` mode 3, as in DRL-ISP), or by `done`. The horizon is part of the
      task, and the observation has the step: what comes after is worth nothing, so algorithms must not bootstrap from
      the last state, which they would after a truncation (Pardo et al. 2018, Time Limits in Reinforcement Learning).
    - Truncation: never by itself; `gymnasium.make(..., max_episode_steps=...)` truncates as always.

    A step of an episode that is over raises `gymnasium.error.ResetNeeded`.

    ## Arguments

    ```python
    >>> env = gymnasium.make("attriqa_envs:attriqa/ISPTuning-v0", images="photos", random_start=0.3)
    >>> env = gymnasium.make("attriqa_envs:attriqa/ISPTuning-v0", images="raws", mode="tools")
    ```

    - `images`: a folder of raw files or photos, or linear light as tensors, see `attriqa_envs.raw.bank.load_bank`.
    - `scorer` (`None`): a function of `(B, 3, H, W)` sRGB in [0, 1] that returns an `Assessment` or `(B,)` scores,
      higher being better, on a scale of about 1; or a `QualityReward`, whose reward is the score. `None`:
      `QualityReward("robust", view="native")`, on `device`.
    - `mode` (`"params"`): or `"tools"`.
    - `parameters` (`None`): keys of the parameters that may change; `None`: all.
    - `horizon` (`None`): steps; 5, in `tools` mode 3.
    - `step_size` (0.4): by how much an action of 1 changes a parameter, ranges scaled to [-1, 1].
    - `score_weight` (1), `distance_weight` (0.1), `clipping_weight` (0.1): see Rewards.
    - `random_start` (0): see Starting State.
    - `observe_gradient` (False): see Observation Space; `params` mode, with a differentiable scorer. Every step then
      also goes backward, through the scorer and the ISP.
    - `side` (`None`): px of the central squares that images are brought to; `None`: as they are, files at 256.
    - `cache` (`None`): folder that keeps decoded files.
    - `device` (`None`): where images are held and rendered; `None`: where they are. The scorer must work there.
    - `render_mode` (`None`): `"rgb_array"`: `render()` gives the picture at full size, `(H, W, 3)` in 8 bits.

    ## Version History

    * v0: Initial version
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (as Gymnasium has it)

    def __init__(
        self,
        images: Images,
        *,
        scorer: Scorer | None = None,
        mode: Mode = "params",
        parameters: Sequence[str] | None = None,
        horizon: int | None = None,
        step_size: float = 0.4,
        score_weight: float = 1.0,
        distance_weight: float = 0.1,
        clipping_weight: float = 0.1,
        random_start: float = 0.0,
        observe_gradient: bool = False,
        side: int | None = None,
        cache: Path | str | None = None,
        device: torch.device | str | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = check_render_mode(render_mode)
        chosen = None if parameters is None else tuple(parameters)
        weights = (score_weight, distance_weight, clipping_weight)
        task = TuningTask(mode, chosen, horizon, step_size, *weights, random_start, observe_gradient)
        self.core = ISPCore(load_bank(images, side=side, cache=cache, device=device), scorer, 1, task)
        self.observation_space = cast("spaces.Space[Observation]", self.core.observation_space)
        self.action_space = self.core.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; ``options`` may hold ``"image"``, an index into the bank."""
        super().reset(seed=seed)
        check_options(options)
        self.core.reset([0], [self.np_random], [(options or {}).get("image")])
        return self._observation(), rows_of(self.core.facts(_ONE))[0]

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Change the params, or apply a tool."""
        rewards, terminated, parts = self.core.step(np.asarray(action)[None])
        result = self._observation(), rows_of({**self.core.facts(_ONE), **parts})[0]
        if terminated[0]:
            self.core.end(_ONE)
        return result[0], float(rewards[0]), bool(terminated[0]), False, result[1]

    def render(self) -> NDArray[np.uint8] | None:
        """The picture as it is now, ``(H, W, 3)``; `None` where no render mode was given."""
        return None if self.render_mode is None else self.core.frames(_ONE)[0]

    def _observation(self) -> Observation:
        return {name: values[0] for name, values in self.core.observe(_ONE).items()}


class ISPTuningVectorEnv(VectorEnv[Observation, Any, NDArray[Any]]):
    """Environments of `ISPTuningEnv` as one: one rendering and one forward of the scorer per step for all of them.

    Arguments, spaces, rewards and the format of ``info`` are those of `ISPTuningEnv` behind Gymnasium's
    ``SyncVectorEnv(..., autoreset_mode=AutoresetMode.SAME_STEP)``, and so is what happens: an episode that ends begins
    anew in the same step, its last observation and info being in ``info["final_obs"]`` and ``info["final_info"]``; with
    a seed s, the environment of index i does what a single one with seed s + i does. `gymnasium.make_vec` makes this
    class unless told otherwise.

    Args:
        images: as for `ISPTuningEnv`, and so are all arguments that are not below.
        num_envs: how many.
        max_episode_steps: truncates longer episodes, as the wrapper ``TimeLimit`` does for a single environment.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        images: Images,
        *,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        scorer: Scorer | None = None,
        mode: Mode = "params",
        parameters: Sequence[str] | None = None,
        horizon: int | None = None,
        step_size: float = 0.4,
        score_weight: float = 1.0,
        distance_weight: float = 0.1,
        clipping_weight: float = 0.1,
        random_start: float = 0.0,
        observe_gradient: bool = False,
        side: int | None = None,
        cache: Path | str | None = None,
        device: torch.device | str | None = None,
        render_mode: str | None = None,
    ) -> None:
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps: expected at least 1; got {max_episode_steps}")
        self.render_mode = check_render_mode(render_mode)
        chosen = None if parameters is None else tuple(parameters)
        weights = (score_weight, distance_weight, clipping_weight)
        task = TuningTask(mode, chosen, horizon, step_size, *weights, random_start, observe_gradient)
        self.core = ISPCore(load_bank(images, side=side, cache=cache, device=device), scorer, num_envs, task)
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.single_observation_space, self.single_action_space = self.core.observation_space, self.core.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._all = np.arange(num_envs)
        self._generators: list[np.random.Generator] | None = None
        self._seeds: tuple[int, ...] = ()

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """One generator per environment, as `SyncVectorEnv` has it."""
        return tuple(self._made_generators([None] * self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """Their seeds."""
        self._made_generators([None] * self.num_envs)
        return self._seeds

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin all episodes.

        Args:
            seed: s for seeds s, s + 1, ...; or one seed per environment.
            options: may hold ``"image"``: per environment an index into the bank, or `None`.
        """
        check_options(options)
        seeds = spread_seeds(seed, self.num_envs)
        images = (options or {}).get("image")
        if images is not None and (np.ndim(images) != 1 or len(images) != self.num_envs):
            raise ValueError(f"options['image']: expected {self.num_envs} indices, one per environment; got {images!r}")
        self.core.reset(self._all, self._made_generators(seeds), images)
        return self.core.observe(self._all), _masked(self.core.facts(self._all), np.ones(self.num_envs, np.bool_))

    def step(self, actions: Any) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Take one step of every episode, and begin those anew that end."""
        rewards, terminated, parts = self.core.step(actions)
        truncated = np.zeros(self.num_envs, np.bool_)
        if self.max_episode_steps is not None:
            truncated = self.core.steps >= self.max_episode_steps
        done = terminated | truncated
        facts = {**self.core.facts(self._all), **parts}
        infos = _masked(facts, ~done)
        if done.any():
            rows = np.flatnonzero(done)
            last = self.core.observe(rows)
            final = np.full(self.num_envs, None, dtype=object)
            for place, row in enumerate(rows):
                final[row] = {name: values[place].copy() for name, values in last.items()}
            generators = self._made_generators([None] * self.num_envs)
            self.core.reset(rows, [generators[row] for row in rows])
            infos = _merged(infos, _masked(self.core.facts(self._all), done))
            infos |= {"final_obs": final, "_final_obs": done.copy()}
            infos |= {"final_info": _masked(facts, done), "_final_info": done.copy()}
        return self.core.observe(self._all), rewards, terminated, truncated, infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """The pictures as they are now, ``(H, W, 3)`` each; `None` where no render mode was given."""
        return None if self.render_mode is None else tuple(self.core.frames(self._all))

    def _made_generators(self, seeds: Sequence[int | None]) -> list[np.random.Generator]:
        """The generators, new where there is a seed or were none."""
        made = None if self._generators is None else list(zip(self._generators, self._seeds, strict=True))
        pairs = [
            seeding.np_random(seed) if made is None or seed is not None else made[row] for row, seed in enumerate(seeds)
        ]
        self._generators, self._seeds = [pair[0] for pair in pairs], tuple(pair[1] for pair in pairs)
        return self._generators


_ONE = np.zeros(1, np.intp)


def spread_seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """A seed per environment: s, s + 1, ... of one number.

    Raises:
        ValueError: a sequence of another length.
    """
    if seed is None:
        return [None] * count
    if isinstance(seed, int | np.integer):
        return [int(seed) + row for row in range(count)]
    if len(seed) != count:
        raise ValueError(f"seed: expected one number or {count}, one per environment; got {len(seed)}")
    return list(seed)


def check_options(options: Mapping[str, Any] | None) -> None:
    """Refuse options of `reset` that mean nothing here.

    Raises:
        ValueError: naming them.
    """
    unknown = set(options or {}) - _OPTIONS
    if unknown:
        raise ValueError(f"options: expected keys among {', '.join(_OPTIONS)}; got {', '.join(sorted(unknown))}")


def check_render_mode(render_mode: str | None) -> str | None:
    """``render_mode`` itself.

    Raises:
        ValueError: it is neither `None` nor ``"rgb_array"``.
    """
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode: expected None or 'rgb_array'; got {render_mode!r}")
    return render_mode


def _masked(arrays: Arrays, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A vector environment's ``info`` of those in a mask: zeros elsewhere, and the mask of each key as ``_key``."""
    if not mask.any():
        return {}
    infos: dict[str, Any] = {}
    for name, values in arrays.items():
        kept = np.zeros_like(values)
        kept[mask] = values[mask]
        infos[name], infos[f"_{name}"] = kept, mask.copy()
    return infos


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two such infos of different environments as one."""
    return first | {name: first[name] + values if name in first else values for name, values in second.items()}
