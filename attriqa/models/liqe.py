"""LIQE: the quality, the scene and the distortion of an image, out of one text for each combination of the three.

Source: Zhang et al., "Blind Image Quality Assessment via Vision-Language Correspondence: A Multitask Learning
Perspective" (CVPR 2023).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.distortions.classes import DISTORTION_CLASSES, SCENES
from attriqa.files import as_dict
from attriqa.images.crops import fitted
from attriqa.models import checkpoint
from attriqa.models.assessment import Assessment
from attriqa.models.base import QualityModel
from attriqa.models.clip import checkpoint as clip_checkpoint
from attriqa.models.clip.towers import CLIPTowers, activation_bytes
from attriqa.models.views import View

QUALITIES = ("bad", "poor", "fair", "good", "perfect")  # worth 1 to 5


@dataclass(frozen=True)
class LIQEConfig:
    """Everything that a `LIQE` is beside its CLIP; saved inside its checkpoint. The defaults are the paper's.

    Raises:
        ValueError: a field is out of its range.
    """

    scenes: tuple[str, ...] = tuple(SCENES)  # may be none, and so may the distortions
    distortions: tuple[str, ...] = tuple(DISTORTION_CLASSES)
    crops: int = 15  # at the most, evenly out of the grid
    stride: int = 32  # px between the grid's places
    wide: int = 1024  # px: of an image with a side as long as this ...
    wide_stride: int = 48  # ... px between them
    shorter_edge: int = 768  # px that the shorter edge is reduced to, if it is longer
    logit_scale: float | None = None  # None: CLIP's own, 100 in pretrained ones

    def __post_init__(self) -> None:
        for name in ("scenes", "distortions"):
            names = getattr(self, name)
            if len(set(names)) < len(names) or not all(names):
                raise ValueError(f"{name}: expected different names, got {', '.join(map(repr, names))}")
        for name in ("crops", "stride", "wide", "wide_stride", "shorter_edge"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.logit_scale is not None and not 0 < self.logit_scale < float("inf"):
            raise ValueError(f"logit_scale: expected a number above 0, got {self.logit_scale}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LIQEConfig":
        """Rebuild from JSON; unknown or missing fields are refused."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise ValueError(f"config: expected the fields {sorted(names)}, differing: {sorted(names ^ set(values))}")
        return cls(**{**values, **{name: tuple(values[name]) for name in ("scenes", "distortions")}})

    def texts(self) -> list[str]:
        """A text for each quality, scene and distortion, in this order; 495 with the paper's."""
        with_scenes = [f"a photo of a {scene}" for scene in self.scenes] or ["a photo"]
        with_distortions = [f" with {distortion} artifacts" for distortion in self.distortions] or [""]
        link = ", which is of " if self.scenes or self.distortions else " with "
        combined = product(QUALITIES, with_scenes, with_distortions)
        return [f"{scene}{distortion}{link}{quality} quality" for quality, scene, distortion in combined]


class Told(NamedTuple):
    """What B images show: probabilities, each the sum over the two other things that a text says."""

    qualities: Tensor  # (B, 5)
    scenes: Tensor  # (B, S)
    distortions: Tensor  # (B, D)

    @property
    def quality(self) -> Tensor:
        """The mean of bad = 1 to perfect = 5, (B,)."""
        return self.qualities @ torch.arange(1.0, 6.0, device=self.qualities.device)


