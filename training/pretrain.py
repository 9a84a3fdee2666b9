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
import math
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import timm
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from attriqa.attributes import ATTRIBUTES
from attriqa.config import claim_folder, opt, parse_config, required
from attriqa.data import pseudo_labels
from attriqa.data.batches import GlobalBatches, central
from attriqa.data.crops import Crop, RandomCrops, stack
from attriqa.data.unlabelled import SourceError, TooManyUnreadableError, Unreadable, index_images
from attriqa.files import as_dict, write_json
from attriqa.models import checkpoint
from attriqa.models.attribute_net import AttributeNet
from attriqa.models.backbones import load_compact_trunk
from attriqa.training.pretraining import Objective, RawHeads, order_accuracy, shape_of, standardise, start_from
from attriqa.training.schedules import cosine
from attriqa.training.state import StateError, load_state, save_state
from attriqa.training.teachers import Teacher, teacher_of

Attribute = Literal["sharpness", "contrast", "brightness", "colorfulness", "noisiness"]
USER_ERRORS = (checkpoint.CheckpointError, pseudo_labels.LabelsError, SourceError, StateError, TooManyUnreadableError)


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


def main(argv: Sequence[str] | None = None) -> None:
    """Train to the end, from wherever the folder stands."""
    config = parse_config(Config, argv, __doc__)
    if config.smoke:
        small: dict[str, Any] = {"epochs": 2, "batch": 8, "shorter_edge": 72, "crop": 64, "held_out": 0.2}
        config = replace(config, **small, workers=0, log_every=2, save_every=2)
    if config.tracker not in (known := ["none", *map(str, get_available_trackers())]):
        raise SystemExit(
            f"--tracker: expected one whose package is installed ({', '.join(known)}), got {config.tracker}"
        )
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # or else Accelerate takes torchrun's processes for lone ones
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=config.out,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],  # one process scans all shards
        )
        run(config, accelerator)
    except USER_ERRORS as error:
        raise SystemExit(str(error)) from error


def run(config: Config, accelerator: Accelerator) -> None:
    """Prepare, train, write."""
    torch.set_float32_matmul_precision("high")
    if accelerator.is_main_process:
        claim_folder(config.out, config)
    accelerator.wait_for_everyone()
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
        some = load(config, data.crops, central(data.train[:256]))
        standardise(net, (crop.pixels(accelerator.device) for crop in some))
    net.pooled_dropout.p = config.pooled_dropout
    net.regressor.requires_grad_(False)  # it has no part in this
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda" and not config.freeze_norm:
        net.backbone = timm.layers.convert_sync_batchnorm(net.backbone)
    return net


def load(config: Config, crops: RandomCrops, batches: Any) -> "DataLoader[Crop]":
    """Batches of crops, which ``batches`` lists."""
    return DataLoader(
        crops,
        batch_sampler=batches,
        num_workers=config.workers,
        collate_fn=stack,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(config.seed),  # or else it draws from the global one
    )


@torch.no_grad()
def on_held_out(
    config: Config, data: Data, accelerator: Accelerator, heads: RawHeads | None, unreadable: dict[str, str]
) -> tuple[Tensor, Tensor]:
    """The heads' outputs and the labels of the held-out images' central crops, (N, 5) each, of all processes."""
    mine = data.held_out[accelerator.process_index :: accelerator.num_processes]
    raw, labels = [torch.empty(0, 5)], [torch.empty(0, 5)]
    for crop in load(config, data.held_out_crops, central(mine)):
        unreadable |= crop.unreadable
        images = crop.pixels(accelerator.device)
        labels.append(data.rate(images, crop.number).cpu())
        raw.append(labels[-1] if heads is None else heads.forward(images).cpu())  # not compiled: sizes vary
    everyone = gather_object([(torch.cat(raw), torch.cat(labels))])
    return torch.cat([pair[0] for pair in everyone]), torch.cat([pair[1] for pair in everyone])


