"""Does each attribute head follow its own ramp, and leave the others alone? Does the score see what was done wrong?

    python evals/attributes.py --photos photos

Every photo is rendered at nine levels of blur, contrast, brightness, saturation and noise. Printed and written to
OUT/metrics.json: a 5 x 5 table of the mean SROCC between level and head, and one of the mean change of the head from
the lowest level to the highest; and what the score makes of departures from well-developed photos (color casts, wrong
exposure, too little or too much color or contrast). Only photos that the model's own record says were held out from its
ramps are used, unless --all-photos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attriqa import ATTRIBUTES, QualityReward
from attriqa.config import opt, parse_config, required
from attriqa.evaluation.probes import DepartureRow, follow_departures, follow_ramps
from attriqa.files import write_json


@dataclass(frozen=True)
class Config:
    """What a run does."""

    photos: Path = required("folder of pristine photos")
    model: str = opt("default", "default, robust, or the path of a checkpoint")
    side: int | None = opt(None, "px: photos are reduced to this shorter edge, and judged at that size")
    pattern: str = opt("*", "which files of --photos are used")
    all_photos: bool = opt(False, "also photos that the heads may have learnt from")
    out: Path = opt(Path("runs/attributes"), "where metrics.json goes")
    seed: int = opt(0, "of the noise")
    smoke: bool = opt(False, "two photos only")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    config = parse_config(Config, argv, __doc__)
    reward = QualityReward(config.model, view="full" if config.side is None else "native")
    photos = sorted(path for path in config.photos.glob(config.pattern) if path.is_file())
    if not config.all_photos:
        held_out = set(reward.provenance["ramp_test_photos"])
        photos = [path for path in photos if path.name in held_out]
    if not photos:
        raise SystemExit(
            f"photos: no usable photo in {config.photos} (held-out photos of the model, unless --all-photos)"
        )
    photos = photos[: 2 if config.smoke else None]
    with torch.no_grad():
        table = follow_ramps(
            lambda images: reward.assess(images).attributes, photos, seed=config.seed, shorter_edge=config.side
        )
        departures = follow_departures(
            lambda images: reward.assess(images).score, photos, seed=config.seed, shorter_edge=config.side
        )
    kind = "any photos" if config.all_photos else "photos that the heads have not seen"
    size = "" if config.side is None else f" of {config.side} px"
    protocol = f"ramps of 9 levels on {table.photos} {kind}{size}"
    print(f"{reward.identity}\n{protocol}\n")
    print_table("mean SROCC between level (rows) and head (columns)", table.srocc)
    print_table("mean change of the head from level 0 to level 1", table.change)
    print_departures(departures)
    record: dict[str, Any] = {
        "model": reward.identity,
        "protocol": protocol,
        "n": table.photos,
        "attributes": list(ATTRIBUTES),
    }
    record |= {"srocc": table.srocc, "change": table.change}
    record["departures"] = {name: row._asdict() for name, row in departures.items()}
    write_json(config.out / "metrics.json", record)


def print_table(title: str, rows: list[list[float]]) -> None:
    """A 5 x 5 table in Markdown, ready for a model card."""
    print(f"{title}\n\n| ramp | {' | '.join(ATTRIBUTES)} |\n|---{'|---:' * len(ATTRIBUTES)}|")
    for name, row in zip(ATTRIBUTES, rows, strict=True):
        print(f"| {name} | " + " | ".join(f"{value:+.3f}" for value in row) + " |")
    print()


def print_departures(rows: dict[str, DepartureRow]) -> None:
    """What the score makes of each departure, in Markdown."""
    print("departures: mean SROCC of severity and score, sign turned; share of photos that score above theirs from")
    print("severity 0.5 on; mean fall of the score at 0.5\n")
    print("| departure | SROCC | above | fall |\n|---|---:|---:|---:|")
    for name, row in rows.items():
        print(f"| {name} | {row.srocc:+.3f} | {row.first:.2f} | {row.loss:+.3f} |")
    print()


if __name__ == "__main__":
    main()