class LIQE(QualityModel):
    """Image -> crops -> cosines with all texts -> one distribution over them -> quality, scene, distortion.

    An image is judged by crops of the size that the CLIP sees, 224 px in ViT-B/32, evenly taken from a grid over it;
    their cosines are averaged. An image with a shorter edge of more than 768 px is reduced to that, one that is smaller
    than a crop scaled up. Gradients go through to the pixels.

    Both towers learn; they stay in eval mode, as LIQE trains them, so that BatchNorm in a ResNet stands still. The
    features of the texts belong to the weights, not to the image: in eval mode they are computed once.

    The score is the quality on LIQE's scale from 1 to 5, moved to [0, 1]. The loss asks for the right order alone:
    where scores lie within the scale is the model's choice.

    Args:
        config: the rest of the model.
        towers: used as they are, not copied: they learn.
        seed: of nothing; there is nothing to draw.

    Raises:
        ValueError: the CLIP reads so little of the texts that two become the same; the model is named.
    """

    config: LIQEConfig
    views = ("own",)
    tokens: Tensor
    _texts: Tensor | None

    def __init__(self, config: LIQEConfig, towers: CLIPTowers, *, seed: int = 0) -> None:
        super().__init__()
        self.config, self.preprocess = config, towers.preprocess
        self._towers = towers._replace(reloadable=False)  # other weights, once they have learnt
        self.clip = towers.model.requires_grad_(True)
        for constant in (self.clip.logit_scale, self.clip.logit_bias):  # LIQE's temperature learns nothing
            if constant is not None:
                constant.requires_grad_(False)
        texts = config.texts()
        tokens = towers.tokenize(texts)
        first: dict[tuple[int, ...], str] = {}
        for text, row in zip(texts, tokens.tolist(), strict=True):
            if (other := first.setdefault(tuple(row), text)) != text:
                raise ValueError(
                    f"texts: {towers.name} reads {tokens.shape[1]} tokens of a text, and so cannot tell {text!r} from "
                    f"{other!r}; expected a CLIP that reads more"
                )
        self.register_buffer("tokens", tokens, persistent=False)  # (T, L)
        self.register_buffer("_texts", None, persistent=False)
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]
        self.train(self.training)

    @property
    def towers(self) -> CLIPTowers:
        """The CLIP as it stands now, for another model to start from."""
        return self._towers

    @property
    def attributes(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def distortions(self) -> tuple[str, ...]:
        """None that an `Assessment` has a place for; `tell` gives the probabilities of its own."""
        return ()

    def train(self, mode: bool = True) -> "LIQE":
        """Training mode recomputes the texts' features at every step, with gradients; no layer changes its mode."""
        super().train(mode)
        self.clip.eval()
        if mode:
            _forget(self)
        return self

    def text_features(self) -> Tensor:
        """Of all texts, of unit length, ``(T, E)`` float32; without gradients in eval mode."""
        if self.training:
            return self._encode_texts()
        if self._texts is None:
            # Not as inference tensors, which no later training step could use.
            kind = self.clip.logit_scale.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
                self._texts = self._encode_texts()
        return self._texts

    def _encode_texts(self) -> Tensor:
        return F.normalize(self.clip.encode_text(self.tokens).float(), dim=1)

    def look(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K, 3, h, w): the crops that an image is judged by; only they are copied."""
        config, (height, width) = self.config, self.preprocess.size
        images = fit(images.float(), (height, width), config)
        places = grid((images.shape[2], images.shape[3]), (height, width), config)
        kept = evenly(len(places), config.crops)
        return torch.stack([images[:, :, y : y + height, x : x + width] for y, x in (places[i] for i in kept)], 1)

    def read(self, crops: Tensor) -> Told:
        """What B images show, of (B, K, 3, h, w) crops in [0, 1] of the size that the CLIP sees; nothing is checked."""
        features = self.clip.encode_image(self.preprocess.normalize(crops.flatten(0, 1))).float()
        texts, config = self.text_features(), self.config
        with torch.autocast(crops.device.type, enabled=False):  # cosines differ by 0.01: bfloat16 drowns that
            scale = config.logit_scale or self.clip.logit_scale.exp()
            cosines = F.normalize(features, dim=1) @ texts.float().T
            joint = (scale * cosines.unflatten(0, crops.shape[:2]).mean(1)).softmax(1)
        shape = (len(QUALITIES), max(1, len(config.scenes)), max(1, len(config.distortions)))
        joint = joint.unflatten(1, shape)  # (B, 5, S, D)
        scenes, distortions = joint.sum((1, 3)), joint.sum((1, 2))
        return Told(joint.sum((2, 3)), scenes[:, : len(config.scenes)], distortions[:, : len(config.distortions)])

    def tell(self, images: Tensor) -> Told:
        """What (B, 3, H, W) images in [0, 1] show; all crops are read in one batch."""
        return self.read(self.look(images))

    def forward(self, images: Tensor) -> Assessment:
        """Assess (B, 3, H, W) sRGB images in [0, 1]; the score alone."""
        quality = self.tell(images).quality
        return Assessment(((quality - 1) / 4).clamp(0, 1), None)

    def see(self, images: Tensor, view: View) -> Assessment:
        """As `forward`: the model's crops are its only view."""
        return self.forward(images)

    def activation_bytes(self, height: int, width: int, view: View, *, gradients: bool) -> int:
        """By the image and by its crops."""
        each = activation_bytes(self.clip.visual, *self.preprocess.size, gradients=gradients)
        return 2 * 4 * 3 * height * width + self.config.crops * each

    def save(self, path: Path | str, provenance: Mapping[str, Any]) -> None:
        """Write a checkpoint, with the whole CLIP in it.

        Args:
            path: where to.
            provenance: data, commit, metrics; JSON types only.
        """
        clip_checkpoint.save(path, self, self._towers, config=as_dict(self.config), provenance=provenance)


def fit(images: Tensor, crop: tuple[int, int], config: LIQEConfig) -> Tensor:
    """(B, 3, H, W) images at the size that crops of ``crop`` px, (height, width), are taken from; differentiable."""
    edge = config.shorter_edge
    return fitted(images, crop, edge if min(images.shape[2:]) > edge else None)


def grid(image: tuple[int, int], crop: tuple[int, int], config: LIQEConfig) -> list[tuple[int, int]]:
    """Where crops of an image can begin, as (row, column), row by row.

    Args:
        image: height and width, px; at least those of the crop.
        crop: likewise.
        config: the strides.
    """
    stride = config.wide_stride if max(image) >= config.wide else config.stride
    down, across = (range(0, whole - part + 1, stride) for whole, part in zip(image, crop, strict=True))
    return list(product(down, across))


def evenly(places: int, count: int) -> list[int]:
    """Which of ``places`` crops are taken: ``count``, as far apart as whole steps go; all, where there are fewer."""
    count = min(places, count)
    return list(range(0, places, places // count))[:count]


def _forget(model: LIQE, _: object = None) -> None:
    """Text features belong to the weights that they were computed with."""
    model._texts = None


def restore(saved: checkpoint.Checkpoint, path: Path | str, *, towers: CLIPTowers | None = None) -> LIQE:
    """Build the model of a checkpoint that has been read.

    Args:
        saved: what `attriqa.models.checkpoint.load` read.
        path: where from, for messages.
        towers: not needed: the checkpoint holds its CLIP.

    Raises:
        attriqa.models.checkpoint.CheckpointError: it is of another architecture, or does not fit its own configuration.
    """
    about, settings = clip_checkpoint.parts(saved, path, LIQE.__name__)
    try:
        config = LIQEConfig.from_dict(settings)
        towers = clip_checkpoint.towers_of(about, towers)
        model = LIQE(config, towers)
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(path, f"its config does not build: {error}") from error
    clip_checkpoint.fill(model, saved, towers, path)
    return model.eval()
