r"""The papers' experiments, each a set of fine-tunings: in-domain, cross-dataset, data-efficient, linear probe.

    python evals/benchmark.py --data clive=ChallengeDB_release koniq=koniq-10k --experiments in-domain cross \
        --finetune="--init runs/pretrain/model.safetensors" --out runs/benchmark
    python evals/benchmark.py --data kadid=kadid10k csiq=CSIQ --experiments exiqa-identification exiqa-zero-shot \
        --study="--clip ViT-B-16:openai" --out runs/exiqa

Each data set and variant is one run of ``training/finetune.py``, or of a recipe for models on CLIP, in a folder of
its own, OUT/VARIANT/NAME, its output in OUT/VARIANT/NAME.log. What is done is not done again: the same command goes on
where it was killed, at the fold that was under way. Before anything is trained, all data sets are read, and test images
that are training images too are refused. ``metrics.json`` and ``benchmark.md`` in OUT then hold the medians with 95 %
intervals, and beside them what the papers report, each with its protocol. Exit status: 0; 1 if the data are refused or
a run failed (it is named, the others are finished); 130 if interrupted.
"""

import dataclasses
import shlex
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from attriqa.config import claim_folder, opt, parse_config, required
from attriqa.data.datasets import READERS, Dataset, read_dataset
from attriqa.data.leaks import check_leak
from attriqa.data.splits import official_fold
from attriqa.evaluation import metrics
from attriqa.evaluation.bootstrap import fold_spread
from attriqa.evaluation.papers import published, studies
from attriqa.evaluation.papers.runs import RunError, execute, locked, read_folds, words_of
from attriqa.evaluation.papers.studies import Study, StudyName
from attriqa.evaluation.text_tables import estimate, markdown
from attriqa.files import as_dict, atomic_path, write_json

Rows = list[dict[str, Any]]
Folds = Sequence[dict[str, Any]]  # each as fine-tuning writes it
Experiment = Literal["in-domain", "cross", "data-efficient", "linear-probe", StudyName]
VIEWS = ("five_crop", "full")  # the papers' way of testing, and the whole image
OFFICIAL = ("flive", "ava")  # the papers use the official split of these, random splits of the others
OURS = ("--data", "--out", "--protocol", "--splits", "--fraction", "--mode", "--test", "--seed", "--smoke")
TRAINING = Path(__file__).resolve().parent.parent / "training"
TITLES: dict[str, str] = {
    "in-domain": "In-domain",
    "cross": "Cross-dataset: trained on the training side of each split, tested on the whole of another data set",
    "data-efficient": "Data-efficient: a share of the training side, the test side as in-domain",
    "linear-probe": "Linear probe: frozen encoder",
}
HEADS = (
    *("data", "protocol", "n train", "n test", "SROCC", "PLCC", "PLCC fitted", "cosine", "published: SROCC / PLCC"),
)


@dataclass(frozen=True)
class Config:
    """What is run."""

    data: tuple[str, ...] = required(f"data sets, each NAME=ROOT with a NAME of {', '.join(READERS)}")
    experiments: tuple[Experiment, ...] = opt(("in-domain",), "which experiments")
    out: Path = opt(Path("runs/benchmark"), "where everything goes")
    splits: int = opt(10, "random 80/20 splits, seeded 0, 1, ...")
    split: Literal["paper", "random", "official"] = opt(
        "paper", "kind of split: the papers' (official for flive and ava), random, or official"
    )
    fractions: tuple[float, ...] = opt((0.1, 0.2), "data-efficient: shares of the training side")
    finetune: str = opt("", "more flags for every fine-tuning, in one word: --finetune='--init FILE'")
    finetune_script: Path = opt(TRAINING / "finetune.py", "the recipe that is run; another must write the same files")
    study: str = opt("", "likewise for the recipes of models on CLIP: --study='--clip ViT-B-16:openai'")
    launcher: str = opt("", "what starts it, as 'accelerate launch'; by default this Python")
    seed: int = opt(0, "of everything random but the splits")
    smoke: bool = opt(False, "a size for tests: one split, one share, fine-tuning's own --smoke")

    def __post_init__(self) -> None:
        for spec in self.data:
            name, _, root = spec.partition("=")
            if name not in READERS or not root:
                raise ValueError(f"data: expected NAME=ROOT with a NAME of {', '.join(READERS)}, got {spec}")
        if len(self.roots()) < len(self.data):
            raise ValueError(f"data: expected each NAME once, got {' '.join(self.data)}")
        if "cross" in self.experiments and len(self.data) < 2:
            raise ValueError("data: the experiment cross needs two data sets or more")
        if self.splits < 1:
            raise ValueError(f"splits: expected at least 1, got {self.splits}")
        if not all(0 < fraction < 1 for fraction in self.fractions):
            raise ValueError(f"fractions: expected numbers within (0, 1), got {self.fractions}")
        for name, flags in (("finetune", self.finetune), ("study", self.study)):
            if taken := [word for word in shlex.split(flags) if word.split("=")[0] in OURS]:
                raise ValueError(f"{name}: {', '.join(taken)} is set by this recipe")
        self.studies()

    def studies(self) -> list[Study]:
        """The runs of other recipes than fine-tuning."""
        return studies.studies_of(self.experiments, self.roots(), splits=self.splits)

    def roots(self) -> dict[str, str]:
        """The root of each data set by its name."""
        return {name: root for name, _, root in (spec.partition("=") for spec in self.data)}


