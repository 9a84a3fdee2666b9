"""AGIQA-3K holds an image that a safety checker blanked: it counts, as in the protocol, and is told."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attriqa.evaluation import metrics
from tests.support.trees import agiqa as small


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return small.build(tmp_path / "AGIQA-3K")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tree: Path) -> small.Run:
    return small.runner(monkeypatch, tree)


def test_a_black_image_is_named_and_the_numbers_are_also_given_without_it(
    run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (48, 40), (0, 2, 1)).save(tree / "DALLE2_normal_003.jpg")
    assert run() == 0
    result, printed = small.result_of(tree), capsys.readouterr().out
    assert result["n"] == small.N
    assert result["black_images"] == ["DALLE2_normal_003.jpg"]
    rows = [row for row in small.scores_of(tree) if row["name"] != "DALLE2_normal_003.jpg"]
    score, mos = (np.array([float(row[name]) for row in rows]) for name in ("score", "mos_quality"))
    expected = metrics.report(score, mos, seed=0, resamples=result["resamples"])
    assert {name: result["without_black"][name] for name in expected} == pytest.approx(expected)
    assert result["without_black"]["srocc"] != result["srocc"]
    assert "all black, as a safety checker leaves an image: 1, DALLE2_normal_003.jpg" in printed
    line = next(line for line in printed.splitlines() if line.startswith("all but black ones"))
    assert f"{expected['srocc']:.3f} [" in line


def test_without_black_images_nothing_is_said(run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    result = small.result_of(tree)
    assert (result["black_images"], result["without_black"]) == ([], None)
    assert "black ones" not in capsys.readouterr().out


def test_an_image_that_broke_after_it_was_scored_is_an_error(
    run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    (tree / "glide_normal_001.jpg").write_bytes(b"gone")
    assert run() == 1
    assert "glide_normal_001.jpg: " in capsys.readouterr().err
