"""The papers' experiments on CLIP as data: which runs of which recipe a table takes, what of their results it shows.

``evals/benchmark.py`` runs them. Its other experiments are fine-tunings of an `AttributeNet`.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, cast, get_args

from attriqa.evaluation.bootstrap import fold_spread
from attriqa.evaluation.papers.published import TABLES
from attriqa.evaluation.papers.runs import RunError
from attriqa.evaluation.text_tables import estimate, markdown

StudyName = Literal[
    "exiqa-identification",
    "exiqa-quality",
    "exiqa-zero-shot",
    "exiqa-transfer",
    "clip-probe",
    "clip-iqa",
    "clip-iqa-plus",
    "liqe",
    "mp-iqe",
    "mp-iqe-cross",
    "mp-iqe-ablations",
    "mp-iqe-data",
    "mp-iqe-lengths",
]
STUDIES: tuple[StudyName, ...] = get_args(StudyName)


class _Experiment(NamedTuple):
    title: str
    table: str  # that its results stand beside
    row: str = ""  # of that table, where each data set is trained for itself
    recipe: str = ""  # likewise, and its words
    words: tuple[str, ...] = ()


_EXPERIMENTS: dict[str, _Experiment] = {
    "exiqa-identification": _Experiment("ExIQA: distortion identification (table 2)", "ExIQA table 2"),
    "exiqa-quality": _Experiment("ExIQA: quality from attributes (table 3)", "ExIQA table 3", "ExIQA"),
    "exiqa-zero-shot": _Experiment(
        "ExIQA: identification of another data set's distortions, zero-shot (table 4)", "ExIQA table 4"
    ),
    "exiqa-transfer": _Experiment(
        "ExIQA: quality of another data set from the first one's attributes (table 5)", "ExIQA table 5"
    ),
    "clip-probe": _Experiment(
        "A frozen CLIP, linear probe (ATTIQA, table 6)", "ATTIQA table 6", "CLIP", "train_clip_probe.py"
    ),
    "clip-iqa": _Experiment(
        "CLIP-IQA, zero-shot (MP-IQE, table 2)", "MP-IQE table 2", "CLIP-IQA", "train_clip_iqa.py", ("--context", "0")
    ),
    "clip-iqa-plus": _Experiment("CLIP-IQA+ (MP-IQE, table 2)", "MP-IQE table 2", "CLIP-IQA+", "train_clip_iqa.py"),
    "liqe": _Experiment("LIQE, each data set for itself (MP-IQE, table 1)", "MP-IQE table 1", "LIQE", "train_liqe.py"),
    "mp-iqe": _Experiment("MP-IQE in-domain (table 1)", "MP-IQE table 1", "MP-IQE", "train_mp_iqe.py"),
    "mp-iqe-cross": _Experiment(
        "MP-IQE cross-dataset: tested on the whole of another data set (table 3)", "MP-IQE table 3", "MP-IQE"
    ),
    "mp-iqe-ablations": _Experiment("MP-IQE: ablations (table 4)", "MP-IQE table 4"),
    "mp-iqe-data": _Experiment("MP-IQE: a share of the training side (table 5)", "MP-IQE table 5"),
    "mp-iqe-lengths": _Experiment("MP-IQE: lengths of prompts (table 6)", "MP-IQE table 6"),
}
TITLES = {name: experiment.title for name, experiment in _EXPERIMENTS.items()}
EXIQA_DATA = ("kadid", "tid2013", "csiq", "lvq", "live")
_VARIANTS: dict[StudyName, dict[str, tuple[str, ...]]] = {  # of MP-IQE: row of the published table -> words
    "mp-iqe-ablations": {
        "full": (),
        "no-scene": ("--no-scenes",),
        "no-distortion": ("--distortions", "none"),
        "no-visual": ("--prompt-kind", "none", "--prompts", "0"),
        "shallow-visual": ("--prompt-kind", "first"),
    },
    "mp-iqe-data": {f"{share} % MP-IQE": ("--fraction", f"0.{share // 10}") for share in (20, 40, 60)},
    "mp-iqe-lengths": {
        **{f"text {length}": ("--context", str(length)) for length in (2, 4, 8, 16)},
        **{f"visual {length}": ("--prompts", str(length)) for length in (1, 2, 4, 8)},
    },
}
_IDENTIFICATION = ("exiqa-identification", "exiqa-zero-shot")
_NAMED = ("accuracy", "present_accuracy", "mean_average_precision", "rmse", "rmse_mean")
_QUALITY = ("srocc", "plcc", "plcc_fitted")


class Study(NamedTuple):
    """One run of a recipe, and one row of each table that shows its results."""

    recipe: str  # file in training/
    variant: str  # folder in OUT
    name: str  # folder in that: the data set, or "a>b" with a hyphen
    words: tuple[str, ...]  # for the recipe, beside --out, --seed and --smoke
    shows: tuple[StudyName, ...]
    data: str  # as the table says it: "kadid", "kadid > csiq"
    after: tuple[str, str] | None = None  # variant and name of the run whose model this one starts from
    row: str = ""  # of the published table

    def folder(self, out: Path) -> Path:
        """Where its results are."""
        return out / self.variant / self.name


def studies_of(wanted: Sequence[str], roots: Mapping[str, str], *, splits: int) -> list[Study]:
    """The runs that experiments take, those that others start from first.

    Args:
        wanted: experiments; those that are none of `STUDIES` are others' business.
        roots: data set -> its root.
        splits: random splits of each.

    Raises:
        ValueError: a data set has no named distortions, or there is no second one to go to.
    """
    asked = [name for name in STUDIES if name in wanted]
    onward = [name for name in asked if name in ("exiqa-zero-shot", "exiqa-transfer", "mp-iqe-cross")]
    if onward and len(roots) < 2:
        raise ValueError(f"data: {onward[0]} goes from one data set to another; expected two or more, got {len(roots)}")
    return [*_exiqa(asked, roots, splits), *_others(asked, roots, splits)]


def _exiqa(asked: Sequence[StudyName], roots: Mapping[str, str], splits: int) -> Iterator[Study]:
    asked = [name for name in asked if name.startswith("exiqa-")]
    if not asked:
        return
    if strange := [name for name in roots if name not in EXIQA_DATA]:
        raise ValueError(f"data: {asked[0]} takes {', '.join(EXIQA_DATA)}, got {', '.join(strange)}")
    first = tuple(name for name in ("exiqa-identification", "exiqa-quality") if name in asked)
    for name, root in roots.items():
        yield Study("train_exiqa.py", "exiqa", name, _data(name, root, splits), cast(Any, first), name, row=name)
    for start, name in permutations(roots, 2):
        words = (*_data(name, roots[name], splits), "--epochs", "0")
        title, place, after = f"{start} > {name}", f"{start}-{name}", ("exiqa", start)
        named: dict[StudyName, tuple[str, ...]] = {"exiqa-zero-shot": ("--table", name), "exiqa-transfer": ()}
        for experiment, more in named.items():
            if experiment in asked and not (
                more and name == "lvq"
            ):  # whose types are the user's, and so is their table
                show = (experiment,)
                yield Study("train_exiqa.py", experiment, place, (*words, *more), show, title, after, f"{start}>{name}")


def _others(asked: Sequence[StudyName], roots: Mapping[str, str], splits: int) -> Iterator[Study]:
    for name, root in roots.items():
        common = _data(name, root, splits)
        for experiment in asked:
            _, _, row, recipe, words = _EXPERIMENTS[experiment]
            if recipe:
                yield Study(recipe, experiment, name, (*common, *words), (experiment,), name, row=row)
        for experiment, variants in _VARIANTS.items():
            for row, words in variants.items() if experiment in asked else ():
                place = f"{name}-{row.replace(' ', '').replace('%', '')}"
                title = f"{name}, {row.removesuffix(' MP-IQE')}"
                yield Study("train_mp_iqe.py", experiment, place, (*common, *words), (experiment,), title, row=row)
        for other in roots if "mp-iqe-cross" in asked else ():
            if other != name:
                words = (*common, "--test", f"{other}={roots[other]}")
                title, place = f"{name} > {other}", f"{name}-{other}"
                yield Study("train_mp_iqe.py", "mp-iqe-cross", place, words, ("mp-iqe-cross",), title, row="MP-IQE")


def _data(name: str, root: str, splits: int) -> tuple[str, ...]:
    return ("--data", f"{name}={root}", "--splits", str(splits))


def start_of(study: Study, out: Path) -> tuple[str, ...]:
    """The words for what a run starts from: the first split's model of another one."""
    if study.after is None:
        return ()
    variant, name = study.after
    return ("--init", str(out / variant / name / "split0" / "model.safetensors"))