class Run(NamedTuple):
    """One call of the fine-tuning recipe: all folds of one data set in one way."""

    name: str
    variant: str  # "full", "linear", "fraction0.1"
    fraction: float
    official: bool
    folds: int
    tests: dict[str, str]  # what fine-tuning's results call the data sets that it is also tested on, by NAME
    folder: Path

    @property
    def protocol(self) -> str:
        """What its numbers are medians of, in words."""
        split = f"random 80/20 splits by group, median of {self.folds}" if self.folds > 1 else "one random 80/20 split"
        split = "official split" if self.official else split
        return split if self.fraction == 1 else f"{self.fraction * 100:g} % of the training side; {split}"


def plan(config: Config, data: dict[str, Dataset]) -> list[Run]:
    """Every run that the experiments need; in-domain and cross share theirs."""
    variants: dict[str, float] = {}
    if {"in-domain", "cross"} & set(config.experiments):
        variants["full"] = 1.0
    if "data-efficient" in config.experiments:
        variants |= {f"fraction{fraction:g}": fraction for fraction in config.fractions}
    if "linear-probe" in config.experiments:
        variants["linear"] = 1.0
    runs = []
    for variant, fraction in variants.items():
        for name in data:
            official = config.split == "official" or (config.split == "paper" and name in OFFICIAL)
            cross = variant == "full" and "cross" in config.experiments
            tests = {other: data[other].name for other in data if cross and other != name}
            folds = 1 if official else config.splits
            runs.append(Run(name, variant, fraction, official, folds, tests, config.out / variant / name))
    return runs


def command(config: Config, run: Run) -> list[str]:
    """The words that start a run."""
    words = words_of(config.finetune_script, config.launcher)
    words += ["--data", f"{run.name}={config.roots()[run.name]}", "--out", str(run.folder)]
    words += ["--protocol", "official"] if run.official else ["--protocol", "splits", "--splits", str(run.folds)]
    words += ["--mode", "linear" if run.variant == "linear" else "full"]
    words += ["--fraction", f"{run.fraction:g}"] if run.fraction < 1 else []
    words += ["--test", *(f"{name}={config.roots()[name]}" for name in run.tests)] if run.tests else []
    return [*words, "--seed", str(config.seed), *["--smoke"] * config.smoke, *shlex.split(config.finetune)]


def study_command(config: Config, study: Study) -> list[str]:
    """Likewise of a study."""
    words = [*words_of(TRAINING / study.recipe, config.launcher), *study.words, *studies.start_of(study, config.out)]
    words += [
        "--out",
        str(study.folder(config.out)),
        "--seed",
        str(config.seed),
        *(["--smoke"] if config.smoke else []),
    ]
    return [*words, *(shlex.split(config.study) if study.after is None else [])]  # what it starts from has them


def refuse_leaks(config: Config, data: dict[str, Dataset], runs: Sequence[Run]) -> None:
    """Stop when an official test side holds training images, or two data sets of the cross experiment share some.

    Random splits are checked fold by fold, by the fine-tuning recipe.
    """
    for name in sorted({run.name for run in runs if run.official}):
        rows = data[name].rows
        fold = official_fold([row.split for row in rows], [row.group for row in rows])
        train, test = ([rows[i].path for i in side] for side in (fold.train, fold.test))
        check_leak(train, test, what=f"{name}, official split")
    if {"cross", "exiqa-zero-shot", "exiqa-transfer", "mp-iqe-cross"} & set(config.experiments):
        for one, other in combinations(data, 2):
            sides = ([row.path for row in data[name].rows] for name in (one, other))
            check_leak(*sides, what=f"{one} and {other}, of which each tests the other")


