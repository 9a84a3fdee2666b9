"""What a model sees of an image: five crops, the whole of it, or what the model itself cuts out."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from attriqa.images import MIN_SIDE, five_crops, resize_shorter
from attriqa.models.assessment import Assessment

View = Literal["five_crop", "full", "native", "own"]
CROPPED_VIEWS: tuple[View, ...] = ("five_crop", "full", "native")
"""Those that `look` makes; ``"own"``: the model resizes and crops by itself, as CLIP's preprocessing does."""


def look(images: Tensor, view: View, *, shorter_edge: int, crop: int) -> Tensor:
    """Resize and crop as a model wants to see it; differentiable.

    Args:
        images: ``(B, 3, H, W)``.
        view: ``"full"``: the whole image at ``shorter_edge``; ``"five_crop"``: four corners and the centre of that,
            ``crop`` pixels wide (less where a very elongated image has a shorter side under ``crop``); ``"native"``:
            as ``"full"``, but an image whose shorter side is less stays as it is.
        shorter_edge: pixels; images are scaled up or down to it.
        crop: pixels.

    Returns:
        ``(B, K, 3, h, w)`` with K = 1 or 5.

    Raises:
        ValueError: ``view`` is ``"own"``.
    """
    if view not in CROPPED_VIEWS:
        raise ValueError(f"view: expected {' or '.join(CROPPED_VIEWS)}, got {view!r}")
    resized = resize_shorter(images, edge_of(view, *images.shape[2:], shorter_edge=shorter_edge))
    if view != "five_crop":
        return resized.unsqueeze(1)
    return five_crops(resized, min(crop, *resized.shape[2:]))


def edge_of(view: View, height: int, width: int, *, shorter_edge: int) -> int:
    """The shorter side that an image of a height and width is resized to for a view, px."""
    return max(MIN_SIDE, min(shorter_edge, height, width)) if view == "native" else shorter_edge


def average_over_view(
    model: Callable[[Tensor], Assessment], images: Tensor, view: View, *, shorter_edge: int, crop: int
) -> Assessment:
    """What a model says of each image, averaged over the crops of the view; differentiable.

    Args:
        model: ``(N, 3, h, w)`` -> what it says of N images.
        images: as for `look`, with the arguments that follow.
        view: what the model sees.
        shorter_edge: pixels.
        crop: pixels.
    """
    seen = look(images, view, shorter_edge=shorter_edge, crop=crop)  # (B, K, 3, h, w)
    said = model(seen.flatten(0, 1).contiguous(memory_format=torch.channels_last))
    return said.map(lambda field: field.unflatten(0, seen.shape[:2]).mean(1))
