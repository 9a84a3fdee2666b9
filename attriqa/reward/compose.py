"""What stands between a reward and those who train image generators with it.

`Reward` is what every reward of ours can do beside being called: be weighed and added to any other scorer
(`CombinedReward`), and be handed to a trainer (`RewardFn`). `group_advantages` and `best_of_n` are for loops of one's
own.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from attriqa import images as image_io
from attriqa.images.forms import Pictures, are_blank, batches_by_size

Scorer = Callable[..., Any]  # (images) or (images, prompts) -> (B,): a tensor, an array or a sequence of numbers


class Reward(nn.Module):
    """A module ``(images) -> (B,)`` that can be weighed, added to other scorers and handed to a trainer.

    ``QualityReward() + 0.5 * as_reward(similarity)`` is a `CombinedReward`, and so is ``QualityReward() + similarity``.
    """

    def breakdown(self, images: Tensor, prompts: Sequence[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward, ``(B,)``, and by name what is worth logging beside it, each ``(B,)`` and without gradients."""
        return self(images), {}

    def told(self, images: Tensor, prompts: Sequence[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The former name of `breakdown`; goes with the next version."""
        warnings.warn("told: this method is now called breakdown", DeprecationWarning, stacklevel=2)
        return self.breakdown(images, prompts)

    def as_reward_fn(self) -> "RewardFn":
        """This reward as the ``(images, prompts, metadata) -> (scores, info)`` of diffusion trainers; see `RewardFn`.

        For ddpo-pytorch, AlignProp and TRL's former ``DDPOTrainer`` and ``AlignPropTrainer`` it is the reward function
        itself; for flow_grpo, what an entry of ``score_functions`` in ``multi_score`` returns.
        """
        return RewardFn(self)

    def __add__(self, other: Scorer) -> "CombinedReward":
        return CombinedReward([*_terms(self), *_terms(other)]) if callable(other) else NotImplemented

    def __radd__(self, other: Scorer) -> "CombinedReward":
        return CombinedReward([*_terms(other), *_terms(self)]) if callable(other) else NotImplemented

    def __mul__(self, weight: float) -> "CombinedReward":
        if not isinstance(weight, Real):
            return NotImplemented
        return CombinedReward(term._replace(weight=term.weight * float(weight)) for term in _terms(self))

    __rmul__ = __mul__


class Term(NamedTuple):
    """One scorer of a sum."""

    name: str
    weight: float
    scorer: Scorer
    prompts: Literal["none", "optional", "required"] = "none"  # whether it takes them


class CombinedReward(Reward):
    """A weighted sum of scorers: ``reward(images, prompts) -> (B,)``, higher is better, differentiable where they are.

    Made by ``+`` and ``*``. Attriqa's rewards judge the picture alone, so how well it fits its prompt has to come from
    another scorer; the sum is not normalised, so choose weights by the spread of each on your pictures.

    A scorer is any callable ``(images) -> (B,)``; one with a parameter called ``prompts`` gets them as well. Rewards
    of ours move with ``.to()``; any other module is called where it is and as it is: freeze it, or the backward pass
    fills its gradients too.

    Args:
        terms: the scorers; a name that comes twice is numbered.

    Attributes:
        terms: the same.

    Raises:
        ValueError: there is none, or a weight is not finite.
    """

    def __init__(self, terms: Iterable[Term]) -> None:
        super().__init__()
        listed: list[Term] = []
        for term in terms:
            if not math.isfinite(term.weight):
                raise ValueError(f"weight: expected a finite number for {term.name}, got {term.weight}")
            taken = {other.name for other in listed}
            names = (term.name if count == 1 else f"{term.name}_{count}" for count in range(1, len(listed) + 2))
            listed.append(term._replace(name=next(name for name in names if name not in taken)))
        if not listed:
            raise ValueError("terms: expected at least one")
        self.terms = tuple(listed)
        self._own = nn.ModuleList(term.scorer for term in listed if isinstance(term.scorer, Reward))

    def forward(self, images: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """The weighted sum for each image.

        Args:
            images: ``(B, 3, H, W)`` floating, sRGB in [0, 1], sides of at least 32 pixels.
            prompts: B texts, for the scorers that take them.

        Returns:
            ``(B,)`` float32, unreduced.

        Raises:
            ValueError: images are anything else, prompts are too few or missing, or a scorer gives other than B finite
                numbers.
        """
        return self.breakdown(images, prompts)[0]

    def breakdown(self, images: Tensor, prompts: Sequence[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each scorer's own number by its name."""
        image_io.check(images)
        _check_prompts(prompts, len(images))
        values = {term.name: _values(term, images, prompts) for term in self.terms}
        total = torch.stack([term.weight * values[term.name] for term in self.terms]).sum(0)
        return total, {name: value.detach() for name, value in values.items()}


def as_reward(scorer: Scorer, name: str | None = None) -> CombinedReward:
    """Make any scorer a reward that can be weighed and added.

    ``QualityReward() + 0.5 * as_reward(similarity)`` counts the similarity half.

    Args:
        scorer: ``(images) -> (B,)`` or ``(images, prompts) -> (B,)``, higher is better; see `CombinedReward`.
        name: what it is called in a trainer's logs; without it, the function's own name.

    Raises:
        ValueError: it cannot be called.
    """
    if not callable(scorer):
        got = type(scorer).__name__
        raise ValueError(f"scorer: expected a callable (images[, prompts]) -> (B,), got {got}")  # noqa: TRY004
    terms = _terms(scorer)
    return CombinedReward(terms if name is None else [term._replace(name=name) for term in terms])


class RewardFn:
    """A reward as diffusion trainers call theirs: ``(images, prompts, metadata) -> (scores, info)``.

    Args:
        reward: what scores.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward

    def __call__(
        self, images: Pictures, prompts: Sequence[str] | None = None, metadata: object = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score pictures in any of the forms that pipelines give them.

        Args:
            images: one of

                - ``output_type="pt"``: a tensor ``(B, 3, H, W)``, floating, in [0, 1]; gradients pass through;
                - ``output_type="np"``, or bytes: an array ``(B, H, W, 3)``, floating in [0, 1] or uint8;
                - ``output_type="pil"``: a sequence of Pillow images, of any sizes and modes;
                - a sequence of tensors ``(3, H, W)`` or arrays ``(H, W, 3)``, of any sizes.
            prompts: B texts, for the scorers of a `CombinedReward` that take them; ``None``: none.
            metadata: what the trainer knows of the prompts; not looked at.

        Returns:
            The scores, ``(B,)`` float32, higher is better, in the order of the images, with gradients exactly when
            ``images`` ask for some; and by name, each ``(B,)``, without gradients: ``"blank"``, whether a picture is
            all black, as safety checkers leave it (it is scored like any other: leave it out of your averages), and
            what the reward is made of.

        Raises:
            ValueError: images are none of these, or there is not one prompt per image.
        """
        groups = batches_by_size(images, _device(self.reward))
        count = sum(len(batch) for _, batch in groups)
        _check_prompts(prompts, count)
        scores: list[Tensor] = []
        infos: list[dict[str, Tensor]] = []
        # A trainer may call this on a thread of its own, where its torch.no_grad() does not hold.
        asked = torch.is_grad_enabled() and any(batch.requires_grad for _, batch in groups)
        with torch.set_grad_enabled(asked):
            for places, batch in groups:
                texts = None if prompts is None else [prompts[place] for place in places]
                score, info = self.reward.breakdown(batch, texts)
                scores.append(score)
                infos.append({"blank": are_blank(batch), **info})
            order = torch.tensor([place for places, _ in groups for place in places]).argsort().to(scores[0].device)
            joined = {name: torch.cat([info[name] for info in infos])[order] for name in infos[0]}
            return torch.cat(scores)[order], joined


def _terms(scorer: Scorer) -> Sequence[Term]:
    """What a scorer adds to a sum."""
    if isinstance(scorer, CombinedReward):
        return scorer.terms
    if isinstance(scorer, Reward):
        return [Term("quality", 1.0, scorer)]
    try:
        parameters = inspect.signature(scorer.forward if isinstance(scorer, nn.Module) else scorer).parameters
    except ValueError:  # some functions written in C tell no signature
        parameters = MappingProxyType({})
    name = getattr(scorer, "__name__", type(scorer).__name__)
    if "prompts" not in parameters:
        return [Term(name, 1.0, scorer)]
    required = parameters["prompts"].default is inspect.Parameter.empty
    return [Term(name, 1.0, scorer, "required" if required else "optional")]


def _values(term: Term, images: Tensor, prompts: Sequence[str] | None) -> Tensor:
    """What one scorer says of the images, checked."""
    if term.prompts == "required" and prompts is None:
        raise ValueError(f"prompts: expected one per image, as {term.name} needs them; got None")
    values = term.scorer(images) if term.prompts == "none" else term.scorer(images, prompts=prompts)
    values = torch.as_tensor(values, device=images.device)
    if values.shape != images.shape[:1]:
        raise ValueError(f"{term.name}: expected ({len(images)},), a number per image, got {tuple(values.shape)}")
    if not values.isfinite().all():
        raise ValueError(f"{term.name}: expected finite numbers, got {values.detach().tolist()}")
    return values.float()


def _check_prompts(prompts: Sequence[str] | None, count: int) -> None:
    if prompts is not None and len(_listed(prompts)) != count:
        raise ValueError(f"prompts: expected {count}, one per image, got {len(prompts)}")


def _listed(prompts: Sequence[str]) -> Sequence[str]:
    if isinstance(prompts, str):
        raise ValueError(f"prompts: expected a sequence of texts, got one text, {prompts!r:.80}")  # noqa: TRY004
    return prompts


def _device(module: nn.Module) -> torch.device | None:
    """Where a reward is; `None`: it holds nothing that is anywhere."""
    held = next((tensor for tensors in (module.buffers(), module.parameters()) for tensor in tensors), None)
    return None if held is None else held.device