# Running


def results(run: Run) -> list[dict[str, Any]]:
    """The folds of a finished run.

    Raises:
        RunError: it is not finished, or its metrics.json lacks what this recipe reads.
    """
    folds = read_folds(run.folder, run.folds, key="five_crop")
    numbers = [name + end for name in metrics.STATISTICS for end in ("", "_low", "_high")] + ["n"]
    for fold in folds:
        parts = {view: fold.get(view, {}) for view in VIEWS}
        parts |= {title: fold.get("cross", {}).get(title, {}) for title in run.tests.values()}
        wanted = [(part, key, values.get(key)) for part, values in parts.items() for key in numbers]
        wanted.append(("fold", "n_train", fold.get("n_train")))
        lacking = [f"{part}.{key}" for part, key, value in wanted if not isinstance(value, int | float)]
        if lacking:
            raise RunError(f"{run.folder / 'metrics.json'}, {fold.get('fold')}: no number as {', '.join(lacking[:5])}")
    return folds


def obtain(config: Config, work: Run | Study, lock: int | None, bar: "tqdm[Any]") -> Rows:
    """The table rows of a run or a study, which is carried out unless it was."""
    if isinstance(work, Run):
        folder, count, words, read = work.folder, work.folds, command(config, work), partial(results, work)
    else:
        folder, count, words = work.folder(config.out), config.splits, study_command(config, work)
        read = partial(read_folds, folder, count)
    try:
        folds = read()
    except RunError:
        execute(words, folder, lock, partial(advance, bar, int(bar.n), folder, count))
        folds = read()
    return list(rows_of(config, work, folds) if isinstance(work, Run) else studies.rows_of(work, folds, path=folder))


def advance(bar: "tqdm[Any]", before: int, folder: Path, folds: int) -> None:
    """Let the bar count a run's finished folds."""
    bar.update(before + min(folds, len(list(folder.glob("*/metrics.json")))) - bar.n)


def run_all(config: Config, runs: Sequence[Run], lock: int | None) -> tuple[Rows, dict[str, str]]:
    """Run what is not finished; give the table rows of each run, and why others failed."""
    rows: Rows = []
    failed: dict[str, str] = {}
    works: list[Run | Study] = [*runs, *config.studies()]
    counts = [work.folds if isinstance(work, Run) else config.splits for work in works]
    with tqdm(total=sum(counts), unit="fold", disable=None) as bar:
        for work, count in zip(works, counts, strict=True):
            title, begin = f"{work.variant}/{work.name}", bar.n
            bar.set_description(title)
            try:
                rows += obtain(config, work, lock, bar)
            except RunError as error:
                failed[title] = str(error)
                tqdm.write(f"failed: {title}: {error}", file=sys.stderr)
            bar.update(begin + count - bar.n)
    return rows, failed


# Reporting


def medians(folds: Folds) -> dict[str, Any]:
    """Median of each statistic over folds; the interval is over folds, or over images where there is one fold."""
    values: dict[str, Any] = {"n": statistics.median(fold["n"] for fold in folds)}
    for name in metrics.STATISTICS:
        one = {key: folds[0][key] for key in (name, f"{name}_low", f"{name}_high")}
        values |= fold_spread(name, [fold[name] for fold in folds]) if len(folds) > 1 else one
        values[f"{name}_folds"] = [fold[name] for fold in folds]
    return values


