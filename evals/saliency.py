"""Do the maps of `attriqa.explain` point at the cause?

    python evals/saliency.py --photos photos

One half of a photo (left, right, top or bottom, drawn by the seed) is distorted, and the distorted photo is explained.
Printed, and written to OUT/metrics.json, per type of distortion, is the share of the map's mass on that half, of the
maps of the score, of the attribute that should suffer, and of the distortion's own strength where the model tells it.
0.5 is chance, also for an empty map: nothing in the photo moves the output. Two controls stand beside it: the half's
share in the untouched photo's map, and how far the score fell, for what a model hardly notices its map cannot show.

Curves, on the first --curve-photos: from the distorted photo, the most salient pixels are replaced by the untouched
photo's (deletion of the defect, the score should rise at once), and from the untouched photo by the distorted one's
(insertion, it should fall at once). The number is the area between the curve and its start, over the whole change from
one photo to the other: 0.5 if all pixels weigh the same, 0.75 for the best order where exactly one half matters. Beside
it, the same for a random smooth map.

The same command goes on where it was stopped. OUT/examples shows the first photo of each type, plain and explained.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attriqa import QualityReward, images
from attriqa.config import claim_folder, opt, required, run_command
from attriqa.distortions import distort_seeded, find_distortion
from attriqa.evaluation.probes import unseen_photos
from attriqa.evaluation.text_tables import markdown
from attriqa.explain import overlay, saliency
from attriqa.files import atomic_path, write_json

SIDES = ("left", "right", "top", "bottom")
SUFFERS = {
    **dict.fromkeys(("gaussian_blur", "lens_blur", "motion_blur", "denoise", "pixelate"), "sharpness"),
    **dict.fromkeys(("jpeg2000", "jpeg"), "sharpness"),
    **dict.fromkeys(("white_noise", "white_noise_cc", "impulse_noise", "multiplicative_noise"), "noisiness"),
    **{"darken": "brightness", "color_saturation_1": "colorfulness", "contrast_change": "contrast"},
}  # fmt: skip
_FRACTIONS = (0.1, 0.25, 0.5, 0.75)  # of the pixels, between none and all
_GOAL = 0.7
_ABOUT = {"drop": "fall of the score", "untouched": "share in the untouched photo's map"}


@dataclass(frozen=True)
class Config:
    """What a run does."""

    photos: Path = required("folder of photos without defects, that the model has not learnt from")
    pattern: str = opt("*", "which files of --photos are used")
    model: str = opt("default", "default, or the path of a checkpoint")
    types: tuple[str, ...] = opt(
        ("gaussian_blur", "white_noise", "jpeg", "darken", "color_block"), "distortions, by their keys"
    )
    level: int = opt(5, "of the distortions, 1 to 5, by severity")
    most: int = opt(50, "photos, drawn by the seed")
    curve_photos: int = opt(10, "photos with deletion and insertion curves")
    out: Path = opt(Path("runs/saliency"), "where metrics.json goes")
    seed: int = opt(0, "of photos, halves, distortions and random maps")
    smoke: bool = opt(False, "two photos, one with curves")

    def __post_init__(self) -> None:
        for key in self.types:
            find_distortion(key)
        if not 1 <= self.level <= 5:
            raise ValueError(f"level: expected 1 to 5, got {self.level}")
        if self.most < 1 or self.curve_photos < 0:
            raise ValueError(f"most, curve_photos: expected at least 1 and 0, got {self.most} and {self.curve_photos}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is not measured yet, print, write."""
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """The recipe, after its command line."""
    photos = unseen_photos(config.photos, config.pattern, None)
    order = np.random.default_rng(config.seed).permutation(len(photos))
    photos = [photos[index] for index in order[: 2 if config.smoke else config.most]]
    reward = QualityReward(config.model, view="full")
    claim_folder(config.out, config)
    rows_path = config.out / "rows.json"
    saved = json.loads(rows_path.read_text(encoding="utf-8")) if rows_path.exists() else {"rows": []}
    if saved.get("model", reward.identity) != reward.identity:
        raise ValueError(f"{rows_path}: made by {saved['model']}, this is {reward.identity}; choose another --out")
    rows: list[dict[str, Any]] = saved["rows"]
    done = {(row["photo"], row["type"]) for row in rows}
    curves = 1 if config.smoke else config.curve_photos
    for number, path in enumerate(tqdm(photos, unit="photo", disable=None)):
        left = [kind for kind in config.types if (path.name, kind) not in done]
        rows += [measure(reward, path, kind, config, curves=number < curves, example=number == 0) for kind in left]
        write_json(rows_path, {"model": reward.identity, "rows": rows})
    means = {kind: means_of([row for row in rows if row["type"] == kind]) for kind in config.types}
    protocol = f"level {config.level} on one half of {len(photos)} photos, {config.pattern} of {config.photos.name}"
    report(means, reward.identity, protocol)
    write_json(
        config.out / "metrics.json",
        {"model": reward.identity, "protocol": protocol, "n": len(photos), "goal": _GOAL, "types": means},
    )


