"""How tests of the recipes on CLIP run them: in this process, cut off in a step, killed, on two processes."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from torch import Tensor

from attriqa.models import checkpoint
from tests.support.trees import unlabelled as unlabelled_tree

Run = Callable[..., Path]


@contextmanager
def loaded(name: str) -> Iterator[ModuleType]:
    """``training/NAME.py`` as a module; Accelerate then forgets what it was told."""
    yield unlabelled_tree.load_recipe(name)
    AcceleratorState._reset_state(reset_partial_state=True)


def runner(recipe: ModuleType, folder: Path, *, data: str, clip: Path) -> Run:
    """``run(name, *flags)`` -> FOLDER/NAME; on ``data`` and with the CLIP of a configuration, unless flags say else."""

    def run(name: str, *flags: object) -> Path:
        words = [*map(str, flags)]
        if not {"--data", "--manifest", "--photos"} & set(words):
            words += ["--data", data]
        if not {"--clip", "--clip-config", "--init"} & set(words):
            words += ["--clip-config", str(clip)]
        recipe.main([*words, "--out", str(folder / name)])
        return folder / name

    return run


def result(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text())


def weights(out: Path, fold: str = "split0") -> dict[str, Tensor]:
    return checkpoint.load(out / fold / "model.safetensors").state


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not the same bit for bit."""
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not ours[name].equal(theirs[name])}


def refusal(recipe: ModuleType, out: Path, capsys: pytest.CaptureFixture[str], flags: Sequence[str]) -> str:
    """What a recipe says of flags that no run can have, before it makes a folder."""
    with pytest.raises(SystemExit):
        recipe.main([*flags, "--out", str(out)])
    assert not out.exists()
    return capsys.readouterr().err


def cut_off(recipe: ModuleType, run: Run, at: int, name: str, *flags: object) -> None:
    """A run that dies in a step, before it has done anything."""
    step = recipe.Training.step

    def dying(self: Any, number: int, batch: Any) -> Tensor:
        if number == at:
            raise ZeroDivisionError
        losses: Tensor = step(self, number, batch)
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.Training, "step", dying)
        with pytest.raises(ZeroDivisionError):
            run(name, *flags)


@contextmanager
def steps_of(recipe: ModuleType) -> Iterator[list[int]]:
    """The numbers of the steps that are taken meanwhile."""
    step, taken = recipe.Training.step, list[int]()

    def counted(self: Any, number: int, batch: Any) -> Tensor:
        taken.append(number)
        losses: Tensor = step(self, number, batch)
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.Training, "step", counted)
        yield taken


def on_processes(name: str, processes: int, out: Path, flags: Sequence[object]) -> Path:
    """The folder of a run as users start it, on so many processes."""
    done = unlabelled_tree.shell(*unlabelled_tree.command(name, processes), *flags, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def whole_and_killed(name: str, folder: Path, flags: Sequence[object], *, steps: int) -> None:
    """A run ends in FOLDER/whole; another, killed by the system after its first state, goes on in FOLDER/killed.

    The second says at its end what the first says.

    Args:
        name: of the recipe; one process.
        folder: for both.
        flags: of both.
        steps: that a run takes.
    """
    words = [*map(str, [*unlabelled_tree.command(name), *flags, "--out"])]
    whole = unlabelled_tree.shell(*words, folder / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert f" 0/{steps} " in whole.stderr
    command, fold = [*words, str(folder / "killed")], folder / "killed" / "split0"
    with subprocess.Popen(
        command, cwd=unlabelled_tree.ROOT, env=unlabelled_tree.ENVIRONMENT, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not (fold / "state.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        unlabelled_tree.kill(process.pid)
    assert process.returncode == -9
    assert not (fold / "model.safetensors").exists(), "it was killed too late to test anything"
    done = unlabelled_tree.shell(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f" 0/{steps} " not in done.stderr, "it went on"
    assert done.stdout == whole.stdout
