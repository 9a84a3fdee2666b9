"""What every model says of images."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attriqa.attributes import ATTRIBUTES


class Assessment(NamedTuple):
    """What a model says of B images; every number is in [0, 1], and more is better (``noisiness``: cleaner)."""

    score: Tensor  # (B,) quality, calibrated to MOS
    attributes: Tensor | None  # (B, 5) in the order of ATTRIBUTES (or the model's own); None: the model tells none
    distortions: Tensor | None = None  # (B, 25) strengths (or a table's D); None: the model has no distortion head
    attribute_probs: Tensor | None = None  # (B, 125) (or D times K of a table); None likewise

    def attribute(self, name: str) -> Tensor:
        """One of the five attributes, ``(B,)``.

        Raises:
            ValueError: it is none of `ATTRIBUTES`, or the model tells no attributes, or others.
        """
        if name not in ATTRIBUTES:
            raise ValueError(f"name: expected one of {', '.join(ATTRIBUTES)}, got {name!r}")
        if self.attributes is None:
            raise ValueError(f"name: this model tells no attributes, so no {name}")
        if self.attributes.shape[1] != len(ATTRIBUTES):
            raise ValueError(f"name: this model tells attributes of its own, {self.attributes.shape[1]} of them")
        return self.attributes[:, ATTRIBUTES.index(name)]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Assessment":
        """The same with ``change`` applied to every tensor that is there."""
        score, *others = self
        return Assessment(change(score), *(None if field is None else change(field) for field in others))

    @classmethod
    def cat(cls, parts: Sequence["Assessment"]) -> "Assessment":
        """The assessments of one model, one after the other."""
        score, *others = zip(*parts, strict=True)
        return cls(torch.cat(score), *(None if field[0] is None else torch.cat(field) for field in others))
