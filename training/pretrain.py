"""Pretrain AttributeNet: its heads learn to order images as a teacher does (ATTIQA, section 3, equations 3 and 4).

    accelerate launch training/pretrain.py --images imagenet/train --labels runs/labels --precision bf16 --compile
    torchrun --nproc_per_node 8 training/pretrain.py --images 'shards/{000..146}.tar' --labels runs/labels

The labels are those of training/label.py; --teacher instead rates the very crops that the net sees, as they come.
Images are changed in geometry only: what else would be augmented is what the heads are to tell.

--batch is the group whose members are compared, all pairs of it, over all processes: 2 processes with --batch 256 see
128 images each, compare all 256, and take the step that one process would take (BatchNorm apart: on GPUs its statistics
are of the whole batch, too; on CPUs of the process' share). --accumulate adds up the gradients of that many such
groups before a step; images of two groups are never compared.

Writes OUT/model.safetensors, which training/finetune.py starts from, and OUT/metrics.json: the order accuracy (share of
image pairs that a head orders as the teacher does) on images held out by a hash of their keys, after each epoch. A
killed run goes on with the same command; on a CPU it ends with the very weights of an uninterrupted one.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from attriqa.attributes import ATTRIBUTES
from attriqa.config import opt, required, run_command
from attriqa.data import pseudo_labels
from attriqa.data.batches import GlobalBatches, central
from attriqa.data.crops import Example, RandomCrops
from attriqa.data.unlabelled import TooManyUnreadableError, Unreadable, index_images
from attriqa.files import as_dict, write_json
from attriqa.models.attribute_net import AttributeNet
from attriqa.models.backbones import load_compact_trunk
from attriqa.training.loop import Loop, Pace, loader, seed_step
from attriqa.training.options import accelerator_of, begin
from attriqa.training.pretraining import Objective, RawHeads, order_accuracy, shape_of, standardise, start_from
from attriqa.training.schedules import cosine
from attriqa.training.teachers import Teacher, teacher_of

Attribute = Literal["sharpness", "contrast", "brightness", "colorfulness", "noisiness"]
PLACES = ("images", "labels", "teacher", "prompts", "out", "trunk", "init")  # what only this machine knows


@dataclass(frozen=True)
class Config:
    """What a run does."""

    images: str = required("a folder, a text file of paths, .tar shards or a pattern of them, 'shards-{000..009}.tar'")
    labels: Path | None = opt(None, "labels.parquet of training/label.py, or the folder it is in")
    teacher: str | None = opt(None, "instead of --labels: signal, or clip:MODEL:PRETRAINED (open_clip; tag or file)")
    prompts: Path | None = opt(None, "clip: prompts.json of select_prompts.py; without it, the pairs ATTIQA selected")
    out: Path = opt(Path("runs/pretrain"), "where everything goes")
    net: str = opt("resnet50", "the encoder: compact, or a name of timm")
    trunk: Path | None = opt(None, "safetensors file of the compact encoder's ImageNet trunk")
    pretrained: bool = opt(False, "start from timm's ImageNet weights (downloads them)")
    init: Path | None = opt(None, "attriqa checkpoint to start from")
    attributes: tuple[Attribute, ...] = opt(ATTRIBUTES, "heads that learn")
    loss: Literal["ranking", "l2"] = opt("ranking", "margin ranking, or ATTIQA's ablation: L2 to standardised labels")
    margin: float = opt(0.1, "of the ranking loss, in units of a head's output")
    tau: float = opt(0.0, "L2: the target is sigmoid(tau x label); 100 gives CLIP-IQA's softmax; 0: the label itself")
    epochs: int = opt(20, "passes over the images")
    batch: int = opt(256, "images that are compared with one another, over all processes")
    accumulate: int = opt(1, "such batches per optimizer step")
    lr: float = opt(0.05, "SGD: peak learning rate; falls to 0 along a cosine")
    warmup: float = opt(0.0, "share of the steps in which the rate rises to its peak")
    momentum: float = opt(0.9, "SGD's")
    weight_decay: float = opt(1e-4, "SGD's")
    shorter_edge: int = opt(256, "px that images are read at")
    crop: int = opt(224, "px, side of the random crop; the flip is horizontal")
    pooled_dropout: float = opt(0.0, "on what the heads see")
    freeze_norm: bool = opt(False, "BatchNorm keeps the statistics that it starts with")
    held_out: float = opt(0.02, "share of the images that order accuracy is measured on")
    held_out_most: int = opt(2000, "at most so many of them")
    precision: Literal["fp32", "bf16"] = opt("fp32", "of the encoder's activations")
    compile: bool = opt(False, "compile the net (torch.compile)")
    workers: int = opt(2, "loading processes per process; 0: none")
    log_every: int = opt(10, "steps between looks at the loss")
    save_every: int = opt(500, "steps between checkpoints")
    tracker: str = opt("none", "of Accelerate: tensorboard, wandb, ...")
    seed: int = opt(0, "of everything random")
    smoke: bool = opt(False, "a size for tests: two epochs of small crops")

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.teacher is None):
            raise ValueError("--labels, --teacher: expected one of them")
        for name, least in {"epochs": 1, "accumulate": 1, "log_every": 1, "save_every": 1, "batch": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(self, name)}")


def run(config: Config) -> None:
    """Train to the end, from wherever the folder stands."""
    if config.smoke:
        small: dict[str, Any] = {"epochs": 2, "batch": 8, "shorter_edge": 72, "crop": 64, "held_out": 0.2}
        config = replace(config, **small, workers=0, log_every=2, save_every=2)
    accelerator = accelerator_of(config, patience=timedelta(hours=6))  # one process scans all shards
    torch.set_float32_matmul_precision("high")
    begin(accelerator, config, "attriqa-pretrain")
    data = Data(config, accelerator)
    if not (config.out / "metrics.json").exists():
        train(config, data, accelerator)
    if accelerator.is_main_process:
        for row in json.loads((config.out / "metrics.json").read_text())["history"]:
            accuracy = "  ".join(f"{name} {value:.4f}" for name, value in row["order_accuracy"].items())
            print(f"epoch {row['epoch']}, step {row['step']}: loss {row['loss']:.5f}; order accuracy {accuracy}")
    accelerator.end_training()


class Data:
    """The images, who labels them, and which of them are held out."""

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        with accelerator.main_process_first():
            self.index = index_images(config.images, cache=config.out / "index.npz")
        self.teacher: Teacher | None = None
        self.labels: Tensor | None = None  # (N, 5), NaN for an image that has none
        rows = np.arange(len(self.index))
        if config.labels is not None:
            stored = pseudo_labels.load(config.labels)
            self.origin = stored.origin
            self.labels = torch.from_numpy(stored.align(self.index.keys))
            rows = np.flatnonzero(~np.isnan(self.labels[:, 0].numpy()))
            missing = len(self.index) - len(rows)
            if missing > Unreadable(len(self.index)).allowed:  # those that label.py could not read have none
                raise SystemExit(f"{missing} of {len(self.index)} images are not in {config.labels}: run label.py")
        elif config.teacher is not None:
            self.teacher = teacher_of(config.teacher, accelerator.device, prompts=config.prompts)
            self.origin = pseudo_labels.Origin(self.teacher.identity, self.teacher.prompts_hash)
        rows = rows[np.argsort(self.index.keys.digests()[rows], kind="stable")]  # by a hash of the key: any run's order
        count = min(config.held_out_most, max(2, round(config.held_out * len(rows))))
        self.held_out, self.train = rows[:count], rows[count:]
        self.crops, self.held_out_crops = (
            RandomCrops(self.index, some, shorter_edge=config.shorter_edge, crop=config.crop, seed=config.seed)
            for some in (self.train, self.held_out)
        )

    def rate(self, images: Tensor, numbers: Tensor) -> Tensor:
        """The teacher's scores (B, 5) of crops, or the stored ones of the images that they are of."""
        if self.labels is not None:
            return self.labels[numbers].to(images.device, non_blocking=True)
        return cast(Teacher, self.teacher)(images)


