"""MP-IQE: a frozen CLIP prompted in both towers, whose texts of scenes and distortions ask its image for a score.

Source: Pan et al., "Multi-Modal Prompt Learning on Blind Image Quality Assessment" (2024).
What the paper leaves open is marked as our choice where it is made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.distortions import DISTORTION_KEYS
from attriqa.distortions import DISTORTIONS as KADID
from attriqa.distortions.classes import DISTORTION_CLASSES, SCENES
from attriqa.images import MIN_SIDE
from attriqa.images.crops import seeded_crops
from attriqa.models.assessment import Assessment
from attriqa.models.clip.model import CLIPModel, CLIPModelConfig, cut_to_scale
from attriqa.models.clip.prompts import PromptKind, TextContext, VisualPrompts, pool, project
from attriqa.models.clip.towers import CLIPTowers, activation_bytes
from attriqa.models.views import View

KADID_NAMES: tuple[str, ...] = tuple(entry.name for entry in KADID)  # classes that an `Assessment` has a place for


@dataclass(frozen=True)
class MPIQEConfig(CLIPModelConfig):
    """Everything that an `MPIQE` is beside its CLIP; saved inside its checkpoint.

    Raises:
        ValueError: a field is out of its range.
    """

    scenes: tuple[str, ...] = tuple(SCENES.values())  # class names; none: without the scene branch
    distortions: tuple[str, ...] = tuple(DISTORTION_CLASSES.values())  # likewise; `KADID_NAMES` for the 25 of KADID-10k
    context: int = 8  # learnt words in front of each class name; scenes and distortions have their own
    prompts: int = 4  # tokens in the image tower; 0 with "none"
    prompt_kind: PromptKind = "deep"  # as in `VisualPrompts`; the paper's shallow ones are its "first"
    windows: int = 7  # per side, that distortions are looked for in; our choice
    temperature: float = 0.01  # T of equations 8 and 10: CLIP's own; our choice
    window_temperature: float = 0.05  # T-bar of equation 10; our choice
    layers: int = 3  # of the multi-modal decoder
    heads: int = 8  # of its attention; our choice
    crops: int = 8  # per image
    shorter_edge: int | None = None  # px that images are resized to before they are cropped; None: their own size
    crop_seed: int = 0  # where the crops lie

    def __post_init__(self) -> None:
        self.require_classes("scenes", "distortions")
        self.require_least(context=1, windows=1, layers=1, heads=1, crops=1, crop_seed=0)
        self.require_positive("temperature", "window_temperature")
        if self.shorter_edge is not None and self.shorter_edge < MIN_SIDE:
            raise ValueError(f"shorter_edge: expected at least {MIN_SIDE} px, got {self.shorter_edge}")


class Reading(NamedTuple):
    """What N crops say; M scenes, D distortions. Training's losses start from it."""

    score: Tensor  # (N,), not cut to [0, 1]
    scenes: Tensor  # (N, M) logits of equation 8, cosines over T
    distortions: Tensor  # (N, D) logits of equation 10


class Prediction(NamedTuple):
    """What B images show: means over their crops."""

    score: Tensor  # (B,) in [0, 1]
    scenes: Tensor  # (B, M) probabilities
    distortions: Tensor  # (B, D) probabilities


def mean_over_crops(reading: Reading, crops: int) -> Prediction:
    """What images show, of B times ``crops`` crops; the score is cut to [0, 1] in value and not in gradient."""
    score = reading.score.unflatten(0, (-1, crops)).mean(1)
    scenes, distortions = (
        logits.softmax(1).unflatten(0, (-1, crops)).mean(1) for logits in (reading.scenes, reading.distortions)
    )
    return Prediction(cut_to_scale(score), scenes, distortions)


