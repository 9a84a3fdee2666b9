"""Files scored into a table: nothing twice, each result on disk before the next, what has no score told."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attriqa.evaluation.score_files import row_of, score_files
from attriqa.evaluation.score_table import ScoreRow, ScoreTable, TableError, rounded
from attriqa.reward import FileScore
from tests.support.fake_scorer import table

FIVE = (0.1, 0.2, 0.3, 0.4, 1 / 3)


class Scorer:
    """Scores by a file's number; what is in ``special`` as said there."""

    def __init__(self, **special: FileScore) -> None:
        self.special, self.asked = special, list[str]()

    def score_files(self, paths: Iterable[str | Path], *, threads: int | None = None) -> Iterator[FileScore]:
        assert iter(paths) is paths, "read as results are asked for, not listed before"
        for path in map(Path, paths):
            self.asked.append(path.name)
            yield self.special.get(path.stem, FileScore(str(path), int(path.stem[1:]) / 7, FIVE, None))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {f"image {n}": tmp_path / f"f{n}.png" for n in range(4)}


def opened(folder: Path, **options: Any) -> ScoreTable:
    return ScoreTable(folder / "t.csv", "m-0/full", version="1", **options)


def test_what_the_table_holds_is_not_scored_again(tmp_path: Path, files: dict[str, Path]) -> None:
    first, second = Scorer(), Scorer()
    with opened(tmp_path) as scores:
        assert score_files(first, dict(list(files.items())[:3]), scores) == {}
    with opened(tmp_path) as scores:
        assert score_files(second, files, scores) == {}
        assert scores.rows == {name: rounded(ScoreRow(name, n / 7, FIVE)) for n, name in enumerate(files)}
    assert (first.asked, second.asked) == (["f0.png", "f1.png", "f2.png"], ["f3.png"])


def test_each_row_is_on_disk_before_the_next_file_is_asked_for(tmp_path: Path, files: dict[str, Path]) -> None:
    seen: list[tuple[str, object, int]] = []
    with opened(tmp_path) as scores:
        score_files(Scorer(), files, scores, watch=lambda name, row: seen.append((name, row, len(table(scores.path)))))
        assert seen == [(name, scores.rows[name], n + 2) for n, name in enumerate(files)]


def test_what_has_no_score_is_told_and_tried_again(tmp_path: Path, files: dict[str, Path]) -> None:
    nan, minus = (FileScore("", score, FIVE, None) for score in (float("nan"), float("-inf")))
    special = {
        "f0": FileScore("", None, None, "cut off"),
        "f1": nan,
        "f2": minus,
        "f3": FileScore("", None, None, None),
    }
    reasons = dict(
        zip(files, ("cut off", *["the model gave no finite score"] * 2, "the model gave no score"), strict=True)
    )
    seen: dict[str, object] = {}
    with opened(tmp_path) as scores:
        assert score_files(Scorer(**special), files, scores, watch=seen.__setitem__) == scores.errors == seen == reasons
        assert scores.rows == {}
        again = Scorer()
        assert score_files(again, files, scores) == scores.errors == {}
    assert len(again.asked) == 4


def test_a_table_is_not_needed_and_a_result_may_be_read_otherwise(files: dict[str, Path]) -> None:
    seen: dict[str, object] = {}

    def read(name: str, result: FileScore) -> ScoreRow | str:
        return "too good" if result.score == 3 / 7 else row_of(name, result._replace(attributes=None))

    assert score_files(Scorer(), files, read=read, watch=seen.__setitem__) == {"image 3": "too good"}
    assert seen == {name: ScoreRow(name, round(n / 7, 6), ()) for n, name in enumerate(files)} | {"image 3": "too good"}


def test_texts_beside_the_numbers_are_kept_and_compared(tmp_path: Path, files: dict[str, Path]) -> None:
    columns, beside = ("name", "score", "mos", "prompt"), {name: ("4.5", f'a "cat", {name}') for name in files}
    options: dict[str, Any] = {"columns": columns, "attributes": (), "beside": beside}
    with opened(tmp_path, **options) as scores:
        score_files(Scorer(), files, scores, read=lambda name, result: row_of(name, result._replace(attributes=None)))
    assert table(tmp_path / "t.csv")[1] == ["image 0", "0.000000", "4.5", 'a "cat", image 0']
    with opened(tmp_path, **options) as scores:
        assert scores.rows["image 1"] == ScoreRow("image 1", 0.142857, ())
    for other in ({**beside, "image 2": ("4.5", "a dog")}, {name: beside[name] for name in list(files)[:3]}):
        with pytest.raises(TableError, match=r"expected 4\.5,a dog at the end of 'image 2'|numbers beside 'image 3'"):
            opened(tmp_path, **options | {"beside": other})
