"""Judge a quality model on AGIQA-3K: 2,982 AI images, 300 prompts, ten generator settings, quality opinions.

    python evals/agiqa.py --root AGIQA-3K

ROOT holds the official ``data.csv`` and its images side by side. OUT gets ``scores.csv`` (a row as each image is
scored; the same command again goes on where it stopped), ``metrics.json`` and ``scatter.png``. Exit status: 0; 1 if
something is missing, unreadable or not comparable (all of it is named, and no numbers are given); 130 if interrupted.
"""

import csv
import dataclasses
import io
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import attriqa
from attriqa.config import opt, parse_config, required
from attriqa.evaluation import metrics
from attriqa.evaluation.papers.published import TABLES
from attriqa.evaluation.preferences.files import black_images
from attriqa.evaluation.preferences.pairs import correctness, same_prompt_pairs
from attriqa.evaluation.score_files import row_of, score_files
from attriqa.evaluation.score_table import ScoreRow, ScoreTable, TableError
from attriqa.evaluation.text_tables import estimate
from attriqa.files import as_dict, atomic_path, write_json
from attriqa.images import ImageError
from attriqa.reward import FileScore

HEADER = ["name", "prompt", "adj1", "adj2", "style", "mos_quality", "std_quality", "mos_align", "std_align"]
GENERATORS = {  # every setting, as image names begin; in the plot, a hue for each generator and shades for its settings
    "AttnGAN_normal": "#7f7f7f",
    "glide_normal": "#b8860b",
    "DALLE2_normal": "#2ca02c",
    "midjourney_normal": "#9467bd",
    "midjourney_lowstep": "#c9aee5",
    "sd1.5_normal": "#1f5fa8",
    "sd1.5_highcorr": "#4a90d9",
    "sd1.5_lowcorr": "#8fbce6",
    "sd1.5_lowstep": "#00b3b3",
    "xl2.2_normal": "#d62728",
}
NAME = re.compile(f"({'|'.join(map(re.escape, GENERATORS))})_\\d+\\.jpg")
OFFICIAL = 2982
SMOKE = 40
RESAMPLES = 1000  # behind every bootstrap interval
BESIDE = ("mos_quality", "generator", "prompt")  # the last columns of scores.csv
PEERS = TABLES["ATTIQA table 9"].rows  # SROCC, PLCC
PEER_PROTOCOL = "trained on KonIQ-10k, all 2,982 images (ATTIQA, table 9); protocols differ: not to be ranked with ours"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Config:
    """What this run does."""

    root: Path = required("folder with the official data.csv and its images beside it")
    out: Path = opt(Path("runs/agiqa"), "folder of results")
    model: str = opt("default", "the embedded weights, or a checkpoint's path")
    view: Literal["five_crop", "full", "own"] | None = opt(None, "what the model sees of an image; none: its usual one")
    device: str = opt("cpu", "torch device")
    allow_missing: bool = opt(False, "give numbers although rows are unusable or images missing; they are counted")
    seed: int = opt(0, "of the bootstrap")
    smoke: bool = opt(False, f"the first {SMOKE} images, prompt by prompt: does it run?")


class DataError(Exception):
    """Why no numbers are given; the message is all that the user needs."""


class Row(NamedTuple):
    """One image of data.csv: ``mos`` in 0..4.5, higher is better."""

    name: str
    mos: float
    generator: str
    prompt: str


def make_scorer(config: Config) -> attriqa.QualityReward:
    """The model."""
    return attriqa.QualityReward(config.model, view=config.view, device=config.device)


def read_table(root: Path) -> tuple[list[Row], dict[str, str]]:
    """The rows of ROOT/data.csv that can be read, and what is wrong with those and with others, by image or row."""
    path = root / "data.csv"
    try:
        records = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a UTF-8 CSV file: {error}") from error
    if not records or records[0] != HEADER:
        found = ",".join(records[0]) if records else "nothing"
        raise DataError(f"{path}: expected the header {','.join(HEADER)}, found {found[:300]}")
    rows: dict[str, Row] = {}
    problems: dict[str, str] = {}
    for number, record in enumerate(records[1:], start=2):
        row = parse(record)
        if isinstance(row, str):
            problems[f"data.csv row {number}"] = row
        elif row.name in rows:
            problems[row.name] = f"more than one row in data.csv, the last is row {number}"
        else:
            rows[row.name] = row
    for name in rows:
        if not (root / name).is_file():
            problems[name] = f"no such image in {root}"
    return list(rows.values()), problems


