"""Compare ways of tuning an ISP on the same images: a trained policy, and search picture by picture.

    python envs/compare_isp.py --photos photos --policy runs/train_isp/policy --out runs/compare_isp
    python envs/compare_isp.py --photos photos --policy runs/train_isp/policy --recover --out runs/recover
    python envs/compare_isp.py ab runs/compare_isp --a policy --b expert --out runs/ab
    python evals/sd_pairs.py tally alice.csv bob.csv --out runs/ab_judged

One table: the camera's default, random search, CMA-ES, Adam through the ISP, and the policy, each at its budget of
renders per image (attriqa_envs/search.py): what they gain in the reward that they maximise, with 95 % bootstrap
intervals over images, what held-out judges say that nothing optimised (--judges), attributes, clipped and
over-saturated pixels, seconds per image, and an alarm where the score rises while a judge falls. Images that the policy
was trained on are left out. With --fivek, the expert's renderings are judged too. Judges are sharpness, noisiness,
contrast, colorfulness (attriqa/signal_measures.py), judge, default, a checkpoint, niqe:FILE (from 192 px on) and
brisque:FOLDER (attriqa/judges.py).

--recover instead perturbs images whose original is known (exposure, white balance, contrast, noise), tunes them, and
tells how near to the original each method comes; "ceiling" is Adam on the error itself: what the ISP can undo at all.

Writes OUT/metrics.json, OUT/page.html (every rendering, with a slider) and OUT/pictures. A killed run goes on with the
same command. ab makes a page of OUT/pictures on which people say, blind, which of two they prefer, and saves answers
as CSV; evals/sd_pairs.py tally counts these: how often the first wins, with Wilson's interval.
"""

import csv
import fnmatch
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from tqdm import tqdm

from attriqa import QualityReward
from attriqa.config import claim_folder, opt, required, run_command
from attriqa.files import as_dict, atomic_path, write_json
from attriqa.images import ImageError
from attriqa.pages.ab import ABPair, write_ab_page
from attriqa_envs import load_policy
from attriqa_envs.agents.policy import FILE, Policy
from attriqa_envs.agents.search import Found, Method, Objective, adam, blind, search
from attriqa_envs.evaluation import REWARDS, Judge, make_judge, make_reward, recovery
from attriqa_envs.evaluation.page import Item, Version, write_compare_page
from attriqa_envs.evaluation.records import DEFAULT, EXPERT, Record, Records, facts_of, summarize, table_text, tell
from attriqa_envs.evaluation.recovery import perturb
from attriqa_envs.fivek import FiveK
from attriqa_envs.fivek.expert import expert_square
from attriqa_envs.isp import KEYS, render, table_hash
from attriqa_envs.raw.cache import RenditionCache
from attriqa_envs.raw.find import find_images
from attriqa_envs.raw.image_sets import Group, load_group, seeds_of
from attriqa_envs.tuning import TuningTask

CEILING, ORIGINAL = "ceiling", "original"
SHOWN = (ORIGINAL, DEFAULT, "policy", "adam", EXPERT, CEILING, "cmaes", "random")  # the order of the page
UNTUNED: Record = {"renders": None, "seconds": None, "params": None, "curve": None}


@dataclass(frozen=True)
class Config:
    """What is compared. A budget counts renders per image besides the default; the policy's is its horizon."""

    photos: Path | None = opt(None, "folder of photos, and the folders in it; each is turned into a plausible raw file")
    photo_pattern: str = opt("*", "which files of --photos are used, by name")
    raw: Path | None = opt(None, "instead: folder of raw files, and the folders in it")
    fivek: Path | None = opt(None, "instead: root of MIT-Adobe FiveK")
    expert: Literal["a", "b", "c", "d", "e"] = opt("c", "FiveK: whose renderings stand beside")
    images: int = opt(40, "images, drawn by --seed, at most")
    trained: bool = opt(False, "also images that the policy was trained on")
    policy: Path | None = opt(None, "folder of a trained policy; its task, and its size of pictures, are everyone's")
    methods: tuple[Literal["random", "cmaes", "adam"], ...] = opt(("random", "cmaes", "adam"), "besides the policy")
    random_renders: int = opt(20, "budget of random search")
    cmaes_renders: int = opt(20, "budget of CMA-ES")
    adam_renders: int = opt(100, "budget of Adam; each render also goes backward")
    recover: bool = opt(False, "perturb images with known originals, and tell how near to these each method comes")
    out: Path = opt(Path("runs/compare_isp"), "where everything goes")
    cache: Path | None = opt(None, "folder that keeps decoded files; OUT/cache unless given")
    model: str = opt("robust", f"what is optimised: {REWARDS}")
    judges: tuple[str, ...] = opt(("sharpness", "noisiness"), "held-out, which nothing optimises; see above")
    side: int | None = opt(None, "px of the pictures, central squares; the policy's, or 192")
    parameters: tuple[str, ...] | None = opt(None, "without a policy: ISP parameters that may change; all unless given")
    distance_weight: float = opt(TuningTask.distance_weight, "without a policy: reward per squared distance")
    clipping_weight: float = opt(TuningTask.clipping_weight, "without a policy: reward per share of clipped pixels")
    batch: int = opt(16, "pictures rendered and scored at once")
    device: str = opt("cpu", "cpu or cuda")
    seed: int = opt(0, "of everything random")
    smoke: bool = opt(False, "a size for tests: two images of 64 px, three renders")

    def __post_init__(self) -> None:
        if sum(source is not None for source in (self.photos, self.raw, self.fivek)) != 1:
            raise ValueError("--photos, --raw, --fivek: expected one of them")
        for name in ("images", "random_renders", "cmaes_renders", "adam_renders", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(self, name)}")
        if self.policy is not None and self.parameters is not None:
            raise ValueError("--parameters: expected none with --policy, which has its own")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"--device: expected cpu, as PyTorch finds no GPU; got {self.device}")

    @property
    def root(self) -> Path:
        """The folder of the images."""
        root = self.photos or self.raw or self.fivek
        assert root is not None
        return root


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


