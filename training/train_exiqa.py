"""Train ExIQA: first to name distortions and their strengths, then to score from what it names (equations 6 to 9).

    python training/train_exiqa.py --data kadid=kadid10k --clip ViT-B-16:openai --splits 10
    accelerate launch training/train_exiqa.py --manifest exiqa100k --clip ViT-B-16:openai --tune all --precision bf16
    python training/train_exiqa.py --photos photos --tune all --clip-config examples/small_clip.json --logit-scale 50

The images come from --data, a synthetic data set with opinion scores; --manifest, a set of training/distort.py; or
--photos, pristine photos that are distorted as they come, K ~ U{1..--most} at a time. What can be named: --table, or
the distortions of --init, or of the data set. With --init and --epochs 0 nothing is learnt of them: --table NAME asks
for another data set's (table IV), no --table learns a score from the old ones' attributes (V).

1. Identification: prompts in the image tower learn, or with --tune all both towers; strengths are (7).
2. Score, where there are opinions (--data): a regressor on frozen attribute probabilities (9), computed once.
A split writes OUT/splitN/model.safetensors, all of them OUT/metrics.json. A killed run goes on with the same command.
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from attriqa.config import opt, parse_config
from attriqa.data.batches import GlobalBatches, central
from attriqa.data.distorted import Example, Files, HeldOut, Mixtures, photo_tests, stack
from attriqa.data.sources import Plan, Source, chosen, manifest_plan, photo_plan, rated_plan
from attriqa.data.splits import Fold
from attriqa.distortions.attributes import DATASET_ATTRIBUTES
from attriqa.evaluation import metrics
from attriqa.evaluation.identification import confusion, identification_metrics, top1_by_level, write_confusion
from attriqa.files import as_dict, atomic_path, write_json
from attriqa.images import ImageError
from attriqa.models.clip.towers import clip_of
from attriqa.models.exiqa import ExIQA, ExIQAConfig
from attriqa.training.exiqa import (
    Identify,
    Predicted,
    continued,
    fit_regressor,
    identify_all,
    parts_of,
    summary,
    table_of,
)
from attriqa.training.loop import Loop, Pace, loader
from attriqa.training.losses import strength_loss
from attriqa.training.options import CLIPRun, accelerator_of, begin
from attriqa.training.schedules import cosine

PROMPTS = {"kadid": 100, "tid2013": 100, "csiq": 15, "lvq": 30, "live": 15}  # ExIQA, implementation details


@dataclass(frozen=True, kw_only=True)
class Config(CLIPRun):
    """What a run does."""

    data: str | None = opt(None, "rated synthetic data set in its official layout, NAME=ROOT, as kadid=kadid10k")
    manifest: Path | None = opt(None, "or a set of training/distort.py: its folder or manifest.csv")
    photos: Path | None = opt(None, "or a folder of pristine photos, distorted as they come")
    photo_pattern: tuple[str, ...] = opt(("*",), "photos: which files are learnt from, as globs")
    test_pattern: tuple[str, ...] | None = opt(None, "photos: which files are for the test; none: a share of them")
    out: Path = opt(Path("runs/exiqa"), "where everything goes")
    init: Path | None = opt(None, "or a checkpoint of this recipe, whose towers are the start")
    table: str | None = opt(None, f"TOML of your own distortions, or {', '.join(DATASET_ATTRIBUTES)}; none: see above")
    distortions: tuple[str, ...] | None = opt(None, "keys of those to learn, out of the table; none: all")
    tune: Literal["prompts", "all"] = opt("prompts", "what learns: visual prompts, or all of CLIP")
    prompts: int | None = opt(None, "number of visual prompts; none: the paper's for the data set, 100; 0 with all")
    prompt_kind: Literal["shallow", "deep"] = opt("shallow", "one set of prompts, or a new one in each block")
    logit_scale: float | None = opt(None, "tau of equation 6; none: CLIP's own, 100 in pretrained ones")
    splits: int = opt(1, "random splits by reference, seeded 0, 1, ...; each is a run of its own")
    held_out: float = opt(0.2, "share of the references that is for the test, in (0, 1)")
    crop: int = opt(0, "px, side of the square cut out of an image; 0: files whole, photos at the size CLIP sees")
    shorter_edge: int | None = opt(None, "photos: px they are read at; none: their own size")
    most: int = opt(25, "photos: distortions on one image, at most")
    clean_share: float = opt(0.1, "photos: share of the images that stay as they are")
    passes: int = opt(10, "photos: crops of each per epoch")
    test_passes: int = opt(2, "photos: test images per photo, with several distortions")
    single_passes: int = opt(4, "photos: test images per distortion and level, with one distortion")
    epochs: int | None = opt(None, "identification: passes; none: 100 for prompts, 5 for all")
    lr: float | None = opt(None, "identification: AdamW's peak rate; none: 2e-3 for prompts, 5e-5 for all")
    text_lr: float | None = opt(None, "identification, all: peak rate of the text tower, 0: frozen; none: the same")
    weight_lr: float = opt(2e-3, "identification: peak rate of the attributes' weights")
    weight_decay: float | None = opt(None, "identification: AdamW's; none: 0 for prompts, 1e-2 for all")
    warmup: float = opt(0.2, "identification: share of the steps in which the rate rises; then a cosine to 0")
    batch: int = opt(64, "identification: images per step, over all processes")
    regressor_epochs: int = opt(100, "score: passes")
    regressor_lr: float = opt(1e-3, "score: AdamW's peak rate; falls along a cosine")
    regressor_batch: int = opt(128, "score: images per step")
    tests: int = opt(5, "times that a split's test is run, evenly over its training; the last is its result")
    smoke: bool = opt(False, "a size for tests: 24 images, two epochs")

    def __post_init__(self) -> None:
        if (self.data, self.manifest, self.photos).count(None) != 2:
            raise ValueError("--data, --manifest, --photos: expected one of them")
        super().__post_init__()
        self.require_counts("splits", "passes", "test_passes", "single_passes", "batch", "tests")
        self.require_counts("regressor_epochs", "regressor_batch")
        if self.epochs is not None and self.epochs < 0:
            raise ValueError(f"--epochs: expected at least 0, got {self.epochs}")


def settled(config: Config) -> Config:
    """The configuration with the paper's numbers in the place of what was left open."""
    whole = config.tune == "all"
    name = (config.data or "").partition("=")[0].lower()
    lr = config.lr if config.lr is not None else 5e-5 if whole else 2e-3
    defaults: dict[str, Any] = {"prompts": 0 if whole else PROMPTS.get(name, 100), "epochs": 5 if whole else 100}
    defaults |= {"lr": lr, "text_lr": lr, "weight_decay": 1e-2 if whole else 0.0}
    config = replace(config, **{key: value for key, value in defaults.items() if getattr(config, key) is None})
    if config.smoke:
        small: dict[str, Any] = {"batch": 8, "passes": 1, "test_passes": 1, "single_passes": 1, "tests": 2}
        small |= {"epochs": min(2, config.epochs or 0), "regressor_epochs": 3, "workers": 0, "log_every": 1}
        config = replace(config, **small, save_every=2)
    return config


