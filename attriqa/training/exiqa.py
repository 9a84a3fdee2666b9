"""Parts of ExIQA's training that stand alone: where a model starts, what learns, the regressor, medians."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from attriqa.distortions.attributes import DATASET_ATTRIBUTES, DISTORTION_ATTRIBUTES, DistortionAttributes, read_table
from attriqa.evaluation.bootstrap import median_of_folds
from attriqa.models import exiqa
from attriqa.models.exiqa import ExIQA, ExIQAConfig
from attriqa.training.schedules import cosine


def table_of(name: str | None, *, init: Path | None, data: str | None) -> tuple[DistortionAttributes, ...]:
    """The distortions that a run is about.

    Args:
        name: a TOML file (`attriqa.distortions.attributes.read_table`), or a data set of `DATASET_ATTRIBUTES`.
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
        attriqa.models.checkpoint.CheckpointError: ``init`` is none, or its CLIP is gone.
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


class Identification(NamedTuple):
    """What a net says of N images of a test, and the truth."""

    strengths: Tensor  # (N, D)
    probs: Tensor  # (N, A)
    true: Tensor  # (N, D)


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


def medians_of_splits(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians over splits, by test and statistic.

    Args:
        results: of each split; ``identification`` holds numbers by test, and there may be a ``score``.
    """
    tables = {name: [row["identification"][name] for row in results] for name in results[0]["identification"]}
    if "score" in results[0]:
        tables["score"] = [row["score"] for row in results]
    return {
        name: {key: median_of_folds([row[key] for row in rows]).median for key in rows[0]}
        for name, rows in tables.items()
    }
