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

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from attriqa.config import opt, parse_config, required
from attriqa.data.batches import GlobalBatches
from attriqa.data.crops import JudgedCrops, Patches, TrainingCrops, stack_patches
from attriqa.data.protocol import Plan, make_plan, refuse_learnt
from attriqa.data.splits import Fold
from attriqa.distortions.classes import DISTORTION_CLASSES, SCENES
from attriqa.files import as_dict, write_json
from attriqa.images import ImageError
from attriqa.models.clip.towers import clip_of
from attriqa.models.mp_iqe import KADID_NAMES, MPIQE, MPIQEConfig, Reading
from attriqa.training.loop import Loop, Pace, loader
from attriqa.training.mp_iqe import Losses, Predicted, Targets, losses, report, started, summary, targets_of, tell_all
from attriqa.training.options import CLIPRun, accelerator_of, begin, origin_of
from attriqa.training.schedules import cosine

CLASSES = {"mp-iqe": tuple(DISTORTION_CLASSES.values()), "kadid": KADID_NAMES, "none": ()}
SMALL_BATCH = ("live", "csiq", "bid")  # 32 crops, others 64 (MP-IQE, implementation details)
LOW_SCORE_WEIGHT = ("live", "csiq")  # lambda 2 of 0.1, others 0.5 (likewise)


@dataclass(frozen=True, kw_only=True)
class Config(CLIPRun):
    """What a run does."""

    data: str = required("rated data set in its official layout, NAME=ROOT, as clive=ChallengeDB_release")
    labels: tuple[Path, ...] | None = opt(None, "LIQE's annotation files (*_clip.txt) of its images; none: no scenes")
    test: tuple[str, ...] | None = opt(None, "other data sets that each split's model is tested on, whole: NAME=ROOT")
    out: Path = opt(Path("runs/mp_iqe"), "where everything goes")
    init: Path | None = opt(None, "or a checkpoint of ExIQA, for its CLIP, or of MP-IQE, to go on from")
    protocol: Literal["splits", "official", "all"] = opt("splits", "random 80/20; the authors' split; train on all")
    splits: int = opt(10, "random splits, seeded 0, 1, ...; each is a run of its own")
    fraction: float = opt(1.0, "share of each training side that is used, in (0, 1]")
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
    smoke: bool = opt(False, "a size for tests: 40 images, one split, two epochs")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("epochs")
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run every fold that has no result yet, then summarise."""
    config = settled(parse_config(Config, argv, __doc__))
    accelerator = accelerator_of(config)
    try:
        cut: dict[str, Any] = {"protocol": config.protocol, "splits": config.splits, "fraction": config.fraction}
        plan = make_plan(config.data, config.test or (), smoke=config.smoke, **cut)
        refuse_learnt(plan, origin_of(config) or {}, f"--init: {config.init}")
        targets = targets_of(plan, shape_of(config), config.labels or (), fix_fastfading=config.fix_fastfading)
        build(config)  # a fault of the model is found before hours of work
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    begin(accelerator, config, "attriqa-mp-iqe")
    torch.set_float32_matmul_precision("high")
    try:
        for fold in plan.folds:
            if not (config.out / fold.name / "metrics.json").exists():
                run_fold(config, plan, targets, fold, accelerator)
    except ImageError as error:
        raise SystemExit(str(error)) from error
    if accelerator.is_main_process:
        summarise(config, plan, targets)
    accelerator.end_training()


def run_fold(config: Config, plan: Plan, targets: Targets, fold: Fold, accelerator: Accelerator) -> None:
    """Train, test and write one fold."""
    try:
        training = Training(config, plan, targets, fold, accelerator)
    except ValueError as error:  # a state of another run, a batch that cannot be filled
        raise SystemExit(str(error)) from error
    training.run()
    try:
        tests = evaluate(config, plan, targets, fold, training.net, accelerator)
    except ValueError as error:  # one score for all images: nothing was learnt
        raise SystemExit(f"{fold.name}: {error}") from error
    if accelerator.is_main_process:
        learnt = {"n_train": len(fold.train), "labelled": training.targets.labelled(), "steps": training.steps}
        result = {"fold": fold.name, **learnt, "history": training.loop.history, "tests": tests}
        here = ("data", "labels", "test", "out", "clip", "clip_config", "init")  # what only this machine knows
        settings = {key: value for key, value in as_dict(config).items() if key not in here}
        files = [path.name for path in plan.train_paths(fold)]
        about = {"data": {plan.dataset.name: files}, "init": origin_of(config), "metrics": result}
        provenance = {"recipe": "training/train_mp_iqe.py", "config": settings, **about}
        training.net.save(config.out / fold.name / "model.safetensors", provenance)
        write_json(config.out / fold.name / "metrics.json", result)
        training.loop.state.unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def evaluate(
    config: Config, plan: Plan, targets: Targets, fold: Fold, net: MPIQE, accelerator: Accelerator
) -> dict[str, dict[str, float]]:
    """A `report` of the fold's test files and of each other data set, by name."""
    sets = {"test": plan.test_paths(fold)} if fold.test else {}
    sets |= {other.name: [row.path for row in other.rows] for other in plan.strangers}
    mos = {other.name: [row.mos for row in other.rows] for other in plan.strangers}
    mos["test"] = [plan.dataset.rows[row].mos for row in fold.test]
    known = {"test": targets.rows(fold.test)}
    return {
        name: report(predict(config, net, name, paths, accelerator), mos[name], known.get(name))
        for name, paths in sets.items()
    }


