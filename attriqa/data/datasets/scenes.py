"""Scenes and distortions of images, as LIQE's annotation files and the data sets themselves name them.

LIQE (Zhang et al., "Blind Image Quality Assessment via Vision-Language Correspondence: A Multitask Learning
Perspective", CVPR 2023) published, for six data sets, one to three scenes and one of 33 distortions of each image, and
a map from the 33 to eleven classes; MP-IQE (Pan et al., "Multi-Modal Prompt Learning on Blind Image Quality
Assessment", 2024) learns from the same classes under other names.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from attriqa.data.datasets.label_files import number, read_text
from attriqa.distortions.classes import CLASS_OF_ANNOTATION, CLASS_OF_TYPE, SCENES

_FIELDS = 6  # path, score, distortion, three scenes
_NO_SCENE = "invalid"


class Annotation(NamedTuple):
    """One line of an annotation file."""

    name: str  # path below the data set's root
    score: float  # higher is better, on a scale of the file's own
    distortion: str  # a key of `DISTORTION_CLASSES`
    scenes: tuple[str, ...]  # one to three keys of `SCENES`


def read_annotations(paths: Sequence[Path], *, fix_fastfading: bool = True) -> list[Annotation]:
    """Read LIQE's ``*_clip.txt``: tab-separated, without a header; path, score, distortion, three scenes.

    A scene that is not there is called ``invalid``. Lines that several files have in common count once, so that the
    training, validation and test files of a split make up a data set.

    Args:
        paths: one or more files.
        fix_fastfading: LIVE's images in ``fastfading/`` are annotated as white noise, but are JPEG2000 streams with
            transmission errors, and LIQE's map has a word for them: they become ``jpeg2000 compression``.

    Raises:
        ValueError: a line has other fields, an unknown distortion or scene, or contradicts another; the file and the
            line are named.
        OSError: a file cannot be read.
    """
    entries: dict[str, tuple[str, Annotation]] = {}
    for path in paths:
        for index, line in enumerate(read_text(path).splitlines(), 1):
            if line.strip():
                place = f"{path} line {index}"
                entry = _parsed(place, line, fix_fastfading)
                first, other = entries.setdefault(entry.name, (place, entry))
                if other != entry:
                    raise ValueError(f"{place}: {entry.name} is annotated in another way than in {first}")
    if not entries:
        raise ValueError(f"labels: expected annotations, got none in {', '.join(map(str, paths)) or 'no file'}")
    return [entry for _, entry in entries.values()]


def _parsed(place: str, line: str, fix_fastfading: bool) -> Annotation:
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) != _FIELDS or not fields[0]:
        raise ValueError(
            f"{place}: expected a path, a score, a distortion and three scenes, parted by tabs, got {line[:80]!r}"
        )
    name, score, kind, *words = fields
    if kind not in CLASS_OF_ANNOTATION:
        raise ValueError(f"{place}: expected a distortion among {', '.join(CLASS_OF_ANNOTATION)}, got {kind!r}")
    scenes = tuple(dict.fromkeys(word for word in words if word != _NO_SCENE))
    unknown = [word for word in scenes if word not in SCENES]
    if unknown or not scenes:
        got = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"{place}: expected one to three scenes among {', '.join(SCENES)}, got {got}")
    faded = fix_fastfading and name.startswith("fastfading/")
    return Annotation(name, number(place, "score", score), CLASS_OF_ANNOTATION["fastfading" if faded else kind], scenes)


def match(annotations: Sequence[Annotation], paths: Sequence[Path]) -> list[Annotation | None]:
    """Find the annotation of each image file.

    Copies of a data set differ in folders, in case and in endings (LIQE has CSIQ's folders in lower case; CLIVE's
    bitmaps are often kept as JPEG), so a file is known by its name without the ending, and by as many of the folders
    above it as it takes to tell all annotations apart (LIVE's ``jp2k/img39`` and ``wn/img39``).

    Args:
        annotations: of `read_annotations`.
        paths: files.

    Returns:
        One for each file; None where there is none.

    Raises:
        ValueError: two files, or two annotations, cannot be told apart.
    """
    longest = max((len(PurePosixPath(entry.name).parts) for entry in annotations), default=1)
    known: dict[tuple[str, ...], Annotation] = {}
    for depth in range(1, longest + 1):
        known = {_key(PurePosixPath(entry.name), depth): entry for entry in annotations}
        if len(known) == len(annotations):
            break
    if len(known) < len(annotations):
        raise ValueError(f"labels: {len(annotations) - len(known)} annotations are of files with the name of another")
    matched = [known.get(_key(path, depth)) for path in paths]
    seen: dict[str, Path] = {}
    for path, entry in zip(paths, matched, strict=True):
        if entry is not None and seen.setdefault(entry.name, path) != path:
            raise ValueError(f"labels: {seen[entry.name]} and {path} cannot be told apart; both are {entry.name}")
    return matched


def _key(path: Path | PurePosixPath, depth: int) -> tuple[str, ...]:
    return tuple(part.casefold() for part in path.with_suffix("").parts[-depth:])


def class_of_type(name: str | None) -> str | None:
    """LIQE's class (a key of `DISTORTION_CLASSES`) of what a data set calls a distortion; None where it gives none.

    Args:
        name: ``distortion`` of a row of KADID-10k, CSIQ or LIVE; case does not count.
    """
    return None if name is None else CLASS_OF_TYPE.get(name.casefold())