def rows_of(study: Study, folds: Sequence[dict[str, Any]], *, path: Path) -> Iterator[dict[str, Any]]:
    """The table rows of a run: medians over its splits with intervals, and what was published.

    Raises:
        RunError: a split lacks a number; ``path`` is for the message.
    """
    for experiment in study.shows:
        values: dict[str, float] = {}
        for column in columns_of(experiment):
            values |= fold_spread(column, [_number(fold, (*_where(experiment, fold), column), path) for fold in folds])
        test = [_number(fold, (*_where(experiment, fold), "n"), path) for fold in folds]
        counts = {"n_train": fmean(fold["n_train"] for fold in folds), "n_test": fmean(test)}
        about = {"experiment": experiment, "data": study.data, "folds": len(folds), **counts}
        yield {**about, **values, "published": published_of(experiment, study)}


def columns_of(experiment: str) -> tuple[str, ...]:
    """The statistics that an experiment's table shows."""
    return _NAMED if experiment in _IDENTIFICATION else _QUALITY


def _where(experiment: str, fold: Mapping[str, Any]) -> tuple[str, ...]:
    """Where in a split's results its numbers are."""
    if experiment in _IDENTIFICATION:
        return ("identification", "test")
    if experiment in ("exiqa-quality", "exiqa-transfer"):
        return ("score",)
    if experiment == "mp-iqe-cross":  # under the other data set's own name
        return ("tests", next((name for name in fold.get("tests", {}) if name != "test"), "another data set"))
    if experiment == "liqe":  # which learns from several sets and tests each under its own name
        return ("tests", next(iter(fold.get("tests", {})), "its own data set"))
    return ("tests", "test")


