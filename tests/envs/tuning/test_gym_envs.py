"""The tuning environments of Gymnasium: their contract, a batch of them against single ones, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from attriqa_envs.isp import KEYS
from attriqa_envs.tuning import ISPTuningEnv, ISPTuningVectorEnv
from tests.support.tuning_helpers import (
    BrightnessScorer,
    P,
    actions_of,
    bank,
    make,
    make_many,
    same,
)

ENV = "attriqa_envs:attriqa/ISPTuning-v0"


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


def test_images_are_drawn_evenly_and_can_be_chosen() -> None:
    env = make()
    env.reset(seed=0)
    counts = np.bincount([env.reset()[1]["image"] for _ in range(300)], minlength=6)
    assert counts.min() > 25
    assert env.reset(options={"image": 4})[1]["image"] == 4
    assert make_many(2).reset(options={"image": [3, 1]})[1]["image"].tolist() == [3, 1]
    assert set(make_many(2).reset(options={"image": [None, 1]})[1]["image"][1:].tolist()) == {1}


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
        ({"num_envs": 0}, "at least one environment; got 0"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    build: Any = ISPTuningVectorEnv if {"num_envs", "max_episode_steps"} & options.keys() else ISPTuningEnv
    with pytest.raises(ValueError, match=message):
        build(bank(), scorer=BrightnessScorer(), **options)


def test_an_argument_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepsize'"):
        make(stepsize=0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"options": {"image": image}}, "image: expected an integer from 0 to 5") for image in (6, -1, 1.0, "1", True)]
    + [({"options": {"images": 3}}, "options: expected keys among image; got images")],
)
def test_wrong_options_of_a_reset_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().reset(**options)
    with pytest.raises(ValueError, match="expected 2 indices"):
        make_many(2).reset(options={"image": [1]})
    with pytest.raises(ValueError, match="seed: expected one number or 2"):
        make_many(2).reset(seed=[1, 2, 3])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["params", "tools"])
def test_a_gpu_does_what_the_cpu_does(mode: str) -> None:
    envs = [make_many(4, mode=mode, device=device) for device in ("cpu", "cuda")]
    start = [each.reset(seed=1) for each in envs]
    same(start[0][1], start[1][1], tolerance=5e-3)
    for actions in actions_of(mode, 4, 7, seed=1):
        here, there = (each.step(actions) for each in envs)
        same(here[1:], there[1:], tolerance=5e-3)
