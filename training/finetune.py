"""Fine-tune AttributeNet to mean opinion scores (ATTIQA, section 4.2), its five heads kept on controlled ramps.

    accelerate launch training/finetune.py --data clive=ChallengeDB_release --photos photos --trunk trunk.safetensors

A fold goes through two phases:

1. probe: the encoder stands still. The statistics of several random crops of every photo and of the ramps are computed
   once, for all folds, and the heads and the regressor learn on them in seconds.
2. end to end (--epochs): random crops, all but the first blocks of the encoder learn, weights are averaged over time.

--mode probe stops after the first; --mode linear lets it train the regressor alone (ATTIQA's linear probing, with
--init a checkpoint of training/pretrain.py). --protocol splits trains and tests on random 80/20 splits, official on the
authors' split; all trains on every photo and writes the model to ship, OUT/all/model.safetensors; both is all and
splits. A killed run goes on with the same command. OUT/metrics.json holds every number printed.
"""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from attriqa.attributes import ATTRIBUTES
from attriqa.config import claim_folder, opt, required, run_command
from attriqa.data.crops import PhotoCrops
from attriqa.data.protocol import Plan, Protocol, make_plan, refuse_learnt
from attriqa.data.ramps import RAMPS, RampGroups, find_photos
from attriqa.data.splits import Fold, random_split
from attriqa.evaluation.folds import evaluate_fold, mean_cosine, table_of_folds
from attriqa.evaluation.probes import follow_ramps
from attriqa.files import as_dict, atomic_path, write_json
from attriqa.images import read
from attriqa.models import load_attribute_net, load_with_provenance
from attriqa.models.assessment import Assessment
from attriqa.models.attribute_net import SHAPES, AttributeNet, Readout, Reads, rebuilt
from attriqa.models.backbones import COMPACT, fold_batch_norm, load_compact_trunk, load_squeezenet_trunk
from attriqa.models.views import View, average_over_view
from attriqa.training.losses import ramp_losses, score_loss
from attriqa.training.schedules import set_rates
from attriqa.training.state import load_state, save_state


@dataclass(frozen=True)
class Config:
    """What a run does."""

    data: str = required("rated data set in its official layout, NAME=ROOT, as clive=ChallengeDB_release")
    test: tuple[str, ...] | None = opt(None, "other data sets, NAME=ROOT, to test each fold's model on")
    photos: Path | None = opt(None, "folder of pristine photos for the attribute ramps; none: the heads get no ramps")
    photo_pattern: str = opt("cid22_*", "which files of --photos are used")
    out: Path = opt(Path("runs/finetune"), "where everything goes")
    net: Literal["compact", "squeezenet", "resnet50"] = opt("compact", "compact, SqueezeNet 1.1 or ATTIQA's ResNet-50")
    trunk: Path | None = opt(None, "ImageNet trunk: safetensors of the compact encoder, Keras' HDF5 of SqueezeNet")
    pretrained: bool = opt(False, "start ResNet-50 from timm's ImageNet weights (downloads them)")
    init: Path | None = opt(None, "checkpoint to start from, as training/pretrain.py writes it; or default, judge")
    regressor_reads: Reads | None = opt(None, "--init: regressor on features, attributes, both; none: as there")
    mode: Literal["full", "probe", "linear"] = opt("full", "what learns: all; all but the encoder; the regressor")
    protocol: Protocol = opt("both", "random 80/20 splits, the official split, every photo, or all and splits")
    splits: int = opt(5, "number of splits, seeded 0, 1, ...")
    fraction: float = opt(1.0, "share of each training side that is used, in (0, 1]")
    views: int = opt(4, "probe: random crops of each photo; 0 leaves the probe out")
    probe_epochs: int = opt(60, "probe: epochs")
    probe_lr: float = opt(1e-3, "probe: peak learning rate")
    probe_batch: int = opt(64, "probe: photos per step")
    epochs: int = opt(6, "end to end: epochs; 0 leaves it out")
    lr: float = opt(5e-5, "end to end: peak learning rate of heads and regressor")
    encoder_lr: float = opt(1e-4, "end to end: peak learning rate of the encoder")
    frozen_blocks: int = opt(6, "end to end: blocks of the compact encoder that stand still, after the stem")
    batch: int = opt(16, "end to end: photos per step and process")
    average: float = opt(0.98, "end to end: decay of the weights' moving average")
    weight_decay: float = opt(1e-2, "AdamW's, both phases")
    ramp_levels: int = opt(4, "renderings per ramp")
    ramp_weight: float = opt(0.2, "weight of the ramps' ranking loss")
    quality_weight: float = opt(0.4, "weight of the score's ranking along ramps that harm: blur, noise, departures")
    quality_slope: float = opt(2.0, "gap of score logits asked along a whole such ramp")
    departure_width: int = opt(64, "hidden features of the departure head, where ramps are learnt; 0: none new")
    margin: float = opt(0.5, "margin of the ranking loss, in units of a head's output")
    crosstalk: float = opt(0.3, "weight of what a ramp moves in the other four heads, within the ranking loss")
    workers: int = opt(2, "loading processes")
    seed: int = opt(0, "of everything random but the splits")
    smoke: bool = opt(False, "a size for tests: few photos, one split, one epoch")


