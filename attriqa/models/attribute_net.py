"""AttributeNet, the flagship: one encoder, heads for attributes, distortions and departures, a quality regressor."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.attributes import ATTRIBUTES
from attriqa.distortions import DISTORTION_KEYS
from attriqa.files import as_dict
from attriqa.images import target_size
from attriqa.models import checkpoint
from attriqa.models.assessment import Assessment
from attriqa.models.attribute_heads import DECILE, PROBS, DepartureHead, DistortionHead, MeanAndDeviation, squash
from attriqa.models.backbones import COMPACT, SQUEEZENET, Backbone, fold_batch_norm
from attriqa.models.base import QualityModel
from attriqa.models.views import CROPPED_VIEWS, View, average_over_view, edge_of

Reads = Literal["features", "attributes", "both"]
# Memory per pixel that enters the encoder, at fp32, with the compact backbone; measured by `evals/speed/score.py
# memory`.
_BYTES_PER_PIXEL_FORWARD = 330
_BYTES_PER_PIXEL_BACKWARD = 1100


@dataclass(frozen=True)
class AttributeNetConfig:
    """Everything that decides the shape and the input of an `AttributeNet`; saved inside its checkpoint.

    The defaults are ATTIQA's setting (papers: ResNet-50, pooled last stage, heads of two layers, regression from the
    heads' penultimate features, 320-pixel crops of images resized to a shorter edge of 340).
    """

    backbone: str = "resnet50"
    taps: tuple[int, ...] = (5,)
    statistics: Literal["mean", "mean_std"] = "mean"
    head_width: int = 512
    regressor_width: int = 512  # 0: a linear reading of the heads' features
    pooled_dropout: float = 0.0  # on what the heads see, in training
    feature_dropout: float = 0.0  # on what the regressor sees, in training
    shorter_edge: int = 340
    crop: int = 320
    distortion_width: int = 0  # hidden features of the distortion head; 0: the net has none
    regressor_reads: Reads = "features"  # the heads' features, attribute_probs
    departure_width: int = 0  # hidden features of the departure head; 0: the net has none

    def __post_init__(self) -> None:
        if self.regressor_reads not in ("features", "attributes", "both"):
            raise ValueError(f"regressor_reads: expected features, attributes or both, got {self.regressor_reads!r}")
        if self.regressor_reads != "features" and not self.distortion_width:
            raise ValueError(f"regressor_reads: {self.regressor_reads} needs a distortion head, distortion_width is 0")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AttributeNetConfig":
        """Rebuild from JSON; unknown or missing fields are refused, those that older checkpoints lack apart."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) | _LATER_FIELDS != names:
            differing = sorted((names ^ set(values)) - (_LATER_FIELDS - set(values)))
            raise ValueError(f"config: expected the fields {sorted(names)}, differing: {differing}")
        return cls(**{**values, "taps": tuple(values["taps"])})


# Not in checkpoints before 0.2; their defaults are what those were.
_LATER_FIELDS = {"distortion_width", "regressor_reads", "departure_width"}


COMPACT_CONFIG = AttributeNetConfig(
    backbone=COMPACT,
    taps=(3, 5, 7, 9, 11, 12),
    statistics="mean_std",
    head_width=32,
    regressor_width=0,
    pooled_dropout=0.5,
    feature_dropout=0.7,
    shorter_edge=384,
    crop=320,
)
"""The embedded default's setting, but for the heads that distortions and departures teach."""

SQUEEZENET_CONFIG = dataclasses.replace(COMPACT_CONFIG, backbone=SQUEEZENET, taps=(1, 3, 5, 7, 8, 9))
"""The embedded judge's: conv1 and fire3 to fire9 of SqueezeNet 1.1."""

SHAPES = {"compact": COMPACT_CONFIG, "squeezenet": SQUEEZENET_CONFIG, "resnet50": AttributeNetConfig()}
"""The settings that recipes know by name."""


