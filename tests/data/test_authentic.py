import sys
from pathlib import Path

import pytest

from attriqa import ATTRIBUTES
from attriqa.data.datasets import DatasetError, read_ava, read_bid, read_flive, read_koniq, read_spaq
from tests.support.trees import datasets as trees


@pytest.mark.parametrize("size", ["1024x768", "512x384"])
def test_koniq_has_its_official_split_and_the_images_that_are_there(tmp_path: Path, size: str) -> None:
    dataset = read_koniq(trees.koniq(tmp_path, size))
    assert (dataset.name, dataset.mos_range, dataset.synthetic, dataset.flipped) == (
        "KonIQ-10k",
        (0, 100),
        False,
        False,
    )
    assert [row.path for row in dataset.rows] == [tmp_path / size / f"{i}00.jpg" for i in range(1, 5)]
    assert [row.mos for row in dataset.rows] == [77.38, 3.92, 88.38, 50]
    assert [row.split for row in dataset.rows] == ["train", "test", "train", "val"]
    assert [row.group for row in dataset.rows] == [f"{i}00.jpg" for i in range(1, 5)]


def test_koniq_without_the_split_is_on_the_same_scale(tmp_path: Path) -> None:
    with_split = read_koniq(trees.koniq(tmp_path))
    (tmp_path / "koniq10k_distributions_sets.csv").unlink()
    dataset = read_koniq(tmp_path)
    assert dataset == with_split._replace(rows=tuple(row._replace(split=None) for row in with_split.rows))


def test_koniq_in_a_chosen_size(tmp_path: Path) -> None:
    trees.koniq(tmp_path)
    trees.koniq(tmp_path, "512x384")
    assert read_koniq(tmp_path).rows[0].path.parent.name == "1024x768"
    assert read_koniq(tmp_path, size="512x384").rows[0].path.parent.name == "512x384"


def test_koniq_with_an_unknown_side_is_refused(tmp_path: Path) -> None:
    path = trees.koniq(tmp_path) / "koniq10k_distributions_sets.csv"
    path.write_text(path.read_text().replace("validation", "later"))
    with pytest.raises(DatasetError, match=r"sets\.csv line 5: expected a split of train, .*, got 'later'"):
        read_koniq(tmp_path)


def test_spaq_has_human_attribute_scores(tmp_path: Path) -> None:
    dataset = read_spaq(trees.spaq(tmp_path))
    assert dataset.mos_range == (0, 100)
    assert [row.mos for row in dataset.rows] == [48.86, 62.5, 2]
    assert dataset.rows[1].path == tmp_path / "TestImage" / "00002.jpg"
    assert dataset.rows[1].attributes is not None
    assert list(dataset.rows[1].attributes) == list(ATTRIBUTES)
    expected = {"sharpness": 11, "contrast": 31, "brightness": 51, "colorfulness": 41, "noisiness": 80}
    assert dataset.rows[1].attributes == expected


def test_spaq_tells_of_a_noisiness_that_means_noise(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Noisiness runs against MOS"):
        dataset = read_spaq(trees.spaq(tmp_path, noisiness=(50, 20, 90)))
    assert dataset.rows[2].attributes is not None
    assert dataset.rows[2].attributes["noisiness"] == 90, "as in the file"


def test_without_pandas_or_openpyxl_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.spaq(tmp_path)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ImportError, match=r"scores\.xlsx: Excel files need pandas and openpyxl: pip install 'attriqa"):
        read_spaq(tmp_path)


@pytest.mark.parametrize(
    ("small", "large"),
    [("labels=640_padded.csv", "labels640.csv"), ("labels<=640_padded.csv", "labels>640.csv")],
)
def test_flive_split_comes_from_two_more_files(tmp_path: Path, small: str, large: str) -> None:
    dataset = read_flive(trees.flive(tmp_path, small, large))
    assert dataset.mos_range == (0, 100)
    assert [row.split for row in dataset.rows] == ["train", "test", "val", None]
    assert [row.mos for row in dataset.rows] == [0, 94.3, 75.4, 60]
    assert dataset.rows[2].path == tmp_path / "database" / "blur_dataset" / "motion3.jpg"
    assert dataset.rows[2].group == "blur_dataset/motion3.jpg"


def test_flive_without_its_split_has_none_and_with_half_of_it_is_refused(tmp_path: Path) -> None:
    trees.flive(tmp_path)
    (tmp_path / "labels640.csv").unlink()
    with pytest.raises(
        DatasetError, match=r"labels>640\.csv: not found \(nor labels640\.csv\); the layout of FLIVE is"
    ):
        read_flive(tmp_path)
    (tmp_path / "labels=640_padded.csv").unlink()
    assert [row.split for row in read_flive(tmp_path).rows] == [None] * 4


def test_flive_with_an_unknown_flag_is_refused(tmp_path: Path) -> None:
    path = trees.flive(tmp_path) / "labels=640_padded.csv"
    path.write_text(path.read_text().replace("True", "yes"))
    with pytest.raises(DatasetError, match=r"padded\.csv line 3: expected True or False as is_valid, got 'yes'"):
        read_flive(tmp_path)


@pytest.mark.parametrize("folder", ["images", "image", "."])
def test_ava_is_the_mean_vote_with_its_test_list(tmp_path: Path, folder: str) -> None:
    dataset = read_ava(trees.ava(tmp_path, folder))
    assert dataset.mos_range == (1, 10)
    votes = [0, 1, 5, 17, 38, 36, 15, 6, 5, 1]
    first = sum(k * count for k, count in zip(range(1, 11), votes, strict=True)) / sum(votes)
    assert [row.mos for row in dataset.rows] == pytest.approx([first, 1, (9 + 3 * 10) / 4])
    assert [row.split for row in dataset.rows] == ["train", "train", "test"]
    assert dataset.rows[0].path.samefile(tmp_path / folder / "953619.jpg")
    (tmp_path / "aesthetics_image_lists" / "generic_test.jpgl").unlink()
    assert [row.split for row in read_ava(tmp_path).rows] == [None] * 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("4 1 0 0 0 0 0 0 0 0 0 0 1 1 1", "line 4: expected ten counts of votes"),
        ("4 1 0 0 5 -1 0 0 0 0 0 0 1 1 1", "line 4: expected ten counts of votes"),
        ("4 1 0 0 5 x 0 0 0 0 0 0 1 1 1", "line 4: expected a number as votes for 4, got 'x'"),
        ("4 1 0 0 5", "line 4: expected 15 fields, got 5"),
    ],
)
def test_ava_with_bad_votes_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = trees.ava(tmp_path) / "AVA.txt"
    path.write_text(path.read_text() + line)
    with pytest.raises(DatasetError, match=message):
        read_ava(tmp_path)


@pytest.mark.parametrize("folder", [".", "ImageDatabase"])
def test_bid_images_are_named_by_number(tmp_path: Path, folder: str) -> None:
    dataset = read_bid(trees.bid(tmp_path, folder))
    assert dataset.mos_range == (0, 5)
    assert [(row.path.name, row.mos) for row in dataset.rows] == [
        ("DatabaseImage0001.JPG", 0.16),
        ("DatabaseImage0586.JPG", 4.92),
    ]
    assert dataset.rows[0].path.samefile(tmp_path / folder / "DatabaseImage0001.JPG")
