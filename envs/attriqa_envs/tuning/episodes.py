"""Episodes without chance: a policy tunes every image of a core's bank, from the camera's default on."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from attriqa_envs.isp.tools import DONE
from attriqa_envs.tuning.core import Arrays, ISPCore

Act = Callable[[Arrays], NDArray[np.generic]]  # observations of n episodes -> their actions


def begin(core: ISPCore, first: int) -> NDArray[np.intp]:
    """Begin episodes of the images ``first``, ``first + 1``, ... of the bank, as many as the core has episodes.

    A core steps all or none: where the bank ends, its last image fills up what is left.

    Returns:
        The episodes that are of an image each, in the order of the bank.
    """
    every = np.arange(len(core))
    images = np.minimum(first + every, len(core.bank) - 1)
    core.reset(every, [np.random.default_rng(0) for _ in every], images.tolist())
    return every[: len(core.bank) - first]


def play(core: ISPCore, act: Act) -> NDArray[np.float64]:
    """Play all episodes to their end; one that is over before the others changes no more.

    Returns:
        The rewards of each step, ``(T, n)``.

    Raises:
        ValueError: ``act`` gives wrong actions.
    """
    every, over, rewards = np.arange(len(core)), np.zeros(len(core), np.bool_), []
    for _ in range(core.task.steps):
        actions = act(core.observe(every))
        transition = core.step(np.where(over, DONE, actions) if core.task.mode == "tools" else actions)
        rewards.append(transition.rewards)
        over |= transition.terminated
    return np.stack(rewards)
