"""LIQE's losses against plain restatements, and what they promise."""

import math

import pytest
import torch
from torch import Tensor

from attriqa.training.losses import distortion_fidelity, dynamic_weights, fidelity, quality_fidelity, scene_fidelity


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def plain(p: float, g: float) -> float:
    return 1 - math.sqrt(p * g + 1e-8) - math.sqrt((1 - p) * (1 - g) + 1e-8)


def test_fidelity_is_its_formula_and_0_where_both_agree() -> None:
    p, g = draw(5, 3), draw(5, 3, seed=1)
    expected = [[plain(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(p.tolist(), g.tolist(), strict=True)]
    torch.testing.assert_close(fidelity(p, g), torch.tensor(expected), rtol=0, atol=1e-6)
    assert fidelity(g, g).abs().max() < 1e-3
    assert fidelity(torch.tensor([1.0]), torch.tensor([0.0])).item() == pytest.approx(1, abs=1e-3)


def test_probabilities_that_pass_1_by_rounding_give_numbers_and_gradients() -> None:
    p = torch.tensor([1.0000004, 1.0, 0.0, -1e-9]).requires_grad_()
    loss = fidelity(p, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert p.grad is not None
    assert p.grad.isfinite().all()


def test_the_quality_loss_is_the_mean_over_pairs_of_the_fidelity_of_their_order() -> None:
    predictions, mos = 1 + 4 * draw(6), torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0, 4.0])
    losses = []
    for i in range(6):
        for j in range(i + 1, 6):
            p = 0.5 * (1 + math.erf((predictions[i] - predictions[j]).item() / math.sqrt(2)))
            losses.append(plain(p, 0.5 + 0.5 * float(torch.sign(mos[i] - mos[j]))))
    assert quality_fidelity(predictions, mos).item() == pytest.approx(sum(losses) / 15, abs=1e-6)
    assert len(losses) == 15


def test_order_alone_counts_and_a_better_order_is_worth_more() -> None:
    predictions, mos = draw(8) * 4, draw(8, seed=1)
    torch.testing.assert_close(quality_fidelity(predictions, mos), quality_fidelity(predictions, 100 * mos - 7))
    torch.testing.assert_close(quality_fidelity(predictions, mos), quality_fidelity(predictions + 3, mos))
    ranked = mos.argsort().argsort().float()
    wrong, flat, right = (quality_fidelity(values, mos).item() for values in (-ranked, 0 * ranked, ranked))
    assert wrong > flat > right > -1e-3
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(quality_fidelity(predictions[order], mos[order]), quality_fidelity(predictions, mos))


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_pair_the_quality_loss_is_0_and_attached(count: int) -> None:
    predictions = draw(count).requires_grad_()
    loss = quality_fidelity(predictions, draw(count))
    loss.backward()
    assert loss.item() == 0


def test_the_scene_loss_judges_each_class_by_itself_and_known_rows_alone() -> None:
    predicted = draw(3, 4).softmax(1)
    present = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    rows = [
        sum(plain(p, g) for p, g in zip(predicted[row].tolist(), present[row].tolist(), strict=True)) / 4
        for row in (0, 2)
    ]
    assert scene_fidelity(predicted, present).item() == pytest.approx(sum(rows) / 2, abs=1e-6)


def test_the_distortion_loss_is_the_paper_s() -> None:
    predicted = draw(3, 4).softmax(1)
    true = torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    expected = [1 - math.sqrt(predicted[0, 1].item()), 1 - math.sqrt(predicted[2, 3].item())]
    assert distortion_fidelity(predicted, true).item() == pytest.approx(
        sum(expected) / 2, abs=4e-4
    )  # four roots of 1e-8


@pytest.mark.parametrize("loss", [scene_fidelity, distortion_fidelity])
def test_nothing_known_is_0_and_attached(loss: object) -> None:
    predicted = draw(2, 3).requires_grad_()
    assert callable(loss)
    found = loss(predicted.softmax(1), torch.zeros(2, 3))
    found.backward()
    assert found.item() == 0
    assert predicted.grad is not None
    assert not predicted.grad.any()


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"true: expected the shape of predicted, \(2, 3\), got \(3,\)"):
        fidelity(draw(2, 3), draw(3))
    with pytest.raises(ValueError, match=r"mos: expected \(N,\) as predictions, got \(2,\) and \(3,\)"):
        quality_fidelity(draw(2), draw(3))


def test_slower_tasks_weigh_more() -> None:
    assert dynamic_weights([[1.0, 2.0, 3.0]]) == [1, 1, 1]
    weights = dynamic_weights([[9.0, 9.0, 9.0], [1.0, 1.0, 1.0], [0.5, 1.0, 2.0]], 2.0)
    parts = [math.exp(rate / 2) for rate in (0.5, 1.0, 2.0)]
    assert weights == pytest.approx([3 * part / sum(parts) for part in parts])
    assert sum(weights) == pytest.approx(3)
    assert dynamic_weights([[0.0, 1.0, 0.0], [0.0, 0.3, 0.0]]) == pytest.approx([1, 1, 1]), "one task alone"
    two = dynamic_weights([[1.0, 0.0, 1.0], [0.5, 0.0, 1.0]])
    assert two == pytest.approx([two[0], 1, 2 - two[0]])
    assert two[0] < 1
    even = dynamic_weights([[1.0, 1.0], [0.1, 1.0]], 1e6)
    assert even == pytest.approx([1, 1], abs=1e-5)
