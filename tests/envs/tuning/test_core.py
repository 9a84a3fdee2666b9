"""What an episode of tuning is: its start, its actions, its observations and its reward; and scorers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa import QualityReward
from attriqa_envs.isp import KEYS, PARAMETERS, render, to_action
from attriqa_envs.isp.color import clipped_share
from attriqa_envs.isp.tools import DONE
from attriqa_envs.tuning import ISPTuningEnv
from tests.support.tuning_helpers import (
    EXPOSURE,
    BrightnessScorer,
    P,
    actions_of,
    bank,
    frame,
    make,
    make_many,
    one,
    same,
)


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


def test_only_the_chosen_parameters_change() -> None:
    env = make(parameters=["tint", "exposure"], random_start=0.5)
    assert env.action_space.shape == (2,)
    observation, info = env.reset(seed=1)
    assert observation["params"][1] == pytest.approx(info["params"][EXPOSURE] / 3)
    _, _, _, _, info = env.step(np.array([1.0, -1.0]))
    moved = {KEYS[index] for index in np.flatnonzero(info["params"])}
    assert moved == {"tint", "exposure"}


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


def test_a_score_that_turns_into_nan_is_an_error_and_no_reward() -> None:
    env = make(scorer=lambda images: (0.8 - images.mean((1, 2, 3))).sqrt(), step_size=2.0)
    env.reset(seed=0, options={"image": 3})
    with pytest.raises(ValueError, match="expected finite scores"):
        env.step(one("exposure", 1.0))


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (lambda images: images.mean(), r"tensor of shape \(1,\)"),
        (lambda images: [0.5] * len(images), r"tensor of shape \(1,\); got list"),
        (lambda images: images.mean((1, 2, 3)) / 0 - float("inf"), "expected finite scores"),
        (lambda images: images.detach().mean((1, 2, 3)), "scorer: expected one with gradients"),
        (lambda images: (images.mean((1, 2, 3)) * 0).sqrt(), "scorer: expected finite gradients"),
    ],
)
def test_scorers_that_do_not_serve_are_refused(scorer: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(scorer=scorer, observe_gradient="gradients" in message)
