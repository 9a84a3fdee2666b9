"""Pairs of generated images: make them, let people compare them, and see how often a scorer agrees with people.

    python evals/sd_pairs.py generate --model stable-diffusion-v1-5 --prompts prompts.txt --out runs/pairs
    python evals/sd_pairs.py collect runs/pairs/pairs.csv --out runs/pairs/page
    python evals/sd_pairs.py tally alice.csv bob.csv --out runs/pairs/judged
    python evals/sd_pairs.py score runs/pairs/judged/pairs.csv --images runs/pairs --model default mine.safetensors
    python evals/sd_pairs.py score --agiqa AGIQA-3K --scores other=other.csv

generate draws two images per prompt with a diffusers text-to-image pipeline; collect makes a page on which people say,
blind, which is better; tally counts the answers that the page downloaded; score compares scorers with them. Each tells
more with --help. A killed run goes on with the same command: an image that is there is neither drawn nor scored again.
"""

import csv
import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, PngImagePlugin
from tqdm import tqdm

import attriqa
from attriqa.config import claim_folder, opt, required, run_command
from attriqa.data.datasets import read_agiqa
from attriqa.evaluation.preferences import pairs
from attriqa.evaluation.preferences.files import (
    black_images,
    image_name,
    is_blank,
    match_scores,
    read_pairs,
    read_prompts,
    read_scores,
)
from attriqa.evaluation.preferences.pair_report import agreement_text, draw_margins, published_pairs
from attriqa.evaluation.preferences.pairs import JudgedPair
from attriqa.evaluation.preferences.votes import Vote, left_share, read_votes, tally_votes, win_rate
from attriqa.evaluation.score_files import score_files
from attriqa.evaluation.score_table import ScoreTable
from attriqa.files import as_dict, atomic_path, write_json
from attriqa.pages.ab import ABPair, write_ab_page

PER_PROMPT = 2
THRESHOLDS = (0.25, 0.5)  # of the difference in mean opinion score, for AGIQA's pairs
SMOKE_PROMPTS, SMOKE_STEPS, SMOKE_PAIRS = 2, 2, 20


@dataclass(frozen=True)
class Generate:
    """Draw two images per prompt."""

    model: str = required("a diffusers text-to-image pipeline: a local folder, or a name on the hub")
    prompts: Path = required("text file, UTF-8, one prompt a line; empty lines are skipped")
    out: Path = opt(Path("runs/sd_pairs"), "where images/, manifest.csv, pairs.csv and metrics.json go")
    steps: int = opt(50, "denoising steps")
    guidance: float | None = opt(None, "scale of classifier-free guidance; without it, the pipeline's own")
    size: int | None = opt(None, "height and width in px; without it, the pipeline's own")
    batch: int = opt(4, "images drawn at once")
    dtype: Literal["float32", "bfloat16", "float16"] = opt("float32", "of the pipeline's weights")
    device: str = opt("cpu", "torch device")
    seed: int = opt(0, "an image's noise depends on this, its prompt and its number, and on nothing else")
    smoke: bool = opt(False, f"the first {SMOKE_PROMPTS} prompts, {SMOKE_STEPS} steps")

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")


@dataclass(frozen=True)
class Collect:
    """Make a page on which people compare the pairs, blind."""

    pairs: Path = required("CSV file with image_a,image_b,prompt", bare=True)
    out: Path = opt(Path("runs/sd_pairs_page"), "where page.html and metrics.json go")
    question: str = opt("Which picture has the better quality?", "asked of each pair")
    title: str = opt("Two pictures", "of the page")
    side: int = opt(1024, "longest side of a picture in the page, px; larger ones are reduced, both of a pair alike")
    seed: int = opt(0, "of the order of the pairs and of their sides; another one for each person is best")
    smoke: bool = opt(False, f"the first {SMOKE_PAIRS} pairs")


@dataclass(frozen=True)
class Tally:
    """Count the answers of one or more people."""

    votes: tuple[Path, ...] = required("CSV files that the page downloaded", bare=True)
    out: Path = opt(Path("runs/sd_pairs_judged"), "where pairs.csv, for score, and metrics.json go")
    seed: int = opt(0, "unused: nothing here is random")
    smoke: bool = opt(False, "unused: this takes no time")


