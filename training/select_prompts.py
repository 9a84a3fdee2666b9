"""Select the antonym prompts that make a CLIP model a teacher (ATTIQA, section 3.2).

    python training/select_prompts.py --task joint --photos photos --spaq SPAQ --out runs/prompts

Each attribute has 50 positive and 50 negative adjectives (attriqa/candidates.toml): 2,500 pairs. A pair scores an image
by the cosine to its positive prompt minus that to its negative one, and is itself scored by what --task asks for:

distortion: pristine photos are rendered at several levels of the attribute; SROCC of level and score, mean over photos
human: SROCC of the human score of the attribute and the pair's score, over the photos of SPAQ
joint: the sum of both

Every image and every adjective is encoded once. OUT/features holds the image features: a killed run goes on with the
same command. OUT/prompts.json has the score of every pair and the best, median and worst one of each attribute, for
CLIPTeacher(pairs=...); OUT/heatmap_*.png shows them; OUT/metrics.json holds every number printed.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import rankdata
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from attriqa.attributes import ATTRIBUTES, CANDIDATES, PROMPT_PAIRS, TEMPLATE, Candidates
from attriqa.config import claim_folder, opt, run_command
from attriqa.data.datasets import read_spaq
from attriqa.distortions import apply_ramp
from attriqa.evaluation import metrics
from attriqa.files import atomic_path, write_json
from attriqa.images import ImageError, find, read
from attriqa.training.teachers import CLIPEncoder

Floats = NDArray[np.float64]
_SLAB = 4_000_000  # differences ranked at a time: about 150 MB of temporaries


@dataclass(frozen=True)
class Config:
    """What a run does."""

    task: Literal["distortion", "human", "joint"] = opt("joint", "what a pair is scored by")
    photos: Path | None = opt(None, "folder of pristine photos; distortion and joint need it")
    photo_pattern: str = opt("*", "which files of --photos are used")
    photo_limit: int = opt(100, "how many of them, in the order of their names; 0: all")
    levels: int = opt(9, "renderings of a photo per attribute")
    spaq: Path | None = opt(None, "folder SPAQ, in its official layout; human and joint need it")
    spaq_edge: int = opt(512, "pixels: shorter edge that SPAQ's photos are read at")
    model: str = opt("ViT-B-16", "a model of open_clip: a name, hf-hub:ORG/REPO or local-dir:FOLDER")
    pretrained: str = opt("openai", "tag or checkpoint file; hf-hub: and local-dir: bring their own weights")
    positional_embedding: bool = opt(True, "keep it, at the model's own size; or images of any size without it")
    device: str = opt("auto", "a device of torch; auto: a GPU where there is one")
    batch: int = opt(64, "images that are encoded at once")
    workers: int = opt(2, "loading processes")
    chunk: int = opt(64, "photos whose features go into one file: what a killed run loses at most")
    out: Path = opt(Path("runs/select_prompts"), "where everything goes")
    seed: int = opt(0, "of the noise")
    smoke: bool = opt(False, "a size for tests: few photos, few levels")

    def __post_init__(self) -> None:
        for name, tasks in (("photos", ("distortion", "joint")), ("spaq", ("human", "joint"))):
            if self.task in tasks and getattr(self, name) is None:
                raise ValueError(f"--task {self.task} needs --{name}")
        for name, least in (("levels", 3), ("batch", 1), ("chunk", 1), ("photo_limit", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')}: expected {least} or more, got {getattr(self, name)}")


class Texts(NamedTuple):
    """The encoded candidates of one attribute: (P, D) and (Q, D)."""

    positive: Floats
    negative: Floats


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and select."""
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """Encode, score all pairs, write."""
    if config.smoke:
        config = replace(config, photo_limit=3, levels=4, spaq_edge=64, batch=16, chunk=2, workers=0)
    select(config, make_encoder)