def main(argv: Sequence[str] | None = None) -> None:
    """Run every split that has no result yet, then summarise."""
    config = settled(parse_config(Config, argv, __doc__))
    accelerator = accelerator_of(config)
    try:
        plan = plan_of(config)
        build(config, plan)  # a fault of the model is found before hours of work
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    begin(accelerator, config, "attriqa-exiqa")
    torch.set_float32_matmul_precision("high")
    try:
        for fold in plan.folds:
            if not (config.out / fold.name / "metrics.json").exists():
                run_fold(config, plan, fold, accelerator)
    except ImageError as error:
        raise SystemExit(str(error)) from error
    if accelerator.is_main_process:
        summarise(config, plan)
    accelerator.end_training()


def plan_of(config: Config) -> Plan:
    """Read the table and the images, and cut the folds."""
    table = table_of(config.table, init=config.init, data=config.data)
    limit = 24 if config.smoke else None
    sides: dict[str, Any] = {"splits": config.splits, "held_out": config.held_out, "limit": limit}
    if config.photos is not None:
        patterns = config.photo_pattern, config.test_pattern
        return photo_plan(config.photos, *patterns, chosen(table, config.distortions), **sides)
    if config.manifest is not None:
        return manifest_plan(config.manifest, chosen(table, config.distortions), **sides)
    return rated_plan(str(config.data), table, config.distortions, unnamed=config.epochs == 0, **sides)


def build(config: Config, plan: Plan) -> ExIQA:
    """The model before the first step."""
    kind = config.prompt_kind if config.prompts else "none"
    shape = ExIQAConfig(plan.table, config.tune, cast(int, config.prompts), kind, logit_scale=config.logit_scale)
    if config.init is not None:
        net = continued(config.init, shape, fresh=bool(config.epochs), seed=config.seed)
    else:
        net = ExIQA(shape, clip_of(config.clip or str(config.clip_config), seed=config.seed), seed=config.seed)
    for parameter in [*net.regressor.parameters(), *(parts_of(net)[1] if config.text_lr == 0 else ())]:
        parameter.requires_grad_(False)  # the regressor's turn is phase 2
    return net


