"""Train a policy that tunes a camera's ISP, picture by picture, towards what a quality model likes (ATTIQA, 5.2).

    python envs/train_isp.py --photos photos --out runs/train_isp
    python envs/train_isp.py --raw raws --algo sac
    python envs/train_isp.py --fivek fivek_dataset --split train.txt test.txt

Images: --photos, ordinary photos, each turned into several plausible raw files (attriqa_envs/unprocess.py); --raw, a
folder of raw files; or --fivek, the root of MIT-Adobe FiveK. Files that cannot be read are left out and listed. A share
of the images, drawn by --seed, is for tests (FiveK: or the second of the lists --split).

But for dqn, the policy sees the reward's gradient by the ISP's parameters (--observe-gradient). PPO is guided at first
(--guided): its policy climbs that gradient (attriqa_envs/guided_ppo.py); --guided 0 leaves all to PPO.

Every --eval-every steps the deterministic policy tunes the test images from the camera's default. What it gains in
reward and score is printed beside the gains of held-out judges (--judges), which nothing optimises, and an alarm where
the score has risen and a judge has fallen since (attriqa_envs/alarm.py): the reward is being hacked.

A run that was interrupted or killed goes on with the same command. Episodes begin anew with every rollout, and what is
random is a function of --seed and of the steps taken, so it does what an uninterrupted one does, up to rounding (the
score of an image depends by 1e-7 on the batch that it is scored in, an observed gradient by up to 1e-4).
SIGINT and SIGTERM save and exit with status 130: PPO at once, from the beginning of its rollout or after its update;
the others after the steps until their next update. A second signal does not wait, and costs what was not yet saved.

Writes OUT/policy (attriqa_envs.agents.policy.load_policy reads it), OUT/metrics.json, OUT/learning_curve.png, and
OUT/tensorboard where TensorBoard is installed.
"""

import dataclasses
import importlib.util
import itertools
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tqdm import tqdm

from attriqa import QualityReward
from attriqa.config import check_least, claim_folder, opt, run_command
from attriqa.files import as_dict, write_json
from attriqa.training.state import StateError
from attriqa_envs.agents.checkpoints import load_run, save_run, standing_of
from attriqa_envs.agents.guided_ppo import GuidedPPO
from attriqa_envs.agents.policy import Algorithm, policy_options, save_policy
from attriqa_envs.evaluation import Evaluator, make_judges, make_reward
from attriqa_envs.evaluation.alarm import Look, find_alarms
from attriqa_envs.evaluation.curve import draw_curve, entry_of, line_of
from attriqa_envs.evaluation.setup import TRAINED_SIDE, ImageOptions, TuningOptions, report_left_out
from attriqa_envs.fivek import FiveK, read_splits
from attriqa_envs.isp import table_hash
from attriqa_envs.raw.image_sets import ImageGroup, read_group, seeds_from
from attriqa_envs.tuning import TuningTask
from attriqa_envs.tuning.core import ISPCore
from attriqa_envs.tuning.sb3 import ISPTuningSB3

INTERRUPTED = 130


