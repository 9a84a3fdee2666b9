"""Compare image generators, or checkpoints of one, by the quality of folders of their images.

    python evals/compare_generators.py --generator old=samples/step1000 new=samples/step2000 --baseline old
    python evals/compare_generators.py --generator A=a B=b C=c --prompts prompts.csv --out runs/abc
    python evals/compare_generators.py --agiqa AGIQA-3K --allow-missing --out runs/agiqa_generators

Images of one prompt are compared with one another: those of one name (a.png and a.jpg in two folders), or those to
which prompts.csv (columns image,prompt) gives one prompt. OUT gets ``page.html``, which needs no network,
``metrics.json`` and the scores of each image in ``scores/``. The same command again goes on where it stopped; only an
image that has changed is scored twice. An image that is all black, as safety checkers leave it, is counted and left
out. Exit status: 0; 1 if an image could not be read (all of them are named) or nothing could be compared; 130 if
interrupted.
"""

import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import attriqa
from attriqa import images
from attriqa.config import opt, parse_config
from attriqa.data.datasets import read_agiqa
from attriqa.evaluation.preferences.files import match_images, prompts_by_name, read_image_prompts
from attriqa.evaluation.preferences.generator_report import compare, comparison_text
from attriqa.evaluation.preferences.generators import Generator
from attriqa.evaluation.score_files import row_of, score_files
from attriqa.evaluation.score_table import ScoreRow, ScoreTable, path_text
from attriqa.files import as_dict, write_json
from attriqa.images.forms import are_blank
from attriqa.models.assessment import Assessment
from attriqa.pages.comparison import write_comparison_page
from attriqa.reward import FileScore

BLACK = "all black, as safety checkers leave an image"
SMOKE = 8


