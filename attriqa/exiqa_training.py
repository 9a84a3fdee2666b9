"""Parts of ExIQA's training that stand alone: where a model starts, what it says of a test, the regressor."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import trange

from attriqa.dataset_attributes import DATASET_ATTRIBUTES
from attriqa.distortion_attributes import DISTORTION_ATTRIBUTES, DistortionAttributes, read_table
from attriqa.exiqa_examples import Example
from attriqa.models import exiqa
from attriqa.models.clip import CLIPTowers, load_clip
from attriqa.models.exiqa import ExIQA, ExIQAConfig
from attriqa.pretraining import cosine
from attriqa.protocols import median_of_folds
from attriqa.recipe import atomic_path, write_json


def clip_of(name: str, *, seed: int = 0) -> CLIPTowers:
    """The open_clip model that a command line names.

    Args:
        name: ``MODEL:PRETRAINED`` (a tag or a local file), ``hf-hub:ORG/REPO``, ``local-dir:FOLDER``, or an open_clip
            configuration ``FILE.json``, of which a model with random weights is built.
        seed: of random weights.

    Raises:
        ValueError: there is no such model, or no such weights.
    """
    model, _, weights = (name, "", "") if name.startswith(("hf-hub:", "local-dir:")) else name.partition(":")
    return load_clip(model, weights or None, seed=seed)


def table_of(name: str | None, *, init: Path | None, data: str | None) -> tuple[DistortionAttributes, ...]:
    """The distortions that a run is about.

    Args:
        name: a TOML file (`attriqa.distortion_attributes.read_table`), or a data set of `DATASET_ATTRIBUTES`.
        init: without a name: a checkpoint of ExIQA, whose table it is.
        data: without either: ``NAME=ROOT``, the data set's table; KADID-10k's 25 if it has none of its own.

    Raises:
        ValueError: the file is no table.
    """
    if name is not None:
        return DATASET_ATTRIBUTES[name] if name in DATASET_ATTRIBUTES else read_table(Path(name))
    if init is not None:
        return exiqa.load(init).config.table
    return DATASET_ATTRIBUTES.get((data or "").partition("=")[0].lower(), DISTORTION_ATTRIBUTES)


def continued(init: Path, config: ExIQAConfig, *, fresh: bool, seed: int = 0) -> ExIQA:
    """A model on the CLIP of another.

    Args:
        init: a checkpoint of ExIQA. Where its prompts are of the kind and number asked for, they are taken over, too.
        config: of the new model; without a logit scale, it takes over that of ``init``.
        fresh: ``config`` counts. Else the model stays as it is, for the table of ``config`` (ExIQA, tables IV and V).
        seed: of new prompts.

    Raises:
        attriqa.checkpoint.CheckpointError: ``init`` is none, or its CLIP is gone.
        ValueError: the CLIP does not take the prompts.
    """
    start = exiqa.load(init)
    if config.logit_scale is None:
        config = replace(config, logit_scale=start.config.logit_scale)
    if fresh and replace(start.config, table=config.table) != config:
        return ExIQA(config, start.towers, seed=seed)
    return exiqa.transfer(start, config.table)


def parts_of(net: ExIQA) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """What learns in phase 1: what sees images (prompts or tower), what reads texts, the attributes' weights."""
    learning = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    weights = [learning.pop("weights")]
    seeing = [value for name, value in learning.items() if name.startswith(("prompts.", "clip.visual."))]
    reading = [value for name, value in learning.items() if not name.startswith(("prompts.", "clip.visual."))]
    return seeing, reading, weights


class Identify(nn.Module):
    """The net up to its strengths, in one forward, which data parallelism needs."""

    def __init__(self, net: ExIQA) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D)."""
        return self.net.identify(images)[0]


class Predicted(NamedTuple):
    """What a net says of N images, in the order of their numbers."""

    numbers: Tensor  # (N,) of the items
    strengths: Tensor  # (N, D)
    probs: Tensor  # (N, A)
    true: Tensor  # (N, D)

    @classmethod
    def together(cls, parts: Sequence["Predicted"]) -> "Predicted":
        """Of several processes' images."""
        joined = [torch.cat(values) for values in zip(*parts, strict=True)]
        order = joined[0].argsort()
        return cls(*(values[order] for values in joined))


@torch.no_grad()
def identify_all(net: ExIQA, batches: Iterable[Example], device: torch.device) -> Predicted:
    """Look at all images of a loader, the net in eval mode; the numbers come back on the CPU, in float32.

    Raises:
        attriqa.images.ImageError: an image cannot be read.
    """
    net.eval()
    count, attributes = len(net.config.table), net.weights.numel()
    empty = [torch.empty(0, dtype=torch.int64), *(torch.empty(0, width) for width in (count, attributes, count))]
    parts = [Predicted(*empty)]
    for batch in batches:
        found = net.identify(batch.pixels(device))
        parts.append(Predicted(batch.number, found.strengths.float().cpu(), found.probs.float().cpu(), batch.strengths))
    return Predicted.together(parts)


