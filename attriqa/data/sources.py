"""Images whose distortions are known, for ExIQA: where they come from and how they are split.

Three kinds of `DistortionSource`: a synthetic data set with opinion scores, a manifest of training/distort.py, and
pristine photos that are distorted as they come. In all of them rows of one reference stay on one side of a split.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from attriqa.data import datasets
from attriqa.data.leaks import check_leak, merge_duplicates
from attriqa.data.splits import Fold, random_split
from attriqa.distortions import DISTORTION_KEYS
from attriqa.distortions.attributes import DistortionAttributes
from attriqa.distortions.mixtures import LEVELS, read_manifest
from attriqa.images import SUFFIXES

RowT = TypeVar("RowT")
_WORSE = {"jp2k": -1, "jpeg": -1, "fastfading": -1, "wn": 1, "gblur": 1}  # LIVE: bit rates, an SNR, two deviations


@dataclass(frozen=True)
class DistortionSource:
    """Images and what is known of them; D distortions, in the order of ``keys``."""

    name: str
    keys: tuple[str, ...]
    paths: tuple[Path, ...]
    groups: tuple[str, ...]  # rows of one group show one picture
    strengths: Tensor | None = None  # (N, D) float32 in [0, 1]; None: pristine photos, distorted as they come
    mos: Tensor | None = None  # (N,) float32, the data set's scale mapped onto [0, 1]
    levels: tuple[int, ...] | int = LEVELS  # of each distortion
    named: bool = True  # False: ``strengths`` are all 0, for the distortions are none of ``keys``

    def only(self, rows: Sequence[int]) -> "DistortionSource":
        """Some of its rows."""
        chosen = list(rows)
        return replace(
            self,
            paths=tuple(self.paths[row] for row in chosen),
            groups=tuple(self.groups[row] for row in chosen),
            strengths=None if self.strengths is None else self.strengths[chosen],
            mos=None if self.mos is None else self.mos[chosen],
        )

    def digest(self) -> str:
        """SHA-256 (16 hexadecimal digits) of the files' names, their groups and strengths and the keys."""
        known = [] if self.strengths is None else self.strengths.tolist()
        about = [self.keys, [path.name for path in self.paths], self.groups, known]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def chosen(table: Sequence[DistortionAttributes], keys: Sequence[str] | None) -> tuple[DistortionAttributes, ...]:
    """The entries of a table with these keys, in its order; all of them for None.

    Raises:
        ValueError: the table has no such entry; the nearest one is named.
    """
    known = [entry.key for entry in table]
    for key in keys or ():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"--distortions: expected keys of the table, got {key}; {hint}")
    return tuple(entry for entry in table if keys is None or entry.key in keys)


def rated_source(
    spec: str, keys: Sequence[str], known: Sequence[str], *, limit: int | None = None, unnamed: bool = False
) -> DistortionSource:
    """A synthetic data set with opinion scores.

    Args:
        spec: ``NAME=ROOT`` of `attriqa.data.datasets.read_dataset`.
        keys: distortions that are wanted; rows of others in ``known`` are left out.
        known: all distortions that have attributes. Case does not count (CSIQ's types are called ``AWGN``, ...).
        limit: at most so many rows, from all over the set.
        unnamed: where a distortion is not ``known``, keep all rows and do without strengths.

    Raises:
        ValueError: the set names no distortions, has some that are not ``known``, or gives no levels.
        attriqa.data.datasets.DatasetError: it is not what its layout says.
    """
    dataset = datasets.read_dataset(spec)
    kinds = [str(row.distortion).casefold() for row in dataset.rows]
    places = {key.casefold(): place for place, key in enumerate(keys)}
    wanted = {key.casefold() for key in known}
    strange = sorted({str(row.distortion) for row, kind in zip(dataset.rows, kinds, strict=True) if kind not in wanted})
    if strange and not unnamed:
        raise ValueError(
            f"--table: expected attributes for each distortion of {dataset.name}; there are none for "
            f"{', '.join(strange[:8])}{', ...' if len(strange) > 8 else ''}"
        )
    rows = _some([i for i, kind in enumerate(kinds) if strange or kind in places], limit)
    if not rows:
        raise ValueError(f"--data: {dataset.name} has no image of {', '.join(keys[:8])}")
    target = torch.zeros(len(rows), len(keys))
    if not strange:
        strengths = strengths_of(dataset)
        for target_row, i in zip(target, rows, strict=True):
            target_row[places[kinds[i]]] = strengths[i]
    low, high = dataset.mos_range
    paths = tuple(dataset.rows[i].path for i in rows)
    return DistortionSource(
        dataset.name,
        tuple(keys),
        paths,
        tuple(merge_duplicates(paths, [dataset.rows[i].group for i in rows])),
        target,
        torch.tensor([(dataset.rows[i].mos - low) / (high - low) for i in rows]),
        tuple(level_count(dataset.name, key) for key in keys),
        named=not strange,
    )


