"""The table on disk: what a kill, another model or another program's file may do to it."""

import csv
import json
import random
from pathlib import Path

import pytest

from attriqa.evaluation.score_table import COLUMNS, ScoreRow, ScoreTable, TableError, path_text, rounded

NAMES = ["a.jpg", 'quo"te,comma.jpg', "two\nlines.jpg", '"', "é 東京.jpg", "cr\r.jpg", " space ", "=1+1"]


def row(path: str, score: float = 0.123456789) -> ScoreRow:
    return ScoreRow(path, score, (0.1, 0.2, 0.3, 0.4, 1.0))


def open_table(path: Path, identity: str = "m-0/full") -> ScoreTable:
    return ScoreTable(path, identity, version="1")


def fill(path: Path, names: list[str]) -> None:
    with open_table(path) as table:
        for name in names:
            table.add(row(name))


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_layout_is_rfc_4180(tmp_path: Path) -> None:
    fill(tmp_path / "t.csv", NAMES)
    header, *rows = read(tmp_path / "t.csv")
    assert header == ["path", "score", "sharpness", "contrast", "brightness", "colorfulness", "noisiness"]
    assert [record[0] for record in rows] == NAMES
    assert rows[0][1:] == ["0.123457", "0.100000", "0.200000", "0.300000", "0.400000", "1.000000"]
    data = (tmp_path / "t.csv").read_bytes()
    assert data.startswith(b"path,score,sharpness,contrast,brightness,colorfulness,noisiness\r\na.jpg,0.123457,")
    assert data.endswith(b"\r\n")
    assert b'\r\n"quo""te,comma.jpg",' in data
    meta = json.loads((tmp_path / "t.csv.meta.json").read_text())
    assert meta["identity"] == "m-0/full"
    assert meta["columns"] == list(COLUMNS)
    assert not (tmp_path / "t.csv.errors.csv").exists()


def test_each_row_is_in_the_file_before_the_next(tmp_path: Path) -> None:
    with open_table(tmp_path / "new" / "t.csv") as table:
        for n, name in enumerate(NAMES):
            assert table.add(row(name)) == rounded(row(name))
            assert len(read(table.path)) == n + 2


def test_rows_come_back_as_they_were_kept(tmp_path: Path) -> None:
    with open_table(tmp_path / "t.csv") as table:
        kept = {name: table.add(row(name)) for name in NAMES}
    with open_table(tmp_path / "t.csv") as table:
        assert table.rows == kept


def test_a_kill_at_any_byte_costs_at_most_one_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    fill(path, NAMES)
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        with open_table(path) as table:
            there = list(table.rows)
            assert there == NAMES[: len(there)]
            for name in NAMES[len(there) :]:
                table.add(row(name))
        assert path.read_bytes() == whole, end


def test_a_kill_during_an_error_costs_at_most_that_error(tmp_path: Path) -> None:
    path, errors = tmp_path / "t.csv", tmp_path / "t.csv.errors.csv"
    with open_table(path) as table:
        table.add_error("a", "x")
        table.add_error('b "c"', "y\nz")
        before = errors.read_bytes()
    assert errors.read_bytes() == before
    for end in range(len(before) + 1):
        errors.write_bytes(before[:end])
        with open_table(path) as table:
            assert table.errors in ({}, {"a": "x"}, {"a": "x", 'b "c"': "y\nz"})
            table.add_error("a", "x")
            table.add_error('b "c"', "y\nz")
        assert read(errors) == [["path", "error"], ["a", "x"], ['b "c"', "y\nz"]], end