def confusion(predicted: Tensor, true: Tensor) -> NDArray[np.int64]:
    """Which distortion is taken for which.

    Args:
        predicted: ``(N, D)`` strengths.
        true: ``(N, D)`` strengths; rows with none above 0, or several, do not count.

    Returns:
        ``(D, D)`` counts: row, what was applied; column, the strongest that was predicted.

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != true.shape or true.ndim != 2:
        raise ValueError(
            f"predicted: expected the shape (N, D) of true, {tuple(true.shape)}, got {tuple(predicted.shape)}"
        )
    single = (true > 0).sum(1) == 1
    counts = np.zeros((true.shape[1], true.shape[1]), dtype=np.int64)
    np.add.at(counts, (true[single].argmax(1).numpy(), predicted[single].argmax(1).numpy()), 1)
    return counts


def top1_by_level(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """Share of images whose one distortion is also the strongest predicted, of all and at each strength.

    Args:
        predicted: as in `confusion`.
        true: likewise.

    Returns:
        ``top1``, and ``top1_level_1``, ... for the strengths that occur, the first being the weakest.
    """
    right = (predicted.argmax(1) == true.argmax(1)).float()
    strength = true.amax(1)
    found = {"top1": right.mean().item()}
    for level, value in enumerate(strength.unique().tolist(), 1):
        found[f"top1_level_{level}"] = right[strength == value].mean().item()
    return found


def write_confusion(folder: Path, counts: NDArray[np.int64], keys: Sequence[str], title: str) -> None:
    """Write ``confusion.json`` and a picture of it, ``confusion.png``: each row as shares of what was applied.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    write_json(folder / "confusion.json", {"rows": "applied", "columns": "predicted", "keys": keys, "counts": counts})
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    side = 2.5 + 0.28 * len(keys)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    labels = [key.replace("_", " ") for key in keys]
    axes.set_xticks(range(len(keys)), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(len(keys)), labels, fontsize=7)
    axes.set_xlabel("strongest predicted")
    axes.set_ylabel("applied")
    axes.set_title(title, fontsize=9)
    for row, column in np.argwhere(shares >= 0.1):
        shade = "black" if shares[row, column] > 0.6 else "white"
        text = f"{100 * shares[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=5.5, color=shade)
    figure.colorbar(picture, ax=axes, shrink=0.7, label="share of the applied")
    with atomic_path(folder / "confusion.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def fit_regressor(
    regressor: nn.Module, probs: Tensor, mos: Tensor, *, epochs: int, lr: float, batch: int, seed: int
) -> list[float]:
    """Phase 2: learn a score from frozen attribute probabilities (ExIQA, equation 9), in place, on the CPU.

    AdamW, the rate along a cosine from ``lr`` to 0. It draws from a generator of its own, also for dropout.

    Args:
        regressor: ``(B, A)`` -> ``(B,)`` or ``(B, 1)``; left in eval mode.
        probs: ``(N, A)`` attribute probabilities.
        mos: ``(N,)`` in [0, 1].
        epochs: passes over the rows.
        lr: peak learning rate.
        batch: rows per step.
        seed: of the order and of dropout.

    Returns:
        The mean loss of each epoch.

    Raises:
        ValueError: there is not one MOS for each row, or the loss is no number.
    """
    if probs.ndim != 2 or mos.shape != probs.shape[:1]:
        raise ValueError(f"mos: expected ({len(probs)},), one for each row of probs, got {tuple(mos.shape)}")
    parameters = list(regressor.requires_grad_(True).train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    generator = torch.Generator().manual_seed(seed)
    history = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout knows no other generator than the global one
        for epoch in trange(epochs, desc="regressor", leave=False):
            optimizer.param_groups[0]["lr"] = lr * cosine(epoch / epochs)
            total = 0.0
            for rows in torch.randperm(len(probs), generator=generator).split(batch):
                loss = F.mse_loss(regressor(probs[rows]).flatten(), mos[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            if not np.isfinite(total):
                raise ValueError(f"lr: the regressor's loss is {total} after {epoch + 1} epochs at {lr}")
            history.append(total / len(probs))
    regressor.eval()
    return history


def summary(results: Sequence[dict[str, Any]]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Medians over splits, by test and statistic, for ``metrics.json``; and the same as lines to print.

    Args:
        results: of each split; ``identification`` holds numbers by test, and there may be a ``score``.
    """
    tables = {name: [row["identification"][name] for row in results] for name in results[0]["identification"]}
    if "score" in results[0]:
        tables["score"] = [row["score"] for row in results]
    medians = {
        name: {key: median_of_folds([row[key] for row in rows]).median for key in rows[0]}
        for name, rows in tables.items()
    }
    lines = [
        f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())
        for name, numbers in medians.items()
    ]
    return medians, lines
