import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from attriqa import ATTRIBUTES
from attriqa.distortions import DEPARTURES

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path, photos: list[NDArray[np.uint8]]) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    for index, photo in enumerate(photos):
        Image.fromarray(photo[:200, :200]).save(root / f"{index}.png")
    return root


def printed(text: str) -> list[list[list[str]]]:
    """The cells of each table's rows, without its head."""
    tables: list[list[list[str]]] = []
    for line in text.splitlines():
        if line.startswith(("| ramp |", "| departure |")):
            tables.append([])
        elif line.startswith("| "):
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return tables


@pytest.mark.slow
def test_the_tables_printed_are_the_numbers_written(folder: Path, tmp_path: Path, run_recipe: Run) -> None:
    done = run_recipe("evals/attributes.py", "--photos", folder, "--all-photos", "--smoke", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["model"].startswith("default-")
    assert result["model"] in done.stdout
    assert result["n"] == 2
    assert result["attributes"] == list(ATTRIBUTES)
    assert result["protocol"] in done.stdout
    tables = printed(done.stdout)
    assert len(tables) == 3
    for table, name in zip(tables[:2], ("srocc", "change"), strict=True):
        assert [row[0] for row in table] == list(ATTRIBUTES)
        assert [row[1:] for row in table] == [[f"{value:+.3f}" for value in row] for row in result[name]]
    assert [row[0] for row in tables[2]] == list(result["departures"]) == list(DEPARTURES)
    for row in tables[2]:
        told = result["departures"][row[0]]
        assert row[1:] == [f"{told['srocc']:+.3f}", f"{told['first']:.2f}", f"{told['loss']:+.3f}"]
    assert min(result["srocc"][i][i] for i in range(5)) > 0.7, "each head of the default follows its own ramp"


@pytest.mark.slow
def test_photos_that_the_heads_may_know_are_not_measured(folder: Path, tmp_path: Path, run_recipe: Run) -> None:
    done = run_recipe("evals/attributes.py", "--photos", folder, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "no usable photo" in done.stderr
    assert str(folder) in done.stderr
    assert not (tmp_path / "out").exists()
