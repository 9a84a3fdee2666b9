"""Compare ways of tuning an ISP on the same images: a trained policy, and search picture by picture.

    python envs/compare_isp.py --photos photos --policy runs/train_isp/policy --out runs/compare_isp
    python envs/compare_isp.py --photos photos --policy runs/train_isp/policy --recover --out runs/recover
    python envs/compare_isp.py ab runs/compare_isp --a policy --b expert --out runs/ab
    python evals/sd_pairs.py tally alice.csv bob.csv --out runs/ab_judged

One table: the camera's default, random search, CMA-ES, Adam through the ISP, and the policy, each at its budget of
renders per image (attriqa_envs/search.py): what they gain in the reward that they maximise, with 95 % bootstrap
intervals over images, what held-out judges say that nothing optimised (--judges), attributes, clipped and
over-saturated pixels, seconds per image, and an alarm where the score rises while a judge falls. Images that the policy
was trained on are left out. With --fivek, the expert's renderings are measured too. Judges are sharpness, noisiness,
contrast, colorfulness (attriqa/signal_measures.py), judge, default, a checkpoint, niqe:FILE (from 192 px on) and
brisque:FOLDER (attriqa/judges.py).

--recover instead perturbs images whose original is known (exposure, white balance, contrast, noise), tunes them, and
tells how near to the original each method comes; "ceiling" is Adam on the error itself: what the ISP can undo at all.

Writes OUT/metrics.json, OUT/page.html (every rendering, with a slider) and OUT/pictures. A killed run goes on with the
same command. ab makes a page of OUT/pictures on which people say, blind, which of two they prefer, and saves answers
as CSV; evals/sd_pairs.py tally counts these: how often the first wins, with Wilson's interval.
"""

import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast

import torch
from torch import Tensor
from tqdm import tqdm

from attriqa.config import check_least, claim_folder, opt, required, run_command
from attriqa.files import as_dict, atomic_path, write_json
from attriqa.images import ImageError
from attriqa.judges import Judge
from attriqa.pages.ab import ABPair, write_ab_page
from attriqa_envs.agents.search import Method, Objective, adam
from attriqa_envs.evaluation import make_judges, recovery
from attriqa_envs.evaluation.page import Item, Version, write_compare_page
from attriqa_envs.evaluation.records import (
    DEFAULT,
    EXPERT,
    Record,
    Records,
    facts_of,
    measure,
    table_of_methods,
    table_text,
)
from attriqa_envs.evaluation.setup import (
    TRAINED_SIDE,
    Identity,
    ImageOptions,
    PolicyOptions,
    Setup,
    report_left_out,
    set_up,
)
from attriqa_envs.fivek import FiveK
from attriqa_envs.fivek.expert import expert_square
from attriqa_envs.isp import KEYS, render
from attriqa_envs.raw.image_sets import ImageGroup, read_unseen, seeds_of
from attriqa_envs.tuning import TuningTask

CEILING, ORIGINAL = "ceiling", "original"
SHOWN = (ORIGINAL, DEFAULT, "policy", "adam", EXPERT, CEILING, "cmaes", "random")  # the order of the page
UNTUNED: Record = {"renders": None, "seconds": None, "params": None, "curve": None}


@dataclass(frozen=True)
class Config(PolicyOptions, ImageOptions):
    """What is compared. A budget counts renders per image besides the default; the policy's is its horizon."""

    expert: Literal["a", "b", "c", "d", "e"] = opt("c", "FiveK: whose renderings stand beside")
    images: int = opt(40, "images, drawn by --seed, at most")
    trained: bool = opt(False, "also images that the policy was trained on")
    methods: tuple[Literal["random", "cmaes", "adam"], ...] = opt(("random", "cmaes", "adam"), "besides the policy")
    random_renders: int = opt(20, "budget of random search")
    cmaes_renders: int = opt(20, "budget of CMA-ES")
    adam_renders: int = opt(100, "budget of Adam; each render also goes backward")
    recover: bool = opt(False, "perturb images with known originals, and tell how near to these each method comes")
    out: Path = opt(Path("runs/compare_isp"), "where everything goes")
    judges: tuple[str, ...] = opt(("sharpness", "noisiness"), "held-out, which nothing optimises; see above")
    smoke: bool = opt(False, "a size for tests: two images of 64 px, three renders")

    def __post_init__(self) -> None:
        ImageOptions.__post_init__(self)
        super().__post_init__()
        check_least(self, images=1, random_renders=1, cmaes_renders=1, adam_renders=1)


