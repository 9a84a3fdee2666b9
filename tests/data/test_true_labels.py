"""The readers on the label files that the authors published: counts and ranges are the published ones.

Only KADID-10k and AGIQA-3k have true images; those of the small sets are empty files, those of the large ones are only
said to be there.
"""

import csv
import gzip
from collections import Counter
from pathlib import Path

import pytest

from attriqa.data.datasets import (
    Dataset,
    read_agiqa,
    read_csiq,
    read_flive,
    read_kadid,
    read_koniq,
    read_live,
    read_pipal,
    read_spaq,
    read_tid2013,
)
from attriqa.data.datasets.rows import Images
from attriqa.data.splits import official_fold, random_split
from tests.support.trees import datasets as trees

pytestmark = pytest.mark.shared_data


def unpacked(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def uniform(shared_data: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(unpacked(shared_data / "labels" / f"{name}.txt.gz").splitlines()))


def touch(root: Path, names: list[str]) -> None:
    """Empty files, many of them."""
    for folder in {str(Path(name).parent) for name in names}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).touch()


@pytest.fixture
def all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is found under the name it is asked for."""
    monkeypatch.setattr(Images, "_find", lambda self, name: self.root / name)


def extremes(dataset: Dataset) -> tuple[float, float]:
    return min(row.mos for row in dataset.rows), max(row.mos for row in dataset.rows)


def split_sizes(dataset: Dataset) -> tuple[int, int]:
    """References in training and test of a random split."""
    groups = [row.group for row in dataset.rows]
    train, test = random_split(groups, seed=0)
    return len({groups[i] for i in train}), len({groups[i] for i in test})


@pytest.mark.usefixtures("all_there")
def test_koniq(shared_data: Path, tmp_path: Path) -> None:
    text = unpacked(shared_data / "labels" / "koniq10k_distributions_sets.csv.gz")
    (tmp_path / "koniq10k_distributions_sets.csv").write_text(text)
    dataset = read_koniq(tmp_path)
    assert len(dataset.rows) == 10_073
    assert Counter(row.split for row in dataset.rows) == {"train": 7058, "val": 1000, "test": 2015}
    assert extremes(dataset) == pytest.approx((3.91, 88.39), abs=0.005)
    fold = official_fold([row.split for row in dataset.rows], [row.group for row in dataset.rows])
    assert (len(fold.train), len(fold.test)) == (7058, 2015)


@pytest.mark.usefixtures("all_there")
def test_flive(shared_data: Path, tmp_path: Path) -> None:
    text = unpacked(shared_data / "labels" / "flive_labels_image.csv.gz")
    (tmp_path / "labels_image.csv").write_text(text)
    dataset = read_flive(tmp_path)
    assert len(dataset.rows) == 39_810
    folders = Counter(row.path.parent.name for row in dataset.rows)
    assert folders == {"voc_emotic_ava": 38_808, "blur_dataset": 999, "EE371R": 3}
    assert extremes(dataset) == pytest.approx((0, 94.33), abs=0.005)


@pytest.mark.slow  # writes and reads an Excel file of 11,125 rows
@pytest.mark.usefixtures("all_there")
def test_spaq(shared_data: Path, tmp_path: Path) -> None:
    rows = uniform(shared_data, "SPAQ")
    names = [Path(row["dis_img_path"]).name for row in rows]
    scores = [float(row["score"]) for row in rows]
    columns = dict.fromkeys(("Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"), scores)
    path = tmp_path / "Annotations" / "MOS and Image attribute scores.xlsx"
    trees.sheet(path, {"Image name": names, "MOS": scores, **columns})
    dataset = read_spaq(tmp_path)
    assert len(dataset.rows) == 11_125
    assert extremes(dataset) == (2, 96)
    assert dataset.rows[0].path.name == "00001.jpg"


def test_csiq(shared_data: Path, tmp_path: Path) -> None:
    rows = uniform(shared_data, "CSIQ")
    (tmp_path / "CSIQ.txt").write_text(unpacked(shared_data / "labels" / "CSIQ.txt.gz"))
    images = [row["dis_img_path"] for row in rows] + [row["ref_img_path"] for row in rows]
    touch(tmp_path, sorted({name.removeprefix("CSIQ/") for name in images}))
    dataset = read_csiq(tmp_path)
    assert len(dataset.rows) == 866
    types = Counter(row.distortion for row in dataset.rows)
    assert types == {"AWGN": 150, "BLUR": 150, "JPEG": 150, "jpeg2000": 150, "fnoise": 150, "contrast": 116}
    assert {row.group for row in dataset.rows} == {Path(row["ref_img_path"]).stem.lower() for row in rows}
    assert [row.mos for row in dataset.rows] == pytest.approx([1 - float(row["score"]) for row in rows])
    assert extremes(dataset) == (0, 1)
    assert split_sizes(dataset) == (24, 6)


def test_live(shared_data: Path, tmp_path: Path) -> None:
    rows = uniform(shared_data, "LIVE")
    rated = {
        row["dis_img_path"].removeprefix("LIVE/"): (float(row["score"]), Path(row["ref_img_path"]).name) for row in rows
    }
    dataset = read_live(trees.live(tmp_path, rated, {}))
    types = Counter(row.distortion for row in dataset.rows)
    assert types == {"jp2k": 169, "jpeg": 175, "wn": 145, "gblur": 145, "fastfading": 145}
    assert len(dataset.rows) == 779
    dmos = {row.path.relative_to(tmp_path).as_posix(): 109 - row.mos for row in dataset.rows}
    assert dmos == {name: pytest.approx(score) for name, (score, _) in rated.items()}
    assert {row.path.relative_to(tmp_path).as_posix(): row.ref and row.ref.name for row in dataset.rows} == {
        name: ref for name, (_, ref) in rated.items()
    }
    assert split_sizes(dataset) == (23, 6)


def test_tid2013(shared_data: Path, tmp_path: Path) -> None:
    rows = uniform(shared_data, "TID2013")
    lines = (f"{row['score']} I{Path(row['dis_img_path']).name[1:]}" for row in rows)  # the official file's capital
    trees.text(tmp_path / "mos_with_names.txt", *lines)
    touch(tmp_path / "distorted_images", [Path(row["dis_img_path"]).name for row in rows])
    touch(tmp_path / "reference_images", [*(f"I{i:02d}.BMP" for i in range(1, 25)), "i25.bmp"])
    dataset = read_tid2013(tmp_path)
    assert len(dataset.rows) == 3000
    assert set(Counter(row.distortion for row in dataset.rows).values()) == {125}
    assert len({row.distortion for row in dataset.rows}) == 24
    assert extremes(dataset) == pytest.approx((0.242, 7.214), abs=0.0005)
    assert split_sizes(dataset) == (20, 5)
    native = {"AWGN": "additive_gaussian_noise", "GBLUR": "gaussian_blur", "JPEG": "jpeg", "JP2K": "jpeg2000"}
    native |= {"Mean_Shift": "mean_shift", "Contrast_Dist.": "contrast_change", "Comfort_Noise": "comfort_noise"}
    native |= {"Dithering": "color_quantization_with_dither", "Chroma_Aberrations": "chromatic_aberrations"}
    for row, label in zip(dataset.rows, rows, strict=True):
        assert native.get(label["dis_type"], row.distortion) == row.distortion


@pytest.mark.usefixtures("all_there")
def test_pipal(shared_data: Path, tmp_path: Path) -> None:
    rows = uniform(shared_data, "PIPAL")
    labels: dict[str, list[str]] = {}
    for row in rows:
        name = Path(row["dis_img_path"]).name
        labels.setdefault(name[:5], []).append(f"{name},{row['score']}")
    for ref, lines in labels.items():
        trees.text(tmp_path / "Train_Label" / f"{ref}.txt", *lines)
    (tmp_path / "Dist_Imgs").mkdir()
    dataset = read_pipal(tmp_path)
    assert len(dataset.rows) == 23_200
    assert len({row.group for row in dataset.rows}) == 200
    assert extremes(dataset) == pytest.approx((916.7, 1836), abs=0.05)
    assert [row.path.name for row in dataset.rows] == sorted(Path(row["dis_img_path"]).name for row in rows)


def test_true_images_of_kadid_and_agiqa(shared_data: Path) -> None:
    kadid = read_kadid(shared_data / "kadid10k")
    assert len(kadid.rows) == 52
    assert len({row.group for row in kadid.rows}) == 36
    assert all(row.ref is not None and row.ref.stem == row.group for row in kadid.rows)
    by_name = {row.path.name: row for row in kadid.rows}
    assert by_name["I05_10_04.png"][1:] == (
        2.47, "I05", shared_data / "kadid10k/images/I05.png", "jpeg", 4, None, None,
    )  # fmt: skip
    agiqa = read_agiqa(shared_data / "AGIQA-3K")
    assert len(agiqa.rows) == 1246
    assert len({row.group for row in agiqa.rows}) == 125
    assert extremes(agiqa)[1] < 4.49