def train(config: Config, data: Data, accelerator: Accelerator) -> None:
    """All steps that are left, and the files at the end."""
    training = Training(config, data, accelerator)
    training.heads.learn(freeze_norm=config.freeze_norm)
    first, steps = training.done["step"], training.steps
    quiet = not accelerator.is_local_main_process
    with tqdm(total=steps, initial=first, desc="pretrain", unit="step", disable=quiet) as bar:
        for step in range(first, steps):
            training.step(step)
            bar.update()
            done = step + 1
            epoch_over = done * config.accumulate // training.batches.per_epoch > training.epoch(step)
            if epoch_over or done == steps or done % config.log_every == 0 or done % config.save_every == 0:
                training.look(bar)
            if epoch_over and done < steps:
                training.validate()
            if done % config.save_every == 0:
                training.save()
    training.finish()


class Training:
    """The state of a run. ``done`` is what a checkpoint keeps beside tensors; the draws are functions of the step."""

    def __init__(self, config: Config, data: Data, accelerator: Accelerator) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        self.net = build(config, data, accelerator)
        learnt = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learnt, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
        self.state = config.out / "state.safetensors"
        self.identity = {**as_dict(config), "origin": list(data.origin), "images_digest": data.index.digest()}
        self.done: dict[str, Any] = {"step": 0, "loss_sum": 0.0, "loss_steps": 0, "unreadable": {}, "history": []}
        if self.state.exists():
            self.done = load_state(self.state, {"net": self.net}, optimizer, config=self.identity)
        self.unreadable = Unreadable(len(data.index))
        self.unreadable.add(self.done["unreadable"])
        self.steps = config.epochs * (len(data.train) // config.batch) // config.accumulate
        batches, first = self.steps * config.accumulate, self.done["step"] * config.accumulate
        share = {"process": accelerator.process_index, "processes": accelerator.num_processes}
        self.batches = GlobalBatches(data.train, config.batch, batches, first=first, seed=config.seed, **share)
        self.loader = iter(load(config, data.crops, self.batches))
        self.heads = RawHeads(self.net)
        if config.compile:
            self.heads.compile()
        self.model, self.optimizer = accelerator.prepare(self.heads, optimizer)
        known = None
        if config.loss == "l2":  # to standardise by: the labels that there are, or those of the held-out images
            stored = data.labels
            known = stored[data.train] if stored is not None else on_held_out(config, data, accelerator, None, {})[1]
        self.objective = Objective(config.loss, config.attributes, margin=config.margin, tau=config.tau, known=known)
        self.recent: list[Tensor] = []  # losses, on the device, that nobody has looked at
        self.clock = time.perf_counter()
        accelerator.init_trackers("attriqa-pretrain", {key: str(value) for key, value in as_dict(config).items()})

    def epoch(self, step: int) -> int:
        """Whole epochs before a step."""
        return step * self.config.accumulate // self.batches.per_epoch

    def step(self, step: int) -> None:
        """One optimizer step on ``accumulate`` batches."""
        config, accelerator = self.config, self.accelerator
        seed = np.random.SeedSequence([config.seed, step, accelerator.process_index]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]))  # dropout's draws, too, are a function of the step
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * cosine(step / self.steps, config.warmup)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=accelerator.device)
        for part in range(config.accumulate):
            crop = next(self.loader)
            self.done["unreadable"] |= crop.unreadable
            images = crop.pixels(accelerator.device)
            labels = self.data.rate(images, crop.number)
            with nullcontext() if part == config.accumulate - 1 else accelerator.no_sync(self.model):
                loss = self.objective(self.model(images), labels) / config.accumulate
                accelerator.backward(loss * accelerator.num_processes)  # see gather_rows
            total += loss.detach()
        self.optimizer.step()
        self.recent.append(total)
        self.done["step"] = step + 1

    def look(self, bar: "tqdm[Any]") -> None:
        """Wait for the losses since the last look: a loss that is not a number ends the run before it is saved."""
        losses = torch.stack(self.recent).tolist()
        first = self.done["step"] - len(losses)
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                self.give_up(step, loss)
        self.done["loss_sum"] += sum(losses)
        self.done["loss_steps"] += len(losses)
        self.recent.clear()
        self.count_unreadable()
        since, self.clock = self.clock, time.perf_counter()
        speed = len(losses) * self.config.batch * self.config.accumulate / (self.clock - since)
        rate = self.optimizer.param_groups[0]["lr"]
        self.accelerator.log({"loss": losses[-1], "lr": rate, "images_per_second": speed}, step=self.done["step"])
        bar.set_postfix(loss=f"{losses[-1]:.4f}")

    def count_unreadable(self) -> None:
        """Put together what the processes could not read."""
        for reasons in gather_object([self.done["unreadable"]]):
            for key in (
                sorted(reasons.keys() - self.unreadable.reasons.keys()) if self.accelerator.is_main_process else ()
            ):
                tqdm.write(f"unreadable, replaced: {key}: {reasons[key]}", file=sys.stderr)
            self.unreadable.add(reasons)
        self.done["unreadable"] = dict(self.unreadable.reasons)

    def give_up(self, step: int, loss: float) -> None:
        """Say which images were in the batch of a loss that is not a number, and stop."""
        path = self.config.out / "bad_batch.json"
        parts = range(step * self.config.accumulate, (step + 1) * self.config.accumulate)
        keys = [[self.data.index.keys[int(n)] for n in self.batches.whole(part)[1]] for part in parts]
        if self.accelerator.is_main_process:
            write_json(path, {"step": step, "epoch": self.epoch(step), "loss": str(loss), "keys": keys})
        raise SystemExit(
            f"the loss is {loss} at step {step}; {path} names the batch's images. The last checkpoint is whole"
        )

    def validate(self) -> Tensor:
        """Add a line to the history; returns the outputs on the held-out images (N, 5)."""
        self.heads.eval()
        raw, targets = on_held_out(self.config, self.data, self.accelerator, self.heads, self.done["unreadable"])
        self.count_unreadable()
        self.heads.learn(freeze_norm=self.config.freeze_norm)
        loss = self.done["loss_sum"] / max(1, self.done["loss_steps"])
        accuracy = order_accuracy(raw, targets, self.config.attributes)
        step = self.done["step"]
        self.done["history"].append({"epoch": self.epoch(step), "step": step, "loss": loss, "order_accuracy": accuracy})
        self.done["loss_sum"], self.done["loss_steps"] = 0.0, 0
        self.accelerator.log({f"order_accuracy/{key}": value for key, value in accuracy.items()}, step)
        return raw

    def save(self) -> None:
        """The checkpoint that a killed run goes on from."""
        if self.accelerator.is_main_process:
            save_state(self.state, {"net": self.net}, self.optimizer.optimizer, {**self.done, "config": self.identity})
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """The model, its numbers, and no more state."""
        raw = self.validate()
        if not self.accelerator.is_main_process:
            return
        self.net.calibrate_attributes(raw.to(self.accelerator.device))
        data = self.data
        result: dict[str, Any] = {**data.origin._asdict(), "images_digest": data.index.digest()}
        result |= {"images": len(data.index), "n_train": len(data.train), "n_held_out": len(data.held_out)}
        result |= {"steps": self.steps, "unreadable": self.done["unreadable"], "history": self.done["history"]}
        places = ("images", "labels", "teacher", "prompts", "out", "trunk", "init")
        settings = {key: value for key, value in as_dict(self.config).items() if key not in places}
        self.net.save(
            self.config.out / "model.safetensors",
            {"recipe": "training/pretrain.py", "config": settings, "metrics": result},
            prompts_hash=data.origin.prompts_hash,
            dtype=torch.float32,
        )
        write_json(self.config.out / "metrics.json", result)
        self.state.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