@dataclass(frozen=True)
class Ab:
    """Make a page on which people say, blind, which of two renderings is better."""

    run: Path = required("folder of a comparison", bare=True)
    a: str = opt("policy", "whose renderings: a method of the comparison, default or expert")
    b: str = opt("default", "against whose")
    out: Path = opt(Path("runs/compare_isp_ab"), "where page.html, pairs.csv and metrics.json go")
    question: str = opt("Which picture do you prefer?", "asked of each pair")
    title: str = opt("Two pictures", "of the page")
    seed: int = opt(0, "of the order of the pairs and of their sides; another one for each person is best")
    smoke: bool = opt(False, "unused: this takes no time")


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, or make the page of a comparison's pictures."""
    run_command({"": compare, "ab": write_pack}, argv, __doc__)


# What is compared.


def load_images(config: Config, setup: Setup) -> tuple[ImageGroup, dict[str, Path]]:
    """The images of the command line, and the expert's renderings of them, by file."""
    learnt = {} if setup.policy is None or config.trained else setup.policy.about.get("images", {})
    group = read_unseen(
        config.find(),
        config.renditions(setup.side),
        root=config.root,
        trained=learnt.get("train", ()),
        most=2 if config.smoke else config.images,
        seed=config.seed,
    )
    report_left_out(group.left_out)
    if config.photos is not None and not config.recover:
        group = group.unprocessed(seeds_of(config.seed, group.files))
    experts = {}
    if config.fivek is not None and not config.recover:
        photos = {str(photo.dng.relative_to(config.root)): photo.experts for photo in FiveK(config.fivek).photos}
        experts = {file: photos[file][config.expert] for file in group.files if config.expert in photos[file]}
    return group.to(config.device), experts


# The comparison.


def compare(config: Config) -> None:
    """Tune every image by every method, then write what came of it."""
    if config.smoke:
        config = replace(config, side=64, random_renders=3, cmaes_renders=3, adam_renders=3)
    setup = set_up(config, side=TRAINED_SIDE)
    judges = {} if config.recover else make_judges(config.judges, setup.reward, device=config.device)
    group, experts = load_images(config, setup)
    claim_folder(config.out, config)
    claim_folder(config.out / "records", Claim(**vars(setup.identity), files=group.files))
    methods = [*config.methods, *(["policy"] if setup.policy else []), *([CEILING] if config.recover else [])]
    groups = [group]
    if config.recover:
        groups = recovery.perturb(group, recovery.PERTURBATIONS[: 2 if config.smoke else None], config.seed)
    with tqdm(total=len(groups) * len(group.files) * len(methods), unit="result", disable=None) as bar:
        for some in groups:
            Work(config, setup, judges, some).run(methods, bar)
    Work(config, setup, judges, group).keep_experts(experts)
    rows, text = recovered(config, groups, methods) if config.recover else compared(config, group, methods)
    protocol = protocol_of(config, setup, group)
    title = "Recovery of known pictures" if config.recover else "Ways of tuning an ISP"
    items = (item for some in groups for item in items_of(config, some, methods))
    write_compare_page(config.out / "page.html", items, title=title, notes=[protocol], table=text)
    result = {"protocol": protocol, "rows": rows, "files": group.files, "left_out": group.left_out}
    write_json(config.out / "metrics.json", result | {"config": as_dict(config)})
    print(f"{protocol}\n\n{text}\n\n{config.out / 'page.html'}")


