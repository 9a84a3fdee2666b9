"""Train heads and regressor on what an attack makes of photos, and measure what it buys and what it costs.

    python training/adversarial_heads.py --run runs/default --data clive=ChallengeDB_release --photos photos

Adversarial training (Madry et al. 2018, arXiv 1706.06083) of all that learns in `training/finetune.py --mode probe`,
from the folds that such a run left; the encoder stands still. Each of --rounds does two things:

1. search: PGD pushes random crops of training photos up, half of them also down, against the newest heads; pristine
   photos are changed along a few axes, and tuned by Adam through the ISP, to what the score likes best.
2. train: heads and regressor learn anew from where the run left them, on the examples of all rounds so far: the run's
   own losses on clean crops and ramps; a score of each pushed crop that stays near that of the clean one
   (--consistency-weight); a ranking of what became of pristine photos by how near it is to them; attributes that stay
   where they were (--drift-weight). The departure head learns most: at a rate of its own, from drawn departures, too.

A score that follows opinions hardly minds departures, and one that does follows opinions less closely: what comes out
is a reward to be optimised, not a better measure.

Each fold is measured before and after, on the same photos: its test side; white-box PGD on --attacked photos that
nothing has learnt from, as evals/attack.py does it; how heads follow the ramps of held-out photos. What PGD made
against the net before is also shown to the net after: if that pushes it further than an attack of its own, its
gradients are hidden, not gone. The distortion head, if there is one, stays as it is, to the last bit.

OUT/FOLD/model.safetensors are the nets, OUT/all/model.safetensors the one to ship, OUT/metrics.json every number
printed. A killed run goes on with the same command, and searches for few examples again.
"""

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.special import expit
from torch import Tensor
from tqdm import tqdm

from attriqa.attributes import ATTRIBUTES
from attriqa.config import claim_folder, opt, required, run_command
from attriqa.data.ramps import DepartureGroups, draw_pristine
from attriqa.data.splits import Fold
from attriqa.evaluation.attacks import pgd, score_all
from attriqa.evaluation.folds import evaluate_fold
from attriqa.evaluation.probes import follow_ramps
from attriqa.evaluation.robustness import robustness_table
from attriqa.files import as_dict, write_json
from attriqa.models import AttributeNet
from attriqa.models.attribute_heads import squash
from attriqa.models.views import View, look
from attriqa.training import probe_run
from attriqa.training.adversarial import pushed, tempting
from attriqa.training.losses import quality_ranking, ramp_losses, score_loss
from attriqa.training.probe_run import KeptStatistics, ProbeRun
from attriqa.training.schedules import set_rates
from attriqa.training.state import in_parts, keep
from attriqa_envs.agents.adversarial import tuned

GROUPS = {"run": 32, "tempted": 32, "tuned": 32, "drawn": 64}  # ramps per step
DEPARTURE = "departure_head."
LEARNT = ("heads_in.", "heads_out.", DEPARTURE, "regressor.")