def parse(record: Sequence[str]) -> Row | str:
    """A row of data.csv, or what is wrong with it."""
    if len(record) != len(HEADER):
        return f"expected {len(HEADER)} fields, found {len(record)}: {','.join(record)[:80]}"
    values = dict(zip(HEADER, record, strict=True))
    name = NAME.fullmatch(values["name"])
    if not name:
        return f"{values['name'][:80]!r} is no official image name: GENERATOR_SETTING_NUMBER.jpg"
    try:
        mos = float(values["mos_quality"])
    except ValueError:
        mos = math.nan
    if not 0 <= mos <= 5:
        return f"{name[0]}: expected mos_quality within 0 to 5, found {values['mos_quality'][:80]!r}"
    if not values["prompt"].strip() or len(values["prompt"].splitlines()) != 1:
        return f"{name[0]}: expected a prompt of one line, found {values['prompt'][:80]!r}"
    return Row(name[0], mos, name[1], values["prompt"])


def refuse_or_tell(config: Config, problems: dict[str, str]) -> None:
    """Stop on problems, all counted and ten listed; with --allow-missing, tell of them and go on."""
    if not problems:
        return
    lines = [f"  {name}: {reason}" for name, reason in list(problems.items())[:10]]
    lines += [f"  and {len(problems) - 10} more"] if len(problems) > 10 else []
    text = "\n".join([f"{len(problems)} images or rows cannot be used:", *lines])
    if not config.allow_missing:
        raise DataError(f"{text}\nno numbers are given; --allow-missing gives them without these")
    print(f"left out, as --allow-missing says: {text}")


def score(
    config: Config, scorer: attriqa.QualityReward, rows: Sequence[Row], wanted: Sequence[Row]
) -> tuple[dict[str, float], dict[str, str]]:
    """Score what scores.csv lacks of the wanted rows; gives the scores by name, and why images have none."""
    path = config.out / "scores.csv"
    columns = ("name", "score", *scorer.attributes, *BESIDE)
    beside = {row.name: (repr(row.mos), row.generator, row.prompt) for row in rows}
    adopt_run(config)
    with ScoreTable(
        path, scorer.identity, version=attriqa.__version__, columns=columns, attributes=scorer.attributes, beside=beside
    ) as table:
        for name in ("metrics.json", "scatter.png"):  # of an earlier run: nobody shall take them for this one's
            (config.out / name).unlink(missing_ok=True)
        known = sum(row.name in table.rows for row in wanted)
        if known:
            print(f"{known} of {len(wanted)} images were scored before")
        files = {row.name: config.root / row.name for row in wanted}
        unreadable = score_files(scorer, files, table, read=row_without_distortions)
        return {name: row.score for name, row in table.rows.items()}, unreadable


def row_without_distortions(name: str, result: FileScore) -> ScoreRow | str:
    """What the table holds of a result."""
    return row_of(name, result._replace(distortions=None))


def adopt_run(config: Config) -> None:
    """Scores of a version that kept what made them in run.json go on; this goes with the next version."""
    old = config.out / "run.json"
    if old.exists():
        identity = json.loads(old.read_text(encoding="utf-8"))["identity"]
        write_json(config.out / "scores.csv.meta.json", {"kind": "attriqa scores", "identity": identity})
        old.unlink()


def find_black(config: Config, rows: Sequence[Row]) -> list[str]:
    """Names of the images that are all black, as safety checkers leave them."""
    try:
        return black_images([row.name for row in rows], config.root)
    except ImageError as error:  # scored by an earlier run, and changed since
        raise DataError(f"{error}; it was scored when it could be read") from error


def agreement(x: Floats, y: Floats, config: Config) -> dict[str, Any]:
    """The report of scores x against mos y, or why there is none."""
    try:
        fit = metrics.fit_logistic(x, y)
        values: dict[str, Any] = dict(metrics.report(x, y, seed=config.seed, resamples=RESAMPLES, fit=fit))
    except ValueError as error:
        return {"n": len(x), "undefined": str(error)}
    return values | {"logistic": dataclasses.asdict(fit) if fit.converged else None, "logistic_failure": fit.reason}


