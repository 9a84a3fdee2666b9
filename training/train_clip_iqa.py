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

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.config import opt, parse_config, required
from attriqa.data.batches import GlobalBatches
from attriqa.data.crops import Patches, TrainingCrops, stack_patches
from attriqa.data.protocol import Plan, make_plan
from attriqa.data.splits import Fold
from attriqa.evaluation import metrics
from attriqa.files import as_dict, write_json
from attriqa.images import ImageError
from attriqa.models import exiqa
from attriqa.models.clip.towers import clip_of
from attriqa.models.clip_iqa import PAIRS, ClipIQA, ClipIQAConfig, ClipIQAPlus, ClipIQAPlusConfig, read_pairs
from attriqa.training.loop import Loop, Pace, judge, loader
from attriqa.training.mp_iqe import summary
from attriqa.training.options import CLIPRun, accelerator_of, begin
from attriqa.training.schedules import cosine

HERE = ("data", "test", "out", "clip", "clip_config", "init", "pairs")  # what only this machine knows
Net = ClipIQA | ClipIQAPlus


@dataclass(frozen=True, kw_only=True)
class Config(CLIPRun):
    """What a run does."""

    data: str = required("rated data set in its official layout, NAME=ROOT, as clive=ChallengeDB_release")
    test: tuple[str, ...] | None = opt(None, "other data sets that each split's model is tested on, whole: NAME=ROOT")
    out: Path = opt(Path("runs/clip_iqa_plus"), "where everything goes")
    init: Path | None = opt(None, "or a checkpoint of ExIQA, whose CLIP is the start")
    protocol: Literal["splits", "official", "all"] = opt("splits", "random 80/20; the authors' split; train on all")
    splits: int = opt(10, "random splits, seeded 0, 1, ...; each is a run of its own")
    fraction: float = opt(1.0, "share of each training side that is used, in (0, 1]")
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
    smoke: bool = opt(False, "a size for tests: 40 images, one split, two epochs")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("epochs", "period")
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run every fold that has no result yet, then summarise."""
    config = settled(parse_config(Config, argv, __doc__))
    accelerator = accelerator_of(config)
    try:
        cut: dict[str, Any] = {"protocol": config.protocol, "splits": config.splits, "fraction": config.fraction}
        plan = make_plan(config.data, config.test or (), smoke=config.smoke, **cut)
        build(config)  # a fault of the model is found before hours of work
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    begin(accelerator, config, "attriqa-clip-iqa")
    torch.set_float32_matmul_precision("high")
    try:
        for fold in plan.folds:
            if not (config.out / fold.name / "metrics.json").exists():
                run_fold(config, plan, fold, accelerator)
    except ImageError as error:
        raise SystemExit(str(error)) from error
    if accelerator.is_main_process:
        results = [json.loads((config.out / fold.name / "metrics.json").read_text()) for fold in plan.folds]
        medians, lines = summary(results)
        learnt = "nothing learnt" if not config.context else f"{config.context} learnt words"
        print("\n".join([f"{plan.protocol}; {learnt}", *lines]))
        write_json(config.out / "metrics.json", {"protocol": plan.protocol, **medians, "folds": results})
    accelerator.end_training()


def run_fold(config: Config, plan: Plan, fold: Fold, accelerator: Any) -> None:
    """Train, test and write one fold."""
    folder = config.out / fold.name
    result: dict[str, Any] = {"fold": fold.name, "n_train": len(fold.train) if config.context else 0, "tests": {}}
    net, state = build(config).to(accelerator.device), folder / "state.safetensors"
    if isinstance(net, ClipIQAPlus):
        try:
            training = Training(config, plan, fold, net, accelerator)
        except ValueError as error:  # a state of another run, a batch that cannot be filled
            raise SystemExit(str(error)) from error
        training.run()
        result |= {"steps": training.loop.pace.steps, "history": training.loop.history}
    net.eval()
    tests = {
        other.name: ([row.path for row in other.rows], [row.mos for row in other.rows]) for other in plan.strangers
    }
    if fold.test:
        tests = {"test": (plan.test_paths(fold), [plan.dataset.rows[row].mos for row in fold.test]), **tests}
    for name, (paths, mos) in tests.items():
        scores = judge(lambda image: net.predict(image)[:, :1], paths, accelerator, workers=config.workers, title=name)
        try:
            result["tests"][name] = metrics.report(scores[:, 0].tolist(), mos, seed=0, resamples=1000)
        except ValueError as error:  # of scores that are all the same
            raise SystemExit(f"{fold.name}, test on {name}: {error}") from error
    if accelerator.is_main_process:
        settings = {key: value for key, value in as_dict(config).items() if key not in HERE}
        learnt = {plan.dataset.name: [path.name for path in plan.train_paths(fold)] if config.context else []}
        about = {"recipe": "training/train_clip_iqa.py", "config": settings, "data": learnt, "metrics": result}
        net.save(folder / "model.safetensors", about)
        write_json(folder / "metrics.json", result)
        state.unlink(missing_ok=True)
    accelerator.wait_for_everyone()


class Score(nn.Module):
    """The score as a forward, which data parallelism needs."""

    def __init__(self, net: ClipIQAPlus) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,)."""
        return self.net.predict(images)[:, 0]


class Training:
    """One fold; all draws are functions of the step."""

    def __init__(self, config: Config, plan: Plan, fold: Fold, net: ClipIQAPlus, accelerator: Any) -> None:
        self.config, self.accelerator = config, accelerator
        self.mos = plan.mos[fold.train]
        self.images = TrainingCrops(
            plan.train_paths(fold), config.crop, shorter_edge=config.shorter_edge, seed=config.seed
        )
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[config.optimizer]
        optimizer: torch.optim.Optimizer = kind(net.context.parameters(), lr=config.lr)
        per_epoch = len(fold.train) // config.batch
        steps = config.epochs * per_epoch
        self.loop = Loop(
            accelerator,
            config.out / fold.name,
            net.context,
            optimizer,
            losses=("mse",),
            pace=Pace(steps, per_epoch, config.log_every, config.save_every, config.batch),
            identity={**as_dict(config), "fold": fold.name},
        )
        share = {"process": accelerator.process_index, "processes": accelerator.num_processes, "seed": config.seed}
        rows = np.arange(len(fold.train))
        self.batches = GlobalBatches(rows, config.batch, steps, first=self.loop.first, **share)
        self.model, self.optimizer = accelerator.prepare(Score(net), optimizer)

    def run(self) -> None:
        """All steps that are left."""
        workers, seed = self.config.workers, self.config.seed
        batches = loader(self.images, self.batches, stack_patches, workers=workers, seed=seed)
        self.loop.run(self.step, batches, self.names)

    def names(self, step: int) -> list[str]:
        """The files in the batch of a step."""
        return [self.images.paths[row].name for row in self.batches.whole(step)[1]]

    def step(self, step: int, batch: Patches) -> Tensor:
        """One optimizer step; its loss."""
        device = self.accelerator.device
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * cosine(min(1.0, step / self.config.period))
        self.model.train()
        loss = F.mse_loss(self.model(batch.pixels(device)), self.mos[batch.number].to(device))
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        return loss.detach()[None]


if __name__ == "__main__":
    main()