def build(config: Config, data: Data, accelerator: Accelerator) -> AttributeNet:
    """The network before the first step."""
    torch.manual_seed(config.seed)
    net = AttributeNet(shape_of(config.net), pretrained=config.pretrained)
    if config.init is not None:
        start_from(net, config.init, data.origin.prompts_hash)
    if config.trunk is not None:
        load_compact_trunk(net.backbone, config.trunk)
    net.to(accelerator.device).to(memory_format=torch.channels_last)
    if config.trunk is not None or config.pretrained:
        some = loader(data.crops, central(data.train[:256]), workers=config.workers)
        standardise(net, (crop.pixels(accelerator.device) for crop in some))
    net.pooled_dropout.p = config.pooled_dropout
    net.regressor.requires_grad_(False)  # it has no part in this
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda" and not config.freeze_norm:
        net.backbone = timm.layers.convert_sync_batchnorm(net.backbone)
    return net


def train(config: Config, data: Data, accelerator: Accelerator) -> None:
    """All steps that are left, and the files at the end."""
    net = build(config, data, accelerator)
    learnt = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learnt, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    group, per_epoch = config.accumulate, len(data.train) // config.batch
    steps = config.epochs * per_epoch // group
    pace = Pace(steps, Fraction(per_epoch, group), config.log_every, config.save_every, config.batch * group)
    identity = {**as_dict(config), "origin": list(data.origin), "images_digest": data.index.digest()}
    loop = Loop(accelerator, config.out, {"net": net}, optimizer, losses=("loss",), pace=pace, identity=identity)
    share = {"process": accelerator.process_index, "processes": accelerator.num_processes, "seed": config.seed}
    batches = GlobalBatches(data.train, config.batch, steps * group, first=loop.first * group, **share)
    heads = RawHeads(net)
    if config.compile:
        heads.compile()
    model, prepared = accelerator.prepare(heads, optimizer)
    watch = Watch(data, accelerator, loop)
    objective = objective_of(config, data, accelerator)
    raw = torch.empty(0)  # outputs on the held-out images, as the last test gave them

    def step(number: int, examples: Sequence[Example]) -> Tensor:
        seed_step(config.seed, number, accelerator.process_index)
        for parameters in prepared.param_groups:
            parameters["lr"] = config.lr * cosine(number / steps, config.warmup)
        prepared.zero_grad()
        total = torch.zeros((), device=accelerator.device)
        for part, example in enumerate(examples, 1):
            watch.see(example)
            images = example.pixels(accelerator.device)
            labels = data.rate(images, example.number)
            with nullcontext() if part == group else accelerator.no_sync(model):
                loss = objective(model(images), labels) / group
                accelerator.backward(loss * accelerator.num_processes)  # see gather_rows
            total += loss.detach()
        prepared.step()
        return total[None]

    def test(done: int) -> dict[str, Any]:
        nonlocal raw
        heads.eval()
        raw, labels = on_held_out(config, data, accelerator, heads, watch)
        watch.count()
        heads.learn(freeze_norm=config.freeze_norm)
        accuracy = order_accuracy(raw, labels, config.attributes)
        accelerator.log({f"order_accuracy/{key}": value for key, value in accuracy.items()}, done)
        return {"step": done, "order_accuracy": accuracy}

    def names(number: int) -> dict[str, list[list[str]]]:
        parts = range(number * group, (number + 1) * group)
        return {"keys": [[data.index.keys[item] for item in batches.numbers(part)] for part in parts]}

    heads.learn(freeze_norm=config.freeze_norm)
    examples = iter(loader(data.crops, batches, workers=config.workers, seed=config.seed))
    loop.run(step, zip(*[examples] * group, strict=False), names, test, watch.count)
    if accelerator.is_main_process:
        net.calibrate_attributes(raw.to(accelerator.device))
        write(config, data, net, loop)