def per_generator(rows: Sequence[Row], x: Floats, y: Floats, config: Config) -> dict[str, dict[str, Any]]:
    """For each generator setting, the best liked first: n, means and the SROCC among its own images."""
    rng = np.random.default_rng(config.seed)
    table: dict[str, dict[str, Any]] = {}
    for name in {row.generator: None for row in rows}:
        of = np.array([row.generator == name for row in rows])
        table[name] = {"n": int(of.sum()), "mean_mos": y[of].mean(), "mean_score": x[of].mean()}
        try:
            low, high = metrics.intervals(x[of], y[of], ("srocc",), rng=rng, resamples=RESAMPLES)["srocc"]
            table[name] |= {"srocc": metrics.srocc(x[of], y[of]), "srocc_low": low, "srocc_high": high}
        except ValueError as error:
            table[name] |= {"srocc": None, "srocc_low": None, "srocc_high": None, "undefined": str(error)}
    return dict(sorted(table.items(), key=lambda item: -item[1]["mean_mos"]))


def within_prompt(rows: Sequence[Row], x: Floats, y: Floats, config: Config) -> dict[str, Any]:
    """SROCC among a prompt's images, averaged over prompts of 3 images and more; accuracy on same-prompt pairs."""
    prompts = np.array([row.prompt for row in rows])
    values, undefined = [], 0
    for prompt in np.unique(prompts):
        members = np.flatnonzero(prompts == prompt)
        if len(members) >= 3:
            try:
                values.append(metrics.srocc(x[members], y[members]))
            except ValueError:  # all equal, in score or in mos: counted, and told
                undefined += 1
    result: dict[str, Any] = {"srocc_within_prompt": float(np.mean(values)) if values else None}
    rng = np.random.default_rng(config.seed)
    low, high = metrics.mean_interval(values, rng=rng, resamples=RESAMPLES) if len(values) > 1 else (None, None)
    result |= {"srocc_within_prompt_low": low, "srocc_within_prompt_high": high}
    result |= {"prompts_within": len(values), "prompts_undefined": undefined}
    pairs = [pair for pair in same_prompt_pairs([row.name for row in rows], prompts.tolist(), y) if pair.preference]
    score = dict(zip((row.name for row in rows), x, strict=True))
    right = correctness(pairs, [score[pair.image_a] for pair in pairs], [score[pair.image_b] for pair in pairs])
    accuracy = float(right.mean()) if pairs else None
    low, high = metrics.wilson(float(right.sum()), len(pairs)) if pairs else (None, None)
    result |= {"pairs": len(pairs), "pair_accuracy": accuracy}
    return result | {"pair_accuracy_low": low, "pair_accuracy_high": high}


def evaluate(
    config: Config,
    scorer: attriqa.QualityReward,
    rows: Sequence[Row],
    scores: dict[str, float],
    black: Sequence[str],
) -> dict[str, Any]:
    """All of metrics.json but what was left out; the ``black`` images count, as in the protocol, and once do not."""
    x, y = np.array([scores[row.name] for row in rows]), np.array([row.mos for row in rows])
    overall = agreement(x, y, config)
    if "undefined" in overall:
        raise DataError(f"no correlation: {overall['undefined']}")
    modern = np.array([not row.generator.startswith(("AttnGAN", "glide")) for row in rows])
    without = agreement(x[modern], y[modern], config)
    lit = np.array([row.name not in black for row in rows])
    prompts = len({row.prompt for row in rows})
    zero_shot = "zero-shot:" if config.model == "default" else "zero-shot, if this checkpoint was"
    return {
        "protocol": f"{zero_shot} trained on no AGIQA-3K image; "
        f"{len(rows):,} images of {OFFICIAL:,} of the official set, {prompts} prompts",
        "identity": scorer.identity,
        "view": scorer.view,
        **overall,
        **{f"srocc_without_attngan_glide{end}": without.get(f"srocc{end}") for end in ("", "_low", "_high")},
        "without_attngan_glide": without,
        "black_images": list(black),
        "without_black": agreement(x[lit], y[lit], config) if black else None,
        **within_prompt(rows, x, y, config),
        "per_generator": per_generator(rows, x, y, config),
        "prompts": prompts,
        "published": {"protocol": PEER_PROTOCOL}
        | {name: {"srocc": srocc, "plcc": plcc} for name, (srocc, plcc) in PEERS.items()},
        "resamples": RESAMPLES,
        "config": as_dict(config),
    }