@dataclass(frozen=True)
class Score:
    """Compare scorers with what people said."""

    pairs: Path | None = opt(None, "CSV file: image_a,image_b,prompt and votes_a,votes_b or preferred", bare=True)
    agiqa: Path | None = opt(None, "instead: folder of AGIQA-3K, whose images of one prompt are paired")
    images: Path | None = opt(None, "folder that paths in --pairs are relative to; without it, that of the file")
    model: tuple[str, ...] = opt(("default",), "scorers: default, checkpoints, or NAME=CHECKPOINT; none: no model")
    scores: tuple[str, ...] = opt((), "other scorers' tables, NAME=FILE, CSV with path,score, higher is better")
    allow_missing: bool = opt(False, "AGIQA: go on although images of data.csv are not there; they are counted")
    view: Literal["five_crop", "full"] = opt("five_crop", "what a model sees of an image")
    device: str = opt("cpu", "torch device")
    out: Path = opt(Path("runs/sd_pairs_score"), "where scores/, metrics.json, margins.json and margins.png go")
    seed: int = opt(0, "of the bootstrap over prompts")
    smoke: bool = opt(False, f"the first {SMOKE_PAIRS} pairs")

    def __post_init__(self) -> None:
        if (self.pairs is None) == (self.agiqa is None):
            raise ValueError("expected --pairs or --agiqa, one of them")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    run_command({"generate": generate, "collect": collect, "tally": tally, "score": score}, argv, __doc__)


def generate(config: Generate) -> None:
    """Draw what is not there yet, then write the manifest and the pairs."""
    prompts = read_prompts(config.prompts)
    if config.smoke:
        config, prompts = replace(config, steps=SMOKE_STEPS), prompts[:SMOKE_PROMPTS]
    # What may change from run to run: the images are the same, and a longer list of prompts adds to them.
    claim_folder(config.out, replace(config, prompts=Path("any"), batch=1, device="cpu", smoke=False))
    folder = config.out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(prompt, number) for prompt in prompts for number in range(PER_PROMPT)]
    todo = [image for image in wanted if not (folder / image_name(*image)).exists()]
    if todo:
        if len(todo) < len(wanted):
            print(f"{len(wanted) - len(todo)} of {len(wanted)} images are there already")
        pipeline = load_pipeline(config)
        with tqdm(total=len(todo), unit="image", disable=None) as bar:
            for start in range(0, len(todo), config.batch):
                draw(config, pipeline, todo[start : start + config.batch], folder)
                bar.update(len(todo[start : start + config.batch]))
    finish_generation(config, prompts)


def noise_seed(config: Generate, prompt: str, number: int) -> int:
    """The seed of one image."""
    return int(hashlib.sha256(json.dumps([config.seed, prompt, number]).encode()).hexdigest()[:12], 16)


def load_pipeline(config: Generate) -> Any:
    """The pipeline, ready to draw."""
    import diffusers

    kind: Any = diffusers.DiffusionPipeline  # its methods carry no annotations
    dtype = getattr(torch, config.dtype)
    try:
        pipeline = kind.from_pretrained(config.model, dtype=dtype, use_safetensors=True)  # no pickle
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"model: {config.model} cannot be loaded as a diffusers pipeline: {error}") from error
    arguments = inspect.signature(pipeline.__call__).parameters
    needed = {"prompt", "generator", "num_inference_steps"} - arguments.keys()
    if needed:
        found = type(pipeline).__name__
        raise ValueError(f"model: expected a text-to-image pipeline, got {found}, which takes no {', '.join(needed)}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(config.device, dtype)  # the dtype again: older versions of diffusers do not know it above


def draw(config: Generate, pipeline: Any, batch: Sequence[tuple[str, int]], folder: Path) -> None:
    """Draw one batch and write its images, each with what made it in its PNG text."""
    settings: dict[str, Any] = {} if config.guidance is None else {"guidance_scale": config.guidance}
    if config.size is not None:
        settings |= {"height": config.size, "width": config.size}
    seeds = [noise_seed(config, *image) for image in batch]
    result = pipeline(
        prompt=[prompt for prompt, _ in batch],
        num_inference_steps=config.steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],  # on the CPU: one noise for every device
        output_type="pil",
        **settings,
    )
    flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(batch)
    for (prompt, number), picture, seed, flag in zip(batch, result.images, seeds, flagged, strict=True):
        text = PngImagePlugin.PngInfo()
        about = {"prompt": prompt, "seed": str(seed), "model": config.model, "nsfw": str(int(bool(flag)))}
        for key, value in about.items():
            text.add_itxt(key, value)
        with atomic_path(folder / image_name(prompt, number)) as temporary:
            picture.save(temporary, "PNG", pnginfo=text)


