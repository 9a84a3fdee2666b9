"""Image files scored into a table: each result is on disk before the next, what the table holds is not scored again."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from attriqa.evaluation.score_table import ScoreRow, ScoreTable, rounded
from attriqa.reward import FileScore


class FileScorer(Protocol):
    """What scores files, as `attriqa.QualityReward` does."""

    def score_files(self, paths: Iterable[str | Path], *, threads: int | None = None) -> Iterator[FileScore]:
        """A result per path, in their order, as they come."""
        ...


def row_of(text: str, result: FileScore) -> ScoreRow | str:
    """A result as the row of a table, or the reason why it is none."""
    if result.error is not None or result.score is None:
        return result.error or "the model gave no score"
    row = ScoreRow(text, result.score, result.attributes or (), result.distortions or ())
    return row if all(map(math.isfinite, row.values)) else "the model gave no finite score"


def score_files(
    scorer: FileScorer,
    files: Mapping[str, Path],
    table: ScoreTable | None = None,
    *,
    title: str | None = None,
    threads: int | None = None,
    read: Callable[[str, FileScore], ScoreRow | str] = row_of,
    watch: Callable[[str, ScoreRow | str], None] | None = None,
) -> dict[str, str]:
    """Score the files that a table lacks, and add to it what comes out: rows, and why others have none.

    Args:
        scorer: what scores.
        files: paths by the text that stands for them in the table.
        table: open; without one, results go to ``watch`` alone.
        title: of the progress bar, which stays when it is full; one without a title goes.
        threads: that decode; by default one per core, at most 8.
        read: as `row_of`.
        watch: called with each file's text and its row as it was kept, or the reason why it has none.

    Returns:
        The reasons by the texts of files without a score.
    """
    todo = {text: path for text, path in files.items() if table is None or text not in table.rows}
    results = scorer.score_files(iter(todo.values()), threads=threads)
    bar = tqdm(
        zip(todo, results, strict=True),
        title,
        len(todo),
        title is not None,
        unit="image",
        dynamic_ncols=True,
        disable=None,
    )
    errors: dict[str, str] = {}
    for text, result in bar:
        row = read(text, result)
        if isinstance(row, str):
            errors[text] = row
            if table is not None:
                table.add_error(text, row)
        else:
            row = rounded(row) if table is None else table.add(row)
        if watch is not None:
            watch(text, row)
    return errors
