"""Train CLIP-IQA+: learnt words around "Good photo." and "Bad photo.", everything else of CLIP frozen.

    accelerate launch training/train_clip_iqa.py --clip RN50:openai --data koniq=koniq-10k --protocol official \
        --crop 768 1024 --out runs/clip_iqa_plus
    python training/train_clip_iqa.py --clip RN50:openai --data clive=ChallengeDB_release --context 0

The defaults are the paper's but for the crop: images of a batch must have one size, and only KonIQ-10k's have. Images
are tested whole, at their own sizes.

With --context 0 there is nothing to learn: CLIP-IQA as it is, with attributes, tested on the same splits; --pairs gives
it texts of your own, a TOML file of lines name = ["Positive text.", "Negative text."].

Each split writes OUT/splitN/model.safetensors; OUT/metrics.json holds every number that is printed. A killed run goes
on with the same command.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.config import check_least, opt, required, run_command
from attriqa.data.batches import GlobalBatches
from attriqa.data.crops import Example, WholeImages, training_crops
from attriqa.data.protocol import Plan
from attriqa.models import exiqa
from attriqa.models.clip.towers import clip_of
from attriqa.models.clip_iqa import PAIRS, ClipIQA, ClipIQAConfig, ClipIQAPlus, ClipIQAPlusConfig, read_pairs
from attriqa.training.folds import (
    FoldRun,
    Forward,
    Trained,
    held_out,
    medians_of_tests,
    report,
    run_folds,
    write_medians,
)
from attriqa.training.options import CLIPRun, RatedData
from attriqa.training.schedules import cosine

Net = ClipIQA | ClipIQAPlus


@dataclass(frozen=True, kw_only=True)
class Config(RatedData, CLIPRun):
    """What a run does."""

    data: str = required("rated data set in its official layout, NAME=ROOT, as clive=ChallengeDB_release")
    out: Path = opt(Path("runs/clip_iqa_plus"), "where everything goes")
    init: Path | None = opt(None, "or a checkpoint of ExIQA, whose CLIP is the start")
    context: int = opt(16, "learnt words, half before each text and half behind; 0: none, CLIP-IQA as it is")
    shared: bool = opt(True, "the same words for both texts")
    pairs: Path | None = opt(None, "with --context 0: TOML of attributes of your own; none: the five of CLIP-IQA")
    positional_embedding: bool = opt(False, "resize and crop images as the CLIP wants to see them, instead of whole")
    logit_scale: float | None = opt(
        None, "one over the temperature; none: that of --init, or CLIP's own, 100 in pretrained ones"
    )
    crop: tuple[int, int] = opt((384, 384), "px, height and width of what is learnt from")
    shorter_edge: int | None = opt(None, "px that images are resized to before they are cropped; none: their own size")
    epochs: int = opt(700, "passes; the released weights have seen KonIQ-10k's 7,058 images as often, in batches of 64")
    lr: float = opt(2e-3, "peak rate")
    period: int = opt(300_000, "steps in which the rate falls to zero along a cosine")
    optimizer: Literal["sgd", "adam"] = opt("sgd", "which")
    batch: int = opt(64, "images per step, over all processes")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, epochs=1, period=1)
        if min(self.crop) < 32:
            raise ValueError(f"--crop: expected sides of at least 32 px, got {self.crop[0]} {self.crop[1]}")
        if self.pairs is not None and self.context:
            raise ValueError(f"--pairs: expected --context 0 with it, got {self.context}")


def settled(config: Config) -> Config:
    """The configuration at the size asked for."""
    if not config.smoke:
        return config
    return replace(config, splits=1, epochs=2, batch=8, crop=(64, 64), workers=0, log_every=1, save_every=3)


def build(config: Config) -> Net:
    """The model before the first step."""
    scale = config.logit_scale
    if config.init is not None:
        start = exiqa.load(config.init)
        towers, scale = start.towers, start.config.logit_scale if scale is None else scale
    else:
        towers = clip_of(config.clip or str(config.clip_config), seed=config.seed)
    look: dict[str, Any] = {"positional_embedding": config.positional_embedding, "logit_scale": scale}
    if not config.context:
        pairs = PAIRS if config.pairs is None else read_pairs(config.pairs)
        return ClipIQA(ClipIQAConfig(pairs=pairs, **look), towers)
    return ClipIQAPlus(
        ClipIQAPlusConfig(context=config.context, shared=config.shared, **look), towers, seed=config.seed
    )


def run(config: Config) -> None:
    """Run every fold that has no result yet, then print medians."""
    config = settled(config)
    plan = config.plan(config.data)
    build(config)  # a fault of the model is found before hours of work
    results = run_folds(config, "clip_iqa", [fold.name for fold in plan.folds], partial(run_fold, config, plan))
    if results is not None:
        learnt = "nothing learnt" if not config.context else f"{config.context} learnt words"
        about = {"protocol": plan.protocol}
        write_medians(config.out, results, medians_of_tests(results), f"{plan.protocol}; {learnt}", about)


def run_fold(config: Config, plan: Plan, number: int, run: FoldRun) -> Trained:
    """Train and test one fold."""
    fold, net = plan.folds[number], build(config).to(run.device)
    learnt = plan.train_paths(fold) if config.context else []
    result: dict[str, Any] = {"fold": fold.name, "n_train": len(learnt), "tests": {}}
    if isinstance(net, ClipIQAPlus):
        result |= train(config, plan, number, net, run)
    for name, test in held_out([plan], number).items():
        images = WholeImages(test.paths)
        scores = run.predict(net, lambda batch: [score(net, batch.pixels(run.device))], images, name)
        result["tests"][name] = report(scores, test.mos, f"{fold.name}, test on {name}")
    return Trained(net, result, {"data": {plan.dataset.name: [path.name for path in learnt]}})


def score(net: Net, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B,)."""
    return net.predict(images)[:, 0]


def train(config: Config, plan: Plan, number: int, net: ClipIQAPlus, run: FoldRun) -> dict[str, Any]:
    """Learn the words of a fold."""
    fold = plan.folds[number]
    mos = plan.mos[fold.train].to(run.device)
    images = training_crops(plan.train_paths(fold), config.crop, shorter_edge=config.shorter_edge, seed=config.seed)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[config.optimizer]
    optimizer: torch.optim.Optimizer = kind(net.context.parameters(), lr=config.lr)
    per_epoch = len(fold.train) // config.batch
    steps = config.epochs * per_epoch
    loop = run.loop(net.context, optimizer, losses=("mse",), steps=steps, per_epoch=per_epoch, batch=config.batch)

    def losses(model: nn.Module, step: int, batch: Example) -> Tensor:
        return F.mse_loss(model(batch.pixels(run.device)), mos[batch.number])[None]

    def rates(step: int) -> list[float]:  # not all the way down: the period is longer than most runs
        return [config.lr * cosine(min(1.0, step / config.period))]

    batches = partial(GlobalBatches, np.arange(len(fold.train)), config.batch, steps)
    run.train(loop, Forward(net, partial(score, net)), images, batches, losses, rates)
    return {"steps": steps, "history": loop.history}


def main(argv: Sequence[str] | None = None) -> None:
    """What the command line says."""
    run_command({"": run}, argv, __doc__)


if __name__ == "__main__":
    main()
