"""What do learnt prompts cost in the image tower of a CLIP, and what does MP-IQE cost on top of it?

    python evals/speed/clip.py --clip ViT-B-16:openai --out runs/speed_clip
    python evals/speed/clip.py --clip examples/small_clip.json --batch 64

Forward of the same crops through the plain tower, as open_clip runs it; with prompts of each kind; and through all of
MP-IQE, whose texts are encoded once before the clock runs. All in turn, round after round: a ratio is the median of the
rounds' ratios. Prompts are tokens: `share` is how many a block sees for one that it saw before, and `ratio_per_token`
the ratio without that. Weights make no difference to the time. Results go to OUT/metrics.json. Keep the machine idle.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attriqa.config import check_least, opt, run_command
from attriqa.evaluation.timing import Numbers, interleave, measure_parts, per_second, ratios
from attriqa.models.clip.prompts import PromptKind, VisualPrompts
from attriqa.models.clip.towers import CLIPTowers, clip_of
from attriqa.models.mp_iqe import MPIQE, MPIQEConfig

KINDS: tuple[PromptKind, ...] = ("deep", "first", "shallow")
TARGETS = {f"forward.{kind}_ratio_per_token": ("<=", 1.1) for kind in KINDS}


@dataclass(frozen=True)
class Config:
    """What a run measures."""

    clip: str = opt("examples/small_clip.json", "MODEL:PRETRAINED of open_clip, or a configuration: FILE.json")
    prompts: int = opt(4, "tokens")
    batch: int = opt(8, "crops: those of one image")
    threads: int = opt(2, "threads of torch")
    rounds: int = opt(15, "rounds")
    out: Path = opt(Path("runs/speed_clip"), "where metrics.json and config.json go")
    seed: int = opt(0, "of crops and random weights")
    smoke: bool = opt(False, "one round of two crops: shows that it works, and nothing of speed")

    def __post_init__(self) -> None:
        check_least(self, prompts=1, batch=1, threads=1, rounds=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """The recipe, after its command line."""
    if config.smoke:
        config = replace(config, batch=2, rounds=1)
    towers = clip_of(config.clip, seed=config.seed)
    measure_parts(config, {"forward": partial(measure, config, towers)}, TARGETS, clip=config.clip)


@torch.no_grad()
def measure(config: Config, towers: CLIPTowers) -> Numbers:
    """Crops/s of the plain tower, and how many times its time the others take."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    visual: Any = towers.model.to(device).eval().visual
    generator = torch.Generator().manual_seed(config.seed)
    crops = torch.rand(config.batch, 3, *towers.preprocess.size, generator=generator).to(device)
    shown = towers.preprocess.normalize(crops)
    prompted = {kind: VisualPrompts(visual, config.prompts, kind, seed=config.seed).to(device) for kind in KINDS}
    shape = MPIQEConfig(prompts=config.prompts, windows=min(7, *visual.grid_size))
    net = MPIQE(shape, towers, seed=config.seed).to(device).eval()
    net.texts()
    tasks: dict[str, Callable[[], object]] = {"tower": partial(visual, shown)}
    tasks |= {kind: partial(prompts, visual, shown) for kind, prompts in prompted.items()}
    seconds = interleave(tasks | {"mp_iqe": partial(net.read, crops)}, config.rounds, "forward")
    tokens, blocks = 1 + math.prod(visual.grid_size), len(visual.transformer.resblocks)
    result: Numbers = {"batch": config.batch, "tokens": tokens, "blocks": blocks, "prompts": config.prompts}
    result["tower_crops_per_s"] = per_second(config.batch, seconds["tower"])
    for kind in KINDS:
        result |= ratios(f"{kind}_ratio", seconds[kind], seconds["tower"])
        share = 1 + config.prompts / tokens / (blocks if kind == "first" else 1)
        result |= {f"{kind}_share": share, f"{kind}_ratio_per_token": result[f"{kind}_ratio"] / share}
    return result | ratios("mp_iqe_ratio", seconds["mp_iqe"], seconds["tower"])


if __name__ == "__main__":
    main()
