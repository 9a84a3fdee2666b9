"""How fast is it, and how much memory does it take?

    python evals/speed/score.py --photos ChallengeDB_release/Images --out runs/speed

score   images/s of scoring files, as `attriqa score` does it, against decoding alone and the bare encoder alone
reward  seconds of forward + backward to the pixels against those of the bare encoder
memory  peak of a process above what the imports take; the reward's bytes per pixel of the encoder's input
cold    a new process: import, load, first score of one photo (the files may be in the system's cache)

What is compared runs in turn, round after round; a ratio is the median of the rounds' ratios, so that a machine that
slows down for a while slows both sides. "encoder" is the backbone as `attriqa.load` gives it, "encoder_folded" the
same with its BatchNorms folded into the convolutions, as the reward has it; both channels-last with frozen weights.
It is given exactly what the model sees inside the reward, crops included. Results go to OUT/metrics.json, part by part.
A run starts anew: timings of two runs are not comparable. Keep the machine idle.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from attriqa import QualityReward
from attriqa.config import check_least, opt, run_command
from attriqa.evaluation.folds import TESTED_VIEWS
from attriqa.evaluation.timing import (
    Numbers,
    ascend,
    in_new_process,
    interleave,
    measure_parts,
    peak_mib,
    per_second,
    photo_files,
    ratios,
)
from attriqa.images import read
from attriqa.models import AttributeNet, load_attribute_net
from attriqa.models.views import View

ONE_CHUNK = 1 << 20  # MiB: a memory budget that no batch here reaches
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TARGETS = {
    "score.ratio": (">=", 0.8),
    "score.max_difference_from_fp32": ("<=", 0.002),
    "reward.fp32_ratio": ("<=", 1.15),
    "reward.bf16_ratio": ("<=", 1.15),
    "cold.wall_s": ("<=", 6.0),
    **{
        f"memory.{case}_mib": ("<=", 1536.0) for case in ("file", "tensor_gradient", "batch", "batch_gradient", "files")
    },
}


@dataclass(frozen=True)
class Config:
    """What a run measures."""

    what: Literal["all", "score", "reward", "memory", "cold"] = opt("all", "which part")
    photos: Path | None = opt(None, "folder of photos to score; without it, three that scikit-image ships, repeated")
    n: int = opt(500, "photos that are scored")
    threads: int = opt(2, "threads of torch, and of decoding")
    model: str = opt("default", "default, or the path of a checkpoint")
    rounds: int = opt(3, "rounds of scoring, and fresh processes of the cold start; the reward takes 3 times as many")
    out: Path = opt(Path("runs/speed"), "where metrics.json and config.json go")
    seed: int = opt(0, "of the noise in the images that are made")
    smoke: bool = opt(False, "sizes that show that it works, and nothing of speed: n = 4, one round, small images")

    def __post_init__(self) -> None:
        check_least(self, n=1, threads=1, rounds=1)


class Sizes(NamedTuple):
    """How large the inputs are."""

    photo: tuple[int, int]  # px, width and height of the large photo
    batch: int  # tensors of 3 x 224 x 224
    batch_gradient: int
    files: int
    reward_batch: int


REAL, SMOKE = Sizes((6000, 4000), 1000, 256, 1000, 8), Sizes((600, 400), 8, 4, 8, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """The recipe, after its command line."""
    if config.smoke:
        config = replace(config, n=min(config.n, 4), rounds=1)
    parts = {"score": measure_score, "reward": measure_reward, "memory": measure_memory, "cold": measure_cold}
    with tempfile.TemporaryDirectory() as folder:
        wanted = {
            part: partial(measure, config, Path(folder))
            for part, measure in parts.items()
            if config.what in ("all", part)
        }
        # The type is that of scoring files.
        about = {"dtype": "fp32", "n": config.n, "smoke": config.smoke, "model": QualityReward(config.model).identity}
        measure_parts(config, wanted, TARGETS, **about)


def _encoders(reward: QualityReward, model: str) -> dict[str, nn.Module]:
    """The bare encoder as loaded, and as the reward has it."""
    bare = load_attribute_net(model).backbone.requires_grad_(False).to(memory_format=torch.channels_last)
    assert isinstance(reward.model, AttributeNet)
    return {"encoder": bare, "encoder_folded": reward.model.backbone}


@contextmanager
def seen_by_model(reward: QualityReward) -> Iterator[list[Tensor]]:
    """The batches that enter the model inside the block, resized, cropped and grouped as the reward does it."""
    batches: list[Tensor] = []
    with reward.model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].detach())):
        yield batches


def _autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


def measure_score(config: Config, folder: Path) -> Numbers:
    """Images/s in fp32, and how far bf16 moves a score. Holds all photos at the model's size: 6 MB each."""
    paths = _photo_files(config, folder)
    reward = QualityReward(config.model)
    with seen_by_model(reward) as batches:
        exact = scores(reward, paths, config.threads)
    fast = scores(QualityReward(config.model, dtype=torch.bfloat16), paths, config.threads)
    bare = _encoders(reward, config.model)
    tasks: dict[str, Callable[[], object]] = {
        "score": partial(scores, reward, paths, config.threads),
        "decode": partial(_decode, paths, reward.model.config.shorter_edge, config.threads),
    }
    tasks |= {name: partial(_encode, net, batches, reward.dtype) for name, net in bare.items()}
    seconds = interleave(tasks, config.rounds, "score")
    result = {"n": float(len(paths)), "mean_batch": sum(map(len, batches)) / len(batches)}
    result |= {f"{name}_images_per_s": per_second(len(paths), times) for name, times in seconds.items()}
    for name, suffix in (("encoder", ""), ("encoder_folded", "_folded")):
        slower = list(map(max, seconds["decode"], seconds[name]))
        result |= ratios(f"ratio{suffix}", slower, seconds["score"])
    return result | {"max_difference_from_fp32": max(abs(a - b) for a, b in zip(fast, exact, strict=True))}


