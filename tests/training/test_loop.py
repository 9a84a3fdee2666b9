"""The steps that recipes share: going on where they were cut off, losses that are no numbers, predictions of files."""

import json
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from attriqa.data.batches import central
from attriqa.data.crops import Example, WholeImages
from attriqa.images import ImageError
from attriqa.training.loop import Loop, Pace, loader, predict_all
from attriqa.training.state import StateError, save_state

PACE = Pace(steps=10, per_epoch=4, log_every=3, save_every=2, batch=6)


class KilledError(Exception):
    """The machine goes down."""


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


class Run:
    """Adam on ``(w - step)^2``; dies before a step or in a test, or gets a loss that is no number."""

    def __init__(self, accelerator: Accelerator, folder: Path, *, seed: int = 0, pace: Pace = PACE) -> None:
        self.learnt = nn.ParameterList([nn.Parameter(torch.zeros(3))])
        self.optimizer = torch.optim.Adam(self.learnt, lr=0.1)
        settings: dict[str, Any] = {"losses": ("total", "other"), "pace": pace, "identity": {"seed": seed}}
        self.loop = Loop(accelerator, folder, {"learnt": self.learnt}, self.optimizer, **settings)
        self.taken: list[tuple[int, str]] = []
        self.tested: list[int] = []

    def go(self, *, dies: int = -1, breaks: int = -1, dies_in_test: int = -1) -> None:
        def step(number: int, batch: str) -> Tensor:
            if number == dies:
                raise KilledError
            self.taken.append((number, batch))
            loss = (self.learnt[0] - number).square().sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            return torch.stack([loss.detach() * (float("nan") if number == breaks else 1), torch.tensor(float(number))])

        def test(done: int) -> dict[str, Any]:
            if done == dies_in_test:
                raise KilledError
            self.tested.append(done)
            return {"weight": self.learnt[0][0].item()}

        steps = self.loop.pace.steps
        batches = (f"batch {number}" for number in range(self.loop.first, steps))
        names = [f"{number}.png" for number in range(steps)]
        self.loop.run(step, batches, lambda number: {"files": [names[number]]}, test if self.loop.pace.tests else None)


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
    assert [row["epoch"] for row in whole.loop.history] == [1, 2, 2]
    assert [row["other"] for row in whole.loop.history] == [1.5, 5.5, 8.5], "means of the numbers of an epoch's steps"
    assert whole.loop.means() == [[row["total"], row["other"]] for row in whole.loop.history]


@pytest.mark.parametrize("dies", [3, 4, 5, 9])
def test_a_history_of_tests_is_that_of_a_whole_run(accelerator: Accelerator, tmp_path: Path, dies: int) -> None:
    pace = PACE._replace(tests=3)
    whole = Run(accelerator, tmp_path / "whole", pace=pace)
    whole.go()
    assert whole.tested == [4, 7, 10], "evenly, each after its share of the steps, the last after all"
    history = whole.loop.history
    assert [(row["step"], row["epoch"]) for row in history] == [(4, 1.0), (7, 1.75), (10, 2.5)]
    assert [row["other"] for row in history] == [1.5, 5.0, 8.0], "means of the steps since the row before"
    assert history[-1]["weight"] == whole.learnt[0][0].item() != history[0]["weight"]
    with pytest.raises(KilledError):
        Run(accelerator, tmp_path / "cut", pace=pace).go(dies=dies)
    rest = Run(accelerator, tmp_path / "cut", pace=pace)
    rest.go()
    assert rest.loop.history == history
    assert torch.equal(rest.learnt[0], whole.learnt[0])


def test_a_run_killed_in_its_last_test_repeats_that_alone(accelerator: Accelerator, tmp_path: Path) -> None:
    pace = PACE._replace(tests=2)
    with pytest.raises(KilledError):
        Run(accelerator, tmp_path, pace=pace).go(dies_in_test=10)
    again = Run(accelerator, tmp_path, pace=pace)
    again.go()
    assert (again.taken, again.tested) == ([], [10])
    whole = Run(accelerator, tmp_path / "whole", pace=pace)
    whole.go()
    assert again.loop.history == whole.loop.history


def test_without_steps_there_is_one_test(accelerator: Accelerator, tmp_path: Path) -> None:
    run = Run(accelerator, tmp_path, pace=PACE._replace(steps=0, tests=5))
    run.go()
    assert run.loop.history == [{"step": 0, "epoch": 0, "total": 0, "other": 0, "weight": 0}]


def test_more_tests_than_steps_are_one_after_each() -> None:
    assert PACE._replace(steps=4, tests=9).ends() == [1, 2, 3, 4]
    assert PACE._replace(steps=9, tests=9).ends() == list(range(1, 10))
    assert PACE._replace(steps=100, tests=1).ends() == [100]


def test_an_epoch_may_end_within_a_step() -> None:
    assert PACE._replace(steps=8).ends() == [4, 8]
    assert PACE._replace(steps=6, per_epoch=Fraction(5, 2)).ends() == [3, 5, 6], "5 batches an epoch, 2 a step"
    assert PACE._replace(steps=0).ends() == [0]


