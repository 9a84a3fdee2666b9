"""Training losses, each with its paper and equation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.prompts import ATTRIBUTES


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
    if predictions.shape != targets.shape:
        raise ValueError(
            f"targets: expected the shape of predictions, {tuple(predictions.shape)}, got {tuple(targets.shape)}"
        )
    order = (targets.unsqueeze(-1) - targets.unsqueeze(-2)).sign()  # (..., N, N), antisymmetric
    gap = predictions.unsqueeze(-1) - predictions.unsqueeze(-2)
    hinge = F.relu(margin - order * gap) * (order > 0)  # each unordered pair once, ties never
    return hinge.sum() / (order > 0).sum().clamp(min=1)


def ramp_ranking(raw: Tensor, level: Tensor, attribute: Tensor, margin: float = 0.5, crosstalk: float = 0.3) -> Tensor:
    """Margin ranking of the head that a ramp belongs to, and a penalty on what it moves in the other four.

    Args:
        raw: ``(G, L, 5)`` head outputs on G ramps of L renderings.
        level: ``(G, L)``, each rendering's level.
        attribute: ``(G,)`` index of the ramp's attribute.
        margin: of `margin_ranking`, in units of ``raw``.
        crosstalk: weight of the other heads' mean standard deviation within a ramp.

    Returns:
        A scalar.
    """
    index = attribute.to(raw.device)
    own = raw.gather(2, index.view(-1, 1, 1).expand(-1, raw.shape[1], 1)).squeeze(2)  # (G, L)
    others = torch.ones_like(raw[:, 0]).scatter(1, index[:, None], 0.0)  # (G, 5)
    moved = (raw.std(1) * others).sum(1) / (raw.shape[2] - 1)
    return margin_ranking(own, level, margin) + crosstalk * moved.mean()


def quality_ranking(logit: Tensor, level: Tensor, attribute: Tensor, margin: float = 0.3) -> Tensor:
    """Margin ranking of the score along the ramps that make any photo worse: blur and noise.

    People rate few photos as noisy as a ramp's end, so ratings alone leave a regressor free to like noise. The other
    ramps pass through the photographer's choice, where neither direction is better.

    Args:
        logit: ``(G, L)`` score logits on G ramps of L renderings.
        level: ``(G, L)``, each rendering's level.
        attribute: ``(G,)`` index of the ramp's attribute; all but sharpness and noisiness count nothing.
        margin: of `margin_ranking`, in units of ``logit``.

    Returns:
        A scalar.
    """
    harms = torch.tensor([name in ("sharpness", "noisiness") for name in ATTRIBUTES], device=logit.device)
    ranked = harms[attribute.to(logit.device)]
    return margin_ranking(logit, torch.where(ranked[:, None], level, 0.0), margin)


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
    if predicted.shape != strengths.shape:
        wanted, got = tuple(predicted.shape), tuple(strengths.shape)
        raise ValueError(f"strengths: expected the shape of predicted, {wanted}, got {got}")
    kept = predicted.float().clamp(1e-6, 1 - 1e-6)
    return -(strengths * kept.log() + (1 - strengths) * torch.log1p(-kept)).mean()
