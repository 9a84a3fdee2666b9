"""CLIP-IQA and CLIP-IQA+: is the image nearer to "Good photo." or to "Bad photo."?

Source: Wang, Chan and Loy, "Exploring CLIP for Assessing the Look and Feel of Images" (AAAI 2023).
"""

import copy
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.attributes import ATTRIBUTES
from attriqa.models.assessment import Assessment
from attriqa.models.clip.model import CLIPModel, CLIPModelConfig, distinct_tokens
from attriqa.models.clip.prompts import AroundContext
from attriqa.models.clip.towers import CLIPTowers, activation_bytes, clip_of, drop_positional_embedding
from attriqa.models.views import View

QUALITY = ("Good photo.", "Bad photo.")


class Pair(NamedTuple):
    """Two texts, and what it is called to be nearer to the first."""

    name: str
    positive: str
    negative: str


PAIRS: tuple[Pair, ...] = tuple(
    Pair(name, *texts)
    for name, texts in zip(
        ATTRIBUTES,
        (
            ("Sharp photo.", "Blurry photo."),
            ("High contrast photo.", "Low contrast photo."),
            ("Bright photo.", "Dark photo."),
            ("Colorful photo.", "Dull photo."),
            ("Clean photo.", "Noisy photo."),
        ),
        strict=True,
    )
)
"""CLIP-IQA's pairs for the attributes of `ATTRIBUTES`."""


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """Pairs of your own, from a TOML file of lines ``name = ["Positive text.", "Negative text."]``.

    Raises:
        ValueError: it is something else.
        OSError: it cannot be read.
    """
    wanted = f'{path}: expected lines of TOML, name = ["positive text", "negative text"]'
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from error
    odd = [name for name, texts in table.items() if not isinstance(texts, list) or len(texts) != 2]
    if odd or not table:
        raise ValueError(f"{wanted}, got {'none' if not table else 'something else for ' + ', '.join(odd)}")
    pairs = tuple(Pair(name, *texts) for name, texts in table.items())
    try:
        _check_pairs(pairs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return pairs


@dataclass(frozen=True)
class ClipIQAConfig(CLIPModelConfig):
    """Everything that a `ClipIQA` is beside its CLIP; saved inside its checkpoint.

    Raises:
        ValueError: a field is out of its range.
    """

    quality: tuple[str, str] = QUALITY  # texts of a good and of a bad image
    pairs: tuple[Pair, ...] = PAIRS  # likewise of each attribute; may be none
    positional_embedding: bool = False  # with it, images are resized and cropped as the CLIP wants to see them
    logit_scale: float | None = None  # None: CLIP's own, 100 in pretrained ones

    def __post_init__(self) -> None:
        _check_pairs((Pair("quality", *self.quality), *self.pairs))
        self.require_positive("logit_scale")

    @classmethod
    def _from_json(cls, name: str, value: Any) -> Any:
        return tuple(Pair(*pair) for pair in value) if name == "pairs" else super()._from_json(name, value)


@dataclass(frozen=True)
class ClipIQAPlusConfig(CLIPModelConfig):
    """Everything that a `ClipIQAPlus` is beside its CLIP; saved inside its checkpoint.

    Raises:
        ValueError: a field is out of its range.
    """

    quality: tuple[str, str] = QUALITY
    context: int = 16  # learnt words, half of them before each text and half behind it
    shared: bool = True  # the same ones for both texts
    positional_embedding: bool = False
    logit_scale: float | None = None

    def __post_init__(self) -> None:
        _check_pairs((Pair("quality", *self.quality),))
        self.require_positive("logit_scale")
        self.require_least(context=2)


def _check_pairs(pairs: Sequence[Pair]) -> None:
    names = [pair.name for pair in pairs]
    if len({*names, "score"}) <= len(names) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"pairs: expected different names beside score, got {', '.join(map(repr, names))}")
    for name, *texts in pairs:
        if not all(isinstance(text, str) and text.strip() for text in texts) or len(set(texts)) < 2:
            raise ValueError(f"{name}: expected two different texts, got {', '.join(map(repr, texts))}")