def measure(
    reward: QualityReward, path: Path, kind: str, config: Config, *, curves: bool, example: bool
) -> dict[str, Any]:
    """One photo with one distortion on one half: shares of maps, fall of the score, areas under the curves."""
    photo = images.read(path)[None]
    numbers = [config.seed, *path.name.encode(), *kind.encode()]
    rng = np.random.default_rng(numbers)  # a photo's draws depend on its name alone, whatever else is measured
    side = SIDES[int(rng.integers(4))]
    half = half_of(photo, side)
    worse = photo.clone()
    worse[:, :, half[0], half[1]] = distort_seeded(
        photo[:, :, half[0], half[1]], kind, config.level, [int(rng.integers(2**62))], level_order="severity"
    )
    targets = {"score": "score"}
    if kind in SUFFERS:
        targets["attribute"] = SUFFERS[kind]
    if reward.model.distortion_head is not None:
        targets["distortion"] = kind
    maps = {name: saliency(reward.model, worse, of)[0] for name, of in targets.items()}
    scores = look(reward, torch.cat([photo, worse])).tolist()
    row: dict[str, Any] = {"photo": path.name, "type": kind, "side": side}
    row |= {"share": {name: share(found, half) for name, found in maps.items()}}
    row |= {"untouched": share(saliency(reward.model, photo, "score")[0], half), "drop": scores[0] - scores[1]}
    if curves:
        coarse = torch.from_numpy(rng.random((1, 1, 6, 6))).float()
        random = F.interpolate(coarse, photo.shape[2:], mode="bicubic")[0, 0]
        row["areas"] = areas(reward, photo, worse, {"map": maps["score"], "random": random}, scores, rng)
    if example:
        plain = (worse[0].permute(1, 2, 0) * 255).round().byte().numpy()
        with atomic_path(config.out / "examples" / f"{kind}.png") as temporary:
            shown = [overlay(worse[0], found) for found in maps.values()]
            Image.fromarray(np.concatenate([plain, *shown], 1)).save(temporary, format="PNG")
    return row


def half_of(photo: Tensor, side: str) -> tuple[slice, slice]:
    """Rows and columns of a half of ``(..., H, W)``."""
    height, width = photo.shape[-2:]
    rows = {"top": slice(height // 2), "bottom": slice(height // 2, None)}.get(side, slice(None))
    columns = {"left": slice(width // 2), "right": slice(width // 2, None)}.get(side, slice(None))
    return rows, columns


def share(found: Tensor, half: tuple[slice, slice]) -> float:
    """Of a map's mass, what lies on the half; an empty map says nothing, which is chance."""
    total = float(found.sum())
    return float(found[half].sum()) / total if total else 0.5


@torch.no_grad()
def look(reward: QualityReward, batch: Tensor) -> Tensor:
    """Scores (B,)."""
    return reward.assess(batch).score


def areas(
    reward: QualityReward,
    photo: Tensor,
    worse: Tensor,
    maps: dict[str, Tensor],
    scores: Sequence[float],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Areas between the curves of deletion and insertion and their starts, in units of the score."""
    best, worst = scores
    result = {}
    for name, found in maps.items():
        # Pixels of equal salience, as an empty map's, come in random order and not in that of the rows.
        order = np.lexsort((rng.random(found.numel()), -found.flatten().numpy()))
        steps = []
        for fraction in _FRACTIONS:
            inside = torch.zeros(found.numel(), dtype=torch.bool)
            inside[torch.from_numpy(order[: round(fraction * len(order))])] = True
            inside = inside.view(found.shape)
            steps += [torch.where(inside, photo, worse), torch.where(inside, worse, photo)]
        looks = look(reward, torch.cat(steps)).view(-1, 2)
        at = [0.0, *_FRACTIONS, 1.0]
        deletion = [worst, *looks[:, 0].tolist(), best]
        insertion = [best, *looks[:, 1].tolist(), worst]
        result[f"deletion_{name}"] = float(np.trapezoid(deletion, at)) - worst
        result[f"insertion_{name}"] = best - float(np.trapezoid(insertion, at))
    return result


def means_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the photos of one type."""
    means: dict[str, Any] = {"n": len(rows)}
    for name in rows[0]["share"]:
        values = [row["share"][name] for row in rows]
        means[f"share_{name}"] = statistics.fmean(values)
        means[f"right_half_{name}"] = statistics.fmean(value > 0.5 for value in values)
    means |= {name: statistics.fmean(row[name] for row in rows) for name in _ABOUT}
    curved = [row for row in rows if "areas" in row]
    change = sum(row["drop"] for row in curved)
    means["n_curves"] = len(curved)
    if change > 0:  # of the mean curve: the change of a single photo may be next to nothing
        means |= {name: sum(row["areas"][name] for row in curved) / change for name in curved[0]["areas"]}
    return means


def report(means: dict[str, dict[str, Any]], identity: str, protocol: str) -> None:
    """The tables, in Markdown."""
    print(f"{identity}\n{protocol}\n\nshare of the map's mass on the distorted half (goal: {_GOAL} or more)\n")
    names = ("share_score", "share_attribute", "share_distortion", "right_half_score", *_ABOUT)
    heads = ("map of the score", "of the attribute", "of the distortion", "score's map over 0.5", *_ABOUT.values())
    _table(means, names, heads)
    curves = [f"{curve}_{name}" for curve in ("deletion", "insertion") for name in ("map", "random")]
    print("\narea of the curves, map of the score against a random map\n")
    _table(means, curves, [name.replace("_", ", ") for name in curves])


def _table(means: dict[str, dict[str, Any]], names: Sequence[str], heads: Sequence[str]) -> None:
    rows = [[kind, *(f"{row[name]:.3f}" if name in row else "" for name in names)] for kind, row in means.items()]
    print(markdown(["distortion", *heads], rows))


if __name__ == "__main__":
    main()