def _number(fold: dict[str, Any], keys: Sequence[str], path: Path) -> float:
    value: Any = fold
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, int | float):
        raise RunError(f"{path}, {fold.get('fold')}: no number as {'.'.join(keys)}")
    return float(value)


def published_of(experiment: str, study: Study) -> dict[str, float]:
    """What a paper reports: statistic -> number, as printed but for accuracies, which are shares; empty for nothing."""
    source, row = TABLES[_EXPERIMENTS[experiment].table], _EXPERIMENTS[experiment].row or study.row
    data = study.data.split(",")[0].replace(" ", "")
    if experiment in _IDENTIFICATION:
        cells = {name: source.cell(data, name) for name in ("accuracy", "rmse")}
        cells["accuracy"] = None if cells["accuracy"] is None else cells["accuracy"] / 100
    elif experiment == "exiqa-transfer":
        cells = {"srocc": source.cell(data, "ExIQA")}
    elif experiment == "mp-iqe-cross":
        cells = {"srocc": source.cell(row, data)}
    else:
        cells = {name: source.cell(row, f"{data} {name}") for name in ("srocc", "plcc")}
    return {name: value for name, value in cells.items() if value is not None}


def table(experiment: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """One experiment's rows as lines of Markdown."""
    columns = columns_of(experiment)
    heads = ["data", "splits", "n train", "n test", *(name.replace("_", " ") for name in columns), "published"]
    cells = []
    for row in rows:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in row["published"].items()) or "none"
        counts = [str(row["folds"]), f"{row['n_train']:g}", f"{row['n_test']:g}"]
        cells.append([row["data"], *counts, *(estimate(row, name) for name in columns), shown])
    source = TABLES[_EXPERIMENTS[experiment].table]
    note = f" ({source.note})" if source.note else ""
    text = markdown(heads, cells, "l" + "r" * (len(heads) - 2) + "l")
    return [f"## {TITLES[experiment]}", "", text, "", f"- {source.source}: {source.protocol}{note}", ""]
