"""The recipe that checks where maps point: its numbers, its draws, its files."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.support.trees import unlabelled as unlabelled_tree

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return unlabelled_tree.load_recipe("saliency", "evals")


@pytest.fixture
def folder(tmp_path: Path, photos: list[NDArray[np.uint8]]) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    for index, photo in enumerate(photos):
        Image.fromarray(photo[:200, :260]).save(root / f"{index}.png")
    return root


def test_a_share_is_that_of_the_half(recipe: ModuleType) -> None:
    found = torch.zeros(6, 8)
    found[:, :4] = 3
    found[:2, 4:] = 1
    shares = {side: recipe.share(found, recipe.half_of(torch.zeros(1, 3, 6, 8), side)) for side in recipe.SIDES}
    assert shares == pytest.approx({"left": 0.9, "right": 0.1, "top": 44 / 80, "bottom": 36 / 80})
    assert recipe.share(torch.zeros(6, 8), recipe.half_of(found, "left")) == 0.5


class MeanScorer:
    """A score that is the mean of the picture: every pixel counts the same."""

    def assess(self, batch: torch.Tensor) -> Any:
        return type("Said", (), {"score": batch.double().mean((1, 2, 3))})


def test_areas_of_a_score_whose_pixels_are_known(recipe: ModuleType) -> None:
    photo = torch.ones(1, 3, 40, 60)
    worse = photo.clone()
    worse[..., :30] = 0  # the left half lost all
    perfect = (worse[0, 0] == 0).float()
    wrong = 1 - perfect
    maps = {"map": perfect, "wrong": wrong, "flat": torch.zeros(40, 60)}
    found = recipe.areas(MeanScorer(), photo, worse, maps, [1.0, 0.5], np.random.default_rng(0))
    change = 0.5
    for curve in ("deletion", "insertion"):
        assert found[f"{curve}_map"] / change == pytest.approx(0.75, abs=1e-6)
        assert found[f"{curve}_wrong"] / change == pytest.approx(0.25, abs=1e-6)
        assert found[f"{curve}_flat"] / change == pytest.approx(0.5, abs=0.02)


def test_a_summary_is_the_mean_and_its_curves_those_of_the_mean(recipe: ModuleType) -> None:
    area = {"deletion_map": 0.3}
    rows = [
        {"share": {"score": 0.9}, "untouched": 0.5, "drop": 0.3, "areas": area},
        {"share": {"score": 0.4}, "untouched": 0.6, "drop": 0.1, "areas": {"deletion_map": 0.0}},
        {"share": {"score": 0.5}, "untouched": 0.4, "drop": 9.0},
    ]
    told = recipe.means_of(rows)
    assert told["share_score"] == pytest.approx(0.6)
    assert told["right_half_score"] == pytest.approx(1 / 3)
    assert told["deletion_map"] == pytest.approx(0.75)
    assert (told["n"], told["n_curves"]) == (3, 2)


@pytest.mark.slow
def test_smoke_prints_what_it_writes_and_goes_on(folder: Path, tmp_path: Path, run_recipe: Run) -> None:
    types = ("gaussian_blur", "white_noise")
    command = ("--photos", folder, "--smoke", "--types", *types, "--out", tmp_path / "out")
    done = run_recipe("evals/saliency.py", *command)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["n"] == 2
    assert result["protocol"] in done.stdout
    assert "deletion_map" in result["types"]["gaussian_blur"]
    for kind in types:
        numbers = result["types"][kind]
        assert numbers["share_score"] > 0.7
        cells = [line.split("|")[2:-1] for line in done.stdout.splitlines() if line.startswith(f"| {kind} |")]
        assert float(cells[0][0]) == pytest.approx(numbers["share_score"], abs=5e-4)
        assert float(cells[0][4]) == pytest.approx(numbers["drop"], abs=5e-4)
        curves = ("deletion_map", "deletion_random", "insertion_map", "insertion_random")
        told = [f"{numbers[name]:.3f}" if name in numbers else "" for name in curves]
        assert [cell.strip() for cell in cells[1]] == told, "a photo whose score does not fall has no curves"
        with Image.open(tmp_path / "out" / "examples" / f"{kind}.png") as picture:
            assert picture.size[1] == 200
    rows_path = tmp_path / "out" / "rows.json"
    rows = json.loads(rows_path.read_text())
    cut = {**rows, "rows": rows["rows"][:-1]}
    rows_path.write_text(json.dumps(cut))
    (tmp_path / "out" / "metrics.json").unlink()
    again = run_recipe("evals/saliency.py", *command)
    assert again.returncode == 0, again.stderr
    second = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for kind in types:
        assert second["types"][kind] == pytest.approx(result["types"][kind], abs=1e-5)
    assert json.loads(rows_path.read_text())["rows"][:-1] == cut["rows"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--types", "gausian_blur"), "did you mean 'gaussian_blur'"),
        (("--level", "6"), "level: expected 1 to 5, got 6"),
        (("--most", "0"), "most, curve_photos: expected at least 1 and 0, got 0 and 10"),
        (("--pattern", "*.tif"), "expected files that match '*.tif'"),
    ],
)
def test_a_wrong_command_is_told(
    recipe: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Any, message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        recipe.main(["--photos", str(folder), "--out", str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err + str(end.value)
    assert not (tmp_path / "out").exists()
