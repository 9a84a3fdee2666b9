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
from attriqa.config import opt, required, run_command
from attriqa.evaluation.probes import follow_departures, follow_ramps, unseen_photos
from attriqa.evaluation.text_tables import markdown
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
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """The recipe, after its command line."""
    reward = QualityReward(config.model, view="full" if config.side is None else "native")
    held_out = None if config.all_photos else set(reward.provenance["ramp_test_photos"])
    photos = unseen_photos(config.photos, config.pattern, held_out)[: 2 if config.smoke else None]
    with torch.no_grad():
        given: dict[str, Any] = {"photos": photos, "seed": config.seed, "shorter_edge": config.side}
        table = follow_ramps(lambda images: reward.assess(images).attributes, **given)
        departures = follow_departures(lambda images: reward.assess(images).score, **given)
    kind = "any photos" if config.all_photos else "photos that the heads have not seen"
    size = "" if config.side is None else f" of {config.side} px"
    protocol = f"ramps of 9 levels on {table.photos} {kind}{size}"
    print(f"{reward.identity}\n{protocol}\n")
    tables = {
        "mean SROCC between level (rows) and head (columns)": table.srocc,
        "mean change of the head from level 0 to level 1": table.change,
    }
    for title, rows in tables.items():
        cells = [[name, *(f"{value:+.3f}" for value in row)] for name, row in zip(ATTRIBUTES, rows, strict=True)]
        print(f"{title}\n\n{markdown(['ramp', *ATTRIBUTES], cells)}\n")
    print("departures: mean SROCC of severity and score, sign turned; share of photos that score above theirs from")
    print("severity 0.5 on; mean fall of the score at 0.5\n")
    falls = [[name, f"{row.srocc:+.3f}", f"{row.first:.2f}", f"{row.loss:+.3f}"] for name, row in departures.items()]
    print(markdown(["departure", "SROCC", "above", "fall"], falls) + "\n")
    about = {"model": reward.identity, "protocol": protocol, "n": table.photos, "attributes": ATTRIBUTES}
    measured: dict[str, Any] = {"srocc": table.srocc, "change": table.change}
    measured |= {"departures": {name: row._asdict() for name, row in departures.items()}}
    write_json(config.out / "metrics.json", about | measured)


if __name__ == "__main__":
    main()