def make_encoder(config: Config) -> CLIPEncoder:
    """The CLIP model that the flags name."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    pretrained = None if ":" in config.model else config.pretrained
    return CLIPEncoder(
        config.model, pretrained, positional_embedding=config.positional_embedding, device=torch.device(device)
    )


def select(config: Config, encoder_of: Callable[[Config], CLIPEncoder]) -> dict[str, Any]:
    """The whole run; returns what it writes to metrics.json."""
    photos = pristine(config) if config.task != "human" else []
    rated = Rated(config) if config.task != "distortion" else None
    encoder = encoder_of(config)
    claim_folder(config.out, config)
    tables: dict[str, dict[str, Floats]] = {name: {} for name in ATTRIBUTES}  # attribute -> task -> (P, Q)
    texts = {name: encode_candidates(encoder, CANDIDATES[name]) for name in ATTRIBUTES}
    record: dict[str, Any] = {"task": config.task, "encoder": encoder.identity, "template": TEMPLATE}
    if photos:
        source = Looks(photos, encoder.prepare, levels=config.levels, seed=config.seed)
        features = collect(config, encoder, source, [path.name for path in photos], "ramps")  # (N, A * L, D)
        ramps = features.double().numpy().reshape(len(photos), len(ATTRIBUTES), config.levels, -1)
        levels = np.linspace(0, 1, config.levels)
        for index, name in enumerate(tqdm(ATTRIBUTES, "pairs: distortion", leave=False)):
            tables[name]["distortion"] = pair_srocc(ramps[:, index], texts[name], levels)
        record |= {"n_photos": len(photos), "levels": config.levels}
    if rated is not None:
        source = Looks(rated.paths, encoder.prepare, shorter_edge=config.spaq_edge)
        features = collect(config, encoder, source, rated.names, "spaq")
        for name in tqdm(ATTRIBUTES, "pairs: human", leave=False):
            tables[name]["human"] = pair_srocc(features.double().numpy()[None, :, 0], texts[name], rated.scores[name])
        record |= {"n_rated": len(rated.paths), "spaq_noisiness": rated.noisiness}
    return report(config, record, tables)


def pristine(config: Config) -> list[Path]:
    """The photos to be rendered."""
    assert config.photos is not None
    photos = [path for path in find(config.photos) if path.match(config.photo_pattern)]
    if not photos:
        raise ValueError(f"photos: no {config.photo_pattern} in {config.photos}")
    return photos[: config.photo_limit or None]


class Rated:
    """SPAQ's photos and their human attribute scores, each higher for more of the attribute (noisiness: cleaner).

    Nothing published says which way its Noisiness runs. A clean photo has a high MOS, so the sign of the SROCC of the
    two tells; where it is negative, the column is turned round, and said to be.
    """

    def __init__(self, config: Config) -> None:
        assert config.spaq is not None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Noisiness runs against MOS")  # that is dealt with below
            rows = read_spaq(config.spaq).rows
        clean = [(row.attributes or {})["noisiness"] for row in rows]
        srocc = metrics.srocc(clean, [row.mos for row in rows])
        self.noisiness = {"srocc_with_mos": srocc, "turned_round": srocc < 0}
        rows = rows[:12] if config.smoke else rows
        self.paths = [row.path for row in rows]
        self.names = [row.path.name for row in rows]
        self.scores = {name: np.array([(row.attributes or {})[name] for row in rows]) for name in ATTRIBUTES}
        if srocc < 0:
            print(
                f"warning: SPAQ's Noisiness runs against MOS (SROCC {srocc:.3f}): taken as high = noisy, turned round"
            )
            self.scores["noisiness"] = -self.scores["noisiness"]


class Looks(Dataset[Tensor | str]):
    """Item i: photo i, prepared for the encoder, or a text where it cannot be read.

    Without ``levels`` it is (1, 3, h, w); with L of them, (A * L, 3, h, w): every level of every attribute's ramp.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        prepare: Callable[[Tensor], Tensor],
        *,
        shorter_edge: int | None = None,
        levels: int = 0,
        seed: int = 0,
    ) -> None:
        self.paths = tuple(paths)
        self.prepare = prepare
        self.shorter_edge = shorter_edge
        self.level = torch.linspace(0, 1, levels)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            photo = read(self.paths[index], shorter_edge=self.shorter_edge)[None]
        except ImageError as error:
            return str(error)
        if not len(self.level):
            return self.prepare(photo)
        noise = int(np.random.default_rng([self.seed, index]).integers(2**62))
        generator = torch.Generator().manual_seed(noise)  # of this photo alone: the order of work changes nothing
        photo = photo.expand(len(self.level), -1, -1, -1)
        return torch.cat([self.prepare(apply_ramp(photo, name, self.level, generator)) for name in ATTRIBUTES])


