"""A small AGIQA-3K in the official layout, a scorer without weights, and the recipe under test, as a module."""

import csv
import io
import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attriqa import ATTRIBUTES
from attriqa.reward import FileScore
from tests.support.trees import unlabelled as unlabelled_tree

ROOT = Path(__file__).resolve().parents[3]
HEADER = "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align"
SETTINGS = (
    "AttnGAN_normal",
    "DALLE2_normal",
    "glide_normal",
    "midjourney_lowstep",
    "midjourney_normal",
    "sd1.5_highcorr",
    "sd1.5_lowcorr",
    "sd1.5_lowstep",
    "sd1.5_normal",
    "xl2.2_normal",
)
PROMPTS = (
    'a "quoted", cold color',
    "house of the dragon",
    "otter, anime style",
    "ein schöner Baum",
    "a king",
    "one cat",
)
N = len(SETTINGS) * len(PROMPTS)
Run = Callable[..., int]


class FakeScorer:
    """Scores a file by its mean brightness; ``sign`` -1 turns it against people; slow on demand."""

    def __init__(self, identity: str = "fake-0123456789ab/full", sign: int = 1, delay: float = 0.0) -> None:
        self.identity, self.view, self.sign, self.delay = identity, identity.rpartition("/")[2], sign, delay
        self.attributes = ATTRIBUTES
        self.asked: list[str] = []

    def score_files(self, paths: Iterable[str | Path], *, threads: int | None = None) -> Iterator[FileScore]:
        for path in paths:
            self.asked.append(Path(path).name)
            time.sleep(self.delay)
            try:
                mean = float(np.asarray(Image.open(path)).mean()) / 255
            except OSError as error:
                yield FileScore(str(path), None, None, str(error))
            else:
                yield FileScore(str(path), 0.5 + self.sign * (mean - 0.5), (mean, 0.1, 0.2, 0.3, 0.4), None)


def load_recipe() -> ModuleType:
    return unlabelled_tree.load_recipe("agiqa", "evals")


def drive() -> None:
    """The recipe with a slow fake scorer, as a process of its own that can be killed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` would leave it ignored
    recipe = load_recipe()
    recipe.make_scorer = lambda config: FakeScorer(delay=0.03)  # type: ignore[attr-defined]
    sys.exit(recipe.main())


def build(root: Path) -> Path:
    """A small AGIQA-3K in the official layout: better liked images are brighter, on the whole."""
    root.mkdir()
    rng = np.random.default_rng(0)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(HEADER.split(","))
    for level, setting in enumerate(SETTINGS):
        for number, prompt in enumerate(PROMPTS):
            name = f"{setting}_{number:03}.jpg"
            mos = 0.3 * level + float(rng.uniform(0, 1.4))
            pixels = np.clip(60 + 30 * mos + rng.normal(0, 12) + rng.normal(0, 3, (40, 48, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name)
            writer.writerow([name, prompt, "cold color", "", "", f"{mos:.9f}", "0.5", "0.4", "0.6"])
    (root / "data.csv").write_bytes(text.getvalue().encode())
    return root


def runner(monkeypatch: pytest.MonkeyPatch, tree: Path) -> Run:
    """``run(*flags, scorer=...)``: the recipe in this process, on ``tree``, with results in ``tree/out``; no plot."""
    recipe = load_recipe()
    monkeypatch.setattr(recipe, "RESAMPLES", 40)
    monkeypatch.setattr(recipe, "plot", lambda *args: None)

    def run(*flags: object, scorer: FakeScorer | None = None) -> int:
        monkeypatch.setattr(recipe, "make_scorer", lambda config: scorer or FakeScorer())
        status: int = recipe.main(["--root", str(tree), "--out", str(tree / "out"), *map(str, flags)])
        return status

    return run


def edit(root: Path, change: Callable[[list[str]], object]) -> None:
    """Change the lines of data.csv."""
    path = root / "data.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def result_of(root: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((root / "out" / "metrics.json").read_text(encoding="utf-8"))
    return values


def scores_of(root: Path) -> list[dict[str, str]]:
    with (root / "out" / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def set_mos(value: str) -> Callable[[Path], None]:
    def change(lines: list[str]) -> None:
        fields = lines[14].split(",")
        fields[-4] = value
        lines[14] = ",".join(fields)

    return lambda root: edit(root, change)