class Run(NamedTuple):
    """One fold's training and test, and what it is done with."""

    config: Config
    plan: Plan
    fold: Fold
    ramp_train: list[Path]
    ramp_test: list[Path]
    accelerator: Accelerator

    @property
    def folder(self) -> Path:
        """Where its results go."""
        return self.config.out / self.fold.name


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    run_command({"": finetune}, argv, __doc__)


def finetune(config: Config) -> None:
    """Run every fold that has no result yet, then print their table."""
    if config.smoke:
        config = replace(config, splits=1, views=2, probe_epochs=2, probe_batch=8, epochs=2, batch=4, workers=0)
        config = replace(config, ramp_levels=3)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # or torchrun's processes count as lone ones
    torch.set_float32_matmul_precision("high")
    plan = make_plan(
        config.data,
        config.test or (),
        protocol=config.protocol,
        splits=config.splits,
        fraction=config.fraction,
        smoke=config.smoke,
    )
    ramps = ramp_photos(config)
    if config.init is not None:
        refuse_learnt(plan, load_with_provenance(config.init).provenance, f"--init: {config.init}")
    if accelerator.is_main_process:
        claim_folder(config.out, config)
    accelerator.wait_for_everyone()
    for fold in plan.folds:
        run = Run(config, plan, fold, *ramps, accelerator)
        if not (run.folder / "metrics.json").exists():
            run_fold(run)
    if accelerator.is_main_process:
        report(config, plan)


def ramp_photos(config: Config) -> tuple[list[Path], list[Path]]:
    """The pristine photos whose ramps are learnt from, and those that they are tested on."""
    if config.photos is None:
        return [], []
    photos = find_photos(config.photos, config.photo_pattern, 6)[: 10 if config.smoke else None]
    train, test = random_split([path.name for path in photos], seed=0)
    return [photos[i] for i in train], [photos[i] for i in test]


def run_fold(run: Run) -> None:
    """Train, evaluate and write one fold."""
    config, plan = run.config, run.plan
    set_seed(config.seed)
    net = build(config)
    if config.views:
        probe(run, net)
    if config.epochs and config.mode == "full":
        end_to_end(run, net)
    net.eval()
    if run.accelerator.is_main_process:
        calibrate(run, net)
        result = evaluate(run, net)
        here = ("data", "test", "photos", "trunk", "init", "out")  # what only this machine knows
        learnt = {plan.dataset.name: plan.train_paths(run.fold), "ramps": run.ramp_train}
        provenance = {
            "data": {name: [path.name for path in paths] for name, paths in learnt.items()},
            "ramp_test_photos": [path.name for path in run.ramp_test],
            "config": {key: value for key, value in as_dict(config).items() if key not in here},
            "init": None if config.init is None else load_with_provenance(config.init).provenance,
            "metrics": result,
        }
        net.save(run.folder / "model.safetensors", provenance)
        write_json(run.folder / "metrics.json", result)
        (run.folder / "state.safetensors").unlink(missing_ok=True)
    run.accelerator.wait_for_everyone()