def _photo_files(config: Config, folder: Path) -> list[Path]:
    if config.photos is None:
        return list(islice(cycle(_shipped_photos(folder)), config.n))
    return photo_files(config.photos)[: config.n]


def _shipped_photos(folder: Path) -> list[Path]:
    from skimage import data

    paths = []
    for name, photo in {"astronaut": data.astronaut(), "chelsea": data.chelsea(), "coffee": data.coffee()}.items():
        paths.append(folder / f"{name}.jpg")
        Image.fromarray(photo).save(paths[-1], quality=92)
    return paths


def scores(reward: QualityReward, paths: Sequence[Path], threads: int) -> list[float]:
    """Score files; a file that cannot be scored ends the run, for it would count as a fast one."""
    rows = list(reward.score_files(paths, threads=threads))
    for row in rows:
        if row.error is not None:
            raise ValueError(f"{row.path}: {row.error}")
    return [row.score for row in rows if row.score is not None]


def _decode(paths: Sequence[Path], shorter_edge: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(partial(read, shorter_edge=shorter_edge), paths):
            pass


@torch.no_grad()
def _encode(encoder: nn.Module, batches: Sequence[Tensor], dtype: torch.dtype) -> None:
    with _autocast(dtype):
        for batch in batches:
            encoder(batch)


def measure_reward(config: Config, folder: Path) -> Numbers:
    """Forward + backward to the pixels of one batch of squares at the model's size: nothing is resized."""
    result: Numbers = {}
    for label, dtype in DTYPES.items():
        reward = QualityReward(config.model, dtype=dtype, memory_mib=ONE_CHUNK)
        side, count = reward.model.config.shorter_edge, (SMOKE if config.smoke else REAL).reward_batch
        images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(config.seed))
        with torch.no_grad(), seen_by_model(reward) as batches:
            reward(images)
        tasks: dict[str, Callable[[], object]] = {"reward": partial(ascend, reward, images)}
        for name, encoder in _encoders(reward, config.model).items():
            tasks[name] = partial(_ascend_encoder, encoder, batches, dtype)
        seconds = interleave(tasks, 1 if config.smoke else 3 * config.rounds, f"reward {label}")
        result |= {"batch": count, "side_px": side}
        result |= {f"{label}_{name}_s": statistics.median(times) for name, times in seconds.items()}
        result |= ratios(f"{label}_ratio", seconds["reward"], seconds["encoder"])
        result |= ratios(f"{label}_ratio_folded", seconds["reward"], seconds["encoder_folded"])
    return result


def _ascend_encoder(encoder: nn.Module, batches: Sequence[Tensor], dtype: torch.dtype) -> None:
    for images in batches:
        with _autocast(dtype):
            last = encoder(images.detach().requires_grad_())[-1]
        last.float().sum().backward()


class Load(NamedTuple):
    """What one process is asked to do, in fp32."""

    model: str
    threads: int
    photo: Path  # the large one
    small: Path
    sizes: Sizes


