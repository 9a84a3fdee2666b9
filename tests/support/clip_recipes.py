"""How tests of recipes that train in steps run them: in this process, cut off in a step, killed, on two processes."""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from attriqa.models import checkpoint
from attriqa.training.loop import Loop
from tests.support import small_clip
from tests.support.trees import clive as clive_tree
from tests.support.trees import exiqa as exiqa_tree
from tests.support.trees import unlabelled as unlabelled_tree

VIT = small_clip.vit(40)
DATA, CLIPS = {"--data", "--manifest", "--photos"}, {"--clip", "--clip-config", "--init"}


def build_tree(root: Path) -> Path:
    """Rated photos and LIQE's annotations of them, KADIDs of 5 and of 10 references, photos, a CLIP's configuration."""
    clive_tree.build(root / "clive", 32, 80, 64)
    lines = (f"Images/{i}.jpg\t{-(i * 5 % 32)}\trealistic blur\tanimal\tplant\tinvalid" for i in range(32))
    (root / "clive_clip.txt").write_text("\n".join(lines) + "\n")
    exiqa_tree.kadid(root / "kadid", 5)
    exiqa_tree.kadid(root / "kadid10", 10)
    exiqa_tree.photos(root / "photos", 6, side=64, name="train")
    exiqa_tree.photos(root / "photos", 2, side=64, name="test")
    unlabelled_tree.folder(root / "unlabelled", 40)
    (root / "vit.json").write_text(json.dumps(VIT))
    return root


class Recipe:
    """``recipe(name, *flags)`` runs ``training/NAME.py`` and gives its folder; with small data and a random CLIP.

    Args:
        name: of the recipe.
        tree: of `build_tree`.
        folder: where runs go.
        flags: of every run; those of a call are added.
    """

    def __init__(self, name: str, tree: Path, folder: Path, flags: Sequence[object] = ()) -> None:
        self.name, self.tree, self.folder, self.flags = name, tree, folder, flags
        self.module: Any = unlabelled_tree.load_recipe(name)

    def words(self, *flags: object) -> list[str]:
        """Flags, with a data set and a CLIP where they name none."""
        words = [*map(str, (*self.flags, *flags))]
        if self.name == "pretrain":
            return ["--images", str(self.tree / "unlabelled"), *words]
        if not DATA & set(words):
            source = "kadid10" if self.name == "train_exiqa" else "clive"
            words += ["--data", f"{source.rstrip('0123456789')}={self.tree / source}"]
        return words if CLIPS & set(words) else [*words, "--clip-config", str(self.tree / "vit.json")]

    def __call__(self, name: str, *flags: object) -> Path:
        self.module.main([*self.words(*flags), "--out", str(self.folder / name)])
        return self.folder / name

    def refusal(self, *flags: object) -> str:
        """What it says of a run that cannot be, before it makes a folder."""
        with pytest.raises(SystemExit) as error:
            self("refused", *flags)
        assert not (self.folder / "refused").exists()
        return str(error.value)

    def on_processes(self, processes: int, *flags: object) -> Path:
        """The folder of a run as users start it, on so many processes."""
        out = self.folder / str(processes)
        done = unlabelled_tree.shell(*self.command(processes), *self.words(*flags), "--out", out)
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(set(done.stdout.splitlines())) == len(done.stdout.splitlines()), "the main process alone prints"
        return out

    def command(self, processes: int = 1) -> list[str]:
        return unlabelled_tree.command(self.name, processes)

    def killed(self, *flags: object, steps: int) -> tuple[Path, Path]:
        """The folders of a run, and of one that the system kills after its first state and that goes on.

        The second says at its end what the first says.
        """
        words = [*self.command(), *self.words(*flags), "--out"]
        whole = unlabelled_tree.shell(*words, self.folder / "whole")
        assert whole.returncode == 0, whole.stderr[-3000:]
        assert f" 0/{steps} " in whole.stderr
        out = self.folder / "killed"
        settings: dict[str, Any] = {"cwd": unlabelled_tree.ROOT, "env": unlabelled_tree.ENVIRONMENT}
        with subprocess.Popen([*words, str(out)], stderr=subprocess.DEVNULL, **settings) as process:
            deadline = time.monotonic() + 120
            while not [*out.rglob("state.safetensors")]:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
            unlabelled_tree.kill(process.pid)
        assert process.returncode == -9
        assert not [*out.rglob("model.safetensors")], "it was killed too late to test anything"
        done = unlabelled_tree.shell(*words, out)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f" 0/{steps} " not in done.stderr, "it went on"
        assert done.stdout == whole.stdout
        return self.folder / "whole", out


def refusal(recipe: Any, out: Path, capsys: pytest.CaptureFixture[str], flags: Sequence[str]) -> str:
    """What any recipe prints of flags that no run can have, before it makes a folder."""
    with pytest.raises(SystemExit):
        recipe.main([*flags, "--out", str(out)])
    assert not out.exists()
    return capsys.readouterr().err


def result(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text())


def model_of(out: Path, fold: str = "split0") -> Path:
    """The checkpoint of a fold, or of a run without folds."""
    return (out / fold if (out / fold).exists() else out) / "model.safetensors"


def weights(out: Path, fold: str = "split0") -> dict[str, Tensor]:
    return checkpoint.load(model_of(out, fold)).state


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not the same bit for bit."""
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not ours[name].equal(theirs[name])}


@contextmanager
def watched_steps(*, dies: int = -1, breaks: int = -1) -> Iterator[list[tuple[int, Any]]]:
    """The steps that are taken meanwhile, with their batches; one may die before it does anything, or give NaN."""
    run, taken = Loop.run, list[tuple[int, Any]]()

    def watched(self: Loop, step: Any, *arguments: Any) -> None:
        def noted(number: int, batch: Any) -> Tensor:
            if number == dies:
                raise ZeroDivisionError
            taken.append((number, batch))
            losses: Tensor = step(number, batch)
            return losses * float("nan") if number == breaks else losses

        run(self, noted, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "run", watched)
        yield taken
