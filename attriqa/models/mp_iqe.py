"""MP-IQE: a frozen CLIP prompted in both towers, whose texts of scenes and distortions ask its image for a score.

Source: Pan et al., "Multi-Modal Prompt Learning on Blind Image Quality Assessment" (2024).
What the paper leaves open is marked as our choice where it is made.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.distortions import DISTORTION_KEYS
from attriqa.distortions import DISTORTIONS as KADID
from attriqa.distortions.classes import DISTORTIONS, SCENES
from attriqa.files import as_dict
from attriqa.images import MIN_SIDE
from attriqa.images.crops import seeded_crops
from attriqa.models import checkpoint
from attriqa.models.assessment import Assessment
from attriqa.models.base import QualityModel
from attriqa.models.clip import checkpoint as clip_checkpoint
from attriqa.models.clip.prompts import PromptKind, TextContext, VisualPrompts, pool, project
from attriqa.models.clip.towers import CLIPTowers, activation_bytes
from attriqa.models.views import View

KADID_NAMES: tuple[str, ...] = tuple(entry.name for entry in KADID)  # classes that an `Assessment` has a place for


@dataclass(frozen=True)
class MPIQEConfig:
    """Everything that an `MPIQE` is beside its CLIP; saved inside its checkpoint.

    Raises:
        ValueError: a field is out of its range.
    """

    scenes: tuple[str, ...] = tuple(SCENES.values())  # class names; none: without the scene branch
    distortions: tuple[str, ...] = tuple(DISTORTIONS.values())  # likewise; `KADID_NAMES` for the 25 of KADID-10k
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
        for name in ("scenes", "distortions"):
            names = getattr(self, name)
            if len(set(names)) < len(names) or not all(names):
                raise ValueError(f"{name}: expected different names, got {', '.join(map(repr, names))}")
        for name, least in {"context": 1, "windows": 1, "layers": 1, "heads": 1, "crops": 1, "crop_seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.shorter_edge is not None and self.shorter_edge < MIN_SIDE:
            raise ValueError(f"shorter_edge: expected at least {MIN_SIDE} px, got {self.shorter_edge}")
        for name in ("temperature", "window_temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MPIQEConfig":
        """Rebuild from JSON; unknown or missing fields are refused."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise ValueError(f"config: expected the fields {sorted(names)}, differing: {sorted(names ^ set(values))}")
        classes = {name: tuple(values[name]) for name in ("scenes", "distortions")}
        return cls(**{**values, **classes})


class Reading(NamedTuple):
    """What N crops say; M scenes, D distortions. Training's losses start from it."""

    score: Tensor  # (N,), not cut to [0, 1]
    scenes: Tensor  # (N, M) logits of equation 8, cosines over T
    distortions: Tensor  # (N, D) logits of equation 10


class Told(NamedTuple):
    """What B images show: means over their crops."""

    score: Tensor  # (B,) in [0, 1]
    scenes: Tensor  # (B, M) probabilities
    distortions: Tensor  # (B, D) probabilities


def together(reading: Reading, crops: int) -> Told:
    """What images show, of B times ``crops`` crops; the score is cut to [0, 1] in value and not in gradient."""
    score = reading.score.unflatten(0, (-1, crops)).mean(1)
    scenes, distortions = (
        logits.softmax(1).unflatten(0, (-1, crops)).mean(1) for logits in (reading.scenes, reading.distortions)
    )
    return Told(score + (score.clamp(0, 1) - score).detach(), scenes, distortions)


