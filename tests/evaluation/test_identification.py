"""Measures of identification against loops, written from their definitions."""

import math

import pytest
import torch
from torch import Tensor

from attriqa.evaluation.identification import (
    bin_accuracy,
    identification_metrics,
    mean_average_precision,
    present_accuracy,
    strength_rmse,
)


def case(n: int = 40, d: int = 6, seed: int = 0, levels: int = 5) -> tuple[Tensor, Tensor]:
    """Predictions with ties, and strengths of which about a third are present."""
    generator = torch.Generator().manual_seed(seed)
    predicted = (torch.rand(n, d, generator=generator) * 20).round() / 20
    true = torch.randint(1, levels + 1, (n, d), generator=generator) / levels
    return predicted, true * (torch.rand(n, d, generator=generator) < 0.35)


def naive_bin(value: float, levels: int) -> int:
    """The bin k with (k - 1/2) / L <= value < (k + 1/2) / L; the last is closed."""
    for k in range(levels):
        if value < (2 * k + 1) / (2 * levels):
            return k
    return levels


def naive_ap(scores: list[float], present: list[bool]) -> float:
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [p for s, p in zip(scores, present, strict=True) if s >= threshold]
        now = sum(taken) / sum(present)
        total += (now - recall) * sum(taken) / len(taken)
        recall = now
    return total


@pytest.mark.parametrize("levels", [3, 5])
def test_each_measure_is_its_definition(levels: int) -> None:
    predicted, true = case(levels=levels)
    pairs = list(zip(predicted.flatten().tolist(), true.flatten().tolist(), strict=True))
    right = [naive_bin(p + 1e-7, levels) == naive_bin(t + 1e-7, levels) for p, t in pairs]  # float32: 0.7 is below 0.7
    close = bin_accuracy(predicted.double().mul(20).round() / 20, true.double(), levels)
    assert close == pytest.approx(sum(right) / len(right))
    shown = [r for r, (_, t) in zip(right, pairs, strict=True) if t > 0]
    assert 0.1 < sum(shown) / len(shown) < 0.9
    found = present_accuracy(predicted.double().mul(20).round() / 20, true.double(), levels)
    assert found == pytest.approx(sum(shown) / len(shown))
    rmse = math.sqrt(sum((p - t) ** 2 for p, t in pairs) / len(pairs))
    assert strength_rmse(predicted, true) == pytest.approx(rmse)
    columns = zip(predicted.T.tolist(), (true.T > 0).tolist(), strict=True)
    expected = [naive_ap(scores, present) for scores, present in columns]
    assert mean_average_precision(predicted, true) == pytest.approx(sum(expected) / len(expected))


def test_the_bins_are_the_papers() -> None:
    edges = torch.tensor([[0.0, 0.0999, 0.1, 0.2999, 0.3, 0.5, 0.7, 0.8999, 0.9, 1.0]], dtype=torch.float64)
    levels = torch.tensor([[0.0, 0.0, 0.2, 0.2, 0.4, 0.6, 0.8, 0.8, 1.0, 1.0]], dtype=torch.float64)
    assert bin_accuracy(edges, levels) == 1
    for wrong in (-0.2, 0.2):
        assert bin_accuracy(edges, (levels + wrong).clamp(0, 1)) == pytest.approx(0.2)  # clamped ones stay


def test_levels_may_differ_between_distortions() -> None:
    predicted, true = torch.tensor([[0.3, 0.3]]), torch.tensor([[0.25, 0.2]])
    assert bin_accuracy(predicted, true, [4, 5]) == 0.5  # [1/8, 3/8) holds 0.3, float32's 0.3 lies above [0.1, 0.3)
    with pytest.raises(ValueError, match="levels: expected a number of at least 1, or 2 of them, got \\[4\\]"):
        bin_accuracy(predicted, true, [4])
    with pytest.raises(ValueError, match="levels"):
        bin_accuracy(predicted, true, 0)


def test_truth_is_perfect_and_its_order_is_enough_for_precision() -> None:
    _, true = case()
    found = identification_metrics(true, true, true.mean(0))
    assert (found["accuracy"], found["present_accuracy"], found["rmse"]) == (1, 1, 0)
    assert mean_average_precision(true.square() * 0.1, true) == pytest.approx(1)
    assert mean_average_precision(1 - true, true) < 0.5


def test_the_constant_predictors() -> None:
    """On images with one distortion out of 25, "none" is right in 96 % of places and finds nothing."""
    true = torch.zeros(125, 25)
    true[torch.arange(125), torch.arange(125) % 25] = (torch.arange(125) // 25 + 1) / 5
    predicted, _ = case(125, 25)
    found = identification_metrics(predicted, true, true.mean(0))
    assert found["accuracy_zero"] == pytest.approx(0.96)
    assert found["present_accuracy_zero"] == 0
    assert found["rmse_zero"] == pytest.approx(true.square().mean().sqrt().item())
    assert found["rmse_mean"] == pytest.approx(true.std(0, correction=0).square().mean().sqrt().item(), rel=1e-5)
    assert found["rmse_mean"] < found["rmse_zero"]
    assert found["mean_average_precision_constant"] == pytest.approx(1 / 25)
    assert found["mean_average_precision"] == mean_average_precision(predicted, true)
    assert all(isinstance(value, float) for value in found.values())


def test_a_distortion_that_no_image_has_counts_nowhere_in_precision() -> None:
    predicted, true = case(d=3)
    true[:, 1] = 0
    expected = mean_average_precision(predicted[:, [0, 2]], true[:, [0, 2]])
    assert mean_average_precision(predicted, true) == pytest.approx(expected)


def test_wrong_input_is_named() -> None:
    predicted, true = case()
    with pytest.raises(ValueError, match=r"predicted, true: expected one shape \(N, D\), got \(40, 5\) and \(40, 6\)"):
        strength_rmse(predicted[:, :5], true)
    with pytest.raises(ValueError, match=r"predicted: expected values in \[0, 1\], got nan to nan"):
        bin_accuracy(predicted * math.nan, true)
    with pytest.raises(ValueError, match=r"true: expected values in \[0, 1\], got 0 to 5"):
        bin_accuracy(predicted, true * 5)
    with pytest.raises(ValueError, match="true: expected at least one distortion that is present"):
        mean_average_precision(predicted, torch.zeros_like(true))
    with pytest.raises(ValueError, match="true: expected at least one distortion that is present"):
        present_accuracy(predicted, torch.zeros_like(true))
    with pytest.raises(ValueError, match=r"train_mean: expected shape \(6,\), got \(5,\)"):
        identification_metrics(predicted, true, true.mean(0)[:5])