def rows_of(config: Config, run: Run, folds: Folds) -> Iterator[dict[str, Any]]:
    """The table rows that a run gives: one of its own data set, one of each other it was tested on.

    What was published stands beside a row only where the papers split that data set in the same way.
    """
    comparable = run.official == (run.name in OFFICIAL)
    about = {"data": run.name, "protocol": run.protocol, "folds": len(folds)}
    about |= {"n_train": statistics.median(fold["n_train"] for fold in folds)}
    about |= {"interval": "over folds, which share images" if len(folds) > 1 else "over images"}
    if run.variant == "full":
        experiment, figures = "in-domain", published.in_domain(run.name)
    elif run.variant == "linear":
        experiment, figures = "linear-probe", published.linear_probe(run.name)
    else:
        experiment, figures = "data-efficient", published.data_efficient(run.name, run.fraction)
    if experiment in config.experiments:
        values: dict[str, Any] = {view: medians([fold[view] for fold in folds]) for view in VIEWS}
        cosines = [fold["feature_cosine"] for fold in folds if fold.get("feature_cosine") is not None]
        values["feature_cosine"] = statistics.median(cosines) if cosines else None
        values["published_feature_cosine"] = published.feature_cosine(run.name) if experiment == "in-domain" else None
        values["published"] = [figure._asdict() for figure in figures if comparable]
        yield {"experiment": experiment, **about, "test": run.name, **values}
    for test, title in run.tests.items():
        values = {"five_crop": medians([fold["cross"][title] for fold in folds])}
        values["published"] = [figure._asdict() for figure in published.cross_dataset(run.name, test) if comparable]
        yield {"experiment": "cross", **about, "test": test, **values}


def table(config: Config, rows: Sequence[dict[str, Any]]) -> str:
    """One Markdown table for each experiment, in the order of the command line."""
    lines = ["# Benchmark", ""]
    if config.smoke:
        lines += ["A run with --smoke: its numbers say nothing.", ""]
    for experiment in config.experiments:
        mine = [row for row in rows if row["experiment"] == experiment]
        if mine and experiment in studies.STUDIES:
            lines += studies.table(experiment, mine)
        if not mine or experiment in studies.STUDIES:
            continue
        cells = []
        for row in mine:
            values, data = row["five_crop"], row["data"] + (f" > {row['test']}" if row["test"] != row["data"] else "")
            pair = [row.get(key) for key in ("feature_cosine", "published_feature_cosine")]
            cosines = " / ".join(f"{value:.3f}" for value in pair if value is not None)
            counts = [f"{row['n_train']:g}", f"{values['n']:g}"]
            numbers = [estimate(values, name) for name in ("srocc", "plcc", "plcc_fitted")]
            shown = "; ".join(map(reported, row["published"])) or "none"
            cells.append([data, row["protocol"], *counts, *numbers, cosines, shown])
        lines += [f"## {TITLES[experiment]}", "", markdown(HEADS, cells, "llrrrrrrl")]
        sources = {figure["source"]: figure["protocol"] for row in mine for figure in row["published"]}
        lines += ["", *(f"- {source}: {protocol}" for source, protocol in sources.items()), ""]
    lines += [
        "Five crops; medians over folds, also of n. [95 % bootstrap interval: over folds, which share images, so it is "
        "none for new images; of a single fold, over images.] Cosine of features before and after: ours / ATTIQA's. "
        "Numbers of different protocols are not compared.",
        "",
    ]
    return "\n".join(lines)


def reported(figure: dict[str, Any]) -> str:
    """``ATTIQA table 3, ATTIQA: 0.829 / -``."""
    numbers = ("-" if value is None else f"{value:.3f}" for value in (figure["srocc"], figure["plcc"]))
    return f"{figure['source']}: {' / '.join(numbers)}"


def check(config: Config) -> list[Run]:
    """Read all data sets and look for leaks, before hours of training; the runs.

    Raises:
        SystemExit: one cannot be read, or there is a leak.
    """
    try:
        data = {name: read_dataset(name, root) for name, root in config.roots().items()}
        runs = plan(config, data)
        refuse_leaks(config, data, runs)
    except (ValueError, OSError) as error:  # DatasetError and LeakError are ValueErrors
        raise SystemExit(f"error: {error}") from error
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Check, run, report; the exit status."""
    config = parse_config(Config, argv, __doc__)
    if config.smoke:
        config = dataclasses.replace(config, splits=1, fractions=config.fractions[:1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    runs = check(config)
    claim_folder(config.out, config)
    try:
        with locked(config.out) as lock:
            rows, failed = run_all(config, runs, lock)
            write_json(config.out / "metrics.json", {"rows": rows, "failed": failed, "config": as_dict(config)})
            text = table(config, rows)
            with atomic_path(config.out / "benchmark.md") as temporary:
                temporary.write_text(text, encoding="utf-8")
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on in {config.out}", file=sys.stderr)
        return 130
    print(text)
    if failed:
        count = len(runs) + len(config.studies())
        print(f"{len(failed)} of {count} runs failed: {', '.join(failed)}; the same command tries them again")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
