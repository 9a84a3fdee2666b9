"""ExIQA: a CLIP that tells a table's attributes, the strengths of distortions read from them, and a score from both.

Source: "ExIQA: Explainable Image Quality Assessment Using Distortion Attributes".
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.distortions.attributes import (
    DISTORTION_ATTRIBUTES,
    DistortionAttributes,
    check_table,
    sentences,
    table_hash,
)
from attriqa.models import checkpoint
from attriqa.models.assessment import Assessment
from attriqa.models.clip.model import CLIPModel, CLIPModelConfig, cut_to_scale, distinct_tokens
from attriqa.models.clip.prompts import PromptKind, VisualPrompts
from attriqa.models.clip.towers import CLIPTowers, activation_bytes
from attriqa.models.views import View


@dataclass(frozen=True)
class ExIQAConfig(CLIPModelConfig):
    """Everything that an `ExIQA` is beside its CLIP; saved inside its checkpoint.

    Raises:
        ValueError: a field is out of its range, or the table is none.
    """

    table: tuple[DistortionAttributes, ...] = DISTORTION_ATTRIBUTES
    tune: Literal["prompts", "all"] = "prompts"  # what of CLIP learns: tokens inside its image tower, or both towers
    prompts: int = 100  # tokens; 0 with "none"
    prompt_kind: PromptKind = "shallow"  # as in `VisualPrompts`
    normalize: bool = True  # features to unit length, so that products are cosines
    logit_scale: float | None = None  # tau; None: CLIP's own, or 1 for features that are not normalised
    regressor_widths: tuple[int, ...] = (256, 128)
    regressor_dropout: float = 0.2

    def __post_init__(self) -> None:
        check_table(self.table)
        if self.tune not in ("prompts", "all"):
            raise ValueError(f"tune: expected prompts or all, got {self.tune!r}")
        self.require_positive("logit_scale")
        if not self.regressor_widths or min(self.regressor_widths) < 1:
            raise ValueError(f"regressor_widths: expected numbers of at least 1, got {self.regressor_widths}")

    @classmethod
    def _from_json(cls, name: str, value: Any) -> Any:
        if name == "table":
            return tuple(DistortionAttributes(**row | {"attributes": tuple(row["attributes"])}) for row in value)
        return super()._from_json(name, value)


class Identified(NamedTuple):
    """What B images show, in the order of the table."""

    strengths: Tensor  # (B, D) in [0, 1]
    probs: Tensor  # (B, D * K) attribute probabilities, K to a distortion


class ExIQA(CLIPModel):
    """Image -> attribute probabilities -> strengths of distortions -> score (ExIQA, equations 3 to 9).

    Images are resized and cropped as the CLIP wants to see them; gradients go through to their pixels. Towers that do
    not learn stay in eval mode and without gradients of their own.

    The score is the regressor's output, cut to [0, 1] in value and not in gradient. The regressor starts at 0.5 for
    every image: until it is trained (`has_score`) there is no score.

    Args:
        config: the rest of the model.
        towers: used as they are, not copied: what learns, learns in them.
        seed: of prompts and regressor.

    Raises:
        ValueError: the image tower is no vision transformer of open_clip's own (the model is named), prompts and their
            kind do not fit, or the model's texts are so short that two attributes become the same.
    """

    config: ExIQAConfig
    config_type = ExIQAConfig
    tokens: Tensor

    def __init__(self, config: ExIQAConfig, towers: CLIPTowers, *, seed: int = 0) -> None:
        super().__init__(config, towers)
        try:
            self.prompts = VisualPrompts(self.clip.visual, config.prompts, config.prompt_kind, seed=seed)
        except ValueError as error:
            raise ValueError(f"{towers.name}: {error}") from error
        count = len(config.table[0].attributes)
        self.weights = nn.Parameter(torch.zeros(len(config.table), count))  # logits of w in equation 7: uniform
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.regressor = _regressor(len(config.table) * count, config.regressor_widths, config.regressor_dropout)
        self.register_buffer("tokens", _tokens(config.table, towers), persistent=False)  # (2, D * K, L)
        self.clip.requires_grad_(config.tune == "all")
        self.freeze_temperature()
        self.train(self.training)

    @property
    def towers(self) -> CLIPTowers:
        """The CLIP as it stands now, for another model to start from."""
        reloadable = self._towers.reloadable and self.config.tune == "prompts"
        return self._towers._replace(model=self.clip, reloadable=reloadable)

    @property
    def distortions(self) -> tuple[str, ...]:
        """The keys of its table."""
        return tuple(entry.key for entry in self.config.table)

    @property
    def has_score(self) -> bool:
        """Whether the regressor has been trained."""
        return bool(cast(nn.Linear, self.regressor[-1]).weight.any())

    @property
    def prompts_hash(self) -> str:  # type: ignore[override]
        """Of its table."""
        return table_hash(self.config.table)

    @property
    def texts_learn(self) -> bool:
        """Whether the text tower does."""
        texts = (parameter for name, parameter in self.clip.named_parameters() if not name.startswith("visual."))
        return any(parameter.requires_grad for parameter in texts)

    def train(self, mode: bool = True) -> Self:
        """Training mode for what learns, be it all of the towers."""
        super().train(mode)
        self.clip.train(mode and self.config.tune == "all")
        return self

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) sRGB in [0, 1] -> (B, E) float32, of unit length with ``normalize``."""
        pixels = self.preprocess.normalize(self.preprocess.geometry(images))
        features: Tensor = self.prompts(self.clip.visual, pixels).float()
        return F.normalize(features, dim=1) if self.config.normalize else features

    def _encode_texts(self) -> Tensor:
        """``t+ - t-`` of each attribute, (D * K, E): the difference of its two texts' features."""
        features: Tensor = self.clip.encode_text(self.tokens.flatten(0, 1)).float()
        features = F.normalize(features, dim=1) if self.config.normalize else features
        positive, negative = features.chunk(2)
        return positive - negative

    def identify(self, images: Tensor) -> Identified:
        """Attribute probabilities (6) and strengths (7) of (B, 3, H, W) sRGB images in [0, 1]; nothing is checked."""
        features, directions = self.image_features(images), self.text_features()
        with torch.autocast(images.device.type, enabled=False):  # cosines differ by 0.01: bfloat16 drowns that
            scale = self.config.logit_scale or (self.clip.logit_scale.exp() if self.config.normalize else 1.0)
            probs = torch.sigmoid(scale * (features @ directions.T))
            strengths = (probs.unflatten(1, self.weights.shape) * self.weights.softmax(1)).sum(2)
        return Identified(strengths, probs)

    predict = identify

    def forward(self, images: Tensor) -> Assessment:
        """Assess (B, 3, H, W) sRGB images in [0, 1]; ``attributes`` is None."""
        strengths, probs = self.identify(images)
        with torch.autocast(images.device.type, enabled=False):
            score = self.regressor(probs).squeeze(1)
        return Assessment(cut_to_scale(score), None, strengths, probs)

    def activation_bytes(self, height: int, width: int, view: View, *, gradients: bool) -> int:
        """By the tokens of the image tower."""
        extra = 0 if self.prompts.prompts is None else self.prompts.prompts.shape[1]
        return activation_bytes(self.clip.visual, height, width, extra=extra, gradients=gradients)

    @classmethod
    def restore(
        cls,
        saved: checkpoint.Checkpoint,
        path: Path | str,
        *,
        towers: CLIPTowers | None = None,
        table: Sequence[DistortionAttributes] | None = None,
    ) -> Self:
        """As `CLIPModel.restore`; where a ``table`` is given, the model is expected to know that one."""
        model = super().restore(saved, path, towers=towers)
        _check_tables(saved, model.config.table, table, path)
        return model


