"""What recipes share of a training run: its steps, gone on with where they were cut off, and predictions of a test."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from attriqa.data.crops import Example, stack
from attriqa.files import write_json
from attriqa.training.state import load_state, save_state


def loader(
    images: "Dataset[Example]", batches: Iterable[list[tuple[int, int]]], *, workers: int, seed: int = 0
) -> "DataLoader[Example]":
    """Examples in batches.

    Args:
        images: what they are drawn from.
        batches: the items of each.
        workers: loading processes; 0: none.
        seed: of the workers' own generators.
    """
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=stack,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # or else it draws from the global one
    )


class Pace(NamedTuple):
    """How long a run is, and how often it is looked at; in steps."""

    steps: int
    per_epoch: int | Fraction  # a fraction, where a step takes several batches
    log_every: int
    save_every: int
    batch: int  # examples of a step, over all processes
    unit: str = "images"  # what these are
    tests: int | None = None  # rows of the history, evenly over the run; None: a row for each epoch, and at the end

    def ends(self) -> list[int]:
        """How many steps are done where a row of the history ends."""
        if self.tests is None:
            epochs = range(1, self.steps // self.per_epoch + 1)
            return sorted({*(math.ceil(epoch * self.per_epoch) for epoch in epochs), self.steps})
        return sorted({-(-row * self.steps // self.tests) for row in range(1, self.tests + 1)})


class Loop:
    """The steps of a run: gone on with where they were cut off, watched, saved; on any number of processes.

    What a step does is the recipe's; its draws have to be functions of its number. A loss that is not a number ends the
    run before it is saved. The history's last row is made after the last state was saved, so that a run that is killed
    in a long test repeats that test alone.

    Args:
        accelerator: of `attriqa.training.options.accelerator_of`.
        folder: of the run; holds ``state.safetensors`` while the run is under way.
        learnt: by the name that a state keeps it under: the module of all that learns, buffers included.
        optimizer: over them, before ``accelerator.prepare``. Both are restored here, where there is a state.
        losses: names of what a step gives; the first is minimised.
        pace: see there.
        identity: JSON types; a state of another one is refused.

    Attributes:
        optimizer: as given.
        history: a row for each epoch that has ended: ``epoch``, from 1, the means of the losses since the row before,
            and what the test gave. Where tests are counted: ``step``, and ``epoch`` as a fraction.
        counters: JSON types that a state keeps; a run may add its own.

    Raises:
        attriqa.training.state.StateError: the state is of another run, or damaged.
    """

    def __init__(
        self,
        accelerator: Any,
        folder: Path,
        learnt: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        *,
        losses: Sequence[str],
        pace: Pace,
        identity: Mapping[str, Any],
    ) -> None:
        self.accelerator, self.folder, self.pace, self.losses = accelerator, folder, pace, tuple(losses)
        self.state = folder / "state.safetensors"
        self.optimizer, self._learnt, self._identity = optimizer, dict(learnt), dict(identity)
        self.counters: dict[str, Any] = {"step": 0, "sums": [0.0] * len(self.losses), "history": []}
        if self.state.exists():
            self.counters |= load_state(self.state, self._learnt, optimizer, config=self._identity)
        if "loss_sum" in self.counters:  # as pretraining once wrote it
            self.counters["sums"] = [self.counters.pop("loss_sum")]
        self._recent: list[Tensor] = []  # losses, on the device, that nobody has looked at
        self._clock = 0.0  # when somebody last did

    @property
    def first(self) -> int:
        """Steps that are done: the number of the next one."""
        return int(self.counters["step"])

    @property
    def history(self) -> list[dict[str, Any]]:
        """See the class."""
        rows: list[dict[str, Any]] = self.counters["history"]
        return rows

    def means(self) -> list[list[float]]:
        """The losses of each row of ``history``, in the order of ``losses``."""
        return [[row[name] for name in self.losses] for row in self.history]

    def run(
        self,
        step: Callable[[int, Any], Tensor],
        batches: Iterable[Any],
        names: Callable[[int], Mapping[str, Any]],
        test: Callable[[int], Mapping[str, Any]] | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """All steps that are left.

        Args:
            step: makes the step of a number with a batch; gives the losses, in their order, detached.
            batches: of these steps.
            names: what ``bad_batch.json`` says of the batch of a step, where a loss is not a number.
            test: what a row of the history holds beside losses, after so many steps.
            look: is called when somebody looks at the losses, before anything is saved.

        Raises:
            SystemExit: a loss is not a number; the last state stays, and ``bad_batch.json`` names the files.
        """
        pace, ends, first = self.pace, self.pace.ends(), self.first
        quiet, self._clock = not self.accelerator.is_local_main_process, time.perf_counter()
        with tqdm(total=pace.steps, initial=first, desc=self.folder.name, unit="step", disable=quiet) as bar:
            for number, batch in zip(range(first, pace.steps), batches, strict=True):
                self._recent.append(step(number, batch))
                bar.update()
                done = self.counters["step"] = number + 1
                last = done == pace.steps
                saved, ended = done % pace.save_every == 0 or last, done in ends
                if saved or ended or done % pace.log_every == 0:
                    self._look(bar, names)
                    look()
                if ended and not last:
                    self._end_row(ends, test)
                if saved:
                    self._save()
        if len(self.history) < len(ends):
            self._end_row(ends, test)

    def _end_row(self, ends: Sequence[int], test: Callable[[int], Mapping[str, Any]] | None) -> None:
        done, before = self.first, [0, *ends][len(self.history)]
        means = [total / max(1, done - before) for total in self.counters["sums"]]  # without a step, of nothing
        row: dict[str, Any] = {"epoch": done // self.pace.per_epoch}
        if self.pace.tests is not None:
            row = {"step": done, "epoch": done / self.pace.per_epoch}
        row |= dict(zip(self.losses, means, strict=True))
        self.history.append(row if test is None else row | dict(test(done)))
        self.counters["sums"] = [0.0] * len(self.losses)
        self._clock = time.perf_counter()

    def _look(self, bar: "tqdm[Any]", names: Callable[[int], Mapping[str, Any]]) -> None:
        rows = self.accelerator.reduce(torch.stack(self._recent).float(), "mean").tolist()
        self._recent.clear()
        for number, row in enumerate(rows, self.first - len(rows)):
            if not all(map(math.isfinite, row)):
                self._give_up(number, row, names)
            self.counters["sums"] = [total + value for total, value in zip(self.counters["sums"], row, strict=True)]
        now, unit = dict(zip(self.losses, rows[-1], strict=True)), self.pace.unit
        since, self._clock = self._clock, time.perf_counter()
        speed, rate = len(rows) * self.pace.batch / (self._clock - since), self.optimizer.param_groups[0]["lr"]
        self.accelerator.log({**now, "lr": rate, f"{unit}_per_second": speed}, step=self.first)
        bar.set_postfix({name: f"{value:.4f}" for name, value in now.items()} | {f"{unit}_per_s": f"{speed:.1f}"})

    def _give_up(self, number: int, row: list[float], names: Callable[[int], Mapping[str, Any]]) -> None:
        path, losses = self.folder / "bad_batch.json", dict(zip(self.losses, map(str, row), strict=True))
        bad = next(str(value) for value in row if not math.isfinite(value))
        about = {"step": number, "epoch": number // self.pace.per_epoch, "loss": bad, "losses": losses}
        if self.accelerator.is_main_process:
            write_json(path, {**about, **names(number)})
        listed = ", ".join(f"{name} {value}" for name, value in losses.items())
        raise SystemExit(f"the loss is {bad} at step {number}; {path} names its images ({listed}). "
                         "The last checkpoint is whole")  # fmt: skip

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            counters = {**self.counters, "config": self._identity}
            save_state(self.state, self._learnt, self.optimizer, counters)
        self.accelerator.wait_for_everyone()


def seed_step(seed: int, step: int, process: int) -> None:
    """Make the draws of dropout, which knows the global generator alone, functions of the step."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0]))