def build(config: Config) -> AttributeNet:
    """The network before any training of ours."""
    width = config.departure_width if config.photos is not None and config.mode != "linear" else 0
    try:
        if config.init is not None:
            net = load_attribute_net(config.init)
            reads, width = config.regressor_reads or net.config.regressor_reads, net.config.departure_width or width
            return rebuilt(net, regressor_reads=reads, departure_width=width)
        net = AttributeNet(replace(SHAPES[config.net], departure_width=width), pretrained=config.pretrained)
        if config.trunk is not None:
            load_trunk = load_squeezenet_trunk if config.net == "squeezenet" else load_compact_trunk
            load_trunk(net.backbone, config.trunk)
    except (ValueError, OSError) as error:
        raise SystemExit(f"--{'trunk' if config.init is None else 'init'}: {error}") from error
    return net.eval()


def probe(run: Run, net: AttributeNet) -> None:
    """Phase 1: train heads and regressor (``linear``: the latter) on kept statistics of the untouched encoder."""
    config, plan, fold = run.config, run.plan, run.fold
    kept = statistics(run, net)
    set_seed(config.seed)  # the same, whether they were computed now or before
    views, rendered = kept["views"].float(), kept["ramps"].float()  # (N, V, D), (G, L, D)
    train = torch.tensor(fold.train)
    if config.init is None:
        net.pooled_mean.copy_(views[train].mean((0, 1)))
        net.pooled_std.copy_(views[train].std((0, 1)) + 0.02)  # some channels hardly move
        nn.init.normal_(net.heads_in.weight, std=0.5 / views.shape[2] ** 0.5)
    views, rendered = (views - net.pooled_mean) / net.pooled_std, (rendered - net.pooled_mean) / net.pooled_std
    nn.init.constant_(net.regressor[-1].bias, float(torch.logit(plan.mos[train].mean())))  # type: ignore[arg-type]
    learning = [net.regressor] if config.mode == "linear" else [net.regressor, *net.heads]
    learnt = [parameter for part in learning for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=config.probe_lr, weight_decay=config.weight_decay)
    steps = config.probe_epochs * max(1, len(train) // config.probe_batch)
    generator = torch.Generator().manual_seed(config.seed)
    net.train()
    bar = tqdm(range(steps), f"{fold.name}: probe", disable=not run.accelerator.is_local_main_process, leave=False)
    for step in bar:
        set_rates(optimizer, [config.probe_lr], step / steps)
        rows = train[torch.randperm(len(train), generator=generator)[: config.probe_batch]]
        view = torch.randint(views.shape[1], rows.shape, generator=generator)
        loss = score_loss(net.read(views[rows, view])[0], plan.mos[rows])
        if len(rendered):
            groups = torch.randperm(len(rendered), generator=generator)[:45]  # three of each ramp, about
            logit, raw = net.read(rendered[groups].flatten(0, 1))
            loss = loss + ramp_loss(config, logit, raw, kept["levels"][groups], groups % len(RAMPS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()


def statistics(run: Run, net: AttributeNet) -> dict[str, Tensor]:
    """Raw pooled statistics of every random crop and ramp, computed by the first fold and kept for the others."""
    config, accelerator = run.config, run.accelerator
    path = config.out / "statistics.safetensors"
    if not path.exists() and accelerator.is_main_process:
        net = net.to(accelerator.device).to(memory_format=torch.channels_last)
        paths = [row.path for row in run.plan.dataset.rows]
        crops = PhotoCrops(paths, net.config.shorter_edge, net.config.crop, config.seed)
        views = torch.empty(len(paths), config.views, net.pooled_mean.numel(), dtype=torch.float16)
        for view in range(config.views):
            crops.start_epoch(view)
            loader = DataLoader(crops, 8, num_workers=config.workers)
            for images, index in tqdm(loader, f"statistics: view {view + 1} of {config.views}"):
                views[index, view] = pooled(net, images, accelerator).half()
        groups = RampGroups(run.ramp_train, 320, config.ramp_levels, config.seed)
        rendered = [torch.empty(0, config.ramp_levels, views.shape[2], dtype=torch.float16)]
        levels = [torch.empty(0, config.ramp_levels)]
        for images, level, _ in tqdm(DataLoader(groups, 2, num_workers=config.workers), "statistics: ramps"):
            rendered.append(pooled(net, images.flatten(0, 1), accelerator).half().unflatten(0, images.shape[:2]))
            levels.append(level)
        with atomic_path(path) as temporary:
            save_file({"views": views, "ramps": torch.cat(rendered), "levels": torch.cat(levels)}, temporary)
    accelerator.wait_for_everyone()
    return load_file(path)


@torch.no_grad()
def pooled(net: AttributeNet, images: Tensor, accelerator: Accelerator) -> Tensor:
    """Raw statistics of a batch, on the CPU."""
    with torch.autocast(accelerator.device.type, torch.bfloat16):
        standardised = net.pool(images.to(accelerator.device).contiguous(memory_format=torch.channels_last))
    return (standardised * net.pooled_std + net.pooled_mean).cpu()


def end_to_end(run: Run, net: AttributeNet) -> None:
    """Phase 2: train encoder, heads and regressor on random crops; leaves the averaged weights in ``net``."""
    config, fold, accelerator = run.config, run.fold, run.accelerator
    if net.config.backbone == COMPACT:
        net.backbone.freeze(config.frozen_blocks)
    encoder = [parameter for parameter in net.backbone.parameters() if parameter.requires_grad]
    others = [parameter for name, parameter in net.named_parameters() if not name.startswith("backbone.")]
    optimizer = torch.optim.AdamW(
        [{"params": encoder}, {"params": others}], lr=config.lr, weight_decay=config.weight_decay
    )
    net.to(accelerator.device).to(memory_format=torch.channels_last)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(config.average))
    crops = PhotoCrops(run.plan.train_paths(fold), net.config.shorter_edge, net.config.crop, config.seed)
    groups = RampGroups(run.ramp_train, 224, config.ramp_levels, config.seed)
    state, first = run.folder / "state.safetensors", 0
    modules = {"net": net, "average": average}
    identity = {**as_dict(config), "fold": fold.name}
    if state.exists():
        first = load_state(state, modules, optimizer, config=identity)["epoch"]
    model, optimizer, loader = accelerator.prepare(
        Readout(net), optimizer, DataLoader(crops, config.batch, num_workers=config.workers, drop_last=True)
    )
    for epoch in range(first, config.epochs):
        set_seed(config.seed + epoch)  # dropout
        crops.start_epoch(epoch)
        groups.start_epoch(epoch)
        train_epoch(run, epoch, model, average, optimizer, loader, groups)
        if accelerator.is_main_process:
            save_state(state, modules, optimizer.optimizer, {"epoch": epoch + 1, "config": identity})
    net.load_state_dict(average.module.state_dict())


def train_epoch(
    run: Run, epoch: int, model: nn.Module, average: AveragedModel, optimizer: Any, loader: Any, ramps: RampGroups
) -> None:
    """One pass over the training photos, with two ramps a step."""
    config, accelerator, name, mos = run.config, run.accelerator, run.fold.name, run.plan.mos[run.fold.train]
    net = accelerator.unwrap_model(model).net
    net.train()
    net.backbone.eval()  # BatchNorm keeps ImageNet's statistics
    order = np.random.default_rng([config.seed, epoch]).permutation(len(ramps))
    title, quiet = f"{name}: epoch {epoch + 1} of {config.epochs}", not accelerator.is_local_main_process
    bar = tqdm(loader, title, disable=quiet, leave=False)
    for step, (images, index) in enumerate(bar):
        done = (epoch + step / len(loader)) / config.epochs
        set_rates(optimizer, [config.encoder_lr, config.lr], done)
        rendered = None
        if len(ramps):
            groups = [ramps[int(order[(2 * step + i) % len(order)])] for i in range(2)]
            rendered = torch.cat([group[0] for group in groups]).to(accelerator.device)
        with torch.autocast(accelerator.device.type, torch.bfloat16):
            logit, ramped, raw = model(images, rendered)
        loss = score_loss(logit, mos[index.cpu()].to(logit))
        if len(ramps):
            level = torch.stack([group[1] for group in groups]).to(accelerator.device)
            loss = loss + ramp_loss(config, ramped, raw, level, torch.tensor([group[2] for group in groups]))
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        average.update_parameters(net)
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if not math.isfinite(loss.item()):
            raise SystemExit(f"{name}: the loss is {loss.item()} at epoch {epoch + 1}, step {step}")


def ramp_loss(config: Config, logit: Tensor, raw: Tensor, level: Tensor, ramp: Tensor) -> Tensor:
    """What G ramps of L levels teach the heads and the score; logits (G * L,), raw attributes (G * L, 5)."""
    heads, score = ramp_losses(logit, raw, level, ramp, config.margin, config.crosstalk, config.quality_slope)
    return config.ramp_weight * heads + config.quality_weight * score


@torch.no_grad()
def assess(net: AttributeNet, images: Tensor, view: View, accelerator: Accelerator) -> Assessment:
    """Assess images of one size in a view, in fp32."""
    edge, crop = net.config.shorter_edge, net.config.crop
    return average_over_view(net, images.to(accelerator.device), view, shorter_edge=edge, crop=crop).map(Tensor.cpu)


@torch.no_grad()
def calibrate(run: Run, net: AttributeNet) -> None:
    """Put the attributes of a third of the training photos across (0, 1)."""
    raw = []
    for path in tqdm(run.plan.train_paths(run.fold)[::3], f"{run.fold.name}: calibrate", leave=False):
        image = read(path, shorter_edge=net.config.shorter_edge)[None].to(run.accelerator.device)
        raw.append(net.read(net.pool(image.contiguous(memory_format=torch.channels_last)))[1])
    net.calibrate_attributes(torch.cat(raw))


def evaluate(run: Run, net: AttributeNet) -> dict[str, Any]:
    """The fold's test files and the other data sets; how far the encoder's features went; how heads follow ramps."""
    tested = copy.deepcopy(net)
    fold_batch_norm(tested)  # as the reward does

    def score(image: Tensor, view: View) -> Tensor:
        return assess(tested, image, view, run.accelerator).score

    result = evaluate_fold(run.plan, run.fold, score, shorter_edge=net.config.shorter_edge)
    if run.fold.test and run.config.mode == "full":
        start = build(run.config).to(run.accelerator.device).to(memory_format=torch.channels_last)
        encoders = [lambda image, model=model: pooled(model, image, run.accelerator) for model in (start, net)]
        paths = run.plan.test_paths(run.fold)
        result["feature_cosine"] = mean_cosine(paths, *encoders, shorter_edge=net.config.shorter_edge)
    if run.ramp_test and not run.fold.test:  # minutes: for the model to ship
        table = follow_ramps(lambda images: assess(tested, images, "full", run.accelerator).attributes, run.ramp_test)
        result["ramp_srocc"] = {name: table.srocc[i][i] for i, name in enumerate(ATTRIBUTES)}
        result["ramp_photos"] = table.photos
    return result


def report(config: Config, plan: Plan) -> None:
    """Print and write the table of all folds."""
    results = [json.loads((config.out / fold.name / "metrics.json").read_text()) for fold in plan.folds]
    summary, lines = table_of_folds(plan, results)
    print("\n".join([plan.protocol, *lines]))
    moved = [result["feature_cosine"] for result in results if "feature_cosine" in result]
    if moved:
        summary["feature_cosine"] = float(np.median(moved))
        print(f"features before and after, median cosine: {summary['feature_cosine']:.3f}")
    for result in results:
        if "ramp_srocc" in result:
            heads = "  ".join(f"{name} {value:.3f}" for name, value in result["ramp_srocc"].items())
            print(f"{result['fold']} ramps: {heads}")
    write_json(config.out / "metrics.json", summary)


if __name__ == "__main__":
    main()
