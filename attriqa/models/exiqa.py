"""ExIQA: a CLIP that tells a table's attributes, the strengths of distortions read from them, and a score from both.

Source: "ExIQA: Explainable Image Quality Assessment Using Distortion Attributes".
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

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
from attriqa.files import as_dict
from attriqa.models import checkpoint
from attriqa.models.assessment import Assessment
from attriqa.models.base import QualityModel
from attriqa.models.clip import checkpoint as clip_checkpoint
from attriqa.models.clip.prompts import PromptKind, VisualPrompts
from attriqa.models.clip.towers import CLIPTowers, activation_bytes
from attriqa.models.views import View


@dataclass(frozen=True)
class ExIQAConfig:
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
        if self.logit_scale is not None and not 0 < self.logit_scale < float("inf"):
            raise ValueError(f"logit_scale: expected a number above 0, got {self.logit_scale}")
        if not self.regressor_widths or min(self.regressor_widths) < 1:
            raise ValueError(f"regressor_widths: expected numbers of at least 1, got {self.regressor_widths}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExIQAConfig":
        """Rebuild from JSON; unknown or missing fields are refused."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise ValueError(f"config: expected the fields {sorted(names)}, differing: {sorted(names ^ set(values))}")
        table = tuple(
            DistortionAttributes(**{**row, "attributes": tuple(row["attributes"])}) for row in values["table"]
        )
        return cls(**{**values, "table": table, "regressor_widths": tuple(values["regressor_widths"])})


class Identified(NamedTuple):
    """What B images show, in the order of the table."""

    strengths: Tensor  # (B, D) in [0, 1]
    probs: Tensor  # (B, D * K) attribute probabilities, K to a distortion


