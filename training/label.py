"""Pseudo-labels: a teacher's five attribute scores of every image of a folder, a list or WebDataset shards.

    accelerate launch training/label.py --images imagenet/train --teacher clip:ViT-B-16:openai --out runs/labels
    torchrun --nproc_per_node 8 training/label.py --images 'shards/train-{0000..0146}.tar' --out runs/labels

Writes OUT/labels.parquet, one row per image (see `attriqa.data.pseudo_labels`), for training/pretrain.py. A label that
is there is never computed again: a killed run goes on with the same command and loses at most one part per process, and
a source that has grown costs only what is new in it. Labels of another teacher in OUT are refused.

An image that cannot be read is told, counted and left out (OUT/unreadable.json); more than 0.1 % of them, and more than
one, end the run, with the labels made so far kept.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from attriqa.attributes import ATTRIBUTES
from attriqa.config import claim_folder, opt, required, run_command
from attriqa.data import pseudo_labels
from attriqa.data.unlabelled import ImageIndex, TooManyUnreadableError, Unreadable, index_images
from attriqa.files import write_json
from attriqa.images import ImageError
from attriqa.training.teachers import Teacher, teacher_of

Item = tuple[int, Tensor | str]  # an image's number; its pixels (3, H, W), or why there are none


@dataclass(frozen=True)
class Config:
    """What a run does."""

    images: str = required("a folder, a text file of paths, .tar shards or a pattern of them, 'shards-{000..009}.tar'")
    teacher: str = opt("signal", "signal, or clip:MODEL:PRETRAINED (an open_clip name and its tag or a local file)")
    prompts: Path | None = opt(None, "clip: prompts.json of select_prompts.py; without it, the pairs ATTIQA selected")
    positional_embedding: bool = opt(True, "clip: keep it, and the model's own crop; without it, any size as it is")
    shorter_edge: int | None = opt(None, "signal: px that images are read at; without it, their own size")
    out: Path = opt(Path("runs/labels"), "where labels.parquet goes, and everything else")
    batch: int = opt(32, "images that the teacher sees at once, where they have one size")
    part: int = opt(4096, "images per part file and process: what a killed run loses at most")
    workers: int = opt(2, "loading processes per process; 0: none")
    seed: int = opt(0, "unused: nothing here is random")
    smoke: bool = opt(False, "a size for tests: small batches and parts, no loading process")

    def __post_init__(self) -> None:
        for name in ("batch", "part"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and label."""
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """Label what has no label yet, then merge the parts."""
    if config.smoke:
        config = replace(config, batch=4, part=8, workers=0)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or else Accelerate takes torchrun's processes for lone ones
        # A process that is done early waits for the others, and at the start all wait for the scan of the shards.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    teacher = teacher_of(
        config.teacher,
        accelerator.device,
        prompts=config.prompts,
        positional_embedding=config.positional_embedding,
        shorter_edge=config.shorter_edge,
    )
    origin = pseudo_labels.Origin(teacher.identity, teacher.prompts_hash)
    try:
        stored = pseudo_labels.load(config.out, origin)  # labels of another teacher end the program
    except FileNotFoundError:
        stored = None
    if accelerator.is_main_process:
        claim_folder(config.out, config)
    with accelerator.main_process_first():
        index = index_images(config.images, cache=config.out / "index.npz")
    todo = np.arange(len(index)) if stored is None else np.flatnonzero(np.isnan(stored.align(index.keys)[:, 0]))
    accelerator.wait_for_everyone()  # before anyone writes a part that another would take for an older one
    mine = todo[accelerator.process_index :: accelerator.num_processes]
    unreadable = Unreadable(len(index))
    try:
        label(config, index, mine, teacher, origin, unreadable, accelerator)
        for reasons in gather_object([unreadable.reasons]):
            unreadable.add(reasons)
    except TooManyUnreadableError as error:
        write_json(config.out / "unreadable.json", unreadable.reasons)
        raise SystemExit(f"{error}\nThe parts written so far are kept in {config.out}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(config.out / "unreadable.json", unreadable.reasons)
        pseudo_labels.merge(config.out, origin)
        report(config, index, origin, unreadable)
    accelerator.end_training()


class Pictures(Dataset[Item]):
    """Whole images as the teacher wants to see them; its resize and crop is work for the loading processes."""

    def __init__(self, index: ImageIndex, which: NDArray[np.int64], teacher: Teacher) -> None:
        self.index = index
        self.which = which
        self.teacher = teacher

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, position: int) -> Item:
        number = int(self.which[position])
        try:
            image = self.index.read(number, shorter_edge=self.teacher.shorter_edge)
            return number, self.teacher.prepare(image[None])[0]
        except ImageError as error:
            return number, error.reason


def label(
    config: Config,
    index: ImageIndex,
    mine: NDArray[np.int64],
    teacher: Teacher,
    origin: pseudo_labels.Origin,
    unreadable: Unreadable,
    accelerator: Accelerator,
) -> None:
    """Score the images ``mine`` and write them in parts, all but those that cannot be read."""
    pictures = Pictures(index, mine, teacher)
    loader = DataLoader(pictures, config.batch, num_workers=config.workers, collate_fn=list)  # many sizes: no batch
    keys: list[str] = []
    scores: list[Tensor] = []
    with tqdm(total=len(mine), desc="labels", unit="image", disable=not accelerator.is_local_main_process) as bar:
        for items in loader:
            reasons = {index.keys[number]: reason for number, reason in items if isinstance(reason, str)}
            for key, reason in reasons.items():
                bar.write(f"unreadable, left out: {key}: {reason}", file=sys.stderr)
            unreadable.add(reasons)
            for numbers, rated in rate(teacher, items, accelerator.device):
                keys += [index.keys[number] for number in numbers]
                scores.append(rated)
            if len(keys) >= config.part:
                pseudo_labels.write_part(config.out, keys, torch.cat(scores).numpy(), origin)
                keys, scores = [], []
            bar.update(len(items))
    if keys:
        pseudo_labels.write_part(config.out, keys, torch.cat(scores).numpy(), origin)


def rate(teacher: Teacher, items: list[Item], device: torch.device) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of the images of one size, and their scores (N, 5); size by size."""
    sizes: dict[torch.Size, list[tuple[int, Tensor]]] = defaultdict(list)
    for number, image in items:
        if isinstance(image, Tensor):
            sizes[image.shape].append((number, image))
    for group in sizes.values():
        images = torch.stack([image for _, image in group]).to(device)
        yield [number for number, _ in group], teacher(images).cpu()


def report(config: Config, index: ImageIndex, origin: pseudo_labels.Origin, unreadable: Unreadable) -> None:
    """Print and write what the labels look like."""
    scores = pseudo_labels.load(config.out, origin).align(index.keys)
    scores = scores[~np.isnan(scores[:, 0])].astype(np.float64)
    summary: dict[str, Any] = {
        "teacher": origin.teacher,
        "prompts_hash": origin.prompts_hash,
        "n": len(scores),
        "unreadable": len(unreadable.reasons),
    }
    print(f"{len(scores)} images labelled by {origin.teacher}, {len(unreadable.reasons)} unreadable")
    for name, column in zip(ATTRIBUTES, scores.T, strict=True):
        low, middle, high = np.quantile(column, (0.05, 0.5, 0.95))
        summary[name] = {"mean": column.mean(), "std": column.std(), "q05": low, "median": middle, "q95": high}
        print(f"{name:12}  " + "  ".join(f"{key} {value:.4g}" for key, value in summary[name].items()))
    write_json(config.out / "metrics.json", summary)


if __name__ == "__main__":
    main()