def finish_generation(config: Generate, prompts: Sequence[str]) -> None:
    """Write manifest.csv, of every image, and pairs.csv, of the prompts with no blanked image."""
    rows, pair_rows, blanked = [], [], []
    for prompt in prompts:
        names = [f"images/{image_name(prompt, number)}" for number in range(PER_PROMPT)]
        blank = []
        for name in names:
            with Image.open(config.out / name) as picture:
                text = picture.info
            blank.append(is_blank(config.out / name) or text.get("nsfw") == "1")
            rows.append([name, prompt, text.get("seed", ""), text.get("nsfw", ""), int(blank[-1])])
        if any(blank):
            blanked.append(prompt)
        else:
            pair_rows += [[a, b, prompt] for a, b in combinations(names, 2)]
    write_csv(config.out / "manifest.csv", ["path", "prompt", "seed", "nsfw", "blank"], rows)
    write_csv(config.out / "pairs.csv", ["image_a", "image_b", "prompt"], pair_rows)
    result = {"images": len(rows), "pairs": len(pair_rows), "prompts": len(prompts), "blanked_prompts": blanked}
    write_json(config.out / "metrics.json", result | {"config": as_dict(config)})
    print(f"{len(rows)} images of {len(prompts)} prompts, {len(pair_rows)} pairs in {config.out / 'pairs.csv'}")
    if blanked:
        print(f"{len(blanked)} prompts are left out: an image is all black, or the safety checker flagged it:")
        print("\n".join(f"  {prompt[:80]}" for prompt in blanked[:10]))


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A CSV file, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def collect(config: Collect) -> None:
    """Write the page."""
    listed = read_pairs(config.pairs, judged=False)[: SMOKE_PAIRS if config.smoke else None]
    folder = config.pairs.parent
    refuse_missing(listed, folder)
    black = black_images((name for pair in listed for name in pair[:2]), folder)
    if black:
        raise ValueError(f"{len(black)} pictures are all black, nobody can compare them: {', '.join(black[:5])}")
    shown = [ABPair(f"{pair.image_a} | {pair.image_b}", *pair[:3]) for pair in listed]
    page = config.out / "page.html"
    with tqdm(total=len(shown), unit="pair", disable=None) as bar:
        write_ab_page(
            page, shown, config.title, config.question, config.seed, folder=folder, side=config.side, advance=bar.update
        )
    write_json(config.out / "metrics.json", {"pairs": len(shown), "config": as_dict(config)})
    print(f"{len(shown)} pairs in {page}, {page.stat().st_size / 1e6:.1f} MB; people open it and save their answers")


def tally(config: Tally) -> None:
    """Write all answers as one file of pairs; print how often the first of a pair wins, and whether sides matter."""
    votes: list[Vote] = []
    for path in config.votes:
        # Two people may both have left their name out: their files tell them apart.
        votes += [vote._replace(rater=vote.rater or str(path)) for vote in read_votes(path)]
    twice = [key for key, count in Counter((vote.pair, vote.rater) for vote in votes).items() if count > 1]
    if twice:
        raise ValueError(f"two files hold an answer of {twice[0][1]!r} to {twice[0][0]!r}; is one a copy?")
    tallies = tally_votes(votes)
    rate = win_rate(tallies)
    header = ["image_a", "image_b", "prompt", "votes_a", "votes_b", "votes_tie", "n_votes"]
    write_csv(config.out / "pairs.csv", header, [[*entry[1:], sum(entry[4:])] for entry in tallies])
    result: dict[str, Any] = {"win_rate_a": rate._asdict(), "raters": len({vote.rater for vote in votes})}
    sides = left_share(votes)
    if sides is not None:
        result |= {"left_share": sides[0], "left_share_low": sides[1].low, "left_share_high": sides[1].high}
    write_json(config.out / "metrics.json", result | {"config": as_dict(config)})
    print(
        f"{rate.votes} answers of {result['raters']} people to {rate.n} pairs; majority for image_a in {rate.wins}, ",
        end="",
    )
    print(f"for image_b in {rate.losses}, ties {rate.ties}")
    print(f"image_a wins {100 * rate.rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}] (Wilson, ties 1/2)")
    if sides is not None:
        print(f"the left picture was preferred in {100 * sides[0]:.1f} % ", end="")
        print(f"[{100 * sides[1].low:.1f}, {100 * sides[1].high:.1f}]; sides were random")


