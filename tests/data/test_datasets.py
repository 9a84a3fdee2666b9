from pathlib import Path

import pytest
import scipy.io

from attriqa.data.datasets import (
    READERS,
    DatasetError,
    read_clive,
    read_csv,
    read_dataset,
    read_koniq,
    read_tid2013,
)
from tests.support.trees import clive as clive_tree
from tests.support.trees import datasets as trees

FIRST_LABELS = {
    "clive": "Data/AllImages_release.mat",
    "koniq": "koniq10k_distributions_sets.csv",
    "spaq": "Annotations/MOS and Image attribute scores.xlsx",
    "flive": "labels_image.csv",
    "ava": "AVA.txt",
    "bid": "DatabaseGrades.xlsx",
    "kadid": "dmos.csv",
    "tid2013": "mos_with_names.txt",
    "csiq": "csiq.DMOS.xlsx",
    "live": "dmos_realigned.mat",
    "lvq": "manifest.csv",
    "pipal": "Train_Label",
    "agiqa": "data.csv",
}


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
    with pytest.raises(
        DatasetError, match=r"Images: 2 of 6 images are missing: 2\.jpg, 5\.jpg; the layout of CLIVE is"
    ):
        read_clive(root)
    dataset = read_clive(root, allow_missing=True)
    assert dataset.missing == ("2.jpg", "5.jpg")
    assert [row.path.name for row in dataset.rows] == ["0.jpg", "1.jpg", "3.jpg", "4.jpg"]


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


def test_every_reader_is_known_by_name(tmp_path: Path) -> None:
    assert set(READERS) == {*FIRST_LABELS, "csv"}
    for name in FIRST_LABELS:
        built = clive_tree.build(tmp_path / "x", 4, 40, 40) if name == "clive" else trees.build(name, tmp_path / name)
        dataset = read_dataset(f"{name}={built}")
        assert dataset == read_dataset(name, built) == READERS[name](built)
        assert dataset.missing == ()


@pytest.mark.parametrize("spec", ["nothing=here", "clive", "clive=", "=here", ""])
def test_an_unknown_name_or_no_root_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=rf"expected NAME=ROOT with a NAME of clive, koniq, .*, csv, got '{spec}'"):
        read_dataset(spec)


@pytest.mark.parametrize("name", FIRST_LABELS)
def test_a_wrong_root_says_what_was_looked_for_and_the_layout(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError) as refusal:
        read_dataset(name, tmp_path / "elsewhere")
    looked_for = tmp_path / "elsewhere" / FIRST_LABELS[name]
    assert str(refusal.value).startswith(f"{looked_for}: no")
    assert "; the layout of " in str(refusal.value)
    assert FIRST_LABELS[name].split("/")[0] in str(refusal.value).partition("the layout of")[2]


