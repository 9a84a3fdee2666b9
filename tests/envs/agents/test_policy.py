"""Policies in their folders, what they gain on given images, the alarm, and checkpoints of a training."""

import base64
import dataclasses
import io
import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from attriqa.models.checkpoint import CheckpointError
from attriqa.training.state import StateError
from attriqa_envs.agents import policy as policy_module
from attriqa_envs.agents.checkpoints import load_run, save_run, standing_of
from attriqa_envs.agents.policy import Algorithm, load_policy, policy_options, save_policy
from attriqa_envs.evaluation import Evaluator, make_judge
from attriqa_envs.evaluation.alarm import Look, find_alarms
from attriqa_envs.isp import KEYS, table_hash
from attriqa_envs.isp.tools import DONE, TOOLS
from attriqa_envs.tuning import ISPTuningEnv, TuningTask
from attriqa_envs.tuning.core import ISPCore
from attriqa_envs.tuning.sb3 import ISPTuningSB3
from tests.support.tuning_helpers import BrightnessScorer, bank

ALGORITHMS: tuple[Algorithm, ...] = ("ppo", "sac", "td3", "dqn")


def task_of(algorithm: Algorithm) -> TuningTask:
    if algorithm == "dqn":
        return TuningTask("tools")
    return TuningTask(parameters=("exposure", "tint"), horizon=2, observe_gradient=algorithm == "ppo")


def model_of(algorithm: Algorithm, count: int = 2, seed: int = 0) -> BaseAlgorithm:
    env = ISPTuningSB3(ISPCore(bank(), BrightnessScorer(), count, task_of(algorithm)))
    options: dict[str, Any] = {"policy_kwargs": policy_options(algorithm), "seed": seed, "batch_size": 4}
    with torch.random.fork_rng(devices=[]):
        if algorithm == "ppo":
            return PPO("MultiInputPolicy", env, n_steps=2, n_epochs=1, **options)
        options |= {"buffer_size": 16, "learning_starts": 2}
        classes: dict[str, type[BaseAlgorithm]] = {"sac": SAC, "td3": TD3, "dqn": DQN}
        return classes[algorithm]("MultiInputPolicy", env, **options)


def kept(folder: Path, algorithm: Algorithm = "ppo") -> BaseAlgorithm:
    model = model_of(algorithm)
    save_policy(folder, model.policy, algorithm=algorithm, task=task_of(algorithm), about={"reward": "a test"})
    return model


# The folder of a policy.


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_policy_acts_as_it_did_when_it_was_saved(algorithm: Algorithm, tmp_path: Path) -> None:
    model = kept(tmp_path / "policy", algorithm)
    state = torch.get_rng_state()
    policy = load_policy(tmp_path / "policy")
    assert torch.equal(state, torch.get_rng_state())  # untouched by the layers' initial values
    assert (policy.task, policy.algorithm, policy.about) == (task_of(algorithm), algorithm, {"reward": "a test"})
    env = ISPTuningSB3(ISPCore(bank(), BrightnessScorer(), 6, task_of(algorithm)))
    env.set_options([{"image": image} for image in range(6)])
    seen = env.reset()
    actions = policy.act(seen)
    np.testing.assert_array_equal(actions, model.predict(seen, deterministic=True)[0])
    np.testing.assert_array_equal(actions, policy.act(seen))
    for row in range(6):
        alone = policy.act({name: values[row] for name, values in seen.items()})
        np.testing.assert_allclose(alone, actions[row], atol=1e-5)
    if algorithm != "dqn":
        assert np.abs(actions).max() <= 1
        assert len(np.unique(actions[:, 0].round(6))) > 1  # it looks at what it sees


def test_a_policy_for_another_parameter_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path)
    monkeypatch.setattr(policy_module, "table_hash", lambda: "0123456789abcdef")
    with pytest.raises(ValueError, match=f"table {table_hash()}; this version has 0123456789abcdef"):
        load_policy(tmp_path)


def test_a_policy_for_other_tools_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path, "dqn")
    others = (dataclasses.replace(TOOLS[0], name="other"), *TOOLS[1:])
    monkeypatch.setattr(policy_module, "TOOLS", others)
    with pytest.raises(ValueError, match="trained for the tools"):
        load_policy(tmp_path)


def test_a_folder_without_a_policy_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy\.safetensors.*nowhere"):
        load_policy(tmp_path / "nowhere")
    kept(tmp_path)
    path = tmp_path / "policy.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_policy(tmp_path)


def test_the_readable_file_has_the_table(tmp_path: Path) -> None:
    kept(tmp_path)
    told = json.loads((tmp_path / "policy.json").read_text())
    assert told["parameter_table"] == table_hash()
    assert [row["key"] for row in told["parameters"]] == list(KEYS)
    assert told["task"]["parameters"] == ["exposure", "tint"]


