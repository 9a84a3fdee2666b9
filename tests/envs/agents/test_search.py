"""Tuning picture by picture: what the searches find, at what budget, and that none of it depends on the batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attriqa_envs.agents.search import Objective, Tuned, adam, blind, cma_es, follow, random_search
from attriqa_envs.isp import KEYS, render, to_params
from attriqa_envs.tuning import TuningTask
from attriqa_envs.tuning.core import ISPCore
from tests.support.tuning_helpers import BrightnessScorer, bank

P = len(KEYS)
TASK = TuningTask()
FREE = TuningTask(distance_weight=0.0, clipping_weight=0.0)
METHODS = ("random", "cmaes", "adam")


class Counting:
    """Wants a mean of 0.6; counts the pictures that it was shown."""

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, pictures: Tensor, rows: Tensor) -> Tensor:
        self.shown += len(pictures)
        return 1 - (pictures.mean((1, 2, 3)) - 0.6).square() * 4


def run(method: str, objective: Objective, renders: int, seeds: list[int]) -> Tuned:
    if method == "random":
        return random_search(objective, renders, seeds)
    return cma_es(objective, renders, seeds) if method == "cmaes" else adam(objective, renders)


def values_of(objective: Objective, params: Tensor, count: int, score: Counting) -> np.ndarray:
    """What the environment's reward adds up to, computed anew from the params."""
    core = ISPCore(bank(count), lambda pictures: score(pictures, torch.arange(len(pictures))), count, objective.task)
    core.reset(range(count), [np.random.default_rng(0)] * count, list(range(count)))
    start = torch.tensor(core.facts(np.arange(count))["params"])
    assert torch.equal(start, torch.zeros(count, P))
    low, high = (to_params(torch.full((P,), end)) for end in (-1.0, 1.0))
    moves = (2 * params / (high - low)).numpy() / objective.task.step_size
    rewards = core.step(moves).rewards
    facts = core.facts(np.arange(count))
    np.testing.assert_allclose(facts["params"], params.numpy(), atol=1e-4)
    return np.asarray(rewards)


