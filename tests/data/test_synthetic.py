from pathlib import Path

import pytest
import scipy.io

from attriqa.data.datasets import (
    DatasetError,
    read_agiqa,
    read_csiq,
    read_kadid,
    read_live,
    read_lvq,
    read_pipal,
    read_tid2013,
)
from tests.support.trees import datasets as trees


def test_kadid_is_higher_better_despite_its_column(tmp_path: Path) -> None:
    dataset = read_kadid(trees.kadid(tmp_path))
    assert (dataset.mos_range, dataset.synthetic, dataset.flipped) == ((1, 5), True, False)
    assert {row.path.name: row.mos for row in dataset.rows} == trees.KADID_SCORES
    assert [(row.distortion, row.level) for row in dataset.rows] == [
        ("gaussian_blur", 1),
        ("color_saturation_1", 5),
        ("contrast_change", 3),
        ("jpeg", 2),
    ]
    assert [row.group for row in dataset.rows] == ["I01", "I01", "I02", "I81"]
    assert dataset.rows[3].ref == tmp_path / "images" / "I81.png"


@pytest.mark.parametrize("name", ["I01_26_01.png", "I01_00_01.png", "I01_01_06.png", "I01_01_01.jpg", "I01.png"])
def test_kadid_names_of_no_distortion_are_refused(tmp_path: Path, name: str) -> None:
    path = trees.kadid(tmp_path) / "dmos.csv"
    path.write_text(path.read_text().replace("I02_25_03.png", name))
    with pytest.raises(DatasetError, match=rf"dmos\.csv line 4: '{name}' names no distortion of 1 to 25"):
        read_kadid(tmp_path)


def test_tid2013_files_are_found_in_any_case(tmp_path: Path) -> None:
    dataset = read_tid2013(trees.tid2013(tmp_path))
    assert (dataset.mos_range, dataset.synthetic, dataset.flipped) == ((0, 9), True, False)
    assert [row.mos for row in dataset.rows] == list(trees.TID_SCORES.values())
    assert [row.path.name for row in dataset.rows] == ["i01_01_1.bmp", "i01_24_5.bmp", "I25_08_3.BMP", "i25_10_4.bmp"]
    assert all(row.path.is_file() for row in dataset.rows)
    assert [row.ref and row.ref.name for row in dataset.rows] == ["I01.BMP", "I01.BMP", "i25.bmp", "i25.bmp"]
    assert [row.group for row in dataset.rows] == ["I01", "I01", "I25", "I25"]
    assert [(row.distortion, row.level) for row in dataset.rows] == [
        ("additive_gaussian_noise", 1),
        ("sparse_sampling", 5),
        ("gaussian_blur", 3),
        ("jpeg", 4),
    ]


@pytest.mark.parametrize("case", ["official", "lower", "flat"])
@pytest.mark.parametrize("labels", ["csiq.DMOS.xlsx", "csiq_label.txt", "CSIQ.txt"])
def test_csiq_is_flipped_whatever_its_label_file_and_folders(tmp_path: Path, labels: str, case: str) -> None:
    dataset = read_csiq(trees.csiq(tmp_path, labels, case))
    assert (dataset.mos_range, dataset.synthetic, dataset.flipped) == ((0, 1), True, True)
    assert [row.mos for row in dataset.rows] == pytest.approx([1 - score for _, score in trees.CSIQ_SCORES.values()])
    assert [row.path.name for row in dataset.rows] == list(trees.CSIQ_SCORES)
    assert all(row.path.is_file() for row in dataset.rows)
    assert [row.group for row in dataset.rows] == ["1600"] * 3 + ["aerial_city"] * 3
    assert dataset.rows[0].ref == tmp_path / "src_imgs" / "1600.png"
    assert [row.distortion for row in dataset.rows] == ["AWGN", "BLUR", "contrast", "fnoise", "JPEG", "jpeg2000"]
    assert [row.level for row in dataset.rows] == [1, 5, 2, 3, 4, 4]


def test_csiq_refuses_a_name_of_no_type(tmp_path: Path) -> None:
    path = trees.csiq(tmp_path, "csiq_label.txt") / "csiq_label.txt"
    path.write_text(path.read_text().replace("1600.BLUR", "1600.smear"))
    with pytest.raises(DatasetError, match=r"csiq_label\.txt line 2: expected a name REFERENCE\.TYPE\.LEVEL\.png"):
        read_csiq(tmp_path)


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


