"""Does a model name the distortions of an image?

    python evals/identification.py --kadid kadid10k --photos photos

--kadid: KADID-10k's distorted images, or some of them. An image counts as named when, among the types of distortion
that are in the folder, its own has the greatest strength.
--photos: pristine photos get 1 to --most distortions; only those that the model's own record says were held out are
used, unless --all-photos. Mean average precision, accuracy in bins and RMSE (ExIQA, equations 10 and 11) stand beside
what the two constant predictors reach: no distortion ever, and the mean strength of each.

Everything printed is in OUT/metrics.json; OUT/confusion.png shows which types KADID's images are taken for.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from attriqa import QualityReward
from attriqa.config import opt, parse_config
from attriqa.data.datasets import read_dataset
from attriqa.data.distorted import DistortedCrops
from attriqa.distortions import DISTORTION_KEYS, DISTORTIONS
from attriqa.evaluation.identification import identification_metrics
from attriqa.files import atomic_path, write_json
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


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    config = parse_config(Config, argv, __doc__)
    if config.kadid is None and config.photos is None:
        raise SystemExit("--kadid, --photos: expected one of them at least")
    reward = QualityReward(config.model)
    if DISTORTION_KEYS[0] not in reward.names:
        raise SystemExit(f"--model: expected a model that tells distortions, {config.model} has no head for them")
    record: dict[str, Any] = {"model": reward.identity}
    try:
        with torch.no_grad():
            if config.kadid is not None:
                record["kadid"] = on_kadid(config, reward)
            if config.photos is not None:
                record["photos"] = on_photos(config, reward)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    write_json(config.out / "metrics.json", record)
    print(f"scores by {reward.identity}")


def on_kadid(config: Config, reward: QualityReward) -> dict[str, Any]:
    """How often the right type is the strongest of those that are there."""
    rows = [row for row in read_dataset(f"kadid={config.kadid}").rows if row.distortion is not None]
    rows = rows[: 6 if config.smoke else None]
    types = sorted({number(row.distortion) for row in rows})
    said = Assessment.cat([reward.assess(read(row.path)[None]) for row in tqdm(rows, "kadid", leave=False)])
    strengths = said.distortions
    assert strengths is not None
    guesses = strengths[:, types].argmax(1).tolist()
    confusion = np.zeros((len(types), len(types)), int)
    for row, guess in zip(rows, guesses, strict=True):
        confusion[types.index(number(row.distortion)), guess] += 1
    keys = [DISTORTION_KEYS[index] for index in types]
    right = int(confusion.trace())
    print(f"KADID-10k, {len(rows)} images of {len(types)} types, never learnt from")
    print(f"the right one is the strongest of the {len(types)}: {right} of {len(rows)}, {right / len(rows):.3f}\n")
    print_confusion(keys, confusion)
    draw_confusion(config.out / "confusion.png", keys, confusion)
    return {"n": len(rows), "types": keys, "accuracy": right / len(rows), "confusion": confusion.tolist()}


def number(distortion: str | None) -> int:
    """Where a type of KADID's, as the data set's rows name it, stands in DISTORTION_KEYS."""
    assert distortion is not None
    return DISTORTION_KEYS.index(distortion)


def print_confusion(keys: Sequence[str], confusion: np.ndarray) -> None:
    """Rows: applied; columns: taken for."""
    print(f"| applied | {' | '.join(keys)} |\n|---{'|---:' * len(keys)}|")
    for key, row in zip(keys, confusion, strict=True):
        print(f"| {key} | " + " | ".join(map(str, row)) + " |")
    print()


def draw_confusion(path: Path, keys: Sequence[str], confusion: np.ndarray) -> None:
    """The same as a picture."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    side = 2 + 0.4 * len(keys)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(confusion / np.maximum(confusion.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(keys)), keys, rotation=90)
    axes.set_yticks(range(len(keys)), keys)
    axes.set_xlabel("taken for")
    axes.set_ylabel("applied")
    for y, x in itertools.product(range(len(keys)), repeat=2):
        if confusion[y, x]:
            axes.text(x, y, confusion[y, x], ha="center", va="center", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def on_photos(config: Config, reward: QualityReward) -> dict[str, Any]:
    """Multi-distorted crops of photos that the model has not seen."""
    assert config.photos is not None
    paths = sorted(path for path in config.photos.glob(config.photo_pattern) if path.is_file())
    if not config.all_photos:
        held_out = set(reward.provenance.get("distortion_head", {}).get("test_photos", ()))
        paths = [path for path in paths if path.name in held_out]
    if not paths:
        raise ValueError(
            f"photos: no usable photo in {config.photos} (held-out photos of the model, unless --all-photos)"
        )
    crop = 96 if config.smoke else config.crop
    crops = DistortedCrops(
        paths[: 2 if config.smoke else None], crop=crop, most=config.most, seed=config.seed, clean_share=0
    )
    pairs = list(assessed(reward, crops, 1 if config.smoke else config.rounds))
    found, truth = (torch.cat(side) for side in zip(*pairs, strict=True))
    metrics = dict(identification_metrics(found, truth, truth.mean(0)))
    kind = "any photos" if config.all_photos else "photos that the head has not seen"
    print(
        f"1 to {config.most} of {len(DISTORTIONS)} distortions on {len(truth)} {crop}-px crops of {len(crops)} {kind}"
    )
    for name, value in metrics.items():
        print(f"{name:32} {value:.4f}")
    print()
    return {"n": len(truth), "photos": len(crops), "most": config.most, **metrics}


def assessed(reward: QualityReward, crops: DistortedCrops, rounds: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Strengths as told and as applied, (b, 25) each."""
    for epoch in range(rounds):
        crops.start_epoch(epoch)
        for images, strengths in tqdm(DataLoader(crops, 4), f"round {epoch + 1} of {rounds}", leave=False):
            told = reward.assess(images).distortions
            assert told is not None
            yield told, strengths


if __name__ == "__main__":
    main()