class _Antonyms(CLIPModel):
    """An image between two texts, once or several times; both towers frozen.

    Without positional embedding images are taken as they are, at any size of at least 32 px: what a resize would blur
    is what is scored (CLIP-IQA, section 3.2). The tower is then a copy of the one that was given.
    """

    config: ClipIQAConfig | ClipIQAPlusConfig

    def __init__(self, config: ClipIQAConfig | ClipIQAPlusConfig, towers: CLIPTowers) -> None:
        own = towers.model if config.positional_embedding else copy.deepcopy(towers.model)
        super().__init__(config, towers._replace(model=own))
        self.clip.requires_grad_(False)
        if not config.positional_embedding:
            try:
                drop_positional_embedding(self.clip.visual)
            except ValueError as error:
                raise ValueError(f"{towers.name}: {error}") from error

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) sRGB in [0, 1] -> (B, E) float32 of unit length."""
        pixels = self.preprocess.geometry(images) if self.config.positional_embedding else images
        return F.normalize(self.clip.encode_image(self.preprocess.normalize(pixels)).float(), dim=1)

    def predict(self, images: Tensor) -> Tensor:
        """How near (B, 3, H, W) images are to the first text of each pair, ``(B, N)`` in [0, 1]; nothing is checked.

        The softmax over a pair (CLIP-IQA, equation 2) is the sigmoid of the difference.
        """
        features, texts = self.image_features(images), self.text_features()
        with torch.autocast(images.device.type, enabled=False):  # cosines differ by 0.01: bfloat16 drowns that
            positive, negative = (features @ texts.T).unflatten(1, (-1, 2)).unbind(2)
            scale = self.config.logit_scale or self.clip.logit_scale.exp()
            return torch.sigmoid(scale * (positive - negative))

    def activation_bytes(self, height: int, width: int, view: View, *, gradients: bool) -> int:
        """By the tokens of a transformer or the maps of a ResNet, whose number follows the size of the image."""
        visual = self.clip.visual
        if self.config.positional_embedding:
            return activation_bytes(visual, height, width, gradients=gradients)
        pixels, stages = height * width, [getattr(visual, f"layer{number}", None) for number in (1, 2, 3, 4)]
        if any(stage is None for stage in stages):
            down, across = visual.conv1.kernel_size
            tokens = 1 + (height // down) * (width // across)
            # As in `attriqa.models.clip.towers.activation_bytes`.
            block: int = 4 * 18 * tokens * visual.conv1.out_channels
            return 2 * 4 * 3 * pixels + block * (len(visual.transformer.resblocks) if gradients else 1)
        # A block of stage s keeps 16 w 2^s channels on 1 / (16 4^s) of the pixels; the stem w on each.
        kept = 1 + sum(len(cast(nn.Sequential, stage)) / 2**number for number, stage in enumerate(stages))
        return int(4 * pixels * (6 + visual.conv3.out_channels * (kept if gradients else 1)))


class ClipIQA(_Antonyms):
    """CLIP-IQA: a softmax between "Good photo." and "Bad photo.", and between the texts of each attribute; no training.

    The score is no opinion score: it orders images, and where it lies within [0, 1] says little. An attribute is high
    where the image is nearer to its first text. Gradients go through to the pixels; the texts are encoded once.

    Args:
        config: texts, and how images are seen.
        towers: its weights are used as they are; without positional embedding, a copy of them.
        seed: has no effect: nothing is drawn.

    Raises:
        ValueError: the positional embedding of this image tower cannot be left out, or the CLIP reads so little of the
            texts that two of a pair become the same; the model is named.
    """

    config: ClipIQAConfig
    config_type = ClipIQAConfig
    texts_learn = False
    tokens: Tensor

    def __init__(self, config: ClipIQAConfig, towers: CLIPTowers, *, seed: int = 0) -> None:
        super().__init__(config, towers)
        texts = [config.quality, *(pair[1:] for pair in config.pairs)]  # two pairs may share one
        tokens = [distinct_tokens(towers, pair, what="pairs", wanted="shorter texts") for pair in texts]
        self.register_buffer("tokens", torch.cat(tokens), persistent=False)
        self.train(self.training)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of its pairs: `ATTRIBUTES`, or your own."""
        return tuple(pair.name for pair in self.config.pairs)

    def _encode_texts(self) -> Tensor:
        return F.normalize(self.clip.encode_text(self.tokens).float(), dim=1)

    def forward(self, images: Tensor) -> Assessment:
        """Assess (B, 3, H, W) sRGB images in [0, 1]; ``attributes`` has a column for each pair."""
        shares = self.predict(images)
        return Assessment(shares[:, 0], shares[:, 1:] if self.config.pairs else None)


class ClipIQAPlus(_Antonyms):
    """CLIP-IQA+: as CLIP-IQA, with learnt words around the two texts. They are all that learns.

    Args:
        config: texts, context, and how images are seen.
        towers: as in `ClipIQA`.
        seed: of the context.

    Raises:
        ValueError: as `ClipIQA`, or text and context are longer than the CLIP reads.
    """

    config: ClipIQAPlusConfig
    config_type = ClipIQAPlusConfig

    def __init__(self, config: ClipIQAPlusConfig, towers: CLIPTowers, *, seed: int = 0) -> None:
        super().__init__(config, towers)
        try:
            self.context = AroundContext(
                self.clip, towers.tokenize, config.quality, config.context, shared=config.shared, seed=seed
            )
        except ValueError as error:
            raise ValueError(f"{towers.name}: {error}") from error
        self.train(self.training)

    def _encode_texts(self) -> Tensor:
        return F.normalize(self.context(self.clip).float(), dim=1)

    def forward(self, images: Tensor) -> Assessment:
        """Assess (B, 3, H, W) sRGB images in [0, 1]."""
        return Assessment(self.predict(images)[:, 0], None)


def zero_shot(name: str, config: ClipIQAConfig | None = None) -> ClipIQA:
    """CLIP-IQA on an open_clip model, in eval mode.

    Args:
        name: ``MODEL:PRETRAINED`` (a tag or a local file), ``hf-hub:ORG/REPO`` or ``local-dir:FOLDER``; the paper's is
            ``RN50:openai``.
        config: texts of your own; None: the paper's.

    Raises:
        ValueError: there is no such model, or no such weights.
    """
    return ClipIQA(config or ClipIQAConfig(), clip_of(name)).eval()


restore, restore_plus = ClipIQA.restore, ClipIQAPlus.restore