def predict(config: Config, net: MPIQE, name: str, paths: list[Path], accelerator: Accelerator) -> Predicted:
    """Judge files, shared among the processes; all of them get all."""
    look: dict[str, Any] = {"shorter_edge": config.shorter_edge, "seed": net.config.crop_seed}
    images = JudgedCrops(paths, net.preprocess.size, config.crops, **look)
    mine = list(range(len(paths)))[accelerator.process_index :: accelerator.num_processes]
    fours = [mine[i : i + 4] for i in range(0, len(mine), 4)]
    batches = loader(images, fours, stack_patches, workers=config.workers, seed=config.seed)
    bar = tqdm(batches, f"test, {name}", leave=False, disable=not accelerator.is_local_main_process)
    with accelerator.autocast():
        return Predicted.together(gather_object([tell_all(net, bar, accelerator.device)]))


class Read(nn.Module):
    """`MPIQE.read` as a forward, which data parallelism needs."""

    def __init__(self, net: MPIQE) -> None:
        super().__init__()
        self.net = net

    def forward(self, crops: Tensor) -> Reading:
        """(N, 3, h, w) in [0, 1] -> a reading of each."""
        return self.net.read(crops)


class Training:
    """One fold; all draws are functions of the step."""

    def __init__(self, config: Config, plan: Plan, targets: Targets, fold: Fold, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.net = build(config).to(accelerator.device)
        self.targets = targets.rows(fold.train)
        crop, batch = self.net.preprocess.size, cast(int, config.batch)
        look: dict[str, Any] = {"shorter_edge": config.shorter_edge, "seed": config.seed}
        self.images = TrainingCrops(plan.train_paths(fold), crop, **look)
        learnt = nn.ParameterList(p for p in self.net.parameters() if p.requires_grad)
        optimizer = torch.optim.Adam(learnt, lr=config.lr, weight_decay=config.weight_decay)
        items = np.arange(len(fold.train) * config.crops)
        per_epoch = len(items) // batch
        self.steps = config.epochs * per_epoch
        self.loop = Loop(
            accelerator,
            config.out / fold.name,
            learnt,
            optimizer,
            losses=Losses._fields,
            pace=Pace(self.steps, per_epoch, config.log_every, config.save_every, batch, unit="crops"),
            identity={**as_dict(config), "fold": fold.name, "targets": self.targets.digest()},
        )
        share = {"process": accelerator.process_index, "processes": accelerator.num_processes, "seed": config.seed}
        self.batches = GlobalBatches(items, batch, self.steps, first=self.loop.first, **share)
        self.model, self.optimizer = accelerator.prepare(Read(self.net), optimizer)

    def run(self) -> None:
        """All steps that are left."""
        workers, seed = self.config.workers, self.config.seed
        batches = loader(self.images, self.batches, stack_patches, workers=workers, seed=seed)
        self.loop.run(self.step, batches, self.names)

    def names(self, step: int) -> list[str]:
        """The files in the batch of a step."""
        paths = self.images.paths
        return [paths[item % len(paths)].name for item in self.batches.whole(step)[1]]

    def step(self, step: int, batch: Patches) -> Tensor:
        """One optimizer step; its losses."""
        config, device = self.config, self.accelerator.device
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * cosine(step / self.steps, config.warmup / config.epochs)
        self.model.train()
        reading = self.model(batch.pixels(device))
        found = losses(
            reading,
            self.targets.rows(batch.number).to(device),
            distortion_weight=config.distortion_weight,
            score_weight=cast(float, config.score_weight),
            literal_norm=config.literal_norm,
        )
        self.optimizer.zero_grad()
        self.accelerator.backward(found.total)
        self.optimizer.step()
        return torch.stack(found).detach()


def summarise(config: Config, plan: Plan, targets: Targets) -> None:
    """Print and write the table of all folds."""
    results = [json.loads((config.out / fold.name / "metrics.json").read_text()) for fold in plan.folds]
    medians, lines = summary(results)
    known = ", ".join(f"{count} with {name}" for name, count in targets.labelled().items())
    print("\n".join([f"{plan.protocol}; {len(targets.mos)} images, {known}", *lines]))
    about = {"protocol": plan.protocol, "n": len(targets.mos), "labelled": targets.labelled()}
    write_json(config.out / "metrics.json", {**about, **medians, "folds": results})


if __name__ == "__main__":
    main()