@pytest.mark.parametrize("name", [name for name in FIRST_LABELS if name != "clive"])
def test_missing_images_and_references_are_named_by_all(tmp_path: Path, name: str) -> None:
    built = trees.build(name, tmp_path / name)
    whole = read_dataset(name, built)
    gone = whole.rows[1].path
    gone.unlink()
    with pytest.raises(DatasetError, match=rf": 1 of \d+ images are missing: .*{gone.name}; the layout of"):
        read_dataset(name, built)
    dataset = read_dataset(name, built, allow_missing=True)
    assert dataset.rows == (whole.rows[0], *whole.rows[2:])
    assert [Path(entry).name for entry in dataset.missing] == [gone.name]
    ref = whole.rows[0].ref
    if ref is not None:
        ref.unlink()
        dataset = read_dataset(name, built, allow_missing=True)
        assert dataset.rows[0] == whole.rows[0]._replace(ref=None)
        assert [Path(entry).name for entry in dataset.missing] == [gone.name, ref.name]
    for row in whole.rows:
        row.path.unlink(missing_ok=True)
    with pytest.raises(DatasetError, match="images are missing"):
        read_dataset(name, built, allow_missing=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("500.jpg,0,0,0,0,0,1,much,0.5,test", r"line 6: expected a number as MOS, got 'much'"),
        ("500.jpg,0,0,0,0,0,1,nan,0.5,test", r"line 6: expected a number as MOS, got 'nan'"),
        ("500.jpg,0,0,0,0,0,1,101,0.5,test", r"expected scores within 0 to 100, got 1: 500\.jpg 101"),
        ("100.jpg,0,0,0,0,0,1,50,0.5,test", r"1 images are listed more than once: 100\.jpg"),
        ("500.jpg,0,0,0,0,0,1,50", r"line 6: expected 10 fields, got 8"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = trees.koniq(tmp_path) / "koniq10k_distributions_sets.csv"
    trees.touch(tmp_path / "1024x768", "500.jpg")
    path.write_text(path.read_text() + line)
    with pytest.raises(DatasetError, match=message):
        read_koniq(tmp_path)


def test_bad_label_files_are_refused(tmp_path: Path) -> None:
    path = trees.koniq(tmp_path) / "koniq10k_distributions_sets.csv"
    path.write_text("image_name,mos\n100.jpg,5\n")
    with pytest.raises(
        DatasetError, match=r"sets\.csv: expected the columns image_name, MOS, set, got image_name, mos"
    ):
        read_koniq(tmp_path)
    path.write_text("image_name,MOS,set\n")
    with pytest.raises(DatasetError, match="its label file names no image"):
        read_koniq(tmp_path)
    path.write_bytes(b"image_name,MOS,set\n\xff\xfe,5,test\n")
    with pytest.raises(DatasetError, match=r"sets\.csv: expected a UTF-8 text file"):
        read_koniq(tmp_path)


def test_an_exact_name_comes_before_another_case(tmp_path: Path) -> None:
    trees.tid2013(tmp_path)
    (tmp_path / "distorted_images" / "I01_24_5.bmp").write_text("another")
    if len(list((tmp_path / "distorted_images").glob("[iI]01_24_5.bmp"))) == 1:
        pytest.skip("this file system knows no case")
    assert read_tid2013(tmp_path).rows[1].path.name == "i01_24_5.bmp", "as the label file writes it"


def table(tmp_path: Path, *lines: str) -> Path:
    trees.touch(tmp_path, "a.png", "b/c.png", "d.png", "ref.png")
    trees.text(tmp_path / "scores.csv", *lines)
    return tmp_path / "scores.csv"


@pytest.mark.parametrize("name", ["../a.png", "./b/../d.png", "b/./c.png"])
def test_any_csv_may_point_elsewhere(tmp_path: Path, name: str) -> None:
    table(tmp_path, "")
    folder = tmp_path if name[1] != "." else tmp_path / "b"
    trees.text(folder / "more.csv", "path,score,ref", f"{name},1,{name}", f"{tmp_path / 'ref.png'},2,")
    assert read_csv(folder / "more.csv").rows[0].path.samefile(folder / name)


def test_any_csv(tmp_path: Path) -> None:
    path = table(tmp_path, "path,score,more", "a.png,0.5,x", "b/c.png,-1,x", f"{tmp_path / 'd.png'},2,x")
    dataset = read_csv(path)
    assert (dataset.name, dataset.mos_range, dataset.synthetic, dataset.flipped) == ("scores", (-1, 2), False, False)
    assert [row.path for row in dataset.rows] == [tmp_path / "a.png", tmp_path / "b/c.png", tmp_path / "d.png"]
    assert [row.mos for row in dataset.rows] == [0.5, -1, 2]
    assert [row.group for row in dataset.rows] == ["a.png", "b/c.png", str(tmp_path / "d.png")]
    assert read_dataset("csv", path) == dataset
    flipped = read_csv(path, lower_is_better=True, mos_range=(-10, 10), name="mine")
    assert [row.mos for row in flipped.rows] == [-0.5, 1, -2]
    assert (flipped.name, flipped.mos_range, flipped.flipped) == ("mine", (-10, 10), True)


def test_any_csv_with_refs_groups_and_splits(tmp_path: Path) -> None:
    path = table(tmp_path, "path,mos,ref,split", "a.png,1,ref.png,training", "b/c.png,2,ref.png,test", "d.png,3,,")
    dataset = read_csv(path)
    assert dataset.synthetic
    assert [row.ref for row in dataset.rows] == [tmp_path / "ref.png", tmp_path / "ref.png", None]
    assert [row.group for row in dataset.rows] == ["ref.png", "ref.png", "d.png"]
    assert [row.split for row in dataset.rows] == ["train", "test", None]
    path = table(tmp_path, "image,dmos,scene,side", "a.png,1,s1,val", "b/c.png,2,s2,test", "d.png,3,s1,test")
    dataset = read_csv(path, path_column="image", score_column="dmos", group_column="scene", split_column="side")
    assert [row.group for row in dataset.rows] == ["s1", "s2", "s1"]
    assert [row.split for row in dataset.rows] == ["val", "test", "test"]


def test_a_bad_csv_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"scores\.csv: expected the columns path, got file, score"):
        read_csv(table(tmp_path, "file,score", "a.png,1"))
    with pytest.raises(DatasetError, match=r"scores\.csv: expected a column score or mos, got path, value"):
        read_csv(table(tmp_path, "path,value", "a.png,1"))
    with pytest.raises(DatasetError, match=r"none\.csv: not found; the layout of none is a CSV file with"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(DatasetError, match=r"1 of 2 images are missing: b\.png"):
        read_csv(table(tmp_path, "path,score", "a.png,1", "b.png,2"))
    with pytest.raises(DatasetError, match=r"expected scores within 0 to 1, got 1: d\.png 3"):
        read_csv(table(tmp_path, "path,score", "a.png,1", "d.png,3"), mos_range=(0, 1))
    with pytest.raises(DatasetError, match=r"1 of 2 images are missing: /nowhere/b\.png"):
        read_csv(table(tmp_path, "path,score", "a.png,1", "/nowhere/b.png,2"))
    with pytest.raises(DatasetError, match=r"1 of 2 images are missing: \.;"):
        read_csv(table(tmp_path, "path,score", "a.png,1", ",2"))
    for rows, wanted in ((("a.png,1", "d.png,1"), None), (("a.png,1", "d.png,2"), (5, 0))):
        with pytest.raises(ValueError, match="mos_range: expected two rising numbers, got"):
            read_csv(table(tmp_path, "path,score", *rows), mos_range=wanted)


@pytest.mark.shared_data
def test_the_true_folder(shared_data: Path) -> None:
    rows = read_clive(shared_data / "ChallengeDB_release").rows
    assert len(rows) == 929
    groups = {row.path.stem: row.group for row in rows}
    assert groups["246"] == groups["333"]
    assert len(set(groups.values())) == 928
    assert 0 < min(row.mos for row in rows) < 20 < 80 < max(row.mos for row in rows) < 100