def level_count(dataset: str, distortion: str) -> int:
    """Levels of a distortion in a data set: 4 of LVQ's and of CSIQ's contrast, 5 of all others."""
    return 4 if dataset == "LVQ" or (dataset, distortion.casefold()) == ("CSIQ", "contrast") else LEVELS


def strengths_of(dataset: datasets.Dataset) -> list[float]:
    """ExIQA's target P(I, d) of each row's distortion, in (0, 1].

    Level / `level_count`. LIVE has a physical parameter and no levels: its images of one type are cut into five bins
    of equal count.

    Raises:
        ValueError: rows without a level.
    """
    if any(row.distortion is None or row.level is None for row in dataset.rows):
        raise ValueError(f"--data: expected a data set with levels of distortions, {dataset.name} has none")
    levels = [float(row.level or 0) for row in dataset.rows]
    kinds = [str(row.distortion) for row in dataset.rows]
    if dataset.name == "LIVE":
        for kind in set(kinds):
            members = [i for i, other in enumerate(kinds) if other == kind]
            ordered = sorted(members, key=lambda i: _WORSE[kind] * levels[i])
            ranks = {i: rank for rank, i in enumerate(ordered)}
            for i in members:
                levels[i] = LEVELS * ranks[i] // len(members) + 1
        return [level / LEVELS for level in levels]
    return [level / level_count(dataset.name, kind) for level, kind in zip(levels, kinds, strict=True)]


def manifest_source(path: Path, keys: Sequence[str], *, limit: int | None = None) -> DistortionSource:
    """A set that training/distort.py made; rows with a distortion other than ``keys`` are left out.

    Raises:
        ValueError: a key is none of the 25, or nothing is left.
        attriqa.distortions.mixtures.ManifestError: the manifest is broken, or its images are gone.
    """
    among = applicable(keys)
    others = [place for place in range(len(DISTORTION_KEYS)) if place not in among]
    rows = _some([row for row in read_manifest(path) if not row.strengths[others].any()], limit)
    if not rows:
        raise ValueError(f"--manifest: {path} has no image with distortions of {', '.join(keys[:8])} alone")
    paths = tuple(row.path for row in rows)
    groups = merge_duplicates(paths, [row.reference for row in rows])
    return DistortionSource(
        path.name, tuple(keys), paths, tuple(groups), torch.stack([row.strengths[among] for row in rows])
    )


def photo_source(
    folder: Path, patterns: Sequence[str], keys: Sequence[str], *, limit: int | None = None
) -> DistortionSource:
    """Pristine photos, to be distorted as they come.

    Args:
        folder: where they are.
        patterns: globs of file names in it; what is no image by its ending is left out.
        keys: distortions to apply.
        limit: at most so many, from all over the list.

    Raises:
        ValueError: a key is none of the 25, or no photo matches a pattern.
    """
    applicable(keys)
    found = [path for pattern in patterns for path in _images(folder, pattern)]
    paths = tuple(_some(list(dict.fromkeys(found)), limit))
    return DistortionSource(
        folder.name, tuple(keys), paths, tuple(merge_duplicates(paths, [path.name for path in paths]))
    )