def test_observations_of_another_environment_are_refused(tmp_path: Path) -> None:
    kept(tmp_path)
    policy = load_policy(tmp_path)
    core = ISPCore(bank(), lambda images: images.mean((1, 2, 3)), 2, task_of("ppo"))  # no attributes
    core.reset([0, 1], [np.random.default_rng(0)] * 2)
    seen = core.observe(np.arange(2))
    with pytest.raises(ValueError, match=r"attributes of shape \(6,\).*\(2, 1\)"):
        policy.act(seen)
    del seen["params"]
    with pytest.raises(ValueError, match="params of shape"):
        policy.act({**seen, "attributes": np.zeros((2, 6), np.float32)})


# Evaluation.


def brighter(observation: dict[str, Any]) -> np.ndarray:
    """Acts by what it sees: brightens what is dark."""
    move = 1 - observation["image"].mean((1, 2, 3)) / 128
    return np.stack((move, -0.3 * move), 1).astype(np.float32)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_gains_are_those_of_single_environments(count: int) -> None:
    """Whatever the batch, the last of which is not full for 4."""
    task = task_of("ppo")
    judge = make_judge("contrast")
    gains = Evaluator(ISPCore(bank(), BrightnessScorer(), count, task), {"contrast": judge}).run(brighter)
    assert len(np.unique(gains.score_gain.round(5))) == 6
    for image in range(6):
        env = ISPTuningEnv(
            bank(), scorer=BrightnessScorer(), parameters=task.parameters, horizon=2, render_mode="rgb_array"
        )
        seen, start = env.reset(options={"image": image})
        first, total = env.core.pictures(np.arange(1)), 0.0
        for _ in range(2):
            seen, reward, _, _, end = env.step(brighter({name: value[None] for name, value in seen.items()})[0])
            total += reward
        last = env.core.pictures(np.arange(1))
        assert gains.reward[image] == pytest.approx(total, abs=1e-5)
        assert gains.score_gain[image] == pytest.approx(end["score"] - start["score"], abs=1e-5)
        assert gains.clipped_end[image] == pytest.approx(end["clipped"], abs=1e-5)
        assert gains.clipped_start[image] == pytest.approx(start["clipped"], abs=1e-5)
        assert gains.judge_gains["contrast"][image] == pytest.approx(float(judge(last) - judge(first)), abs=1e-3)


def test_tools_end_an_episode_and_change_nothing_after() -> None:
    def act(observation: dict[str, Any]) -> np.ndarray:  # the second half ends at once; both go on acting
        late = observation["step"][:, 0] > 0
        halves = np.arange(len(late)) < 3
        return np.where(halves | late, 2, DONE)

    gains = Evaluator(ISPCore(bank(), BrightnessScorer(), 6, TuningTask("tools")), {}).run(act)
    assert (gains.reward[:3] != 0).all()
    assert (gains.reward[3:] == 0).all()


def test_judges_are_checked() -> None:
    core = ISPCore(bank(), BrightnessScorer(), 2, task_of("ppo"))
    with pytest.raises(ValueError, match="judge mean: expected 2 finite"):
        Evaluator(core, {"mean": lambda images: images.mean()}).run(brighter)
    with pytest.raises(ValueError, match="there is no nobody"):
        make_judge("nobody")


# Alarm.


def look(step: int, score: Sequence[float], judge: Sequence[float]) -> Look:
    return Look(step, score, {"judge": judge})


def test_the_alarm_sounds_when_the_score_rises_and_a_judge_falls() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (4, 20))
    start = look(0, noise[0].tolist(), noise[1].tolist())
    up, down = (0.1 + noise[2]).tolist(), (-0.1 + noise[3]).tolist()
    (alarm,) = find_alarms([start, look(10, up, down)])
    assert (alarm.judge, alarm.since) == ("judge", 0)
    assert alarm.score_rise == pytest.approx(0.1, abs=0.01)
    assert alarm.judge_fall == pytest.approx(-0.1, abs=0.01)
    assert "judge" in str(alarm)
    for score, judge in ((up, up), (down, down), (down, up)):
        assert find_alarms([start, look(10, score, judge)]) == []


def test_the_alarm_compares_with_the_judges_best() -> None:
    """A judge that was won and lost again, though it is still above its start."""
    steady = np.linspace(-0.01, 0.01, 9)
    looks = [look(step, (0.1 * step + steady).tolist(), (value + steady**2).tolist())
             for step, value in enumerate((0.0, 0.3, 0.1))]  # fmt: skip
    assert find_alarms(looks[:2]) == []
    (alarm,) = find_alarms(looks)
    assert alarm.since == 1
    assert alarm.judge_fall == pytest.approx(-0.2)


