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

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attriqa.config import opt, parse_config, required
from attriqa.data.batches import JointBatches
from attriqa.data.crops import Patches, stack_patches
from attriqa.data.protocol import make_plan, refuse_learnt
from attriqa.files import as_dict, write_json
from attriqa.images import ImageError
from attriqa.models.clip.towers import clip_of
from attriqa.models.liqe import LIQE, LIQEConfig, Prediction
from attriqa.training.liqe import TASKS, GridCrops, Sets, columns, losses, report, sets_of, started
from attriqa.training.loop import Loop, Pace, gather_rows, judge, loader
from attriqa.training.losses import dynamic_weights
from attriqa.training.mp_iqe import summary
from attriqa.training.options import CLIPRun, accelerator_of, begin, origin_of
from attriqa.training.schedules import rate

SMALL_BATCH = ("live", "csiq", "bid", "clive")  # 4 images of a batch are of each, 16 of others (LIQE's code)
HERE = ("data", "labels", "test", "out", "clip", "clip_config", "init")  # what only this machine knows


@dataclass(frozen=True, kw_only=True)
class Config(CLIPRun):
    """What a run does."""

    data: tuple[str, ...] = required(
        "rated data sets in their official layouts, NAME=ROOT, as clive=ChallengeDB_release"
    )
    labels: tuple[str, ...] | None = opt(None, "LIQE's annotation files (*_clip.txt), NAME=FILE; several for a set")
    test: tuple[str, ...] | None = opt(None, "other data sets that each split's model is tested on, whole: NAME=ROOT")
    out: Path = opt(Path("runs/liqe"), "where everything goes")
    init: Path | None = opt(None, "or a checkpoint of ExIQA or LIQE, whose CLIP is the start")
    protocol: Literal["splits", "official", "all"] = opt("splits", "random 80/20; the authors' split; train on all")
    splits: int = opt(10, "random splits, seeded 0, 1, ...; each is a run of its own")
    fraction: float = opt(1.0, "share of each training side that is used, in (0, 1]")
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
        self.require_counts("train_crops", "epochs", "steps_per_epoch", "half_period")
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run every fold that has no result yet, then summarise."""
    config = settled(parse_config(Config, argv, __doc__))
    accelerator = accelerator_of(config)
    try:
        cut: dict[str, Any] = {"protocol": config.protocol, "splits": config.splits, "fraction": config.fraction}
        plans = [make_plan(spec, config.test or (), smoke=config.smoke, **cut) for spec in config.data]
        for plan in plans:
            refuse_learnt(plan, origin_of(config) or {}, f"--init: {config.init}")
        sets = sets_of(plans, config.label_files(), fix_fastfading=config.fix_fastfading)
        build(config)  # a fault of the model is found before hours of work
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    begin(accelerator, config, "attriqa-liqe")
    torch.set_float32_matmul_precision("high")
    folds = [fold.name for fold in plans[0].folds]
    try:
        for number, name in enumerate(folds):
            if not (config.out / name / "metrics.json").exists():
                run_fold(config, sets, number, config.out / name, accelerator)
    except ImageError as error:
        raise SystemExit(str(error)) from error
    if accelerator.is_main_process:
        results = [json.loads((config.out / name / "metrics.json").read_text()) for name in folds]
        medians, lines = summary(results)
        protocol = "; ".join(plan.protocol for plan in plans)
        labelled = sets.targets.labelled()
        known = ", ".join(f"{count} with {name}" for name, count in labelled.items())
        print("\n".join([f"{protocol}; {len(sets.targets.mos)} images, {known}", *lines]))
        about = {"protocol": protocol, "n": len(sets.targets.mos), "labelled": labelled}
        write_json(config.out / "metrics.json", {**about, **medians, "folds": results})
    accelerator.end_training()


def run_fold(config: Config, sets: Sets, number: int, folder: Path, accelerator: Any) -> None:
    """Train, test and write one fold."""
    try:
        training = Training(config, sets, number, folder, accelerator)
    except ValueError as error:  # a state of another run, a batch that cannot be filled
        raise SystemExit(str(error)) from error
    training.run()
    net = training.net.eval()
    result: dict[str, Any] = {"fold": folder.name, "n_train": sum(map(len, sets.train(number)))}
    result |= {"steps": training.loop.pace.steps, "history": training.loop.history, "tests": {}}
    for name, (paths, mos, rows) in tests_of(sets, number).items():
        found = judge(lambda image: columns(net.predict(image)), paths, accelerator, workers=config.workers, title=name)
        known = sets.targets.rows(rows) if rows else None
        try:
            result["tests"][name] = report(found, net.config, mos, known)
        except ValueError as error:  # of scores that are all the same
            raise SystemExit(f"{folder.name}, test on {name}: {error}") from error
    if accelerator.is_main_process:
        settings = {key: value for key, value in as_dict(config).items() if key not in HERE}
        learnt = {
            plan.dataset.name: [path.name for path in plan.train_paths(plan.folds[number])] for plan in sets.plans
        }
        about = {"recipe": "training/train_liqe.py", "config": settings, "data": learnt}
        net.save(folder / "model.safetensors", {**about, "init": origin_of(config), "metrics": result})
        write_json(folder / "metrics.json", result)
        training.loop.state.unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def tests_of(sets: Sets, number: int) -> dict[str, tuple[list[Path], list[float], list[int]]]:
    """Files, their MOS and their numbers (none: unknown) of a fold's tests: by set, then other sets, whole."""
    tests: dict[str, tuple[list[Path], list[float], list[int]]] = {}
    for plan, start in zip(sets.plans, sets.starts, strict=True):
        if rows := plan.folds[number].test:
            mos = [plan.dataset.rows[row].mos for row in rows]
            tests[plan.dataset.name] = (plan.test_paths(plan.folds[number]), mos, [start + row for row in rows])
    for other in sets.plans[0].strangers:
        tests[other.name] = ([row.path for row in other.rows], [row.mos for row in other.rows], [])
    return tests


