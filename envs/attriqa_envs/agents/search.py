"""Tuning the ISP picture by picture, without training: random search, CMA-ES, and Adam through the ISP.

All maximise one `Objective`: the potential whose growth is the reward of `attriqa_envs.tuning`, so that their results
and a policy's (`follow`) can stand in one table. A budget counts the pictures that are rendered and scored, besides the
camera's default, with which each of them begins. Adam's renders, all but the last, also go backward, which costs two to
three times the forward; how long each way takes is for the clock to say. The searches' own settings were chosen on a
few photos for budgets of 20 to 100, so that they stand as strong as they can beside a policy.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attriqa_envs.isp import KEYS, render, to_action, to_params
from attriqa_envs.isp.color import clipped_share
from attriqa_envs.tuning import TuningTask
from attriqa_envs.tuning.core import ISPCore, Scorer, assess
from attriqa_envs.tuning.episodes import Act, begin, play

Score = Callable[[Tensor, Tensor], Tensor]  # (B, 3, H, W) sRGB, (B,) which pictures they are of -> (B,), to maximise
Floats = NDArray[np.float64]
Method = Literal["default", "random", "cmaes", "adam", "policy"]

_GROWTH, _SHRINKAGE = 1.2, 0.5  # of Adam's rate, after a step that helped and one that did not


class Tuned(NamedTuple):
    """Params for N pictures.

    Attributes:
        params: ``(N, P)`` float32, physical.
        curve: ``(N, R + 1)`` the objective after each of R renders, the default's first: of a search the best so far,
            of a policy where it stands. The last column is that of ``params``.
    """

    params: Tensor
    curve: Floats


class Objective:
    """What is maximised on N pictures, each by itself: score minus the environment's penalties.

    Args:
        linear: ``(N, 3, H, W)`` linear light, as `attriqa_envs.isp.render` takes it.
        score: what judges pictures, differentiable where `adam` is to climb it; `blind` makes one of a scorer.
        task: its weights, and which parameters may change; in ``"params"`` mode.
        batch: pictures rendered and scored at once.

    Raises:
        ValueError: ``linear`` is empty or no batch, the task is one of tools, or ``batch`` is below 1.
    """

    def __init__(self, linear: Tensor, score: Score, task: TuningTask | None = None, *, batch: int = 16) -> None:
        self.task = task or TuningTask()
        if linear.ndim != 4 or len(linear) == 0:
            raise ValueError(f"linear: expected a non-empty (N, 3, H, W), got {tuple(linear.shape)}")
        if self.task.mode != "params":
            raise ValueError(f"task: expected one of params, got one of {self.task.mode}: it has no params to search")
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        self.batch = batch
        self._linear, self._score = linear, score
        chosen = KEYS if self.task.parameters is None else self.task.parameters
        self._columns = torch.tensor([KEYS.index(key) for key in chosen], device=linear.device)
        self._default = to_action(torch.zeros(len(KEYS), device=linear.device))

    def __len__(self) -> int:
        return len(self._linear)

    @property
    def start(self) -> Tensor:
        """``(D,)`` the action of the camera's default, of the D parameters that may change."""
        return self._default[self._columns]

    def params(self, actions: Tensor) -> Tensor:
        """``(B, D)`` in [-1, 1] -> ``(B, P)`` physical; what may not change is at its default."""
        normalized = self._default.repeat(len(actions), 1)
        normalized[:, self._columns] = actions
        return to_params(normalized)

    def __call__(self, actions: Tensor, rows: Tensor) -> Tensor:
        """The values ``(B,)`` of actions ``(B, D)`` on the pictures ``rows`` ``(B,)``, with gradients to the actions.

        Raises:
            ValueError: a score is not finite, scores are not ``(B,)``, or they have no gradient where actions want one.
        """
        params = self.params(actions)
        pictures = render(self._linear[rows].float(), params)
        scores = self._score(pictures, rows)
        if scores.shape != rows.shape or not bool(scores.isfinite().all()):
            raise ValueError(f"score: expected {len(rows)} finite values, got {scores.detach()}")
        if pictures.requires_grad and not scores.requires_grad:
            raise ValueError("score: expected one with gradients to the pictures; this one has none")
        distances = (to_action(params) - self._default).square().mean(1)
        return self.task.potential(scores, distances, clipped_share(pictures))

    @torch.no_grad()
    def evaluate(self, actions: Tensor, rows: Tensor) -> Tensor:
        """The same of any number of actions, in batches, without gradients."""
        parts = zip(actions.split(self.batch), rows.split(self.batch), strict=True)
        return torch.cat([self(some, of) for some, of in parts])


def blind(scorer: Scorer) -> Score:
    """A scorer of pictures as the score of an `Objective`, which also says which picture it is of."""
    return lambda pictures, rows: assess(scorer, pictures).score


