"""Training losses, each with its paper and equation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.data.ramps import HARMFUL, RAMPS

_FIDELITY_FLOOR = 1e-8  # under the roots: their slope at 0 is infinite


def margin_ranking(predictions: Tensor, targets: Tensor, margin: float = 0.1) -> Tensor:
    """Margin ranking loss over all pairs in a group (ATTIQA, equations 3 and 4).

    The mean over pairs i < j with different targets of ``max(0, margin - sign(t_i - t_j) (p_i - p_j))``. Ties are
    dropped; a group with nothing but ties gives zero, still attached to the graph.

    Args:
        predictions: ``(..., N)``; each trailing row is a group whose members are compared with one another.
        targets: ``(..., N)``, in any unit: only their order matters.
        margin: the gap asked between the predictions of a pair; 0.1 in the paper.

    Returns:
        A scalar.
    """
    _check_shapes(predictions=predictions, targets=targets)
    order = (targets.unsqueeze(-1) - targets.unsqueeze(-2)).sign()  # (..., N, N), antisymmetric
    gap = predictions.unsqueeze(-1) - predictions.unsqueeze(-2)
    hinge = F.relu(margin - order * gap) * (order > 0)  # each unordered pair once, ties never
    return hinge.sum() / (order > 0).sum().clamp(min=1)


def ramp_ranking(raw: Tensor, level: Tensor, ramp: Tensor, margin: float = 0.5, crosstalk: float = 0.3) -> Tensor:
    """Margin ranking of the head that a ramp belongs to, and a penalty on what it moves in the other four.

    Args:
        raw: ``(G, L, 5)`` head outputs on G ramps of L renderings.
        level: ``(G, L)``, each rendering's level.
        ramp: ``(G,)`` index of the ramp's attribute; ramps of anything else, from 5 on, count nothing.
        margin: of `margin_ranking`, in units of ``raw``.
        crosstalk: weight of the other heads' mean standard deviation within a ramp.

    Returns:
        A scalar, 0 but attached to the graph if no ramp is an attribute's.
    """
    belongs = (ramp < raw.shape[2]).to(raw.device)
    index = ramp.to(raw.device).clamp(max=raw.shape[2] - 1)
    own = raw.gather(2, index.view(-1, 1, 1).expand(-1, raw.shape[1], 1)).squeeze(2)  # (G, L)
    others = torch.ones_like(raw[:, 0]).scatter(1, index[:, None], 0.0)  # (G, 5)
    moved = (raw.std(1) * others).sum(1) / (raw.shape[2] - 1) * belongs
    ranked = margin_ranking(own, torch.where(belongs[:, None], level, 0.0), margin)  # ties count nothing
    return ranked + crosstalk * moved.sum() / belongs.sum().clamp(min=1)


def quality_ranking(logit: Tensor, level: Tensor, harms: Tensor, slope: float) -> Tensor:
    """Ranking of the score along ramps that make any photo worse, by a gap that grows with the levels' difference.

    People rate few photos as noisy as a ramp's end, and none with a cast that its photographer did not choose, so
    ratings alone leave a regressor free to like noise and casts.

    Args:
        logit: ``(G, L)`` score logits on G ramps of L renderings.
        level: ``(G, L)``, each rendering's level in [0, 1]; a higher one is better.
        harms: ``(G,)`` whether that holds for the ramp; the others count nothing.
        slope: the gap asked, in units of ``logit`` per unit of ``level``.

    Returns:
        A scalar: the mean over pairs of harmful ramps of ``max(0, slope (l_i - l_j) - (q_i - q_j))``, l_i > l_j.
    """
    harms = harms.to(logit.device)[:, None, None]
    gap = level.unsqueeze(-1) - level.unsqueeze(-2)  # (G, L, L), antisymmetric
    pairs = (gap > 0) & harms
    hinge = F.relu(slope * gap - (logit.unsqueeze(-1) - logit.unsqueeze(-2))) * pairs
    return hinge.sum() / pairs.sum().clamp(min=1)


def ramp_losses(
    logit: Tensor, raw: Tensor, level: Tensor, ramp: Tensor, margin: float, crosstalk: float, slope: float
) -> tuple[Tensor, Tensor]:
    """What G ramps of L levels ask of the heads (`ramp_ranking`) and of the score (`quality_ranking`).

    Args:
        logit: ``(G * L,)`` score logits.
        raw: ``(G * L, 5)`` head outputs.
        level: ``(G, L)``, each rendering's level.
        ramp: ``(G,)`` indices in `attriqa.data.ramps.RAMPS`; those of `HARMFUL` ones count for the score.
        margin: of `ramp_ranking`.
        crosstalk: of `ramp_ranking`.
        slope: of `quality_ranking`.
    """
    harms = torch.tensor([name in HARMFUL for name in RAMPS])[ramp]
    heads = ramp_ranking(raw.unflatten(0, level.shape), level, ramp, margin, crosstalk)
    return heads, quality_ranking(logit.view_as(level), level, harms, slope)


def score_loss(logit: Tensor, mos: Tensor) -> Tensor:
    """Smooth L1 between ``sigmoid(logit)`` and MOS in [0, 1], both ``(B,)``: quadratic within a tenth of the scale.

    ATTIQA does not name its fine-tuning loss; this one forgives the few photos whose MOS no one could guess.
    """
    return 10 * F.smooth_l1_loss(torch.sigmoid(logit), mos, beta=0.1)


def strength_loss(predicted: Tensor, strengths: Tensor) -> Tensor:
    """Binary cross-entropy of distortion strengths with soft targets (ExIQA, equation 8), averaged over all.

    Args:
        predicted: ``(B, D)`` in [0, 1]; taken in float32 and kept 1e-6 away from 0 and 1.
        strengths: ``(B, D)`` in [0, 1], 0 where a distortion is absent.

    Even the true strengths do not reach 0: what is left is their entropy.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(predicted=predicted, strengths=strengths)
    kept = predicted.float().clamp(1e-6, 1 - 1e-6)
    return -(strengths * kept.log() + (1 - strengths) * torch.log1p(-kept)).mean()