@dataclass(frozen=True)
class Claim(Identity):
    """What must not change between runs of one folder: or else two runs would stand in one table."""

    files: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """What is done with a group of images: each result is a record with its picture, kept as soon as it is there."""

    config: Config
    setup: Setup
    judges: dict[str, Judge]
    group: ImageGroup

    @property
    def records(self) -> Records:
        """Those of this group."""
        return Records(self.config.out, self.group.name)

    def run(self, methods: Sequence[str], bar: "tqdm[Any]") -> None:
        """Make the records that are not there yet; a batch goes through all methods before the next one begins."""
        files, originals = self.group.files, self.group.originals
        for first in range(0, len(files), self.config.batch):
            rows = range(first, min(first + self.config.batch, len(files)))
            for method in (DEFAULT, *methods, *([] if originals is None else [ORIGINAL])):
                todo = [row for row in rows if not self.records.has(method, files[row])]
                if todo and method == ORIGINAL and originals is not None:
                    self.keep(method, todo, originals[todo], [UNTUNED] * len(todo))
                elif todo:
                    self.tune(method, todo)
                bar.update(len(rows) if method in methods else 0)

    def tune(self, method: str, rows: list[int]) -> None:
        """Tune some images by one method."""
        config, task, linear = self.config, self.setup.task, self.group.linear[rows]
        begun = time.perf_counter()
        if method == CEILING:
            assert self.group.originals is not None
            renders, score = config.adam_renders, recovery.toward(self.group.originals[rows])
            free = TuningTask(parameters=task.parameters, distance_weight=0.0, clipping_weight=0.0)
            best = adam(Objective(linear, score, free, batch=config.batch), renders)
        else:
            budgets = {DEFAULT: 0, "policy": task.steps}
            renders = budgets[method] if method in budgets else getattr(config, f"{method}_renders")
            files = [self.group.files[row] for row in rows]
            best = self.setup.search(config, cast(Method, method), linear, files, renders=renders)
        seconds = (time.perf_counter() - begun) / len(rows)
        with torch.no_grad():
            pictures = render(linear.float(), best.params.to(linear.device))
        # The ceiling's curve is of another thing than the reward.
        curves = [None] * len(rows) if method == CEILING else best.curve.tolist()
        costs: list[Record] = [
            {"renders": renders, "seconds": seconds, "params": dict(zip(KEYS, params, strict=True)), "curve": curve}
            for params, curve in zip(best.params.tolist(), curves, strict=True)
        ]
        self.keep(method, rows, pictures, costs)

    def keep(self, method: str, rows: Sequence[int], pictures: Tensor, costs: Sequence[Record]) -> None:
        """Measure renderings and write them, each record after its picture."""
        records = [
            {**cost, "told": told}
            for cost, told in zip(costs, measure(pictures, self.setup.reward, self.judges), strict=True)
        ]
        if self.group.originals is not None:
            off = recovery.errors(pictures, self.group.originals[rows])
            records = [record | {"error": error} for record, error in zip(records, off, strict=True)]
        for row, record, picture in zip(rows, records, pictures, strict=True):
            self.records.write(method, self.group.files[row], record, picture)

    def keep_experts(self, experts: dict[str, Path]) -> None:
        """The expert's renderings; one that cannot be read is reported and left out."""
        for file, path in experts.items():
            if not self.records.has(EXPERT, file):
                try:
                    picture = expert_square(path, self.setup.side).to(self.config.device)
                except ImageError as error:
                    report_left_out([error])
                    continue
                self.keep(EXPERT, [self.group.files.index(file)], picture, [UNTUNED])


# Results.