def show(result: dict[str, Any]) -> None:
    """Print what metrics.json holds."""
    print(f"\nAGIQA-3K, quality. {result['protocol']}")
    print(f"model {result['identity']}; [95 % bootstrap interval over images]")
    print(f"\n{'':22}{'n':>5}  {'SROCC':22}{'PLCC':22}{'PLCC fitted':22}{'KROCC':22}RMSE")
    parts = {"all": result, "no AttnGAN, no GLIDE": result["without_attngan_glide"]}
    parts |= {"all but black ones": result["without_black"]} if result["black_images"] else {}
    for title, values in parts.items():
        cells = "".join(f"{estimate(values, name):22}" for name in metrics.STATISTICS)
        print(f"{title:22}{values['n']:>5}  {values.get('undefined', cells)}".rstrip())
        if values.get("logistic_failure"):
            print(f"  the logistic fit failed, PLCC fitted and RMSE are of raw scores: {values['logistic_failure']}")
    if result["black_images"]:
        names = result["black_images"]
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        print(f"all black, as a safety checker leaves an image: {len(names)}, {listed}; counted but in the last row")
    print(f"\n{'generator':22}{'n':>5}  {'mean MOS':10}{'mean score':12}SROCC among its images")
    for name, entry in result["per_generator"].items():
        why = f" ({entry['undefined']})" if "undefined" in entry else ""
        means = f"{entry['mean_mos']:<10.3f}{entry['mean_score']:<12.3f}"
        print(f"{name:22}{entry['n']:>5}  {means}{estimate(entry, 'srocc')}{why}")
    within, found = estimate(result, "srocc_within_prompt"), estimate(result, "pair_accuracy")
    print(
        f"\nwithin a prompt: mean SROCC {within}, over {result['prompts_within']} prompts of 3 images and more "
        f"({result['prompts_undefined']} more with all equal)\nsame-prompt pairs: the better one found in {found} of "
        f"{result['pairs']:,} (Wilson; pairs share images, so too narrow)"
    )
    print(f"\npublished: {PEER_PROTOCOL}")
    for name, (srocc, plcc) in {**PEERS, "(ours": (result["srocc"], result["plcc"])}.items():
        print(f"  {name:12}SROCC {srocc:.3f}  PLCC {plcc:.3f}" + (", as said above)" if name == "(ours" else ""))


def plot(config: Config, result: dict[str, Any], rows: Sequence[Row], scores: dict[str, float]) -> None:
    """Write scatter.png: score against mos, by generator setting, with the means of each and the fitted logistic."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.add_subplot()
    if result["logistic"]:
        line = np.sort([scores[row.name] for row in rows])
        curve = metrics.LogisticFit(**result["logistic"])(line)
        axes.plot(line, curve, color="black", linewidth=1.5, label="fitted logistic")
    for name, entry in result["per_generator"].items():
        x, y = np.transpose([(scores[row.name], row.mos) for row in rows if row.generator == name])
        axes.scatter(x, y, s=10, alpha=0.45, linewidths=0, color=GENERATORS[name], zorder=1)
        label = f"{name} ({entry['n']})"
        axes.plot(x.mean(), y.mean(), "o", color=GENERATORS[name], ms=11, mec="white", mew=1.5, label=label)
    axes.set(xlabel=f"score of {result['identity']}", ylabel="mean opinion score of quality")
    title = (
        f"AGIQA-3K, {len(rows):,} of {OFFICIAL:,} images\nSROCC {estimate(result, 'srocc')}, PLCC after the logistic "
    )
    axes.set_title(title + estimate(result, "plcc_fitted"), loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, title="mean of generator (images)", fontsize=9)
    with atomic_path(config.out / "scatter.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def run(config: Config) -> None:
    """Check, score, evaluate, show."""
    rows, problems = read_table(config.root)
    refuse_or_tell(config, problems)
    wanted = [row for row in rows if row.name not in problems]
    if config.smoke:  # by prompt, so that every generator is met: data.csv itself begins with 300 of AttnGAN
        wanted = sorted(wanted, key=lambda row: row.prompt)[:SMOKE]
    try:
        scorer = make_scorer(config)
    except (OSError, ValueError) as error:
        raise DataError(f"--model {config.model}: {error}") from error
    try:
        scores, unreadable = score(config, scorer, rows, wanted)
    except TableError as error:
        raise DataError(f"{error}; or choose another --out") from error
    refuse_or_tell(config, unreadable)
    wanted = [row for row in wanted if row.name not in unreadable]
    result = evaluate(config, scorer, wanted, scores, find_black(config, wanted))
    left_out = problems | unreadable
    write_json(config.out / "metrics.json", result | {"excluded": {"n": len(left_out), "reasons": left_out}})
    plot(config, result, wanted, scores)
    show(result)
    print(f"\nwrote metrics.json, scores.csv and scatter.png in {config.out}; {len(left_out)} images or rows left out")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command."""
    config = parse_config(Config, argv, __doc__)
    try:
        run(config)
    except DataError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from {config.out}/scores.csv", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