@torch.no_grad()
def predict_all(
    predict: Callable[[Example], Iterable[Tensor]], batches: Iterable[Example], accelerator: Any, title: str
) -> list[Tensor]:
    """What a model predicts of the images of a test, which the processes share.

    Args:
        predict: N images -> what is known of them, ``(N, ...)`` each; under the accelerator's autocast.
        batches: of this process' images.
        accelerator: of `attriqa.training.options.accelerator_of`.
        title: of the progress bar.

    Returns:
        The same of all images, in the order of their numbers, float32 on the CPU; the same on all processes.

    Raises:
        attriqa.images.ImageError: an image cannot be read.
    """
    from accelerate.utils import gather_object

    bar = tqdm(batches, title, leave=False, disable=not accelerator.is_local_main_process)
    with accelerator.autocast():
        parts = [[batch.number, *(field.float().cpu() for field in predict(batch))] for batch in bar]
    numbers, *fields = (torch.cat(field) for field in zip(*gather_object(parts), strict=True))
    return [field[numbers.argsort()] for field in fields]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (B, ...) of every process, in the processes' order: (P * B, ...); ``rows`` themselves without processes.

    The gradient flows to this process' own rows. Where every process computes one and the same loss from all rows,
    these are the rows of its gradient that the process can use, and the gradient of a shared weight is the *sum* over
    the processes; DistributedDataParallel takes the mean, so that the loss has to be multiplied by their number.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    everyone = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, rows.detach().contiguous())
    everyone[dist.get_rank()] = rows
    return torch.cat(everyone)
