"""Does a model name the distortions of an image?

    python evals/identification.py --kadid kadid10k --photos photos

--kadid: KADID-10k's distorted images, or some of them. An image counts as named when, among the types of distortion
that are in the folder, its own has the greatest strength.
--photos: pristine photos get 1 to --most distortions; only those that the model's own record says were held out are
used, unless --all-photos. Mean average precision, accuracy in bins and RMSE (ExIQA, equations 10 and 11) stand beside
what the two constant predictors reach: no distortion ever, and the mean strength of each.

Everything printed is in OUT/metrics.json; OUT/confusion.png shows which types KADID's images are taken for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from attriqa import QualityReward
from attriqa.config import opt, run_command
from attriqa.data.datasets import read_dataset
from attriqa.data.distorted import DistortedCrops
from attriqa.distortions import DISTORTION_KEYS, DISTORTIONS
from attriqa.evaluation.identification import confusion, identification_metrics, write_confusion
from attriqa.evaluation.probes import unseen_photos
from attriqa.evaluation.text_tables import markdown
from attriqa.files import write_json
from attriqa.images import read
from attriqa.models.assessment import Assessment


@dataclass(frozen=True)
class Config:
    """What a run does."""

    kadid: Path | None = opt(None, "root of KADID-10k")
    photos: Path | None = opt(None, "folder of pristine photos")
    model: str = opt("default", "default, or the path of a checkpoint")
    photo_pattern: str = opt("cid22_*", "which files of --photos are used")
    all_photos: bool = opt(False, "also photos that the model may have learnt from")
    most: int = opt(3, "the greatest number of distortions on a photo")
    rounds: int = opt(4, "distorted versions of each photo")
    crop: int = opt(384, "px, side of the crop that is distorted")
    out: Path = opt(Path("runs/identification"), "where metrics.json goes")
    seed: int = opt(0, "of the distortions")
    smoke: bool = opt(False, "a size for tests: a few images, small crops")

    def __post_init__(self) -> None:
        if self.kadid is None and self.photos is None:
            raise ValueError("--kadid, --photos: expected one of them at least")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    run_command({"": run}, argv, __doc__)


@torch.no_grad()
def run(config: Config) -> None:
    """The recipe, after its command line."""
    reward = QualityReward(config.model)
    if DISTORTION_KEYS[0] not in reward.names:
        raise ValueError(f"--model: expected a model that tells distortions, {config.model} has no head for them")
    record: dict[str, Any] = {"model": reward.identity}
    if config.kadid is not None:
        record["kadid"] = on_kadid(config, reward)
    if config.photos is not None:
        record["photos"] = on_photos(config, config.photos, reward)
    write_json(config.out / "metrics.json", record)
    print(f"scores by {reward.identity}")


def on_kadid(config: Config, reward: QualityReward) -> dict[str, Any]:
    """How often the right type is the strongest of those that are there."""
    rows = [row for row in read_dataset(f"kadid={config.kadid}").rows if row.distortion is not None]
    rows = rows[: 6 if config.smoke else None]
    keys = [key for key in DISTORTION_KEYS if key in {row.distortion for row in rows}]
    predicted = Assessment.cat([reward.assess(read(row.path)[None]) for row in tqdm(rows, "kadid", leave=False)])
    assert predicted.distortions is not None
    applied = torch.tensor([[float(row.distortion == key) for key in keys] for row in rows])
    counts = confusion(predicted.distortions[:, [DISTORTION_KEYS.index(key) for key in keys]], applied)
    right = int(counts.trace())
    print(f"KADID-10k, {len(rows)} images of {len(keys)} types, never learnt from")
    print(f"the right one is the strongest of the {len(keys)}: {right} of {len(rows)}, {right / len(rows):.3f}\n")
    cells = [[key, *map(str, row)] for key, row in zip(keys, counts, strict=True)]
    print(markdown(["applied", *keys], cells) + "\n")
    write_confusion(config.out, counts, keys, f"KADID-10k, {len(rows)} images")
    return {"n": len(rows), "types": keys, "accuracy": right / len(rows), "confusion": counts.tolist()}


def on_photos(config: Config, folder: Path, reward: QualityReward) -> dict[str, Any]:
    """Multi-distorted crops of photos that the model has not seen."""
    test_photos = reward.provenance.get("distortion_head", {}).get("test_photos", ())
    paths = unseen_photos(folder, config.photo_pattern, None if config.all_photos else set(test_photos))
    crop = 96 if config.smoke else config.crop
    crops = DistortedCrops(
        paths[: 2 if config.smoke else None], crop=crop, most=config.most, seed=config.seed, clean_share=0
    )
    pairs = list(assessed(reward, crops, 1 if config.smoke else config.rounds))
    predicted, true = (torch.cat(side) for side in zip(*pairs, strict=True))
    metrics = dict(identification_metrics(predicted, true, true.mean(0)))
    kind = "any photos" if config.all_photos else "photos that the head has not seen"
    print(f"1 to {config.most} of {len(DISTORTIONS)} distortions on {len(true)} {crop}-px crops of {len(crops)} {kind}")
    for name, value in metrics.items():
        print(f"{name:32} {value:.4f}")
    print()
    return {"n": len(true), "photos": len(crops), "most": config.most, **metrics}


def assessed(reward: QualityReward, crops: DistortedCrops, rounds: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Strengths as predicted and as applied, (b, 25) each."""
    for epoch in range(rounds):
        crops.start_epoch(epoch)
        for images, strengths in tqdm(DataLoader(crops, 4), f"round {epoch + 1} of {rounds}", leave=False):
            predicted = reward.assess(images).distortions
            assert predicted is not None
            yield predicted, strengths


if __name__ == "__main__":
    main()