def test_an_overcome_error_leaves_the_list(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with open_table(path) as table:
        table.add_error("a", "first")
        table.add_error("b", "truncated")
    with open_table(path) as table:
        assert table.errors == {"a": "first", "b": "truncated"}
        table.add(row("a"))
        table.add_error("b", "still truncated")
    assert read(tmp_path / "t.csv.errors.csv") == [["path", "error"], ["b", "still truncated"]]
    with open_table(path) as table:
        table.add(row("b"))
    assert not (tmp_path / "t.csv.errors.csv").exists()


def test_an_overcome_error_is_dropped_after_a_kill_too(tmp_path: Path) -> None:
    path, errors = tmp_path / "t.csv", tmp_path / "t.csv.errors.csv"
    with open_table(path) as table:
        table.add_error("a", "x")
        as_killed = errors.read_bytes()
        table.add(row("a"))
    errors.write_bytes(as_killed)
    with open_table(path) as table:
        assert table.errors == {}
    assert not errors.exists()


def test_another_identity_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    fill(tmp_path / "t.csv", ["a"])
    with (tmp_path / "t.csv").open("ab") as file:
        file.write(b"half a li")
    before = contents(tmp_path)
    with pytest.raises(TableError, match=r"t\.csv: .* made by m-0/full, .* made by m-0/five_crop"):
        open_table(tmp_path / "t.csv", "m-0/five_crop")
    assert contents(tmp_path) == before


GOOD = "path,score,sharpness,contrast,brightness,colorfulness,noisiness\r\n"


@pytest.mark.parametrize(
    ("data", "meta", "message"),
    [
        (GOOD.encode() + b"a,1,1,1,1,1,1\r\n", None, r"without t\.csv\.meta\.json"),
        (b"x", None, r"without t\.csv\.meta\.json"),
        (b"name,mos\r\na,1\r\n", "m-0/full", r"expected the header path,score.*found 'name,mos'"),
        (b"name,mos", "m-0/full", r"expected the header path,score.*found 'name,mos'"),
        (GOOD.encode() + b"a,1,1\r\n", "m-0/full", "record 2 has 3 fields, expected 7"),
        (GOOD.encode() + b"a,1,1,1,1,1,nan\r\n", "m-0/full", "expected finite numbers beside 'a'"),
        (GOOD.encode() + b"a,1,1,1,1,1,good\r\n", "m-0/full", "expected finite numbers beside 'a'"),
        (GOOD.encode() + b'"a"b,1,1,1,1,1,1\r\n', "m-0/full", "not a UTF-8 CSV"),
        (GOOD.encode() + b"\xff,1,1,1,1,1,1\r\n", "m-0/full", "not a UTF-8 CSV"),
        (GOOD.encode(), "", "expected the record of what made a table"),
    ],
)
def test_foreign_and_damaged_files_are_refused_untouched(
    tmp_path: Path, data: bytes, meta: str | None, message: str
) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    if meta is not None:
        text = json.dumps({"kind": "attriqa scores", "identity": meta}) if meta else '{"identity": 3}'
        (tmp_path / "t.csv.meta.json").write_text(text)
    before = contents(tmp_path)
    with pytest.raises(TableError, match=message):
        open_table(tmp_path / "t.csv")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("other", ["t.csv.meta.json", "t.csv.errors.csv"])
def test_a_foreign_neighbour_is_refused_before_a_table_is_made(tmp_path: Path, other: str) -> None:
    (tmp_path / other).write_text("something,else\n1,2\n")
    before = contents(tmp_path)
    with pytest.raises(TableError, match=other.replace(".", r"\.")):
        open_table(tmp_path / "t.csv")
    assert contents(tmp_path) == before


def test_an_empty_file_becomes_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    fill(tmp_path / "t.csv", ["a"])
    assert len(read(tmp_path / "t.csv")) == 2


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="expected a file"):
        open_table(tmp_path)


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    with open_table(tmp_path / "t.csv") as table:
        with pytest.raises(TableError, match="another process"):
            open_table(tmp_path / "t.csv")
        table.add(row("a"))
    assert len(read(tmp_path / "t.csv")) == 2


def test_a_full_disk_is_an_error_and_the_table_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """The table's file on a disk with room for ten more bytes."""

        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            return self.file.write(data[:10])  # type: ignore[attr-defined,no-any-return]

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    with open_table(tmp_path / "t.csv") as table:
        table.add(row("a"))
        monkeypatch.setattr(table, "_file", Full(table._file))
        with pytest.raises(OSError, match="No space left"):
            table.add(row("b"))
    with open_table(tmp_path / "t.csv") as table:
        assert list(table.rows) == ["a"]
        table.add(row("b"))
    assert [record[0] for record in read(tmp_path / "t.csv")[1:]] == ["a", "b"]


def test_names_that_are_not_utf8_are_written_as_utf8(tmp_path: Path) -> None:
    assert path_text("caf\udce9.jpg") == r"caf\xe9.jpg"
    assert path_text(Path("é/東.jpg")) == "é/東.jpg"
    with open_table(tmp_path / "t.csv") as table:
        table.add(row(path_text("caf\udce9.jpg")))
        table.add_error("x", "reason with \udce9")
    assert read(tmp_path / "t.csv")[1][0] == r"caf\xe9.jpg"
    assert "udce9" in read(tmp_path / "t.csv.errors.csv")[1][1]


def test_random_names_survive_a_round_trip(tmp_path: Path) -> None:
    chance = random.Random(0)
    names = {"".join(chance.choices("ab\",\r\n é\t\\'", k=chance.randrange(1, 9))) for _ in range(300)}
    fill(tmp_path / "t.csv", sorted(names))
    with open_table(tmp_path / "t.csv") as table:
        assert list(table.rows) == sorted(names)