class ExIQA(QualityModel):
    """Image -> attribute probabilities -> strengths of distortions -> score (ExIQA, equations 3 to 9).

    Images are resized and cropped as the CLIP wants to see them; gradients go through to their pixels. Towers that do
    not learn stay in eval mode and without gradients of their own, and the features of the texts are computed once;
    towers that learn have them computed again for each step in training mode.

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
    views = ("own",)
    tokens: Tensor
    _directions: Tensor | None

    def __init__(self, config: ExIQAConfig, towers: CLIPTowers, *, seed: int = 0) -> None:
        super().__init__()
        self.config, self.preprocess, self._towers = config, towers.preprocess, towers
        self.clip = towers.model
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
        self.register_buffer("_directions", None, persistent=False)
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]
        self.clip.requires_grad_(config.tune == "all")
        for constant in (self.clip.logit_scale, self.clip.logit_bias):  # the paper's tau learns nothing
            if constant is not None:
                constant.requires_grad_(False)
        self.train(self.training)

    @property
    def towers(self) -> CLIPTowers:
        """The CLIP as it stands now, for another model to start from."""
        reloadable = self._towers.reloadable and self.config.tune == "prompts"
        return self._towers._replace(model=self.clip, reloadable=reloadable)

    @property
    def attributes(self) -> tuple[str, ...]:
        """None of the five: it knows those of its table alone."""
        return ()

    @property
    def distortions(self) -> tuple[str, ...]:
        """The keys of its table."""
        return tuple(entry.key for entry in self.config.table)

    @property
    def has_score(self) -> bool:
        """Whether the regressor has been trained."""
        return bool(cast(nn.Linear, self.regressor[-1]).weight.any())

    def train(self, mode: bool = True) -> "ExIQA":
        """Training mode for what learns."""
        super().train(mode)
        if self.config.tune == "prompts":
            self.clip.eval()
        else:
            _forget(self)
        return self

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) sRGB in [0, 1] -> (B, E) float32, of unit length with ``normalize``."""
        pixels = self.preprocess.normalize(self.preprocess.geometry(images))
        features: Tensor = self.prompts(self.clip.visual, pixels).float()
        return F.normalize(features, dim=1) if self.config.normalize else features

    def text_directions(self) -> Tensor:
        """``t+ - t-`` of each attribute, (D * K, E) float32: the difference of its two texts' features."""
        texts = (parameter for name, parameter in self.clip.named_parameters() if not name.startswith("visual."))
        if self.training and any(parameter.requires_grad for parameter in texts):
            return self._encode_texts()
        if self._directions is None:
            # Not as inference tensors, which no later training step could use.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.tokens.device.type, enabled=False):
                self._directions = self._encode_texts()
        return self._directions

    def _encode_texts(self) -> Tensor:
        features: Tensor = self.clip.encode_text(self.tokens.flatten(0, 1)).float()
        features = F.normalize(features, dim=1) if self.config.normalize else features
        positive, negative = features.chunk(2)
        return positive - negative

    def identify(self, images: Tensor) -> Identified:
        """Attribute probabilities (6) and strengths (7) of (B, 3, H, W) sRGB images in [0, 1]; nothing is checked."""
        features, directions = self.image_features(images), self.text_directions()
        with torch.autocast(images.device.type, enabled=False):  # cosines differ by 0.01: bfloat16 drowns that
            scale = self.config.logit_scale or (self.clip.logit_scale.exp() if self.config.normalize else 1.0)
            probs = torch.sigmoid(scale * (features @ directions.T))
            strengths = (probs.unflatten(1, self.weights.shape) * self.weights.softmax(1)).sum(2)
        return Identified(strengths, probs)

    def forward(self, images: Tensor) -> Assessment:
        """Assess (B, 3, H, W) sRGB images in [0, 1]; ``attributes`` is None."""
        strengths, probs = self.identify(images)
        with torch.autocast(images.device.type, enabled=False):
            score = self.regressor(probs).squeeze(1)
        return Assessment(score + (score.clamp(0, 1) - score).detach(), None, strengths, probs)

    def see(self, images: Tensor, view: View) -> Assessment:
        """As `forward`: the model's preprocessing is its only view."""
        return self.forward(images)

    def activation_bytes(self, height: int, width: int, view: View, *, gradients: bool) -> int:
        """By the tokens of the image tower."""
        extra = 0 if self.prompts.prompts is None else self.prompts.prompts.shape[1]
        return activation_bytes(self.clip.visual, height, width, extra=extra, gradients=gradients)

    def save(self, path: Path | str, provenance: Mapping[str, Any]) -> None:
        """Write a checkpoint; a frozen CLIP that its name leads to is left out of it.

        Args:
            path: where to.
            provenance: data, commit, metrics; JSON types only.
        """
        settings, prompts_hash = as_dict(self.config), table_hash(self.config.table)
        clip_checkpoint.save(path, self, self.towers, config=settings, provenance=provenance, prompts_hash=prompts_hash)


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
    tokens = towers.tokenize(texts)
    first: dict[tuple[int, ...], str] = {}
    for text, row in zip(texts, tokens.tolist(), strict=True):
        other = first.setdefault(tuple(row), text)
        if other != text:
            raise ValueError(
                f"table: {towers.name} reads {tokens.shape[1]} tokens of a text, and so cannot tell {text!r} "
                f"from {other!r}; expected shorter attributes"
            )
    return torch.stack(tokens.chunk(2))


def _forget(model: ExIQA, _: object = None) -> None:
    """Text features belong to the weights that they were computed with."""
    model._directions = None


def load(
    path: Path | str, *, towers: CLIPTowers | None = None, table: Sequence[DistortionAttributes] | None = None
) -> ExIQA:
    """Load a checkpoint of `ExIQA.save`, in float32, on the CPU, in eval mode. As `restore`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return restore(checkpoint.load(path), path, towers=towers, table=table)


def restore(
    saved: checkpoint.Checkpoint,
    path: Path | str,
    *,
    towers: CLIPTowers | None = None,
    table: Sequence[DistortionAttributes] | None = None,
) -> ExIQA:
    """Build the model of a checkpoint that has been read.

    Args:
        saved: what `attriqa.models.checkpoint.load` read.
        path: where from, for messages.
        towers: the CLIP of a checkpoint without one, where its name no longer leads to it.
        table: the table that the model is expected to know.

    Raises:
        attriqa.models.checkpoint.CheckpointError: it is of another architecture, does not fit its own configuration,
            was made with another table than ``table``, or its CLIP is gone or has other weights (both are named).
    """
    about, settings = clip_checkpoint.parts(saved, path, ExIQA.__name__)
    try:
        config = ExIQAConfig.from_dict(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(path, f"its config does not build: {error!r}") from error
    _check_tables(saved, config.table, table, path)
    try:
        towers = clip_checkpoint.towers_of(about, towers)
        model = ExIQA(config, towers)
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(path, f"its CLIP cannot be had: {error}") from error
    clip_checkpoint.fill(model, saved, towers, path)
    return model.eval()


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
