"""Train MP-IQE: prompts in both towers of a frozen CLIP, and a decoder that asks its image for a score (eqs. 6 to 16).

    accelerate launch training/train_mp_iqe.py --clip ViT-B-16:openai --data clive=CLIVE --labels clive_all_clip.txt
    python training/train_mp_iqe.py --init runs/exiqa/split0/model.safetensors --data clive=ChallengeDB_release \
        --shorter-edge 192 --crops 16 --epochs 3 --warmup 1 --lr 1e-3 --layers 1 --distortions none --no-scenes

The defaults are the paper's; the second command is for a small CLIP. Scenes and distortions are learnt from LIQE's
annotation files (--labels; of BID and KADID-10k, the train, val and test files of one split together make up the set);
distortions also from a data set that names them (KADID-10k, CSIQ, LIVE). Without either, the score is learnt alone.

Ablations: --no-scenes, --distortions none, --prompt-kind none (or first: the paper's shallow prompts), --context 2,
--prompts 8, --fraction 0.2.

Each split writes OUT/splitN/model.safetensors; OUT/metrics.json holds every number that is printed. A killed run goes
on with the same command.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from attriqa.config import check_least, opt, required, run_command
from attriqa.data.batches import GlobalBatches
from attriqa.data.crops import Example, fixed_crops, training_crops
from attriqa.data.protocol import Plan, refuse_learnt
from attriqa.distortions.classes import DISTORTION_CLASSES, SCENES
from attriqa.models.clip.towers import clip_of
from attriqa.models.mp_iqe import KADID_NAMES, MPIQE, MPIQEConfig, mean_over_crops
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
from attriqa.training.loop import Loop
from attriqa.training.mp_iqe import Losses, Targets, losses, started, targets_of
from attriqa.training.options import CLIPRun, RatedData, origin_of
from attriqa.training.schedules import cosine

CLASSES = {"mp-iqe": tuple(DISTORTION_CLASSES.values()), "kadid": KADID_NAMES, "none": ()}
SMALL_BATCH = ("live", "csiq", "bid")  # 32 crops, others 64 (MP-IQE, implementation details)
LOW_SCORE_WEIGHT = ("live", "csiq")  # lambda 2 of 0.1, others 0.5 (likewise)


@dataclass(frozen=True, kw_only=True)
class Config(RatedData, CLIPRun):
    """What a run does."""

    data: str = required("rated data set in its official layout, NAME=ROOT, as clive=ChallengeDB_release")
    labels: tuple[Path, ...] | None = opt(None, "LIQE's annotation files (*_clip.txt) of its images; none: no scenes")
    out: Path = opt(Path("runs/mp_iqe"), "where everything goes")
    init: Path | None = opt(None, "or a checkpoint of ExIQA, for its CLIP, or of MP-IQE, to go on from")
    scenes: bool = opt(True, "the scene branch: its texts and its loss")
    distortions: Literal["mp-iqe", "kadid", "none"] = opt("mp-iqe", "classes of the distortion branch: 11, 25 or none")
    fix_fastfading: bool = opt(True, "labels: LIVE's fastfading is JPEG2000, not white noise as LIQE annotated it")
    context: int = opt(8, "learnt words in front of each class name")
    prompts: int = opt(4, "visual prompts")
    prompt_kind: Literal["deep", "first", "shallow", "none"] = opt(
        "deep", "new ones in each block; in block 1 alone, outputs dropped; through all blocks; none"
    )
    windows: int = opt(7, "windows per side that distortions are looked for in")
    temperature: float = opt(0.01, "T of equations 8 and 10")
    window_temperature: float = opt(0.05, "T-bar of equation 10")
    layers: int = opt(3, "of the decoder")
    heads: int = opt(8, "of the decoder's attention")
    crops: int = opt(8, "of each image, per epoch and in the test")
    shorter_edge: int | None = opt(None, "px that images are resized to before they are cropped; none: their own size")
    distortion_weight: float = opt(1.0, "lambda 1 of equation 15")
    score_weight: float | None = opt(None, "lambda 2; none: 0.1 for LIVE and CSIQ, 0.5 for others")
    literal_norm: bool = opt(False, "cross-entropies over the number of classes, as equations 9 and 11 are printed")
    epochs: int = opt(30, "passes over all crops")
    warmup: int = opt(5, "epochs in which the rate rises; then a cosine to 0")
    lr: float = opt(3e-5, "Adam's peak rate")
    weight_decay: float = opt(0.0, "Adam's")
    batch: int | None = opt(None, "crops per step, over all processes; none: 32 for LIVE, CSIQ and BID, 64 for others")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, epochs=1)
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(
                f"--warmup: expected 0 to {self.epochs - 1} of the {self.epochs} epochs, got {self.warmup}"
            )


def settled(config: Config) -> Config:
    """The configuration with the paper's numbers in the place of what was left open."""
    name = config.data.partition("=")[0].strip().lower()
    if config.prompt_kind == "none":
        config = replace(config, prompts=0)
    if config.batch is None:
        config = replace(config, batch=32 if name in SMALL_BATCH else 64)
    if config.score_weight is None:
        config = replace(config, score_weight=0.1 if name in LOW_SCORE_WEIGHT else 0.5)
    if config.smoke:
        small: dict[str, Any] = {"splits": 1, "crops": 2, "epochs": 2, "warmup": 1, "batch": 8, "workers": 0}
        config = replace(config, **small, log_every=1, save_every=3)
    return config