def score(config: Score) -> None:
    """Score every image once, compare with people, print and write."""
    judged, folder, protocol = load_judged(config)
    if config.smoke:
        judged = judged[:SMOKE_PAIRS]
    refuse_missing(judged, folder)
    names = list(dict.fromkeys(name for pair in judged for name in pair[:2]))
    blank = set(black_images(names, folder))
    kept = [pair for pair in judged if not blank & {pair.image_a, pair.image_b}]
    if not kept:
        raise ValueError(f"expected pairs without an all-black image, got none of {len(judged)}")
    tables = all_scores(config, names, folder)
    edges = pairs.MOS_EDGES if config.agiqa else pairs.VOTE_EDGES
    found = pairs.compare(kept, tables, edges=edges, thresholds=THRESHOLDS if config.agiqa else (), seed=config.seed)
    result = {
        "protocol": protocol,
        "pairs": len(judged),
        "images": len(names),
        "black_images": sorted(blank),
        "pairs_left_out_for_black": len(judged) - len(kept),
        **found,
        "published": published_pairs(),
        "config": as_dict(config),
    }
    curves = {name: entry["margins"] for name, entry in found["scorers"].items()}
    write_json(config.out / "metrics.json", result)
    write_json(config.out / "margins.json", curves)
    if any(curves.values()):
        what = "difference in mean opinion score" if config.agiqa else "margin of votes, |a - b| / all"
        draw_margins(config.out / "margins.png", curves, what)
    print(agreement_text(result))


def load_judged(config: Score) -> tuple[list[JudgedPair], Path, str]:
    """The pairs, the folder that their paths are relative to, and what they are."""
    if config.agiqa is not None:
        data = read_agiqa(config.agiqa, allow_missing=config.allow_missing)
        rows = data.rows
        judged = pairs.same_prompt_pairs(
            [row.path.name for row in rows], [row.group for row in rows], [row.mos for row in rows]
        )
        if not judged:
            raise ValueError(f"{config.agiqa}: expected two images of some prompt, got none")
        left_out = f", {len(data.missing)} images missing" if data.missing else ""
        protocol = f"AGIQA-3K, every two images of a prompt, mean opinion of quality; {len(rows):,} images{left_out}"
        return judged, config.agiqa, protocol
    assert config.pairs is not None
    folder = config.images if config.images is not None else config.pairs.parent
    return read_pairs(config.pairs), folder, f"pairs of {config.pairs.name}, people's votes"


def refuse_missing(judged: Sequence[JudgedPair], folder: Path) -> None:
    """Stop where a pair's file is not there."""
    wanted = dict.fromkeys(name for pair in judged for name in pair[:2])
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(f"{len(missing)} of {len(wanted)} images are not in {folder}: {listed}")


def named(values: Sequence[str], *, need_name: bool) -> dict[str, str]:
    """NAME=FILE as FILE by NAME; without NAME=, a model is called by its file's stem."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, path = value.rpartition("=")
        name = name if equals else Path(path).stem
        if (need_name and not equals) or not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"expected NAME=FILE with a name of letters, digits, '.', '_' and '-', got {value!r}")
        if name in found:
            raise ValueError(f"two scorers are called {name}: {found[name]} and {path}; give one a name, NAME={path}")
        found[name] = path
    return found


def all_scores(config: Score, names: Sequence[str], folder: Path) -> dict[str, dict[str, float]]:
    """Scores by image, for every scorer by its name: of other tables and of models."""
    models = {} if config.model == ("none",) else named(config.model, need_name=False)
    others = named(config.scores, need_name=True)
    if models.keys() & others.keys() or not models | others:
        names_given = ", ".join([*models, *others]) or "none"
        raise ValueError(f"expected scorers, each with a name of its own, got {names_given}")
    theirs = {
        name: match_scores(read_scores(file), Path(file), names, folder) for name, file in others.items()
    }  # first: a fault in a table shall not come after an hour of scoring
    ours = {name: model_scores(config, name, path, names, folder) for name, path in models.items()}
    return ours | theirs


def model_scores(config: Score, name: str, model: str, names: Sequence[str], folder: Path) -> dict[str, float]:
    """A model's scores by image, from OUT/scores/NAME.csv and, where it lacks them, from the model."""
    reward = attriqa.QualityReward(model, view=config.view, device=config.device)
    path = config.out / "scores" / f"{name}.csv"
    columns = ("path", *reward.names)
    with ScoreTable(path, reward.identity, version=attriqa.__version__, columns=columns) as table:
        known = sum(image in table.rows for image in names)
        if known:
            print(f"{name}: {known} of {len(names)} images were scored before")
        for image, reason in score_files(reward, {image: folder / image for image in names}, table, title=name).items():
            raise ValueError(f"{folder / image}: {reason}")
        return {image: table.rows[image].score for image in names}


if __name__ == "__main__":
    main()
