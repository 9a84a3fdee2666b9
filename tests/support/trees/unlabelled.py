"""Small sources of unlabelled images, for the index, the labels and pretraining."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from tests.support.trees import clive as clive_tree

ROOT = Path(__file__).resolve().parents[3]


def folder(root: Path, count: int, *, width: int = 88, height: int = 72) -> Path:
    """``root`` with ``count`` JPEGs of random rectangles, half of them in a subfolder."""
    (root / "sub").mkdir(parents=True)
    for number in range(count):
        name = f"sub/{number:03d}.jpg" if number % 2 else f"{number:03d}.JPG"
        clive_tree.picture(number, width + 8 * (number % 3), height).save(root / name, format="JPEG")
    return root


def shards(root: Path, count: int, per_shard: int) -> Path:
    """``root`` with shards as the webdataset package writes them, each sample with a picture, a mask and a text."""
    from webdataset import TarWriter

    root.mkdir(parents=True)
    for start in range(0, count, per_shard):
        with TarWriter(str(root / f"part-{start // per_shard:03d}.tar"), encoder=False) as writer:
            for number in range(start, min(count, start + per_shard)):
                writer.write({"__key__": f"v1.0/{number:05d}", **sample(number)})
    return root


def sample(number: int) -> dict[str, bytes]:
    """A picture, a mask that is no picture of the source, and a text."""
    return {"jpg": jpeg(number), "mask.png": b"no image at all", "txt": f"number {number}".encode()}


def jpeg(number: int, width: int = 88, height: int = 72) -> bytes:
    """A JPEG of `clive_tree.picture`."""
    from io import BytesIO

    file = BytesIO()
    clive_tree.picture(number, width, height).save(file, format="JPEG", quality=90)
    return file.getvalue()


def mean_colours(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 5): scores that a test can compute again."""
    mean = images.mean((2, 3))
    return torch.cat([mean, images.amax((1, 2, 3))[:, None], images.std((1, 2, 3))[:, None]], 1)


def scores(count: int, seed: int = 0) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    """(count, 5) made-up labels."""
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


def load_recipe(name: str, folder: str = "training") -> ModuleType:
    """``FOLDER/NAME.py`` as a module, to be run in this process."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def command(name: str, processes: int = 1) -> list[str]:
    """How a shell starts a recipe, on so many processes."""
    launcher = (
        [] if processes == 1 else ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    )
    return [sys.executable, *launcher, f"training/{name}.py"]


# One thread, as torchrun chooses for its processes: sums of floats depend on how they are shared out.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def shell(*words: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root."""
    return subprocess.run(
        [*map(str, words)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False
    )


def killed(words: Sequence[object], ready: Callable[[], object], timeout: float = 120) -> None:
    """Start a command in the repository's root, and kill it and all that it started as soon as something is there."""
    pipe = subprocess.DEVNULL
    with subprocess.Popen([*map(str, words)], cwd=ROOT, env=ENVIRONMENT, stdout=pipe, stderr=pipe) as process:
        deadline = time.monotonic() + timeout
        while not ready():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        kill(process.pid)
    assert process.returncode == -signal.SIGKILL


def kill(pid: int) -> None:
    """SIGKILL to a process and to all that it started: torchrun's workers are in sessions of their own."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # state, parent, ...
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if int(fields[1]) == pid:
            children.append(int(path.parent.name))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in children:
        kill(child)


class MeanColours:
    """A teacher whose scores a test can compute again; it counts the images that it has seen."""

    prompts_hash: str | None = None
    shorter_edge: int | None = None
    size: tuple[int, int] | None = None

    def __init__(self, identity: str = "MeanColours(1)") -> None:
        self.identity = identity
        self.seen = 0
        self.fail_after = 10**9

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        if self.seen > self.fail_after:
            raise KeyboardInterrupt
        return mean_colours(images)