@dataclass(frozen=True)
class Config:
    """What this run does."""

    generator: tuple[str, ...] = opt((), "two or more, each NAME=FOLDER of its images")
    agiqa: Path | None = opt(None, "instead: folder of AGIQA-3K, whose ten generator settings are compared")
    prompts: Path | None = opt(None, "CSV file with image,prompt; without it, images of one name are of one prompt")
    baseline: str | None = opt(None, "NAME that the others are compared with, prompt by prompt; of two, the first")
    out: Path = opt(Path("runs/generators"), "where page.html, metrics.json and scores/ go")
    model: str = opt("default", "the embedded weights, or a checkpoint's path")
    view: Literal["five_crop", "full"] = opt("five_crop", "what the model sees of an image")
    device: str = opt("cpu", "torch device")
    recursive: bool = opt(False, "look into the folders' subfolders too")
    allow_missing: bool = opt(False, "AGIQA: go on although images of data.csv are not there; they are counted")
    gallery: int = opt(8, "worst and best pictures of each generator in the page, at most")
    threads: int | None = opt(None, "that decode; without it, one per core, at most 8")
    resamples: int = opt(1000, "behind each bootstrap interval")
    seed: int = opt(0, "of the bootstrap over prompts")
    smoke: bool = opt(False, f"{SMOKE} images of each generator: does it run?")

    def __post_init__(self) -> None:
        if bool(self.generator) == (self.agiqa is not None):
            raise ValueError("expected --generator or --agiqa, one of them")
        if self.agiqa is not None and self.prompts is not None:
            raise ValueError("prompts: AGIQA-3K has its own")
        for name, least in (("gallery", 1), ("threads", 1), ("resamples", 100)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")


class ImageSet(NamedTuple):
    """A generator's images before they are scored: ``keys`` are their absolute paths as text, ``opinions`` a MOS."""

    name: str
    keys: list[str]
    paths: list[Path]
    prompts: list[str]
    opinions: list[float] | None = None

    def keep(self, places: Sequence[int]) -> "ImageSet":
        """The images at these places."""
        return ImageSet(
            self.name,
            [self.keys[place] for place in places],
            [self.paths[place] for place in places],
            [self.prompts[place] for place in places],
            None if self.opinions is None else [self.opinions[place] for place in places],
        )


class Scored(NamedTuple):
    """A generator's scores, and why images have none: ``left_out`` by path, all-black ones with the reason `BLACK`."""

    generator: Generator
    left_out: dict[str, str]


class RewardUnlessBlack(attriqa.QualityReward):
    """Scores as `attriqa.QualityReward` does, but an all-black image as minus infinity, which no other gets.

    So black images are found where they are decoded anyway, and no file is read twice to be scored.
    """

    def assess(self, images: Tensor, *, generator: torch.Generator | None = None) -> Assessment:
        """Arguments and errors as those of `attriqa.QualityReward.assess`."""
        found = super().assess(images, generator=generator)
        return found._replace(score=found.score.masked_fill(are_blank(images), -math.inf))


def make_scorer(config: Config) -> attriqa.QualityReward:
    """The model, which finds black images besides."""
    return RewardUnlessBlack(config.model, view=config.view, device=config.device)


def source(name: str, paths: Sequence[Path], prompts: Sequence[str], opinions: list[float] | None = None) -> ImageSet:
    """A generator's images, by keys that mean the same from any working directory."""
    keys = [path_text(os.path.abspath(path)) for path in paths]  # noqa: PTH100 (resolve would merge links)
    return ImageSet(name, keys, list(paths), list(prompts), opinions)


def find_sources(config: Config) -> tuple[list[ImageSet], list[str]]:
    """The images of each generator with their prompts, and notes on what was not used."""
    if config.agiqa is not None:
        sources, notes = agiqa_sources(config.agiqa, config.allow_missing)
    else:
        sources, notes = folder_sources(config)
    shared = Counter(chain.from_iterable(set(entry.prompts) for entry in sources))
    for entry in sources:
        alone = sum(shared[prompt] == 1 for prompt in set(entry.prompts))
        if alone:
            count = len(set(entry.prompts))
            notes.append(
                f"{entry.name}: {alone:,} of {count:,} prompts are no other generator's, so these are unpaired"
            )
    if config.smoke:  # the same prompts of all, where they share any
        sources = [
            entry.keep(
                sorted(range(len(entry.keys)), key=lambda n: (-shared[entry.prompts[n]], entry.prompts[n]))[:SMOKE]
            )
            for entry in sources
        ]
    return sources, notes


def agiqa_sources(root: Path, allow_missing: bool) -> tuple[list[ImageSet], list[str]]:
    """AGIQA-3K's generator settings, which its image names begin with."""
    data = read_agiqa(root, allow_missing=allow_missing)
    members: dict[str, list[int]] = {}
    for place, row in enumerate(data.rows):
        members.setdefault(row.path.stem.rpartition("_")[0], []).append(place)
    prompts = len({row.group for row in data.rows})
    notes = [f"AGIQA-3K: {len(data.rows):,} images of the 2,982 of the official set, {prompts:,} prompts"]
    notes += [f"AGIQA-3K: {len(data.missing):,} images of data.csv are missing"] if data.missing else []
    found = []
    for name, places in members.items():
        rows = [data.rows[place] for place in places]
        found.append(source(name, [row.path for row in rows], [row.group for row in rows], [row.mos for row in rows]))
    return found, notes


def folder_sources(config: Config) -> tuple[list[ImageSet], list[str]]:
    """The images in each folder of the command line."""
    folders: dict[str, Path] = {}
    for value in config.generator:
        name, equals, given = value.partition("=")
        if not equals or not given or not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"generator: expected NAME=FOLDER, NAME of letters, digits, '.', '_', '-', got {value!r}")
        if name in folders:
            raise ValueError(f"generator: two are called {name}: {folders[name]} and {given}")
        folders[name] = Path(given)
        if not folders[name].is_dir():
            raise ValueError(f"generator: {name}: expected a folder, got {given}")
    if len(folders) < 2:
        raise ValueError(f"generator: expected two or more, got {', '.join(folders)}")
    told = {} if config.prompts is None else read_image_prompts(config.prompts)
    found: list[ImageSet] = []
    used: set[str | None] = set()
    for name, folder in folders.items():
        paths = images.find([folder], recursive=config.recursive)
        files = [path.relative_to(folder).as_posix() for path in paths]
        if not paths:
            raise ValueError(f"{name}: no images in {folder}{'' if config.recursive else '; --recursive looks deeper'}")
        if config.prompts is None:
            try:
                prompts = prompts_by_name(files)
            except ValueError as error:
                raise ValueError(f"{name}: {error} in {folder}; say with --prompts what they show") from error
        else:
            rows = match_images(files, told)
            lacking = [file for file, row in zip(files, rows, strict=True) if row is None]
            if lacking:
                some = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
                missing = f"{len(lacking)} of {len(files)} images have no prompt, or more than one"
                raise ValueError(f"{name}: {missing}, in {config.prompts}: {some}")
            used |= set(rows)
            prompts = [told[row] for row in rows if row is not None]
        found.append(source(name, paths, prompts))
    unused = len(told.keys() - used)
    return found, [f"{config.prompts}: {unused:,} of its images are in no folder"] if unused else []