class Setup(NamedTuple):
    """What all images share."""

    task: TuningTask
    side: int
    reward: QualityReward
    judges: dict[str, Judge]
    policy: Policy | None


def set_up(config: Config) -> Setup:
    """Everything that the command line names besides the images."""
    policy = None if config.policy is None else load_policy(config.policy, device=config.device)
    if policy is not None and policy.task.mode == "tools":
        raise ValueError(f"--policy: expected one that sets ISP parameters; {config.policy} chooses tools (dqn)")
    task = TuningTask(
        parameters=config.parameters, distance_weight=config.distance_weight, clipping_weight=config.clipping_weight
    )
    task = task if policy is None else policy.task
    trained = 192 if policy is None else int(policy.about.get("config", {}).get("side", 192))
    reward = make_reward(config.model, device=config.device)
    names = () if config.recover else dict.fromkeys(config.judges)
    judges = {name: make_judge(name, device=config.device, optimised=reward) for name in names}
    return Setup(task, config.side or trained, reward, judges, policy)


def load_images(config: Config, setup: Setup) -> tuple[Group, dict[str, Path]]:
    """The images of the command line, and the expert's renderings of them, by file."""
    experts: dict[str, Path] = {}
    if config.fivek is not None:
        photos = FiveK(config.fivek).photos
        sources = [photo.source for photo in photos]
        theirs = ((photo.dng.relative_to(config.root), photo.experts.get(config.expert)) for photo in photos)
        experts = {str(name): path for name, path in theirs if path is not None and not config.recover}
    elif config.raw is not None:
        sources = find_images(config.root, kind="raw")
    else:
        found = find_images(config.root, kind="photo")
        sources = [source for source in found if fnmatch.fnmatch(source.path.name, config.photo_pattern)]
        if not sources:
            raise ValueError(f"--photo-pattern: expected one that photos have; got none of {len(found)}")
    learnt = {} if setup.policy is None or config.trained else setup.policy.about.get("images", {})
    group = load_group(
        sources,
        RenditionCache(config.cache or config.out / "cache", setup.side),
        root=config.root,
        trained=learnt.get("train", ()),
        most=2 if config.smoke else config.images,
        seed=config.seed,
        unprocessed=config.photos is not None and not config.recover,
        device=config.device,
    )
    for line in group.left_out:
        tqdm.write(f"left out: {line}", file=sys.stderr)
    return group, {file: path for file, path in experts.items() if file in group.files}


# The comparison.


def compare(config: Config) -> None:
    """Tune every image by every method, then write what came of it."""
    if config.smoke:
        config = replace(config, side=64, random_renders=3, cmaes_renders=3, adam_renders=3)
    setup = set_up(config)
    group, experts = load_images(config, setup)
    claim_folder(config.out, config)
    claim_identity(config, setup, group)
    methods = [*config.methods, *(["policy"] if setup.policy else []), *([CEILING] if config.recover else [])]
    groups = [group]
    if config.recover:
        groups = perturb(group, recovery.PERTURBATIONS[: 2 if config.smoke else None], config.seed)
    with tqdm(total=len(groups) * len(group.files) * len(methods), unit="result", disable=None) as bar:
        for some in groups:
            work(config, setup, some, methods, bar)
    judge_experts(config, setup, group, experts)
    rows, text = recovered(config, groups, methods) if config.recover else compared(config, group, methods)
    protocol = protocol_of(config, setup, group)
    title = "Recovery of known pictures" if config.recover else "Ways of tuning an ISP"
    items = (item for some in groups for item in items_of(config, some, methods))
    write_compare_page(config.out / "page.html", items, title=title, notes=[protocol], table=text)
    result = {"protocol": protocol, "rows": rows, "files": group.files, "left_out": group.left_out}
    write_json(config.out / "metrics.json", result | {"config": as_dict(config)})
    print(f"{protocol}\n\n{text}\n\n{config.out / 'page.html'}")


@dataclass(frozen=True)
class Identity:
    """What must not change between runs of one folder."""

    reward: str
    policy: str | None
    isp_parameters: str
    files: tuple[str, ...]


