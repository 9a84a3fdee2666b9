"""What recipes on CLIP share of a training run: the steps of a fold, and its test on whole images."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from attriqa.files import write_json
from attriqa.images import ImageError, read
from attriqa.training.state import load_state, save_state

ExampleT = TypeVar("ExampleT")


def loader(
    images: "Dataset[ExampleT]",
    batches: Iterable[list[Any]],
    stack: Callable[[list[ExampleT]], ExampleT],
    *,
    workers: int,
    seed: int,
) -> "DataLoader[ExampleT]":
    """Examples in batches.

    Args:
        images: what they are drawn from.
        batches: the items of each.
        stack: several examples -> one of them all.
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
    per_epoch: int
    log_every: int
    save_every: int
    batch: int  # examples of a step, over all processes
    unit: str = "images"  # what these are
    tests: int | None = None  # rows of the history, evenly over the run; None: a row for each epoch

    def ends(self) -> list[int]:
        """How many steps are done where a row of the history ends."""
        if self.tests is None:
            return list(range(self.per_epoch, self.steps + 1, self.per_epoch))
        return sorted({-(-row * self.steps // self.tests) for row in range(1, self.tests + 1)})


class Loop:
    """The steps of one fold: gone on with where they were cut off, watched, saved; on any number of processes.

    What a step does is the recipe's; its draws have to be functions of its number. A loss that is not a number ends the
    run before it is saved. The history's last row is made after the last state was saved, so that a run that is killed
    in a long test repeats that test alone.

    Args:
        accelerator: of `attriqa.training.options.accelerator_of`.
        folder: of the fold; holds ``state.safetensors`` while the run is under way.
        learnt: the parameters that learn; nothing else changes.
        optimizer: over them, before ``accelerator.prepare``. Both are restored here, where there is a state.
        losses: names of what a step gives; the first is minimised.
        pace: see there.
        identity: JSON types; a state of another one is refused.

    Attributes:
        history: a row for each epoch that has ended: ``epoch``, from 1, and the means of the losses. Where there are
            tests instead: ``step`` and ``epoch`` (a fraction), the means since the row before, what the test gave.

    Raises:
        attriqa.training.state.StateError: the state is of another run, or damaged.
    """

    def __init__(
        self,
        accelerator: Any,
        folder: Path,
        learnt: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        losses: Sequence[str],
        pace: Pace,
        identity: Mapping[str, Any],
    ) -> None:
        self.accelerator, self.folder, self.pace, self.losses = accelerator, folder, pace, tuple(losses)
        self.state = folder / "state.safetensors"
        self._learnt, self._optimizer, self._identity = learnt, optimizer, dict(identity)
        self._done: dict[str, Any] = {"step": 0, "sums": [0.0] * len(self.losses), "history": []}
        if self.state.exists():
            self._done = load_state(self.state, {"learnt": learnt}, optimizer, config=self._identity)
        self._recent: list[Tensor] = []  # losses, on the device, that nobody has looked at
        self._clock = 0.0  # when somebody last did

    @property
    def first(self) -> int:
        """Steps that are done: the number of the next one."""
        return int(self._done["step"])

    @property
    def history(self) -> list[dict[str, Any]]:
        """See the class."""
        rows: list[dict[str, Any]] = self._done["history"]
        return rows

    def means(self) -> list[list[float]]:
        """The losses of each row of ``history``, in the order of ``losses``."""
        return [[row[name] for name in self.losses] for row in self.history]

    def run(
        self,
        step: Callable[[int, Any], Tensor],
        batches: Iterable[Any],
        names: Callable[[int], Sequence[str]],
        test: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> None:
        """All steps that are left.

        Args:
            step: makes the step of a number with a batch; gives the losses, in their order, detached.
            batches: of these steps.
            names: files in the batch of a step, for the message about a loss that is not a number.
            test: what a row of the history holds beside losses, after so many steps.

        Raises:
            SystemExit: a loss is not a number; the last state stays, and ``bad_batch.json`` names the files.
        """
        pace, ends, first = self.pace, self.pace.ends(), self.first
        quiet, self._clock = not self.accelerator.is_local_main_process, time.perf_counter()
        with tqdm(total=pace.steps, initial=first, desc=self.folder.name, unit="step", disable=quiet) as bar:
            for number, batch in zip(range(first, pace.steps), batches, strict=True):
                self._recent.append(step(number, batch))
                bar.update()
                done = self._done["step"] = number + 1
                last = done == pace.steps
                saved, ended = done % pace.save_every == 0 or last, done in ends
                if saved or ended or done % pace.log_every == 0:
                    self._look(bar, names)
                if ended and not last:
                    self._end_row(ends, test)
                if saved:
                    self._save()
        if pace.steps in ends and len(self.history) < len(ends):
            self._end_row(ends, test)

    def _end_row(self, ends: Sequence[int], test: Callable[[int], Mapping[str, Any]] | None) -> None:
        done, before = self.first, [0, *ends][len(self.history)]
        means = [total / max(1, done - before) for total in self._done["sums"]]  # without a step, of nothing
        row: dict[str, Any] = {"epoch": done // self.pace.per_epoch}
        if self.pace.tests is not None:
            row = {"step": done, "epoch": done / self.pace.per_epoch}
        row |= dict(zip(self.losses, means, strict=True))
        self.history.append(row if test is None else row | dict(test(done)))
        self._done["sums"] = [0.0] * len(self.losses)
        self._clock = time.perf_counter()

    def _look(self, bar: "tqdm[Any]", names: Callable[[int], Sequence[str]]) -> None:
        rows = self.accelerator.reduce(torch.stack(self._recent).float(), "mean").tolist()
        self._recent.clear()
        for number, row in enumerate(rows, self.first - len(rows)):
            if not all(map(math.isfinite, row)):
                self._give_up(number, row, names)
            self._done["sums"] = [total + value for total, value in zip(self._done["sums"], row, strict=True)]
        now, unit = dict(zip(self.losses, rows[-1], strict=True)), self.pace.unit
        since, self._clock = self._clock, time.perf_counter()
        speed, rate = len(rows) * self.pace.batch / (self._clock - since), self._optimizer.param_groups[0]["lr"]
        self.accelerator.log({**now, "lr": rate, f"{unit}_per_second": speed}, step=self.first)
        bar.set_postfix({name: f"{value:.4f}" for name, value in now.items()} | {f"{unit}_per_s": f"{speed:.1f}"})

    def _give_up(self, number: int, row: list[float], names: Callable[[int], Sequence[str]]) -> None:
        path, losses = self.folder / "bad_batch.json", dict(zip(self.losses, map(str, row), strict=True))
        bad = next(str(value) for value in row if not math.isfinite(value))
        about = {"step": number, "epoch": number // self.pace.per_epoch, "loss": bad, "losses": losses}
        if self.accelerator.is_main_process:
            write_json(path, {**about, "files": list(names(number))})
        said = ", ".join(f"{name} {value}" for name, value in losses.items())
        raise SystemExit(f"the loss is {bad} at step {number}; {path} names its images ({said}). "
                         "The last checkpoint is whole")  # fmt: skip

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            counters = {**self._done, "config": self._identity}
            save_state(self.state, {"learnt": self._learnt}, self._optimizer, counters)
        self.accelerator.wait_for_everyone()


class _Whole(Dataset[tuple[int, Tensor | None, str]]):
    """Images as they are, one at a time; the number of each, and why it cannot be read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __getitem__(self, number: int) -> tuple[int, Tensor | None, str]:
        try:
            return number, read(self.paths[number]), ""
        except ImageError as error:  # it is raised where the image is used: a loader's process would garble it
            return number, None, error.reason

    def __len__(self) -> int:
        return len(self.paths)


def _one(batch: list[tuple[int, Tensor | None, str]]) -> tuple[int, Tensor | None, str]:
    return batch[0]


@torch.no_grad()
def judge(
    tell: Callable[[Tensor], Tensor], paths: Sequence[Path], accelerator: Any, *, workers: int, title: str
) -> Tensor:
    """What a model says of image files, one after the other at their own sizes, shared among the processes.

    Args:
        tell: ``(1, 3, H, W)`` in [0, 1] on the accelerator's device -> ``(1, C)``.
        paths: the files.
        accelerator: of `attriqa.training.options.accelerator_of`; its autocast is on.
        workers: loading processes.
        title: of the progress bar.

    Returns:
        ``(N, C)`` float32 on the CPU, the same on all processes.

    Raises:
        attriqa.images.ImageError: a file cannot be read.
    """
    from accelerate.utils import gather_object

    mine = range(len(paths))[accelerator.process_index :: accelerator.num_processes]
    loader = DataLoader(_Whole(paths), sampler=mine, batch_size=1, num_workers=workers, collate_fn=_one,
                        generator=torch.Generator().manual_seed(0))  # fmt: skip # or else it draws from the global one
    found: list[tuple[int, Tensor]] = []
    with accelerator.autocast():
        for number, image, reason in tqdm(loader, title, leave=False, disable=not accelerator.is_local_main_process):
            if image is None:
                raise ImageError(str(paths[number]), reason)
            found.append((number, tell(image[None].to(accelerator.device))[0].float().cpu()))
    return torch.stack([row for _, row in sorted(gather_object(found), key=lambda item: item[0])])


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
