"""Fine-tune AttributeNet to mean opinion scores (ATTIQA, section 4.2), its five heads kept on controlled ramps.

    accelerate launch training/finetune.py --clive ChallengeDB_release --photos photos --trunk trunk.safetensors

A fold goes through two phases:

1. probe: the encoder stands still. The statistics of several random crops of every photo and of the ramps are computed
   once, for all folds, and the heads and the regressor learn on them in seconds.
2. end to end (--epochs): random crops, all but the first blocks of the encoder learn, weights are averaged over time.

--protocol splits trains and tests on random 80/20 splits; all trains on every photo and writes the model to ship,
OUT/all/model.safetensors; both does both. A killed run goes on with the same command. OUT/metrics.json holds every
number printed.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from attriqa import checkpoint, metrics
from attriqa.datasets import read_clive
from attriqa.images import read
from attriqa.losses import ramp_ranking, score_loss
from attriqa.models.attribute_net import COMPACT_CONFIG, AttributeNet, AttributeNetConfig, Readout
from attriqa.models.backbones import COMPACT, load_compact_trunk
from attriqa.photos import RampGroups, RandomCrops
from attriqa.prompts import ATTRIBUTES
from attriqa.protocols import follow_ramps, random_split
from attriqa.recipe import as_dict, atomic_path, claim_folder, opt, parse_config, required, write_json
from attriqa.training_state import load_state, save_state, set_rates
from attriqa.views import VIEWS, look


@dataclass(frozen=True)
class Config:
    """What a run does."""

    clive: Path = required("folder ChallengeDB_release, in its official layout")
    photos: Path = required("folder of pristine photos for the attribute ramps")
    photo_pattern: str = opt("cid22_*", "which files of --photos are used")
    out: Path = opt(Path("runs/finetune"), "where everything goes")
    net: Literal["compact", "resnet50"] = opt("compact", "the compact net, or ATTIQA's ResNet-50")
    trunk: Path | None = opt(None, "safetensors file of the compact encoder's ImageNet trunk")
    pretrained: bool = opt(False, "start ResNet-50 from timm's ImageNet weights (downloads them)")
    protocol: Literal["splits", "all", "both"] = opt("both", "random 80/20 splits, one model of all photos, or both")
    splits: int = opt(5, "number of splits, seeded 0, 1, ...")
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
    margin: float = opt(0.5, "margin of the ranking loss, in units of a head's output")
    crosstalk: float = opt(0.3, "weight of what a ramp moves in the other four heads, within the ranking loss")
    workers: int = opt(2, "loading processes")
    seed: int = opt(0, "of everything random but the splits")
    smoke: bool = opt(False, "a size for tests: few photos, one split, one epoch")


class Fold(NamedTuple):
    """One training set, one test set (rows of the data), one folder."""

    name: str
    train: list[int]
    test: list[int]
    folder: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Run every fold that has no result yet, then summarise."""
    config = parse_config(Config, argv, __doc__)
    if config.smoke:
        config = smoke(config)
    accelerator = Accelerator(step_scheduler_with_optimizer=False)
    torch.set_float32_matmul_precision("high")
    data = Data(config)
    folds = data.folds(config)
    if accelerator.is_main_process:
        claim_folder(config.out, config)
    accelerator.wait_for_everyone()
    for fold in folds:
        if not (fold.folder / "metrics.json").exists():
            run_fold(config, data, fold, accelerator)
    if accelerator.is_main_process:
        summarise(config, folds)


def smoke(config: Config) -> Config:
    """The same run at a size for tests."""
    small: dict[str, Any] = {
        "splits": 1,
        "views": 2,
        "probe_epochs": 2,
        "epochs": 2,
        "batch": 4,
        "workers": 0,
        "ramp_levels": 3,
    }
    return Config(**{**config.__dict__, **small, "probe_batch": 8})


