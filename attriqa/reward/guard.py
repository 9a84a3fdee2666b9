"""A reward that is harder to fool: a lower bound over several models, many looks at an image, bounds on attributes.

An optimiser ends up in a model's blind spot. Where others do not share it, their spread grows and the bound falls.
Heads on one encoder share most blind spots and cost next to nothing; a model on another encoder shares few and costs a
pass of its own. Whatever is in the guard is optimised and no longer a judge: watch others (`attriqa.judges`).
``python evals/attack.py`` prints what a guard buys against the strongest of optimisers.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from attriqa.attributes import ATTRIBUTES
from attriqa.models import load
from attriqa.models.assessment import Assessment
from attriqa.models.attribute_heads import squash
from attriqa.models.attribute_net import AttributeNet
from attriqa.models.base import QualityModel
from attriqa.models.clip.towers import weights_hash
from attriqa.models.views import View, average_over_view

NATURAL = (0.03, 0.97)
"""Attributes of natural photos lie within these bounds, but for a few in a hundred; see `Guard.attribute_bounds`."""

_EPS = 1e-8  # under the square root of a variance: gradients stay finite where all agree


@dataclass(frozen=True)
class Guard:
    """How an `attriqa.QualityReward` is guarded: ``QualityReward(guard=Guard())``.

    With it, ``score`` is a lower bound, ``mean - std_weight * std`` over the model and the members, and may fall a
    little below 0; the reward is what it was, less the penalty for attributes out of bounds. It stays differentiable,
    the same for an image in any batch, and the same each time.

    Attributes:
        members: models by name or path, as `attriqa.load` takes them, on the scale of the model's scores. Those on its
            very encoder (folds of ``training/finetune.py --mode probe``) share one pass of it. The default,
            ``("judge",)``, is inside the package and stands on another encoder. Empty: no ensemble.
        std_weight: standard deviations between model and members that the score is lowered by, at least 0.
        jitter_views: looks at an image, each at a random box of it, flipped or not, whose mean is taken; 0: one look at
            the whole. The boxes are drawn once, from ``seed``, relative to the image's size. Time grows with it.
        jitter_size: least share of each side that a box has, in (0, 1].
        attribute_bounds: attribute -> (low, high), where it may be without penalty; ``None``: `NATURAL` for each
            attribute that the model tells; empty: none.
        bounds_weight: penalty per unit that an attribute is out of its bounds, at least 0.
        seed: of the boxes.

    Raises:
        ValueError: a value is none of the above.
    """

    members: tuple[str | Path, ...] = ("judge",)
    std_weight: float = 1.0
    jitter_views: int = 0
    jitter_size: float = 0.75
    attribute_bounds: Mapping[str, tuple[float, float]] | None = None
    bounds_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("std_weight", "bounds_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a finite number of at least 0, got {getattr(self, name)}")
        if self.jitter_views < 0:
            raise ValueError(f"jitter_views: expected at least 0, got {self.jitter_views}")
        if not 0 < self.jitter_size <= 1:
            raise ValueError(f"jitter_size: expected a share in (0, 1], got {self.jitter_size}")
        for name, (low, high) in (self.attribute_bounds or {}).items():
            if not low <= high:
                raise ValueError(f"attribute_bounds: expected (low, high) of {name} in that order, got {(low, high)}")
        if isinstance(self.members, str | Path):
            raise ValueError(f"members: expected a tuple of paths, got the path {self.members}")  # noqa: TRY004


class GuardedModel(QualityModel):
    """A model with a guard around it; tells what the model tells, with a lower bound as score.

    Args:
        base: the model, as it was loaded.
        guard: the options.

    Attributes:
        identity: of the guard and its members' weights.

    Raises:
        ValueError: bounds are given for an attribute that the model does not tell, or a member has not learnt to score.
        attriqa.models.checkpoint.CheckpointError: a member is no checkpoint.
        FileNotFoundError: a member's file is missing.
    """

    def __init__(self, base: QualityModel, guard: Guard) -> None:
        super().__init__()
        self.base, self.guard = base, guard
        self.config, self.views = base.config, base.views
        self.heads, self.others = nn.ModuleList(), nn.ModuleList()
        for name in guard.members:
            member = load(name)
            if not member.has_score:
                raise ValueError(f"members: expected models that have learnt to score; {name} tells distortions alone")
            if _shares_encoder(member, base):
                del member.backbone
                self.heads.append(member)
            else:
                self.others.append(member)
        bounds = guard.attribute_bounds
        if bounds is None:
            bounds = {name: NATURAL for name in base.attributes if name in ATTRIBUTES}
        unknown = set(bounds) - set(base.attributes)
        if unknown:
            raise ValueError(
                f"attribute_bounds: expected names among {', '.join(base.attributes) or 'none'}, "
                f"got {', '.join(sorted(unknown))}"
            )
        limits = [bounds.get(name, (-math.inf, math.inf)) for name in base.attributes]
        self.register_buffer("low", torch.tensor([low for low, _ in limits]), persistent=False)
        self.register_buffer("high", torch.tensor([high for _, high in limits]), persistent=False)
        self.boxes = draw_boxes(guard, torch.Generator().manual_seed(guard.seed))
        settings = asdict(guard) | {"members": weights_hash(self.state_dict()), "bounds": limits}
        self.identity = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]

    low: Tensor
    high: Tensor

    @property
    def attributes(self) -> tuple[str, ...]:
        """The model's."""
        return self.base.attributes

    @property
    def distortions(self) -> tuple[str, ...]:
        """The model's."""
        return self.base.distortions

    @property
    def has_score(self) -> bool:
        """As the model has."""
        return self.base.has_score

    @property
    def reads_at(self) -> int | None:
        """Large enough for every model, and that the smallest box is not scaled up."""
        edges = [model.reads_at for model in self._models()]
        known = [edge for edge in edges if edge is not None]
        if len(known) < len(edges):
            return None
        return math.ceil(max(known) / (self.guard.jitter_size if self.guard.jitter_views else 1))

    def see(self, images: Tensor, view: View) -> Assessment:
        """The model's assessment, mean over the looks, with the lower bound as score."""
        return self.see_through(images, view, self.boxes)

    def see_through(self, images: Tensor, view: View, boxes: Tensor) -> Assessment:
        """`see` with the boxes of `draw_boxes`, (N, 4); with none, one look at the whole."""
        looks = [cut_box(images, box) for box in boxes.tolist()] or [images]
        assessments = [self._assess(look, view) for look in looks]
        score, *others = zip(*assessments, strict=True)
        mean = [None if field[0] is None else torch.stack(field).mean(0) for field in others]
        return Assessment(lower_bound(torch.stack(score).mean(0), self.guard.std_weight), *mean)

    def penalty(self, assessment: Assessment) -> Tensor:
        """What attributes out of bounds cost, (B,), at least 0; with a slope wherever it is not 0."""
        if assessment.attributes is None:
            return torch.zeros_like(assessment.score)
        outside = (self.low - assessment.attributes).relu() + (assessment.attributes - self.high).relu()
        return self.guard.bounds_weight * outside.sum(1)

    def activation_bytes(self, height: int, width: int, view: View, *, gradients: bool) -> int:
        """Of all models; with gradients, of every look."""
        each = sum(
            model.activation_bytes(height, width, _view_of(model, view), gradients=gradients)
            for model in self._models()
        )
        return each * (max(1, self.guard.jitter_views) if gradients else 1)

    def save(self, path: Path | str, provenance: Mapping[str, Any]) -> None:
        """Refused: the model and its members are saved by themselves."""
        raise TypeError(f"{path}: a guarded model has no checkpoint of its own; its model and members have")

    def prepare(self) -> None:
        """As the models do."""
        for model in self._models():
            model.prepare()

    def _models(self) -> list[QualityModel]:
        """Those that look at images: the model, and the members on other encoders."""
        return [self.base, *cast(Iterable[QualityModel], self.others)]

    def _assess(self, images: Tensor, view: View) -> Assessment:
        """What the model tells, with the scores of all, (B, 1 + members), as score."""
        if len(self.heads):
            config = cast(AttributeNet, self.base).config
            assessment = average_over_view(
                self._assess_heads, images, view, shorter_edge=config.shorter_edge, crop=config.crop
            )
        else:
            assessment = self.base.see(images, view)
            assessment = assessment._replace(score=assessment.score[:, None])
        others = [other.see(images, _view_of(other, view)).score[:, None] for other in self._models()[1:]]
        return assessment._replace(score=torch.cat([assessment.score, *others], 1))

    def _assess_heads(self, images: Tensor) -> Assessment:
        """What the net and the heads on its encoder tell of (B, 3, H, W) after one pass; score (B, 1 + heads)."""
        net = cast(AttributeNet, self.base)
        pooled = net.pool(images)
        with torch.autocast(images.device.type, enabled=False):
            logit, raw = net.read(pooled)
            statistics = pooled * net.pooled_std + net.pooled_mean
            heads = cast(Iterable[AttributeNet], self.heads)
            logits = [logit, *(head.read((statistics - head.pooled_mean) / head.pooled_std)[0] for head in heads)]
            attributes = squash((raw - net.attribute_shift) / net.attribute_scale)
            distortions = () if net.distortion_head is None else net.distortion_head(pooled)
        return Assessment(torch.sigmoid(torch.stack(logits, 1)), attributes, *distortions)