class MPIQE(QualityModel):
    """Image -> crops -> tokens; texts of scenes and distortions -> decoder over these tokens -> score (eqs. 6 to 14).

    An image is judged by crops of the size that the CLIP sees, 224 px in ViT-B/16, cut from the image as it is; only
    one that is smaller is scaled up. Where they lie follows from the seed in the config and the size of the image, so
    that a score depends on nothing but the image. Gradients go through to its pixels.

    Both towers are frozen. What learns: the context of the texts, the prompts in the image tower, the projection of its
    last hidden states, the decoder and the head. The texts' features belong to the weights, not to the image: in eval
    mode they are computed once.

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
    views = ("own",)
    query: nn.Parameter | None
    _texts: Tensor | None

    def __init__(self, config: MPIQEConfig, towers: CLIPTowers, *, seed: int = 0) -> None:
        super().__init__()
        self.config, self.preprocess, self._towers = config, towers.preprocess, towers
        self.clip = towers.model.requires_grad_(False)
        visual = self.clip.visual
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
        self.register_buffer("_texts", None, persistent=False)
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]
        self.train(self.training)

    @property
    def towers(self) -> CLIPTowers:
        """The CLIP, for another model to start from."""
        return self._towers

    @property
    def attributes(self) -> tuple[str, ...]:
        """None."""
        return ()

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

    def train(self, mode: bool = True) -> "MPIQE":
        """Training mode for what learns; the towers stay in eval mode."""
        super().train(mode)
        self.clip.eval()
        if mode:
            _forget(self)
        return self

    def texts(self) -> Tensor:
        """``V^s`` and ``V^d`` of equation 6, ``(M + D, E)`` float32, not normalised; without gradients in eval mode."""
        if self.training:
            return self._encode_texts()
        if self._texts is None:
            # Not as inference tensors, which no later training step could use.
            kind = self.memory.weight.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
                self._texts = self._encode_texts()
        return self._texts

    def _encode_texts(self) -> Tensor:
        found = [context(self.clip).float() for context in self.contexts.values()]
        return torch.cat(found) if found else self.memory.weight.new_zeros(0, self.memory.out_features)

    def look(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K, 3, h, w): the crops that an image is judged by (`seeded_crops`)."""
        config = self.config
        return seeded_crops(
            images.float(), self.preprocess.size, config.crops, shorter_edge=config.shorter_edge, seed=config.crop_seed
        )

    def read(self, crops: Tensor) -> Reading:
        """Read (N, 3, h, w) crops in [0, 1] of the size that the CLIP sees; nothing is checked."""
        visual, config = self.clip.visual, self.config
        hidden = self.prompts.hidden(visual, self.preprocess.normalize(crops)).float()  # (N, 1 + P, width)
        texts, scenes = self.texts(), len(config.scenes)
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

    def tell(self, images: Tensor) -> Told:
        """What (B, 3, H, W) images in [0, 1] show; all crops are read in one batch."""
        crops = self.look(images)
        return together(self.read(crops.flatten(0, 1)), crops.shape[1])

    def forward(self, images: Tensor) -> Assessment:
        """Assess (B, 3, H, W) sRGB images in [0, 1].

        ``attributes`` is None, and so is ``distortions`` unless the model's classes are `KADID_NAMES`; then it holds
        their probabilities, which sum to 1.
        """
        told = self.tell(images)
        return Assessment(told.score, None, told.distortions if self.distortions else None)

    def see(self, images: Tensor, view: View) -> Assessment:
        """As `forward`: the model's crops are its only view."""
        return self.forward(images)

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

    def save(self, path: Path | str, provenance: Mapping[str, Any]) -> None:
        """Write a checkpoint; a CLIP that its name leads to is left out of it.

        Args:
            path: where to.
            provenance: data, commit, metrics; JSON types only.
        """
        clip_checkpoint.save(path, self, self.towers, config=as_dict(self.config), provenance=provenance)


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


def _forget(model: MPIQE, _: object = None) -> None:
    """Text features belong to the weights that they were computed with."""
    model._texts = None


def load(path: Path | str, *, towers: CLIPTowers | None = None) -> MPIQE:
    """Load a checkpoint of `MPIQE.save`, in float32, on the CPU, in eval mode. As `restore`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return restore(checkpoint.load(path), path, towers=towers)


def restore(saved: checkpoint.Checkpoint, path: Path | str, *, towers: CLIPTowers | None = None) -> MPIQE:
    """Build the model of a checkpoint that has been read.

    Args:
        saved: what `attriqa.models.checkpoint.load` read.
        path: where from, for messages.
        towers: the CLIP of a checkpoint without one, where its name no longer leads to it.

    Raises:
        attriqa.models.checkpoint.CheckpointError: it is of another architecture, does not fit its own configuration, or
            its CLIP is gone, of another size or has other weights (both are named).
    """
    about, settings = clip_checkpoint.parts(saved, path, MPIQE.__name__)
    try:
        config = MPIQEConfig.from_dict(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(path, f"its config does not build: {error!r}") from error
    try:
        towers = clip_checkpoint.towers_of(about, towers)
        model = MPIQE(config, towers)
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(path, f"its CLIP cannot be had: {error}") from error
    clip_checkpoint.fill(model, saved, towers, path)
    return model.eval()


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