def _some(rows: list[RowT], limit: int | None) -> list[RowT]:
    return rows if limit is None else rows[:: max(1, len(rows) // limit)][:limit]


def _images(folder: Path, pattern: str) -> list[Path]:
    found = [path for path in sorted(folder.glob(pattern)) if path.suffix.lower() in SUFFIXES]
    if not found:
        raise ValueError(f"--photos: expected images {pattern} in {folder}, got none")
    return found


def applicable(keys: Sequence[str]) -> list[int]:
    """The places of distortions among the 25 that can be applied to a photo.

    Raises:
        ValueError: some are none of them.
    """
    strange = [key for key in keys if key not in DISTORTION_KEYS]
    if strange:
        raise ValueError(
            f"--distortions: expected some of the 25 that can be applied here ({', '.join(DISTORTION_KEYS[:3])}, ...), "
            f"got {', '.join(strange[:8])}; choose among the table's with --distortions"
        )
    return [DISTORTION_KEYS.index(key) for key in keys]


class DistortionPlan(NamedTuple):
    """What is learnt from and tested on."""

    source: DistortionSource
    folds: tuple[Fold, ...]
    table: tuple[DistortionAttributes, ...]  # of ``source.keys``
    protocol: str  # in words


def rated_plan(
    spec: str,
    table: Sequence[DistortionAttributes],
    keys: Sequence[str] | None,
    *,
    splits: int,
    held_out: float,
    limit: int | None = None,
    unnamed: bool = False,
) -> DistortionPlan:
    """Random splits of a `rated_source` by reference; of a ``table``, the distortions ``keys`` are wanted, or all."""
    wanted = chosen(table, keys)
    names, known = [entry.key for entry in wanted], [entry.key for entry in table]
    return _split(rated_source(spec, names, known, limit=limit, unnamed=unnamed), wanted, splits, held_out)


def manifest_plan(
    path: Path, table: tuple[DistortionAttributes, ...], *, splits: int, held_out: float, limit: int | None = None
) -> DistortionPlan:
    """Random splits of a `manifest_source` by reference, for all distortions of ``table``."""
    return _split(manifest_source(path, [entry.key for entry in table], limit=limit), table, splits, held_out)


def photo_plan(
    folder: Path,
    patterns: Sequence[str],
    test_patterns: Sequence[str] | None,
    table: tuple[DistortionAttributes, ...],
    *,
    splits: int,
    held_out: float,
    limit: int | None = None,
) -> DistortionPlan:
    """A `photo_source` for all distortions of ``table``, and photos for the test: by patterns, or random splits.

    Raises:
        attriqa.data.leaks.LeakError: a photo is learnt from and in the test.
        ValueError: as `photo_source`.
    """
    keys = [entry.key for entry in table]
    source = photo_source(folder, patterns, keys, limit=limit)
    if test_patterns is None:
        return _split(source, table, splits, held_out)
    tests = photo_source(folder, test_patterns, keys, limit=limit)
    check_leak(source.paths, tests.paths, what="training and test photos")
    first, last = len(source.paths), len(source.paths) + len(tests.paths)
    whole = replace(source, paths=source.paths + tests.paths, groups=source.groups + tests.groups)
    fold = Fold("split0", list(range(first)), list(range(first, last)))
    return DistortionPlan(whole, (fold,), table, f"{source.name}: tested on photos unseen ({', '.join(test_patterns)})")


def _split(
    source: DistortionSource, table: tuple[DistortionAttributes, ...], splits: int, held_out: float
) -> DistortionPlan:
    """``split0``, ``split1``, ...: random splits that keep each reference whole, seeded 0, 1, ..."""
    folds = tuple(Fold(f"split{seed}", *random_split(source.groups, seed, held_out)) for seed in range(splits))
    protocol = f"{source.name}: random {1 - held_out:.0%} / {held_out:.0%} splits by reference, median of {splits}"
    return DistortionPlan(source, folds, table, protocol)
