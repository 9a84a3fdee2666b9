"""MIT-Adobe FiveK (Bychkovsky et al., CVPR 2011): 5,000 DNGs, each retouched by five experts, A to E.

What `FiveK` finds below its root, which is the folder that ``fivek_dataset.tar`` makes, or the one above it:

    raw_photos/HQa1to700/photos/a0001-jmac_DSC1459.dng     and six more folders of 700 or so
    tiff16_a/ .. tiff16_e/   a0001-jmac_DSC1459.tif        experts' renderings, downloaded one by one from img/tiff16_x;
                                                           also below img/, and also beside the DNGs' own folder

A photo is known by its number, 1 to 5000, the four digits of its name; names hold spaces. Splits are lists of numbers
or names in text files, one a line: 2000/2000/1000 and 4500/500 are both in use, so the file says which.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attriqa_envs.raw.find import ImageFile

COUNT = 5000
EXPERTS = "abcde"
# Of the seven, the third is spelled so in the archive.
_RANGES = "1to700 701to1400 1400to2100 2101to2800 2801to3500 3501to4200 4201to5000"
FOLDERS = tuple(f"HQa{numbers}" for numbers in _RANGES.split())
LICENCES = ("filesAdobe.txt", "filesAdobeMIT.txt")  # each photo is under one of two licences
_NAME = re.compile(r"^a(\d{4})-")
_TIFF = (".tif", ".tiff")


@dataclass(frozen=True)
class Photo:
    """One of the 5,000.

    Attributes:
        number: 1 to 5000.
        name: of its DNG, without suffix.
        dng: the file.
        experts: renderings that are there, by the expert's letter.
    """

    number: int
    name: str
    dng: Path
    experts: Mapping[str, Path] = field(default_factory=dict)

    @property
    def source(self) -> ImageFile:
        """Its raw file, for a `attriqa_envs.raw.cache.RenditionCache`."""
        return ImageFile(self.dng, "raw")


class FiveK:
    """The photos below a root, by number.

    Args:
        root: holds ``raw_photos``, or ``fivek_dataset/raw_photos``.

    Attributes:
        root: the folder that holds ``raw_photos``.
        photos: those whose DNG is there, sorted by number.
        strays: files among the DNGs and renderings that belong to no photo: named otherwise, or a second one.

    Raises:
        ValueError: ``root`` has no ``raw_photos``, or no DNG in it.
    """

    def __init__(self, root: Path | str) -> None:
        root = Path(root)
        holders = [folder for folder in (root, root / "fivek_dataset") if (folder / "raw_photos").is_dir()]
        if not holders:
            raise ValueError(f"root: expected a folder with raw_photos or fivek_dataset/raw_photos; got {root}")
        self.root = holders[0]
        self.strays: list[Path] = []
        dngs = self._by_number(sorted((self.root / "raw_photos").glob("*/photos/*")), (".dng",))
        if not dngs:
            raise ValueError(f"root: expected DNGs as raw_photos/HQa1to700/photos/a0001-*.dng; {self.root} has none")
        experts = {letter: self._renderings(letter, dngs) for letter in EXPERTS}
        photos = []
        for number, dng in sorted(dngs.items()):
            theirs = {letter: paths[number] for letter, paths in experts.items() if number in paths}
            photos.append(Photo(number, dng.stem, dng, theirs))
        self.photos = tuple(photos)

    def _by_number(self, paths: Sequence[Path], suffixes: Sequence[str]) -> dict[int, Path]:
        known: dict[int, Path] = {}
        for path in paths:
            if path.name.startswith("."):
                continue
            match = _NAME.match(path.name)
            number = int(match[1]) if match and path.suffix.lower() in suffixes else 0
            if 1 <= number <= COUNT and number not in known:
                known[number] = path
            else:
                self.strays.append(path)
        return known

    def _renderings(self, letter: str, dngs: Mapping[int, Path]) -> dict[int, Path]:
        folders = [place / f"tiff16_{letter}" for place in (self.root, self.root / "img", self.root.parent)]
        folders += [folder / f"tiff16_{letter}" for folder in sorted((self.root / "raw_photos").glob("*"))]
        paths = sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir())
        known = self._by_number(paths, _TIFF)
        foreign = [number for number, path in known.items() if number not in dngs or path.stem != dngs[number].stem]
        self.strays += [known.pop(number) for number in foreign]
        return known

    def select(self, numbers: Sequence[int]) -> list[Photo]:
        """The photos of a list, in its order, without those that are not there."""
        known = {photo.number: photo for photo in self.photos}
        return [known[number] for number in numbers if number in known]


def read_split(path: Path | str) -> list[int]:
    """Numbers of a list: a text file with a number (``17``), an id (``a0017``) or a name (``a0017-...``) a line.

    Blank lines and what follows ``#`` are ignored (names hold spaces, but no such sign).

    Raises:
        ValueError: a line is none of these, or not from 1 to 5000, or there twice; it names file and line. Or the list
            is empty.
        OSError: the file cannot be read.
    """
    path = Path(path)
    lines: dict[int, int] = {}
    for place, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"(\d{1,4})|a(\d{4})(?:-.*)?", text)
        number = int(match[1] or match[2]) if match else 0
        if not 1 <= number <= COUNT:
            raise ValueError(
                f"{path}, line {place}: expected a number from 1 to {COUNT} or a FiveK name, got {text!r:.80}"
            )
        if number in lines:
            raise ValueError(f"{path}, line {place}: {number} is in line {lines[number]} already")
        lines[number] = place
    if not lines:
        raise ValueError(f"{path}: expected FiveK numbers or names, one a line; got none")
    return list(lines)


def read_splits(paths: Mapping[str, Path | str]) -> dict[str, list[int]]:
    """Several lists, that must not share a photo: ``{"train": ..., "test": ...}``.

    Raises:
        ValueError: two lists share photos, or one of them is wrong.
    """
    splits = {name: read_split(path) for name, path in paths.items()}
    for first, second in itertools.combinations(splits, 2):
        shared = sorted(set(splits[first]) & set(splits[second]))
        if shared:
            listed = ", ".join(map(str, shared[:5])) + (", ..." if len(shared) > 5 else "")
            raise ValueError(f"{first}, {second}: expected lists that share no photo; both have {listed}")
    return splits