def search(
    method: Method,
    linear: Tensor,
    scorer: Scorer,
    task: TuningTask,
    *,
    renders: int,
    seeds: Sequence[int],
    act: Act | None = None,
    batch: int = 16,
) -> Tuned:
    """Tune pictures by a method of this module, by its name.

    Args:
        method: which.
        linear: ``(N, 3, H, W)`` float16 linear light.
        scorer: what judges pictures.
        task: its weights, and which parameters may change; a policy's own.
        renders: budget per picture; a policy has that of its task.
        seeds: one per picture, for what is random.
        act: of the policy.
        batch: pictures at once.

    Raises:
        ValueError: there is no such method, a policy without ``act``, or what the method itself refuses.
    """
    if method == "policy":
        if act is None:
            raise ValueError("act: expected the policy's, got none")
        return follow(act, linear, scorer, task, batch=batch)
    objective = Objective(linear, blind(scorer), task, batch=batch)
    if method == "default":
        return stay(objective)
    if method == "random":
        return random_search(objective, renders, seeds)
    if method == "cmaes":
        return cma_es(objective, renders, seeds)
    if method == "adam":
        return adam(objective, renders)
    raise ValueError(f"method: expected default, random, cmaes, adam or policy, got {method!r}")


def stay(objective: Objective) -> Tuned:
    """The camera's default, and what it is worth: what the others begin with."""
    rows = torch.arange(len(objective), device=objective.start.device)
    values = objective.evaluate(objective.start.repeat(len(rows), 1), rows)
    return Tuned(torch.zeros(len(rows), len(KEYS)), values[:, None].double().numpy(force=True))


def random_search(objective: Objective, renders: int, seeds: Sequence[int], *, reach: float = 2.0) -> Tuned:
    """The best of random params around the default.

    Each candidate is drawn evenly from a box around the default whose half-width is itself drawn evenly up to
    ``reach``, so that small changes are tried as well as large ones; what leaves the ranges is clipped.

    Args:
        objective: to maximise.
        renders: candidates per picture.
        seeds: one per picture; a picture's result depends on its own alone.
        reach: in normalised units, where parameters range over [-1, 1].

    Raises:
        ValueError: wrong arguments.
    """
    _check_budget(objective, renders, seeds)
    if not 0 < reach <= 2:
        raise ValueError(f"reach: expected a number in (0, 2], got {reach}")
    start = objective.start
    drawn = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        sizes = rng.uniform(0, reach, (renders, 1))
        drawn.append(sizes * rng.uniform(-1, 1, (renders, len(start))))
    moves = torch.from_numpy(np.concatenate([np.zeros((len(objective), 1, len(start))), np.stack(drawn)], 1))
    candidates = (start + moves.to(start)).clamp(-1, 1)  # (N, R + 1, D), the default first
    rows = torch.arange(len(objective), device=start.device).repeat_interleave(renders + 1)
    values = objective.evaluate(candidates.flatten(0, 1), rows).reshape(len(objective), -1)
    best = candidates[torch.arange(len(objective)), values.argmax(1)]
    return _tuned(objective, best, values)


