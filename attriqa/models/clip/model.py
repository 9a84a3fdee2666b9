"""What models on a CLIP share: towers that stay in eval mode, texts that are read once, checkpoints."""

import dataclasses
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from attriqa.files import as_dict
from attriqa.models import checkpoint
from attriqa.models.assessment import Assessment
from attriqa.models.base import QualityModel
from attriqa.models.clip import checkpoint as clip_checkpoint
from attriqa.models.clip.towers import CLIPTowers
from attriqa.models.views import View


@dataclass(frozen=True)
class CLIPModelConfig:
    """What a model on a CLIP is beside its CLIP; saved as JSON inside its checkpoint. Models add their fields."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from JSON; unknown or missing fields are refused."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise ValueError(f"config: expected the fields {sorted(names)}, differing: {sorted(names ^ set(values))}")
        return cls(**{name: cls._from_json(name, value) for name, value in values.items()})

    @classmethod
    def _from_json(cls, name: str, value: Any) -> Any:
        """A field's value, of which JSON may have made a list."""
        return tuple(value) if isinstance(value, list) else value

    def require_least(self, **least: int) -> None:
        """Refuse, with a ``ValueError``, fields that are less than so much."""
        for name, bound in least.items():
            if (value := getattr(self, name)) < bound:
                raise ValueError(f"{name}: expected at least {bound}, got {value}")

    def require_positive(self, *names: str) -> None:
        """Refuse, with a ``ValueError``, fields that are neither None nor a finite number above 0."""
        for name in names:
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}: expected a number above 0, got {value}")

    def require_classes(self, *names: str) -> None:
        """Refuse, with a ``ValueError``, class names that are empty or come twice."""
        for name in names:
            classes = getattr(self, name)
            if len(set(classes)) < len(classes) or not all(classes):
                raise ValueError(f"{name}: expected different names, got {', '.join(map(repr, classes))}")


class CLIPModel(QualityModel):
    """A model on the open_clip model ``clip``, which stays in eval mode, so that BatchNorm in a ResNet stands still.

    The features of its texts belong to the weights, not to the image. They are computed once, without gradients; where
    training changes them (`texts_learn`), training mode computes them again for each step.

    Args:
        config: the rest of the model.
        towers: used as they are, not copied.
    """

    config_type: ClassVar[type[CLIPModelConfig]]
    views = ("own",)
    prompts_hash: str | None = None  # of a table that the weights depend on, if any
    _texts: Tensor | None

    def __init__(self, config: CLIPModelConfig, towers: CLIPTowers) -> None:
        super().__init__()
        self.config, self.preprocess, self._towers = config, towers.preprocess, towers
        self.clip = towers.model
        self.register_buffer("_texts", None, persistent=False)
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    @property
    def towers(self) -> CLIPTowers:
        """The CLIP as it stands now, for another model to start from."""
        return self._towers

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of attributes that it tells; a model that tells some says so."""
        return ()

    @property
    def distortions(self) -> tuple[str, ...]:
        """Keys of distortions that an `Assessment` has a place for; a model that tells some says so."""
        return ()

    @property
    def texts_learn(self) -> bool:
        """Whether training changes what the texts say."""
        return True

    def train(self, mode: bool = True) -> Self:
        """Training mode for what learns; no layer of the towers changes its mode."""
        super().train(mode)
        self.clip.eval()
        if self.texts_learn:
            _forget(self)
        return self

    @abstractmethod
    def _encode_texts(self) -> Tensor:
        """What `text_features` gives, computed afresh."""

    def text_features(self) -> Tensor:
        """What the model knows of its texts, float32; without gradients where they do not learn, or in eval mode."""
        if self.training and self.texts_learn:
            return self._encode_texts()
        if self._texts is None:
            kind = self.clip.logit_scale.device.type
            # Not as inference tensors, which no later training step could use.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
                self._texts = self._encode_texts()
        return self._texts

    def freeze_temperature(self) -> None:
        """Stop CLIP's own constants from learning: in the papers, the temperature does not."""
        for constant in (self.clip.logit_scale, self.clip.logit_bias):
            if constant is not None:
                constant.requires_grad_(False)

    @abstractmethod
    def predict(self, images: Tensor) -> Any:
        """Everything that the model says of (B, 3, H, W) images in [0, 1]; nothing is checked."""

    def tell(self, images: Tensor) -> Any:
        """The old name of `predict`."""
        warnings.warn("tell is now predict; the old name goes with the next version", DeprecationWarning, stacklevel=2)
        return self.predict(images)

    def see(self, images: Tensor, view: View) -> Assessment:
        """As ``forward``: what the model itself makes of an image is its only view."""
        return cast(Assessment, self(images))

    def save(self, path: Path | str, provenance: Mapping[str, Any]) -> None:
        """Write a checkpoint; a frozen CLIP that its name leads to is left out of it.

        Args:
            path: where to.
            provenance: data, commit, metrics; JSON types only.
        """
        settings: dict[str, Any] = {"config": as_dict(self.config), "prompts_hash": self.prompts_hash}
        clip_checkpoint.save(path, self, self.towers, provenance=provenance, **settings)

    @classmethod
    def load(cls, path: Path | str, *, towers: CLIPTowers | None = None) -> Self:
        """Load a checkpoint of `save`, in float32, on the CPU, in eval mode. As `restore`.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return cls.restore(checkpoint.load(path), path, towers=towers)

    @classmethod
    def restore(cls, saved: checkpoint.Checkpoint, path: Path | str, *, towers: CLIPTowers | None = None) -> Self:
        """Build the model of a checkpoint that has been read.

        Args:
            saved: what `attriqa.models.checkpoint.load` read.
            path: where from, for messages.
            towers: the CLIP of a checkpoint without one, where its name no longer leads to it.

        Raises:
            attriqa.models.checkpoint.CheckpointError: it is of another architecture, does not fit its own
                configuration, or its CLIP is gone, of another size or has other weights (both are named).
        """
        about, settings = clip_checkpoint.parts(saved, path, cls.__name__)
        try:
            config = cls.config_type.from_dict(settings)
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.CheckpointError(path, f"its config does not build: {error}") from error
        try:
            towers = clip_checkpoint.towers_of(about, towers)
            model = cls(config, towers)
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.CheckpointError(path, f"its CLIP cannot be had: {error}") from error
        clip_checkpoint.fill(model, saved, towers, path)
        return model.eval()


def _forget(model: CLIPModel, _: object = None) -> None:
    """Text features belong to the weights that they were computed with."""
    model._texts = None


def distinct_tokens(towers: CLIPTowers, texts: Sequence[str], *, what: str, wanted: str) -> Tensor:
    """The tokens (N, L) of N texts; a CLIP that reads so little of them that two become the same is refused.

    Args:
        towers: whose tokenizer.
        texts: equal ones may be among them.
        what: they are, for the message.
        wanted: instead, likewise.

    Raises:
        ValueError: two different texts have the same tokens; both, and the model, are named.
    """
    tokens = towers.tokenize(list(texts))
    first: dict[tuple[int, ...], str] = {}
    for text, row in zip(texts, tokens.tolist(), strict=True):
        if (other := first.setdefault(tuple(row), text)) != text:
            raise ValueError(
                f"{what}: {towers.name} reads {tokens.shape[1]} tokens of a text, and so cannot tell {other!r} "
                f"from {text!r}; expected {wanted}"
            )
    return tokens


def cut_to_scale(score: Tensor) -> Tensor:
    """Cut to [0, 1] in value and not in gradient: beyond the scale a reward still pulls."""
    return score + (score.clamp(0, 1) - score).detach()
