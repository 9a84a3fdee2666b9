"""Examples that a score is wrong about, found by its own gradient: changed pixels, and tempting developments.

Both end as pooled statistics of an encoder that stands still, for `training/adversarial_heads.py` to learn from.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from attriqa.distortions import develop, draw_departure
from attriqa.evaluation.attacks import Scorer, pgd, random_start

Pool = Callable[[Tensor], Tensor]
"""``(B, 3, H, W)`` on the score's device -> raw pooled statistics ``(B, D)``; differentiable."""
Read = Callable[[Tensor], Tensor]
"""Raw pooled statistics ``(B, D)`` -> logits of the score ``(B,)``."""

NEAREST = 0.3  # severity from which a development is taken to be worse than a pristine photo
MOST_NOISE = 0.15  # standard deviation of the noise at most, of pixel values in [0, 1]
_RATE = 0.15  # Adam's first, in units of a setting; it falls to a tenth


def pushed(
    crops: Tensor, pool: Pool, read: Read, rng: np.random.Generator, *, epsilons: Sequence[int], steps: int, chunk: int
) -> dict[str, Tensor]:
    """Each crop pushed up, every second one also down, by PGD from a random start on the score's logit.

    Args:
        crops: ``(N, 3, H, W)`` in [0, 1].
        pool: the encoder.
        read: the heads that are attacked.
        rng: of the budgets and the starts.
        epsilons: budgets that are drawn from, in 1/255.
        steps: of PGD.
        chunk: crops at once in the encoder.

    Returns:
        Of M = N + N // 2 examples: ``clean`` and ``attacked`` raw statistics (M, D) fp16, ``index`` of the crop,
        ``way`` (1 up, -1 down), ``epsilon``, and ``gain``, the change of the logit that way; (M,) each.
    """
    index = torch.tensor([*range(len(crops)), *range(1, len(crops), 2)])
    way = torch.where(torch.arange(len(index)) < len(crops), 1.0, -1.0)
    epsilon = torch.from_numpy(rng.choice(epsilons, len(index))).float() / 255
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    parts = []
    for part in torch.arange(len(index)).split(chunk):
        clean = crops[index[part]]
        signs, reach = way[part].to(clean), epsilon[part].to(clean)
        start = random_start(clean, reach, generator)

        def scorer(pixels: Tensor, signs: Tensor = signs) -> Tensor:
            return signs * read(pool(pixels))

        attacked = pgd(scorer, clean, reach, steps, start=start)
        with torch.no_grad():
            parts.append(torch.stack([pool(images) for images in (clean, attacked)]).half().cpu())
    still, moved = torch.cat(parts, 1)
    with torch.no_grad():
        gain = way * (read(moved) - read(still)).cpu()
    return {"clean": still, "attacked": moved, "index": index, "way": way, "epsilon": epsilon, "gain": gain}


def tempting(
    crops: Tensor, pool: Pool, read: Read, rng: np.random.Generator, *, steps: int, levels: int, chunk: int
) -> dict[str, Tensor]:
    """Ramps from each crop of a pristine photo to the departure from it that the score likes best.

    Two of three get noise first, which grows along the ramp too: to a score, sharpened noise may be detail.

    Args:
        crops: ``(N, 3, H, W)`` in [0, 1].
        pool: the encoder.
        read: the heads that are tempted.
        rng: of the noise, and of the departures that the search starts at.
        steps: of that search (`tempting_settings`).
        levels: renderings per ramp, at even steps of severity from the crop on.
        chunk: images at once in the encoder.

    Returns:
        ``ramps`` raw statistics (N, levels, D) fp16; ``levels`` (N, levels), one minus severity; ``gain`` (N,), the
        change of the logit from the first to the last.
    """
    ramps, severities = [], []
    for part in crops.split(chunk):
        start = torch.stack([draw_departure("mixed", rng) * rng.uniform(NEAREST, 1) for _ in part])
        sigma = rng.uniform(0, MOST_NOISE, (len(part), 1, 1, 1)) * (rng.random((len(part), 1, 1, 1)) < 2 / 3)
        noise = torch.from_numpy(sigma * rng.standard_normal(part.shape)).to(part)
        noisy = (part + noise).clamp(0, 1)
        settings = tempting_settings(lambda pixels: read(pool(pixels)), noisy, start.to(part), steps)
        shares = torch.linspace(0, 1, levels).to(part)
        with torch.no_grad():
            shown = [pool(develop(torch.lerp(part, noisy, share), share * settings)).half().cpu() for share in shares]
        ramps.append(torch.stack(shown, 1))
        severities.append((settings.norm(dim=1, keepdim=True) * shares).cpu())
    joined = torch.cat(ramps)
    with torch.no_grad():
        gain = (read(joined[:, -1]) - read(joined[:, 0])).cpu()
    return {"ramps": joined, "levels": 1 - torch.cat(severities), "gain": gain}


def tempting_settings(scorer: Scorer, images: Tensor, start: Tensor, steps: int) -> Tensor:
    """Settings of `develop` that raise a score most, by Adam, of those at a severity of 0.3 to 1.

    Args:
        scorer: what is tempted.
        images: ``(B, 3, H, W)`` in [0, 1].
        start: ``(B, 6)`` settings to start at, of Euclidean length 0.3 to 1.
        steps: of Adam; one more rendering is scored.

    Returns:
        ``(B, 6)``, the best of where they led, detached.

    Raises:
        ValueError: ``start`` is too near or too far.
    """
    lengths = start.norm(dim=1)
    if not bool(((lengths >= NEAREST - 1e-5) & (lengths <= 1 + 1e-5)).all()):
        raise ValueError(f"start: expected settings of length {NEAREST} to 1, got {lengths}")
    here = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([here], lr=_RATE)
    best, most = here.detach().clone(), torch.full_like(lengths, -torch.inf)
    for step in range(steps + 1):
        score = scorer(develop(images, here))
        with torch.no_grad():
            better = score > most
            most = torch.where(better, score, most)
            best[better] = here[better]
        if step == steps:
            break
        optimizer.param_groups[0]["lr"] = _RATE * (1 - 0.9 * step / steps)
        (here.grad,) = torch.autograd.grad(-score.sum(), here)
        optimizer.step()
        with torch.no_grad():
            length = here.norm(dim=1, keepdim=True).clamp(min=1e-6)
            here *= length.clamp(NEAREST, 1) / length
    return best