def fidelity(predicted: Tensor, true: Tensor) -> Tensor:
    """How far two-way probabilities are apart, each by itself (Tsai et al., "FRank", SIGIR 2007; LIQE).

    ``1 - sqrt(p g) - sqrt((1 - p) (1 - g))``: 0 where they agree, 1 where one is certain of the contrary. With 1e-8
    under each root, as LIQE has it, 0 becomes -2e-4 at the least. LIQE is Zhang et al., "Blind Image Quality Assessment
    via Vision-Language Correspondence: A Multitask Learning Perspective" (CVPR 2023).

    Args:
        predicted: probabilities, of any shape; taken in float32 and cut to [0, 1].
        true: of the same shape, in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(predicted=predicted, true=true)
    p, g = predicted.float().clamp(0, 1), true.float()  # sums of a softmax pass 1 by rounding: no root of less than 0
    return 1 - (p * g + _FIDELITY_FLOOR).sqrt() - ((1 - p) * (1 - g) + _FIDELITY_FLOOR).sqrt()


def quality_fidelity(predictions: Tensor, mos: Tensor) -> Tensor:
    """LIQE's quality loss: the fidelity of the order of all pairs in one data set.

    The probability that the first of a pair is better is ``Phi(q_1 - q_2)``, the normal distribution function:
    Thurstone's model with a variance of one half for each image, as LIQE's code has it. In truth it is 1, 0 or, for a
    tie, one half.

    Args:
        predictions: ``(N,)`` in the unit of the model's variance; LIQE's quality, from 1 to 5.
        mos: ``(N,)``, in any unit: only their order matters.

    Returns:
        A scalar, the mean over pairs; 0, still attached to the graph, for a single image.

    Raises:
        ValueError: the shapes differ.
    """
    if predictions.ndim != 1 or predictions.shape != mos.shape:
        raise ValueError(f"mos: expected (N,) as predictions, got {tuple(predictions.shape)} and {tuple(mos.shape)}")
    first, second = torch.triu_indices(len(mos), len(mos), 1, device=mos.device)
    better = torch.special.ndtr((predictions[first] - predictions[second]).float())
    losses = fidelity(better, 0.5 * (1 + (mos[first] - mos[second]).sign()))
    return losses.sum() / max(1, len(losses))


def scene_fidelity(predicted: Tensor, present: Tensor) -> Tensor:
    """LIQE's scene loss: the fidelity of each class by itself, for an image may belong to several.

    Args:
        predicted: ``(N, C)`` probabilities.
        present: ``(N, C)`` 1 for the classes of an image, else 0; a row of zeros: nothing is known of it.

    Returns:
        A scalar, the mean over classes and the rows that have one; 0, attached to the graph, where none has.
    """
    known = (present > 0).any(1)
    return (fidelity(predicted, present.float()).mean(1) * known).sum() / known.sum().clamp(min=1)


def distortion_fidelity(predicted: Tensor, true: Tensor) -> Tensor:
    """LIQE's distortion loss: the fidelity of a distribution over exclusive classes, ``1 - sum_c sqrt(p_c g_c)``.

    LIQE's code divides it by the number of classes; this is the paper's.

    Args:
        predicted: ``(N, C)`` probabilities that sum to 1; taken in float32.
        true: ``(N, C)`` likewise; a row of zeros: nothing is known of it.

    Returns:
        A scalar, the mean over the rows that have a class; 0, attached to the graph, where none has.
    """
    known = true.any(1)
    roots = (predicted.float().clamp(min=0) * true + _FIDELITY_FLOOR).sqrt().sum(1)
    return ((1 - roots) * known).sum() / known.sum().clamp(min=1)


def dynamic_weights(means: Sequence[Sequence[float]], temperature: float = 2.0) -> list[float]:
    """Weights of K tasks for the coming epoch: more for those whose loss falls slower.

    Dynamic weight average (Liu et al., "End-to-End Multi-Task Learning with Attention", CVPR 2019, equation 7), which
    LIQE uses: ``K softmax(L_k(t - 1) / L_k(t - 2) / T)``.

    Args:
        means: each task's mean loss in each epoch so far, the last one last; before there are two, weights are 1.
        temperature: T; the greater, the more even.

    Returns:
        K weights that sum to K. A task without a loss two epochs ago (nothing was known of it) has the weight 1, and
        the others share theirs as if it were not there.
    """
    if len(means) < 2:
        return [1.0] * len(means[0]) if means else []
    rates = {task: now / then for task, (now, then) in enumerate(zip(means[-1], means[-2], strict=True)) if then}
    shares = (torch.tensor(list(rates.values())) / temperature).softmax(0).tolist()
    weights = dict(zip(rates, shares, strict=True))
    return [len(rates) * weights[task] if task in weights else 1.0 for task in range(len(means[-1]))]


def _check_shapes(**given: Tensor) -> None:
    """Refuse two tensors of different shapes, by their names."""
    (first, wanted), (second, got) = ((name, tuple(value.shape)) for name, value in given.items())
    if got != wanted:
        raise ValueError(f"{second}: expected the shape of {first}, {wanted}, got {got}")
