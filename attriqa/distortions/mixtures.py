"""Several distortions on one image, as ExIQA trains on: what is drawn, how it is applied, and the lists of such images.

Source: ExIQA, "ExIQA: Explainable Image Quality Assessment Using Distortion Attributes", the section on ExIQA-100k:
each image gets K ~ U{1..25} distinct distortions, one after another, each at a level of U{1..5}.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attriqa.distortions import DISTORTION_KEYS, DISTORTIONS, Finalize, LevelOrder, distort_seeded
from attriqa.files import atomic_path

LEVELS = 5
COUNT = len(DISTORTION_KEYS)  # D, 25
MIXED_COLUMNS = ("image", "ref", *(f"d{number:02d}" for number in range(1, COUNT + 1)), "order")
SINGLE_COLUMNS = ("image", "ref", "distortion", "level")


@dataclass(frozen=True)
class Mixture:
    """What is done to one image. Empty, it leaves the image as it is.

    Raises:
        ValueError: an index outside 0..24 or there twice, a level outside 1..5, more or fewer levels than distortions,
            a negative seed.
    """

    order: tuple[int, ...]  # indices in `attriqa.distortions.DISTORTIONS`, as they are applied
    levels: tuple[int, ...]  # 1 to 5, of each in ``order``
    seed: int  # of all that is random in them

    def __post_init__(self) -> None:
        if len(set(self.order)) < len(self.order) or not set(self.order) <= set(range(COUNT)):
            raise ValueError(f"order: expected different indices of 0 to {COUNT - 1}, got {self.order}")
        if len(self.levels) != len(self.order) or not set(self.levels) <= set(range(1, LEVELS + 1)):
            raise ValueError(f"levels: expected {len(self.order)} of 1 to {LEVELS}, got {self.levels}")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, got {self.seed}")

    def step_seed(self, index: int) -> int:
        """The seed of distortion ``index``, whatever comes before it; 63 bits."""
        return int(np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)[0]) >> 1


def draw_mixture(rng: np.random.Generator, *, most: int = COUNT, among: Sequence[int] = range(COUNT)) -> Mixture:
    """Draw K ~ U{1..most} distinct distortions in random order, each at a level of U{1..5}.

    Args:
        rng: where the draws come from.
        most: the greatest K; never more than ``among`` has.
        among: indices in `attriqa.distortions.DISTORTIONS` to draw from.

    Raises:
        ValueError: ``most`` is less than 1, or ``among`` is empty or holds something else.
    """
    check_draw(most, among)
    count = int(rng.integers(1, min(most, len(among)) + 1))
    order = tuple(among[int(place)] for place in rng.permutation(len(among))[:count])
    levels = tuple(rng.integers(1, LEVELS + 1, count).tolist())
    return Mixture(order, levels, int(rng.integers(2**63)))


def check_draw(most: int, among: Sequence[int]) -> None:
    """Refuse, with a ``ValueError``, what `draw_mixture` cannot draw from."""
    if most < 1:
        raise ValueError(f"most: expected at least 1, got {most}")
    if not among or len(set(among)) < len(among) or not set(among) <= set(range(COUNT)):
        raise ValueError(f"among: expected one or more different indices of 0 to {COUNT - 1}, got {list(among)}")


def apply_mixtures(
    images: Tensor,
    mixtures: Sequence[Mixture],
    *,
    level_order: LevelOrder = "kadid",
    finalize: Finalize = "clip",
) -> Tensor:
    """Distort each image by its own mixture, clipped to [0, 1] after every step; not differentiable.

    Args:
        images: ``(B, 3, H, W)`` float32 or float64 in [0, 1], as large as `smallest_side` asks for.
        mixtures: B of them.
        level_order: what a level means, as in `attriqa.distortions.distort`.
        finalize: what ends every step, as there.

    Returns:
        ``(B, 3, H, W)`` of the same dtype and device; ``images`` stay as they are.

    Raises:
        ValueError: B mixtures were expected; or a fault that `attriqa.distortions.distort` finds with the images.
    """
    if len(mixtures) != len(images):
        raise ValueError(f"mixtures: expected one for each of {len(images)} images, got {len(mixtures)}")
    result = images.detach().clone()
    done = [0] * len(mixtures)  # steps of each
    while True:
        # Only the order within an image counts. So the images whose next step is the same one go together, and those
        # with a long way to go first: fewer calls than step by step.
        weight: dict[int, int] = defaultdict(int)
        for mixture, at in zip(mixtures, done, strict=True):
            if at < len(mixture.order):
                weight[mixture.order[at]] += len(mixture.order) - at
        if not weight:
            return result
        index = max(weight, key=lambda candidate: (weight[candidate], -candidate))
        members = [b for b, mixture in enumerate(mixtures) if mixture.order[done[b] :][:1] == (index,)]
        levels = torch.tensor([mixtures[b].levels[done[b]] for b in members])
        seeds = [mixtures[b].step_seed(index) for b in members]
        key = DISTORTIONS[index].key
        result[members] = distort_seeded(
            result[members], key, levels, seeds, level_order=level_order, finalize=finalize
        )
        for b in members:
            done[b] += 1


def smallest_side(among: Iterable[int] = range(COUNT)) -> int:
    """The shortest side in pixels that every one of these distortions works on."""
    return max(DISTORTIONS[index].smallest for index in among)


def strengths(mixtures: Sequence[Mixture]) -> Tensor:
    """ExIQA's target P(I, d): ``(B, 25)`` float32, level / 5, and 0 for a distortion that is absent."""
    result = torch.zeros(len(mixtures), COUNT)
    for row, mixture in zip(result, mixtures, strict=True):
        for index, level in zip(mixture.order, mixture.levels, strict=True):
            row[index] = level / LEVELS
    return result


