"""Probe a frozen CLIP: ridge regression of opinion scores on its image features, what any model on it has to beat.

    python training/train_clip_probe.py --clip ViT-B-16:openai --data koniq=koniq-10k --out runs/clip_probe
    python training/train_clip_probe.py --init runs/exiqa/split0/model.safetensors --data clive=ChallengeDB_release

An image's features are the mean of its crops' image embeddings, before they are brought to length one; the crops are
those that MP-IQE tests on. The penalty is chosen by leaving one training image out at a time. The features are computed
once, for all splits. OUT/metrics.json holds every number that is printed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from attriqa.config import check_least, claim_folder, opt, required, run_command
from attriqa.data.batches import central
from attriqa.data.crops import fixed_crops
from attriqa.evaluation import metrics, ridge
from attriqa.models import exiqa
from attriqa.models.clip.towers import CLIPTowers, clip_of
from attriqa.training.folds import medians_of_tests, write_medians
from attriqa.training.loop import loader
from attriqa.training.options import CLIPStart, RatedData


@dataclass(frozen=True, kw_only=True)
class Config(RatedData, CLIPStart):
    """What a run does."""

    data: str = required("rated data set in its official layout, NAME=ROOT, as clive=ChallengeDB_release")
    out: Path = opt(Path("runs/clip_probe"), "where everything goes")
    protocol: Literal["splits", "official"] = opt("splits", "random 80/20; the authors' split")
    crops: int = opt(8, "of each image")
    shorter_edge: int | None = opt(None, "px that images are resized to before they are cropped; none: their own size")
    smoke: bool = opt(False, "a size for tests: 40 images, one split")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, crops=1)


def run(config: Config) -> None:
    """Compute the features, fit and test every split."""
    if config.smoke:
        config = replace(config, splits=1, crops=2, workers=0)
    plan = config.plan(config.data)
    towers = towers_of(config)
    claim_folder(config.out, config)
    sets = (plan.dataset, *plan.strangers)
    opinions = {one.name: np.array([row.mos for row in one.rows]) for one in sets}
    features = {one.name: embed(config, towers, one.name, [row.path for row in one.rows]) for one in sets}
    own, mos = features[plan.dataset.name], opinions[plan.dataset.name]
    results = []
    for fold in plan.folds:
        probe = ridge.fit(own[fold.train], mos[fold.train])
        tests = {"test": report(probe, own[fold.test], mos[fold.test])}
        for other in plan.strangers:
            tests[other.name] = report(probe, features[other.name], opinions[other.name])
        results.append({"fold": fold.name, "n_train": len(fold.train), "penalty": probe.penalty, "tests": tests})
    title = f"{plan.protocol}; {own.shape[1]} features, mean of {config.crops} crops"
    write_medians(config.out, results, medians_of_tests(results), title, {"protocol": plan.protocol})


def towers_of(config: Config) -> CLIPTowers:
    """The CLIP that is probed."""
    if config.init is not None:
        return exiqa.load(config.init).towers
    return clip_of(config.clip or str(config.clip_config), seed=config.seed)


@torch.no_grad()
def embed(config: Config, towers: CLIPTowers, name: str, paths: Sequence[Path]) -> NDArray[np.float64]:
    """Features of image files, (N, D)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    visual, size = towers.model.visual.to(device).eval(), towers.preprocess.size
    images = fixed_crops(paths, size, config.crops, shorter_edge=config.shorter_edge, seed=config.seed)
    features = []
    for batch in tqdm(loader(images, central(range(len(paths)), 4), workers=config.workers), name, leave=False):
        embedded = visual(towers.preprocess.normalize(batch.pixels(device))).float()
        features.append(embedded.unflatten(0, (-1, config.crops)).mean(1).cpu())
    return torch.cat(features).double().numpy()


def report(probe: ridge.Ridge, features: NDArray[np.float64], mos: NDArray[np.float64]) -> dict[str, float]:
    """How well a fit predicts."""
    return metrics.report(probe(features).tolist(), mos.tolist(), seed=0, resamples=1000)


def main(argv: Sequence[str] | None = None) -> None:
    """What the command line says."""
    run_command({"": run}, argv, __doc__)


if __name__ == "__main__":
    main()