@dataclass(frozen=True)
class Config:
    """What a run does."""

    run: Path = required("folder of a finished run of training/finetune.py --mode probe")
    data: str = required("the rated data set of that run, NAME=ROOT, as clive=ChallengeDB_release")
    photos: Path = required("folder of photos: those that are attacked, and those whose ramps the run held out")
    out: Path = opt(Path("runs/adversarial_heads"), "where everything goes")
    protocol: Literal["splits", "all", "both"] = opt("both", "the run's random splits, its net of every photo, or both")
    splits: int = opt(5, "how many of the run's splits")
    rounds: int = opt(2, "searches for examples, each against the newest heads")
    photos_per_round: int = opt(256, "training photos in each of them; at most all")
    epsilons: tuple[int, ...] = opt((2, 4), "largest change of a pixel value, in 1/255, drawn for each example")
    steps: int = opt(5, "of PGD in the search")
    tempting_steps: int = opt(10, "of the search for departures that the score likes; 0: none is made")
    tuned_renders: int = opt(20, "of Adam through the ISP, which tunes pristine photos for the score; 0: none is tuned")
    tuned_side: int = opt(192, "px of these photos, squares")
    epochs: int = opt(70, "over the fold's training photos, after each search")
    batch: int = opt(64, "clean crops per step; as many examples")
    lr: float = opt(1e-4, "AdamW: peak learning rate; falls to 0 along a cosine")
    departure_lr: float = opt(1e-3, "the same of the departure head, where the run's nets have one")
    consistency_weight: float = opt(0.1, "weight of |change of the score's logit| from a crop to its example")
    drift_weight: float = opt(0.2, "weight of the attributes' squared change on clean crops, in their own scale")
    attacked: int = opt(24, "photos that are attacked before and after, evenly spaced over the files; 2 or more")
    attacked_pattern: str = opt("bsds_*", "which files of --photos these are")
    side: int = opt(256, "they are reduced to this shorter edge and cut square, px")
    budgets: tuple[int, ...] = opt((2, 8), "of those attacks, in 1/255")
    attack_steps: int = opt(10, "of PGD in those attacks")
    ramp_photos: int = opt(6, "held-out photos whose ramps the heads must follow; 0: none")
    limit: float = opt(0.005, "the SROCC that robustness may cost")
    ramp_limit: float = opt(0.01, "the SROCC that the worst head may lose on its ramp")
    chunk: int = opt(2, "images at once in the encoder, each 110 MiB with gradients at 320 px; more for a GPU")
    seed: int = opt(0, "of everything random but the splits")
    smoke: bool = opt(False, "a size for tests: one split, few photos, two steps")

    def __post_init__(self) -> None:
        for name in ("splits", "rounds", "photos_per_round", "steps", "epochs", "batch", "attack_steps", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(self, name)}")
        if self.attacked < 2 or self.ramp_photos < 0:
            raise ValueError(f"--attacked: expected at least 2, got {self.attacked}, --ramp-photos {self.ramp_photos}")
        if min(*self.epsilons, *self.budgets) < 1 or len(set(self.budgets)) < len(self.budgets):
            raise ValueError("--epsilons, --budgets: expected positive numbers, each budget once")


