"""The tuning environments for stable-baselines3: its contract, its algorithms, and that PPO learns."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

from attriqa_envs.isp.tools import DONE
from attriqa_envs.tuning import ISPTuningEnv, TuningTask
from attriqa_envs.tuning.core import ISPCore
from attriqa_envs.tuning.episodes import Act, begin, play
from attriqa_envs.tuning.sb3 import ISPTuningSB3
from tests.support.tuning_helpers import BrightnessScorer, P, actions_of, bank, same


def make(count: int = 2, limit: int | None = None, render_mode: str | None = None, **options: Any) -> ISPTuningSB3:
    core = ISPCore(bank(), BrightnessScorer(), count, TuningTask(**options))
    return ISPTuningSB3(core, max_episode_steps=limit, render_mode=render_mode)


class VectorsOnly(BaseFeaturesExtractor):
    """All of the observation but the thumbnail, for tests that need no eyes."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        self.names = [name for name in observation_space if name != "image"]
        super().__init__(observation_space, sum(observation_space[name].shape[0] for name in self.names))  # type: ignore[index, misc]

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        return torch.cat([observations[name] for name in self.names], 1)


def blind() -> dict[str, Any]:  # of a policy; a new one, as PPO writes into it
    return {"features_extractor_class": VectorsOnly, "net_arch": [32]}


# Contract.


@pytest.mark.parametrize(
    ("mode", "options", "limit"),
    [
        ("params", {"random_start": 0.3, "observe_gradient": True}, None),
        ("params", {"horizon": 4}, 3),
        ("tools", {}, None),
    ],
)
def test_it_does_what_single_environments_behind_dummy_vec_env_do(
    mode: str, options: dict[str, Any], limit: int | None
) -> None:
    """Observations, rewards, ends and infos, those of `Monitor` included, but for the clock."""

    def single() -> gymnasium.Env[Any, Any]:
        env: gymnasium.Env[Any, Any] = ISPTuningEnv(bank(), scorer=BrightnessScorer(), mode=mode, **options)  # type: ignore[arg-type]
        return Monitor(env if limit is None else gymnasium.wrappers.TimeLimit(env, limit))

    theirs, ours = DummyVecEnv([single] * 3), make(3, limit, mode=mode, **options)
    for env in (theirs, ours):
        env.seed(5)
    same(ours.reset(), dict(theirs.reset()))  # type: ignore[arg-type]
    ends = 0
    for actions in actions_of(mode, 3, 9, seed=2):
        mine, other = ours.step(actions), theirs.step(actions)
        same(mine[0], dict(other[0]))  # type: ignore[arg-type]
        same(mine[1:3], other[1:3])
        for ours_info, theirs_info in zip(mine[3], other[3], strict=True):
            for info in (ours_info, theirs_info):
                if "episode" in info:
                    ends += 1
                    assert info["episode"].pop("t") >= 0
            same(ours_info, theirs_info)
        for row, info in enumerate(ours.reset_infos):
            same(info, theirs.reset_infos[row])
    assert ends >= 6


