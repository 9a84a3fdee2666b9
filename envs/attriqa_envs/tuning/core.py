"""The one core under every form of the tuning environment: n episodes, rendered in one batch and scored in one forward.

Gymnasium's single and vector environment (`attriqa_envs.tuning`) and stable-baselines3's (`attriqa_envs.tuning.sb3`)
only translate it to their interfaces; it knows neither of them, keeps no random state and resets nothing by itself.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from attriqa import QualityReward
from attriqa.models.assessment import Assessment
from attriqa_envs.isp.color import clipped_share
from attriqa_envs.tuning.state import make_state
from attriqa_envs.tuning.task import TuningTask

Scorer = Callable[[Tensor], Assessment | Tensor]
Arrays = dict[str, NDArray[Any]]

THUMBNAIL = 64  # px


class Transition(NamedTuple):
    """What one step of all n episodes gave."""

    rewards: NDArray[np.float64]  # (n,)
    terminated: NDArray[np.bool_]  # (n,)
    parts: Arrays  # of the reward, (n,) each; they add up to it


class _Seen(NamedTuple):
    """What is known of B pictures, on the host."""

    scores: NDArray[np.float32]  # (B, S), the score itself first
    clipped: NDArray[np.float32]  # (B,)
    thumbnails: NDArray[np.uint8]  # (B, 3, 64, 64)
    gradients: NDArray[np.float32]  # (B, D) where the reward rises, in (-1, 1); D = 0 where it is not observed

    def at(self, rows: NDArray[np.integer[Any]]) -> "_Seen":
        return _Seen(self.scores[rows], self.clipped[rows], self.thumbnails[rows], self.gradients[rows])

    def put(self, rows: NDArray[np.integer[Any]], seen: "_Seen") -> None:
        self.scores[rows], self.clipped[rows], self.thumbnails[rows], self.gradients[rows] = seen


class ISPCore:
    """n episodes of tuning.

    Args:
        bank: ``(N, 3, H, W)`` float16 linear light, see `attriqa_envs.raw.bank.load_bank`.
        scorer: what judges pictures, see `attriqa_envs.tuning.ISPTuningEnv`; it is asked once here, to see what it
            answers.
        count: n.
        task: what is tuned.

    Attributes:
        observation_space: of one episode.
        action_space: of one episode.
        images: ``(n,)`` which image of the bank each episode has.
        steps: ``(n,)`` taken since its beginning.

    Raises:
        ValueError: ``count`` is below 1, or the scorer's answer is neither ``(B,)`` nor an `Assessment`, or not finite.
    """

    def __init__(
        self, bank: Tensor, scorer: Scorer | None = None, count: int = 1, task: TuningTask | None = None
    ) -> None:
        if count < 1:
            raise ValueError(f"count: expected at least one environment; got {count}")
        self.task = task or TuningTask()
        self.bank = bank
        self._scorer = QualityReward("robust", view="native", device=bank.device) if scorer is None else scorer
        self._state = make_state(self.task, bank, count)
        self.images = np.zeros(count, np.int64)
        self.steps = np.full(count, -1)  # -1: not begun, or over
        # The start of an episode depends on its image alone unless it is random: it is looked at once.
        self._starts_known = np.zeros(len(bank), np.bool_)
        self._state.reset(np.arange(1), [0], [np.random.default_rng(0)])
        shown = self._look(np.arange(1))
        self._starts, self._now = (shown.at(np.zeros(length, np.intp)) for length in (len(bank), count))
        self._distance = np.zeros(count)
        self.action_space = self._state.action_space
        observed: dict[str, spaces.Space[Any]] = {
            "image": spaces.Box(0, 255, (3, THUMBNAIL, THUMBNAIL), np.uint8),
            self._state.key: self._state.space,
            "attributes": spaces.Box(-1, 1, (shown.scores.shape[1],), np.float32),
            "step": spaces.Box(0, 1, (1,), np.float32),
        }
        if self.task.observe_gradient:
            observed["gradient"] = spaces.Box(-1, 1, (shown.gradients.shape[1],), np.float32)
        self.observation_space = spaces.Dict(observed)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def start_bytes(self) -> int:
        """Memory of the host that what is known of the bank's starts may take."""
        return sum(part.nbytes for part in self._starts)

    def reset(
        self,
        rows: Iterable[int],
        generators: Sequence[np.random.Generator],
        images: Sequence[int | None] | None = None,
    ) -> None:
        """Begin new episodes.

        Args:
            rows: which.
            generators: one per row; draws the image, and the start where that is random.
            images: per row the image of the bank, or `None` for a drawn one.

        Raises:
            ValueError: an image that the bank has not.
        """
        where = np.fromiter(rows, np.intp)
        wanted = [None] * len(where) if images is None else list(images)
        for image in wanted:
            valid = image is None or (isinstance(image, int | np.integer) and not isinstance(image, bool))
            if not valid or (image is not None and not 0 <= image < len(self.bank)):
                raise ValueError(f"image: expected an integer from 0 to {len(self.bank) - 1}; got {image!r}")
        drawn = [
            int(generator.integers(len(self.bank))) if image is None else int(image)
            for generator, image in zip(generators, wanted, strict=True)
        ]
        self._state.reset(where, drawn, generators)
        self.images[where] = drawn
        self.steps[where] = 0
        self._distance[where] = self._state.distance(self._state.place(where)).numpy(force=True)
        if self.task.random_start:
            self._now.put(where, self._look(where))
            return
        new = where[~self._starts_known[self.images[where]]]
        if len(new):
            self._starts.put(self.images[new], self._look(new))
            self._starts_known[self.images[new]] = True
        self._now.put(where, self._starts.at(self.images[where]))

    def step(self, actions: object) -> Transition:
        """Take one step of every episode; actions that are refused change nothing.

        Args:
            actions: ``(n, P)`` numbers, or ``(n,)`` indices of tools.

        Raises:
            ValueError: wrong actions; it names the environment and the index.
            ResetNeeded: an episode has not begun, or is over.
        """
        checked = self._state.check(actions)
        idle = np.flatnonzero(self.steps < 0)
        if len(idle):
            raise ResetNeeded(f"environment {idle[0]}: call reset() before step(); no episode is under way")
        before = self._worth()
        changed, stopped = self._state.step(checked)
        rows = np.flatnonzero(changed)
        if len(rows):
            self._now.put(rows, self._look(rows))
            self._distance[rows] = self._state.distance(self._state.place(rows)).numpy(force=True)
        after = self._worth()
        parts = {name: after[name] - before[name] for name in after}
        rewards = np.sum(list(parts.values()), axis=0)
        self.steps += 1
        return Transition(rewards, stopped | (self.steps >= self.task.steps), parts)

    def score(self, pictures: Tensor, images: Tensor) -> Tensor:
        """The scorer's ``(B,)`` of ``(B, 3, H, W)`` pictures, with its gradients; it is not told ``images``."""
        return assess(self._scorer, pictures).score.float()

    def end(self, rows: NDArray[np.intp]) -> None:
        """Mark episodes as over: they take no step before they are begun again."""
        self.steps[rows] = -1

    def observe(self, rows: NDArray[np.intp]) -> Arrays:
        """The observations of episodes under way, ``(len(rows), ...)`` each; new arrays."""
        observed: Arrays = {
            "image": self._now.thumbnails[rows],
            self._state.key: self._state.observation(rows),
            "attributes": self._now.scores[rows].clip(-1, 1),
            "step": (self.steps[rows, None] / self.task.steps).astype(np.float32),
        }
        return observed | ({"gradient": self._now.gradients[rows]} if self.task.observe_gradient else {})

    def facts(self, rows: NDArray[np.intp]) -> Arrays:
        """What ``info`` tells of episodes under way besides the reward's parts, ``(len(rows), ...)``; new arrays."""
        return {
            "image": self.images[rows],
            "score": self._now.scores[rows, 0].astype(np.float64),
            "clipped": self._now.clipped[rows].astype(np.float64),
            "distance": self._distance[rows],
            **self._state.facts(rows),
        }

    @torch.no_grad()
    def pictures(self, rows: NDArray[np.intp]) -> Tensor:
        """The pictures of episodes as they are now: ``(len(rows), 3, H, W)`` sRGB in [0, 1]."""
        return self._state.pictures(rows, self._state.place(rows))

    def frames(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """The same for display: ``(len(rows), H, W, 3)`` in 8 bits."""
        levels = (self.pictures(rows) * 255).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous().numpy(force=True)

    def _worth(self) -> Arrays:
        """The terms of the potential whose growth is the reward."""
        return {
            "reward_score": self.task.score_weight * self._now.scores[:, 0].astype(np.float64),
            "reward_distance": -self.task.distance_weight * self._distance,
            "reward_clipping": -self.task.clipping_weight * self._now.clipped.astype(np.float64),
        }

    def _look(self, rows: NDArray[np.intp]) -> _Seen:
        """Render in one batch, score in one forward, and bring to the host what is small."""
        with torch.set_grad_enabled(self.task.observe_gradient):
            place = self._state.place(rows).requires_grad_(self.task.observe_gradient)
            pictures = self._state.pictures(rows, place)
            score, attributes, *_ = assess(self._scorer, pictures)
            scores = torch.cat((score[:, None], *([] if attributes is None else [attributes.to(score)])), 1).float()
            clipped = clipped_share(pictures)
            gradients = self._uphill(place, scores[:, 0], clipped) if self.task.observe_gradient else place[:, :0]
        with torch.no_grad():
            thumbnails = (F.interpolate(pictures, (THUMBNAIL, THUMBNAIL), mode="area") * 255).round().to(torch.uint8)
        seen = _Seen(*(part.numpy(force=True) for part in (scores, clipped, thumbnails, gradients)))
        wrong = np.flatnonzero(~np.isfinite(seen.scores).all(1))
        if len(wrong):
            raise ValueError(f"scorer: expected finite scores; got {seen.scores[wrong[0]]} for environment {wrong[0]}")
        if not np.isfinite(seen.gradients).all():
            raise ValueError("scorer: expected finite gradients to the pictures; some are not")
        return seen

    def _uphill(self, place: Tensor, scores: Tensor, clipped: Tensor) -> Tensor:
        """Where the potential rises: its gradient g by the tuned params, as g / (|g| + root mean square of g)."""
        if not scores.requires_grad:
            raise ValueError("scorer: expected one with gradients to the pictures, to observe these; this one has none")
        worth = self.task.potential(scores, self._state.distance(place), clipped)
        (everywhere,) = torch.autograd.grad(worth.sum(), place)
        gradient = everywhere[:, self._state.columns]
        return gradient / (gradient.abs() + gradient.square().mean(1, keepdim=True).sqrt()).clamp(min=1e-12)


def assess(scorer: Scorer, pictures: Tensor) -> Assessment:
    """What a scorer says of pictures ``(B, 3, H, W)``; of a `QualityReward`, the score is its reward.

    Raises:
        ValueError: the answer is neither an `Assessment` nor ``(B,)``.
    """
    if isinstance(scorer, QualityReward):  # its reward and its attributes from one forward
        seen = scorer.assess(pictures)
        return Assessment(scorer.weigh(seen), seen.attributes)
    answer = scorer(pictures)
    assessment = answer if isinstance(answer, Assessment) else Assessment(answer, None)
    score = assessment.score
    if not isinstance(score, Tensor) or score.shape != (len(pictures),):
        got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ValueError(f"scorer: expected an Assessment, or a tensor of shape ({len(pictures)},); got {got}")
    return assessment


def rows_of(arrays: Arrays) -> list[dict[str, Any]]:
    """A dict of arrays ``(n, ...)`` as n dicts; numbers become Python's, arrays are copied."""
    columns = {
        name: array.tolist() if array.ndim == 1 else [row.copy() for row in array] for name, array in arrays.items()
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
