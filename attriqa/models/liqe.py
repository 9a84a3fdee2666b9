"""LIQE: the quality, the scene and the distortion of an image, out of one text for each combination of the three.

Source: Zhang et al., "Blind Image Quality Assessment via Vision-Language Correspondence: A Multitask Learning
Perspective" (CVPR 2023).
"""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.distortions.classes import DISTORTION_CLASSES, SCENES
from attriqa.images.crops import fitted
from attriqa.models.assessment import Assessment
from attriqa.models.clip.model import CLIPModel, CLIPModelConfig, distinct_tokens
from attriqa.models.clip.towers import CLIPTowers, activation_bytes
from attriqa.models.views import View

QUALITIES = ("bad", "poor", "fair", "good", "perfect")  # worth 1 to 5


@dataclass(frozen=True)
class LIQEConfig(CLIPModelConfig):
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
        self.require_classes("scenes", "distortions")
        self.require_least(crops=1, stride=1, wide=1, wide_stride=1, shorter_edge=1)
        self.require_positive("logit_scale")

    def texts(self) -> list[str]:
        """A text for each quality, scene and distortion, in this order; 495 with the paper's."""
        with_scenes = [f"a photo of a {scene}" for scene in self.scenes] or ["a photo"]
        with_distortions = [f" with {distortion} artifacts" for distortion in self.distortions] or [""]
        link = ", which is of " if self.scenes or self.distortions else " with "
        combined = product(QUALITIES, with_scenes, with_distortions)
        return [f"{scene}{distortion}{link}{quality} quality" for quality, scene, distortion in combined]


class Prediction(NamedTuple):
    """What B images show: probabilities, each the sum over the two other things that a text says."""

    qualities: Tensor  # (B, 5)
    scenes: Tensor  # (B, S)
    distortions: Tensor  # (B, D)

    @property
    def quality(self) -> Tensor:
        """The mean of bad = 1 to perfect = 5, (B,)."""
        with torch.autocast(self.qualities.device.type, enabled=False):  # a score needs more digits than bf16 has
            return self.qualities @ torch.arange(1.0, 6.0, device=self.qualities.device)


class LIQE(CLIPModel):
    """Image -> crops -> cosines with all texts -> one distribution over them -> quality, scene, distortion.

    An image is seen in crops of the size that the CLIP sees, 224 px in ViT-B/32, evenly taken from a grid over it;
    their cosines are averaged. An image with a shorter edge of more than 768 px is reduced to that, one that is smaller
    than a crop scaled up. Gradients go through to the pixels.

    Both towers learn, so that a checkpoint holds the whole CLIP; they stay in eval mode, as LIQE trains them.

    The score is the quality on LIQE's scale from 1 to 5, moved to [0, 1]. The loss asks for the right order alone:
    where scores lie within the scale is the model's choice.

    Args:
        config: the rest of the model.
        towers: used as they are, not copied: they learn.
        seed: has no effect: nothing is drawn.

    Raises:
        ValueError: the CLIP reads so little of the texts that two become the same; the model is named.
    """

    config: LIQEConfig
    config_type = LIQEConfig
    tokens: Tensor

    def __init__(self, config: LIQEConfig, towers: CLIPTowers, *, seed: int = 0) -> None:
        super().__init__(config, towers._replace(reloadable=False))  # other weights, once they have learnt
        self.clip.requires_grad_(True)
        self.freeze_temperature()
        tokens = distinct_tokens(towers, config.texts(), what="texts", wanted="a CLIP that reads more")
        self.register_buffer("tokens", tokens, persistent=False)  # (T, L)
        self.train(self.training)

    def _encode_texts(self) -> Tensor:
        """Of all texts, of unit length, ``(T, E)``."""
        return F.normalize(self.clip.encode_text(self.tokens).float(), dim=1)

    def look(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K, 3, h, w): the crops that an image is seen in; only they are copied."""
        config, (height, width) = self.config, self.preprocess.size
        images = fit(images.float(), (height, width), config)
        places = grid((images.shape[2], images.shape[3]), (height, width), config)
        kept = evenly(len(places), config.crops)
        return torch.stack([images[:, :, y : y + height, x : x + width] for y, x in (places[i] for i in kept)], 1)

    def read(self, crops: Tensor) -> Prediction:
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
        return Prediction(joint.sum((2, 3)), scenes[:, : len(config.scenes)], distortions[:, : len(config.distortions)])

    def predict(self, images: Tensor) -> Prediction:
        """What (B, 3, H, W) images in [0, 1] show; all crops are read in one batch."""
        return self.read(self.look(images))

    def forward(self, images: Tensor) -> Assessment:
        """Assess (B, 3, H, W) sRGB images in [0, 1]; the score alone."""
        quality = self.predict(images).quality
        return Assessment(((quality - 1) / 4).clamp(0, 1), None)

    def activation_bytes(self, height: int, width: int, view: View, *, gradients: bool) -> int:
        """By the image and by its crops."""
        each = activation_bytes(self.clip.visual, *self.preprocess.size, gradients=gradients)
        return 2 * 4 * 3 * height * width + self.config.crops * each


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


restore = LIQE.restore
