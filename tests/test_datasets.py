from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import scipy.io

from attriqa.datasets import DatasetError, read_clive

if TYPE_CHECKING:
    from tests import clive_tree
else:
    import clive_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return clive_tree.build(tmp_path / "ChallengeDB_release", count=6, width=40, height=40)


def test_rows_are_the_images_after_the_training_ones(root: Path) -> None:
    dataset = read_clive(root)
    assert dataset.name == "CLIVE"
    assert dataset.mos_range == (0.0, 100.0)
    assert [row.path for row in dataset.rows] == [root / "Images" / f"{i}.jpg" for i in range(6)]
    assert [row.mos for row in dataset.rows] == pytest.approx([90 - 12 * (i * 5 % 6) for i in range(6)])
    assert len({row.group for row in dataset.rows}) == 6
    assert read_clive(str(root)) == dataset


def test_the_same_picture_is_one_group(root: Path) -> None:
    (root / "Images" / "4.jpg").write_bytes((root / "Images" / "1.jpg").read_bytes())
    rows = read_clive(root).rows
    assert rows[4].group == rows[1].group
    assert len({row.group for row in rows}) == 5


def test_missing_images_are_counted_and_named(root: Path) -> None:
    for name in ("2.jpg", "5.jpg"):
        (root / "Images" / name).unlink()
    with pytest.raises(DatasetError, match=r"Images: 2 of 6 images are missing: 2\.jpg, 5\.jpg"):
        read_clive(root)


@pytest.mark.parametrize("name", ["AllImages_release", "AllMOS_release"])
def test_a_wrong_root_or_variable_is_told(root: Path, name: str) -> None:
    path = root / "Data" / f"{name}.mat"
    scipy.io.savemat(path, {"Something": [[1.0]]})
    with pytest.raises(DatasetError, match=rf"{name}\.mat: expected a variable {name}, got \['Something'\]"):
        read_clive(root)
    path.unlink()
    with pytest.raises(DatasetError, match=rf"{name}\.mat: not found; the layout of CLIVE is ROOT/Data"):
        read_clive(root)
    with pytest.raises(DatasetError, match="not found"):
        read_clive(root / "Images")


def test_label_files_that_disagree_are_refused(root: Path) -> None:
    clive_tree.write_labels(root, [f"{i}.jpg" for i in range(13)], [50.0] * 12)
    with pytest.raises(DatasetError, match="13 image names but 12 scores"):
        read_clive(root)


@pytest.mark.shared_data
def test_the_true_folder(shared_data: Path) -> None:
    rows = read_clive(shared_data / "ChallengeDB_release").rows
    assert len(rows) == 929
    groups = {row.path.stem: row.group for row in rows}
    assert groups["246"] == groups["333"]
    assert len(set(groups.values())) == 928
    assert 0 < min(row.mos for row in rows) < 20 < 80 < max(row.mos for row in rows) < 100
