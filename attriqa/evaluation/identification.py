"""How well the strengths of distortions are told: ExIQA's measures, and what predictors that never look reach.

Strengths are ``(N, D)`` in [0, 1]: N images, D distortions, 0 where one is absent. On images with one distortion out of
25 the predictor that says "none" is right in 24 of 25 places: read each number beside those of the constants.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attriqa.files import atomic_path, write_json

Levels = int | Sequence[int]


def bin_accuracy(predicted: Tensor, true: Tensor, levels: Levels = 5) -> float:
    """Share of strengths in the right bin (ExIQA, equation 10).

    With L levels the bins are ``[0, 1/2L), [1/2L, 3/2L), ..., [1 - 1/2L, 1]``, centred at k / L.

    Args:
        predicted: ``(N, D)`` in [0, 1].
        true: likewise.
        levels: L, of all distortions or of each.

    Raises:
        ValueError: the shapes differ or are empty, a value is outside [0, 1], or ``levels`` does not fit.
    """
    _check(predicted, true)
    return _right(predicted, true, levels).double().mean().item()


def present_accuracy(predicted: Tensor, true: Tensor, levels: Levels = 5) -> float:
    """`bin_accuracy` over the distortions that are there alone, ``true > 0``.

    Raises:
        ValueError: as `bin_accuracy`, or none is there.
    """
    _check(predicted, true)
    present = true > 0
    if not present.any():
        raise ValueError("true: expected at least one distortion that is present, got none")
    return _right(predicted, true, levels)[present].double().mean().item()


def _right(predicted: Tensor, true: Tensor, levels: Levels) -> Tensor:
    count = true.shape[1]
    each = torch.tensor([levels] * count if isinstance(levels, int) else list(levels), device=true.device)
    if each.shape != (count,) or each.min() < 1:
        raise ValueError(f"levels: expected a number of at least 1, or {count} of them, got {levels}")
    return torch.floor(predicted.double() * each + 0.5) == torch.floor(true.double() * each + 0.5)


def strength_rmse(predicted: Tensor, true: Tensor) -> float:
    """Root mean squared error over all images and distortions (ExIQA, equation 11). As `bin_accuracy`."""
    _check(predicted, true)
    return (predicted.double() - true.double()).square().mean().sqrt().item()


def mean_average_precision(predicted: Tensor, true: Tensor) -> float:
    """Mean over distortions of the average precision of "is it there" (``true > 0``), ranked by ``predicted``.

    Average precision is the sum of precision times the recall gained, over the distinct values of ``predicted``; images
    that share a value come in together, so that a constant gets the share of images that have the distortion.
    Distortions that no image has are left out.

    Raises:
        ValueError: as `present_accuracy`.
    """
    _check(predicted, true)
    found = [
        _average_precision(scores, present)
        for scores, present in zip(predicted.T, true.T > 0, strict=True)
        if present.any()
    ]
    if not found:
        raise ValueError("true: expected at least one distortion that is present, got none")
    return sum(found) / len(found)


def _average_precision(scores: Tensor, present: Tensor) -> float:
    ordered, order = scores.sort(descending=True)
    hits = present[order].double().cumsum(0)
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool, device=scores.device)])
    hits, seen = hits[last], (torch.arange(len(scores), device=scores.device) + 1)[last]
    gained = hits.diff(prepend=hits.new_zeros(1))
    return float((gained * hits / seen).sum() / hits[-1])


def identification_metrics(predicted: Tensor, true: Tensor, train_mean: Tensor, levels: Levels = 5) -> dict[str, float]:
    """All of the above, each also for the two predictors that say the same of every image.

    Args:
        predicted: ``(N, D)`` in [0, 1].
        true: likewise.
        train_mean: ``(D,)``, the mean strengths of the training images: the best constant in squared error.
        levels: as in `bin_accuracy`.

    Returns:
        ``accuracy``, ``present_accuracy``, ``rmse`` and ``mean_average_precision``; the first three again with
        ``_zero`` (the constant 0) and ``_mean`` (``train_mean``), the last with ``_constant`` (any constant).

    Raises:
        ValueError: as `present_accuracy`; or ``train_mean`` does not fit.
    """
    _check(predicted, true)
    if train_mean.shape != true.shape[1:]:
        raise ValueError(f"train_mean: expected shape {tuple(true.shape[1:])}, got {tuple(train_mean.shape)}")
    zero, mean = torch.zeros_like(true), train_mean.to(true).expand_as(true)
    result = {}
    for suffix, said in (("", predicted), ("_zero", zero), ("_mean", mean)):
        result[f"accuracy{suffix}"] = bin_accuracy(said, true, levels)
        result[f"present_accuracy{suffix}"] = present_accuracy(said, true, levels)
        result[f"rmse{suffix}"] = strength_rmse(said, true)
    result["mean_average_precision"] = mean_average_precision(predicted, true)
    result["mean_average_precision_constant"] = mean_average_precision(zero, true)
    return result


def _check(predicted: Tensor, true: Tensor) -> None:
    if true.ndim != 2 or not true.numel() or predicted.shape != true.shape:
        raise ValueError(
            f"predicted, true: expected one shape (N, D), got {tuple(predicted.shape)} and {tuple(true.shape)}"
        )
    for name, values in (("predicted", predicted), ("true", true)):
        low, high = values.amin().item(), values.amax().item()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name}: expected values in [0, 1], got {low:g} to {high:g}")


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
