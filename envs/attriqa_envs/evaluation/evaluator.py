"""What a policy gains on given images, in the reward's eyes and in those of judges that nobody optimised."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attriqa_envs.evaluation.judges import Judge
from attriqa_envs.isp.tools import DONE
from attriqa_envs.tuning.core import Arrays, ISPCore

Act = Callable[[Arrays], NDArray[np.generic]]
Floats = NDArray[np.float64]


class Gains(NamedTuple):
    """Of N images, in the order of the bank; ``*_gain`` is the end of the episode minus its start."""

    reward: Floats  # (N,) the sum of the episode's rewards, penalties included
    score_gain: Floats  # (N,)
    clipped_start: Floats  # (N,) share of pixels
    clipped_end: Floats  # (N,)
    judge_gains: dict[str, Floats]  # (N,) each


class Evaluator:
    """Runs one episode per image of a bank, from the camera's default on.

    Args:
        core: with the images; its task should have no random start. No one else may step it.
        judges: by name.
    """

    def __init__(self, core: ISPCore, judges: Mapping[str, Judge]) -> None:
        self.core, self.judges = core, dict(judges)
        self._starts: dict[int, dict[str, float]] = {}  # what judges say of a default rendering, by image

    def run(self, act: Act) -> Gains:
        """The gains of a policy: ``act`` maps observations of all environments to their actions.

        Raises:
            ValueError: a judge gives anything but finite ``(B,)``, or ``act`` wrong actions.
        """
        count, parts = len(self.core.bank), []
        for first in range(0, count, len(self.core)):
            wanted = np.arange(first, first + len(self.core))
            parts.append(self._episodes(act, wanted[wanted < count]))
        return Gains(
            reward=np.concatenate([part.reward for part in parts]),
            score_gain=np.concatenate([part.score_gain for part in parts]),
            clipped_start=np.concatenate([part.clipped_start for part in parts]),
            clipped_end=np.concatenate([part.clipped_end for part in parts]),
            judge_gains={name: np.concatenate([part.judge_gains[name] for part in parts]) for name in self.judges},
        )

    def _episodes(self, act: Act, images: NDArray[np.intp]) -> Gains:
        core, rows = self.core, np.arange(len(self.core))
        padded = np.concatenate((images, np.repeat(images[-1:], len(core) - len(images))))  # a core steps all or none
        seen = np.arange(len(images))
        core.reset(rows, [np.random.default_rng(0) for _ in rows], padded.tolist())
        start, rewards, over = core.facts(rows), np.zeros(len(core)), np.zeros(len(core), np.bool_)
        starts = self._judge_starts(images)
        for _ in range(core.task.steps):
            actions = act(core.observe(rows))
            if core.task.mode == "tools":
                actions = np.where(over, DONE, actions)
            transition = core.step(actions)
            rewards += transition.rewards
            over |= transition.terminated
        end = core.facts(rows)
        ends = self._judge(core.pictures(seen))
        core.end(rows)
        return Gains(
            rewards[seen],
            (end["score"] - start["score"])[seen],
            start["clipped"][seen],
            end["clipped"][seen],
            {name: ends[name] - starts[name] for name in self.judges},
        )

    def _judge_starts(self, images: NDArray[np.intp]) -> dict[str, Floats]:
        if not all(image in self._starts for image in images.tolist()):
            told = self._judge(self.core.pictures(np.arange(len(images))))
            for place, image in enumerate(images.tolist()):
                self._starts[image] = {name: float(values[place]) for name, values in told.items()}
        return {name: np.array([self._starts[image][name] for image in images.tolist()]) for name in self.judges}

    @torch.no_grad()
    def _judge(self, pictures: Tensor) -> dict[str, Floats]:
        told = {}
        for name, judge in self.judges.items():
            values = judge(pictures)
            if values.shape != (len(pictures),) or not bool(values.isfinite().all()):
                raise ValueError(f"judge {name}: expected {len(pictures)} finite values; got {values}")
            told[name] = values.double().numpy(force=True)
        return told
