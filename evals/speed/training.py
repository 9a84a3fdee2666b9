"""How fast is pretraining, and how many cores does its input take?

    python evals/speed/training.py --photos photos --out runs/speed_training

A step of training/pretrain.py (heads, ranking over all pairs, backward, SGD) against the bare encoder's forward,
backward and SGD step on the same images, already on the device; in turn, round after round, a ratio being the median of
the rounds'. Beside it the images/s that one core reads and crops, and how many cores would keep the step fed. On a GPU
also the share of its bf16 peak (--peak-tflops), from the floating-point operations that PyTorch counts.
Keep the machine idle. Results go to OUT/metrics.json.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from attriqa.attributes import ATTRIBUTES
from attriqa.config import opt, required, run_command
from attriqa.data.crops import RandomCrops
from attriqa.data.unlabelled import index_images
from attriqa.evaluation.timing import Numbers, interleave, measure_parts, per_second, ratios
from attriqa.models.attribute_net import AttributeNet
from attriqa.training.pretraining import Objective, RawHeads, shape_of

TARGETS = {"pretrain.ratio": (">=", 0.9)}


@dataclass(frozen=True)
class Config:
    """What a run measures."""

    photos: str = required("folder of photos, for the input's speed")
    out: Path = opt(Path("runs/speed_training"), "where metrics.json and config.json go")
    net: str = opt("compact", "the encoder: compact, or a name of timm, as resnet50")
    batch: int = opt(32, "images per step")
    crop: int = opt(224, "px, side of the crops")
    shorter_edge: int = opt(256, "px that photos are read at")
    bf16: bool = opt(False, "run the encoder in bf16")
    compile: bool = opt(False, "compile both sides (torch.compile)")
    n: int = opt(200, "photos that are read and cropped")
    threads: int = opt(2, "threads of torch")
    rounds: int = opt(7, "rounds")
    peak_tflops: float = opt(989.0, "dense bf16 peak of the GPU in TFLOP/s; H100 SXM and H200: 989")
    seed: int = opt(0, "of images and weights")
    smoke: bool = opt(False, "sizes that show that it works, and nothing of speed")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """The recipe, after its command line."""
    if config.smoke:
        config = replace(config, batch=4, crop=64, shorter_edge=72, n=4, rounds=1)
    measure_parts(config, {"pretrain": partial(measure, config)}, TARGETS)


def measure(config: Config) -> Numbers:
    """Both kinds of step, the input, and how many cores of it a step needs."""
    numbers = measure_steps(config)
    numbers["input_images_per_s_per_core"] = measure_input(config)
    return numbers | {"cores_to_feed_it": numbers["step_images_per_s"] / numbers["input_images_per_s_per_core"]}


def measure_steps(config: Config) -> Numbers:
    """Images/s of both kinds of step, and the share of the peak."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    net = AttributeNet(shape_of(config.net)).to(device).to(memory_format=torch.channels_last)
    net.regressor.requires_grad_(False)  # as in training/pretrain.py
    bare = AttributeNet(shape_of(config.net)).backbone.to(device).to(memory_format=torch.channels_last)
    images = torch.rand(config.batch, 3, config.crop, config.crop, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.rand(config.batch, len(ATTRIBUTES), device=device)
    objective = Objective("ranking", ATTRIBUTES)
    sides: dict[str, tuple[nn.Module, Callable[[Any], Tensor]]] = {
        "step": (RawHeads(net), lambda raw: objective(raw, labels)),
        "encoder": (bare, lambda maps: maps[-1].float().mean()),
    }
    with FlopCounterMode(display=False) as counter:
        step(*sides["step"], torch.optim.SGD(net.parameters(), 0.0), images, config)
    tasks: dict[str, Callable[[], object]] = {}
    for name, (module, loss) in sides.items():
        learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learnt, 1e-4, momentum=0.9, weight_decay=1e-4)
        if config.compile:
            module.compile()
        tasks[name] = partial(step, module, loss, optimizer, images, config)
    seconds = interleave(tasks, config.rounds, "steps")
    result: Numbers = {"batch": config.batch, "crop_px": config.crop}
    result |= {f"{name}_images_per_s": per_second(config.batch, times) for name, times in seconds.items()}
    result |= ratios("ratio", seconds["encoder"], seconds["step"])
    if device.type == "cuda":
        result["share_of_peak"] = per_second(counter.get_total_flops(), seconds["step"]) / (config.peak_tflops * 1e12)
    return result


def step(
    model: nn.Module, loss: Callable[[Any], Tensor], optimizer: torch.optim.Optimizer, images: Tensor, config: Config
) -> None:
    """One step of training."""
    optimizer.zero_grad()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.bf16):
        output = model(images)
    loss(output).backward()
    optimizer.step()


def measure_input(config: Config) -> float:
    """Images/s that one core reads and crops (after a first pass: from the system's cache)."""
    index = index_images(config.photos)
    rows = np.arange(len(index))
    crops = RandomCrops(index, rows, shorter_edge=config.shorter_edge, crop=config.crop, seed=config.seed)
    torch.set_num_threads(1)
    try:
        for number in range(min(config.n, len(index))):
            crops[0, number]
        started = time.perf_counter()
        for number in tqdm(range(config.n), "input", leave=False, disable=None):
            crops[1, number % len(index)]
        return config.n / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(config.threads)


if __name__ == "__main__":
    main()
