import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attriqa.training.losses import margin_ranking, quality_ranking, ramp_ranking, score_loss, strength_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(predictions: list[float], targets: list[float], margin: float) -> list[float]:
    """The hinge of every pair of a group whose targets differ."""
    found = []
    for i in range(len(targets)):
        for j in range(i + 1, len(targets)):
            if targets[i] != targets[j]:
                sign = 1 if targets[i] > targets[j] else -1
                found.append(max(0.0, margin - sign * (predictions[i] - predictions[j])))
    return found


@pytest.mark.parametrize("margin", [0.0, 0.1, 2.0])
def test_margin_ranking_is_the_mean_over_pairs_without_ties(margin: float) -> None:
    predictions, targets = normal(3, 6), (normal(3, 6, seed=1) * 2).round()
    hinges = [by_hand(p, t, margin) for p, t in zip(predictions.tolist(), targets.tolist(), strict=True)]
    assert any(len(group) < 15 for group in hinges), "the test needs ties"
    pairs = [hinge for group in hinges for hinge in group]
    assert margin_ranking(predictions, targets, margin).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    for row in range(3):
        alone = sum(hinges[row]) / len(hinges[row])
        assert margin_ranking(predictions[row], targets[row], margin).item() == pytest.approx(alone, rel=1e-5)


def test_only_the_order_of_targets_matters_and_the_order_of_members_does_not() -> None:
    predictions, targets = normal(2, 5), normal(2, 5, seed=1)
    expected = margin_ranking(predictions, targets)
    torch.testing.assert_close(margin_ranking(predictions, targets.exp() * 100), expected)
    torch.testing.assert_close(margin_ranking(predictions.flip(1), targets.flip(1)), expected)
    assert not torch.isclose(margin_ranking(predictions, -targets), expected)


NONE = torch.tensor([False, False])


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda predictions: margin_ranking(predictions, torch.ones(4)), (4,)),
        (lambda raw: ramp_ranking(raw, normal(2, 4).sigmoid(), torch.tensor([5, 9])), (2, 4, 5)),
        (lambda logit: quality_ranking(logit, normal(2, 4).sigmoid(), NONE, 1.0), (2, 4)),
    ],
    ids=["ties alone", "no attribute's ramp", "no harmful ramp"],
)
def test_nothing_to_compare_gives_zero_on_the_graph(loss: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    given = normal(*shape, seed=2).requires_grad_()
    found = loss(given)
    found.backward()
    assert found.item() == 0
    assert given.grad is not None
    assert not given.grad.any()


def test_the_gradient_pulls_a_wrong_pair_apart_and_leaves_a_right_one() -> None:
    predictions = torch.tensor([[0.5, 0.4], [0.1, 0.9]], requires_grad=True)
    margin_ranking(predictions, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), 0.1).backward()
    torch.testing.assert_close(predictions.grad, torch.tensor([[0.5, -0.5], [0.0, 0.0]]))


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets: expected the shape of predictions, \(2, 3\), got \(3,\)"):
        margin_ranking(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"strengths: expected the shape of predicted, \(2, 25\), got \(25,\)"):
        strength_loss(torch.rand(2, 25), torch.rand(25))


def ramps() -> tuple[Tensor, Tensor, Tensor]:
    """Five perfect ramps, one per attribute: (5, 4, 5), (5, 4), (5,)."""
    level = torch.tensor([0.1, 0.9, 0.4, 0.6]).expand(5, -1)
    attribute = torch.tensor([3, 0, 4, 1, 2])
    raw = torch.full((5, 4, 5), 0.7)
    raw[torch.arange(5), :, attribute] = 10 * level
    return raw, level, attribute


def test_ramp_ranking_is_zero_on_perfect_ramps() -> None:
    assert ramp_ranking(*ramps()).item() == pytest.approx(0, abs=1e-6)


def test_ramp_ranking_asks_order_of_the_own_head_only() -> None:
    raw, level, attribute = ramps()
    reversed_own = raw.clone()
    reversed_own[torch.arange(5), :, attribute] *= -1
    assert ramp_ranking(reversed_own, level, attribute) > 1
    assert ramp_ranking(raw, level, attribute.roll(1)) > 0.4, "another head's ramp"
    assert ramp_ranking(raw, 1 - level, attribute) > 1
    narrow = raw.clone()
    narrow[torch.arange(5), :, attribute] /= 100  # in order, closer than the margin
    assert 0 < ramp_ranking(narrow, level, attribute, margin=0.5) < 0.5