# Features


def encode_candidates(encoder: CLIPEncoder, candidates: Candidates) -> Texts:
    """Both lists in the template."""
    positive, negative = (
        encoder.encode_text([TEMPLATE.format(word) for word in words]).double().cpu().numpy() for words in candidates
    )
    return Texts(positive, negative)


def collect(
    config: Config, encoder: CLIPEncoder, source: Dataset[Tensor | str], names: Sequence[str], kind: str
) -> Tensor:
    """Features of every item, (N, K, D) on the CPU: those on disk are read, the others computed and kept."""
    chunks = [range(first, min(first + config.chunk, len(names))) for first in range(0, len(names), config.chunk)]
    paths = {chunk: config.out / "features" / f"{kind}-{chunk.start:06d}.safetensors" for chunk in chunks}
    origin = {
        chunk: {"encoder": encoder.identity, "names": json.dumps(names[chunk.start : chunk.stop])} for chunk in chunks
    }
    missing = [chunk for chunk in chunks if not paths[chunk].exists()]
    rows = [row for chunk in missing for row in chunk]
    loader = DataLoader(Subset(source, rows), batch_size=None, num_workers=config.workers)
    stream = encoded(encoder, loader, config.batch)
    with tqdm(total=len(names), desc=f"features: {kind}", initial=len(names) - len(rows)) as bar:
        for chunk in missing:
            kept = []
            for _ in chunk:
                kept.append(next(stream))
                bar.update()
            with atomic_path(paths[chunk]) as temporary:
                save_file({"features": torch.stack(kept)}, temporary, metadata=origin[chunk])
    return torch.cat([features_of(paths[chunk], origin[chunk]) for chunk in chunks])


def encoded(encoder: CLIPEncoder, loader: "DataLoader[Tensor | str]", batch: int) -> Iterator[Tensor]:
    """(K, D) for every (K, 3, h, w) of the loader, in order; images of one size that follow one another go together."""
    waiting: list[Tensor] = []

    def flush() -> Iterator[Tensor]:
        if waiting:
            parts = [encoder.encode_image(part).float().cpu() for part in torch.cat(waiting).split(batch)]
            yield from torch.cat(parts).split([len(images) for images in waiting])
            waiting.clear()

    for images in loader:
        if isinstance(images, str):
            raise ValueError(images)  # noqa: TRY004 (what is wrong with a file)
        if waiting and (images.shape[1:] != waiting[0].shape[1:] or sum(map(len, waiting)) + len(images) > batch):
            yield from flush()
        waiting.append(images)
    yield from flush()


def features_of(path: Path, origin: dict[str, str]) -> Tensor:
    """One file of features, if it is of this encoder and of these photos."""
    with safe_open(path, "pt") as file:
        theirs = file.metadata() or {}
        for key, mine in origin.items():
            if theirs.get(key) != mine:
                raise ValueError(
                    f"{path} was made with other {key} ({theirs.get(key, '')[:200]} there, {mine[:200]} now); "
                    "choose another --out, or delete it"
                )
        features: Tensor = file.get_tensor("features")
        return features


# Scores


def spearman(values: Floats, target: Floats) -> Floats:
    """Spearman's rank correlation of every column with one target: (N, ...) and (N,) -> (...); ties by mean rank.

    A column without any difference says nothing of the order: 0.
    """
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(0)
    wanted = rankdata(target)
    wanted -= wanted.mean()
    scale = np.sqrt((ranks**2).sum(0) * (wanted**2).sum())
    return np.asarray(np.tensordot(wanted, ranks, 1) / np.where(scale > 0, scale, np.inf))


