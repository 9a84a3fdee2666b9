"""The contact sheet of training/distort.py: every distortion at every level of one photo."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from attriqa.distortions import distort_seeded
from attriqa.images import read
from tests.recipes.training.test_distort import pixels, pristine
from tests.recipes.training.test_distort import recipe as recipe


def test_the_contact_sheet_shows_every_level(recipe: ModuleType, tmp_path: Path) -> None:
    root, sheet = pristine(tmp_path / "photos", 1, width=200, height=120), tmp_path / "sheet.png"
    keys = ["white_noise", "jpeg"]
    recipe.main(
        ["--images", str(root / "0.jpg"), "--contact-sheet", str(sheet), "--distortions", *keys, "--crop", "200x100"]
    )
    photo = read(root / "0.jpg")[:, 10:110]
    shown = pixels(sheet)
    assert shown.shape == (3, 3 * 120 + 8, 5 * 208 + 8)
    assert torch.equal(shown[:, 20:120, 8:208], (photo * 255).round().byte())
    for row, key in enumerate(keys, 1):
        for level in range(1, 6):
            expected = (distort_seeded(photo[None], key, level, [0])[0] * 255).round().byte()
            left, top = 8 + 208 * (level - 1), 120 * row
            assert torch.equal(shown[:, top + 20 : top + 120, left : left + 200], expected)
            assert shown[:, top : top + 20, left : left + 200].min() == 0, "a label"
    folder = tmp_path / "folder.png"
    recipe.main(["--images", str(root), "--contact-sheet", str(folder), "--distortions", *keys, "--crop", "200x100"])
    assert folder.read_bytes() == sheet.read_bytes()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere", "no such file or folder"), ("a.png", "a file of 0 bytes"), ("empty", "no image in")],
)
def test_no_contact_sheet_without_a_photo(recipe: ModuleType, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").touch()
    with pytest.raises(SystemExit, match=reason):
        recipe.main(["--images", str(tmp_path / name), "--contact-sheet", str(tmp_path / "sheet.png")])
    assert not (tmp_path / "sheet.png").exists()