def tests_of(config: Config, plan: Plan, fold: Fold, net: ExIQA) -> list[HeldOut]:
    """A fold's tests: its images as they are, or its photos with several distortions and with single ones."""
    source = plan.source
    if source.strengths is not None:
        images = Files(source, net.preprocess.geometry, crop=config.crop, seed=config.seed)
        return [HeldOut("test", images, tuple(fold.test), source.strengths[fold.train].mean(0))]
    draws: dict[str, Any] = {"most": config.most, "passes": config.test_passes, "single_passes": config.single_passes}
    draws |= {"crop": config.crop or min(net.preprocess.size), "shorter_edge": config.shorter_edge}
    return photo_tests(source, fold.test, seed=config.seed, **draws)


def predict(config: Config, net: ExIQA, test: HeldOut, accelerator: Accelerator) -> Predicted:
    """Look at the images of a test, shared among the processes; all of them get all."""
    numbers = np.array(test.numbers[accelerator.process_index :: accelerator.num_processes])
    batches = loader(test.images, central(numbers), stack, workers=config.workers, seed=config.seed)
    bar = tqdm(batches, test.name, leave=False, disable=not accelerator.is_local_main_process)
    with accelerator.autocast():
        return Predicted.together(gather_object([identify_all(net, bar, accelerator.device)]))


def run_fold(config: Config, plan: Plan, fold: Fold, accelerator: Accelerator) -> None:
    """Train, test and write one split."""
    try:
        training = Training(config, plan, fold, accelerator)
    except ValueError as error:  # a state of another run, a batch that cannot be filled, a crop that is too small
        raise SystemExit(str(error)) from error
    training.run()
    history, sizes = training.loop.history, {"n_train": len(fold.train), "n_test": len(fold.test)}
    result: dict[str, Any] = {"fold": fold.name, **sizes, "steps": training.steps, "history": history}
    result["identification"] = history[-1]["tests"]
    if plan.source.mos is not None:
        result["score"] = learn_score(plan, fold, training)
    if accelerator.is_main_process:
        found = training.predicted[-1]
        result["confusion"] = confusion(found.strengths, found.true).tolist()
        here = ("data", "manifest", "photos", "out", "clip", "clip_config", "init", "table")  # what only we know
        settings = {key: value for key, value in as_dict(config).items() if key not in here}
        about = {"data": plan.source.name, "files": plan.source.digest(), "metrics": result}
        provenance = {"recipe": "training/train_exiqa.py", "config": settings, **about}
        training.net.save(config.out / fold.name / "model.safetensors", provenance)
        write_json(config.out / fold.name / "metrics.json", result)
        training.loop.state.unlink(missing_ok=True)
        training.kept.unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def learn_score(plan: Plan, fold: Fold, training: "Training") -> dict[str, Any]:
    """Phase 2: fit the regressor to frozen probabilities, which are computed once; what it reaches on the test."""
    config, accelerator = training.config, training.accelerator
    if not training.kept.exists():
        kept = {"test": training.predicted[0].probs}
        train = training.tests[0]._replace(name="probabilities", numbers=tuple(fold.train))
        kept["train"] = predict(config, training.net, train, accelerator).probs
        if accelerator.is_main_process:
            with atomic_path(training.kept) as temporary:
                save_file(kept, temporary)
    accelerator.wait_for_everyone()
    kept, mos = load_file(training.kept), cast(Tensor, plan.source.mos)
    regressor = training.net.regressor.cpu()
    rates: dict[str, Any] = {"epochs": config.regressor_epochs, "lr": config.regressor_lr, "seed": config.seed}
    history = fit_regressor(regressor, kept["train"], mos[fold.train], batch=config.regressor_batch, **rates)
    with torch.no_grad():
        scores = regressor(kept["test"]).flatten().clamp(0, 1)  # as the model does
    report = metrics.report(scores.tolist(), mos[fold.test].tolist(), seed=0, resamples=1000)
    return {**report, "regressor_loss": history[-1]}