class MPIQE(CLIPModel):
    """Image -> crops -> tokens; texts of scenes and distortions -> decoder over these tokens -> score (eqs. 6 to 14).

    An image is seen in crops of the size that the CLIP sees, 224 px in ViT-B/16, cut from the image as it is; only
    one that is smaller is scaled up. Where they lie follows from the seed in the config and the size of the image, so
    that a score depends on nothing but the image. Gradients go through to its pixels.

    Both towers are frozen. What learns: the context of the texts, the prompts in the image tower, the projection of its
    last hidden states, the decoder and the head.

    Our choices where the paper is silent: the decoder is torch's with normalisation first, as wide as the space of the
    texts, four times that in its MLP; the queries are the texts' features as they are; the hidden states are normalised
    by the tower's ``ln_post`` and projected by a linear layer that starts as the tower's own. In a tower that pools by
    the mean, the pooled feature takes the place of CLS in equation 8. Without any classes ("visual only") one learnt
    query takes the place of the texts. The score starts at 0.5 for every image: until the head is trained
    (`has_score`) there is no score.

    Args:
        config: the rest of the model.
        towers: used as they are, not copied.
        seed: of context, prompts, decoder and head.

    Raises:
        ValueError: the towers are not open_clip's own transformers, or too small for the windows, the heads or the
            texts; the model is named.
    """

    config: MPIQEConfig
    config_type = MPIQEConfig
    query: nn.Parameter | None

    def __init__(self, config: MPIQEConfig, towers: CLIPTowers, *, seed: int = 0) -> None:
        super().__init__(config, towers)
        visual = self.clip.requires_grad_(False).visual
        try:
            self.prompts = VisualPrompts(visual, config.prompts, config.prompt_kind, seed=seed)
            self.contexts = nn.ModuleDict()
            for number, (name, classes) in enumerate(_classes(config).items()):
                context = TextContext(self.clip, towers.tokenize, classes, config.context, seed=seed + number)
                self.contexts[name] = context
            width, embed = _widths(visual)
            _check_fit(config, visual.grid_size, embed)
        except ValueError as error:
            raise ValueError(f"{towers.name}: {error}") from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.memory = _memory(visual, width, embed)
            self.decoder = nn.ModuleList(_decoder_layer(embed, config.heads) for _ in range(config.layers))
            self.head = nn.Sequential(nn.Linear(embed, embed), nn.GELU(), nn.Linear(embed, 1))
            query = None if self.contexts else nn.Parameter(torch.randn(1, embed))
            self.register_parameter("query", query)
        last = cast(nn.Linear, self.head[-1])
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, 0.5)
        self.train(self.training)

    @property
    def distortions(self) -> tuple[str, ...]:
        """The keys of KADID-10k's 25 where its classes are `KADID_NAMES`, else none."""
        return DISTORTION_KEYS if self.config.distortions == KADID_NAMES else ()

    @property
    def has_score(self) -> bool:
        """Whether the head has been trained."""
        return bool(cast(nn.Linear, self.head[-1]).weight.any())

    @property
    def reads_at(self) -> int | None:
        """What images are resized to before they are cropped."""
        return self.config.shorter_edge

    def _encode_texts(self) -> Tensor:
        """``V^s`` and ``V^d`` of equation 6, ``(M + D, E)``, not normalised."""
        texts = [context(self.clip).float() for context in self.contexts.values()]
        return torch.cat(texts) if texts else self.memory.weight.new_zeros(0, self.memory.out_features)

    texts = CLIPModel.text_features

    def look(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K, 3, h, w): the crops that an image is seen in (`seeded_crops`)."""
        config = self.config
        return seeded_crops(
            images.float(), self.preprocess.size, config.crops, shorter_edge=config.shorter_edge, seed=config.crop_seed
        )

    def read(self, crops: Tensor) -> Reading:
        """Read (N, 3, h, w) crops in [0, 1] of the size that the CLIP sees; nothing is checked."""
        visual, config = self.clip.visual, self.config
        hidden = self.prompts.hidden(visual, self.preprocess.normalize(crops)).float()  # (N, 1 + P, width)
        texts, scenes = self.text_features(), len(config.scenes)
        with torch.autocast(crops.device.type, enabled=False):  # cosines differ by 0.01: bfloat16 drowns that
            normed = visual.ln_post(hidden)
            seen = F.normalize(pool(visual, hidden), dim=-1)
            places = window_features(project(visual, normed[:, 1:]), visual.grid_size, config.windows)
            unit = F.normalize(texts.float(), dim=-1)
            scene = seen @ unit[:scenes].T / config.temperature
            cosines = F.normalize(places, dim=-1) @ unit[scenes:].T  # (N, W, D)
            distortion = gather_windows(cosines, config.window_temperature) / config.temperature
        memory = self.memory(normed)
        decoded = (texts if self.query is None else self.query).expand(len(crops), -1, -1)  # (N, M + D, E)
        for layer in self.decoder:
            decoded = layer(decoded, memory)
        with torch.autocast(crops.device.type, enabled=False):
            score = self.head(decoded.float()).squeeze(2).mean(1)
        return Reading(score, scene, distortion)

    def predict(self, images: Tensor) -> Prediction:
        """What (B, 3, H, W) images in [0, 1] show; all crops are read in one batch."""
        crops = self.look(images)
        return mean_over_crops(self.read(crops.flatten(0, 1)), crops.shape[1])

    def forward(self, images: Tensor) -> Assessment:
        """Assess (B, 3, H, W) sRGB images in [0, 1].

        ``attributes`` is None, and so is ``distortions`` unless the model's classes are `KADID_NAMES`; then it holds
        their probabilities, which sum to 1.
        """
        prediction = self.predict(images)
        return Assessment(prediction.score, None, prediction.distortions if self.distortions else None)

    def activation_bytes(self, height: int, width: int, view: View, *, gradients: bool) -> int:
        """By the image and by the tokens of its crops, in the tower and in the decoder."""
        extra = 0 if self.prompts.prompts is None else self.prompts.prompts.shape[1]
        each = activation_bytes(self.clip.visual, *self.preprocess.size, extra=extra, gradients=gradients)
        tokens: int = math.prod(self.clip.visual.grid_size) + 1
        embed = self.memory.out_features
        queries = max(1, len(self.config.scenes) + len(self.config.distortions))
        layer = 4 * (3 * tokens + 18 * queries) * embed + 4 * self.config.heads * queries * tokens
        decoder = layer * (self.config.layers if gradients else 1)
        return 2 * 4 * 3 * height * width + self.config.crops * (each + decoder)


def _classes(config: MPIQEConfig) -> dict[str, Sequence[str]]:
    """The classes of each branch that the model has."""
    branches = {"scenes": config.scenes, "distortions": config.distortions}
    return {name: classes for name, classes in branches.items() if classes}


def _widths(visual: nn.Module) -> tuple[int, int]:
    """Of the tower's hidden states and of the space that its features lie in."""
    width = cast(Any, visual).conv1.out_channels
    projection = cast(Any, visual).proj
    return width, width if projection is None else projection.shape[1]