class Read(nn.Module):
    """`LIQE.read` as a forward, which data parallelism needs."""

    def __init__(self, net: LIQE) -> None:
        super().__init__()
        self.net = net

    def forward(self, crops: Tensor) -> Prediction:
        """(B, K, 3, h, w) in [0, 1] -> what B images show."""
        return self.net.read(crops)


class Training:
    """One fold; all draws are functions of the step."""

    def __init__(self, config: Config, sets: Sets, number: int, folder: Path, accelerator: Any) -> None:
        self.config, self.sets, self.accelerator = config, sets, accelerator
        self.net = build(config).to(accelerator.device)
        self.images = GridCrops(
            sets.paths, self.net.preprocess.size, self.net.config, config.train_crops, seed=config.seed
        )
        learnt = nn.ParameterList(parameter for parameter in self.net.parameters() if parameter.requires_grad)
        optimizer = torch.optim.AdamW(learnt, lr=config.lr, weight_decay=config.weight_decay)
        steps = config.epochs * config.steps_per_epoch
        self.loop = Loop(
            accelerator,
            folder,
            learnt,
            optimizer,
            losses=("total", *TASKS),
            pace=Pace(steps, config.steps_per_epoch, config.log_every, config.save_every, sum(config.sizes())),
            identity={**as_dict(config), "fold": folder.name, "images": sets.digest()},
        )
        share = {"process": accelerator.process_index, "processes": accelerator.num_processes, "seed": config.seed}
        self.batches = JointBatches(sets.train(number), config.sizes(), steps, first=self.loop.first, **share)
        self.model, self.optimizer = accelerator.prepare(Read(self.net), optimizer)

    def run(self) -> None:
        """All steps that are left."""
        workers, seed = self.config.workers, self.config.seed
        batches = loader(self.images, self.batches, stack_patches, workers=workers, seed=seed)
        self.loop.run(self.step, batches, self.names)

    def names(self, step: int) -> list[str]:
        """The files in the batch of a step."""
        return [self.images.paths[row].name for row in self.batches.whole(step)]

    def step(self, step: int, batch: Patches) -> Tensor:
        """One optimizer step; its losses."""
        config, device, processes = self.config, self.accelerator.device, self.accelerator.num_processes
        epoch = step // config.steps_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * rate(epoch, config.half_period)
        weights = torch.ones(len(TASKS))
        past = [row[1:] for row in self.loop.means()[:epoch]]
        if config.weighting == "dynamic" and past:
            weights = torch.tensor(dynamic_weights(past, config.temperature))
        self.model.train()
        told = self.model(batch.pixels(device).unflatten(0, (-1, config.train_crops)))
        # Pairs are made of the images of all processes: each computes one and the same loss, see `gather_rows`.
        told = Prediction(*(gather_rows(field) if field.numel() else field for field in told))
        numbers = gather_rows(batch.number.to(device))
        targets = self.sets.targets.rows(numbers.cpu()).to(device)
        each = losses(told, targets, self.sets.set_of(numbers), len(self.sets.plans))
        each = each * each.new_tensor([1.0, 1.0, config.distortion_weight])
        total = (weights.to(device) * each).sum()
        self.optimizer.zero_grad()
        self.accelerator.backward(total * processes)
        self.optimizer.step()
        return torch.cat([total[None], each]).detach()


if __name__ == "__main__":
    main()
