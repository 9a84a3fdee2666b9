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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attriqa.config import check_least, opt, run_command
from attriqa.data.batches import GlobalBatches
from attriqa.data.crops import Example
from attriqa.data.distorted import Files, HeldOut, Mixtures, photo_tests
from attriqa.data.sources import DistortionPlan, DistortionSource, chosen, manifest_plan, photo_plan, rated_plan
from attriqa.data.splits import Fold
from attriqa.distortions.attributes import DATASET_ATTRIBUTES
from attriqa.evaluation import metrics
from attriqa.evaluation.identification import confusion, identification_metrics, top1_by_level, write_confusion
from attriqa.files import atomic_path
from attriqa.models.clip.towers import clip_of
from attriqa.models.exiqa import ExIQA, ExIQAConfig
from attriqa.training.exiqa import Identification, continued, fit_regressor, medians_of_splits, parts_of, table_of
from attriqa.training.folds import FoldRun, Forward, Trained, run_folds, write_medians
from attriqa.training.loop import Loop
from attriqa.training.losses import strength_loss
from attriqa.training.options import CLIPRun
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
        check_least(self, splits=1, passes=1, test_passes=1, single_passes=1, batch=1, tests=1)
        check_least(self, regressor_epochs=1, regressor_batch=1)
        if self.epochs is not None and self.epochs < 0:
            raise ValueError(f"--epochs: expected at least 0, got {self.epochs}")


def settled(config: Config) -> Config:
    """The configuration with the paper's numbers in the place of what was left open."""
    everything = config.tune == "all"
    name = (config.data or "").partition("=")[0].lower()
    lr = config.lr if config.lr is not None else 5e-5 if everything else 2e-3
    defaults: dict[str, Any] = {
        "prompts": 0 if everything else PROMPTS.get(name, 100),
        "epochs": 5 if everything else 100,
    }
    defaults |= {"lr": lr, "text_lr": lr, "weight_decay": 1e-2 if everything else 0.0}
    config = replace(config, **{key: value for key, value in defaults.items() if getattr(config, key) is None})
    if config.smoke:
        small: dict[str, Any] = {"batch": 8, "passes": 1, "test_passes": 1, "single_passes": 1, "tests": 2}
        small |= {"epochs": min(2, config.epochs or 0), "regressor_epochs": 3, "workers": 0, "log_every": 1}
        config = replace(config, **small, save_every=2)
    return config


def run(config: Config) -> None:
    """Run every split that has no result yet, then print medians."""
    config = settled(config)
    plan = plan_of(config)
    build(config, plan)  # a fault of the model is found before hours of work
    results = run_folds(config, "exiqa", [fold.name for fold in plan.folds], partial(run_fold, config, plan))
    if results is not None:
        about = {"protocol": plan.protocol, "distortions": plan.source.keys}
        write_medians(config.out, results, medians_of_splits(results), plan.protocol, about)
        counts = np.sum([result["confusion"] for result in results], 0)
        if counts.any():
            write_confusion(config.out, counts, plan.source.keys, f"{plan.protocol}: {counts.sum()} images")


def plan_of(config: Config) -> DistortionPlan:
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


def build(config: Config, plan: DistortionPlan) -> ExIQA:
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


def tests_of(config: Config, plan: DistortionPlan, fold: Fold, net: ExIQA) -> list[HeldOut]:
    """A fold's tests: its images as they are, or its photos with several distortions and with single ones."""
    source = plan.source
    if source.strengths is not None:
        images = Files(source, net.preprocess.geometry, crop=config.crop, seed=config.seed)
        return [HeldOut("test", images, tuple(fold.test), source.strengths[fold.train].mean(0))]
    draws: dict[str, Any] = {"most": config.most, "passes": config.test_passes, "single_passes": config.single_passes}
    draws |= {"crop": config.crop or min(net.preprocess.size), "shorter_edge": config.shorter_edge}
    return photo_tests(source, fold.test, seed=config.seed, **draws)


def drawn(config: Config, source: DistortionSource, net: ExIQA) -> Files | Mixtures:
    """Images as they are learnt from: changed in geometry alone and, if pristine, by what is to be named."""
    if source.strengths is not None:
        return Files(source, net.preprocess.geometry, crop=config.crop, seed=config.seed)
    draws: dict[str, Any] = {"most": config.most, "clean_share": config.clean_share, "seed": config.seed}
    draws |= {"crop": config.crop or min(net.preprocess.size), "shorter_edge": config.shorter_edge}
    return Mixtures(source, **draws)


