"""Pristine images and what was done to them: KADID-10k, TID2013, CSIQ, LIVE, PIPAL, LVQ; and images made by AI.

File names and columns are those of the authors' own copies; `attriqa.data.datasets.Reader` says what all readers share.
The group of a row is its reference.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from attriqa.data.datasets.label_files import find_labels, number, read_fields, read_mat, read_sheet, read_table
from attriqa.data.datasets.rows import Dataset, DatasetError, Images, Kind, Row, complete
from attriqa.distortions import DISTORTION_KEYS
from attriqa.distortions.classes import CSIQ_TYPES, LIVE_TYPES, TID2013_TYPES

KADID_TYPES = DISTORTION_KEYS  # in the order of the numbers in file names
_KADID = Kind("KADID-10k", (1.0, 5.0), "ROOT/dmos.csv, ROOT/images/*.png", synthetic=True)
_TID2013 = Kind(
    "TID2013",
    (0.0, 9.0),
    "ROOT/mos_with_names.txt, ROOT/distorted_images/*.bmp, ROOT/reference_images/*.BMP",
    synthetic=True,
)
_CSIQ = Kind(
    "CSIQ",
    (0.0, 1.0),
    "ROOT/csiq.DMOS.xlsx, ROOT/csiq_label.txt or ROOT/CSIQ.txt, ROOT/src_imgs/*.png, "
    "ROOT/dst_imgs/{AWGN,BLUR,contrast,fnoise,JPEG,jpeg2000}/*.png or ROOT/dst_imgs_all/*.png",
    synthetic=True,
    flipped=True,
)
_CSIQ_SHEET_TYPES = dict(
    zip(("noise", "blur", "contrast", "fnoise", "jpeg", "jpeg 2000"), CSIQ_TYPES, strict=True)
)  # its own names for them
_LIVE = Kind(
    "LIVE",
    (-3.0, 112.0),  # realigned DMOS has no fixed ends; its extremes are -2.64 and 111.77
    "ROOT/dmos_realigned.mat, ROOT/refnames_all.mat, ROOT/{jp2k,jpeg,wn,gblur,fastfading}/img*.bmp (levels: info.txt "
    "there), ROOT/refimgs/*.bmp",
    synthetic=True,
    flipped=True,
)
_PIPAL = Kind(
    "PIPAL",
    (916.0, 1836.0),  # Elo ratings have no fixed ends; their extremes are 916.7 and 1836.0
    "ROOT/Train_Label/*.txt, ROOT/Train_Ref/*.bmp, ROOT/Distortion_{1,2,3,4}/*.bmp or ROOT/Dist_Imgs/*.bmp",
    synthetic=True,
)
_PIPAL_FOLDERS = ("Dist_Imgs", "Distortion_1", "Distortion_2", "Distortion_3", "Distortion_4")
_LVQ = Kind(
    "LVQ",
    (0.0, 3.0),
    "a CSV file (or ROOT/manifest.csv) with the columns frame,ref,distortion,level,mos and perhaps video, paths "
    "relative to it",
    synthetic=True,
)
_AGIQA = Kind("AGIQA-3k", (0.0, 5.0), "ROOT/data.csv, ROOT/*.jpg")


def read_kadid(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """KADID-10k: 81 references x 25 distortions x 5 levels, scores on 1..5.

    Lin et al., QoMEX 2019. The column is called ``dmos`` and yet higher is better.
    """
    root = Path(root)
    images = Images(root / "images")
    rows = []
    for place, record in read_table(find_labels(_KADID, root, "dmos.csv"), ["dist_img", "ref_img", "dmos"]):
        kind, level = _code(place, record["dist_img"], r"I\d+_(\d+)_(\d+)\.png", KADID_TYPES)
        mos, ref = number(place, "dmos", record["dmos"]), record["ref_img"]
        rows.append(Row(images.path(record["dist_img"]), mos, Path(ref).stem, images.path(ref), kind, level))
    return complete(_KADID, rows, images, allow_missing=allow_missing)


def read_tid2013(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """TID2013: 25 references x 24 distortions x 5 levels, MOS on 0..9.

    Ponomarenko et al., Signal Processing: Image Communication 2015. Files are found whatever the case of their names,
    which differs between copies.
    """
    root = Path(root)
    images = Images(root)
    rows = []
    for place, (score, name) in read_fields(find_labels(_TID2013, root, "mos_with_names.txt"), 2):
        kind, level = _code(place, name, r"(?i:I)\d+_(\d+)_(\d+)\.(?i:bmp)", TID2013_TYPES)
        group = name[:3].upper()
        path, ref = images.path(f"distorted_images/{name}"), images.path(f"reference_images/{group}.BMP")
        rows.append(Row(path, number(place, "MOS", score), group, ref, kind, level))
    return complete(_TID2013, rows, images, allow_missing=allow_missing)


def _code(place: str, name: str, pattern: str, types: tuple[str, ...]) -> tuple[str, int]:
    """Type and level out of a file name that numbers them."""
    match = re.fullmatch(pattern, name)
    if not match or not 1 <= int(match[1]) <= len(types) or not 1 <= int(match[2]) <= 5:
        raise DatasetError(f"{place}: {name[:80]!r} names no distortion of 1 to {len(types)} and level of 1 to 5")
    return types[int(match[1]) - 1], int(match[2])


def read_csiq(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """CSIQ: 866 images from 30 references, six distortions of up to five levels; mos is 1 - DMOS, on 0..1.

    Larson and Chandler, JEI 2010. Labels: the official sheet, or one of the text files made from it. Folders are found
    whatever their case.
    """
    root = Path(root)
    images = Images(root)
    flat = (root / "dst_imgs_all").is_dir()
    types = {name.casefold(): name for name in CSIQ_TYPES}
    rows = []
    for place, name, score in _csiq_scores(root):
        match = re.fullmatch(r"(.+)\.(\w+)\.([1-5])\.png", name)
        if not match or match[2].casefold() not in types:
            raise DatasetError(f"{place}: expected a name REFERENCE.TYPE.LEVEL.png, got {name[:80]!r}")
        kind = types[match[2].casefold()]
        path = images.path(f"dst_imgs_all/{name}" if flat else f"dst_imgs/{kind}/{name}")
        ref = images.path(f"src_imgs/{match[1]}.png")
        rows.append(Row(path, score, match[1].lower(), ref, kind, int(match[3])))
    return complete(_CSIQ, rows, images, allow_missing=allow_missing)


def _csiq_scores(root: Path) -> Iterator[tuple[str, str, float]]:
    """Place, file name and DMOS of each image, from any of the three label files."""
    labels = find_labels(_CSIQ, root, "csiq.DMOS.xlsx", "csiq_label.txt", "CSIQ.txt")
    if labels.suffix == ".xlsx":
        for place, record in read_sheet(labels, ["image", "dst_type", "dst_lev", "dmos"], "all_by_image"):
            kind = str(record["dst_type"]).strip()
            level = int(number(place, "dst_lev", record["dst_lev"]))
            name = f"{record['image']}.{_CSIQ_SHEET_TYPES.get(kind, kind)}.{level}.png"
            yield place, name, number(place, "dmos", record["dmos"])
    elif labels.name == "csiq_label.txt":
        for place, (name, score) in read_fields(labels, 2):
            yield place, name, number(place, "DMOS", score)
    else:
        for place, record in read_table(labels, ["dis_img_path", "score"]):
            yield place, record["dis_img_path"].rsplit("/", 1)[-1], number(place, "score", record["score"])


def read_live(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """LIVE, release 2: 779 images from 29 references, five distortions; mos is 109 - realigned DMOS, on -3..112.

    Sheikh et al., IEEE TIP 2006. The 203 copies of references among the 982 images (``orgs``) are left out. There are
    no levels: ``level`` is the physical parameter in ``<type>/info.txt``, or None where that file is not there.
    """
    root = Path(root)
    labels = find_labels(_LIVE, root, "dmos_realigned.mat")
    refs = read_mat(find_labels(_LIVE, root, "refnames_all.mat"), "refnames_all")
    scores, copies = read_mat(labels, "dmos_new"), read_mat(labels, "orgs")
    names = [(kind, f"img{index}.bmp") for kind, count in LIVE_TYPES.items() for index in range(1, count + 1)]
    if not len(names) == len(scores) == len(copies) == len(refs):
        raise DatasetError(
            f"{root}: expected {len(names)} images, got {len(scores)} dmos_new, {len(copies)} orgs and {len(refs)} "
            f"refnames_all"
        )
    images = Images(root)
    parameters = {kind: _live_parameters(root / kind / "info.txt") for kind in LIVE_TYPES}
    rows = [
        Row(
            images.path(f"{kind}/{name}"),
            number(str(labels), "dmos_new", score),
            Path(str(ref)).stem,
            images.path(f"refimgs/{ref}"),
            kind,
            parameters[kind].get(name),
        )
        for (kind, name), score, copy, ref in zip(names, scores, copies, refs, strict=True)
        if not copy
    ]
    return complete(_LIVE, rows, images, allow_missing=allow_missing)


def _live_parameters(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    return {name: number(place, "parameter", text) for place, (_, name, text) in read_fields(path, 3)}


def read_pipal(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """PIPAL's training part: 23,200 images from 200 references, Elo ratings of 916.7 to 1836, higher is better.

    Gu et al., ECCV 2020. ``distortion`` is the first number of the file name; the second counts within it and is no
    level.
    """
    root = Path(root)
    files = sorted((root / "Train_Label").glob("*.txt"))
    if not files:
        raise DatasetError(f"{root / 'Train_Label'}: no *.txt match; the layout of PIPAL is {_PIPAL.layout}")
    images = Images(root)
    folders = [name for name in _PIPAL_FOLDERS if (root / name).is_dir()] or ["Dist_Imgs"]
    rows = []
    for place, (name, score) in (record for file in files for record in read_fields(file, 2, ",")):
        match = re.fullmatch(r"(A\d+)_(\d+)_\d+\.bmp", name)
        if not match:
            raise DatasetError(f"{place}: expected a name like A0001_00_00.bmp, got {name[:80]!r}")
        folder = next((folder for folder in folders if f"{folder}/{name}" in images), folders[0])
        ref = images.path(f"Train_Ref/{match[1]}.bmp")
        rows.append(Row(images.path(f"{folder}/{name}"), number(place, "score", score), match[1], ref, match[2]))
    return complete(_PIPAL, rows, images, allow_missing=allow_missing)


def read_lvq(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """LVQ, frames of laparoscopic videos: 10 reference videos x 5 distortions x 4 levels, scores on 0..3.

    Khan et al., ICIP 2020. Its own layout is not public: a manifest says what is where. The group is the reference
    video: column ``video`` where there is one, else the folder of ``ref``.

    The root is the manifest, or a folder with ``manifest.csv``.
    """
    root = Path(root)
    labels = root if root.is_file() else find_labels(_LVQ, root, "manifest.csv")
    images = Images(labels.parent)
    rows = []
    for place, record in read_table(labels, ["frame", "ref", "distortion", "level", "mos"]):
        rows.append(
            Row(
                images.path(record["frame"]),
                number(place, "mos", record["mos"]),
                record.get("video") or Path(record["ref"]).parent.as_posix(),
                images.path(record["ref"]),
                record["distortion"],
                int(number(place, "level", record["level"])),
            )
        )
    return complete(_LVQ, rows, images, allow_missing=allow_missing)


def read_agiqa(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """AGIQA-3k: 2,982 images by six generators, opinions of quality on 0..5.

    Li et al., IEEE TCSVT 2023. The group is the prompt. For zero-shot numbers use ``evals/agiqa.py``, which also looks
    within prompts and generators.
    """
    root = Path(root)
    images = Images(root)
    rows = [
        Row(images.path(record["name"]), number(place, "mos_quality", record["mos_quality"]), record["prompt"])
        for place, record in read_table(find_labels(_AGIQA, root, "data.csv"), ["name", "prompt", "mos_quality"])
    ]
    return complete(_AGIQA, rows, images, allow_missing=allow_missing)
