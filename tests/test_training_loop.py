"""The steps that recipes on CLIP share: going on where they were cut off, losses that are no numbers, files judged."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

from attriqa.images import ImageError
from attriqa.training_loop import Loop, Pace, accelerator_of, judge
from attriqa.training_state import StateError

PACE = Pace(steps=10, per_epoch=4, log_every=3, save_every=2)


class KilledError(Exception):
    """The machine goes down."""


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


class Run:
    """Adam on ``(w - step)^2``; dies before a step, or gets a loss that is no number."""

    def __init__(self, accelerator: Accelerator, folder: Path, *, seed: int = 0) -> None:
        self.learnt = nn.ParameterList([nn.Parameter(torch.zeros(3))])
        self.optimizer = torch.optim.Adam(self.learnt, lr=0.1)
        self.loop = Loop(accelerator, folder, self.learnt, self.optimizer, losses=("total", "other"), pace=PACE,
                         identity={"seed": seed})  # fmt: skip
        self.taken: list[tuple[int, str]] = []

    def go(self, *, dies: int = -1, breaks: int = -1) -> None:
        def step(number: int, batch: str) -> Tensor:
            if number == dies:
                raise KilledError
            self.taken.append((number, batch))
            loss = (self.learnt[0] - number).square().sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            return torch.stack([loss.detach() * (float("nan") if number == breaks else 1), torch.tensor(float(number))])

        batches = (f"batch {number}" for number in range(self.loop.first, PACE.steps))
        self.loop.run(step, batches, lambda number: [f"{number}.png"])


def test_a_run_that_was_cut_off_ends_as_a_whole_one(accelerator: Accelerator, tmp_path: Path) -> None:
    whole = Run(accelerator, tmp_path / "whole")
    whole.go()
    for dies in (7, 9):
        with pytest.raises(KilledError):
            Run(accelerator, tmp_path / "cut").go(dies=dies)
    rest = Run(accelerator, tmp_path / "cut")
    assert rest.loop.first == 8
    rest.go()
    assert rest.taken == [(8, "batch 8"), (9, "batch 9")]
    assert torch.equal(rest.learnt[0], whole.learnt[0])
    assert rest.loop.history == whole.loop.history
    assert [row["epoch"] for row in whole.loop.history] == [1, 2]
    assert [row["other"] for row in whole.loop.history] == [1.5, 5.5], "means of the numbers of an epoch's steps"
    assert whole.loop.means() == [[row["total"], row["other"]] for row in whole.loop.history]


def test_a_run_that_is_over_takes_no_step(accelerator: Accelerator, tmp_path: Path) -> None:
    Run(accelerator, tmp_path).go()
    again = Run(accelerator, tmp_path)
    again.go()
    assert again.taken == []


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(accelerator: Accelerator, tmp_path: Path) -> None:
    run = Run(accelerator, tmp_path)
    with pytest.raises(SystemExit, match=r"not a number at step 4 \(total nan, other 4\.0\); .*bad_batch\.json"):
        run.go(breaks=4)
    assert json.loads((tmp_path / "bad_batch.json").read_text())["files"] == ["4.png"]
    assert Run(accelerator, tmp_path).loop.first == 4


def test_the_state_of_another_run_is_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    Run(accelerator, tmp_path).go()
    with pytest.raises(StateError, match="seed: 0 there, 1 now"):
        Run(accelerator, tmp_path, seed=1)


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--tracker: expected one that is installed \(none.*got paper"):
        accelerator_of("fp32", "paper", tmp_path)


def write(path: Path, value: int, width: int) -> Path:
    Image.fromarray(np.full((40, width, 3), value, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_files_are_judged_whole_in_their_order(accelerator: Accelerator, tmp_path: Path, workers: int) -> None:
    paths = [write(tmp_path / f"{i}.png", 50 * i, 40 + i) for i in range(4)]
    before = torch.get_rng_state()

    def tell(image: Tensor) -> Tensor:
        return torch.stack([image.mean((1, 2, 3)) * 255, torch.tensor([float(image.shape[3])])], 1)

    found = judge(tell, paths, accelerator, workers=workers, title="test")
    torch.testing.assert_close(found, torch.tensor([[50.0 * i, 40.0 + i] for i in range(4)]))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_that_cannot_be_read_is_named(accelerator: Accelerator, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    tell: Any = lambda image: image.mean((1, 2, 3))[:, None]  # noqa: E731
    with pytest.raises(ImageError, match=r"bad\.png"):
        judge(tell, [write(tmp_path / "0.png", 3, 40), bad], accelerator, workers=0, title="test")