@dataclass(frozen=True)
class Config(TuningOptions, ImageOptions):
    """What a run does. A step is one of one environment."""

    split: tuple[Path, Path] | None = opt(None, "FiveK: lists of the photos to train on, and to test on")
    out: Path = opt(Path("runs/train_isp"), "where everything goes")
    judges: tuple[str, ...] = opt(
        ("judge", "noisiness"), "held-out: judge, default, checkpoints, niqe:FILE, brisque:FOLDER, or a signal measure"
    )
    algo: Algorithm = opt("ppo", "algorithm; dqn chooses among the 37 tools of DRL-ISP, the others move ISP parameters")
    steps: int = opt(50_000, "steps to train for, rounded up to whole rollouts")
    envs: int = opt(16, "environments, rendered and scored in one batch")
    side: int = opt(TRAINED_SIDE, "px of the pictures, central squares")
    variants: int = opt(4, "photos: raw files made of each photo to train on")
    horizon: int | None = opt(None, "steps of an episode: 5, dqn 3")
    step_size: float = opt(TuningTask.step_size, "change by an action of 1, where parameters range over [-1, 1]")
    observe_gradient: bool = opt(True, "the policy sees the reward's gradient by the ISP parameters; never with dqn")
    random_start: float = opt(0.0, "training episodes begin off the default by up to so much, ranges [-1, 1]")
    test_share: float = opt(0.2, "of the images")
    test_most: int = opt(48, "test images that are used, at most")
    episodes: int = opt(8, "of each environment per rollout of ppo; the others learn after one, dqn after four")
    epochs: int = opt(5, "ppo: passes over a rollout")
    guided: float = opt(0.9, "ppo: share of the steps that climb the reward's gradient through the ISP, before PPO")
    guided_epochs: int = opt(4, "ppo: steps of Adam on each of these rollouts, of one episode of each environment")
    guided_lr: float = opt(3e-3, "ppo: Adam's rate of these; falls to a tenth along a cosine")
    guided_std: float = opt(0.05, "ppo: standard deviation of its actions where any step is guided, at first")
    batch: int = opt(64, "transitions per gradient step")
    replay_ratio: float = opt(0.25, "sac, td3, dqn: gradient steps per transition")
    buffer: int = opt(20_000, "sac, td3, dqn: transitions kept, 25 kB each")
    learning_starts: int = opt(1_000, "sac, td3, dqn: steps at random before the first gradient step")
    lr: float = opt(3e-4, "Adam: learning rate")
    gamma: float = opt(0.99, "discount per step")
    eval_every: int = opt(5_000, "steps between evaluations")
    save_every: int = opt(5_000, "steps between checkpoints")
    smoke: bool = opt(False, "a size for tests: eight images of 64 px, two rollouts")

    def __post_init__(self) -> None:
        ImageOptions.__post_init__(self)
        super().__post_init__()
        if self.split is not None and self.fivek is None:
            raise ValueError("--split: expected none without --fivek")
        check_least(self, steps=1, envs=1, variants=1, test_most=1, episodes=1, epochs=1, guided_epochs=1, batch=1)
        check_least(self, buffer=1, eval_every=1, save_every=1)
        if not (self.lr > 0 and 0 < self.gamma <= 1 and self.replay_ratio > 0 and 0 < self.test_share < 1):
            raise ValueError("--lr, --replay-ratio: expected more than 0; --gamma: (0, 1]; --test-share: (0, 1)")
        if not (0 <= self.guided <= 1 and self.guided_lr > 0 and self.guided_std > 0):
            given = f"{self.guided}, {self.guided_lr}, {self.guided_std}"
            raise ValueError(f"--guided, --guided-lr, --guided-std: expected 0 to 1, and more than 0; got {given}")
        rollout = self.envs * self.episodes * self.task.steps
        if self.algo == "ppo" and not self.smoke and rollout % self.batch:
            raise ValueError(
                f"--batch: expected a divisor of --envs x --episodes x --horizon = {rollout}; got {self.batch}"
            )

    @property
    def task(self) -> TuningTask:
        """What the policy is trained for."""
        return TuningTask(
            mode="tools" if self.algo == "dqn" else "params",
            parameters=self.parameters,
            horizon=self.horizon,
            step_size=self.step_size,
            distance_weight=self.distance_weight,
            clipping_weight=self.clipping_weight,
            random_start=self.random_start,
            observe_gradient=self.observe_gradient and self.algo != "dqn",
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Train to the end, from wherever the folder stands."""
    run_command({"": train}, argv, __doc__)


def train(config: Config) -> None:
    """What is left of the run, and its report."""
    if config.smoke:
        small: dict[str, Any] = {"side": 64, "envs": 4, "steps": 32, "horizon": 2, "episodes": 2, "batch": 8}
        small |= {"variants": 1, "buffer": 64, "learning_starts": 8, "eval_every": 16, "save_every": 16}
        config = replace(config, **small)
    claim_folder(config.out, config)
    if not (config.out / "metrics.json").exists():
        images = load_images(config)
        reward = make_reward(config.model, device=config.device)
        judges = make_judges(config.judges, reward, device=config.device)
        core = ISPCore(
            images.test.linear, reward, min(config.envs, len(images.test.files)), replace(config.task, random_start=0.0)
        )
        run(config, images, reward, Evaluator(core, judges))
    report(json.loads((config.out / "metrics.json").read_text(encoding="utf-8")))


# Images.


class Images(NamedTuple):
    """No file is on both sides."""

    train: ImageGroup
    test: ImageGroup

    @property
    def unreadable(self) -> list[str]:
        """Files that were left out, each with the reason."""
        return [*self.train.left_out, *self.test.left_out]

    def names(self) -> dict[str, list[str]]:
        """Which files, in JSON types."""
        return {"train": list(self.train.files), "test": list(self.test.files), "unreadable": self.unreadable}


def load_images(config: Config) -> Images:
    """The images of the command line, split by file."""
    cache, most = config.renditions(config.side), 8 if config.smoke else None
    if config.fivek is None or config.split is None:
        group = read_group(config.find()[:most], cache, root=config.root)
        images = Images(*group.split(config.test_share, config.seed))
    else:
        dataset, lists = FiveK(config.fivek), read_splits(dict(zip(("train", "test"), config.split, strict=True)))
        sides = [dataset.select(numbers)[:most] for numbers in lists.values()]
        for path, photos in zip(config.split, sides, strict=True):
            if not photos:
                raise ValueError(f"--split: expected photos that {config.fivek} has; none of {path} is there")
        groups = [read_group([photo.source for photo in photos], cache, root=config.root) for photos in sides]
        images = Images(*groups)
    report_left_out(images.unreadable)
    train, test = images.train, images.test.drawn(config.test_most, config.seed)
    if config.photos is not None:
        variants = [seeds_from([config.seed, 0, variant], len(train.files)) for variant in range(config.variants)]
        train = train.unprocessed(list(itertools.chain(*variants)))
        test = test.unprocessed(seeds_from([config.seed, 1, 0], len(test.files)))
    return Images(train.to(config.device), test.to(config.device))


# Training.


class Interrupted(Exception):  # noqa: N818 (no error)
    """A signal came, and what was learnt is saved."""


def build(config: Config, env: ISPTuningSB3) -> BaseAlgorithm:
    """The algorithm before its first step."""
    shared: dict[str, Any] = {"learning_rate": config.lr, "gamma": config.gamma, "batch_size": config.batch}
    shared |= {"policy_kwargs": policy_options(config.algo), "seed": config.seed, "device": config.device}
    horizon = config.task.steps
    if config.algo == "ppo":
        model = GuidedPPO("MultiInputPolicy", env, n_steps=horizon * config.episodes, n_epochs=config.epochs, **shared)
        guided = round(config.guided * config.steps)
        return model.guide(guided, epochs=config.guided_epochs, lr=config.guided_lr, std=config.guided_std)
    steps = horizon * (4 if config.algo == "dqn" else 1)  # tools end early: few episodes are to be cut by a rollout
    shared |= {"buffer_size": config.buffer, "learning_starts": config.learning_starts, "train_freq": steps}
    shared |= {"gradient_steps": max(1, round(config.replay_ratio * steps * config.envs))}
    if config.algo == "dqn":
        return DQN("MultiInputPolicy", env, target_update_interval=500, exploration_fraction=0.3, **shared)
    if config.algo == "sac":
        return SAC("MultiInputPolicy", env, **shared)
    size = np.prod(env.action_space.shape or ())
    return TD3("MultiInputPolicy", env, action_noise=NormalActionNoise(np.zeros(size), np.full(size, 0.1)), **shared)


class Training(BaseCallback):
    """What happens between rollouts: evaluation, checkpoints, the draws of the next one.

    ``curve`` has an entry per evaluation.
    """

    def __init__(self, config: Config, evaluator: Evaluator, identity: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.evaluator, self.identity = config, evaluator, identity
        self.curve: list[dict[str, Any]] = []
        self.signalled = False
        self.standing: dict[str, Any] = {}
        self.saved = 0

    def resume(self, model: BaseAlgorithm) -> None:
        """Bring a new model and this object to where the folder stands."""
        about = load_run(self.config.out / "checkpoints", model)
        if about is None:
            return
        for name, mine in self.identity.items():
            if about["identity"].get(name) != mine:
                raise StateError(
                    f"{self.config.out} holds a run with other {name}: its files have changed; choose another --out"
                )
        self.curve, self.saved = about["curve"], model.num_timesteps

    def _on_training_start(self) -> None:
        self.bar = tqdm(total=self.config.steps, initial=self.num_timesteps, desc=self.config.algo, unit="step")

    def _on_rollout_start(self) -> None:
        if not self.curve or self.due(self.config.eval_every, self.curve[-1]["step"]):
            self.evaluate()
        self.standing = standing_of(self.model)
        if self.signalled or self.due(self.config.save_every, self.saved):
            self.save()
        if self.signalled:
            raise Interrupted
        key = [self.config.seed, self.model.num_timesteps]
        self.model.set_random_seed(int(np.random.SeedSequence(key).generate_state(1)[0]) >> 1)
        env = self.training_env
        self.model._last_obs = env.reset()  # type: ignore[assignment]
        self.model._last_episode_starts = np.ones(env.num_envs, np.bool_)

    def due(self, every: int, last: int) -> bool:
        """Whether a multiple of ``every`` has been reached since."""
        return self.model.num_timesteps // every > last // every

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        if self.signalled and isinstance(self.model, OnPolicyAlgorithm):  # its weights are those of the rollout's start
            self.save()
            raise Interrupted
        return True

    def save(self) -> None:
        """Write a checkpoint of the last beginning of a rollout."""
        about = {"identity": self.identity, "curve": self.curve}
        save_run(self.config.out / "checkpoints", self.model, self.standing, about)
        self.saved = self.standing["num_timesteps"]

    def evaluate(self) -> None:
        """Tune the test images, look for alarms, draw the curve."""
        gains = self.evaluator.run(lambda seen: self.model.predict(seen, deterministic=True)[0])
        entry = entry_of(self.model.num_timesteps, gains)
        self.curve.append(entry)
        looks = [Look(row["step"], row["images"]["score_gain"], row["images"]["judge_gains"]) for row in self.curve]
        alarms = find_alarms(looks)
        entry["alarms"] = [dataclasses.asdict(alarm) for alarm in alarms]
        for line in (line_of(entry), *map(str, alarms)):
            tqdm.write(line)
        for name in ("reward", "score_gain", "clipped"):
            self.logger.record(f"eval/{name}", entry[name])
        for name, value in entry["judge_gains"].items():
            self.logger.record(f"eval/judge_{name}", value)
        draw_curve(self.config.out / "learning_curve.png", self.curve)


def run(config: Config, images: Images, reward: QualityReward, evaluator: Evaluator) -> None:
    """All steps that are left, and the files at the end."""
    env = ISPTuningSB3(ISPCore(images.train.linear, reward, config.envs, config.task))
    model = build(config, env)
    model.set_logger(Logger(None, outputs(config.out)))
    identity = {"images": images.names(), "weights of the reward": reward.identity, "ISP parameters": table_hash()}
    training = Training(config, evaluator, identity)
    training.resume(model)

    def note(number: int, _: object) -> None:
        training.signalled = True
        signal.signal(number, signal.SIG_DFL)  # a second one does not wait

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        model.learn(max(0, config.steps - model.num_timesteps), callback=training, reset_num_timesteps=False)
    except Interrupted:
        tqdm.write(f"interrupted and saved at step {training.saved}; the same command goes on", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    training.evaluate()
    metrics = {"protocol": protocol_of(config, images), "step": model.num_timesteps, "curve": training.curve}
    here = ("photos", "raw", "fivek", "split", "out", "cache")  # what only this machine knows
    known = {name: value for name, value in as_dict(config).items() if name not in here}
    about = {"config": known, **identity, "last": training.curve[-1], "protocol": metrics["protocol"]}
    save_policy(config.out / "policy", model.policy, algorithm=config.algo, task=config.task, about=about)
    write_json(config.out / "metrics.json", metrics | {"unreadable": images.unreadable})


def outputs(out: Path) -> list[Any]:
    """Where stable-baselines3 logs to: TensorBoard, where it is installed."""
    installed = importlib.util.find_spec("tensorboard") is not None
    return [TensorBoardOutputFormat(str(out / "tensorboard"))] if installed else []


# Results.


def protocol_of(config: Config, images: Images) -> str:
    """What the numbers are of."""
    return (
        f"mean gains over {len(images.test.files)} test images of {config.side} px that the policy was not trained on, "
        f"after {config.task.steps} steps of the deterministic policy from the camera's default; trained on "
        f"{len(images.train.linear)} images of {len(images.train.files)} files"
    )


def report(metrics: dict[str, Any]) -> None:
    """Every number of the curve."""
    print(metrics["protocol"])
    for entry in metrics["curve"]:
        print(line_of(entry))
        for alarm in entry["alarms"]:
            print(f"  alarm: {alarm}")


if __name__ == "__main__":
    main()
