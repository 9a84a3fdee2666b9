"""What every reader gives: rows of one type, whole, in the sense and on the scale that they promise."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

Split = Literal["train", "val", "test"]

_SHOWN = 5  # how many offenders an error names


class Row(NamedTuple):
    """One rated image.

    Rows of one ``group`` must stay on one side of any split. In synthetic sets it is the reference: its versions show
    one picture. In authentic sets it is the image's own name, for a file's content is costly to compare in a set of
    250,000: `attriqa.data.leaks.merge_duplicates` joins the groups of identical files, `check_leak` refuses a split
    that parts them. Only `read_clive`, which is small and known to hold a duplicate, compares while it reads.

    Attributes:
        path: the image file.
        mos: the mean opinion score, higher is better, on the data set's own scale (``Dataset.mos_range``).
        group: what must not be torn apart.
        ref: the pristine original, in sets that were made from one.
        distortion: its type, by the data set's own name.
        level: its level, counted from 1; in LIVE, which has none, the physical parameter of ``info.txt``.
        attributes: human scores of the five attributes, by the names of `attriqa.ATTRIBUTES` (SPAQ: 0 to 100).
        split: the official side, in sets that have one.
    """

    path: Path
    mos: float
    group: str
    ref: Path | None = None
    distortion: str | None = None
    level: int | float | None = None
    attributes: Mapping[str, float] | None = None
    split: Split | None = None


class Dataset(NamedTuple):
    """A rated data set.

    Attributes:
        name: as its authors write it.
        rows: in the order of the label file.
        mos_range: the range of its scale, not of its values; equal in both senses, see ``flipped``.
        synthetic: whether the distortions were applied to pristine originals, so that ``group`` is the reference.
        flipped: whether the label file's scores were lower-is-better (DMOS): ``mos`` is then low + high - score.
        missing: images left out because they are not there, by name; empty unless the reader was allowed to.
    """

    name: str
    rows: tuple[Row, ...]
    mos_range: tuple[float, float]
    synthetic: bool = False
    flipped: bool = False
    missing: tuple[str, ...] = ()


class DatasetError(ValueError):
    """A data set's folder or label file is not what its official layout says."""


class Kind(NamedTuple):
    """What is true of every copy of a data set; the first five fields of `Dataset`, and the layout in words."""

    name: str
    mos_range: tuple[float, float]
    layout: str
    synthetic: bool = False
    flipped: bool = False


class Images:
    """The files below a folder, each folder listed once: a quarter of a million ``stat`` calls crawl on network disks.

    A name that is not there as it is written is also found in another case, which copies of TID2013 and CSIQ need.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.absent: dict[Path, str] = {}  # what was asked for in vain -> its name below the root
        self._folders: dict[str, _Folder | None] = {}

    def path(self, name: str) -> Path:
        """Where the file of that name (``/`` between folders) is, or would be; ``absent`` then remembers it."""
        path = self._find(name)
        if path is None:
            path = self.root / name
            self.absent[path] = name
        return path

    def absolute_path(self, name: str) -> Path:
        """As `path`, of a name that may be absolute and is then taken as it is written."""
        path = Path(name)
        if not path.is_absolute():
            return self.path(path.as_posix())
        if not path.is_file():
            self.absent[path] = name
        return path

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def _find(self, name: str) -> Path | None:
        above, _, last = name.rpartition("/")
        folder = self._folder(above)
        actual = folder and folder.actual(last)
        return folder.path / actual if folder and actual else None

    def _folder(self, name: str) -> "_Folder | None":
        if name not in self._folders:
            above, _, last = name.rpartition("/")
            path: Path | None = self.root
            if name:
                folder = self._folder(above)
                actual = last if last in ("..", ".") else folder and folder.actual(last)
                path = folder.path / actual if folder and actual else None
            self._folders[name] = _Folder.listed(path) if path is not None and path.is_dir() else None
        return self._folders[name]


class _Folder(NamedTuple):
    path: Path
    names: frozenset[str]
    folded: Mapping[str, str]  # names without regard to case -> names

    @classmethod
    def listed(cls, path: Path) -> "_Folder":
        names = frozenset(os.listdir(path))  # noqa: PTH208 (no Path for each of a quarter of a million files)
        return cls(path, names, {name.casefold(): name for name in sorted(names, reverse=True)})

    def actual(self, name: str) -> str | None:
        return name if name in self.names else self.folded.get(name.casefold())


def complete(kind: Kind, rows: Iterable[Row], images: Images, *, allow_missing: bool) -> Dataset:
    """The data set of ``rows``, whose scores are still in their native sense, once they hold what `Dataset` promises.

    Raises:
        DatasetError: there are no rows, an image is listed twice, a score is off the scale, or images or references
            are missing (all are counted, five are named), which ``allow_missing`` permits unless nothing is left.
    """
    rows = list(rows)
    if not rows:
        raise DatasetError(f"{images.root}: its label file names no image; the layout of {kind.name} is {kind.layout}")
    twice = [path.name for path, count in Counter(row.path for row in rows).items() if count > 1]
    if twice:
        raise DatasetError(f"{images.root}: {len(twice)} images are listed more than once: {_some(twice)}")
    low, high = kind.mos_range
    off = [f"{row.path.name} {row.mos:g}" for row in rows if not low <= row.mos <= high]
    if off:
        raise DatasetError(f"{images.root}: expected scores within {low:g} to {high:g}, got {len(off)}: {_some(off)}")
    here = [row for row in rows if row.path not in images.absent]
    missing = [images.absent[row.path] for row in rows if row.path in images.absent]
    refs = {row.ref: None for row in rows if row.ref is not None}  # ordered
    missing += [images.absent[ref] for ref in refs if ref in images.absent]
    if missing and not (allow_missing and here):
        count = len(rows) + len(refs)
        raise DatasetError(
            f"{images.root}: {len(missing)} of {count} images are missing: {_some(missing)}; "
            f"the layout of {kind.name} is {kind.layout}"
        )
    kept = []
    for row in here:
        mos = low + high - row.mos if kind.flipped else row.mos
        kept.append(row._replace(mos=mos, ref=None if row.ref in images.absent else row.ref))
    return Dataset(kind.name, tuple(kept), kind.mos_range, kind.synthetic, kind.flipped, tuple(missing))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