def measure_memory(config: Config, folder: Path) -> Numbers:
    """Peak resident memory above the imports: weights, inputs, gradients and results count. Each in a new process."""
    sizes = SMOKE if config.smoke else REAL
    photo = large_photo(folder, sizes.photo, config.seed)
    load = Load(config.model, config.threads, photo, _shipped_photos(folder)[0], sizes)
    result = {"photo_megapixels": sizes.photo[0] * sizes.photo[1] / 1e6}
    for case in tqdm(CASES, desc="memory", unit="case", leave=False, disable=None):
        result[f"{case}_mib"] = in_new_process(peak_of_case, case, load)
    result |= {"batch_n": sizes.batch, "batch_gradient_n": sizes.batch_gradient, "files_n": sizes.files}
    for view in tqdm(TESTED_VIEWS, desc="bytes per pixel", unit="view", leave=False, disable=None):
        for gradient in (False, True):
            kind = "backward" if gradient else "forward"
            result[f"{view}_{kind}_bytes_per_pixel"] = bytes_per_pixel(config, view, gradient)
    return result


def large_photo(folder: Path, size: tuple[int, int], seed: int) -> Path:
    """A JPEG of ``size`` (width, height): a photo scaled up, with a sensor's noise."""
    from skimage import data

    scaled = np.asarray(Image.fromarray(data.coffee()).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    noise = np.random.default_rng(seed).standard_normal(scaled.shape, dtype=np.float32)
    path = folder / "large.jpg"
    Image.fromarray((scaled + 4 * noise).clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return path


def peak_of_case(case: str, load: Load) -> float:
    """MiB of one of `CASES`, the model included."""
    torch.set_num_threads(load.threads)
    return peak_mib(lambda: CASES[case](QualityReward(load.model), load))


CASES: dict[str, Callable[[QualityReward, Load], object]] = {
    "file": lambda reward, load: scores(reward, [load.photo], load.threads),
    "tensor_gradient": lambda reward, load: ascend(reward, read(load.photo)[None]),
    "batch": lambda reward, load: reward(torch.rand(load.sizes.batch, 3, 224, 224)),
    "batch_gradient": lambda reward, load: ascend(reward, torch.rand(load.sizes.batch_gradient, 3, 224, 224)),
    "files": lambda reward, load: scores(reward, [load.small] * load.sizes.files, load.threads),
}


def bytes_per_pixel(config: Config, view: View, gradient: bool) -> float:
    """By how much the peak grows with each pixel that enters the encoder, in fp32, without the input itself."""
    net = load_attribute_net(config.model).config
    pixels = 5 * net.crop**2 if view == "five_crop" else net.shorter_edge**2
    few, many = 2, 2 + -(-2_000_000 // pixels)  # a difference of some 100 MiB and more stands out
    peaks = [in_new_process(peak_of_batch, config, view, gradient, count, many) for count in (few, many)]
    return (peaks[1] - peaks[0]) * 2**20 / ((many - few) * pixels)


def peak_of_batch(config: Config, view: View, gradient: bool, count: int, held: int) -> float:
    """MiB at the highest when ``count`` of ``held`` images go through in one chunk."""
    torch.set_num_threads(config.threads)
    reward = QualityReward(config.model, view=view, memory_mib=ONE_CHUNK)
    side = reward.model.config.shorter_edge
    images = torch.rand(held, 3, side, side)[:count]
    return peak_mib(partial(ascend, reward, images) if gradient else partial(reward, images))


COLD = """
import json, sys, time
times = [time.perf_counter()]
from attriqa import QualityReward
times.append(time.perf_counter())
reward = QualityReward(sys.argv[1])
times.append(time.perf_counter())
assert next(iter(reward.score_files(sys.argv[2:]))).error is None
times.append(time.perf_counter())
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""


def measure_cold(config: Config, folder: Path) -> Numbers:
    """Wall seconds of a process from its start to its end, and what the parts take."""
    photo = _shipped_photos(folder)[0]
    walls, parts = [], []
    for _ in range(config.rounds):
        started = time.perf_counter()
        parts.append(json.loads(_run_python("-c", COLD, config.model, str(photo)).stdout))
        walls.append(time.perf_counter() - started)
    result = {"wall_s": statistics.median(walls), "wall_s_low": min(walls), "wall_s_high": max(walls)}
    for name, values in zip(("import_s", "load_s", "first_score_s"), zip(*parts, strict=True), strict=True):
        result[name] = statistics.median(values)
    shares = _import_shares(_run_python("-X", "importtime", "-c", "from attriqa import QualityReward").stderr)
    return result | {f"import_{name}_s": seconds for name, seconds in list(shares.items())[:6]}


def _run_python(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr)
    return done


def _import_shares(report: str) -> Numbers:
    """Seconds of each package's own modules in a report of ``-X importtime``, most first; they add up to the whole."""
    shares: defaultdict[str, float] = defaultdict(float)
    for line in report.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if len(fields) == 3 and fields[0].strip().isdigit():
            shares[fields[2].strip().partition(".")[0]] += int(fields[0]) / 1e6
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    main()