def cma_es(
    objective: Objective, renders: int, seeds: Sequence[int], *, sigma: float = 0.35, population: int | None = None
) -> Tuned:
    """CMA-ES from the default (Hansen 2016, "The CMA Evolution Strategy: A Tutorial"), one per picture, in one batch.

    Args:
        objective: to maximise.
        renders: candidates per picture; those left after the last whole generation are drawn and not learnt from.
        seeds: one per picture.
        sigma: initial standard deviation in normalised units.
        population: candidates per generation; 4 + 3 ln D, at most a third of ``renders``, unless given.

    Raises:
        ValueError: wrong arguments.
        ImportError: the package cmaes is not installed.
    """
    from cmaes import CMA  # type: ignore[import-untyped]

    _check_budget(objective, renders, seeds)
    start = objective.start
    size = len(start)
    if population is None:
        population = max(4, min(4 + int(3 * np.log(size)), renders // 3))
    if not (sigma > 0 and population >= 2):
        raise ValueError(f"sigma, population: expected more than 0, and at least 2; got {sigma}, {population}")
    mean, bounds = start.double().numpy(force=True), np.tile([-1.0, 1.0], (size, 1))
    searches = [CMA(mean.copy(), sigma, bounds, seed=seed % 2**32, population_size=population) for seed in seeds]
    rows = torch.arange(len(objective), device=start.device)
    values = [objective.evaluate(start.repeat(len(rows), 1), rows)[:, None]]
    best, highest = start.repeat(len(rows), 1), values[0][:, 0]
    left = renders
    while left:
        count = min(population, left)
        asked = [np.stack([search.ask() for _ in range(count)]) for search in searches]
        candidates = torch.from_numpy(np.stack(asked)).to(start).clamp(-1, 1)  # (N, count, D); float32 rounds
        reached = objective.evaluate(candidates.flatten(0, 1), rows.repeat_interleave(count)).reshape(len(rows), count)
        values.append(reached)
        top, where = reached.max(1)
        best = torch.where((top > highest)[:, None], candidates[rows, where], best)
        highest = torch.maximum(top, highest)
        left -= count
        if count == population:
            for search, points, losses in zip(searches, asked, (-reached).double().tolist(), strict=True):
                search.tell(list(zip(points, losses, strict=True)))
    return _tuned(objective, best, torch.cat(values, 1))


def adam(objective: Objective, renders: int, *, lr: float = 0.2) -> Tuned:
    """Gradient ascent by Adam (Kingma and Ba 2015) on normalised params, through the ISP and the score.

    The default's gradient starts it. Where a step does not raise a picture's value, it is taken back and tried again,
    from the best point so far, at half the rate and without momentum; after one that does, the rate grows again by a
    fifth. So one rate serves pictures that need little and much, and none ends below its default.

    Args:
        objective: to maximise; its score must be differentiable.
        renders: steps per picture.
        lr: rate of the first step and the highest, in normalised units.

    Raises:
        ValueError: wrong arguments, or the score has no gradient.
    """
    _check_budget(objective, renders)
    if not 0 < lr <= 2:
        raise ValueError(f"lr: expected a number in (0, 2], got {lr}")
    parts = [_climb(objective, rows, renders, lr) for rows in torch.arange(len(objective)).split(objective.batch)]
    return _tuned(objective, torch.cat([best for best, _ in parts]), torch.cat([values for _, values in parts]))


def _climb(objective: Objective, rows: Tensor, renders: int, lr: float) -> tuple[Tensor, Tensor]:
    """The best actions ``(B, D)`` of some pictures, and the values ``(B, R + 1)`` of all that were tried."""
    start = objective.start
    rows = rows.to(start.device)
    actions = start.repeat(len(rows), 1).requires_grad_()
    optimizer = torch.optim.Adam([actions], 1.0, maximize=True)  # its step is scaled by each picture's own rate
    rates = torch.full((len(rows), 1), lr, device=start.device)
    best, uphill, tried = actions.detach().clone(), torch.zeros_like(actions), []
    highest = torch.full((len(rows), 1), -torch.inf, device=start.device)
    for step in range(renders + 1):
        values = objective(actions, rows)
        tried.append(values.detach())
        reached = values.detach()[:, None]
        higher = reached > highest
        best, highest = torch.where(higher, actions.detach(), best), torch.maximum(highest, reached)
        if step == renders:
            break
        (gradient,) = torch.autograd.grad(values.sum(), actions)
        uphill = torch.where(higher, gradient, uphill)
        rates = torch.where(higher, (rates * _GROWTH).clamp(max=lr), rates * _SHRINKAGE)
        with torch.no_grad():
            actions.copy_(best)
            actions.grad = uphill.clone()
            for momentum in optimizer.state[actions].values():
                if momentum.shape == actions.shape:  # the other is the count of steps
                    momentum.mul_(higher)
            optimizer.step()
            actions.copy_((best + rates * (actions - best)).clamp(-1, 1))
    return best, torch.stack(tried, 1)


def follow(act: Act, linear: Tensor, scorer: Scorer, task: TuningTask, *, batch: int = 16) -> Tuned:
    """Let a policy tune: one episode per picture from the camera's default, in the environment it was trained in.

    Args:
        act: maps observations of n environments to their actions, as `attriqa_envs.agents.policy.Policy.act` does.
        linear: ``(N, 3, H, W)`` float16 linear light.
        scorer: what judges pictures.
        task: that the policy was trained for; a random start is left out.
        batch: pictures at once.

    Raises:
        ValueError: the task is one of tools, which leave no params, or the policy acts wrongly.
    """
    if task.mode != "params":
        raise ValueError(f"task: expected one of params, got one of {task.mode}: a policy on tools leaves no params")
    core = ISPCore(linear, scorer, min(batch, len(linear)), replace(task, random_start=0.0))
    params, curves = [], []
    for first in range(0, len(linear), len(core)):
        rows = begin(core, first)
        start = core.facts(rows)
        values = task.potential(start["score"], start["distance"], start["clipped"])
        curves.append(np.cumsum([values, *play(core, act)[:, rows]], 0).T)
        params.append(core.facts(rows)["params"])
    return Tuned(torch.from_numpy(np.concatenate(params)), np.concatenate(curves))


def _check_budget(objective: Objective, renders: int, seeds: Sequence[int] | None = None) -> None:
    if isinstance(renders, bool) or not isinstance(renders, int) or renders < 1:
        raise ValueError(f"renders: expected an integer of at least 1, got {renders!r}")
    if seeds is not None and len(seeds) != len(objective):
        raise ValueError(f"seeds: expected {len(objective)}, one per picture, got {len(seeds)}")


def _tuned(objective: Objective, best: Tensor, values: Tensor) -> Tuned:
    curve = values.cummax(1).values.double().numpy(force=True)
    return Tuned(objective.params(best).detach().cpu(), curve)
