"""What a policy gains on given images, in the reward's eyes and in those of judges that nobody optimised."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attriqa.judges import Judge
from attriqa_envs.evaluation.judges import judge_pictures
from attriqa_envs.tuning.core import ISPCore
from attriqa_envs.tuning.episodes import Act, begin, play

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
        parts = [self._episodes(act, first) for first in range(0, len(self.core.bank), len(self.core))]
        *columns, by_judge = zip(*parts, strict=True)
        reward, score_gain, start, end = (np.concatenate(column) for column in columns)
        judge_gains = {name: np.concatenate([gains[name] for gains in by_judge]) for name in self.judges}
        return Gains(reward, score_gain, start, end, judge_gains)

    def _episodes(self, act: Act, first: int) -> Gains:
        rows = begin(self.core, first)
        start, images = self.core.facts(rows), self.core.images[rows].tolist()
        if not self._starts.keys() >= set(images):
            self._starts |= dict(zip(images, self._judge(rows), strict=True))
        rewards = play(self.core, act)[:, rows].sum(0)
        end, ends = self.core.facts(rows), self._judge(rows)
        starts = [self._starts[image] for image in images]
        return Gains(
            rewards,
            end["score"] - start["score"],
            start["clipped"],
            end["clipped"],
            {name: np.array([e[name] - s[name] for e, s in zip(ends, starts, strict=True)]) for name in self.judges},
        )

    def _judge(self, rows: NDArray[np.intp]) -> list[dict[str, float]]:
        return judge_pictures(self.judges, self.core.pictures(rows))