class Watch:
    """Counts the images that could not be read, of all processes; a state keeps them, so that each is told once."""

    def __init__(self, data: Data, accelerator: Accelerator, loop: Loop) -> None:
        self.accelerator, self.counters = accelerator, loop.counters
        self.unreadable = Unreadable(len(data.index))
        self.unreadable.add(self.counters.setdefault("unreadable", {}))

    def see(self, example: Example) -> None:
        """Note what a batch says."""
        self.counters["unreadable"] |= {error.path: error.reason for error in example.replaced}

    def count(self) -> None:
        """Put together what the processes could not read.

        Raises:
            attriqa.data.unlabelled.TooManyUnreadableError: they are too many.
        """
        for reasons in gather_object([self.counters["unreadable"]]):
            new = sorted(reasons.keys() - self.unreadable.reasons.keys())
            for key in new if self.accelerator.is_main_process else ():
                tqdm.write(f"unreadable, replaced: {key}: {reasons[key]}", file=sys.stderr)
            self.unreadable.add(reasons)
        self.counters["unreadable"] = dict(self.unreadable.reasons)


@torch.no_grad()
def on_held_out(
    config: Config, data: Data, accelerator: Accelerator, heads: RawHeads | None, watch: Watch | None
) -> tuple[Tensor, Tensor]:
    """The heads' outputs and the labels of the held-out images' central crops, (N, 5) each, of all processes."""
    mine = data.held_out[accelerator.process_index :: accelerator.num_processes]
    raw, labels = [torch.empty(0, 5)], [torch.empty(0, 5)]
    for example in loader(data.held_out_crops, central(mine), workers=config.workers, seed=config.seed):
        if watch is not None:
            watch.see(example)
        images = example.pixels(accelerator.device)
        labels.append(data.rate(images, example.number).cpu())
        raw.append(labels[-1] if heads is None else heads.forward(images).cpu())  # not compiled: sizes vary
    everyone = gather_object([(torch.cat(raw), torch.cat(labels))])
    return torch.cat([pair[0] for pair in everyone]), torch.cat([pair[1] for pair in everyone])


def objective_of(config: Config, data: Data, accelerator: Accelerator) -> Objective:
    """The loss; L2 needs labels to standardise by: those that there are, or else those of the held-out images."""
    known = None
    if config.loss == "l2":
        stored = data.labels
        known = stored[data.train] if stored is not None else on_held_out(config, data, accelerator, None, None)[1]
    return Objective(config.loss, config.attributes, margin=config.margin, tau=config.tau, known=known)


def write(config: Config, data: Data, net: AttributeNet, loop: Loop) -> None:
    """The model, its numbers, and no more state."""
    result: dict[str, Any] = {**data.origin._asdict(), "images_digest": data.index.digest()}
    result |= {"images": len(data.index), "n_train": len(data.train), "n_held_out": len(data.held_out)}
    result |= {"steps": loop.pace.steps, "unreadable": loop.counters["unreadable"], "history": loop.history}
    settings = {key: value for key, value in as_dict(config).items() if key not in PLACES}
    net.save(
        config.out / "model.safetensors",
        {"recipe": "training/pretrain.py", "config": settings, "metrics": result},
        prompts_hash=data.origin.prompts_hash,
        dtype=torch.float32,
    )
    write_json(config.out / "metrics.json", result)
    loop.state.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    """What the command line says."""
    try:
        run_command({"": run}, argv, __doc__)
    except TooManyUnreadableError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