class Rewards(BaseCallback):
    """Keeps what the environment paid, before the algorithm adds anything to it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.seen.append(self.locals["rewards"].copy())
        return True


@pytest.mark.parametrize("limit", [None, 2])
def test_ppo_bootstraps_after_a_time_limit_and_not_after_the_horizon(limit: int | None) -> None:
    env = make(2, limit, horizon=4)
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, policy_kwargs=blind())
    with torch.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(10.0)
    callback = Rewards()
    _, callback = model._setup_learn(16, callback)[0], callback
    callback.init_callback(model)
    model.collect_rollouts(env, callback, model.rollout_buffer, 8)
    added = model.rollout_buffer.rewards - np.array(callback.seen)
    ends = np.arange(1, 9) % (limit or 4) == 0
    assert np.abs(added[~ends]).max() < 1e-5
    assert added[ends] == pytest.approx(model.gamma * 10 if limit else 0.0, abs=1e-4)


def test_a_replay_buffer_tells_the_horizon_from_a_time_limit() -> None:
    for limit, timeout in ((None, 0.0), (2, 1.0)):
        env = make(2, limit, horizon=3)
        model = SAC("MultiInputPolicy", env, buffer_size=64, learning_starts=64, seed=0, policy_kwargs=blind())
        model.learn(24)
        buffer = model.replay_buffer
        assert buffer is not None
        ends = np.arange(1, 13) % (limit or 3) == 0
        assert (buffer.dones[:12] == ends[:, None]).all()
        assert (buffer.timeouts[:12] == timeout * ends[:, None]).all()


def test_seeds_and_options_hold_for_one_reset() -> None:
    env = make(2, random_start=0.5)
    env.seed(3)
    first = env.reset()
    env.seed(3)
    env.set_options({"image": 4})
    chosen = env.reset()
    assert [info["image"] for info in env.reset_infos] == [4, 4]
    env.seed(3)
    same(env.reset(), first)
    assert not np.allclose(env.reset()["params"], first["params"])
    assert not np.allclose(chosen["attributes"], first["attributes"])
    env.set_options({"picture": 4})
    with pytest.raises(ValueError, match="picture"):
        env.reset()


def test_what_stable_baselines_asks_of_a_vec_env() -> None:
    env = make(3, render_mode="rgb_array")
    env.reset()
    assert env.get_attr("render_mode") == ["rgb_array"] * 3
    assert env.get_attr("num_envs", indices=[0, 2]) == [3, 3]
    assert not env.has_attr("colour")
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gymnasium.wrappers.TimeLimit, 1) == [False]
    frame = env.render()
    assert frame is not None
    assert frame.shape == (64, 64, 3)  # three of 32 px, and an empty place
    with pytest.raises(NotImplementedError):
        env.set_attr("task", None)
    with pytest.raises(NotImplementedError):
        env.env_method("step")
    env.close()
    with pytest.raises(ValueError, match="max_episode_steps"):
        make(limit=0)
    with pytest.raises(ValueError, match="render_mode"):
        make(render_mode="human")


# Algorithms.


@pytest.mark.parametrize("algorithm", ["ppo", "sac", "td3", "dqn"])
def test_algorithms_run_on_it_unchanged(algorithm: str) -> None:
    env = make(2, mode="tools" if algorithm == "dqn" else "params")
    if algorithm == "ppo":
        model: BaseAlgorithm = PPO("MultiInputPolicy", env, n_steps=6, batch_size=6, n_epochs=1, seed=0)
    else:
        kind: Any = {"sac": SAC, "td3": TD3, "dqn": DQN}[algorithm]
        settings = {"buffer_size": 64, "learning_starts": 8, "batch_size": 4, "train_freq": 4, "seed": 0}
        model = kind("MultiInputPolicy", env, **settings, policy_kwargs={"net_arch": [16]})
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(18)
    moved = [not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True)]
    assert any(moved)
    assert model.ep_info_buffer  # filled from info["episode"]
    action, _ = model.predict(env.reset(), deterministic=True)
    assert action.shape == ((2,) if algorithm == "dqn" else (2, P))
    if algorithm == "dqn":
        assert env.action_space.n == DONE + 1  # type: ignore[attr-defined]


def test_evaluate_policy_takes_its_episodes_without_a_warning() -> None:
    env = make(2, horizon=2)
    model = PPO("MultiInputPolicy", env, n_steps=4, batch_size=4, seed=0, policy_kwargs=blind())
    returns, lengths = evaluate_policy(model, env, n_eval_episodes=4, return_episode_rewards=True)
    assert lengths == [2] * 4
    assert np.isfinite(returns).all()


def test_it_can_be_wrapped() -> None:
    env = VecNormalize(make(2, horizon=2), norm_obs_keys=["attributes"])
    env.reset()
    for _ in range(3):
        _, rewards, _, infos = env.step(np.full((2, P), 0.2, np.float32))
    assert np.isfinite(rewards).all()
    assert all(np.isfinite(info["score"]) for info in infos)


def test_training_is_a_function_of_its_seed() -> None:
    def train(seed: int) -> list[Tensor]:
        model = PPO(
            "MultiInputPolicy", make(2), n_steps=6, batch_size=6, n_epochs=1, seed=seed, policy_kwargs=blind()
        ).learn(24)
        return [parameter.detach() for parameter in model.policy.parameters()]

    state = torch.get_rng_state()
    try:
        first, second, other = train(1), train(1), train(2)
    finally:
        torch.set_rng_state(state)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert any(not torch.allclose(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.slow
def test_ppo_beats_random_on_a_toy_isp() -> None:
    """Two parameters, pictures of 32 px, a scorer that wants a brightness: within 6,000 steps, on pictures unseen."""
    task = TuningTask(parameters=("exposure", "shadows"), horizon=3, step_size=0.3)
    train = ISPTuningSB3(ISPCore(bank(24, seed=1), BrightnessScorer(), 16, task))
    test, rng = ISPCore(bank(8, seed=2), BrightnessScorer(), 8, task), np.random.default_rng(0)

    def mean_gain(act: Act) -> float:
        begin(test, 0)
        return float(play(test, act).sum(0).mean())

    model = PPO(
        "MultiInputPolicy", train, n_steps=24, batch_size=128, n_epochs=8, learning_rate=2e-3, gamma=1.0, seed=0,
        policy_kwargs=blind(),
    )  # fmt: skip
    untrained = mean_gain(lambda seen: model.predict(seen, deterministic=True)[0])
    random = float(np.mean([mean_gain(lambda seen: rng.uniform(-1, 1, (8, 2))) for _ in range(4)]))
    model.learn(6000)
    trained = mean_gain(lambda seen: model.predict(seen, deterministic=True)[0])
    best = best_gain(bank(8, seed=2))
    print(f"gain: best {best:.3f}, trained {trained:.3f}, untrained {untrained:.3f}, random {random:.3f}")
    assert trained > max(untrained, random) + 0.05
    assert trained > 0.7 * best


def best_gain(pictures: Tensor) -> float:
    """What exposure alone reaches at most, by trying it in fine steps, penalties included."""
    task = TuningTask(horizon=1, step_size=1.0, parameters=("exposure",))
    core = ISPCore(pictures, BrightnessScorer(), len(pictures), task)
    gains = []
    for action in np.linspace(-0.9, 0.9, 61):
        begin(core, 0)
        gains.append(core.step(np.full((len(pictures), 1), action)).rewards)
    return float(np.maximum(0, np.max(gains, 0)).mean())