def run_fold(config: Config, plan: DistortionPlan, number: int, run: FoldRun) -> Trained:
    """Train and test one split."""
    fold, net = plan.folds[number], build(config, plan).to(run.device)
    tests = tests_of(config, plan, fold, net)
    loop, last = identify(config, plan, fold, net, tests, run)
    result: dict[str, Any] = {"fold": fold.name, "n_train": len(fold.train), "n_test": len(fold.test)}
    result |= {"steps": loop.pace.steps, "history": loop.history, "identification": loop.history[-1]["tests"]}
    if plan.source.mos is not None:
        result["score"] = learn_score(config, plan, fold, net, tests[0], last[0].probs, run)
    result["confusion"] = confusion(last[-1].strengths, last[-1].true).tolist()
    return Trained(net, result, {"data": plan.source.name, "files": plan.source.digest()})


def look(net: ExIQA, test: HeldOut, run: FoldRun) -> Identification:
    """What the net says of the images of a test."""

    def predict(batch: Example) -> Identification:
        return Identification(*net.identify(batch.pixels(run.device)), batch.strengths)

    return Identification(*run.predict(net, predict, test.images, test.name, test.numbers, batch=32))


def identify(
    config: Config, plan: DistortionPlan, fold: Fold, net: ExIQA, tests: Sequence[HeldOut], run: FoldRun
) -> tuple[Loop, list[Identification]]:
    """Phase 1: learn to name distortions; what the last tests gave."""
    source = plan.source.only(fold.train)
    images = drawn(config, source, net)
    parts, decay = parts_of(net), cast(float, config.weight_decay)
    decays = zip(parts, (decay, decay, 0.0), strict=True)
    optimizer = torch.optim.AdamW([{"params": part, "weight_decay": value} for part, value in decays])
    learnt = nn.ParameterList(parameter for part in parts for parameter in part)  # nothing else changes
    items = np.arange(len(fold.train) * (1 if source.strengths is not None else config.passes))
    per_epoch = len(items) // config.batch
    steps = cast(int, config.epochs) * per_epoch
    pace: dict[str, Any] = {"steps": steps, "per_epoch": per_epoch, "batch": config.batch, "tests": config.tests}
    loop = run.loop(learnt, optimizer, losses=("loss",), **pace, files=plan.source.digest())
    last: list[Identification] = []

    def losses(model: nn.Module, step: int, batch: Example) -> Tensor:
        return strength_loss(model(batch.pixels(run.device)), batch.strengths.to(run.device))[None]

    def rates(step: int) -> list[float]:
        share = cosine(step / steps, config.warmup)
        return [cast(float, peak) * share for peak in (config.lr, config.text_lr, config.weight_lr)]

    def test(done: int) -> dict[str, Any]:
        last[:] = [look(net, held_out, run) for held_out in tests]
        found: dict[str, dict[str, float]] = {}
        for held_out, (strengths, _, true) in zip(tests, last, strict=True):
            found[held_out.name] = {"n": len(true)}
            if source.named:
                found[held_out.name] |= identification_metrics(strengths, true, held_out.constant, source.levels)
            if ((true > 0).sum(1) == 1).all():
                found[held_out.name] |= top1_by_level(strengths, true)
        flat = {f"{name}/{key}": value for name, numbers in found.items() for key, value in numbers.items()}
        run.accelerator.log(flat, step=done)
        return {"tests": found}

    batches = partial(GlobalBatches, items, config.batch, steps)
    run.train(loop, Forward(net, partial(strengths_of, net)), images, batches, losses, rates, test)
    return loop, last


def strengths_of(net: ExIQA, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, D)."""
    return net.identify(images).strengths


def learn_score(
    config: Config, plan: DistortionPlan, fold: Fold, net: ExIQA, test: HeldOut, probs: Tensor, run: FoldRun
) -> dict[str, Any]:
    """Phase 2: fit the regressor to frozen probabilities, which are computed once; what it reaches on the test."""
    path = run.folder / "probabilities.safetensors"  # what a killed run finds here it does not compute again
    if not path.exists():
        train = test._replace(name="probabilities", numbers=tuple(fold.train))
        kept = {"test": probs, "train": look(net, train, run).probs}
        if run.accelerator.is_main_process:
            with atomic_path(path) as temporary:
                save_file(kept, temporary)
    run.accelerator.wait_for_everyone()
    kept, mos = load_file(path), cast(Tensor, plan.source.mos)
    regressor = net.regressor.cpu()
    rates: dict[str, Any] = {"epochs": config.regressor_epochs, "lr": config.regressor_lr, "seed": config.seed}
    history = fit_regressor(regressor, kept["train"], mos[fold.train], batch=config.regressor_batch, **rates)
    with torch.no_grad():
        scores = regressor(kept["test"]).flatten().clamp(0, 1)  # as the model does
    report = metrics.report(scores.tolist(), mos[fold.test].tolist(), seed=0, resamples=1000)
    return {**report, "regressor_loss": history[-1]}


def main(argv: Sequence[str] | None = None) -> None:
    """What the command line says."""
    run_command({"": run}, argv, __doc__)


if __name__ == "__main__":
    main()
