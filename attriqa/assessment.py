"""What every model says of images."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Assessment(NamedTuple):
    """What a model says of B images; every number is in [0, 1], and more is better (``noisiness``: cleaner)."""

    score: Tensor  # (B,) quality, calibrated to MOS
    attributes: Tensor  # (B, 5) in the order of ATTRIBUTES
    distortions: Tensor | None = None  # (B, 25) strengths; None: the model has no distortion head
    attribute_probs: Tensor | None = None  # (B, 125); None likewise

    def map(self, change: Callable[[Tensor], Tensor]) -> "Assessment":
        """The same with ``change`` applied to every tensor that is there."""
        distortions, probs = self.distortions, self.attribute_probs
        return Assessment(
            change(self.score),
            change(self.attributes),
            None if distortions is None else change(distortions),
            None if probs is None else change(probs),
        )

    @classmethod
    def cat(cls, parts: Sequence["Assessment"]) -> "Assessment":
        """The assessments of one model, one after the other."""
        distortions = [part.distortions for part in parts if part.distortions is not None]
        probs = [part.attribute_probs for part in parts if part.attribute_probs is not None]
        return cls(
            torch.cat([part.score for part in parts]),
            torch.cat([part.attributes for part in parts]),
            torch.cat(distortions) if distortions else None,
            torch.cat(probs) if probs else None,
        )
