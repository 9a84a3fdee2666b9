"""What a finished ``training/finetune.py --mode probe`` leaves: the net of each fold, and what they all learnt from."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from attriqa.attributes import ATTRIBUTES
from attriqa.data.crops import crop_and_flip
from attriqa.data.protocol import Plan, Protocol, make_plan
from attriqa.data.ramps import RAMPS, DepartureGroups, find_photos
from attriqa.data.splits import Fold
from attriqa.evaluation.attacks import middle_squares
from attriqa.files import write_json
from attriqa.images import read
from attriqa.models import AttributeNet, load_with_provenance
from attriqa.models.backbones import fold_batch_norm
from attriqa.models.views import View, look
from attriqa.training.state import keep

_MOST_OFF = 0.03  # bfloat16 and fp16 take statistics half a percent away, another crop 5, another photo 30


class ProbeRun(NamedTuple):
    """A run; made by `read_run`."""

    folder: Path
    settings: dict[str, Any]  # its configuration
    plan: Plan
    views: Tensor  # (N, V, D) fp16, raw pooled statistics of V random crops of every photo
    ramps: Tensor  # (G, L, D) fp16, of G ramps of L renderings; group g shows RAMPS[g % kinds]
    levels: Tensor  # (G, L)
    kinds: int  # how many of RAMPS; 0 without ramps
    ramp_photos: tuple[str, ...]  # names of the photos of these ramps
    held_out: tuple[str, ...]  # names of the photos whose ramps nothing has learnt from
    seen: frozenset[str]  # names of all photos that something has learnt from


class FoldNet(NamedTuple):
    """What a run made of a fold; made by `read_nets`."""

    net: AttributeNet  # frozen, in eval mode, on the CPU
    provenance: dict[str, Any]
    sha256: str  # of its file


def read_run(folder: Path, data: str, *, protocol: Protocol, splits: int) -> ProbeRun:
    """Read a run's statistics, and cut the folds as it did.

    Args:
        folder: its ``--out``.
        data: ``NAME=ROOT`` of its rated data set, wherever that is now.
        protocol: which of its folds.
        splits: how many of its random splits.

    Raises:
        ValueError: it is not finished, has no kept statistics or not so many splits, or ``data`` is not its own.
        OSError: a file cannot be read.
    """
    for name in ("metrics.json", "config.json", "statistics.safetensors"):
        if not (folder / name).exists():
            raise ValueError(f"run: expected a finished one of training/finetune.py --mode probe, no {folder / name}")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if settings["mode"] != "probe":
        raise ValueError(f"run: expected --mode probe, {folder} has {settings['mode']}")
    if protocol != "all" and splits > settings["splits"]:
        raise ValueError(f"splits: expected at most the {settings['splits']} of {folder}, got {splits}")
    plan = make_plan(data, protocol=protocol, splits=splits, fraction=settings["fraction"], smoke=settings["smoke"])
    kept = load_file(folder / "statistics.safetensors")
    if len(kept["views"]) != len(plan.dataset.rows):
        raise ValueError(f"data: expected the {len(kept['views'])} photos of {folder}, got {len(plan.dataset.rows)}")
    learnt = [_load(folder, fold)[1] for fold in plan.folds]
    ramps = learnt[0]["data"].get("ramps", [])
    kinds = len(kept["ramps"]) // max(1, len(ramps))
    if len(kept["ramps"]) != kinds * len(ramps) or kinds not in (0, len(ATTRIBUTES), len(RAMPS)):
        raise ValueError(f"run: expected {len(RAMPS)} ramps of {len(ramps)} photos, got {len(kept['ramps'])}")
    seen = frozenset(name for one in learnt for names in one["data"].values() for name in names)
    return ProbeRun(
        folder, settings, plan, kept["views"], kept["ramps"], kept["levels"], kinds,
        tuple(ramps), tuple(learnt[0]["ramp_test_photos"]), seen,
    )  # fmt: skip


def read_nets(run: ProbeRun) -> list[FoldNet]:
    """Load the net of every fold, in the order of the plan.

    Raises:
        ValueError: a net learnt from other photos than its fold has, its encoder does not give the kept statistics, or
            is not that of the first.
        OSError: a file cannot be read.
    """
    nets = [_read_fold(run, fold) for fold in run.plan.folds]
    encoders = [fold_net.net.backbone.state_dict() for fold_net in nets]
    for fold, encoder in zip(run.plan.folds, encoders, strict=True):
        if not all(torch.equal(encoder[name], value) for name, value in encoders[0].items()):
            raise ValueError(f"run: expected one encoder in all folds of {run.folder}, that of {fold.name} is another")
    return nets


def claim_start(folder: Path, run: ProbeRun, nets: list[FoldNet]) -> None:
    """Note in an output folder which nets it begins with.

    Raises:
        ValueError: it began with others.
    """
    hashes = {fold.name: fold_net.sha256 for fold, fold_net in zip(run.plan.folds, nets, strict=True)}
    path = folder / "start.json"
    if not path.exists():
        write_json(path, hashes)
    elif json.loads(path.read_text(encoding="utf-8")) != hashes:
        raise ValueError(f"{folder} began with other nets than {run.folder} holds now; choose another --out")


def _read_fold(run: ProbeRun, fold: Fold) -> FoldNet:
    fold_net = _load(run.folder, fold)
    theirs = fold_net.provenance["data"].get(run.plan.dataset.name, [])
    ours = [path.name for path in run.plan.train_paths(fold)]
    if theirs != ours:
        raise ValueError(
            f"data: expected the {len(theirs)} photos that {fold.name} of {run.folder} learnt from, "
            f"got {len(ours)}{' others' if len(theirs) == len(ours) else ''}"
        )
    row = fold.train[0]
    crop = draw_crop(run, row, np.random.default_rng([run.settings["seed"], 0, row]), fold_net.net)
    with torch.no_grad():
        raw = (fold_net.net.pool(crop[None]) * fold_net.net.pooled_std + fold_net.net.pooled_mean)[0]
    kept = run.views[row, 0].float()
    off = ((raw - kept).norm() / kept.norm()).item()
    if off > _MOST_OFF:
        raise ValueError(
            f"run: expected the statistics that {fold.name}'s encoder gives of {run.plan.dataset.rows[row].path}, "
            f"those in {run.folder} are {off:.0%} off"
        )
    return fold_net


def _load(folder: Path, fold: Fold) -> FoldNet:
    loaded = load_with_provenance(folder / fold.name / "model.safetensors")
    if not isinstance(loaded.model, AttributeNet):
        raise ValueError(f"run: expected an AttributeNet in {fold.name}, got {type(loaded.model).__name__}")  # noqa: TRY004
    return FoldNet(loaded.model.requires_grad_(False), loaded.provenance, loaded.sha256)


def unseen_squares(run: ProbeRun, folder: Path, pattern: str, count: int, side: int) -> Tensor:
    """Middle squares of photos that nothing of a run has learnt from, evenly spaced over the files that match.

    Args:
        run: what has learnt.
        folder: of the photos; those whose ramps the run held out have to be there, too.
        pattern: which of its files.
        count: of them.
        side: px; see `attriqa.evaluation.attacks.middle_squares`.

    Raises:
        ValueError: they are not there, too few, too small, or something has learnt from them.
    """
    photos = find_photos(folder, pattern, count)
    known = run.seen | {row.path.name for row in run.plan.dataset.rows}
    learnt = sorted(path.name for path in photos if path.name in known)
    if learnt:
        raise ValueError(f"attacked_pattern: expected photos that nothing has learnt from, {learnt[0]} is not one")
    missing = [name for name in (*run.held_out, *run.ramp_photos) if not (folder / name).exists()]
    if missing:
        raise ValueError(f"photos: expected the photos of {run.folder}'s ramps, {folder / missing[0]} is not there")
    chosen = np.linspace(0, len(photos) - 1, count).round().astype(int)
    return middle_squares([photos[i] for i in chosen], side)


def draw_crop(run: ProbeRun, row: int, rng: np.random.Generator, net: AttributeNet) -> Tensor:
    """A random crop of a rated photo as the run drew its views, ``(3, crop, crop)``."""
    image = read(run.plan.dataset.rows[row].path, shorter_edge=net.config.shorter_edge)
    return crop_and_flip(image, net.config.crop, rng)


class KeptStatistics:
    """Raw pooled statistics of images, kept by the pixels: every net with this encoder shares them, whatever its heads.

    Args:
        net: whose encoder it is; it stays as it is.
        folder: where they are kept, a file for each batch.
        chunk: crops at once in the encoder.
    """

    def __init__(self, net: AttributeNet, folder: Path, chunk: int) -> None:
        self.folder, self.chunk = folder, chunk
        self.encoder = copy.deepcopy(net)
        self.encoder.pooled_mean.zero_()
        self.encoder.pooled_std.fill_(1)
        fold_batch_norm(self.encoder)  # as the reward does

    def pool(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) on the net's device -> (B, D); differentiable, not kept."""
        return self.encoder.pool(images.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def of_ramps(self, groups: DepartureGroups, path: Path) -> dict[str, Tensor]:
        """``ramps`` (G, L, D) fp16 and ``levels`` (G, L) of all groups, on the CPU; computed once, kept in a file."""

        def ramps() -> dict[str, Tensor]:
            pooled, levels = [], []
            for index in tqdm(range(len(groups)), "departures", leave=False):
                images, level = groups[index]
                pooled.append(self.pool(images.to(self.encoder.pooled_mean.device)).half().cpu())
                levels.append(level)
            return {"ramps": torch.stack(pooled), "levels": torch.stack(levels)}

        return keep(path, ramps)

    @torch.no_grad()
    def __call__(self, images: Tensor, view: View) -> Tensor:
        """(B, 3, H, W) -> (B, K, D) on the CPU, of the K crops of a view."""
        config = self.encoder.config

        def pooled() -> dict[str, Tensor]:
            seen = look(images, view, shorter_edge=config.shorter_edge, crop=config.crop)
            parts = seen.flatten(0, 1).to(self.encoder.pooled_mean.device).split(self.chunk)
            return {"pooled": torch.cat([self.pool(part).cpu() for part in parts]).unflatten(0, seen.shape[:2])}

        pixels = f"{view} {tuple(images.shape)}".encode() + images.cpu().contiguous().numpy().tobytes()
        return keep(self.folder / f"{hashlib.sha256(pixels).hexdigest()}.safetensors", pooled)["pooled"]