def _check_fit(config: MPIQEConfig, grid: tuple[int, int], embed: int) -> None:
    if config.windows > min(grid):
        raise ValueError(f"windows: expected at most {min(grid)}, the patches on a side, got {config.windows}")
    if embed % config.heads:
        raise ValueError(f"heads: expected a divisor of {embed}, the width of the texts' features, got {config.heads}")


def _memory(visual: nn.Module, width: int, embed: int) -> nn.Linear:
    """The projection of hidden states into the decoder's space; it starts as the tower's own."""
    memory = nn.Linear(width, embed)
    projection = cast(Any, visual).proj
    with torch.no_grad():
        memory.weight.copy_(torch.eye(width) if projection is None else projection.T)
        memory.bias.zero_()
    return memory


def _decoder_layer(embed: int, heads: int) -> nn.TransformerDecoderLayer:
    return nn.TransformerDecoderLayer(embed, heads, 4 * embed, 0.0, "gelu", batch_first=True, norm_first=True)


def window_features(patches: Tensor, grid: tuple[int, int], windows: int) -> Tensor:
    """The greatest value of each channel in windows of the image (MP-IQE, section on window-distortion alignment).

    Args:
        patches: ``(B, P, E)``, row by row.
        grid: rows and columns of patches; P is their product.
        windows: per side, w.

    Returns:
        ``(B, w * w, E)``.
    """
    plane = patches.transpose(1, 2).unflatten(2, grid)  # (B, E, rows, columns)
    return F.adaptive_max_pool2d(plane, windows).flatten(2).transpose(1, 2)


def window_weights(cosines: Tensor, temperature: float) -> Tensor:
    """How much each window counts for each distortion: the softmax over windows in equation 10; sums to 1 over them.

    Args:
        cosines: ``(B, W, D)``.
        temperature: T-bar.
    """
    return (cosines / temperature).softmax(1)


def gather_windows(cosines: Tensor, temperature: float) -> Tensor:
    """``z`` of equation 10: the mean over windows, weighted towards those that a distortion is most likely in.

    The paper prints the symbols of scenes and of image features in the place of those of distortions and of windows.

    Args:
        cosines: ``(B, W, D)`` between windows and distortions.
        temperature: T-bar.

    Returns:
        ``(B, D)`` within [-1, 1].
    """
    return (window_weights(cosines, temperature) * cosines).sum(1)


load, restore = MPIQE.load, MPIQE.restore
