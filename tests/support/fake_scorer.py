"""What the tests of the command line share: a scorer without weights, and, as a script, the command line with it."""

import csv
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from attriqa import cli, images
from attriqa.attributes import ATTRIBUTES
from attriqa.cli import options

ROOT = Path(__file__).resolve().parents[2]


class Result(NamedTuple):
    path: str
    score: float | None
    attributes: tuple[float, ...] | None
    error: str | None
    distortions: tuple[float, ...] | None = None


class FakeScorer:
    """Scores a file by its mean red and its attributes by other moments; slow and interruptible on demand.

    ``distortions``: it also tells two of them, from green and blue.
    """

    def __init__(
        self, identity: str = "fake-0123456789ab/full", delay: float = 0.0, *, distortions: bool = False
    ) -> None:
        self.identity = identity
        self.delay = delay
        self.attributes = ATTRIBUTES
        self.names = ("score", *ATTRIBUTES, *(("jpeg", "white_noise") if distortions else ()))
        self.asked: list[str] = []

    def score_files(self, paths: Iterable[str | Path], *, threads: int | None = None) -> Iterator[Result]:
        for path in paths:
            self.asked.append(str(path))
            time.sleep(self.delay)
            try:
                picture = images.read(path)
            except images.ImageError as error:
                yield Result(str(path), None, None, error.reason)
            else:
                red, green, blue = picture.mean((1, 2)).tolist()
                spread = min(1.0, picture.std().item())
                found = (green, blue) if len(self.names) > 6 else None
                yield Result(str(path), red, (spread, green, blue, 1 - spread, abs(red - blue)), None, found)


def paint(folder: Path, count: int) -> Path:
    """``count`` small pictures, darkest first, in a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        Image.new("RGB", (32, 32), (5 * n % 256, 40, 200)).save(folder / f"{n:03d}.png")
    return folder


def attriqa(*words: object) -> int:
    """The command, in this process: its exit status."""
    try:
        return cli.main([*map(str, words)])
    except SystemExit as end:  # argparse
        return int(str(end.code))


def table(path: Path) -> list[list[str]]:
    """The records of a CSV file, header first."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def environment(delay: float = 0) -> dict[str, str]:
    """The environment of a process that runs the command; ``delay`` in seconds per image."""
    # The checkout first, so that a process started elsewhere tests this code; and stdout buffered as users have it.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**inherited, "FAKE_DELAY": str(delay), "PYTHONPATH": path, "OMP_NUM_THREADS": "2"}


if __name__ == "__main__":
    # Under a shell's `&`, SIGINT would be inherited as ignored, and Ctrl-C could not be tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options.make_scorer = lambda args: FakeScorer(delay=float(os.environ.get("FAKE_DELAY", "0")))  # type: ignore
    sys.exit(cli.main())
