"""What policy gradients need of a reward: the best of N, and advantages within a group."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attriqa.images.forms import Pictures
from attriqa.reward.compose import Reward, _listed


class Ranking(NamedTuple):
    """N pictures for each of P prompts, ranked."""

    best: Tensor  # (P,) int64, indices into the images
    scores: Tensor  # (P, N)
    blank: Tensor  # (P, N) bool, pictures that are all black


def best_of_n(reward: Reward, images: Pictures, n: int, prompts: Sequence[str] | None = None) -> Ranking:
    """The best of ``n`` pictures of each prompt.

    ``pipeline(prompts, num_images_per_prompt=n).images`` of diffusers is in the order that this expects. A blank
    picture is never the best, unless all of its prompt's are.

    Args:
        reward: what ranks them.
        images: P times n pictures, those of a prompt next to one another, in any of the forms of `RewardFn`.
        n: pictures per prompt.
        prompts: the P prompts, if the reward takes them.

    Raises:
        ValueError: the number of images is no multiple of ``n``, or not ``n`` times that of prompts.
    """
    if n < 1 or not len(images) or len(images) % n:
        raise ValueError(f"images: expected a multiple of n = {n}, at least one, got {len(images)}")
    texts = None if prompts is None else [prompt for prompt in _listed(prompts) for _ in range(n)]
    with torch.no_grad():
        scores, info = reward.as_reward_fn()(images, texts)
    scores, blank = scores.view(-1, n), info["blank"].view(-1, n)
    best = scores.masked_fill(blank, -math.inf).argmax(1)
    return Ranking(best + n * torch.arange(len(best), device=best.device), scores, blank)


def group_advantages(rewards: Tensor, groups: Sequence[Hashable], *, scale: bool = True) -> Tensor:
    """How much better each sample is than the others of its group: GRPO's advantage.

    ``(r - mean) / (std + 1e-4)`` within each group (Shao et al., DeepSeekMath, 2024, section 4.1.2), with the standard
    deviation of the group as a population. The 1e-4 keeps a group of equals at zero: rewards differ by rounding.

    Args:
        rewards: ``(B,)``; when several processes sample, gathered from all of them.
        groups: B keys, such as the prompts; samples with equal keys form a group. A group of one gets zero.
        scale: divide by the standard deviation; without it, prompts on which samples hardly differ count less
            (Liu et al., Understanding R1-Zero-like training, 2025).

    Returns:
        ``(B,)`` without gradients.

    Raises:
        ValueError: the rewards are not finite ``(B,)``, or there is not one key for each.
    """
    if rewards.ndim != 1 or not rewards.is_floating_point() or not rewards.isfinite().all():
        raise ValueError(f"rewards: expected finite floats (B,), got {rewards.dtype} of shape {tuple(rewards.shape)}")
    if len(groups) != len(rewards):
        raise ValueError(f"groups: expected {len(rewards)} keys, one per reward, got {len(groups)}")
    keys = {key: index for index, key in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([keys[key] for key in groups], device=rewards.device)
    member = torch.nn.functional.one_hot(index, len(keys)).to(rewards.dtype)  # (B, G)
    rewards = rewards.detach()
    size = member.sum(0)
    centred = rewards - ((member.T @ rewards) / size)[index]
    deviation = ((member.T @ centred.square()) / size).sqrt()[index]
    return centred / (deviation + 1e-4) if scale else centred
