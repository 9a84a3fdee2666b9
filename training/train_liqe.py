"""Train LIQE: the quality, scene and distortion of images, learnt together from texts of all their combinations.

    accelerate launch training/train_liqe.py --clip ViT-B-32:openai --out runs/liqe \
        --data kadid=kadid10k koniq=koniq-10k clive=ChallengeDB_release \
        --labels clive=LIQE/IQA_Database/ChallengeDB_release/splits2/clive_all_clip.txt
    python training/train_liqe.py --init runs/exiqa/split0/model.safetensors --data clive=ChallengeDB_release \
        --tasks none --shorter-edge 192 --logit-scale 10 --lr 2e-4 --batch 16 --epochs 10 --steps-per-epoch 70 \
        --half-period 10

The defaults are the paper's. The data sets are learnt from together: a batch has images of each, and only images of one
set are compared in quality. Scenes and distortions are learnt from LIQE's annotation files, --labels NAME=FILE, several
where they are split into train, val and test; distortions also from a data set that names them (KADID-10k, CSIQ, LIVE).
What is not known of an image counts nothing. --tasks leaves tasks out: with quality alone there are five texts.

A small CLIP, as in the second command, needs a --logit-scale far below 100: with one of 50 all images soon got the same
word with certainty, and a loss that stays at 0.293, that of scores without any difference, taught nothing more.

Each split writes OUT/splitN/model.safetensors; OUT/metrics.json holds every number that is printed. A killed run goes
on with the same command.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attriqa.config import check_least, opt, required, run_command
from attriqa.data.batches import JointBatches
from attriqa.data.crops import Example, WholeImages
from attriqa.data.protocol import refuse_learnt
from attriqa.models.clip.towers import clip_of
from attriqa.models.liqe import LIQE, LIQEConfig, Prediction
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
from attriqa.training.liqe import TASKS, Sets, fields, grid_crops, losses, sets_of, started
from attriqa.training.loop import Loop, gather_rows
from attriqa.training.losses import dynamic_weights
from attriqa.training.options import CLIPRun, RatedData, origin_of
from attriqa.training.schedules import rate

SMALL_BATCH = ("live", "csiq", "bid", "clive")  # 4 images of a batch are of each, 16 of others (LIQE's code)


@dataclass(frozen=True, kw_only=True)
class Config(RatedData, CLIPRun):
    """What a run does."""

    data: tuple[str, ...] = required(
        "rated data sets in their official layouts, NAME=ROOT, as clive=ChallengeDB_release"
    )
    labels: tuple[str, ...] | None = opt(None, "LIQE's annotation files (*_clip.txt), NAME=FILE; several for a set")
    out: Path = opt(Path("runs/liqe"), "where everything goes")
    init: Path | None = opt(None, "or a checkpoint of ExIQA or LIQE, whose CLIP is the start")
    tasks: Literal["all", "scenes", "distortions", "none"] = opt("all", "what is learnt beside quality")
    fix_fastfading: bool = opt(True, "labels: LIVE's fastfading is JPEG2000, not white noise as LIQE annotated it")
    crops: int = opt(15, "of each image, in the test")
    train_crops: int = opt(3, "of each image of a batch")
    stride: int = opt(32, "px between places of crops; 48 in images with a side of 1024 px and more")
    shorter_edge: int = opt(768, "px that the shorter edge of images is reduced to, if it is longer")
    logit_scale: float | None = opt(
        None, "one over the temperature; none: that of --init, or CLIP's own, 100 in pretrained ones"
    )
    weighting: Literal["dynamic", "equal"] = opt("dynamic", "of the tasks: more for the slower ones, or the same")
    temperature: float = opt(2.0, "of dynamic weighting; the greater, the more even")
    distortion_weight: float = opt(1.0, "of the distortion loss, before weighting; 0.0909 as in LIQE's code")
    epochs: int = opt(80, "of --steps-per-epoch")
    steps_per_epoch: int = opt(200, "steps")
    lr: float = opt(5e-6, "AdamW's peak rate")
    half_period: int = opt(5, "epochs in which the rate falls to zero along a cosine; it then rises again")
    weight_decay: float = opt(1e-3, "AdamW's")
    batch: int | None = opt(None, "images of each data set in a step; none: 4 of LIVE, CSIQ, BID, CLIVE, 16 of others")
    smoke: bool = opt(False, "a size for tests: 40 images of each set, one split, two epochs of three steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.names())) < len(self.data):
            raise ValueError(f"--data: expected each NAME once, got {' '.join(self.data)}")
        for spec in self.labels or ():
            if spec.partition("=")[0] not in self.names() or not spec.partition("=")[2]:
                raise ValueError(f"--labels: expected NAME=FILE with a NAME of --data, got {spec}")
        check_least(self, train_crops=1, epochs=1, steps_per_epoch=1, half_period=1)
        if not self.temperature > 0:
            raise ValueError(f"--temperature: expected a number above 0, got {self.temperature}")

    def names(self) -> list[str]:
        """The NAMEs of the data sets."""
        return [spec.partition("=")[0] for spec in self.data]

    def label_files(self) -> list[list[Path]]:
        """The annotation files of each data set."""
        pairs = [spec.partition("=")[::2] for spec in self.labels or ()]
        return [[Path(file) for name, file in pairs if name == known] for known in self.names()]

    def sizes(self) -> list[int]:
        """Images of each data set in a batch."""
        return [self.batch or (4 if name.lower() in SMALL_BATCH else 16) for name in self.names()]


def settled(config: Config) -> Config:
    """The configuration at the size asked for."""
    if not config.smoke:
        return config
    small: dict[str, Any] = {"splits": 1, "epochs": 2, "steps_per_epoch": 3, "batch": 4, "crops": 4, "workers": 0}
    return replace(config, **small, train_crops=2, log_every=1, save_every=2)


def build(config: Config) -> LIQE:
    """The model before the first step."""
    whole = LIQEConfig()
    shape = LIQEConfig(
        scenes=whole.scenes if config.tasks in ("all", "scenes") else (),
        distortions=whole.distortions if config.tasks in ("all", "distortions") else (),
        crops=config.crops,
        stride=config.stride,
        shorter_edge=config.shorter_edge,
        logit_scale=config.logit_scale,
    )
    if config.init is not None:
        return started(config.init, shape)
    return LIQE(shape, clip_of(config.clip or str(config.clip_config), seed=config.seed))


def run(config: Config) -> None:
    """Run every fold that has no result yet, then print medians."""
    config = settled(config)
    plans = [config.plan(spec) for spec in config.data]
    for plan in plans:
        refuse_learnt(plan, origin_of(config) or {}, f"--init: {config.init}")
    sets = sets_of(plans, config.label_files(), fix_fastfading=config.fix_fastfading)
    build(config)  # a fault of the model is found before hours of work
    results = run_folds(config, "liqe", [fold.name for fold in plans[0].folds], partial(run_fold, config, sets))
    if results is not None:
        protocol = "; ".join(plan.protocol for plan in plans)
        title, about = sets.targets.described(protocol)
        write_medians(config.out, results, medians_of_tests(results), title, about)


def run_fold(config: Config, sets: Sets, number: int, run: FoldRun) -> Trained:
    """Train and test one fold."""
    net = build(config).to(run.device)
    loop = train(config, sets, number, net, run)
    result: dict[str, Any] = {"fold": run.folder.name, "n_train": sum(map(len, sets.train(number)))}
    result |= {"steps": loop.pace.steps, "history": loop.history, "tests": {}}
    starts = {plan.dataset.name: start for plan, start in zip(sets.plans, sets.starts, strict=True)}
    for name, test in held_out(sets.plans, number, list(starts)).items():
        images = WholeImages(test.paths)
        prediction = run.predict(net, lambda batch: fields(net.predict(batch.pixels(run.device))), images, name)
        known = {}
        if test.rows is not None:
            known = sets.targets.rows([starts[name] + row for row in test.rows]).classes()
        result["tests"][name] = report(prediction, test.mos, f"{run.folder.name}, test on {name}", **known)
    learnt = {plan.dataset.name: [path.name for path in plan.train_paths(plan.folds[number])] for plan in sets.plans}
    return Trained(net, result, {"data": learnt, "init": origin_of(config)})


def train(config: Config, sets: Sets, number: int, net: LIQE, run: FoldRun) -> Loop:
    """Learn quality, scenes and distortions from the training sides of a fold."""
    images = grid_crops(sets.paths, net.preprocess.size, net.config, config.train_crops, seed=config.seed)
    learnt = nn.ParameterList(parameter for parameter in net.parameters() if parameter.requires_grad)
    optimizer = torch.optim.AdamW(learnt, lr=config.lr, weight_decay=config.weight_decay)
    steps, sizes = config.epochs * config.steps_per_epoch, config.sizes()
    pace: dict[str, Any] = {"steps": steps, "per_epoch": config.steps_per_epoch, "batch": sum(sizes)}
    loop = run.loop(learnt, optimizer, losses=("total", *TASKS), **pace, images=sets.digest())

    def weighted(model: nn.Module, step: int, batch: Example) -> Tensor:
        prediction = model(batch.pixels(run.device).unflatten(0, (-1, config.train_crops)))
        # Pairs are made of the images of all processes: each computes one and the same loss, see `gather_rows`.
        prediction = Prediction(*(gather_rows(field) if field.numel() else field for field in prediction))
        numbers = gather_rows(batch.number.to(run.device))
        targets = sets.targets.rows(numbers.cpu()).to(run.device)
        each = losses(prediction, targets, sets.set_of(numbers), len(sets.plans))
        each = each * each.new_tensor([1.0, 1.0, config.distortion_weight])
        weights = torch.ones(len(TASKS))
        past = [row[1:] for row in loop.means()[: step // config.steps_per_epoch]]
        if config.weighting == "dynamic" and past:
            weights = torch.tensor(dynamic_weights(past, config.temperature))
        total = (weights.to(run.device) * each).sum()
        return torch.cat([total[None], each])

    def rates(step: int) -> list[float]:
        return [config.lr * rate(step // config.steps_per_epoch, config.half_period)]

    batches = partial(JointBatches, sets.train(number), sizes, steps)
    run.train(loop, Forward(net, net.read), images, batches, weighted, rates, gathered=True)
    return loop


def main(argv: Sequence[str] | None = None) -> None:
    """What the command line says."""
    run_command({"": run}, argv, __doc__)


if __name__ == "__main__":
    main()
