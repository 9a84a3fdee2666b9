"""evals/attack.py."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tests.support import small_net
from tests.support.trees import unlabelled as unlabelled_tree

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def attack() -> ModuleType:
    return unlabelled_tree.load_recipe("attack", "evals")


def redness(images: Tensor) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2))


def greens(images: Tensor) -> Tensor:
    return images[:, 1].square().mean((1, 2))


@pytest.fixture(scope="module")
def clean(attack: ModuleType) -> Tensor:
    images: Tensor = attack.to_8_bits(torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0)))
    return images


def config(attack: ModuleType, out: Path, **options: object) -> object:
    return attack.Config(photos=out, out=out / "out", n=3, side=40, budgets=(4,), steps=3, batch=2, **options)


@pytest.mark.parametrize("method", ["random", "fgsm", "pgd"])
def test_attacks_keep_their_budget_and_climb(attack: ModuleType, clean: Tensor, tmp_path: Path, method: str) -> None:
    scorers = {"redness": redness, "greens": greens}
    seen: list[Tensor] = []

    def watch(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return redness(images)

    scorers["redness"] = watch
    told = attack.run_attack(config(attack, tmp_path), scorers, clean, "redness", method, 4)
    found = torch.cat(seen[-4:-2] if method == "pgd" else seen[-2:])  # what was judged: PGD also judges the clean ones
    steps = (found - clean) * 255
    assert steps.abs().max() <= 4 + 1e-3
    torch.testing.assert_close(found * 255, (found * 255).round(), rtol=0, atol=1e-4)
    assert found.min() >= 0
    assert found.max() <= 1
    gain = told["redness"] - redness(clean).numpy()
    if method == "random":
        assert np.abs(gain).max() < 2e-3
    else:  # 4/255 more red, 4/255 less green, but for what is clipped
        assert gain.min() > 7 / 255
        assert (told["greens"] < greens(clean).numpy()).all()


def test_a_batch_is_attacked_as_each_photo_alone(attack: ModuleType, clean: Tensor, tmp_path: Path) -> None:
    scorers = {"greens": greens}
    together = attack.run_attack(config(attack, tmp_path), scorers, clean, "greens", "pgd", 4)["greens"]
    alone = [
        attack.run_attack(config(attack, tmp_path), scorers, image[None], "greens", "pgd", 4)["greens"][0]
        for image in clean
    ]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_picture_shows_clean_attacked_and_difference(attack: ModuleType, clean: Tensor, tmp_path: Path) -> None:
    attacked = (clean[0] + 4 / 255).clamp(0, 1)
    attack.save_picture(tmp_path / "shown.png", clean[0], attacked, 4)
    with Image.open(tmp_path / "shown.png") as picture:
        shown = np.asarray(picture).astype(int)
    assert shown.shape == (40, 120, 3)
    expected = (clean[0] * 255).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(shown[:, :40], expected)
    np.testing.assert_array_equal(shown[:, 40:80], np.minimum(expected + 4, 255))
    assert (shown[:, 80:][expected <= 251] == 255).all()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("default", "default"),
        ("niqe:a/b.npz", "niqe"),
        ("brisque:weights", "brisque"),
        ("runs/judge/all/model.safetensors", "all-model"),
    ],
)
def test_names_are_short(attack: ModuleType, name: str, expected: str) -> None:
    assert attack.short(name) == expected


@pytest.fixture
def tree(tmp_path: Path, photos: list[NDArray[np.uint8]]) -> Path:
    for index, image in enumerate(photos):
        Image.fromarray(image[:220, :220]).save(tmp_path / f"photo{index}.png")
    taps = np.full(7, 1 / 7)
    window = np.outer(taps, taps)
    np.savez(tmp_path / "niqe.npz", mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36), gaussian_window=window)
    small_net.save(tmp_path / "small.safetensors", data="none")
    return tmp_path


@pytest.mark.slow
def test_the_recipe_runs_and_goes_on(tree: Path, run_recipe: Run) -> None:
    out = tree / "out"
    scorers = ("guarded", "judge", f"niqe:{tree / 'niqe.npz'}")
    words = ("--photos", tree, "--pattern", "*.png", "--scorers", *scorers, "--smoke", "--out", out)
    first = run_recipe("evals/attack.py", *words)
    assert first.returncode == 0, first.stderr
    record = json.loads((out / "metrics.json").read_text())
    assert record["n"] == 2
    assert len(record["attacks"]) == 9
    gains = {(row["target"], row["method"]): row["told"][row["target"]]["in_sd"] for row in record["attacks"]}
    for name in ("guarded", "judge", "niqe"):
        assert gains[name, "pgd"] > abs(gains[name, "random"])
        assert f"{gains[name, 'pgd']:+.1f}" in first.stdout
        with Image.open(out / f"{name}.png") as picture:
            assert picture.size == (3 * 192, 192)
    kept = out / "attacks" / "judge_fgsm_2.json"
    before = kept.stat().st_mtime_ns
    (out / "attacks" / "judge_pgd_2.json").unlink()
    again = run_recipe("evals/attack.py", *words)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scorers", "nobody"], "judge: expected default, robust, judge, a checkpoint"),
        (["--pattern", "*.bmp"], r"photos: expected 2 or more \*\.bmp"),
        (["--scorers", "default", "default"], "expected each of them once"),
        (["--budgets", "0"], "expected at least 2 photos and positive numbers"),
        (["--side", "4000"], "expected sides of at least 4000 px"),
    ],
)
def test_user_errors_are_told(
    attack: ModuleType, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(2):
        Image.new("RGB", (64, 64)).save(tmp_path / f"photo{index}.png")
    with pytest.raises(SystemExit) as error:
        attack.main(["--photos", str(tmp_path), "--scorers", "judge", "--n", "2", "--out", str(tmp_path / "o"), *words])
    told = f"{error.value} {capsys.readouterr().err}"
    assert re.search(message, told), told
    assert not (tmp_path / "o").exists()