def protocol_of(config: Config, setup: Setup, group: ImageGroup) -> str:
    """What the numbers are of."""
    made = "photos turned into raw files" if config.photos and not config.recover else "files"
    unseen = " that the policy was not trained on" if setup.policy is not None and not config.trained else ""
    which = "all ISP parameters" if setup.task.parameters is None else ", ".join(setup.task.parameters)
    what = (
        f"{len(group.files)} {made}{unseen}, central squares of {setup.side} px; reward: {setup.reward.identity}, "
        f"minus {setup.task.distance_weight:g} x squared distance and {setup.task.clipping_weight:g} x clipped share; "
        f"tuned: {which}"
    )
    if setup.policy is not None and setup.policy.about.get("weights of the reward") != setup.reward.identity:
        what += "; the policy was trained for another reward"
    return what + "; seconds are of one process, reward included"


def compared(config: Config, group: ImageGroup, methods: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """The table."""
    records = Records(config.out, group.name)
    kept = {
        method: [records.read(method, file) for file in group.files if records.has(method, file)]
        for method in (DEFAULT, *methods, EXPERT)
    }
    rows = table_of_methods({method: some for method, some in kept.items() if some}, config.seed)
    return rows, table_text(rows)


def recovered(config: Config, groups: Sequence[ImageGroup], methods: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """The table of each perturbation."""
    rows = []
    for group in groups:
        records = Records(config.out, group.name)
        kept = {
            method: [records.read(method, file) for file in group.files] for method in (ORIGINAL, DEFAULT, *methods)
        }
        errors = {method: [record["error"] for record in some] for method, some in kept.items()}
        scores = {method: fmean(record["told"]["score"] for record in some) for method, some in kept.items()}
        known = {"score_original": scores[ORIGINAL], "score_before": scores[DEFAULT]}
        for method in methods:
            row = recovery.mean_errors(errors[DEFAULT], errors[method], config.seed)
            rows.append({"perturbation": group.name, "method": method, **row, **known, "score_after": scores[method]})
    return rows, recovery.table_text(rows)


def items_of(config: Config, group: ImageGroup, methods: Sequence[str]) -> Iterator[Item]:
    """What the page shows of each image."""
    records = Records(config.out, group.name)
    for file in group.files:
        versions = []
        for method in SHOWN:
            if not records.has(method, file):
                continue
            record = records.read(method, file)
            params = None if record["params"] is None else torch.tensor(list(record["params"].values()))
            versions.append(Version(method, records.picture(method, file), facts_of(record), params))
        best = "policy" if "policy" in methods else "adam"
        yield Item(f"{group.name}: {file}" if group.name else file, versions, right=best)


def write_pack(config: Ab) -> None:
    """The page of a blind comparison, and its pairs as CSV."""
    folders = {side: config.run / "pictures" / side for side in (config.a, config.b)}
    names = [{path.name for path in folder.glob("*.png")} for folder in folders.values()]
    both = sorted(names[0] & names[-1])
    if config.a == config.b or not both:
        held = ", ".join(sorted(path.name for path in (config.run / "pictures").glob("*"))) or "nothing"
        raise ValueError(
            f"--a, --b: expected two of whom {config.run} has pictures ({held}); got {config.a}, {config.b}"
        )
    pairs = [ABPair(name.removesuffix(".png"), f"{config.a}/{name}", f"{config.b}/{name}") for name in both]
    page = config.out / "page.html"
    write_ab_page(page, pairs, config.title, config.question, config.seed, folder=config.run / "pictures")
    with atomic_path(config.out / "pairs.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image_a", "image_b", "prompt"), *(pair[1:] for pair in pairs)])
    write_json(config.out / "metrics.json", {"pairs": len(pairs), "config": as_dict(config)})
    print(f"{len(pairs)} pairs, {config.a} against {config.b}, in {page}; people open it and save their answers; then:")
    print(f"python evals/sd_pairs.py tally ANSWERS.csv ... --out {config.out / 'judged'}")


if __name__ == "__main__":
    main()
