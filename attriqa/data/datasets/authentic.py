"""Photos with the faults that cameras and people gave them: CLIVE, KonIQ-10k, SPAQ, FLIVE, AVA, BID.

File names and columns are those of the authors' own copies; `attriqa.data.datasets.Reader` says what all readers share.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Literal

from scipy.stats import spearmanr

from attriqa.attributes import ATTRIBUTES
from attriqa.data.datasets.label_files import (
    find_labels,
    number,
    read_fields,
    read_mat,
    read_sheet,
    read_table,
    read_text,
    split_name,
)
from attriqa.data.datasets.rows import Dataset, DatasetError, Images, Kind, Row, Split, complete

_CLIVE = Kind("CLIVE", (0.0, 100.0), "ROOT/Data/AllImages_release.mat, ROOT/Data/AllMOS_release.mat, ROOT/Images/*")
_CLIVE_TRAINING = 7  # the first rows are the images that trained the observers
_KONIQ = Kind(
    "KonIQ-10k",
    (0.0, 100.0),
    "ROOT/koniq10k_distributions_sets.csv or ROOT/koniq10k_scores_and_distributions.csv, "
    "ROOT/1024x768/*.jpg or ROOT/512x384/*.jpg",
)
_SPAQ = Kind("SPAQ", (0.0, 100.0), "ROOT/Annotations/MOS and Image attribute scores.xlsx, ROOT/TestImage/*.jpg")
_SPAQ_COLUMNS = {name: name.capitalize() for name in ATTRIBUTES}
_FLIVE = Kind(
    "FLIVE",
    (0.0, 100.0),
    "ROOT/labels_image.csv, ROOT/database/*/*.jpg; for the official split also ROOT/labels<=640_padded.csv and "
    "ROOT/labels>640.csv (or, where a system forbids the signs, labels=640_padded.csv and labels640.csv)",
)
_FLIVE_SMALL = ("labels<=640_padded.csv", "labels=640_padded.csv")
_FLIVE_LARGE = ("labels>640.csv", "labels640.csv")
_AVA = Kind(
    "AVA",
    (1.0, 10.0),
    "ROOT/AVA.txt, ROOT/images/*.jpg (or ROOT/image/*.jpg, ROOT/*.jpg); for the official split also "
    "ROOT/aesthetics_image_lists/generic_test.jpgl",
)
_AVA_FIELDS = 15  # index, image id, ten counts, two tags, challenge
_BID = Kind("BID", (0.0, 5.0), "ROOT/DatabaseGrades.xlsx, ROOT/DatabaseImage*.JPG or ROOT/ImageDatabase/*.JPG")


def read_clive(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """LIVE In the Wild (CLIVE, ChallengeDB_release): 1,162 photos, MOS on 0..100.

    Ghadiyaram and Bovik, IEEE TIP 2016. The first seven entries showed observers what to do and are left out. Files
    with the same bytes (246 and 333 are the same picture) share a group.

    The root is the folder ``ChallengeDB_release``.
    """
    root = Path(root)
    names = read_mat(find_labels(_CLIVE, root, "Data/AllImages_release.mat"), "AllImages_release")
    scores = read_mat(find_labels(_CLIVE, root, "Data/AllMOS_release.mat"), "AllMOS_release")
    if len(names) != len(scores):
        raise DatasetError(f"{root / 'Data'}: {len(names)} image names but {len(scores)} scores")
    images = Images(root / "Images")
    rows = []
    for name, score in list(zip(names, scores, strict=True))[_CLIVE_TRAINING:]:
        path = images.path(str(name))
        content = b"" if path in images.absent else path.read_bytes()
        rows.append(Row(path, number(str(root / "Data"), "MOS", score), hashlib.sha256(content).hexdigest()[:16]))
    return complete(_CLIVE, rows, images, allow_missing=allow_missing)


def read_koniq(
    root: Path | str,
    /,
    *,
    size: Literal["1024x768", "512x384"] | None = None,
    allow_missing: bool = False,
) -> Dataset:
    """KonIQ-10k: 10,073 photos, MOS on 0..100.

    Hosu et al., IEEE TIP 2020. ``koniq10k_distributions_sets.csv`` has the official split (7,058 / 1,000 / 2,015);
    without it the scores are column ``MOS_zscore`` of ``koniq10k_scores_and_distributions.csv``, which is on the same
    scale (its column ``MOS``, on 1..5, is not used), and ``split`` is None.

    ``size`` says which copy of the images; by default the larger one that is there.
    """
    root = Path(root)
    labels = find_labels(_KONIQ, root, "koniq10k_distributions_sets.csv", "koniq10k_scores_and_distributions.csv")
    official = labels.name == "koniq10k_distributions_sets.csv"
    score = "MOS" if official else "MOS_zscore"
    there = [name for name in ("1024x768", "512x384") if (root / name).is_dir()]
    images = Images(root / (size or (there or ["1024x768"])[0]))
    rows = [
        Row(
            images.path(record["image_name"]),
            number(place, score, record[score]),
            record["image_name"],
            split=split_name(place, record["set"]) if official else None,
        )
        for place, record in read_table(labels, ["image_name", score, *(["set"] if official else [])])
    ]
    return complete(_KONIQ, rows, images, allow_missing=allow_missing)


def read_spaq(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """SPAQ: 11,125 smartphone photos, MOS and five attribute scores on 0..100.

    Fang et al., CVPR 2020. ``attributes`` are as they stand in the file. A high ``noisiness`` should mean a clean
    photo, as it does for our heads; where it runs against MOS a warning says that this copy has it the other way.
    """
    root = Path(root)
    labels = find_labels(_SPAQ, root, "Annotations/MOS and Image attribute scores.xlsx")
    images = Images(root / "TestImage")
    rows = []
    for place, record in read_sheet(labels, ["Image name", "MOS", *_SPAQ_COLUMNS.values()]):
        attributes = {name: number(place, column, record[column]) for name, column in _SPAQ_COLUMNS.items()}
        name = str(record["Image name"])
        rows.append(Row(images.path(name), number(place, "MOS", record["MOS"]), name, attributes=attributes))
    dataset = complete(_SPAQ, rows, images, allow_missing=allow_missing)
    mos, clean = [[row.mos for row in rows], [row.attributes["noisiness"] for row in rows if row.attributes]]
    if len(set(mos)) > 1 and len(set(clean)) > 1 and spearmanr(mos, clean).statistic < 0:
        warnings.warn(f"{labels}: Noisiness runs against MOS: here a high value seems to mean noise", stacklevel=2)
    return dataset


def read_flive(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """FLIVE (LIVE-FB, PaQ-2-PiQ): 39,810 photos, MOS on 0..100; its patches are not read.

    Ying et al., CVPR 2020. The official split: photos of at most 640 px are for training or, where ``is_valid`` says
    so, validation; larger ones are the test. Where its two files are there, a photo that neither names has no split.
    """
    root = Path(root)
    labels = find_labels(_FLIVE, root, "labels_image.csv")
    images = Images(root / "database")
    sides = _flive_sides(root)
    rows = [
        Row(
            images.path(record["name"]),
            number(place, "mos", record["mos"]),
            record["name"],
            split=sides.get(record["name"]),
        )
        for place, record in read_table(labels, ["name", "mos"])
    ]
    return complete(_FLIVE, rows, images, allow_missing=allow_missing)


def _flive_sides(root: Path) -> dict[str, Split]:
    """The official side of each image; empty where neither file is there, refused where only one is."""
    if not any((root / name).is_file() for name in (*_FLIVE_SMALL, *_FLIVE_LARGE)):
        return {}
    sides: dict[str, Split] = {}
    for place, record in read_table(find_labels(_FLIVE, root, *_FLIVE_SMALL), ["name_image", "is_valid"]):
        valid = record["is_valid"].strip().lower()
        if valid not in ("true", "false"):
            raise DatasetError(f"{place}: expected True or False as is_valid, got {valid[:80]!r}")
        sides[record["name_image"]] = "val" if valid == "true" else "train"
    for _, record in read_table(find_labels(_FLIVE, root, *_FLIVE_LARGE), ["name_image"]):
        sides[record["name_image"]] = "test"
    return sides


def read_ava(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """AVA: about 255,500 photos, mean of the aesthetic votes, on 1..10.

    Murray et al., CVPR 2012. Images named in ``generic_test.jpgl`` are the official test, the others are for training;
    without that list ``split`` is None. Many copies lack a few images: ``allow_missing``.
    """
    root = Path(root)
    labels = find_labels(_AVA, root, "AVA.txt")
    folder = next((name for name in ("images", "image") if (root / name).is_dir()), ".")
    images = Images(root / folder)
    listed = root / "aesthetics_image_lists" / "generic_test.jpgl"
    test = set(read_text(listed).split()) if listed.is_file() else set()
    rows = []
    for place, fields in read_fields(labels, _AVA_FIELDS):
        votes = [number(place, f"votes for {k}", field) for k, field in enumerate(fields[2:12], 1)]
        if min(votes) < 0 or sum(votes) == 0:
            raise DatasetError(f"{place}: expected ten counts of votes, got {' '.join(fields[2:12])[:80]}")
        mos = sum(k * count for k, count in enumerate(votes, 1)) / sum(votes)
        side: Split | None = ("test" if fields[1] in test else "train") if test else None
        rows.append(Row(images.path(f"{fields[1]}.jpg"), mos, fields[1], split=side))
    return complete(_AVA, rows, images, allow_missing=allow_missing)


def read_bid(root: Path | str, /, *, allow_missing: bool = False) -> Dataset:
    """BID: 586 photos with realistic blur, MOS on 0..5.

    Ciancio et al., IEEE TIP 2011.
    """
    root = Path(root)
    labels = find_labels(_BID, root, "DatabaseGrades.xlsx")
    images = Images(root / "ImageDatabase" if (root / "ImageDatabase").is_dir() else root)
    rows = []
    for place, record in read_sheet(labels, ["Image Number", "Average Subjective Grade"]):
        name = f"DatabaseImage{int(number(place, 'Image Number', record['Image Number'])):04d}.JPG"
        mos = number(place, "Average Subjective Grade", record["Average Subjective Grade"])
        rows.append(Row(images.path(name), mos, name))
    return complete(_BID, rows, images, allow_missing=allow_missing)
