"""What every model is: an image comes in, an `Assessment` comes out, and the model says how it wants to look."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attriqa.models.assessment import Assessment
from attriqa.models.views import View


class QualityModel(nn.Module, ABC):
    """A model that `QualityReward`, ``attriqa score`` and `attriqa.explain` can use.

    Attributes:
        config: of the model; saved inside its checkpoint.
        views: the ways in which it can look at an image, its usual one first.
        attributes: names of what stands in the columns of ``Assessment.attributes``; none where that is ``None``.
        distortions: keys of what stands in the columns of ``Assessment.distortions``; likewise.
    """

    config: Any
    views: tuple[View, ...]

    @property
    @abstractmethod
    def attributes(self) -> tuple[str, ...]:
        """Names of the columns of ``Assessment.attributes``."""

    @property
    @abstractmethod
    def distortions(self) -> tuple[str, ...]:
        """Keys of the columns of ``Assessment.distortions``."""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that it tells of an image, as columns of a table: ``"score"``, attributes, distortions."""
        return ("score", *self.attributes, *self.distortions)

    @property
    def has_score(self) -> bool:
        """Whether it has learnt to score; without that it can still tell distortions."""
        return True

    @property
    def reads_at(self) -> int | None:
        """Shorter edge in px that image files may be reduced to while they are read; ``None``: it wants them whole."""
        return None

    @abstractmethod
    def see(self, images: Tensor, view: View) -> Assessment:
        """Look at (B, 3, H, W) sRGB images in [0, 1] of any size; differentiable, every image for itself.

        Nothing is checked here. ``view`` is one of `views`.
        """

    @abstractmethod
    def activation_bytes(self, height: int, width: int, view: View, *, gradients: bool) -> int:
        """Memory that one image of this size takes in `see`, about; in fp32, with or without a backward pass."""

    @abstractmethod
    def save(self, path: Path | str, provenance: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all; ``provenance`` (data, commit, metrics) holds JSON types only."""

    def prepare(self) -> None:
        """Make what is about to be frozen faster, in place, without changing what it says by more than rounding."""
