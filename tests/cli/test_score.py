"""What `attriqa score` writes of a model that also tells distortions."""

import json
from pathlib import Path

import pytest

from attriqa import cli
from attriqa.cli import options
from attriqa.evaluation.score_table import COLUMNS, ScoreTable, TableError
from tests.support.fake_scorer import FakeScorer, paint, table


def score(monkeypatch: pytest.MonkeyPatch, scorer: FakeScorer, *arguments: object) -> int:
    monkeypatch.setattr(options, "make_scorer", lambda args: scorer)
    return cli.main(["score", *map(str, arguments)])


def test_a_column_per_distortion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "photos", 3)
    arguments = (tmp_path / "photos", "--csv", tmp_path / "s.csv", "--json", tmp_path / "s.json")
    assert score(monkeypatch, FakeScorer(distortions=True), *arguments) == 0
    header, *rows = table(tmp_path / "s.csv")
    assert header == [*COLUMNS, "jpeg", "white_noise"]
    assert [float(value) for value in rows[0][7:]] == pytest.approx([40 / 255, 200 / 255], abs=1e-6)
    assert json.loads((tmp_path / "s.json").read_text())["rows"][0]["white_noise"] == float(rows[0][8])
    again = FakeScorer(distortions=True)
    assert score(monkeypatch, again, *arguments) == 0, "a finished table goes on"
    assert again.asked == []
    assert json.loads((tmp_path / "s.json").read_text())["rows"][2]["jpeg"] == pytest.approx(40 / 255, abs=1e-6)


def test_other_columns_are_another_table(tmp_path: Path) -> None:
    with ScoreTable(tmp_path / "s.csv", "m-0/full", version="1"):
        pass
    with pytest.raises(TableError, match=r"expected the header path,score,.*,jpeg, found"):
        ScoreTable(tmp_path / "s.csv", "m-0/full", version="1", columns=(*COLUMNS, "jpeg"))


def test_only_bad_files_have_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_text("not an image")
    assert score(monkeypatch, FakeScorer(), tmp_path) == 1
    out = capsys.readouterr().out
    assert "0 scored; 1 failed" in out
    assert "images/s" not in out