@pytest.mark.parametrize("method", METHODS)
def test_a_search_keeps_its_budget_and_never_ends_below_the_default(method: str) -> None:
    for renders in (1, 8):
        score = Counting()
        objective = Objective(bank(3), score, TASK, batch=8)
        found = run(method, objective, renders, [1, 2, 3])
        assert score.shown == 3 * (renders + 1)  # and the default
        assert found.curve.shape == (3, renders + 1)
        assert (np.diff(found.curve, axis=1) >= 0).all()
        assert found.params.shape == (3, P)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_maximised_is_the_reward_of_the_environment(method: str) -> None:
    task = replace(TASK, step_size=2.0, distance_weight=0.05, clipping_weight=0.3, score_weight=0.5)
    score = Counting()
    objective = Objective(bank(4), score, task)
    found = run(method, objective, 8, [5, 6, 7, 8])
    gains = found.curve[:, -1] - found.curve[:, 0]
    assert gains.max() > 0.02
    np.testing.assert_allclose(values_of(objective, found.params, 4, score), gains, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_gets_the_same_params_alone_and_in_any_batch(method: str) -> None:
    seeds = [11, 12, 13, 14, 15]
    whole = run(method, Objective(bank(5), Counting(), TASK, batch=2), 8, seeds)
    for row in (0, 3):
        alone = run(method, Objective(bank(5)[row : row + 1], Counting(), TASK), 8, seeds[row : row + 1])
        torch.testing.assert_close(alone.params[0], whole.params[row], atol=2e-3, rtol=0)
        np.testing.assert_allclose(alone.curve[0], whole.curve[row], atol=1e-4)


@pytest.mark.parametrize("method", ["random", "cmaes"])
def test_the_seed_decides(method: str) -> None:
    first, again, other = (run(method, Objective(bank(2), Counting()), 9, seeds) for seeds in ([1, 2], [1, 2], [3, 4]))
    assert torch.equal(first.params, again.params)
    assert not torch.equal(first.params, other.params)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_chosen_parameters_move(method: str) -> None:
    objective = Objective(bank(3), Counting(), TuningTask(parameters=("shadows", "exposure")))
    found = run(method, objective, 12, [1, 2, 3])
    moved = [key for key, values in zip(KEYS, found.params.T, strict=True) if bool((values.abs() > 1e-6).any())]
    assert moved == ["exposure", "shadows"]


def test_adam_beats_black_box_search_where_there_are_gradients() -> None:
    reached = {method: run(method, Objective(bank(4), Counting()), 20, [1, 2, 3, 4]).curve[:, -1] for method in METHODS}
    assert (reached["adam"] > reached["random"]).all()
    assert (reached["adam"] > reached["cmaes"]).all()


def test_adam_learns_from_clipping_what_the_environment_counts() -> None:
    """The hard count has no gradient; the score here is blind, so what moves is moved by the penalty alone."""
    task = TuningTask(parameters=("exposure",), distance_weight=0.0, clipping_weight=1.0)
    bright = bank(5)[3:]
    objective = Objective(bright, lambda pictures, rows: 0 * pictures.mean((1, 2, 3)), task)
    found = adam(objective, 15)
    assert (found.params[:, KEYS.index("exposure")] < -0.2).all()
    levels = 1024 * render(bright.float(), found.params)  # black is 1, white 1016, before rounding
    hard = ((levels <= 1.01) | (levels >= 1015.99)).any(1).float().mean((1, 2))
    np.testing.assert_allclose(found.curve[:, -1], [-float(share) for share in hard], atol=1e-6)
    assert (found.curve[:, -1] > found.curve[:, 0]).all()
    assert found.curve[1, -1] > found.curve[1, 0] + 0.5


def test_cma_es_learns_over_generations() -> None:
    """With what it is told withheld from it, it does worse: more renders of the same generation help less."""
    objective = Objective(bank(4), Counting(), TuningTask(parameters=KEYS[:6]))
    seeds = [1, 2, 3, 4]
    learning = cma_es(objective, 60, seeds, population=6).curve[:, -1]
    sampling = cma_es(objective, 60, seeds, population=61).curve[:, -1]
    assert learning.mean() > sampling.mean()


def test_a_policy_is_followed_from_the_default() -> None:
    task = TuningTask(parameters=("exposure", "tint"), horizon=3, step_size=0.25, random_start=0.5)
    scorer = BrightnessScorer()
    found = follow(lambda seen: np.stack([np.array([0.5, 0.0])] * len(seen["step"])), bank(5), scorer, task, batch=2)
    expected = torch.zeros(5, P)
    expected[:, 0] = 3 * 3 * 0.5 * 0.25  # three steps; exposure ranges over 3 EV to either side
    torch.testing.assert_close(found.params, expected, atol=1e-5, rtol=0)
    assert found.curve.shape == (5, 4)
    objective = Objective(bank(5), blind(BrightnessScorer()), task)
    steps = torch.stack([objective.start + torch.tensor([0.125 * step, 0.0]) for step in range(4)])
    for row in range(5):
        values = objective.evaluate(steps, torch.full((4,), row))
        np.testing.assert_allclose(found.curve[row], values.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda o: random_search(o, 0, [1, 2]), "renders: expected an integer of at least 1, got 0"),
        (lambda o: random_search(o, 5, [1]), "seeds: expected 2, one per picture, got 1"),
        (lambda o: random_search(o, 5, [1, 2], reach=0), "reach: expected"),
        (lambda o: cma_es(o, 5, [1, 2], sigma=-1), "sigma, population: expected"),
        (lambda o: adam(o, True), "renders: expected an integer"),
        (lambda o: adam(o, 5, lr=0), "lr: expected"),
        (lambda o: Objective(bank(2), Counting(), TuningTask("tools")), "task: expected one of params, got one of too"),
        (lambda o: Objective(bank(2)[0], Counting()), "linear: expected a non-empty"),
        (lambda o: Objective(bank(2), Counting(), batch=0), "batch: expected at least 1"),
        (lambda o: adam(Objective(bank(2), lambda p, r: p.mean((1, 2, 3)) * torch.nan), 3), "expected 2 finite values"),
        (lambda o: adam(Objective(bank(2), lambda p, r: p.mean((1, 2, 3)).detach(), FREE), 3), "with gradients"),
        (lambda o: follow(lambda seen: np.zeros(1), bank(1), BrightnessScorer(), TuningTask("tools")), "tools leaves"),
    ],
)
def test_wrong_arguments_are_named(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong(Objective(bank(2), Counting()))