def pair_srocc(features: Floats, texts: Texts, target: Floats) -> Floats:
    """SROCC of the target with every pair's score, mean over groups.

    Args:
        features: (G, N, D), of N images in each of G groups that are ranked apart.
        texts: P positive and Q negative candidates.
        target: (N,), the order that each group should have.

    Returns:
        (P, Q), in [-1, 1].
    """
    positive, negative = features @ texts.positive.T, features @ texts.negative.T  # (G, N, P), (G, N, Q)
    total = np.zeros((positive.shape[2], negative.shape[2]))
    step = max(1, _SLAB // (negative.shape[1] * negative.shape[2]))  # positive candidates at a time
    for high, low in zip(positive, negative, strict=True):
        for first in range(0, len(total), step):
            differences = high[:, first : first + step, None] - low[:, None, :]  # (N, p, Q)
            total[first : first + step] += spearman(differences, target)
    return total / len(features)


def chosen(candidates: Candidates, scores: dict[str, Floats], index: int) -> dict[str, Any]:
    """One pair of the table and its scores."""
    row, column = np.unravel_index(index, next(iter(scores.values())).shape)
    pair = {"positive": candidates.positive[row], "negative": candidates.negative[column]}
    return pair | {task: float(table[row, column]) for task, table in scores.items()}


def extremes(name: str, tables: dict[str, Floats]) -> dict[str, Any]:
    """Best, median and worst pair of an attribute, and the pair that ATTIQA selected: its rank, 1 for the best."""
    candidates, scores = CANDIDATES[name], {**tables, "score": sum(tables.values(), np.zeros(()))}
    order = np.argsort(-scores["score"], axis=None, kind="stable")  # the first of the listed ones, among equals
    positive, negative = PROMPT_PAIRS[name]
    published = candidates.positive.index(positive) * len(candidates.negative) + candidates.negative.index(negative)
    picked = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1], "published": published}
    result = {key: chosen(candidates, scores, int(index)) for key, index in picked.items()}
    result["published"]["rank"] = 1 + int((scores["score"] > result["published"]["score"]).sum())
    return result


# Results


def report(config: Config, record: dict[str, Any], tables: dict[str, dict[str, Floats]]) -> dict[str, Any]:
    """Print and write everything."""
    attributes = {name: extremes(name, tables[name]) for name in ATTRIBUTES}
    listed = {
        name: {
            **attributes[name],
            "candidates": CANDIDATES[name]._asdict(),
            "scores": {task: table.round(6) for task, table in tables[name].items()},  # (positive, negative)
        }
        for name in ATTRIBUTES
    }
    for name in ATTRIBUTES:
        heat_map(config.out / f"heatmap_{name}.png", name, sum(tables[name].values(), np.zeros(())))
    write_json(config.out / "prompts.json", {**record, "attributes": listed})
    result = {**record, "protocol": protocol(record), "attributes": attributes}
    show(result)
    write_json(config.out / "metrics.json", result)
    return result


def protocol(record: dict[str, Any]) -> str:
    """What the numbers are, in words."""
    parts = []
    if "n_photos" in record:
        parts.append(f"SROCC with {record['levels']} ramp levels, mean over {record['n_photos']} photos")
    if "n_rated" in record:
        parts.append(f"SROCC with the human scores of {record['n_rated']} SPAQ photos")
    return " + ".join(parts) + "; pairs selected on these very images"


def show(result: dict[str, Any]) -> None:
    """The selection in Markdown."""
    print(f"{result['encoder']}\n{result['protocol']}\n")
    print("| attribute | best | median | worst | published (rank) |\n|---|---|---|---|---|")
    for name, found in result["attributes"].items():
        cells = [f"{p['positive']} / {p['negative']} {p['score']:+.3f}" for p in found.values()]
        print(f"| {name} | {' | '.join(cells)} ({found['published']['rank']}) |")
    if "spaq_noisiness" in result:
        print(f"\nSROCC of SPAQ's Noisiness with MOS: {result['spaq_noisiness']['srocc_with_mos']:+.3f}")


def heat_map(path: Path, name: str, scores: Floats) -> None:
    """The scores of all pairs, (P, Q), as a PNG."""
    figure = Figure(figsize=(11, 10), layout="constrained")
    axes = figure.subplots()
    limit = max(1.0, float(np.abs(scores).max()))
    image = axes.imshow(scores, cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set_xticks(range(scores.shape[1]), CANDIDATES[name].negative, rotation=90, fontsize=6)
    axes.set_yticks(range(scores.shape[0]), CANDIDATES[name].positive, fontsize=6)
    axes.set_xlabel("negative")
    axes.set_ylabel("positive")
    axes.set_title(f"{name}: score of each prompt pair")
    figure.colorbar(image, shrink=0.8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    main()
