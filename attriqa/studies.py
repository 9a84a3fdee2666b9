"""The papers' experiments on CLIP as data: which runs of which recipe a table takes, what of their results it shows.

``evals/benchmark.py`` runs them. Its other experiments are fine-tunings of an `AttributeNet`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from attriqa import published
from attriqa.protocols import median_of_folds
from attriqa.recipe_runs import RunError

StudyName = Literal["exiqa-identification", "exiqa-quality", "exiqa-zero-shot", "exiqa-transfer"]
STUDIES: tuple[StudyName, ...] = get_args(StudyName)
TITLES: dict[str, str] = {
    "exiqa-identification": "ExIQA: distortion identification (table 2)",
    "exiqa-quality": "ExIQA: quality from attributes (table 3)",
    "exiqa-zero-shot": "ExIQA: identification of another data set's distortions, zero-shot (table 4)",
    "exiqa-transfer": "ExIQA: quality of another data set from the first one's attributes (table 5)",
}
EXIQA_DATA = ("kadid", "tid2013", "csiq", "lvq", "live")
_NAMED = ("accuracy", "present_accuracy", "mean_average_precision", "rmse", "rmse_mean")
_IDENTIFICATION = {name: ("identification", "test", name) for name in _NAMED}
_QUALITY = {name: ("score", name) for name in ("srocc", "plcc", "plcc_fitted")}


class Study(NamedTuple):
    """One run of a recipe, and one row of each table that shows its results."""

    recipe: str  # file in training/
    variant: str  # folder in OUT
    name: str  # folder in that: the data set, or "a>b" with a hyphen
    words: tuple[str, ...]  # for the recipe, beside --out, --seed and --smoke
    shows: tuple[StudyName, ...]
    data: str  # as the table says it: "kadid", "kadid > csiq"
    after: tuple[str, str] | None = None  # variant and name of the run whose model this one starts from

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
    if not asked:
        return []
    if strange := [name for name in roots if name not in EXIQA_DATA]:
        raise ValueError(f"data: {asked[0]} takes {', '.join(EXIQA_DATA)}, got {', '.join(strange)}")
    onward = [name for name in asked if name in ("exiqa-zero-shot", "exiqa-transfer")]
    if onward and len(roots) < 2:
        raise ValueError(f"data: {onward[0]} goes from one data set to another; expected two or more, got {len(roots)}")
    runs = []
    for name, root in roots.items():
        common = ("--data", f"{name}={root}", "--splits", str(splits))
        first: tuple[StudyName, ...] = tuple(s for s in STUDIES[:2] if s in asked)
        runs.append(Study("train_exiqa.py", "exiqa", name, common, first, name))
    for start in roots:
        for name, root in roots.items() if onward else ():
            if name == start:
                continue
            words = ("--data", f"{name}={root}", "--splits", str(splits), "--epochs", "0")
            title, place, after = f"{start} > {name}", f"{start}-{name}", ("exiqa", start)
            if "exiqa-zero-shot" in asked and name != "lvq":  # whose types are the user's, and so is their table
                named = (*words, "--table", name)
                runs.append(
                    Study("train_exiqa.py", "exiqa-zero-shot", place, named, ("exiqa-zero-shot",), title, after)
                )
            if "exiqa-transfer" in asked:
                runs.append(Study("train_exiqa.py", "exiqa-transfer", place, words, ("exiqa-transfer",), title, after))
    return runs


def start_of(study: Study, out: Path) -> tuple[str, ...]:
    """The words for what a run starts from: the first split's model of another one."""
    if study.after is None:
        return ()
    variant, name = study.after
    return ("--init", str(out / variant / name / "split0" / "model.safetensors"))


def folds_of(study: Study, out: Path, *, splits: int) -> list[dict[str, Any]]:
    """The folds of a finished run.

    Raises:
        RunError: it is not finished.
    """
    path = study.folder(out) / "metrics.json"
    try:
        folds: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["folds"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"no results in {path} ({type(error).__name__}: {error})") from error
    if len(folds) != splits:
        raise RunError(f"{path}: expected {splits} splits, found {len(folds)}")
    return folds


def rows_of(study: Study, folds: Sequence[dict[str, Any]], *, path: Path) -> Iterator[dict[str, Any]]:
    """The table rows of a run: medians over its splits with intervals, and what was published.

    Raises:
        RunError: a split lacks a number; ``path`` is for the message.
    """
    for experiment in study.shows:
        columns = _IDENTIFICATION if experiment in ("exiqa-identification", "exiqa-zero-shot") else _QUALITY
        values: dict[str, Any] = {}
        for column, keys in columns.items():
            numbers = [_number(fold, keys, path) for fold in folds]
            middle = median_of_folds(numbers)
            values |= {column: middle.median, f"{column}_low": middle.low, f"{column}_high": middle.high}
        counts = {key: sum(fold[key] for fold in folds) / len(folds) for key in ("n_train", "n_test")}
        about = {"experiment": experiment, "data": study.data, "folds": len(folds), **counts}
        yield {**about, **values, "published": published_of(experiment, study.data.replace(" ", ""))}


def _number(fold: dict[str, Any], keys: Sequence[str], path: Path) -> float:
    value: Any = fold
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, int | float):
        raise RunError(f"{path}, {fold.get('fold')}: no number as {'.'.join(keys)}")
    return float(value)


def published_of(experiment: str, data: str) -> dict[str, float]:
    """What ExIQA reports: statistic -> number, as printed but for accuracies, which are shares; empty for nothing."""
    if experiment in ("exiqa-identification", "exiqa-zero-shot"):
        table = published.EXIQA_2 if experiment == "exiqa-identification" else published.EXIQA_4
        if data not in table.rows:
            return {}
        cells = {name: table.value(data, name) for name in ("accuracy", "rmse")}
        return {name: value / (100 if name == "accuracy" else 1) for name, value in cells.items() if value is not None}
    if experiment == "exiqa-quality":
        columns = [name for name in ("srocc", "plcc") if f"{data} {name}" in published.EXIQA_3.columns]
        cells = {name: published.EXIQA_3.value("ExIQA", f"{data} {name}") for name in columns}
    else:
        cells = {"srocc": published.EXIQA_5.value(data, "ExIQA") if data in published.EXIQA_5.rows else None}
    return {name: value for name, value in cells.items() if value is not None}


def table(experiment: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """One experiment's rows as lines of Markdown."""
    columns = list(_IDENTIFICATION if experiment in ("exiqa-identification", "exiqa-zero-shot") else _QUALITY)
    heads = ["data", "splits", "n train", "n test", *(name.replace("_", " ") for name in columns), "published"]
    lines = [f"## {TITLES[experiment]}", "", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 2)}---|"]
    for row in rows:
        cells = [row["data"], str(row["folds"]), f"{row['n_train']:g}", f"{row['n_test']:g}"]
        cells += [f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]" for name in columns]
        cells.append(", ".join(f"{name} {value:.3f}" for name, value in row["published"].items()) or "none")
        lines.append(f"| {' | '.join(cells)} |")
    notes = {
        "exiqa-identification": published.EXIQA_2,
        "exiqa-quality": published.EXIQA_3,
        "exiqa-zero-shot": published.EXIQA_4,
        "exiqa-transfer": published.EXIQA_5,
    }[experiment]
    note = f" ({notes.note})" if notes.note else ""
    return [*lines, "", f"- {notes.source}: {notes.protocol}{note}", ""]