def test_a_run_that_is_over_takes_no_step(accelerator: Accelerator, tmp_path: Path) -> None:
    first = Run(accelerator, tmp_path, pace=PACE._replace(steps=8))
    first.go()
    again = Run(accelerator, tmp_path, pace=PACE._replace(steps=8))
    for _ in range(2):
        again.go()
    assert again.taken == []
    assert again.loop.history == first.loop.history
    assert [row["epoch"] for row in first.loop.history] == [1, 2]


def test_what_is_logged_are_losses_the_rate_and_the_speed(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[int, dict[str, float]] = {}
    monkeypatch.setattr(accelerator, "log", lambda values, step: logged.setdefault(step, values))
    run = Run(accelerator, tmp_path, pace=PACE._replace(unit="crops", tests=2))
    clock = lambda: 2.0 * len(run.taken) + 100 * len(run.tested)  # noqa: E731 (a step takes 2 s, a test 100)
    monkeypatch.setattr(time, "perf_counter", clock)
    run.go()
    assert list(logged) == [2, 3, 4, 5, 6, 8, 9, 10], "after 3, 6, 9 and what is saved or tested"
    assert [row["other"] for row in logged.values()] == [1, 2, 3, 4, 5, 7, 8, 9]
    assert {row["lr"] for row in logged.values()} == {0.1}
    assert {row["crops_per_second"] for row in logged.values()} == {3}, "6 crops in 2 s, tests apart"


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(accelerator: Accelerator, tmp_path: Path) -> None:
    run = Run(accelerator, tmp_path)
    with pytest.raises(
        SystemExit,
        match=r"the loss is nan at step 4; .*bad_batch\.json names its images \(total nan, other 4\.0\)\. The last",
    ):
        run.go(breaks=4)
    bad = json.loads((tmp_path / "bad_batch.json").read_text())
    losses = {"total": "nan", "other": "4.0"}
    assert bad == {"step": 4, "epoch": 1, "loss": "nan", "losses": losses, "files": ["4.png"]}
    assert Run(accelerator, tmp_path).loop.first == 4


def test_the_state_of_another_run_is_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    Run(accelerator, tmp_path).go()
    with pytest.raises(StateError, match="seed: 0 there, 1 now"):
        Run(accelerator, tmp_path, seed=1)


def test_a_state_as_pretraining_once_wrote_it_goes_on(accelerator: Accelerator, tmp_path: Path) -> None:
    learnt = nn.ParameterList([nn.Parameter(torch.zeros(3))])
    optimizer = torch.optim.SGD(learnt, lr=0.1)
    counters = {"step": 2, "loss_sum": 3.0, "loss_steps": 2, "history": [], "unreadable": {"a": "b"}, "config": {}}
    save_state(tmp_path / "state.safetensors", {"net": learnt}, optimizer, counters)
    loop = Loop(accelerator, tmp_path, {"net": learnt}, optimizer, losses=("loss",), pace=PACE, identity={})
    assert (loop.first, loop.counters["sums"], loop.counters["unreadable"]) == (2, [3.0], {"a": "b"})


def write(path: Path, value: int, width: int) -> Path:
    Image.fromarray(np.full((40, width, 3), value, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_files_are_predicted_whole_in_the_order_of_their_numbers(
    accelerator: Accelerator, tmp_path: Path, workers: int
) -> None:
    paths = [write(tmp_path / f"{i}.png", 50 * i, 40 + i) for i in range(4)]
    before = torch.get_rng_state()

    def predict(batch: Example) -> list[Tensor]:
        image = batch.pixels(torch.device("cpu"))
        return [image.mean((1, 2, 3)) * 255, torch.tensor([[image.shape[3]]])]

    batches = loader(WholeImages(paths), central([3, 0, 2, 1], 1), workers=workers)
    means, widths = predict_all(predict, batches, accelerator, "test")
    torch.testing.assert_close(means, torch.tensor([0.0, 50, 100, 150]))
    assert widths.tolist() == [[40], [41], [42], [43]]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_that_cannot_be_read_is_named(accelerator: Accelerator, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    batches = loader(WholeImages([write(tmp_path / "0.png", 3, 40), bad]), central([0, 1], 1), workers=1)
    with pytest.raises(ImageError, match=r"bad\.png"):
        predict_all(lambda batch: [batch.pixels(torch.device("cpu")).mean((1, 2, 3))], batches, accelerator, "test")


class Doubles(Dataset[Example]):
    def __getitem__(self, where: tuple[int, int]) -> Example:
        return Example(torch.full((1, 3, 2, 2), 2 * where[1], dtype=torch.uint8), where[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_that_are_listed(workers: int) -> None:
    before = torch.get_rng_state()
    batches = loader(Doubles(), [[(0, 3), (0, 1)], [(1, 4)]], workers=workers)
    assert [batch.image[:, 0, 0, 0].tolist() for batch in batches] == [[6, 2], [8]]
    assert torch.equal(torch.get_rng_state(), before)