class Data:
    """The rated photos and the pristine ones, each with what is held out."""

    def __init__(self, config: Config) -> None:
        dataset = read_clive(config.clive)
        rows = dataset.rows[:40] if config.smoke else dataset.rows
        low, high = dataset.mos_range
        self.name = dataset.name
        self.paths = [row.path for row in rows]
        self.groups = [row.group for row in rows]
        self.mos = torch.tensor([(row.mos - low) / (high - low) for row in rows])  # [0, 1]
        photos = sorted(config.photos.glob(config.photo_pattern))
        if len(photos) < 6:
            raise ValueError(f"photos: expected 6 or more {config.photo_pattern} in {config.photos}, got {len(photos)}")
        photos = photos[:10] if config.smoke else photos
        train, test = random_split([path.name for path in photos], seed=0)
        self.ramp_train = [photos[i] for i in train]
        self.ramp_test = [photos[i] for i in test]

    def folds(self, config: Config) -> list[Fold]:
        """The folds that the protocol asks for."""
        everything = Fold("all", list(range(len(self.paths))), [], config.out / "all")
        splits = [
            Fold(f"split{i}", *random_split(self.groups, seed=i), config.out / f"split{i}")
            for i in range(config.splits)
        ]
        return {"all": [everything], "splits": splits, "both": [everything, *splits]}[config.protocol]


def run_fold(config: Config, data: Data, fold: Fold, accelerator: Accelerator) -> None:
    """Train, evaluate and write one fold."""
    set_seed(config.seed)
    net = build(config)
    if config.views:
        probe(config, data, fold, net, accelerator)
    if config.epochs:
        end_to_end(config, data, fold, net, accelerator)
    net.eval()
    if accelerator.is_main_process:
        calibrate(data, fold, net, accelerator)
        result = evaluate(data, fold, net, accelerator)
        provenance = {
            "data": {
                data.name: [data.paths[i].name for i in fold.train],
                "ramps": [path.name for path in data.ramp_train],
            },
            "ramp_test_photos": [path.name for path in data.ramp_test],
            "config": {
                key: value for key, value in as_dict(config).items() if key not in ("clive", "photos", "trunk", "out")
            },
            "metrics": result,
        }
        checkpoint.save(
            fold.folder / "model.safetensors",
            net.state_dict(),
            architecture=AttributeNet.__name__,
            config=as_dict(net.config),
            provenance=provenance,
        )
        write_json(fold.folder / "metrics.json", result)
        (fold.folder / "state.safetensors").unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def build(config: Config) -> AttributeNet:
    """The network before any training of ours."""
    net = AttributeNet(
        COMPACT_CONFIG if config.net == "compact" else AttributeNetConfig(), pretrained=config.pretrained
    )
    if config.trunk is not None:
        load_compact_trunk(net.backbone, config.trunk)
    return net.eval()


# Phase 1: probe