class Training:
    """Phase 1 of a split; the draws are functions of the step."""

    def __init__(self, config: Config, plan: Plan, fold: Fold, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        folder = config.out / fold.name
        self.kept = folder / "probabilities.safetensors"
        self.net = build(config, plan).to(accelerator.device)
        self.tests = tests_of(config, plan, fold, self.net)
        self.predicted: list[Predicted] = []  # of the last test
        self.source = plan.source.only(fold.train)
        self.images = self.drawn(self.source)
        parts, decay = parts_of(self.net), cast(float, config.weight_decay)
        decays = zip(parts, (decay, decay, 0.0), strict=True)
        optimizer = torch.optim.AdamW([{"params": part, "weight_decay": value} for part, value in decays])
        learnt = nn.ParameterList(parameter for part in parts for parameter in part)  # nothing else changes
        items = np.arange(len(fold.train) * (1 if plan.source.strengths is not None else config.passes))
        per_epoch = len(items) // config.batch
        self.steps = cast(int, config.epochs) * per_epoch
        self.loop = Loop(
            accelerator,
            folder,
            learnt,
            optimizer,
            losses=("loss",),
            pace=Pace(self.steps, per_epoch, config.log_every, config.save_every, config.batch, tests=config.tests),
            identity={**as_dict(config), "fold": fold.name, "files": plan.source.digest()},
        )
        share = {"process": accelerator.process_index, "processes": accelerator.num_processes, "seed": config.seed}
        self.batches = GlobalBatches(items, config.batch, self.steps, first=self.loop.first, **share)
        self.model, self.optimizer = accelerator.prepare(Identify(self.net), optimizer)

    def drawn(self, source: Source) -> Files | Mixtures:
        """Images as they are learnt from: changed in geometry alone and, if pristine, by what is to be named."""
        config, prepare = self.config, self.net.preprocess
        if source.strengths is not None:
            return Files(source, prepare.geometry, crop=config.crop, seed=config.seed)
        draws: dict[str, Any] = {"most": config.most, "clean_share": config.clean_share, "seed": config.seed}
        return Mixtures(source, crop=config.crop or min(prepare.size), shorter_edge=config.shorter_edge, **draws)

    def run(self) -> None:
        """All steps that are left."""
        workers, seed = self.config.workers, self.config.seed
        batches = loader(self.images, self.batches, stack, workers=workers, seed=seed)
        self.loop.run(self.step, batches, self.names, self.test)

    def names(self, step: int) -> list[str]:
        """The files in the batch of a step."""
        return [self.images.path(int(number)).name for number in self.batches.whole(step)[1]]

    def step(self, step: int, batch: Example) -> Tensor:
        """One optimizer step; its loss."""
        config, accelerator = self.config, self.accelerator
        seed = np.random.SeedSequence([config.seed, step, accelerator.process_index]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]))  # dropout's draws, too, are a function of the step
        rate = cosine(step / self.steps, config.warmup)
        peaks = (config.lr, config.text_lr, config.weight_lr)
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["lr"] = cast(float, peak) * rate
        self.model.train()
        loss = strength_loss(self.model(batch.pixels(accelerator.device)), batch.strengths.to(accelerator.device))
        self.optimizer.zero_grad()
        accelerator.backward(loss)
        self.optimizer.step()
        return loss.detach()[None]

    def test(self, steps: int) -> dict[str, Any]:
        """What the net says of its tests after so many steps, beside the truth."""
        self.predicted = [predict(self.config, self.net, test, self.accelerator) for test in self.tests]
        found: dict[str, dict[str, float]] = {}
        for test, (_, strengths, _, true) in zip(self.tests, self.predicted, strict=True):
            found[test.name] = {"n": len(true)}
            if self.source.named:
                found[test.name] |= identification_metrics(strengths, true, test.constant, self.source.levels)
            if ((true > 0).sum(1) == 1).all():
                found[test.name] |= top1_by_level(strengths, true)
        flat = {f"{name}/{key}": value for name, numbers in found.items() for key, value in numbers.items()}
        self.accelerator.log(flat, step=steps)
        return {"tests": found}


def summarise(config: Config, plan: Plan) -> None:
    """Print and write the table of all splits."""
    results = [json.loads((config.out / fold.name / "metrics.json").read_text()) for fold in plan.folds]
    medians, lines = summary(results)
    print("\n".join([plan.protocol, *lines]))
    counts = np.sum([result["confusion"] for result in results], 0)
    if counts.any():
        write_confusion(config.out, counts, plan.source.keys, f"{plan.protocol}: {counts.sum()} images")
    about = {"protocol": plan.protocol, "distortions": plan.source.keys, **medians}
    write_json(config.out / "metrics.json", {**about, "folds": results})


if __name__ == "__main__":
    main()