class AttributeNet(QualityModel):
    """Encoder -> pooled statistics -> five heads -> quality (ATTIQA, sections 3 and 4).

    Each map is pooled to its spatial mean and, with ``statistics="mean_std"``, its standard deviation. A head is two
    linear layers; the regressor reads the features between them, five times ``head_width`` (ATTIQA 4.2: each head
    without its last layer). A departure head takes from the score's logit what a wrong development costs.
    """

    config: AttributeNetConfig
    views = CROPPED_VIEWS
    pooled_mean: Tensor
    pooled_std: Tensor
    attribute_shift: Tensor
    attribute_scale: Tensor

    def __init__(self, config: AttributeNetConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone, config.taps, pretrained=pretrained)
        pooled = sum(self.backbone.channels) * (2 if config.statistics == "mean_std" else 1)
        features = config.head_width * len(ATTRIBUTES)
        # The pooled statistics' own mean and deviation over natural photos, measured once before training.
        self.register_buffer("pooled_mean", torch.zeros(pooled))
        self.register_buffer("pooled_std", torch.ones(pooled))
        self.pooled_dropout = nn.Dropout(config.pooled_dropout)
        self.heads_in = nn.Linear(pooled, features)  # the first layers of the five heads, side by side
        self.heads_out = nn.ModuleList(nn.Linear(config.head_width, 1) for _ in ATTRIBUTES)
        # Ranking leaves the outputs' scale free; shift and scale spread natural photos over (0, 1).
        self.register_buffer("attribute_shift", torch.zeros(len(ATTRIBUTES)))
        self.register_buffer("attribute_scale", torch.ones(len(ATTRIBUTES)))
        hidden = config.regressor_width
        self.distortion_head = DistortionHead(pooled, config.distortion_width) if config.distortion_width else None
        self.departure_head = DepartureHead(pooled, config.departure_width) if config.departure_width else None
        seen = {"features": features, "attributes": PROBS, "both": features + PROBS}[config.regressor_reads]
        self.regressor = nn.Sequential(
            nn.Dropout(config.feature_dropout),
            *([nn.Linear(seen, hidden), nn.ReLU()] if hidden else []),
            nn.Linear(hidden or seen, 1),
        )

    @property
    def attributes(self) -> tuple[str, ...]:
        """The five."""
        return ATTRIBUTES

    @property
    def distortions(self) -> tuple[str, ...]:
        """The 25, or none without a head for them."""
        return DISTORTION_KEYS if self.distortion_head is not None else ()

    @property
    def heads(self) -> list[nn.Module]:
        """What learns from ramps, on statistics of an encoder that may stand still."""
        found = [self.heads_in, self.heads_out, self.departure_head]
        return [head for head in found if head is not None]

    @property
    def reads_at(self) -> int:
        """The shorter edge that images are resized to."""
        return self.config.shorter_edge

    def see(self, images: Tensor, view: View) -> Assessment:
        """What `forward` says of the crops of a view of (B, 3, H, W) images of any size, their mean."""
        return average_over_view(self, images, view, shorter_edge=self.config.shorter_edge, crop=self.config.crop)

    def activation_bytes(self, height: int, width: int, view: View, *, gradients: bool) -> int:
        """By the pixels that enter the encoder."""
        h, w = target_size(height, width, edge_of(view, height, width, shorter_edge=self.config.shorter_edge))
        pixels = 5 * min(self.config.crop, h, w) ** 2 if view == "five_crop" else h * w
        return pixels * (_BYTES_PER_PIXEL_BACKWARD if gradients else _BYTES_PER_PIXEL_FORWARD)

    def prepare(self) -> None:
        """Fold every BatchNorm into the convolution before it."""
        fold_batch_norm(self)

    def pool(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> standardised statistics (B, D), in float32."""
        pooled: list[Tensor] = []
        for features in self.backbone(images):
            pixels = features.float().permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C): a view of a channels-last map
            if self.config.statistics == "mean_std":
                pooled += MeanAndDeviation.apply(pixels)
            else:
                pooled.append(pixels.mean(1))
        return (torch.cat(pooled, 1) - self.pooled_mean) / self.pooled_std

    def read(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised statistics (B, D) -> score logits (B,) and raw attribute outputs (B, 5), both unbounded."""
        return self._read(pooled, None if self.distortion_head is None else self.distortion_head(pooled).probs)

    def _read(self, pooled: Tensor, probs: Tensor | None) -> tuple[Tensor, Tensor]:
        features = F.relu(self.heads_in(self.pooled_dropout(pooled)))  # (B, 5 * head_width)
        raw = [head(x) for head, x in zip(self.heads_out, features.chunk(len(ATTRIBUTES), 1), strict=True)]
        reads = self.config.regressor_reads
        if probs is not None and reads != "features":
            features = probs if reads == "attributes" else torch.cat([features, probs], 1)
        logit = self.regressor(features).squeeze(1)
        if self.departure_head is not None:
            logit = logit - self.departure_head(pooled)
        return logit, torch.cat(raw, 1)

    def forward(self, images: Tensor) -> Assessment:
        """Assess (B, 3, H, W) sRGB images in [0, 1], at the size they come; nothing is checked or resized here."""
        pooled = self.pool(images)
        with torch.autocast(images.device.type, enabled=False):  # a score needs more digits than bf16 has
            found = None if self.distortion_head is None else self.distortion_head(pooled)
            logit, raw = self._read(pooled, None if found is None else found.probs)
        attributes = squash((raw - self.attribute_shift) / self.attribute_scale)
        if found is None:
            return Assessment(torch.sigmoid(logit), attributes)
        return Assessment(torch.sigmoid(logit), attributes, found.strengths, found.probs)

    def save(
        self,
        path: Path | str,
        provenance: Mapping[str, Any],
        *,
        prompts_hash: str | None = None,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        """Write a checkpoint.

        Args:
            path: where to.
            provenance: data, commit, metrics; JSON types only.
            prompts_hash: of the prompt table that its labels were made with, if any.
            dtype: of the weights in the file; see `attriqa.models.checkpoint.save`.
        """
        checkpoint.save(
            path,
            self.state_dict(),
            architecture=AttributeNet.__name__,
            config=as_dict(self.config),
            provenance=provenance,
            prompts_hash=prompts_hash,
            dtype=dtype,
        )

    @torch.no_grad()
    def calibrate_attributes(self, raw: Tensor) -> None:
        """Spread natural photos over (0, 1): the median at 0.5, the 10th and 90th percentile near 0.1 and 0.9.

        Args:
            raw: ``(N, 5)`` raw attribute outputs of N natural photos.
        """
        low, middle, high = raw.double().quantile(
            torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=raw.device), 0
        )
        self.attribute_shift.copy_(middle)
        self.attribute_scale.copy_(((high - low) / (2 * DECILE)).clamp(min=1e-3))


def restore(saved: checkpoint.Checkpoint, path: Path | str) -> AttributeNet:
    """Build the net of a checkpoint that has been read, in eval mode; ``path`` is for messages.

    Raises:
        attriqa.models.checkpoint.CheckpointError: it is of another architecture, or does not fit its own configuration.
    """
    if saved.architecture != AttributeNet.__name__:
        raise checkpoint.CheckpointError(
            path, f"expected a checkpoint of {AttributeNet.__name__}, got {saved.architecture}"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # layers draw their initial values from the global generator
            net = AttributeNet(AttributeNetConfig.from_dict(saved.config))
    except (ValueError, TypeError) as error:
        raise checkpoint.CheckpointError(path, f"its config does not build: {error}") from error
    checkpoint.load_into(net, saved.state, path)
    return net.eval()


def rebuilt(net: AttributeNet, **changes: Any) -> AttributeNet:
    """The same net with another distortion head or another regressor, in eval mode; ``net`` stays as it is.

    Args:
        net: whose weights it gets. A part that ``changes`` give another shape is new, with random weights.
        changes: fields of `AttributeNetConfig`: ``distortion_width``, ``regressor_reads``, ``regressor_width``,
            ``departure_width``.

    Raises:
        ValueError: the changes do not fit one another.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = AttributeNet(dataclasses.replace(net.config, **changes))
    own = other.state_dict()
    new = {name.partition(".")[0] for name, value in net.state_dict().items() if _differs(own.get(name), value)}
    kept = {name: value for name, value in net.state_dict().items() if name.partition(".")[0] not in new}
    other.load_state_dict(own | kept)
    return other.to(net.pooled_mean.device).eval()


def _differs(mine: Tensor | None, theirs: Tensor) -> bool:
    return mine is None or mine.shape != theirs.shape


class Readout(nn.Module):
    """The network up to the unbounded outputs that the losses want, in one forward (which data parallelism needs).

    Ramps teach heads and regressor alone: an encoder that learns from a few hundred photos' ramps forgets what it knew
    of content.
    """

    def __init__(self, net: AttributeNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, photos: Tensor, ramps: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W), (R, 3, h, w) -> score logits of the photos (B,), of the ramps (R,), raw attributes (R, 5).

        Without ramps R is 0.
        """
        seen = self.net.pool(photos.contiguous(memory_format=torch.channels_last))
        ramped = seen[:0]
        if ramps is not None:
            with torch.no_grad():
                ramped = self.net.pool(ramps.contiguous(memory_format=torch.channels_last))
        with torch.autocast(photos.device.type, enabled=False):
            return self.net.read(seen)[0], *self.net.read(ramped)
