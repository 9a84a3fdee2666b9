"""How fast is the tuning environment?

    python evals/speed/isp.py --photos photos --raw raws --out runs/speed_isp

env     env-steps/s of the batched environment (`attriqa_envs.tuning.sb3.ISPTuningSB3`), whole episodes with their
        resets, against images/s of the bare forward of the reward on as many pictures; and, for the counts in
        --one-by-one, against the same environments behind stable-baselines3's DummyVecEnv, which steps one after the
        other
render  images/s of the ISP alone, in the largest of the batches
raw     ms per raw file: decoded, as without a cache, and read from the cache; without --raw, of a mosaic of 12
        megapixels that is made
memory  MiB per 1,000 images: in the environment, and on disk in the cache

What is compared runs in turn, round after round; a ratio is the median of the rounds' ratios. Every image of the bank
has been the start of an episode before the clock runs, as in all of a training but its beginning. Results go to
OUT/metrics.json. Keep the machine idle.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor
from tqdm import tqdm

from attriqa import QualityReward
from attriqa.config import check_least, opt, run_command
from attriqa.evaluation.timing import Numbers, interleave, load_photos, measure_parts, per_second, ratios
from attriqa.models.views import View
from attriqa_envs.isp import KEYS
from attriqa_envs.isp.color import decode
from attriqa_envs.raw.bank import load_bank
from attriqa_envs.raw.cache import RenditionCache
from attriqa_envs.raw.find import ImageFile, find_images
from attriqa_envs.tuning import ISPTuningEnv, TuningTask
from attriqa_envs.tuning.core import ISPCore
from attriqa_envs.tuning.sb3 import ISPTuningSB3

TARGETS = {"env.ratio_32": (">=", 0.8)}
MOSAIC = (4000, 3000)  # px of the mosaic that is made
MIB = 2**20


@dataclass(frozen=True)
class Config:
    """What a run measures."""

    photos: Path | None = opt(None, "folder of photos for the bank; without it, three that scikit-image ships")
    raw: Path | None = opt(None, "folder of raw files, or one, to decode; without it, a mosaic that is made")
    out: Path = opt(Path("runs/speed_isp"), "where metrics.json and config.json go")
    envs: tuple[int, ...] = opt((1, 8, 32, 128), "counts of environments")
    one_by_one: tuple[int, ...] = opt((8, 32), "those of them that DummyVecEnv steps too")
    side: int = opt(256, "px of the pictures")
    bank: int = opt(24, "images in the bank; photos are taken in turn where they are fewer")
    model: str = opt("default", "default, or the path of a checkpoint")
    view: View = opt("native", "of the reward")
    observe_gradient: bool = opt(False, "every step also goes backward, for an observation with the reward's gradient")
    device: Literal["cpu", "cuda"] = opt("cpu", "where the environment runs")
    threads: int = opt(1, "threads of torch")
    rounds: int = opt(3, "rounds")
    seed: int = opt(0, "of actions and images")
    smoke: bool = opt(False, "sizes that show that it works, and nothing of speed")

    def __post_init__(self) -> None:
        check_least(self, bank=1, threads=1, rounds=1)
        if min(self.envs) < 1 or not set(self.one_by_one) <= set(self.envs):
            raise ValueError(f"envs, one_by_one: expected counts, the latter among the former; got {self.envs}, "
                             f"{self.one_by_one}")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """The recipe, after its command line."""
    if config.smoke:
        config = replace(config, envs=(1, 4), one_by_one=(4,), side=64, bank=3, rounds=1)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cuda, but PyTorch finds no GPU here")
    reward = QualityReward(config.model, view=config.view, device=config.device)
    bank = make_bank(config)
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "raw": partial(measure_raw, config, Path(folder)),
            "memory": partial(measure_memory, bank, reward, Path(folder) / "cache"),
            "env": partial(measure_env, config, bank, reward),
        }
        about = {name: getattr(config, name) for name in ("rounds", "smoke", "view", "observe_gradient")}
        measure_parts(config, parts, TARGETS, side_px=config.side, **about, model=reward.identity)


def make_bank(config: Config) -> Tensor:
    """Photos as linear light, squares of ``side`` px; taken in turn where they are too few."""
    photos = load_photos(config.photos, config.bank, shorter_edge=config.side)
    linear = load_bank([decode(photo) for photo in photos], side=config.side, device=config.device)
    return linear[torch.tensor(list(islice(cycle(range(len(linear))), config.bank)), device=linear.device)]


def measure_env(config: Config, bank: Tensor, reward: QualityReward) -> Numbers:
    """Speeds of whole episodes, and their ratios to the reward's forward."""
    task = TuningTask(observe_gradient=config.observe_gradient)
    rng = np.random.default_rng(config.seed)
    tasks: dict[str, Callable[[], object]] = {}
    cores: dict[int, ISPCore] = {}
    for count in config.envs:
        batched = ISPTuningSB3(ISPCore(bank, reward, count, task))
        _know_all_starts(batched.core)
        actions = rng.uniform(-1, 1, (task.steps, count, len(KEYS))).astype(np.float32)
        rows = np.arange(count)
        tasks[f"env {count}"] = partial(play, batched, actions)
        tasks[f"reward {count}"] = partial(_forward, reward, batched.core.pictures(rows), task.steps)
        if count in config.one_by_one:
            single = single_environments(bank, reward, count, config.observe_gradient)
            tasks[f"one by one {count}"] = partial(play, single, actions)
        cores[count] = batched.core
    most = max(cores)
    tasks["render"] = partial(_render, cores[most], task.steps)
    seconds = interleave(tasks, config.rounds, "env")
    result = {"render_images_per_s": per_second(most * task.steps, seconds["render"])}
    for count in config.envs:
        steps, env, bare = count * task.steps, seconds[f"env {count}"], seconds[f"reward {count}"]
        result[f"steps_per_s_{count}"] = per_second(steps, env)
        result[f"reward_images_per_s_{count}"] = per_second(steps, bare)
        result |= ratios(f"ratio_{count}", bare, env)
        if count in config.one_by_one:
            slow = seconds[f"one by one {count}"]
            result[f"one_by_one_steps_per_s_{count}"] = per_second(steps, slow)
            result |= ratios(f"times_one_by_one_{count}", slow, env)
    return result