def _view_of(model: QualityModel, view: View) -> View:
    return view if view in model.views else model.views[0]


def _shares_encoder(member: QualityModel, base: QualityModel) -> TypeGuard[AttributeNet]:
    if not isinstance(member, AttributeNet) or not isinstance(base, AttributeNet):
        return False
    if member.backbone.name != base.backbone.name or member.backbone.taps != base.backbone.taps:
        return False
    same_statistics = member.config.statistics == base.config.statistics
    return same_statistics and weights_hash(member.backbone.state_dict()) == weights_hash(base.backbone.state_dict())


def lower_bound(scores: Tensor, std_weight: float) -> Tensor:
    """``mean - std_weight * std`` over the models: (B, models) -> (B,); of a single one, its score."""
    mean = scores.mean(1)
    if scores.shape[1] < 2:
        return mean
    spread = (scores.var(1) + _EPS).sqrt() - math.sqrt(_EPS)
    return mean - std_weight * spread


def draw_boxes(guard: Guard, generator: torch.Generator) -> Tensor:
    """Where to look: (jitter_views, 4) shares of the image: size, top, left, and flipped if over a half."""
    drawn = torch.rand(guard.jitter_views, 4, generator=generator, dtype=torch.float64)
    size = guard.jitter_size + (1 - guard.jitter_size) * drawn[:, :1]
    return torch.cat([size, drawn[:, 1:3] * (1 - size), drawn[:, 3:]], 1)


def cut_box(images: Tensor, box: Sequence[float]) -> Tensor:
    """The part of (B, 3, H, W) that a row of `draw_boxes` names; a view of them unless flipped."""
    size, top, left, flip = box
    height, width = (max(1, round(size * side)) for side in images.shape[2:])
    y = min(round(top * images.shape[2]), images.shape[2] - height)
    x = min(round(left * images.shape[3]), images.shape[3] - width)
    part = images[:, :, y : y + height, x : x + width]
    return part.flip(3) if flip > 0.5 else part