def score(config: Config, scorer: attriqa.QualityReward, entry: ImageSet) -> Scored:
    """Score a generator's images that OUT/scores/NAME.csv lacks, and tell those that have no score."""
    with open_table(config, scorer, entry) as table:
        black = {key for key, reason in table.errors.items() if reason == BLACK}
        files = {
            key: file for key, file in zip(entry.keys, entry.paths, strict=True) if key not in {*table.rows, *black}
        }
        if len(files) < len(entry.keys):
            print(f"{entry.name}: {len(entry.keys) - len(files):,} of {len(entry.keys):,} images were looked at before")
        if files:
            score_files(scorer, files, table, title=entry.name, threads=config.threads, read=row_unless_black)
        left_out = {key: table.errors[key] for key in entry.keys if key not in table.rows}
    chosen = entry.keep([place for place, key in enumerate(entry.keys) if key in table.rows])
    if not chosen.keys:
        reason = next(iter(left_out.values()))
        raise ValueError(f"{entry.name}: none of its {len(entry.keys):,} images can be used: {reason}")
    values = np.array([table.rows[key].values for key in chosen.keys])
    opinions = None if chosen.opinions is None else np.array(chosen.opinions)
    return Scored(Generator(entry.name, list(map(str, chosen.paths)), chosen.prompts, values, opinions), left_out)


def row_unless_black(key: str, result: FileScore) -> ScoreRow | str:
    """What the table holds of a result."""
    return BLACK if result.score == -math.inf else row_of(key, result)


def open_table(config: Config, scorer: attriqa.QualityReward, entry: ImageSet) -> ScoreTable:
    """The table of a generator's scores, without those of files that have changed since."""
    path = config.out / "scores" / f"{entry.name}.csv"
    written = modified(path)

    def opened() -> ScoreTable:
        return ScoreTable(path, scorer.identity, version=attriqa.__version__, columns=("path", *scorer.names))

    table = opened()
    known = {*table.rows, *table.errors}
    changed = {
        key for key, file in zip(entry.keys, entry.paths, strict=True) if key in known and modified(file) > written
    }
    if not changed:
        return table
    table.close()
    print(f"{entry.name}: {len(changed):,} images have changed since they were looked at, which is done again")
    # A table can only grow, so a new one takes what still holds of the old.
    table.errors_path.unlink(missing_ok=True)
    path.unlink()
    fresh = opened()
    for key, row in table.rows.items():
        if key not in changed:
            fresh.add(row)
    return fresh


def modified(file: Path) -> float:
    """When a file was last written, in seconds; 0 for one that is not there, which scoring will tell."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def notes_on(scored: Sequence[Scored]) -> list[str]:
    """What was left out, counted."""
    notes = []
    for generator, left_out in scored:
        total = len(generator.images) + len(left_out)
        black = sum(reason == BLACK for reason in left_out.values())
        for count, what in (
            (black, "all black, as safety checkers leave them"),
            (len(left_out) - black, "they could not be scored"),
        ):
            if count:
                notes.append(f"{generator.name}: {count:,} of {total:,} images left out: {what}")
    return notes


def run(config: Config) -> int:
    """Find, score, compare, show; gives the exit status."""
    sources, notes = find_sources(config)
    names = [entry.name for entry in sources]
    if config.baseline is not None and config.baseline not in names:
        raise ValueError(f"baseline: expected one of {', '.join(names)}, got {config.baseline}")
    baseline = config.baseline or (names[0] if len(names) == 2 else None)
    try:
        scorer = make_scorer(config)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: {config.model}: {error}") from error
    started = time.perf_counter()
    scored = [score(config, scorer, entry) for entry in sources]
    seconds = time.perf_counter() - started
    notes = [*notes_on(scored), *notes]
    generators = [entry.generator for entry in scored]
    found = compare(generators, scorer.names, baseline=baseline, seed=config.seed, resamples=config.resamples)
    left_out = {entry.generator.name: entry.left_out for entry in scored}
    result = {
        "identity": scorer.identity,
        "version": attriqa.__version__,
        **found,
        "notes": notes,
        "left_out": left_out,
        "scoring_seconds": round(seconds, 3),
        "config": as_dict(config),
    }
    write_json(config.out / "metrics.json", result)
    page = config.out / "page.html"
    with tqdm(desc="pictures", unit="image", disable=None, leave=False) as bar:
        write_comparison_page(
            page,
            generators,
            found,
            title="AGIQA-3K: generators compared" if config.agiqa is not None else f"Compared: {', '.join(names)}",
            identity=scorer.identity,
            version=attriqa.__version__,
            notes=notes,
            left_out=[(path, reason) for entry in left_out.values() for path, reason in entry.items()],
            gallery=config.gallery,
            threads=config.threads or min(8, os.cpu_count() or 1),
            advance=bar.update,
        )
    print("\n".join(["", comparison_text(found), "", *(f"note: {note}" for note in notes)]))
    print(f"scores by {scorer.identity}; {page}, {page.stat().st_size / 1e6:.1f} MB, and metrics.json beside it")
    return int(any(reason != BLACK for entry in left_out.values() for reason in entry.values()))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command."""
    config = parse_config(Config, argv, __doc__)
    try:
        return run(config)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from {config.out / 'scores'}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