def single_environments(bank: Tensor, reward: QualityReward, count: int, observe_gradient: bool) -> DummyVecEnv:
    """As many single environments, each with one image of the bank, whose start it knows after its first episode."""

    def make(row: int) -> ISPTuningEnv:
        image = row % len(bank)
        return ISPTuningEnv(bank[image : image + 1], scorer=reward, observe_gradient=observe_gradient)

    return DummyVecEnv([partial(make, row) for row in range(count)])


def _know_all_starts(core: ISPCore) -> None:
    for image in range(len(core.bank)):
        core.reset([0], [np.random.default_rng(0)], [image])
    core.reset(range(len(core)), [np.random.default_rng(row) for row in range(len(core))])


def play(env: VecEnv, actions: NDArray[np.float32]) -> None:
    """One episode of all environments; the last step begins the next."""
    env.reset()
    for action in actions:
        env.step(action)


@torch.no_grad()
def _forward(reward: QualityReward, pictures: Tensor, times: int) -> None:
    for _ in range(times):
        reward(pictures).cpu()


def _render(core: ISPCore, times: int) -> None:
    for _ in range(times):
        core.pictures(np.arange(len(core)))


def measure_raw(config: Config, folder: Path) -> Numbers:
    """Decoding at the tuning size, with and without the cache that is left in ``folder / "cache"``."""
    found = [_mosaic(folder, config)] if config.raw is None else find_images(config.raw, kind="raw")
    cached, plain = RenditionCache(folder / "cache", config.side), RenditionCache(None, config.side)
    loaded = cached.read_all(found, progress=False)
    for failure in loaded.failures:
        tqdm.write(f"left out: {failure}", file=sys.stderr)
    unread = {failure.path for failure in loaded.failures}  # as text
    sources = [source for source in found if str(source.path) not in unread]
    megapixels = [np.prod(image.metadata.size) / 1e6 for image in loaded.images]
    tasks = {"decoded": partial(_read, plain, sources), "cached": partial(_read, cached, sources)}
    seconds = interleave(tasks, config.rounds, "raw")
    result = {"files": float(len(sources)), "mean_megapixels": float(np.mean(megapixels))}
    result |= {f"{name}_ms": 1000 / per_second(len(sources), times) for name, times in seconds.items()}
    return result | ratios("times_cached", seconds["decoded"], seconds["cached"])


def _mosaic(folder: Path, config: Config) -> ImageFile:
    """A headerless 14-bit mosaic of noise around gray."""
    width, height = (MOSAIC[0] // 20, MOSAIC[1] // 20) if config.smoke else MOSAIC
    values = np.random.default_rng(config.seed).normal(3000, 300, (height, width)).clip(0, 16383)
    path = folder / "made.raw"
    values.astype("<u2").tofile(path)
    header = {"width": width, "height": height, "pattern": "RGGB", "black": 600, "white": 16383, "gains": [2, 1, 1.5]}
    path.with_suffix(".json").write_text(json.dumps(header), encoding="utf-8")
    return ImageFile(path, "mosaic")


def _read(cache: RenditionCache, sources: Sequence[ImageFile]) -> None:
    for source in sources:
        cache.read(source)


def measure_memory(bank: Tensor, reward: QualityReward, cache: Path) -> Numbers:
    """Of what is really held, per image, times 1,000."""
    core = ISPCore(bank, reward)
    files = list(cache.glob("*.safetensors"))
    return {
        "linear_light_mib": 1000 * bank.nbytes / len(bank) / MIB,
        "starts_mib": 1000 * core.start_bytes / len(bank) / MIB,
        "cache_files_mib": 1000 * statistics.mean(file.stat().st_size for file in files) / MIB,
    }


if __name__ == "__main__":
    main()