def claim_identity(config: Config, setup: Setup, group: Group) -> None:
    """Refuse to go on where weights or files have changed: two runs would stand in one table."""
    digest = None if config.policy is None else hashlib.sha256((config.policy / FILE).read_bytes()).hexdigest()[:16]
    claim_folder(config.out / "records", Identity(setup.reward.identity, digest, table_hash(), group.files))


def work(config: Config, setup: Setup, group: Group, methods: Sequence[str], bar: "tqdm[Any]") -> None:
    """Make the records of a group that are not there yet, with their pictures."""
    records = Records(config.out, group.name)
    for first in range(0, len(group.files), config.batch):
        rows = range(first, min(first + config.batch, len(group.files)))
        for method in (DEFAULT, *methods):
            todo = [row for row in rows if not records.has(method, group.files[row])]
            if todo:
                tune(config, setup, group, method, todo)
            bar.update(len(rows) if method != DEFAULT else 0)
        todo = [row for row in rows if group.known is not None and not records.has(ORIGINAL, group.files[row])]
        if todo and group.known is not None:
            keep(config, setup, group, ORIGINAL, todo, group.known[todo], [dict(UNTUNED) for _ in todo])


def tune(config: Config, setup: Setup, group: Group, method: str, rows: list[int]) -> None:
    """Tune some images by one method, and keep what came of it."""
    linear, task = group.linear[rows], setup.task
    begun = time.perf_counter()
    if method == DEFAULT:
        renders = 0
        objective = Objective(linear, blind(setup.reward), task, batch=config.batch)
        every = torch.arange(len(rows), device=linear.device)
        value = objective.evaluate(objective.start.repeat(len(rows), 1), every)
        found = Found(torch.zeros(len(rows), len(KEYS)), value[:, None].double().numpy(force=True))
    elif method == CEILING:
        assert group.known is not None
        renders = config.adam_renders
        free = TuningTask(parameters=task.parameters, distance_weight=0.0, clipping_weight=0.0)
        found = adam(Objective(linear, recovery.toward(group.known[rows]), free, batch=config.batch), renders)
    else:
        budgets = {"random": config.random_renders, "cmaes": config.cmaes_renders, "adam": config.adam_renders}
        renders = budgets.get(method, task.steps)
        seeds = seeds_of(config.seed, [group.files[row] for row in rows])
        act = None if setup.policy is None else setup.policy.act
        how = cast(Method, method)
        found = search(how, linear, setup.reward, task, renders=renders, seeds=seeds, act=act, batch=config.batch)
    seconds = (time.perf_counter() - begun) / len(rows)
    with torch.no_grad():
        pictures = render(linear.float(), found.params.to(linear.device))
    # The ceiling's curve is of another thing than the reward.
    curves = [None] * len(rows) if method == CEILING else found.curve.tolist()
    about: list[Record] = [
        {"renders": renders, "seconds": seconds, "params": dict(zip(KEYS, params, strict=True)), "curve": curve}
        for params, curve in zip(found.params.tolist(), curves, strict=True)
    ]
    keep(config, setup, group, method, rows, pictures, about)


def keep(
    config: Config, setup: Setup, group: Group, method: str, rows: list[int], pictures: Tensor, about: list[Record]
) -> None:
    """Judge renderings and write them, each record after its picture."""
    told = tell(pictures, setup.reward, setup.judges)
    off = None if group.known is None else recovery.errors(pictures, group.known[rows])
    for place, row in enumerate(rows):
        record = {**about[place], "told": told[place]} | ({} if off is None else {"error": off[place]})
        Records(config.out, group.name).write(method, group.files[row], record, pictures[place])


def judge_experts(config: Config, setup: Setup, group: Group, experts: dict[str, Path]) -> None:
    """Records of the expert's renderings; one that cannot be read is told and left out."""
    for file, path in experts.items():
        if Records(config.out, group.name).has(EXPERT, file):
            continue
        try:
            picture = expert_square(path, setup.side).to(config.device)
        except ImageError as error:
            tqdm.write(f"left out: {error}", file=sys.stderr)
            continue
        keep(config, setup, group, EXPERT, [group.files.index(file)], picture, [dict(UNTUNED)])


# Results.


def protocol_of(config: Config, setup: Setup, group: Group) -> str:
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


def compared(config: Config, group: Group, methods: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """The table."""
    records = Records(config.out, group.name)
    kept = {
        method: [records.read(method, file) for file in group.files if records.has(method, file)]
        for method in (DEFAULT, *methods, EXPERT)
    }
    rows = summarize({method: some for method, some in kept.items() if some}, config.seed)
    return rows, table_text(rows)


def recovered(config: Config, groups: Sequence[Group], methods: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
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
            told = recovery.summarize(errors[DEFAULT], errors[method], config.seed)
            rows.append({"perturbation": group.name, "method": method, **told, **known, "score_after": scores[method]})
    return rows, recovery.table_text(rows)


def items_of(config: Config, group: Group, methods: Sequence[str]) -> Iterator[Item]:
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