def probe(config: Config, data: Data, fold: Fold, net: AttributeNet, accelerator: Accelerator) -> None:
    """Train heads and regressor on kept statistics of the untouched encoder."""
    kept = statistics(config, data, net, accelerator)
    set_seed(config.seed)  # the same, whether they were computed now or before
    views, ramps = kept["views"].float(), kept["ramps"].float()  # (N, V, D), (G, L, D)
    train = torch.tensor(fold.train)
    net.pooled_mean.copy_(views[train].mean((0, 1)))
    net.pooled_std.copy_(views[train].std((0, 1)) + 0.02)  # some channels hardly move
    views, ramps = (views - net.pooled_mean) / net.pooled_std, (ramps - net.pooled_mean) / net.pooled_std
    nn.init.normal_(net.heads_in.weight, std=0.5 / views.shape[2] ** 0.5)
    nn.init.constant_(net.regressor[-1].bias, float(torch.logit(data.mos[train].mean())))  # type: ignore[arg-type]
    learnt = [*net.heads_in.parameters(), *net.heads_out.parameters(), *net.regressor.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=config.probe_lr, weight_decay=config.weight_decay)
    steps = config.probe_epochs * (len(train) // config.probe_batch)
    generator = torch.Generator().manual_seed(config.seed)
    net.train()
    for step in tqdm(range(steps), f"{fold.name}: probe", disable=not accelerator.is_local_main_process, leave=False):
        set_rates(optimizer, [config.probe_lr], step / steps)
        rows = train[torch.randperm(len(train), generator=generator)[: config.probe_batch]]
        view = torch.randint(views.shape[1], rows.shape, generator=generator)
        logit, _ = net.read(views[rows, view])
        loss = score_loss(logit, data.mos[rows])
        groups = torch.randperm(len(ramps), generator=generator)[:16]
        _, raw = net.read(ramps[groups].flatten(0, 1))
        raw = raw.unflatten(0, (len(groups), -1))
        level, attribute = kept["levels"][groups], groups % len(ATTRIBUTES)
        loss = loss + config.ramp_weight * ramp_ranking(raw, level, attribute, config.margin, config.crosstalk)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()


def statistics(config: Config, data: Data, net: AttributeNet, accelerator: Accelerator) -> dict[str, Tensor]:
    """Raw pooled statistics of every random crop and ramp, computed by the first fold and kept for the others."""
    path = config.out / "statistics.safetensors"
    if not path.exists() and accelerator.is_main_process:
        net = net.to(accelerator.device).to(memory_format=torch.channels_last)
        crops = RandomCrops(data.paths, net.config.shorter_edge, net.config.crop, config.seed)
        views = torch.empty(len(data.paths), config.views, net.pooled_mean.numel(), dtype=torch.float16)
        for view in range(config.views):
            crops.start_epoch(view)
            for images, index in tqdm(
                DataLoader(crops, 8, num_workers=config.workers), f"statistics: view {view + 1} of {config.views}"
            ):
                views[index, view] = pooled(net, images, accelerator).half()
        groups = RampGroups(data.ramp_train, 320, config.ramp_levels, config.seed)
        ramps, levels = [], []
        for images, level, _ in tqdm(DataLoader(groups, 2, num_workers=config.workers), "statistics: ramps"):
            ramps.append(pooled(net, images.flatten(0, 1), accelerator).half().unflatten(0, images.shape[:2]))
            levels.append(level)
        with atomic_path(path) as temporary:
            save_file({"views": views, "ramps": torch.cat(ramps), "levels": torch.cat(levels)}, temporary)
    accelerator.wait_for_everyone()
    return load_file(path)


@torch.no_grad()
def pooled(net: AttributeNet, images: Tensor, accelerator: Accelerator) -> Tensor:
    """Statistics of a batch, on the CPU."""
    with torch.autocast(accelerator.device.type, torch.bfloat16):
        return net.pool(images.to(accelerator.device).contiguous(memory_format=torch.channels_last)).cpu()


# Phase 2: end to end


def end_to_end(config: Config, data: Data, fold: Fold, net: AttributeNet, accelerator: Accelerator) -> None:
    """Train encoder, heads and regressor on random crops; leaves the averaged weights in ``net``."""
    if net.config.backbone == COMPACT:
        net.backbone.freeze(config.frozen_blocks)
    encoder = [parameter for parameter in net.backbone.parameters() if parameter.requires_grad]
    others = [parameter for name, parameter in net.named_parameters() if not name.startswith("backbone.")]
    optimizer = torch.optim.AdamW(
        [{"params": encoder}, {"params": others}], lr=config.lr, weight_decay=config.weight_decay
    )
    net.to(accelerator.device).to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average)
    )
    crops = RandomCrops([data.paths[i] for i in fold.train], net.config.shorter_edge, net.config.crop, config.seed)
    ramps = RampGroups(data.ramp_train, 224, config.ramp_levels, config.seed)
    state, first = fold.folder / "state.safetensors", 0
    modules = {"net": net, "average": average}
    identity = {**as_dict(config), "fold": fold.name}
    if state.exists():
        first = load_state(state, modules, optimizer, config=identity)["epoch"]
    mos = data.mos[fold.train]
    model, optimizer, loader = accelerator.prepare(
        Readout(net), optimizer, DataLoader(crops, config.batch, num_workers=config.workers, drop_last=True)
    )
    for epoch in range(first, config.epochs):
        set_seed(config.seed + epoch)  # dropout
        crops.start_epoch(epoch)
        ramps.start_epoch(epoch)
        train_epoch(config, epoch, model, average, optimizer, loader, ramps, mos, accelerator, fold.name)
        if accelerator.is_main_process:
            save_state(state, modules, optimizer.optimizer, {"epoch": epoch + 1, "config": identity})
    net.load_state_dict(average.module.state_dict())