class Job(NamedTuple):
    """One fold."""

    config: Config
    run: ProbeRun
    fold: Fold
    start: AttributeNet  # as the run left it
    net: AttributeNet  # as it is being trained
    statistics: KeptStatistics
    squares: Tensor  # (M, 3, side, side) that are attacked
    followed: list[Path]  # held-out photos whose ramps are followed
    drawn: dict[str, Tensor]  # departures: drawn_ramps (G, L, D) and drawn_levels (G, L); empty: none

    @property
    def kept(self) -> Path:
        """Where it stands: what a killed run goes on with."""
        return self.config.out / self.fold.name / "kept"

    @property
    def slope(self) -> float:
        """The gap of score logits asked along a harmful ramp; runs from before it was a setting had 1."""
        return float(self.run.settings.get("quality_slope", 1.0))

    def standardised(self, raw: Tensor) -> Tensor:
        """Raw statistics -> what the heads read."""
        return (raw.to(self.net.pooled_mean.device).float() - self.net.pooled_mean) / self.net.pooled_std

    def logit(self, raw: Tensor) -> Tensor:
        """Raw statistics (B, D) -> score logits (B,)."""
        return self.read(raw)[0]

    def read(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Raw statistics (B, D) -> score logits (B,) and raw attributes (B, 5)."""
        return self.net.read(self.standardised(raw))


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and work."""
    run_command({"": adversarial_heads}, argv, __doc__)


def adversarial_heads(config: Config) -> None:
    """Work on every fold that has no result yet, then print their table."""
    if config.smoke:
        config = replace(config, splits=1, photos_per_round=4, steps=2, epochs=2, batch=8, attacked=2, side=64,
                         budgets=config.budgets[:1], ramp_photos=1, tuned_renders=2, tuned_side=64)  # fmt: skip
    run = probe_run.read_run(config.run, config.data, protocol=config.protocol, splits=config.splits)
    nets = probe_run.read_nets(run)
    squares = probe_run.unseen_squares(run, config.photos, config.attacked_pattern, config.attacked, config.side)
    claim_folder(config.out, config)
    probe_run.claim_start(config.out, run, nets)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    statistics = KeptStatistics(nets[0].net.to(device), config.out / "statistics", config.chunk)
    followed = [config.photos / name for name in run.held_out[: config.ramp_photos]]
    for fold, fold_net in zip(run.plan.folds, nets, strict=True):
        if not (config.out / fold.name / "metrics.json").exists():
            start = fold_net.net.to(device)
            with torch.random.fork_rng(devices=[]):
                drawn = draw_departures(config, run, start, statistics)
                job = Job(config, run, fold, start, copy.deepcopy(start), statistics, squares, followed, drawn)
                run_fold(job, fold_net.provenance)
    finish(config, run)


def draw_departures(config: Config, run: ProbeRun, net: AttributeNet, kept: KeptStatistics) -> dict[str, Tensor]:
    """Ramps of drawn departures, the same for all folds; none without a head that learns them."""
    if net.departure_head is None:
        return {}
    photos = [config.photos / name for name in run.ramp_photos]
    groups = DepartureGroups(photos, net.config.crop, run.levels.shape[1], config.seed)
    ramps = kept.of_ramps(groups, config.out / "departures.safetensors") if photos else {}
    return {f"drawn_{name}": value for name, value in ramps.items()}


def run_fold(job: Job, provenance: dict[str, Any]) -> None:
    """Measure, search and train in turn, measure again, write."""
    folder, rounds = job.kept.parent, []
    before = measure(job, "before")
    pool: dict[str, Tensor] = {}
    for number in range(1, job.config.rounds + 1):
        examples = search(job, number)
        up, gain = examples["way"] > 0, examples["gain"]
        change = {"up": gain[up].mean().item(), "down": gain[~up].mean().item() if len(gain[~up]) else 0.0}
        change |= {kind: examples[f"{kind}_gain"].mean().item() for kind in GROUPS if f"{kind}_gain" in examples}
        rounds.append({"round": number, "examples": len(gain), **change})
        pool = {name: torch.cat([pool[name], value]) if pool else value for name, value in examples.items()}
        train(job, pool, number)
    after = measure(job, "after")
    result = {"fold": job.fold.name, "n_train": len(job.fold.train), "rounds": rounds, "before": before, "after": after}
    here = ("run", "data", "photos", "out")  # what only this machine knows
    record = {"config": {key: value for key, value in as_dict(job.config).items() if key not in here}}
    job.net.save(folder / "model.safetensors", provenance | {"adversarial_heads": record | {"metrics": result}})
    write_json(folder / "metrics.json", result)
    shutil.rmtree(job.kept)


def measure(job: Job, when: Literal["before", "after"]) -> dict[str, Any]:
    """What the net is worth: on its test side, under attack, on ramps."""
    path = job.kept / f"{when}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))

    @torch.no_grad()
    def score(image: Tensor, view: View) -> Tensor:
        return torch.sigmoid(job.read(job.statistics(image, view)[0])[0]).mean().reshape(1)

    @torch.no_grad()
    def attributes(images: Tensor) -> Tensor:
        raw = job.read(job.statistics(images, "full")[:, 0])[1]
        return squash((raw - job.net.attribute_shift) / job.net.attribute_scale)

    result: dict[str, Any] = {}
    if job.fold.test:
        edge = job.net.config.shorter_edge
        tested = evaluate_fold(job.run.plan, job.fold, score, shorter_edge=edge, views=("five_crop",))
        result["five_crop"] = tested["five_crop"]
    if job.followed:
        table = follow_ramps(attributes, job.followed)
        result["ramp_srocc"] = {name: table.srocc[i][i] for i, name in enumerate(ATTRIBUTES)}
    result |= attack(job, when)
    write_json(path, result)
    return result


def attack(job: Job, when: Literal["before", "after"]) -> dict[str, Any]:
    """What PGD gains on each photo at each budget; the photos it makes are kept, rounded to 8 bits.

    For the net after, also what those made before gain.
    """
    config, squares, device = job.config, job.squares, job.net.pooled_mean.device
    shape = job.net.config

    def logit(images: Tensor) -> Tensor:  # of the full view, as evals/attack.py has it
        seen = look(images, "full", shorter_edge=shape.shorter_edge, crop=shape.crop)[:, 0]
        return job.read(job.statistics.pool(seen))[0]

    def score(images: Tensor) -> dict[str, NDArray[np.float64]]:
        logits = score_all(logit, images, batch=config.chunk, device=device)
        return {"logit": logits, "score": expit(logits)}

    def attacked(budget: int) -> dict[str, Tensor]:
        parts = squares.split(config.chunk)
        made = [pgd(logit, part.to(device), budget / 255, config.attack_steps) for part in parts]
        return {"attacked": (torch.cat(made).cpu() * 255).round().byte()}

    def gains(made: dict[str, Tensor]) -> dict[str, list[float]]:
        after = score(made["attacked"].float() / 255)
        return {scale: (after[scale] - clean[scale]).tolist() for scale in after}

    clean, attacks = score(squares), []
    for budget in tqdm(config.budgets, f"{job.fold.name}: attacks {when}", leave=False):
        path = job.kept / f"{when}-{budget}.safetensors"
        attacks.append({"budget": budget, "gains": gains(keep(path, partial(attacked, budget)))})
        if when == "after":
            attacks[-1]["transferred"] = gains(load_file(job.kept / f"before-{budget}.safetensors"))
    sd = {scale: float(np.std(values, ddof=1)) or 1.0 for scale, values in clean.items()}
    return {"clean": clean["score"].tolist(), "sd": sd, "attacks": attacks}


def search(job: Job, number: int) -> dict[str, Tensor]:
    """Examples of one round against the newest heads: of `push`, and with prefixed keys of `tempt` and `tune`."""
    config, seed = job.config, job.config.seed
    rng = np.random.default_rng([seed, number])
    rows = rng.permutation(job.fold.train)[: config.photos_per_round].tolist()
    names = rng.permutation(job.run.ramp_photos)[: config.photos_per_round].tolist()
    pool = in_parts(job.kept, f"round{number}", rows, partial(push, job), seed)
    for kind, find, wanted in (("tempted", tempt, config.tempting_steps), ("tuned", tune, config.tuned_renders)):
        if names and wanted:
            ramps = in_parts(job.kept, f"{kind}{number}", names, partial(find, job), seed)
            pool |= {f"{kind}_{name}": value for name, value in ramps.items()}
    return pool


def push(job: Job, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
    """A random crop of each photo pushed up, every second one also down."""
    crops = [probe_run.draw_crop(job.run, row, rng, job.net) for row in rows]
    examples = pushed(
        torch.stack(crops).to(job.net.pooled_mean.device), job.statistics.pool, job.logit, rng,
        epsilons=job.config.epsilons, steps=job.config.steps, chunk=job.config.chunk,
    )  # fmt: skip
    return examples | {"row": torch.tensor(rows)[examples["index"]]}


def tempt(job: Job, names: Sequence[str], rng: np.random.Generator) -> dict[str, Tensor]:
    """A ramp from a random crop of each pristine photo to the departure that the net likes best."""
    crops = torch.stack([draw_pristine(job.config.photos / name, job.net.config.crop, rng) for name in names])
    steps, levels, chunk = job.config.tempting_steps, job.run.levels.shape[1], job.config.chunk
    crops = crops.to(job.net.pooled_mean.device)
    return tempting(crops, job.statistics.pool, job.logit, rng, steps=steps, levels=levels, chunk=chunk)


def tune(job: Job, names: Sequence[str], rng: np.random.Generator) -> dict[str, Tensor]:
    """A ramp from a square of each pristine photo to what tuning an ISP for the net makes of it."""
    photos, side, renders = job.config.photos, job.config.tuned_side, job.config.tuned_renders
    squares = torch.stack([draw_pristine(photos / name, side, rng, most=4) for name in names])
    squares, levels, chunk = squares.to(job.net.pooled_mean.device), job.run.levels.shape[1], job.config.chunk
    return tuned(squares, job.statistics.pool, job.logit, rng, renders=renders, levels=levels, chunk=chunk)


def train(job: Job, pool: dict[str, Tensor], number: int) -> None:
    """Put the heads and the regressor of a round into the net, trained unless they are kept."""

    def learnt() -> dict[str, Tensor]:
        job.net.load_state_dict(job.start.state_dict())
        fit(job, pool, number)
        return {name: value for name, value in job.net.state_dict().items() if name.startswith(LEARNT)}

    heads = keep(job.kept / f"heads{number}.safetensors", learnt)
    job.net.load_state_dict(job.net.state_dict() | heads)


def fit(job: Job, pool: dict[str, Tensor], number: int) -> None:
    """Train them on kept statistics."""
    config, rows = job.config, torch.tensor(job.fold.train)
    torch.manual_seed(config.seed)  # dropout
    learnt = {name: value.requires_grad_() for name, value in job.net.named_parameters() if name.startswith(LEARNT)}
    apart = [[learnt[name] for name in learnt if name.startswith(DEPARTURE) == yes] for yes in (False, True)]
    optimizer = torch.optim.AdamW([{"params": part} for part in apart], weight_decay=job.run.settings["weight_decay"])
    generator = torch.Generator().manual_seed(config.seed)
    steps = config.epochs * max(1, len(rows) // config.batch)
    for step in tqdm(range(steps), f"{job.fold.name}: train {number}", leave=False):
        set_rates(optimizer, [config.lr, config.departure_lr], step / steps)
        drawn = rows[torch.randperm(len(rows), generator=generator)[: config.batch]]
        loss = clean_loss(job, drawn, generator) + examples_loss(job, pool, generator)
        if not loss.isfinite():
            raise SystemExit(f"{job.fold.name}: the loss is {loss.item()} at step {step} after search {number}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    job.net.eval().requires_grad_(False)


def clean_loss(job: Job, rows: Tensor, generator: torch.Generator) -> Tensor:
    """The run's own losses on crops of photos and on ramps, and the attributes' drift from where the run left them."""
    run, settings, net = job.run, job.run.settings, job.net
    mos = run.plan.mos[rows].to(net.pooled_mean)
    views = run.views[rows, torch.randint(run.views.shape[1], rows.shape, generator=generator)]
    loss = score_loss(net.train().read(job.standardised(views))[0], mos)
    if run.kinds:
        groups = torch.randperm(len(run.ramps), generator=generator)[: GROUPS["run"]]
        level, ramp = run.levels[groups].to(mos), groups % run.kinds
        logit, raw = job.read(run.ramps[groups].flatten(0, 1))
        heads, score = ramp_losses(logit, raw, level, ramp, settings["margin"], settings["crosstalk"], job.slope)
        loss = loss + settings["ramp_weight"] * heads + settings["quality_weight"] * score
    net.eval()  # dropout would hide a small drift
    drift = (job.read(views)[1] - job.start.read(job.standardised(views))[1]) / net.attribute_scale
    return loss + job.config.drift_weight * drift.square().mean()


def examples_loss(job: Job, pool: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Pushed crops score near what they were made of; tempting departures below the photo, the more the further."""
    config, net = job.config, job.net
    index = torch.randint(len(pool["row"]), (config.batch,), generator=generator)
    net.eval()  # dropout would hide what the attack did
    moved = job.logit(pool["attacked"][index]) - job.logit(pool["clean"][index])
    loss = config.consistency_weight * moved.abs().mean()
    pool = pool | job.drawn
    for kind, count in GROUPS.items():
        if f"{kind}_ramps" in pool:
            ramps, levels = pool[f"{kind}_ramps"], pool[f"{kind}_levels"]
            groups = torch.randint(len(ramps), (count,), generator=generator)
            level = levels[groups].to(net.pooled_mean)
            logit = net.train().read(job.standardised(ramps[groups].flatten(0, 1)))[0].view_as(level)
            ranking = quality_ranking(logit, level, torch.ones(count, dtype=torch.bool), job.slope)
            loss = loss + job.run.settings["quality_weight"] * ranking
    return loss


def finish(config: Config, run: ProbeRun) -> None:
    """Print and write the tables and the verdict."""
    results = [json.loads((config.out / fold.name / "metrics.json").read_text()) for fold in run.plan.folds]
    protocol = (
        f"white-box PGD of {config.attack_steps} steps on {config.attacked} photos, {config.side} px square, in full; "
        "gains in standard deviations over the clean photos, mean over folds [95 % interval over photos]"
    )
    limits = {"limit": config.limit, "ramp_limit": config.ramp_limit}
    summary, lines = robustness_table(results, in_domain=run.plan.protocol, seed=config.seed, **limits)
    print("\n".join([protocol, *lines]))
    write_json(config.out / "metrics.json", {"protocol": protocol, **summary, "folds": results})
    shutil.rmtree(config.out / "statistics", ignore_errors=True)
    (config.out / "departures.safetensors").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
