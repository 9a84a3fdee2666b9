"""attriqa_envs.agents.guided_ppo: it climbs the gradient of the environment's own reward, and learns before PPO has."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from attriqa_envs.agents.checkpoints import load_run, save_run, standing_of
from attriqa_envs.agents.guided_ppo import GuidedPPO
from attriqa_envs.agents.policy import policy_options
from attriqa_envs.agents.search import Objective
from attriqa_envs.isp import KEYS
from attriqa_envs.tuning import TuningTask
from attriqa_envs.tuning.core import ISPCore
from attriqa_envs.tuning.episodes import begin, play
from attriqa_envs.tuning.sb3 import ISPTuningSB3
from tests.support.tuning_helpers import BrightnessScorer, bank

TASK = TuningTask(horizon=3, step_size=0.3)


@pytest.fixture(autouse=True)
def _keep_the_global_generator() -> Any:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def make(count: int = 4, images: int = 6, seed: int = 0, task: TuningTask = TASK) -> ISPTuningSB3:
    return ISPTuningSB3(ISPCore(bank(images, seed=seed), BrightnessScorer(), count, task))


def model_of(env: ISPTuningSB3, guided: int = 0, **options: Any) -> GuidedPPO:
    given = {"n_steps": 6, "batch_size": 8, "n_epochs": 1, "seed": 0, "policy_kwargs": policy_options("ppo")}
    return GuidedPPO("MultiInputPolicy", env, **{**given, **options}).guide(guided)


def gain(model: BaseAlgorithm) -> float:
    """Of the deterministic policy on pictures that it has not seen."""
    core = ISPCore(bank(8, seed=2), BrightnessScorer(), 8, TASK)
    begin(core, 0)
    return float(play(core, lambda seen: model.predict(seen, deterministic=True)[0]).sum(0).mean())


def test_it_learns_before_ppo_has() -> None:
    """All params, on pictures unseen; PPO with as many steps, and as many of Adam."""
    steps = 240
    guided = gain(model_of(make(16, 24, 1)).guide(steps, epochs=8, lr=3e-3).learn(steps))
    unguided = gain(model_of(make(16, 24, 1), n_steps=3, n_epochs=8, batch_size=48, learning_rate=3e-3).learn(steps))
    print(f"guided {guided:.3f}, unguided {unguided:.3f}")
    assert guided > 0.13
    assert guided > unguided + 0.03


def test_guided_actions_begin_with_little_noise_and_ppo_s_own_with_its() -> None:
    assert model_of(make(), guided=12).policy.log_std.exp().tolist() == pytest.approx([0.05] * len(KEYS))
    assert model_of(make()).policy.log_std.exp().tolist() == pytest.approx([np.exp(-1)] * len(KEYS))


def test_what_is_climbed_grows_by_the_rewards_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make()
    model = model_of(env, gamma=1.0).guide(12, epochs=1)
    model.policy.log_std.data.fill_(-20.0)
    starts: list[float] = []
    returns: list[Tensor] = []
    reached: list[Tensor] = []
    true_step, true_climb, true_call = env.core.step, model._climb, Objective.__call__

    def step(actions: Any) -> Any:
        if not starts:
            facts = env.core.facts(np.arange(4))
            starts.extend(env.core.task.potential(facts["score"], facts["distance"], facts["clipped"]))
        return true_step(actions)

    def climb(core: Any, seen: Any, images: Tensor, summed: Tensor, rate: float) -> None:
        returns.append(summed)
        true_climb(core, seen, images, summed, rate)

    def call(self: Objective, actions: Tensor, rows: Tensor) -> Tensor:
        reached.append(true_call(self, actions, rows))
        return reached[-1]

    monkeypatch.setattr(env.core, "step", step)
    monkeypatch.setattr(model, "_climb", climb)
    monkeypatch.setattr(Objective, "__call__", call)
    model.learn(12)
    assert returns[0].shape == (3, 4)
    grown = returns[0][0] - torch.cat([returns[0][1:], torch.zeros(1, 4)])  # (3, 4) after each step
    off = (reached[0].detach() - torch.tensor(starts) - grown).abs()
    assert (off.amin(0) < 2e-5).all()
    assert (grown.diff(dim=0).abs() > 1e-4).all()


def test_the_gradient_reaches_policy_and_critic_and_nothing_after_is_guided() -> None:
    model = model_of(make(), guided=13)
    rates: list[float] = []
    true_train = PPO.train

    def counted(self: PPO) -> None:
        rates.append(self.num_timesteps)
        true_train(self)

    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPO, "train", counted)
        model.learn(12)
        assert rates == []
        assert model.guided, "12 steps of 13"
        changed = [name for name, value in model.policy.state_dict().items() if not torch.equal(value, before[name])]
        assert any(name.startswith("action_net") for name in changed)
        assert any(name.startswith("value_net") for name in changed)
        assert "log_std" in changed
        model.learn(48, reset_num_timesteps=False)
    assert not model.guided
    assert rates == [48, 72], "PPO from the third rollout on, 24 steps each"


def test_the_same_seed_is_the_same_training_and_a_checkpoint_goes_on(tmp_path: Any) -> None:
    def weights(model: BaseAlgorithm) -> Sequence[Tensor]:
        return [value.detach().clone() for value in model.policy.parameters()]

    first, again = (weights(model_of(make(), guided=48).learn(36)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    half = model_of(make(), guided=48).learn(24)
    save_run(tmp_path, half, standing_of(half), {})
    resumed = model_of(make(), guided=48)
    assert load_run(tmp_path, resumed) == {}
    assert resumed.num_timesteps == 24
    for one, other in zip(weights(half), weights(resumed), strict=True):
        assert torch.equal(one, other)
    exp_avg = [state["exp_avg"] for state in resumed.policy.optimizer.state_dict()["state"].values()]
    assert any(value.abs().sum() > 0 for value in exp_avg)


def test_wrong_environments_and_numbers_are_refused() -> None:
    cut = ISPTuningSB3(ISPCore(bank(), BrightnessScorer(), 4, TASK), max_episode_steps=2)
    with pytest.raises(ValueError, match="env: expected an ISPTuningSB3 that moves params, with whole episodes"):
        model_of(cut, guided=12)
    model = model_of(make())
    for given in ((-1, 2, 1e-3, 0.1), (5, 0, 1e-3, 0.1), (5, 2, 0.0, 0.1), (5, 2, float("nan"), 0.1), (5, 2, 0.1, 0.0)):
        steps, epochs, lr, std = given
        with pytest.raises(
            ValueError, match=f"steps, epochs, lr, std: expected .*; got {steps}, {epochs}, {lr}, {std}"
        ):
            model.guide(steps, epochs=epochs, lr=lr, std=std)


def test_a_scorer_without_gradients_is_told() -> None:
    def blind(images: Tensor) -> Tensor:
        return images.detach().mean((1, 2, 3))

    env = ISPTuningSB3(ISPCore(bank(), blind, 4, TASK))
    with pytest.raises(ValueError, match="score: expected one with gradients to the pictures"):
        model_of(env, guided=12).learn(12)