class ManifestError(ValueError):
    """A manifest that cannot be used: its file, a line of it, or the images that it names."""


@dataclass(frozen=True, eq=False)
class DistortedImage:
    """One image of a manifest."""

    path: Path
    reference: str  # the pristine image's name: images of one name belong on one side of a split
    strengths: Tensor  # (25,) float32, level / 5; 0 where absent


def write_manifest(path: Path, entries: Iterable[tuple[str, str, Mixture]], *, single: bool) -> None:
    """Write what `read_manifest` reads, whole or not at all.

    Args:
        path: a CSV file in the folder that the images' names are relative to.
        entries: image, reference and mixture of each.
        single: one distortion each, ``image,ref,distortion,level``; or else ``image,ref,d01..d25,order`` with levels
            0 to 5 and the numbers 1 to 25 in the order of application.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SINGLE_COLUMNS if single else MIXED_COLUMNS)
        for image, reference, mixture in entries:
            if single:
                (index,), (level,) = mixture.order, mixture.levels
                writer.writerow((image, reference, DISTORTION_KEYS[index], level))
                continue
            levels = dict(zip(mixture.order, mixture.levels, strict=True))
            order = " ".join(str(index + 1) for index in mixture.order)
            writer.writerow((image, reference, *(levels.get(index, 0) for index in range(COUNT)), order))


def read_manifest(path: Path | str) -> list[DistortedImage]:
    """Read the manifest of a set that ``training/distort.py`` made, of either form, or one written by hand.

    Args:
        path: the CSV file, or the folder with ``manifest.csv``. Images are relative to the file's folder.

    Raises:
        ManifestError: there is no such file; it has other columns; a line has a level or an order that cannot be; or
            images that it names are gone (the first of them and how many).
    """
    path = Path(path)
    path = path / "manifest.csv" if path.is_dir() else path
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest; training/distort.py writes one")
    try:
        reader = csv.DictReader(StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: expected a CSV file in UTF-8 ({error})") from error
    header = tuple(reader.fieldnames or ())
    if header not in (MIXED_COLUMNS, SINGLE_COLUMNS):
        expected = f"image,ref,d01..d{COUNT},order or {','.join(SINGLE_COLUMNS)}"
        raise ManifestError(f"{path}: expected the columns {expected}; got {','.join(header)[:200] or 'none'}")
    named: list[tuple[str, str]] = []
    mixtures: list[Mixture] = []
    for fields in reader:
        try:
            if None in fields or None in fields.values():
                raise ValueError(f"expected {len(header)} fields")  # noqa: TRY301 (one place adds the line)
            mixtures.append(_mixture_of(fields))
        except ValueError as error:
            raise ManifestError(f"{path} line {reader.line_num}: {error}") from error
        named.append((fields["image"], fields["ref"]))
    if not named:
        raise ManifestError(f"{path}: expected one line per image, got none")
    gone = [image for image, _ in named if not (path.parent / image).is_file()]
    if gone:
        raise ManifestError(f"{path}: {len(gone)} of its {len(named)} images are gone, first {path.parent / gone[0]}")
    rows = strengths(mixtures)
    return [DistortedImage(path.parent / image, ref, row) for (image, ref), row in zip(named, rows, strict=True)]


def _mixture_of(fields: Mapping[str, str]) -> Mixture:
    """The mixture of a line, without its seed."""
    if "distortion" in fields:
        if fields["distortion"] not in DISTORTION_KEYS:
            raise ValueError(f"distortion: expected a key such as {DISTORTION_KEYS[0]}, got {fields['distortion']!r}")
        return Mixture((DISTORTION_KEYS.index(fields["distortion"]),), (int(fields["level"]),), 0)
    levels = {index: int(fields[f"d{index + 1:02d}"]) for index in range(COUNT)}
    order = tuple(int(number) - 1 for number in fields["order"].split())
    present = {index for index, level in levels.items() if level}
    if set(order) != present:
        numbers = " ".join(str(index + 1) for index in sorted(present))
        raise ValueError(f"order: expected the numbers of the levels above 0, {numbers}; got {fields['order']!r}")
    return Mixture(order, tuple(levels[index] for index in order), 0)
