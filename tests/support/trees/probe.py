"""A small finished run of ``training/finetune.py --mode probe``, made in seconds: random heads on a random encoder."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from attriqa.data.crops import PhotoCrops
from attriqa.data.protocol import Plan, make_plan
from attriqa.data.ramps import RAMPS, RampGroups
from attriqa.models import AttributeNet
from tests.support import small_net
from tests.support.trees import clive as clive_tree

SETTINGS = {
    "mode": "probe", "views": 2, "splits": 2, "fraction": 1.0, "smoke": False, "seed": 3, "weight_decay": 0.01,
    "ramp_weight": 0.2, "quality_weight": 0.2, "quality_slope": 1.0, "margin": 0.5, "crosstalk": 0.3,
}  # fmt: skip
LEVELS = 3


class Tree(NamedTuple):
    run: Path
    data: str  # NAME=ROOT
    photos: Path


def build(root: Path) -> Tree:
    """The run of 24 rated photos and of ramps of 3 photos, one of which is held out."""
    clive = clive_tree.build(root / "ChallengeDB_release", count=24, width=120, height=110)
    photos = clive_tree.build_photos(root / "photos", count=3, side=128)
    for index in range(3):
        clive_tree.picture(2000 + index, 150, 130).save(photos / f"bsds_{index}.png")
    tree = Tree(root / "run", f"clive={clive}", photos)
    net = small_net.build()
    plan = make_plan(tree.data, protocol="both", splits=2)
    save_statistics(tree, net, plan)
    for fold in plan.folds:
        save_net(tree, net, plan, fold.name)
    (tree.run / "config.json").write_text(json.dumps(SETTINGS))
    (tree.run / "metrics.json").write_text("{}")
    return tree


@torch.no_grad()
def save_statistics(tree: Tree, net: AttributeNet, plan: Plan) -> None:
    """Two crops of each photo, and a ramp of each kind of the two photos that are learnt from."""
    crops = PhotoCrops([row.path for row in plan.dataset.rows], net.config.shorter_edge, net.config.crop, seed=3)
    views = torch.empty(len(crops), 2, net.pooled_mean.numel())
    for view in range(2):
        crops.start_epoch(view)
        for image, index in map(crops.__getitem__, range(len(crops))):
            views[index, view] = (net.pool(image[None]) * net.pooled_std + net.pooled_mean)[0]
    groups = RampGroups([tree.photos / "cid22_0.png", tree.photos / "cid22_1.png"], 96, LEVELS, seed=3)
    rendered = [groups[index] for index in range(len(groups))]
    assert [ramp for _, _, ramp in rendered] == [*range(len(RAMPS))] * 2
    pooled = torch.stack([net.pool(images) * net.pooled_std + net.pooled_mean for images, _, _ in rendered])
    tree.run.mkdir()
    kept = {"views": views.half(), "ramps": pooled.half(), "levels": torch.stack([level for _, level, _ in rendered])}
    save_file(kept, tree.run / "statistics.safetensors")


def save_net(tree: Tree, net: AttributeNet, plan: Plan, name: str) -> None:
    """The net as that of a fold, as if it had learnt from it."""
    (fold,) = (fold for fold in plan.folds if fold.name == name)
    learnt = {
        plan.dataset.name: [path.name for path in plan.train_paths(fold)],
        "ramps": ["cid22_0.png", "cid22_1.png"],
    }
    (tree.run / name).mkdir(exist_ok=True)
    net.save(tree.run / name / "model.safetensors", {"data": learnt, "ramp_test_photos": ["cid22_2.png"]})