def _regressor(seen: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Hidden layers with SELU and dropout, and one output, which starts at 0.5."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(seen, width), nn.SELU(), nn.Dropout(dropout)]
        seen = width
    last = nn.Linear(seen, 1)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 0.5)
    return nn.Sequential(*layers, last)


def _tokens(table: Sequence[DistortionAttributes], towers: CLIPTowers) -> Tensor:
    """(2, D * K, L): of the positive and the negative texts."""
    texts = [text for side in sentences(a for entry in table for a in entry.attributes) for text in side]
    return torch.stack(distinct_tokens(towers, texts, what="table", wanted="shorter attributes").chunk(2))


restore = ExIQA.restore


def load(
    path: Path | str, *, towers: CLIPTowers | None = None, table: Sequence[DistortionAttributes] | None = None
) -> ExIQA:
    """`CLIPModel.load`; ``table`` as in `ExIQA.restore`."""
    return restore(checkpoint.load(path), path, towers=towers, table=table)


def _check_tables(
    saved: checkpoint.Checkpoint,
    own: Sequence[DistortionAttributes],
    wanted: Sequence[DistortionAttributes] | None,
    path: Path | str,
) -> None:
    checkpoint.check_prompts(saved.prompts_hash, table_hash(own), path)
    if wanted is not None and table_hash(wanted) != table_hash(own):
        sizes = [
            f"{len(table)} distortions, {sum(len(row.attributes) for row in table)} attributes"
            for table in (own, wanted)
        ]
        raise checkpoint.CheckpointError(
            path,
            f"made with the attribute table {table_hash(own)[:16]} ({sizes[0]}), "
            f"but the table in use is {table_hash(wanted)[:16]} ({sizes[1]})",
        )


def transfer(model: ExIQA, table: Sequence[DistortionAttributes]) -> ExIQA:
    """The same towers and prompts for the attributes of another table (ExIQA, table IV: zero-shot identification).

    Distortions that both tables have, by their attributes, keep their weights; those of others are uniform. There is
    no score: the regressor knew the old table.

    Args:
        model: what learnt from one table; the towers are shared with it, and so is their state.
        table: of what is to be found.
    """
    config = dataclasses.replace(model.config, table=tuple(table))
    other = ExIQA(config, model.towers).to(model.weights.device)
    places = {entry.attributes: place for place, entry in enumerate(model.config.table)}
    with torch.no_grad():
        for row, entry in zip(other.weights, table, strict=True):
            place = places.get(entry.attributes)
            if place is not None:
                row.copy_(model.weights[place])
        if other.prompts.prompts is not None and model.prompts.prompts is not None:
            other.prompts.prompts.copy_(model.prompts.prompts)
    return other.train(model.training)