def test_scatter_is_no_alarm() -> None:
    """Of 400 trainings in which nothing changes but by chance, few alarm: both tests must err."""
    rng, alarms = np.random.default_rng(1), 0
    for _ in range(400):
        values = rng.normal(0, 1, (4, 12))
        alarms += len(find_alarms([look(0, values[0].tolist(), values[1].tolist()),
                                   look(1, values[2].tolist(), values[3].tolist())]))  # fmt: skip
    assert alarms <= 3
    assert find_alarms([look(0, [0.0], [0.0]), look(1, [1.0], [-1.0])]) == []  # one image says nothing of others


def test_the_alarm_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="judges judge; step 0 has others"):
        find_alarms([Look(0, [0, 0], {}), look(1, [0, 0], [0, 0])])
    with pytest.raises(ValueError, match="expected 2 finite values of score; step 0"):
        find_alarms([look(0, [0], [0]), look(1, [0, 0], [0, 0])])
    with pytest.raises(ValueError, match="finite"):
        find_alarms([look(0, [0, 0], [0, np.nan]), look(1, [0, 0], [0, 0])])
    with pytest.raises(ValueError, match="confidence"):
        find_alarms([], confidence=1.0)


# Checkpoints of a training.


def flat(value: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{path}/{key}").items()}
    return {path: torch.as_tensor(value)} if isinstance(value, Tensor | int | float) else {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_training_comes_back_whole(algorithm: Algorithm, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        model = model_of(algorithm).learn(16)
        save_run(tmp_path, model, standing_of(model), {"curve": [1]})
        other = model_of(algorithm, seed=1)
        assert load_run(tmp_path, other) == {"curve": [1]}
    assert standing_of(other) == standing_of(model)
    assert other.num_timesteps == 16
    saved, loaded = flat(model.get_parameters()), flat(other.get_parameters())
    assert saved.keys() == loaded.keys()
    assert any("optimizer/state" in name for name in saved)
    for name, value in saved.items():
        assert torch.equal(value, loaded[name]), name
    if isinstance(model, SAC) and isinstance(other, SAC):
        assert model.log_ent_coef is not None
        assert other.log_ent_coef is not None
        assert torch.equal(model.log_ent_coef, other.log_ent_coef)
        assert other.ent_coef_optimizer is not None
        assert other.ent_coef_optimizer.param_groups[0]["params"][0] is other.log_ent_coef
    if algorithm != "ppo":
        for name in ("image", "attributes"):
            mine, theirs = (m.replay_buffer.observations[name] for m in (model, other))  # type: ignore[attr-defined]
            np.testing.assert_array_equal(mine, theirs)
            assert mine[:8].any()


def full_disk(*_: object, **__: object) -> None:
    raise OSError("no space")


def test_the_checkpoint_before_stays_until_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng(devices=[]):
        model = model_of("sac").learn(4)
        assert load_run(tmp_path, model) is None
        save_run(tmp_path, model, standing_of(model), {"number": 1})
        model.learn(4, reset_num_timesteps=False)
        monkeypatch.setattr(np, "savez", full_disk)  # between the two files
        with pytest.raises(OSError, match="no space"):
            save_run(tmp_path, model, standing_of(model), {"number": 2})
        monkeypatch.undo()
        assert load_run(tmp_path, model) == {"number": 1}
        assert model.num_timesteps == 4
        model.learn(8, reset_num_timesteps=False)
        save_run(tmp_path, model, standing_of(model), {"number": 3})
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-12"]


def test_no_pickle_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    model = model_of("ppo")
    save_run(tmp_path, model, standing_of(model), {})
    path = next(tmp_path.glob("step-*/model.zip"))
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    harmless = dict(parts)
    harmless["data"] = json.dumps(
        {"gamma": {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Bomb())).decode()}}
    ).encode()
    bomb = io.BytesIO()
    torch.save({"x": Bomb()}, bomb)
    for content, refused in ((harmless, False), (parts | {"policy.pth": bomb.getvalue()}, True)):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        if refused:
            with pytest.raises(StateError, match="start afresh"):
                load_run(tmp_path, model)
        else:
            load_run(tmp_path, model)
        assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("damage", ["json", "zip", "algorithm"])
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    model = model_of("ppo")
    save_run(tmp_path, model, standing_of(model), {})
    if damage == "json":
        (tmp_path / "checkpoint.json").write_text("{")
    elif damage == "zip":
        next(tmp_path.glob("step-*/model.zip")).write_bytes(b"PK")
    with pytest.raises(StateError, match="cannot be resumed"):
        load_run(tmp_path, model_of("sac") if damage == "algorithm" else model)
