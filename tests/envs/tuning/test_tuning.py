"""The tuning environments of Gymnasium: their contract, their reward, and a batch of them against single ones."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from attriqa import QualityReward
from attriqa_envs.isp import KEYS, PARAMETERS, render, to_action
from attriqa_envs.isp.color import clipped_share
from attriqa_envs.isp.tools import DONE
from attriqa_envs.tuning import ISPTuningEnv, ISPTuningVectorEnv
from tests.support.tuning_helpers import BrightnessScorer, P, actions_of, bank, same

ENV = "attriqa_envs:attriqa/ISPTuning-v0"
EXPOSURE = KEYS.index("exposure")


def make(**options: Any) -> ISPTuningEnv:  # of the environment
    return ISPTuningEnv(bank(), scorer=options.pop("scorer", BrightnessScorer()), **options)


def make_many(count: int, **options: Any) -> ISPTuningVectorEnv:  # likewise
    scorer = options.pop("scorer", BrightnessScorer())
    return ISPTuningVectorEnv(options.pop("images", bank()), num_envs=count, scorer=scorer, **options)


def one(key: str, value: float) -> np.ndarray:
    """The action that changes one parameter."""
    action = np.zeros(P, np.float32)
    action[KEYS.index(key)] = value
    return action


# Gymnasium's contract.


@pytest.mark.parametrize("options", [{}, {"mode": "tools"}, {"random_start": 0.5}, {"observe_gradient": True}])
def test_the_checker_has_nothing_to_say(options: dict[str, Any]) -> None:
    env = gymnasium.make(ENV, images=bank(), scorer=BrightnessScorer(), render_mode="rgb_array", **options)
    check_env(env.unwrapped)  # warnings are errors here
    env.close()


def test_make_vec_makes_the_batched_environment() -> None:
    envs = gymnasium.make_vec(ENV, num_envs=3, images=bank(), scorer=BrightnessScorer(), horizon=4, max_episode_steps=2)
    assert isinstance(envs.unwrapped, ISPTuningVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.num_envs == 3
    observations, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observations)
    envs.step(np.zeros((3, P), np.float32))
    _, _, terminated, truncated, _ = envs.step(np.zeros((3, P), np.float32))
    assert truncated.all()
    assert not terminated.any()


def test_the_import_is_light() -> None:
    code = "import sys, json, attriqa_envs; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"rawpy", "stable_baselines3", "kornia", "torch"} & set(json.loads(done.stdout)) == set()


# A batch is that many single environments.


@pytest.mark.parametrize(
    ("mode", "options", "limit"),
    [
        ("params", {}, None),
        ("params", {"random_start": 0.4, "horizon": 3, "parameters": KEYS}, None),
        ("params", {"horizon": 3}, 2),
        # Small steps: at extreme params, pixels beyond white are differences of large numbers, and gradients round.
        ("params", {"observe_gradient": True, "step_size": 0.1}, None),
        ("tools", {}, None),
        ("tools", {"horizon": 4}, 3),
    ],
)
def test_the_batch_does_what_single_environments_do(mode: str, options: dict[str, Any], limit: int | None) -> None:
    """Observations, rewards, ends and the whole of info, against Gymnasium's own vector environment."""

    def single() -> gymnasium.Env[Any, Any]:
        keywords = {"images": bank(), "scorer": BrightnessScorer(), "mode": mode, **options}
        return gymnasium.make(ENV, **keywords, max_episode_steps=limit)

    theirs = SyncVectorEnv([single] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    ours = make_many(4, mode=mode, max_episode_steps=limit, **options)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    same(ours.reset(seed=7), theirs.reset(seed=7))
    ends = 0
    for actions in actions_of(mode, 4, 11, seed=1):
        result = ours.step(actions)
        same(result, theirs.step(actions))
        ends += int("final_obs" in result[4])
    assert ends >= 2
    same(ours.reset(seed=[3, None, 5, None]), theirs.reset(seed=[3, None, 5, None]))
    assert [generator.bit_generator.state for generator in ours.np_random] == [
        generator.bit_generator.state for generator in theirs.np_random
    ]


def test_one_forward_per_step_and_one_per_start() -> None:
    scorer = BrightnessScorer()
    envs = make_many(8, scorer=scorer, horizon=2)
    envs.reset(seed=0)
    for _ in range(40):
        envs.step(np.zeros((8, P), np.float32))
    full = [size for size in scorer.batches[2:] if size == 8]
    others = [size for size in scorer.batches[2:] if size != 8]
    assert len(full) == 40
    assert sum(others) <= 2 * len(bank())  # starts that were not known, two of the same image at once at most
    scorer.batches.clear()
    for _ in range(6):
        envs.step(np.zeros((8, P), np.float32))
    assert scorer.batches == [8] * 6  # by now every start is known, and episodes begin anew without a forward


def test_random_starts_are_scored_each() -> None:
    scorer = BrightnessScorer()
    envs = make_many(3, scorer=scorer, horizon=1, random_start=0.2)
    envs.reset(seed=0)
    scorer.batches.clear()
    envs.step(np.zeros((3, P), np.float32))
    assert scorer.batches == [3, 3]


# Reward.


def test_every_black_or_white_channel_counts_as_clipped() -> None:
    """The default renders what is 0 or 1 in a channel, and rounds there."""
    linear = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(0.001, 0.98)
    linear[0, :, :, :16] = torch.where(linear[0, :, :, :16] < 0.5, 0.0, linear[0, :, :, :16])
    linear[1, :, :, :16] = torch.where(linear[1, :, :, :16] > 0.5, 1.0, linear[1, :, :, :16])
    expected = ((linear == 0) | (linear == 1)).any(1).float().mean((1, 2))
    assert torch.equal(clipped_share(render(linear, torch.zeros(2, P))), expected)


def potential(info: dict[str, Any], score: float = 1.0, distance: float = 0.1, clipping: float = 0.1) -> float:
    """From nothing but the image and the params, by another road than the environment's."""
    linear = bank()[info["image"]][None].float()
    params = torch.from_numpy(info["params"])[None]
    shown = render(linear, params)
    levels = 1024 * shown  # black is 1, white 1016, before rounding
    clipped = ((levels <= 1.01) | (levels >= 1015.99)).any(1).float().mean().item()
    away = (to_action(params) - to_action(torch.zeros(1, P))).square().mean().item()
    liked = BrightnessScorer()(shown).score.item()
    return score * liked - distance * away - clipping * clipped


def test_rewards_are_the_growth_of_the_documented_potential() -> None:
    env = make(score_weight=2.0, distance_weight=0.5, clipping_weight=0.7)
    for episode in range(4):
        _, info = env.reset(seed=episode)
        worth = potential(info, 2.0, 0.5, 0.7)
        total, first, done = 0.0, worth, False
        for action in actions_of("params", 1, 5, seed=episode)[:, 0]:
            _, reward, done, _, info = env.step(action)
            assert reward == pytest.approx(potential(info, 2.0, 0.5, 0.7) - worth, abs=2e-4)
            parts = [info[f"reward_{part}"] for part in ("score", "distance", "clipping")]
            assert sum(parts) == pytest.approx(reward, abs=1e-12)
            worth = potential(info, 2.0, 0.5, 0.7)
            total += reward
        assert done
        assert total == pytest.approx(worth - first, abs=1e-4)


def test_the_penalties_punish_and_weights_of_zero_do_not() -> None:
    env, free = make(), make(distance_weight=0.0, clipping_weight=0.0)
    for each in (env, free):
        each.reset(seed=0, options={"image": 5})
    _, reward, _, _, info = env.step(one("exposure", 1.0))
    assert info["reward_distance"] < 0
    assert info["reward_clipping"] < 0  # the brightest image, brighter still
    _, unpunished, _, _, free_info = free.step(one("exposure", 1.0))
    assert unpunished == pytest.approx(info["reward_score"])
    assert unpunished > reward
    assert free_info["clipped"] == info["clipped"] > 0


def test_doing_nothing_is_worth_nothing() -> None:
    env = make(random_start=0.3)
    env.reset(seed=3)
    assert env.step(np.zeros(P, np.float32))[1] == 0


def test_all_black_frames_are_no_trouble() -> None:
    env = ISPTuningEnv(torch.zeros(1, 3, 32, 32), scorer=BrightnessScorer())
    env.reset(seed=0)
    for action in actions_of("params", 1, 5, seed=0)[:, 0]:
        observation, reward, *_ = env.step(action)
        assert np.isfinite(reward)
        assert env.observation_space.contains(observation)


# Actions.


def test_an_action_is_a_change_of_params_in_steps() -> None:
    env = make(step_size=0.5)
    env.reset(seed=0)
    for expected in (1.5, 3.0, 3.0):  # EV; the range of exposure ends at 3
        observation, _, _, _, info = env.step(one("exposure", 1.0))
        assert info["params"][EXPOSURE] == pytest.approx(expected)
        assert observation["params"][EXPOSURE] == pytest.approx(expected / 3)
    others = np.delete(info["params"], EXPOSURE)
    assert np.abs(others).max() == 0


def test_actions_beyond_the_box_are_clipped() -> None:
    env = make()
    ends = []
    for size in (1.0, 7.5):
        env.reset(seed=0)
        ends.append(env.step(one("contrast", -size)))
    same(ends[0], ends[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused_and_changes_nothing(value: float) -> None:
    envs, untouched = make_many(3), make_many(3)
    bad = np.zeros((3, P), np.float32)
    bad[1, KEYS.index("hue")] = value
    for each in (envs, untouched):
        each.reset(seed=0)
    with pytest.raises(ValueError, match=rf"environment 1 got {value} at index {KEYS.index('hue')} \(hue\)"):
        envs.step(bad)
    same(envs.step(np.full((3, P), 0.3)), untouched.step(np.full((3, P), 0.3)))


@pytest.mark.parametrize(
    ("mode", "actions", "message"),
    [
        ("params", np.zeros((2, P)), r"shape \(3, "),
        ("params", np.full((3, P), "a"), "expected numbers"),
        ("params", np.full((3, P), None), "expected numbers"),
        ("tools", np.array([0, 38, 1]), "environment 1 got 38"),
        ("tools", np.array([0, 1, -1]), "environment 2 got -1"),
        ("tools", np.array([0.0, 1.0, 2.0]), "expected integers"),
        ("tools", np.zeros((3, 1), int), "expected integers"),
    ],
)
def test_other_wrong_actions_are_refused(mode: str, actions: np.ndarray, message: str) -> None:
    envs = make_many(3, mode=mode)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.step(actions)


def test_only_the_chosen_parameters_change() -> None:
    env = make(parameters=["tint", "exposure"], random_start=0.5)
    assert env.action_space.shape == (2,)
    observation, info = env.reset(seed=1)
    assert observation["params"][1] == pytest.approx(info["params"][EXPOSURE] / 3)
    _, _, _, _, info = env.step(np.array([1.0, -1.0]))
    moved = {KEYS[index] for index in np.flatnonzero(info["params"])}
    assert moved == {"tint", "exposure"}


# Tools.


def test_done_ends_the_episode_for_nothing() -> None:
    scorer = BrightnessScorer()
    env = make(mode="tools", scorer=scorer)
    env.reset(seed=0)
    before = env.step(2)[0]
    scorer.batches.clear()
    after, reward, terminated, truncated, _ = env.step(DONE)
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert scorer.batches == []
    same(after["image"], before["image"])
    assert after["tools"][2] == pytest.approx(1 / 3)
    assert after["tools"].sum() == pytest.approx(1 / 3)


def test_tools_work_on_the_picture_one_after_the_other() -> None:
    env = make(mode="tools", render_mode="rgb_array", clipping_weight=0.0)
    env.reset(seed=0, options={"image": 1})
    start = render(bank()[1][None].float(), torch.zeros(1, P))
    first_frame = env.render()
    assert first_frame is not None
    assert np.array_equal(first_frame, frame(start))
    env.step(2)
    _, reward, *_ = env.step(7)  # plus 0.3, then times 1.5
    second = (start + 0.3).clamp(0, 1)
    third = (second * 1.5).clamp(0, 1)
    assert np.array_equal(env.render(), frame(third))  # type: ignore[arg-type]
    scorer = BrightnessScorer()
    assert reward == pytest.approx((scorer(third).score - scorer(second).score).item(), abs=1e-6)
    assert env.step(7)[2]  # three tools, as in DRL-ISP


def frame(shown: Tensor) -> np.ndarray:
    return (shown[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


# Episodes.


def test_the_horizon_terminates_and_a_time_limit_truncates() -> None:
    """The horizon is in the observation and part of the task: nothing to bootstrap; a wrapper's limit is not."""
    scorer = BrightnessScorer()
    env = gymnasium.make(ENV, images=bank(), scorer=scorer)
    env.reset(seed=0)
    ends = [env.step(np.zeros(P, np.float32))[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(True, False)]
    limited = gymnasium.make(ENV, images=bank(), scorer=scorer, max_episode_steps=2)
    limited.reset(seed=0)
    assert [limited.step(np.zeros(P, np.float32))[2:4] for _ in range(2)] == [(False, False), (False, True)]


def test_a_step_without_an_episode_is_refused() -> None:
    env = make(horizon=1)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(P))
    env.reset(seed=0)
    env.step(np.zeros(P))
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(P))
    with pytest.raises(ResetNeeded, match="environment 0"):
        make_many(2).step(np.zeros((2, P)))


def test_the_seed_decides_the_episode() -> None:
    def play(seed: int) -> list[Any]:
        env = make(random_start=0.4)
        results: list[Any] = [env.reset(seed=seed)]
        results += [env.step(action) for action in actions_of("params", 1, 5, seed=0)[:, 0]]
        results += [env.reset(), env.reset()]
        return results

    first, second, other = play(11), play(11), play(12)
    for a, b in zip(first, second, strict=True):
        same(a, b)
    assert not np.allclose(first[0][0]["params"], other[0][0]["params"])


def test_images_are_drawn_evenly_and_can_be_chosen() -> None:
    env = make()
    env.reset(seed=0)
    counts = np.bincount([env.reset()[1]["image"] for _ in range(300)], minlength=6)
    assert counts.min() > 25
    assert env.reset(options={"image": 4})[1]["image"] == 4
    assert make_many(2).reset(options={"image": [3, 1]})[1]["image"].tolist() == [3, 1]
    assert set(make_many(2).reset(options={"image": [None, 1]})[1]["image"][1:].tolist()) == {1}


@pytest.mark.parametrize("image", [6, -1, 1.0, "1", True])
def test_an_image_that_is_not_there_is_refused(image: object) -> None:
    with pytest.raises(ValueError, match="image: expected an integer from 0 to 5"):
        make().reset(options={"image": image})


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="images"):
        make().reset(options={"images": 3})
    with pytest.raises(ValueError, match="expected 2 indices"):
        make_many(2).reset(options={"image": [1]})
    with pytest.raises(ValueError, match="seed: expected one number or 2"):
        make_many(2).reset(seed=[1, 2, 3])


def test_episodes_start_at_the_camera_default_or_around_it() -> None:
    env = make(render_mode="rgb_array")
    observation, info = env.reset(seed=0)
    assert np.array_equal(info["params"], np.zeros(P, np.float32))
    assert np.array_equal(env.render(), frame(render(bank()[info["image"]][None].float(), torch.zeros(1, P))))  # type: ignore[arg-type]
    centred = torch.from_numpy(observation["params"])
    assert torch.equal(centred, to_action(torch.zeros(P)))
    away = make(random_start=0.3)
    starts = np.stack([away.reset(seed=seed)[0]["params"] for seed in range(40)])
    distance = np.abs(starts - centred.numpy())
    assert distance.max() <= 0.3 + 1e-6
    assert distance.max(0).min() > 0.15  # every parameter starts elsewhere now and then
    one_sided = [index for index, parameter in enumerate(PARAMETERS) if parameter.low == 0]
    assert one_sided
    assert starts[:, one_sided].min() == -1


def test_observations_tell_what_they_say() -> None:
    env = make(scorer=lambda images: images.mean((1, 2, 3)) * 5 - 2)
    _, info = env.reset(seed=2)
    observation, _, _, _, info = env.step(one("exposure", 0.8))
    shown = render(bank()[info["image"]][None].float(), torch.from_numpy(info["params"])[None])
    small = F.interpolate(shown, (64, 64), mode="area")[0]
    assert np.abs(observation["image"] / 255 - small.numpy()).max() < 0.51 / 255
    assert observation["attributes"].shape == (1,)  # a scorer that only scores
    assert observation["attributes"][0] == pytest.approx(np.clip(info["score"], -1, 1))
    assert info["score"] == pytest.approx(shown.mean().item() * 5 - 2, abs=1e-5)
    assert observation["step"] == np.float32(0.2)


def test_the_observed_gradient_is_that_of_the_reward() -> None:
    """Central differences of what an episode is worth, after a step away from the default."""
    chosen = ("exposure", "contrast", "saturation", "tint")
    options: dict[str, Any] = {"parameters": chosen, "distance_weight": 0.3, "clipping_weight": 0.0}
    core = make(**options, observe_gradient=True, step_size=0.2).core
    start, small = np.array([0.5, -0.4, 0.8, 0.3], np.float32), 0.01

    def worth(offset: np.ndarray) -> float:  # of params a step and an offset off the default
        probe = make(**options, step_size=1.0)
        probe.reset(seed=0, options={"image": 2})
        return float(probe.step(0.2 * start + offset)[1])

    core.reset([0], [np.random.default_rng(0)], [2])
    core.step(start[None])
    observed = core.observe(np.arange(1))["gradient"][0]
    sides = [[worth(way * small * axis) for way in (1, -1)] for axis in np.eye(4, dtype=np.float32)]
    slope = np.array([(up - down) / (2 * small) for up, down in sides])
    np.testing.assert_allclose(observed, slope / (np.abs(slope) + np.sqrt(np.mean(slope**2))), atol=0.02)
    assert np.abs(observed).min() > 0
    assert core.observation_space["gradient"].shape == (4,)


def test_an_observed_gradient_costs_no_second_forward_and_leaves_none() -> None:
    scorer = BrightnessScorer()
    env = make(scorer=scorer, observe_gradient=True)
    env.reset(seed=0)
    scorer.batches.clear()
    observation, *_ = env.step(one("exposure", 0.5))
    assert scorer.batches == [1]
    assert isinstance(observation["gradient"], np.ndarray)
    assert not env.core.pictures(np.arange(1)).requires_grad
    assert "gradient" not in make().observation_space.spaces  # type: ignore[attr-defined]


def test_a_flat_reward_has_an_observed_gradient_of_zero() -> None:
    env = make(scorer=lambda images: images.sum((1, 2, 3)) * 0, observe_gradient=True, clipping_weight=0.0)
    observation, _ = env.reset(seed=0)
    assert not observation["gradient"].any()  # at the default, where the distance is flat too


def test_gradients_that_are_not_there_or_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="scorer: expected one with gradients"):
        make(scorer=lambda images: images.detach().mean((1, 2, 3)), observe_gradient=True)
    with pytest.raises(ValueError, match="scorer: expected finite gradients"):
        make(scorer=lambda images: (images.mean((1, 2, 3)) * 0).sqrt(), observe_gradient=True)


def test_no_global_random_state_is_read_or_set() -> None:
    def play() -> tuple[Any, ...]:
        envs = make_many(2, random_start=0.2)
        return envs.reset(seed=0), envs.step(np.full((2, P), 0.1))

    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first = play()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    torch.manual_seed(2)
    np.random.seed(2)
    same(play(), first)


# Scorers.


def test_a_quality_reward_is_asked_once_for_its_reward_and_its_attributes() -> None:
    reward = QualityReward(view="full", attribute_weights={"score": 0.5, "brightness": 1.0, "noisiness": -0.5})
    calls = []
    reward.model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    envs = make_many(2, scorer=reward, images=bank(2))
    calls.clear()
    observations, infos = envs.reset(seed=0, options={"image": [0, 1]})
    assert calls == [2]
    shown = render(bank(2).float(), torch.zeros(2, P))
    with torch.no_grad():
        assert infos["score"] == pytest.approx(reward(shown).numpy(), abs=1e-5)
        attributes = reward.assess(shown).attributes
    assert attributes is not None
    assert np.abs(observations["attributes"][:, 1:] - attributes.numpy()).max() < 1e-5


def test_the_default_scorer_is_the_default_model() -> None:
    env = ISPTuningEnv(bank(1))
    _, info = env.reset(seed=0)
    shown = render(bank(1).float(), torch.zeros(1, P))
    with torch.no_grad():
        assert info["score"] == pytest.approx(QualityReward("robust", view="native")(shown).item(), abs=1e-5)
    assert env.observation_space["attributes"].shape == (6,)  # type: ignore[index]


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (lambda images: images.mean(), r"tensor of shape \(1,\)"),
        (lambda images: [0.5] * len(images), r"tensor of shape \(1,\); got list"),
        (lambda images: images.mean((1, 2, 3)) / 0 - float("inf"), "expected finite scores"),
    ],
)
def test_scorers_that_do_not_score_are_refused(scorer: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(scorer=scorer)


def test_a_score_that_turns_into_nan_is_an_error_and_no_reward() -> None:
    env = make(scorer=lambda images: (0.8 - images.mean((1, 2, 3))).sqrt(), step_size=2.0)
    env.reset(seed=0, options={"image": 3})
    with pytest.raises(ValueError, match="expected finite scores"):
        env.step(one("exposure", 1.0))


# Arguments.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "knobs"}, "mode: expected one of params, tools"),
        ({"horizon": 0}, "horizon"),
        ({"horizon": 2.5}, "horizon"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"distance_weight": -1.0}, "distance_weight"),
        ({"clipping_weight": float("inf")}, "clipping_weight"),
        ({"random_start": 3.0}, "random_start"),
        ({"parameters": ["exposure", "sharpness"]}, "parameters: .*sharpness"),
        ({"parameters": []}, "parameters"),
        ({"parameters": ["hue", "hue"]}, "parameters"),
        ({"mode": "tools", "random_start": 0.1}, "expected none in tools mode"),
        ({"mode": "tools", "parameters": ["hue"]}, "expected none in tools mode"),
        ({"mode": "tools", "observe_gradient": True}, "expected none in tools mode"),
        ({"render_mode": "human"}, "render_mode"),
        ({"side": 16}, "side"),
        ({"cache": "somewhere"}, "cache"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one environment; got 0"):
        make_many(0)
    with pytest.raises(ValueError, match="max_episode_steps"):
        make_many(1, max_episode_steps=0)


def test_a_folder_of_photos_is_enough(tmp_path: Path, photos: list[np.ndarray]) -> None:
    from PIL import Image

    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"1 of 4 files left out: .*broken\.png"):
        env = gymnasium.make(ENV, images=str(tmp_path), scorer=BrightnessScorer(), side=48, cache=tmp_path / "cache")
    assert env.unwrapped.core.bank.shape == (3, 3, 48, 48)  # type: ignore[attr-defined]
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert env.observation_space.contains(env.reset(seed=0)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["params", "tools"])
def test_a_gpu_does_what_the_cpu_does(mode: str) -> None:
    envs = [make_many(4, mode=mode, device=device) for device in ("cpu", "cuda")]
    start = [each.reset(seed=1) for each in envs]
    same(start[0][1], start[1][1], tolerance=5e-3)
    for actions in actions_of(mode, 4, 7, seed=1):
        here, there = (each.step(actions) for each in envs)
        same(here[1:], there[1:], tolerance=5e-3)