RATED = {
    "jp2k/img2.bmp": (15.5, "studentsculpture.bmp"),
    "jp2k/img227.bmp": (-2.64, "bikes.bmp"),
    "jpeg/img1.bmp": (50.0, "bikes.bmp"),
    "wn/img174.bmp": (111.77, "woman.bmp"),
    "fastfading/img174.bmp": (60.0, "woman.bmp"),
}


def test_live_is_flipped_and_without_copies_of_references(tmp_path: Path) -> None:
    parameters = {name: 0.5 + i for i, name in enumerate(RATED)}
    dataset = read_live(trees.live(tmp_path, RATED, parameters))
    assert (dataset.mos_range, dataset.synthetic, dataset.flipped) == ((-3, 112), True, True)
    assert [row.path.relative_to(tmp_path).as_posix() for row in dataset.rows] == list(RATED)
    assert [row.mos for row in dataset.rows] == pytest.approx([109 - dmos for dmos, _ in RATED.values()])
    assert [row.distortion for row in dataset.rows] == ["jp2k", "jp2k", "jpeg", "wn", "fastfading"]
    assert [row.level for row in dataset.rows] == list(parameters.values())
    assert [row.group for row in dataset.rows] == ["studentsculpture", "bikes", "bikes", "woman", "woman"]
    assert dataset.rows[3].ref == tmp_path / "refimgs" / "woman.bmp"


def test_live_without_info_files_has_no_levels(tmp_path: Path) -> None:
    assert [row.level for row in read_live(trees.live(tmp_path, RATED)).rows] == [None] * 5


def test_live_label_files_that_disagree_are_refused(tmp_path: Path) -> None:
    trees.live(tmp_path, RATED)
    scipy.io.savemat(tmp_path / "refnames_all.mat", {"refnames_all": trees.cells(["a.bmp"] * 981)})
    with pytest.raises(DatasetError, match="expected 982 images, got 982 dmos_new, 982 orgs and 981 refnames_all"):
        read_live(tmp_path)
    whole = (tmp_path / "refnames_all.mat").read_bytes()
    for content in (b"", b"no MATLAB", whole[: len(whole) // 2]):
        (tmp_path / "refnames_all.mat").write_bytes(content)
        with pytest.raises(DatasetError, match=r"refnames_all\.mat: not a MATLAB file"):
            read_live(tmp_path)


@pytest.mark.parametrize("merged", [False, True])
def test_pipal_images_are_in_four_folders_or_one(tmp_path: Path, merged: bool) -> None:
    dataset = read_pipal(trees.pipal(tmp_path, merged))
    assert (dataset.synthetic, dataset.flipped) == (True, False)
    assert [row.mos for row in dataset.rows] == [1520.0648, 1437.0798, 916.7136]
    folders = ["Dist_Imgs"] * 3 if merged else ["Distortion_1", "Distortion_1", "Distortion_4"]
    assert [row.path.parent.name for row in dataset.rows] == folders
    assert [(row.group, row.distortion, row.level) for row in dataset.rows] == [
        ("A0001", "00", None),
        ("A0001", "06", None),
        ("A0185", "02", None),
    ]
    assert dataset.rows[2].ref == tmp_path / "Train_Ref" / "A0185.bmp"


def test_lvq_frames_are_grouped_by_reference_video(tmp_path: Path) -> None:
    dataset = read_lvq(trees.lvq(tmp_path))
    assert (dataset.mos_range, dataset.synthetic) == ((0, 3), True)
    assert [row.group for row in dataset.rows] == ["refs/v1", "refs/v1", "refs/v2"]
    assert [row.level for row in dataset.rows] == [2, 4, 1]
    assert [row.mos for row in dataset.rows] == [0.5, 1.5, 2.5]
    assert read_lvq(tmp_path / "manifest.csv") == dataset
    path = tmp_path / "manifest.csv"
    lines = path.read_text().split()
    path.write_text("\n".join(f"{line},{'video' if i == 0 else f'name{i}'}" for i, line in enumerate(lines)))
    assert [row.group for row in read_lvq(tmp_path).rows] == ["name1", "name2", "name3"]


def test_agiqa_groups_are_prompts(tmp_path: Path) -> None:
    dataset = read_agiqa(trees.agiqa(tmp_path))
    assert (dataset.mos_range, dataset.synthetic) == ((0, 5), False)
    assert [(row.path.name, row.mos, row.group) for row in dataset.rows] == [
        ("AttnGAN_normal_000.jpg", 0.19, "a cat, sitting"),
        ("sd1.5_lowstep_001.jpg", 4.489, "a cat, sitting"),
    ]