def shape_of(config: Config) -> MPIQEConfig:
    """What of a configuration belongs to the model."""
    return MPIQEConfig(
        scenes=tuple(SCENES.values()) if config.scenes else (),
        distortions=CLASSES[config.distortions],
        context=config.context,
        prompts=config.prompts,
        prompt_kind=config.prompt_kind,
        windows=config.windows,
        temperature=config.temperature,
        window_temperature=config.window_temperature,
        layers=config.layers,
        heads=config.heads,
        crops=config.crops,
        shorter_edge=config.shorter_edge,
        crop_seed=config.seed,
    )


def build(config: Config) -> MPIQE:
    """The model before the first step."""
    if config.init is not None:
        return started(config.init, shape_of(config), seed=config.seed)
    towers = clip_of(config.clip or str(config.clip_config), seed=config.seed)
    return MPIQE(shape_of(config), towers, seed=config.seed)


def run(config: Config) -> None:
    """Run every fold that has no result yet, then print medians."""
    config = settled(config)
    plan = config.plan(config.data)
    refuse_learnt(plan, origin_of(config) or {}, f"--init: {config.init}")
    targets = targets_of(plan, shape_of(config), config.labels or (), fix_fastfading=config.fix_fastfading)
    build(config)  # a fault of the model is found before hours of work
    results = run_folds(config, "mp_iqe", [fold.name for fold in plan.folds], partial(run_fold, config, plan, targets))
    if results is not None:
        title, about = targets.described(plan.protocol)
        write_medians(config.out, results, medians_of_tests(results), title, about)


def run_fold(config: Config, plan: Plan, targets: Targets, number: int, run: FoldRun) -> Trained:
    """Train and test one fold."""
    fold, net = plan.folds[number], build(config).to(run.device)
    learnt = targets.rows(fold.train)
    loop = train(config, plan.train_paths(fold), learnt, net, run)
    result: dict[str, Any] = {"fold": fold.name, "n_train": len(fold.train), "labelled": learnt.labelled()}
    result |= {"steps": loop.pace.steps, "history": loop.history, "tests": {}}
    look: dict[str, Any] = {"shorter_edge": config.shorter_edge, "seed": net.config.crop_seed}
    for name, test in held_out([plan], number).items():
        images = fixed_crops(test.paths, net.preprocess.size, config.crops, **look)
        prediction = run.predict(net, partial(predict, net, run.device), images, f"test, {name}", batch=4)
        known = {} if test.rows is None else targets.rows(test.rows).classes()
        result["tests"][name] = report(prediction, test.mos, f"{fold.name}, test on {name}", **known)
    files = [path.name for path in plan.train_paths(fold)]
    return Trained(net, result, {"data": {plan.dataset.name: files}, "init": origin_of(config)})


def predict(net: MPIQE, device: torch.device, batch: Example) -> Sequence[Tensor]:
    """What the crops of images say together."""
    return mean_over_crops(net.read(batch.pixels(device)), net.config.crops)


def train(config: Config, paths: Sequence[Path], targets: Targets, net: MPIQE, run: FoldRun) -> Loop:
    """Learn from images what is known of them."""
    images = training_crops(paths, net.preprocess.size, shorter_edge=config.shorter_edge, seed=config.seed)
    learnt = nn.ParameterList(parameter for parameter in net.parameters() if parameter.requires_grad)
    optimizer = torch.optim.Adam(learnt, lr=config.lr, weight_decay=config.weight_decay)
    items, batch_size = np.arange(len(paths) * config.crops), cast(int, config.batch)
    per_epoch = len(items) // batch_size
    steps = config.epochs * per_epoch
    pace: dict[str, Any] = {"steps": steps, "per_epoch": per_epoch, "batch": batch_size, "unit": "crops"}
    loop = run.loop(learnt, optimizer, losses=Losses._fields, **pace, targets=targets.digest())

    def weighted(model: nn.Module, step: int, batch: Example) -> Tensor:
        each = losses(
            model(batch.pixels(run.device)),
            targets.rows(batch.number).to(run.device),
            distortion_weight=config.distortion_weight,
            score_weight=cast(float, config.score_weight),
            literal_norm=config.literal_norm,
        )
        return torch.stack(each)

    def rates(step: int) -> list[float]:
        return [config.lr * cosine(step / steps, config.warmup / config.epochs)]

    batches = partial(GlobalBatches, items, batch_size, steps)
    run.train(loop, Forward(net, net.read), images, batches, weighted, rates)
    return loop


def main(argv: Sequence[str] | None = None) -> None:
    """What the command line says."""
    run_command({"": run}, argv, __doc__)


if __name__ == "__main__":
    main()