def train_epoch(
    config: Config,
    epoch: int,
    model: nn.Module,
    average: torch.optim.swa_utils.AveragedModel,
    optimizer: Any,
    loader: Any,
    ramps: RampGroups,
    mos: Tensor,
    accelerator: Accelerator,
    name: str,
) -> None:
    """One pass over the training photos, with two ramps a step."""
    net = accelerator.unwrap_model(model).net
    net.train()
    net.backbone.eval()  # BatchNorm keeps ImageNet's statistics
    order = np.random.default_rng([config.seed, epoch]).permutation(len(ramps))
    title, quiet = f"{name}: epoch {epoch + 1} of {config.epochs}", not accelerator.is_local_main_process
    bar = tqdm(loader, title, disable=quiet, leave=False)
    for step, (images, index) in enumerate(bar):
        done = (epoch + step / len(loader)) / config.epochs
        set_rates(optimizer, [config.encoder_lr, config.lr], done)
        groups = [ramps[int(order[(2 * step + i) % len(order)])] for i in range(2)]
        rendered = torch.cat([group[0] for group in groups]).to(accelerator.device)
        level = torch.stack([group[1] for group in groups]).to(accelerator.device)
        with torch.autocast(accelerator.device.type, torch.bfloat16):
            logit, raw = model(images, rendered)
        which = torch.tensor([group[2] for group in groups])
        loss = score_loss(logit, mos[index.cpu()].to(logit))
        loss = loss + config.ramp_weight * ramp_ranking(
            raw.unflatten(0, level.shape), level, which, config.margin, config.crosstalk
        )
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        average.update_parameters(net)
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if not math.isfinite(loss.item()):
            raise SystemExit(f"{name}: the loss is {loss.item()} at epoch {epoch + 1}, step {step}")


@torch.no_grad()
def assess(net: AttributeNet, images: Tensor, view: Any, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Score (B,) and attributes (B, 5) of images of one size, averaged over the view's crops."""
    seen = look(images.to(accelerator.device), view, shorter_edge=net.config.shorter_edge, crop=net.config.crop)
    with torch.autocast(accelerator.device.type, torch.bfloat16):
        result = net(seen.flatten(0, 1).contiguous(memory_format=torch.channels_last))
    shape = seen.shape[:2]
    return result.score.unflatten(0, shape).mean(1).cpu(), result.attributes.unflatten(0, shape).mean(1).cpu()


@torch.no_grad()
def calibrate(data: Data, fold: Fold, net: AttributeNet, accelerator: Accelerator) -> None:
    """Put the attributes of a third of the training photos across (0, 1)."""
    raw = []
    for i in tqdm(fold.train[::3], f"{fold.name}: calibrate", leave=False):
        image = read(data.paths[i], shorter_edge=net.config.shorter_edge)[None]
        raw.append(net.read(pooled(net, image, accelerator).to(accelerator.device))[1])
    net.calibrate_attributes(torch.cat(raw))


def evaluate(data: Data, fold: Fold, net: AttributeNet, accelerator: Accelerator) -> dict[str, Any]:
    """Both views on the fold's test photos; how each head follows its own ramp on photos held out from the ramps."""
    result: dict[str, Any] = {"fold": fold.name, "n_train": len(fold.train)}
    mos = (data.mos[fold.test] * 100).tolist()
    edge = net.config.shorter_edge
    for view in VIEWS if fold.test else ():
        bar = tqdm(fold.test, f"{fold.name}: test, {view}", leave=False)
        scores = [assess(net, read(data.paths[i], shorter_edge=edge)[None], view, accelerator)[0].item() for i in bar]
        result[view] = metrics.report(scores, mos, seed=0, resamples=1000)
    table = follow_ramps(lambda images: assess(net, images, "full", accelerator)[1], data.ramp_test)
    result["ramp_srocc"] = {name: table.srocc[i][i] for i, name in enumerate(ATTRIBUTES)}
    result["ramp_photos"] = table.photos
    return result


def summarise(config: Config, folds: Sequence[Fold]) -> None:
    """Print and write the table of all folds."""
    results = [json.loads((fold.folder / "metrics.json").read_text()) for fold in folds]
    summary: dict[str, Any] = {"folds": results}
    if config.protocol != "all":
        summary["protocol"] = f"in-domain: CLIVE, random 80/20 splits seeded 0..{config.splits - 1}, median"
        for view in VIEWS:
            table = {
                key: [result[view][key] for result in results if view in result]
                for key in ("srocc", "plcc", "plcc_fitted", "krocc", "rmse", "n")
            }
            summary[view] = {key: float(np.median(values)) for key, values in table.items()}
            sroccs = " ".join(f"{value:.3f}" for value in table["srocc"])
            srocc, plcc = summary[view]["srocc"], summary[view]["plcc"]
            print(f"{view:9}  SROCC {srocc:.4f}  PLCC {plcc:.4f}  (SROCC per split: {sroccs})")
    for result in results:
        heads = "  ".join(f"{name} {value:.3f}" for name, value in result["ramp_srocc"].items())
        print(f"{result['fold']} ramps: {heads}")
    write_json(config.out / "metrics.json", summary)


if __name__ == "__main__":
    main()
