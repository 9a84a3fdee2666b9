import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Recipe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_the_reward_gives_scores_reasons_and_gradients(run_recipe: Recipe) -> None:
    done = run_recipe("examples/reward.py")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["astronaut", "chelsea", "coffee"]
    for line in lines:
        reward, *attributes = map(float, re.findall(r"(?<=[a-z] )[01]\.\d+(?!\d*e)", line))
        assert 0 < reward < 1
        assert len(attributes) == 5
        assert float(line.split()[-1]) > 0  # the gradient's norm


@pytest.mark.slow
def test_enhancing_raises_the_score_and_shows_both(
    run_recipe: Recipe, tmp_path: Path, photos: list[NDArray[np.uint8]]
) -> None:
    dark = (photos[1] * 0.4).astype(np.uint8)  # chelsea
    Image.fromarray(dark).save(tmp_path / "dark.png")
    done = run_recipe("examples/enhance.py", tmp_path / "dark.png", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    before, after = (float(text) for text in re.findall(r"score ([\d.]+)", done.stdout))
    assert after > before + 0.01
    pair = np.asarray(Image.open(tmp_path / "out.png"))
    height, width = dark.shape[:2]
    assert pair.shape == (height, 2 * width, 3)
    assert (pair[:, :width] == dark).all()
    assert not (pair[:, width:] == dark).all()


@pytest.mark.slow
def test_enhancing_names_a_file_that_is_no_photo(run_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not a photo")
    done = run_recipe("examples/enhance.py", tmp_path / "notes.jpg", tmp_path / "out.png")
    assert done.returncode != 0
    assert "notes.jpg" in done.stderr
    assert not (tmp_path / "out.png").exists()


@pytest.mark.slow
def test_enhancing_never_replaces_the_photo(run_recipe: Recipe, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    done = run_recipe("examples/enhance.py", tmp_path / "a.png", tmp_path / "b" / ".." / "a.png")
    assert done.returncode == 2
    assert "is the photo itself" in done.stderr
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.slow
def test_explained_shows_three_photos(run_recipe: Recipe, tmp_path: Path) -> None:
    done = run_recipe("examples/explained.py", tmp_path / "out.jpg")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["jpeg", "white_noise", "gaussian_blur"]
    assert "JPEG" in lines[0]
    assert "noise (" in lines[1]
    assert "Gaussian blur" in lines[2]
    with Image.open(tmp_path / "out.jpg") as sheet:
        assert sheet.width > 1000
    done = run_recipe("examples/explained.py", tmp_path / "one.jpg", "one")
    assert done.returncode == 0, done.stderr
    assert "very low sharpness" in done.stdout
    with Image.open(tmp_path / "one.jpg") as sheet:
        assert sheet.size == (3 * 384, 384)
    assert run_recipe("examples/explained.py", tmp_path / "one.jpg", "two").returncode == 1
