"""Public image-quality data sets -> rows of one type. Scores are higher-is-better and keep their native range."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import scipy.io


class Row(NamedTuple):
    """One rated image. Rows of one ``group`` must stay on one side of any split: they show the same picture."""

    path: Path
    mos: float
    group: str


class Dataset(NamedTuple):
    """A rated data set; ``mos_range`` is the range of its scale, not of its values."""

    name: str
    rows: tuple[Row, ...]
    mos_range: tuple[float, float]


class DatasetError(ValueError):
    """A data set's folder or label file is not what its official layout says."""


_CLIVE_LAYOUT = "ROOT/Data/AllImages_release.mat, ROOT/Data/AllMOS_release.mat, ROOT/Images/*"
_CLIVE_TRAINING = 7  # the first rows are the images that trained the observers


def read_clive(root: Path | str) -> Dataset:
    """LIVE In the Wild (CLIVE, ChallengeDB_release): photos with authentic distortions, MOS on 0..100.

    Ghadiyaram and Bovik, IEEE TIP 2016. The first seven entries showed observers what to do and are left out. Files
    with the same bytes (246 and 333 are the same picture) share a group.

    Args:
        root: the folder ``ChallengeDB_release``.

    Raises:
        DatasetError: a label file or an image that the labels name is missing, or the label files disagree.
    """
    root = Path(root)
    names = [str(cell.item()) for cell in _mat(root, "AllImages_release").ravel()]
    scores = [float(value) for value in _mat(root, "AllMOS_release").ravel()]
    if len(names) != len(scores):
        raise DatasetError(f"{root / 'Data'}: {len(names)} image names but {len(scores)} scores")
    paths = [root / "Images" / name for name in names[_CLIVE_TRAINING:]]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        shown = ", ".join(path.name for path in missing[:5])
        raise DatasetError(f"{root / 'Images'}: {len(missing)} of {len(paths)} images are missing: {shown}, ...")
    rows = [
        Row(path, mos, hashlib.sha256(path.read_bytes()).hexdigest()[:16])
        for path, mos in zip(paths, scores[_CLIVE_TRAINING:], strict=True)
    ]
    return Dataset("CLIVE", tuple(rows), (0.0, 100.0))


def _mat(root: Path, name: str) -> Any:
    path = root / "Data" / f"{name}.mat"
    if not path.is_file():
        raise DatasetError(f"{path}: not found; the layout of CLIVE is {_CLIVE_LAYOUT}")
    content = scipy.io.loadmat(path)
    if name not in content:
        raise DatasetError(f"{path}: expected a variable {name}, got {[key for key in content if key[0] != '_']}")
    return content[name]
