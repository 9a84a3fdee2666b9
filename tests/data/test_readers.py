"""What each reader makes of a small copy in its set's official layout, and of copies that differ or are broken."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.io

from attriqa import ATTRIBUTES
from attriqa.data.datasets import (
    READERS,
    Dataset,
    DatasetError,
    read_csiq,
    read_flive,
    read_koniq,
    read_live,
    read_lvq,
    read_spaq,
)
from tests.support.trees import datasets as trees

# Name -> scale, what it is, and path | mos | group | ref | distortion | level | split of each row.
EXPECTED = {
    "koniq": ("0..100", "", """
        1024x768/100.jpg | 77.38 | 100.jpg | - | - | - | train
        1024x768/200.jpg | 3.92 | 200.jpg | - | - | - | test
        1024x768/300.jpg | 88.38 | 300.jpg | - | - | - | train
        1024x768/400.jpg | 50 | 400.jpg | - | - | - | val"""),
    "spaq": ("0..100", "", """
        TestImage/00001.jpg | 48.86 | 00001.jpg | - | - | - | -
        TestImage/00002.jpg | 62.5 | 00002.jpg | - | - | - | -
        TestImage/00003.jpg | 2 | 00003.jpg | - | - | - | -"""),
    "flive": ("0..100", "", """
        database/voc_emotic_ava/JPEGImages__1.jpg | 0 | voc_emotic_ava/JPEGImages__1.jpg | - | - | - | train
        database/voc_emotic_ava/AVA__2.jpg | 94.3 | voc_emotic_ava/AVA__2.jpg | - | - | - | test
        database/blur_dataset/motion3.jpg | 75.4 | blur_dataset/motion3.jpg | - | - | - | val
        database/EE371R/4.jpg | 60 | EE371R/4.jpg | - | - | - | -"""),
    "ava": ("1..10", "", """
        images/953619.jpg | 5.637096774 | 953619 | - | - | - | train
        images/953958.jpg | 1 | 953958 | - | - | - | train
        images/954184.jpg | 9.75 | 954184 | - | - | - | test"""),
    "bid": ("0..5", "", """
        DatabaseImage0001.JPG | 0.16 | DatabaseImage0001.JPG | - | - | - | -
        DatabaseImage0586.JPG | 4.92 | DatabaseImage0586.JPG | - | - | - | -"""),
    "kadid": ("1..5", "synthetic", """
        images/I01_01_01.png | 4.57 | I01 | images/I01.png | gaussian_blur | 1 | -
        images/I01_07_05.png | 1.93 | I01 | images/I01.png | color_saturation_1 | 5 | -
        images/I02_25_03.png | 4.29 | I02 | images/I02.png | contrast_change | 3 | -
        images/I81_10_02.png | 3.5 | I81 | images/I81.png | jpeg | 2 | -"""),  # higher is better
    "tid2013": ("0..9", "synthetic", """
        distorted_images/i01_01_1.bmp | 5.51429 | I01 | reference_images/I01.BMP | additive_gaussian_noise | 1 | -
        distorted_images/i01_24_5.bmp | 3 | I01 | reference_images/I01.BMP | sparse_sampling | 5 | -
        distorted_images/I25_08_3.BMP | 0.24242 | I25 | reference_images/i25.bmp | gaussian_blur | 3 | -
        distorted_images/i25_10_4.bmp | 7.2143 | I25 | reference_images/i25.bmp | jpeg | 4 | -"""),
    "csiq": ("0..1", "synthetic flipped", """
        dst_imgs/AWGN/1600.AWGN.1.png | 0.938 | 1600 | src_imgs/1600.png | AWGN | 1 | -
        dst_imgs/BLUR/1600.BLUR.5.png | 0.1 | 1600 | src_imgs/1600.png | BLUR | 5 | -
        dst_imgs/contrast/1600.contrast.2.png | 0.799 | 1600 | src_imgs/1600.png | contrast | 2 | -
        dst_imgs/fnoise/aerial_city.fnoise.3.png | 0.5 | aerial_city | src_imgs/aerial_city.png | fnoise | 3 | -
        dst_imgs/JPEG/aerial_city.JPEG.4.png | 1 | aerial_city | src_imgs/aerial_city.png | JPEG | 4 | -
        dst_imgs/jpeg2000/aerial_city.jpeg2000.4.png | 0 | aerial_city | src_imgs/aerial_city.png | jpeg2000 | 4 | -
        """),
    "live": ("-3..112", "synthetic flipped", """
        jp2k/img2.bmp | 93.5 | studentsculpture | refimgs/studentsculpture.bmp | jp2k | 0.5 | -
        jp2k/img227.bmp | 111.64 | bikes | refimgs/bikes.bmp | jp2k | 1.5 | -
        jpeg/img1.bmp | 59 | bikes | refimgs/bikes.bmp | jpeg | 2.5 | -
        wn/img174.bmp | -2.77 | woman | refimgs/woman.bmp | wn | 3.5 | -
        fastfading/img174.bmp | 49 | woman | refimgs/woman.bmp | fastfading | 4.5 | -"""),  # 109 - DMOS
    "pipal": ("916..1836", "synthetic", """
        Distortion_1/A0001_00_00.bmp | 1520.0648 | A0001 | Train_Ref/A0001.bmp | 00 | - | -
        Distortion_1/A0001_06_10.bmp | 1437.0798 | A0001 | Train_Ref/A0001.bmp | 06 | - | -
        Distortion_4/A0185_02_01.bmp | 916.7136 | A0185 | Train_Ref/A0185.bmp | 02 | - | -"""),
    "lvq": ("0..3", "synthetic", """
        v1_smoke_2/0001.png | 0.5 | refs/v1 | refs/v1/0001.png | smoke | 2 | -
        v1_noise_4/0002.png | 1.5 | refs/v1 | refs/v1/0002.png | smoke | 4 | -
        v2_smoke_1/0001.png | 2.5 | refs/v2 | refs/v2/0001.png | smoke | 1 | -"""),
    "agiqa": ("0..5", "", """
        AttnGAN_normal_000.jpg | 0.19 | a cat, sitting | - | - | - | -
        sd1.5_lowstep_001.jpg | 4.489 | a cat, sitting | - | - | - | -"""),
}  # fmt: skip


def lines(dataset: Dataset, root: Path) -> list[str]:
    """Its rows as in `EXPECTED`."""
    found = []
    for row in dataset.rows:
        ref = row.ref and row.ref.relative_to(root).as_posix()
        cells = (row.path.relative_to(root).as_posix(), f"{row.mos:.10g}", row.group, ref, row.distortion, row.level)
        found.append(" | ".join("-" if cell is None else str(cell) for cell in (*cells, row.split)))
    return found


def short(rows: list[str]) -> list[str]:
    """Rows without folders: those of copies that lay their files out in another way."""
    return [" | ".join(cell.rpartition("/")[2] for cell in row.split(" | ")) for row in rows]


@pytest.mark.parametrize("name", EXPECTED)
def test_rows_are_those_of_the_label_files(tmp_path: Path, name: str) -> None:
    scale, words, rows = EXPECTED[name]
    dataset = READERS[name](trees.build(name, tmp_path))
    assert lines(dataset, tmp_path) == [line.strip() for line in rows.strip().splitlines()]
    assert "..".join(f"{end:g}" for end in dataset.mos_range) == scale
    assert (dataset.synthetic, dataset.flipped) == ("synthetic" in words, "flipped" in words)
    assert all(row.path.is_file() and (row.ref is None or row.ref.is_file()) for row in dataset.rows)


COPIES: list[tuple[str, Callable[[Path], Path]]] = [
    ("koniq", lambda root: trees.koniq(root, "512x384")),
    ("flive", lambda root: trees.flive(root, "labels<=640_padded.csv", "labels>640.csv")),
    ("ava", lambda root: trees.ava(root, "image")),
    ("ava", lambda root: trees.ava(root, ".")),
    ("bid", lambda root: trees.bid(root, "ImageDatabase")),
    ("pipal", lambda root: trees.pipal(root, merged=True)),
    *(
        ("csiq", lambda root, labels=labels, case=case: trees.csiq(root, labels, case))
        for labels in ("csiq.DMOS.xlsx", "csiq_label.txt", "CSIQ.txt")
        for case in ("official", "lower", "flat")
    ),
]


@pytest.mark.parametrize(("name", "build"), COPIES)
def test_other_layouts_and_label_files_of_a_set_give_the_same(
    tmp_path: Path, name: str, build: Callable[[Path], Path]
) -> None:
    dataset = READERS[name](build(tmp_path))
    expected = [line.strip() for line in EXPECTED[name][2].strip().splitlines()]
    assert short(lines(dataset, tmp_path)) == short(expected)
    assert all(row.path.is_file() for row in dataset.rows)


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("koniq", "koniq10k_distributions_sets.csv", "validation", "later", r"line 5: expected a split of .*'later'"),
        ("flive", "labels=640_padded.csv", "True", "yes", "line 3: expected True or False as is_valid, got 'yes'"),
        ("ava", "AVA.txt", "0 0 0 0 0 0 0 0 1 3", "0 0 0 0 0 0 0 0 0 0", "line 3: expected ten counts of votes"),
        ("ava", "AVA.txt", "0 0 0 0 0 0 0 0 1 3", "0 0 5 -1 0 0 0 0 0 0", "line 3: expected ten counts of votes"),
        ("ava", "AVA.txt", "0 0 0 0 0 0 0 0 1 3", "0 0 5 x 0 0 0 0 0 0", "expected a number as votes for 4, got 'x'"),
        ("ava", "AVA.txt", " 0 0 0 0 0 0 0 0 1 3", "", "line 3: expected 15 fields, got 5"),
        *(
            ("kadid", "dmos.csv", "I02_25_03.png", bad, f"line 4: '{bad}' names no distortion of 1 to 25")
            for bad in ("I01_26_01.png", "I01_00_01.png", "I01_01_06.png", "I01_01_01.jpg", "I01.png")
        ),
        ("pipal", "Train_Label/A0185.txt", "A0185_02_01", "A185", "line 1: expected a name like A0001_00_00.bmp"),
    ],
)
def test_a_broken_label_file_is_refused(tmp_path: Path, name: str, file: str, old: str, new: str, message: str) -> None:
    path = trees.build(name, tmp_path) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DatasetError, match=message):
        READERS[name](tmp_path)


def test_csiq_refuses_a_name_of_no_type(tmp_path: Path) -> None:
    path = trees.csiq(tmp_path, "csiq_label.txt") / "csiq_label.txt"
    path.write_text(path.read_text().replace("1600.BLUR", "1600.smear"))
    with pytest.raises(DatasetError, match=r"csiq_label\.txt line 2: expected a name REFERENCE\.TYPE\.LEVEL\.png"):
        read_csiq(tmp_path)


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


def test_flive_without_its_split_has_none_and_with_half_of_it_is_refused(tmp_path: Path) -> None:
    trees.flive(tmp_path)
    (tmp_path / "labels640.csv").unlink()
    with pytest.raises(
        DatasetError, match=r"labels>640\.csv: not found \(nor labels640\.csv\); the layout of FLIVE is"
    ):
        read_flive(tmp_path)
    (tmp_path / "labels=640_padded.csv").unlink()
    assert [row.split for row in read_flive(tmp_path).rows] == [None] * 4


def test_spaq_has_human_attribute_scores(tmp_path: Path) -> None:
    (_, row, _) = read_spaq(trees.spaq(tmp_path)).rows
    expected = {"sharpness": 11, "contrast": 31, "brightness": 51, "colorfulness": 41, "noisiness": 80}
    assert row.attributes == expected
    assert tuple(row.attributes) == ATTRIBUTES


def test_without_their_split_files_rows_have_none(tmp_path: Path) -> None:
    trees.ava(tmp_path)
    (tmp_path / "aesthetics_image_lists" / "generic_test.jpgl").unlink()
    assert [row.split for row in READERS["ava"](tmp_path).rows] == [None] * 3


def test_live_without_info_files_has_no_levels(tmp_path: Path) -> None:
    assert [row.level for row in read_live(trees.live(tmp_path, parameters={})).rows] == [None] * 5


def test_csiq_refuses_a_file_that_is_no_sheet(tmp_path: Path) -> None:
    path = trees.csiq(tmp_path) / "csiq.DMOS.xlsx"
    whole = path.read_bytes()
    for content in (b"no sheet at all", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"csiq\.DMOS\.xlsx: not an Excel file with the sheet 'all_by_image'"):
            read_csiq(tmp_path)
    trees.sheet(path, {"image": [1600], "dmos": [0.5]}, "all_by_image")
    with pytest.raises(DatasetError, match="expected the columns image, dst_type, dst_lev, dmos, got image, dmos"):
        read_csiq(tmp_path)


def test_live_label_files_that_disagree_are_refused(tmp_path: Path) -> None:
    trees.live(tmp_path)
    scipy.io.savemat(tmp_path / "refnames_all.mat", {"refnames_all": trees.cells(["a.bmp"] * 981)})
    with pytest.raises(DatasetError, match="expected 982 images, got 982 dmos_new, 982 orgs and 981 refnames_all"):
        read_live(tmp_path)
    whole = (tmp_path / "refnames_all.mat").read_bytes()
    for content in (b"", b"no MATLAB", whole[: len(whole) // 2]):
        (tmp_path / "refnames_all.mat").write_bytes(content)
        with pytest.raises(DatasetError, match=r"refnames_all\.mat: not a MATLAB file"):
            read_live(tmp_path)


def test_lvq_may_be_its_manifest_and_name_its_videos(tmp_path: Path) -> None:
    path = trees.lvq(tmp_path) / "manifest.csv"
    assert read_lvq(path) == read_lvq(tmp_path)
    rows = path.read_text().split()
    path.write_text("\n".join(f"{line},{'video' if i == 0 else f'name{i}'}" for i, line in enumerate(rows)))
    assert [row.group for row in read_lvq(tmp_path).rows] == ["name1", "name2", "name3"]