def test_crosstalk_counts_what_moves_in_the_other_heads() -> None:
    raw, level, attribute = ramps()
    moved = raw.clone()
    moved[0, :, 1] += torch.tensor([0.0, 1.0, 0.0, 1.0])  # one head of four, in one ramp of five
    expected = 0.3 * torch.tensor([0.0, 1.0, 0.0, 1.0]).std().item() / 4 / 5
    assert ramp_ranking(moved, level, attribute, crosstalk=0.3).item() == pytest.approx(expected, rel=1e-4)
    assert ramp_ranking(moved, level, attribute, crosstalk=0).item() == pytest.approx(0, abs=1e-6)


def test_ramps_that_are_no_attributes_count_nothing_for_the_heads() -> None:
    raw, level, attribute = ramps()
    alone = ramp_ranking(raw.flip(1), level, attribute)
    both = ramp_ranking(
        torch.cat([raw.flip(1), normal(3, *raw.shape[1:])]),
        torch.cat([level, level[:3]]),
        torch.cat([attribute, torch.tensor([5, 6, 11])]),
    )
    assert both.item() == pytest.approx(alone.item(), rel=1e-6)


def test_quality_ranking_asks_a_gap_along_harmful_ramps_only() -> None:
    level = torch.tensor([0.1, 0.9, 0.4, 0.6]).expand(2, -1)
    harms = torch.tensor([True, False])
    assert quality_ranking(1.01 * level, level, harms, 1.0).item() == 0
    assert quality_ranking(0.9 * level, level, harms, 1.0).item() > 0
    backwards = torch.stack([level[0], -level[0]])
    assert quality_ranking(backwards, level, harms, 1.0).item() == 0
    assert quality_ranking(-backwards, level, harms, 1.0).item() > 0.5


def test_quality_ranking_is_the_mean_over_pairs() -> None:
    logit, level, harms = normal(3, 5), normal(3, 5, seed=1).round(), torch.tensor([True, False, True])
    hinges = []
    for g in (0, 2):
        for i in range(5):
            for j in range(5):
                if level[g, i] > level[g, j]:
                    wanted = 0.7 * (level[g, i] - level[g, j])
                    hinges.append(max(0.0, float(wanted - (logit[g, i] - logit[g, j]))))
    assert quality_ranking(logit, level, harms, 0.7).item() == pytest.approx(sum(hinges) / len(hinges), rel=1e-5)


def test_score_loss_is_quadratic_near_and_linear_far() -> None:
    mos = torch.tensor([0.5])
    near = [score_loss(torch.logit(mos + gap), mos).item() for gap in (0.0, 0.02, 0.04)]
    assert near[0] == pytest.approx(0, abs=1e-6)
    assert near[2] == pytest.approx(4 * near[1], rel=1e-3)
    far = [score_loss(torch.logit(mos + gap), mos).item() for gap in (0.2, 0.3, 0.4)]
    assert far[2] - far[1] == pytest.approx(far[1] - far[0], rel=1e-3)
    assert far[1] - far[0] == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(score_loss(torch.logit(mos + 0.2), mos), score_loss(torch.logit(mos - 0.2), mos))


def test_strength_loss_is_cross_entropy_with_soft_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, strengths = torch.rand(2, 4, 25, generator=generator)
    expected = 0.0
    for p, target in zip(predicted.flatten().tolist(), strengths.flatten().tolist(), strict=True):
        expected -= target * math.log(p) + (1 - target) * math.log(1 - p)
    assert strength_loss(predicted, strengths).item() == pytest.approx(expected / 100, rel=1e-5)


def test_strength_loss_is_least_at_the_truth_and_finite_at_the_edges() -> None:
    strengths = torch.tensor([[0.0, 0.2, 0.6, 1.0]])
    best = strength_loss(strengths, strengths)
    for change in (-0.1, 0.1):
        assert strength_loss((strengths + change).clamp(0, 1), strengths) > best
    wrong = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = strength_loss(wrong.bfloat16(), torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert loss.isfinite()
    assert wrong.grad is not None
    assert wrong.grad.isfinite().all()
