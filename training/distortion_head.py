"""Teach AttributeNet's distortion head which distortions an image shows, and how strong (ExIQA, equation 8).

    python training/distortion_head.py --photos photos --init runs/finetune/all/model.safetensors

The encoder stands still. Random crops of pristine photos are distorted by recipes drawn anew for each round over the
photos (`attriqa.data.distorted`); their pooled statistics are computed once, a file per round, and the head learns on
them in a minute. A killed run goes on with the same command.

Score and attributes of --init stay as they are. With --regressor-reads attributes or both the regressor is a new one,
which reads the 125 attribute probabilities: training/finetune.py --init OUT/model.safetensors teaches it.

OUT/metrics.json: mean average precision, accuracy in bins and RMSE of the strengths on photos that the head has not
seen, beside what the two constant predictors reach. OUT/model.safetensors is the net with its head.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from attriqa.config import claim_folder, opt, required, run_command
from attriqa.data.distorted import DistortedCrops
from attriqa.data.ramps import find_photos
from attriqa.data.splits import random_split
from attriqa.evaluation.identification import identification_metrics
from attriqa.files import as_dict, write_json
from attriqa.models import AttributeNet, load_attribute_net, load_with_provenance
from attriqa.models.attribute_net import COMPACT_CONFIG
from attriqa.models.backbones import load_compact_trunk
from attriqa.training.losses import strength_loss
from attriqa.training.schedules import set_rates
from attriqa.training.state import keep


@dataclass(frozen=True)
class Config:
    """What a run does."""

    photos: Path = required("folder of pristine photos")
    photo_pattern: str = opt("cid22_*", "which files of --photos are used")
    out: Path = opt(Path("runs/distortion_head"), "where everything goes")
    init: Path | None = opt(None, "AttributeNet checkpoint that gets the head")
    trunk: Path | None = opt(None, "instead of --init: safetensors file of the compact encoder's ImageNet trunk")
    regressor_reads: Literal["features", "attributes", "both"] = opt("features", "what the regressor sees")
    width: int = opt(64, "hidden features of the head")
    rounds: int = opt(64, "distorted crops of each photo to learn from")
    most: int = opt(4, "the greatest number of distortions on a crop to learn from")
    test_rounds: int = opt(8, "distorted crops of each unseen photo")
    test_most: int = opt(3, "the greatest number of distortions on those")
    crop: int = opt(320, "px, side of the crops")
    epochs: int = opt(40, "of the head, over the kept statistics")
    batch: int = opt(256, "crops per step")
    lr: float = opt(1e-3, "AdamW: peak learning rate; falls to 0 along a cosine")
    weight_decay: float = opt(0.02, "AdamW's")
    workers: int = opt(2, "loading processes")
    seed: int = opt(0, "of everything random but the split of the photos")
    smoke: bool = opt(False, "a size for tests: a few photos, two rounds of small crops")

    def __post_init__(self) -> None:
        if (self.init is None) == (self.trunk is None):
            raise ValueError("--init, --trunk: expected one of them")
        for name in ("rounds", "test_rounds", "epochs", "width", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(self, name)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """Compute what is missing, train, write."""
    if config.smoke:
        config = replace(config, rounds=2, test_rounds=1, crop=64, epochs=3, batch=8, workers=0)
    claim_folder(config.out, config)
    photos = find_photos(config.photos, config.photo_pattern, 6)[: 10 if config.smoke else None]
    learnt, unseen = ([photos[i] for i in side] for side in random_split([path.name for path in photos], seed=0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net, provenance = build(config)
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        net.to(device)
        crops = DistortedCrops(learnt, crop=config.crop, most=config.most, seed=config.seed)
        tests = DistortedCrops(unseen, crop=config.crop, most=config.test_most, seed=config.seed + 1, clean_share=0)
        train = statistics(config, net, crops, config.rounds, "train")
        test = statistics(config, net, tests, config.test_rounds, "test")
        if config.trunk is not None:
            clean = DistortedCrops(learnt, crop=config.crop, most=1, seed=config.seed, clean_share=1)
            standardise(net, statistics(config, net, clean, 2, "clean")[0])
        torch.manual_seed(config.seed)  # the same dropout, whether the statistics were computed now or before
        fit(config, net, *train)
        metrics = evaluate(net, *test, train[1].mean(0))
    metrics["protocol"] = (
        f"1 to {config.test_most} distortions on {config.crop}-pixel crops of {len(unseen)} photos that the head has "
        f"not seen; learnt from {len(train[1])} crops of {len(learnt)} photos with up to {config.most}"
    )
    here = ("photos", "trunk", "init", "out")  # what only this machine knows
    record = {
        "config": {key: value for key, value in as_dict(config).items() if key not in here},
        "photos": [path.name for path in learnt],
        "test_photos": [path.name for path in unseen],
        "metrics": metrics,
    }
    net.save(config.out / "model.safetensors", provenance | {"distortion_head": record})
    write_json(config.out / "metrics.json", metrics)
    print(json.dumps(metrics, indent=2))


def build(config: Config) -> tuple[AttributeNet, dict[str, Any]]:
    """The net with a new head, its other weights those of ``--init``, and what that checkpoint says of its origin."""
    changes = {"distortion_width": config.width, "regressor_reads": config.regressor_reads}
    if config.init is None:
        net = AttributeNet(replace(COMPACT_CONFIG, **changes))  # type: ignore[arg-type]
        assert config.trunk is not None
        load_compact_trunk(net.backbone, config.trunk)
        nn.init.normal_(net.heads_in.weight, std=0.5 / net.pooled_mean.numel() ** 0.5)
        return net.eval(), {}
    start = load_attribute_net(config.init)
    net = AttributeNet(replace(start.config, **changes))  # type: ignore[arg-type]
    new = ["distortion_head.", *(["regressor."] if config.regressor_reads != "features" else [])]
    state = {name: value for name, value in start.state_dict().items() if not name.startswith(tuple(new))}
    net.load_state_dict(net.state_dict() | state)
    return net.eval(), load_with_provenance(config.init).provenance


@torch.no_grad()
def statistics(
    config: Config, net: AttributeNet, crops: DistortedCrops, rounds: int, name: str
) -> tuple[Tensor, Tensor]:
    """Raw pooled statistics (N, D) and strengths (N, 25) of every crop of all rounds; a file per round is kept."""

    def pooled(number: int) -> dict[str, Tensor]:
        crops.start_epoch(number)
        raw, strengths = [], []
        for images, target in DataLoader(crops, 8, num_workers=config.workers):
            images = images.to(net.pooled_mean.device).contiguous(memory_format=torch.channels_last)
            raw.append((net.pool(images) * net.pooled_std + net.pooled_mean).half().cpu())
            strengths.append(target)
        return {"pooled": torch.cat(raw), "strengths": torch.cat(strengths)}

    kept = [
        keep(config.out / "statistics" / f"{name}-{number:04d}.safetensors", partial(pooled, number))
        for number in tqdm(range(rounds), f"statistics: {name}", unit="round")
    ]
    return torch.cat([part["pooled"] for part in kept]), torch.cat([part["strengths"] for part in kept])


def standardise(net: AttributeNet, pooled: Tensor) -> None:
    """Give a net without training of ours the mean and deviation of its statistics over undistorted crops."""
    net.pooled_mean.copy_(pooled.float().mean(0))
    net.pooled_std.copy_(pooled.float().std(0) + 0.02)  # some channels hardly move


def fit(config: Config, net: AttributeNet, pooled: Tensor, strengths: Tensor) -> None:
    """Train the head on kept statistics."""
    head, device = net.distortion_head, net.pooled_mean.device
    assert head is not None
    with torch.no_grad():  # start from how often each distortion is there
        rate = strengths.mean(0).clamp(1e-3, 1 - 1e-3).repeat_interleave(5)
        last = head.attributes[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_(torch.logit(rate))
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    steps = config.epochs * max(1, len(pooled) // config.batch)
    head.train()
    bar = tqdm(range(steps), "head", unit="step")
    for step in bar:
        set_rates(optimizer, [config.lr], step / steps)
        rows = torch.randint(len(pooled), (config.batch,), generator=generator)
        seen = (pooled[rows].to(device).float() - net.pooled_mean) / net.pooled_std
        loss = strength_loss(head(seen).strengths, strengths[rows].to(device))
        if not loss.isfinite():
            raise SystemExit(f"the loss is {loss.item()} at step {step}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    head.eval()


@torch.no_grad()
def evaluate(net: AttributeNet, pooled: Tensor, strengths: Tensor, mean: Tensor) -> dict[str, Any]:
    """How well the head tells the strengths, beside the constant predictors; ``mean`` is that of the learnt crops."""
    assert net.distortion_head is not None
    seen = (pooled.to(net.pooled_mean.device).float() - net.pooled_mean) / net.pooled_std
    return dict(identification_metrics(net.distortion_head(seen).strengths.cpu(), strengths, mean))


if __name__ == "__main__":
    main()
