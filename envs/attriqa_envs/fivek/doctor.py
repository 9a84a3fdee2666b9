"""What is wrong with a copy of FiveK: what is missing, and each photo read as training will read it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from attriqa.images import ImageError
from attriqa_envs.fivek import COUNT, FOLDERS, LICENCES, FiveK, Photo
from attriqa_envs.fivek.expert import Expert, read_expert
from attriqa_envs.raw import read_sensor
from attriqa_envs.raw.sensor import RawMetadata, Sensor

VERSION = 1  # goes up whenever a photo would be found otherwise: what was examined before is then examined again

Kind = Literal["missing", "stray", "unreadable", "corrupt", "size", "note"]
KINDS: tuple[Kind, ...] = ("missing", "stray", "unreadable", "corrupt", "size", "note")
_TOLERANCE = 2  # px; renderings were cropped by another converter than the one that reads the DNG


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: ``missing`` a file or folder; ``stray``: one that belongs to no photo; ``unreadable``; ``corrupt``: it can
            be read, but there is no picture in it; ``size``: a rendering that does not fit its DNG; ``note``: it is
            used, with something assumed, and is no fault.
        what: the file, the folder or the photos.
        reason: in one line.
    """

    kind: Kind
    what: str
    reason: str


def examine_tree(fivek: FiveK, numbers: Sequence[int], experts: Sequence[str]) -> list[Finding]:
    """What is missing of the photos ``numbers`` and the renderings of ``experts``, and what does not belong."""
    findings: list[Finding] = []
    if len(numbers) == COUNT:
        folders = [f"raw_photos/{name}/photos" for name in FOLDERS]
        findings += [Finding("missing", name, "no such folder") for name in folders if not (fivek.root / name).is_dir()]
    held = any(list(fivek.root.glob(f"{place}{name}")) for name in LICENCES for place in ("", "*/"))
    if not held:
        reason = "without them it is not known which photo has which licence"
        findings.append(Finding("note", ", ".join(LICENCES), reason))
    known = {photo.number: photo for photo in fivek.photos}
    findings += [Finding("missing", f"DNG of {run}", "no such file") for run in runs(set(numbers) - set(known))]
    for letter in experts:
        lacking = [number for number in numbers if number in known and letter not in known[number].experts]
        findings += [Finding("missing", f"expert {letter} of {run}", "no such file") for run in runs(lacking)]
    for path in sorted(fivek.strays):
        reason = "not the name of a photo here (aNNNN-*), or a second file of one"
        findings.append(Finding("stray", _short(path, fivek), reason))
    return findings


def examine_photo(photo: Photo, fivek: FiveK, experts: Sequence[str]) -> list[Finding]:
    """Read a photo's DNG and renderings, whole."""
    what = _short(photo.dng, fivek)
    findings: list[Finding] = []
    metadata: RawMetadata | None = None
    try:
        sensor = read_sensor(photo.dng)
        metadata = sensor.metadata
        findings += _of_sensor(sensor, what)
    except ImageError as error:
        findings.append(Finding("unreadable", what, error.reason))
    for letter in experts:
        if letter in photo.experts:
            path = photo.experts[letter]
            try:
                findings += _of_expert(read_expert(path), metadata, _short(path, fivek))
            except ImageError as error:
                findings.append(Finding("unreadable", _short(path, fivek), error.reason))
    return findings


def _of_sensor(sensor: Sensor, what: str) -> Iterator[Finding]:
    top, left, height, width = sensor.crop
    values = sensor.values[top : top + height, left : left + width]
    low, high = float(np.min(values)), float(np.max(values))
    if high <= max(sensor.metadata.black):
        yield Finding("corrupt", what, f"black throughout: no value is above the black level, {high:g} at most")
    elif low == high:
        yield Finding("corrupt", what, f"every value is {high:g}")
    else:
        blank = int((values.reshape(len(values), -1).max(1) == values.reshape(len(values), -1).min(1))[::-1].argmin())
        if blank > len(values) // 20:
            yield Finding("corrupt", what, f"its last {blank} of {height} rows hold one value: probably cut short")
    if sensor.metadata.white_balance_source != "as shot":
        yield Finding("note", what, f"no as-shot white balance; taken: {sensor.metadata.white_balance_source}")
    if sensor.metadata.matrix_source == "none":
        yield Finding("note", what, "no colour matrix; camera RGB is taken for sRGB")


def _of_expert(expert: Expert, metadata: RawMetadata | None, what: str) -> Iterator[Finding]:
    if float(expert.pixels.min()) == float(expert.pixels.max()):
        yield Finding("corrupt", what, "every pixel is the same")
    if expert.profile != "embedded":
        yield Finding("note", what, "no ICC profile; taken for ProPhoto")
    if expert.bits != 16:
        yield Finding("note", what, f"{expert.bits} bits per sample; FiveK's renderings have 16")
    if metadata is None or _fits(expert.size, metadata.size):
        return
    turned = " (turned by 90 degrees)" if _fits(expert.size[::-1], metadata.size) else ""
    sizes = [f"{width} x {height}" for height, width in (expert.size, metadata.size)]
    yield Finding("size", what, f"{sizes[0]} px, and its DNG {sizes[1]}{turned}")


def _fits(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    return all(abs(a - b) <= _TOLERANCE for a, b in zip(first, second, strict=True))


def _short(path: Path, fivek: FiveK) -> str:
    return str(path.relative_to(fivek.root) if path.is_relative_to(fivek.root) else path)


def runs(numbers: Sequence[int] | set[int]) -> list[str]:
    """Numbers as ranges: ``{1, 2, 3, 7}`` -> ``["1-3", "7"]``."""
    ordered = sorted(numbers)
    starts = [number for place, number in enumerate(ordered) if place == 0 or ordered[place - 1] != number - 1]
    ends = [
        number for place, number in enumerate(ordered) if place + 1 == len(ordered) or ordered[place + 1] != number + 1
    ]
    return [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]


def count(findings: Sequence[Finding]) -> Mapping[str, int]:
    """How many there are of each kind."""
    return {kind: sum(finding.kind == kind for finding in findings) for kind in KINDS}
