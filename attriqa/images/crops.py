"""Crops of rated images, as MP-IQE learns from them and judges by them: cut out of the image as it is, never resized.

Source: Pan et al., "Multi-Modal Prompt Learning on Blind Image Quality Assessment" (2024), implementation details.
"""

import numpy as np
import torch
from torch import Tensor

from attriqa.images.tensors import resize_shorter

_UNBOUNDED = 2**40  # px: crops bound the memory, not the size of what they are cut from


def fitted(images: Tensor, crop: tuple[int, int], shorter_edge: int | None = None) -> Tensor:
    """Images (B, 3, H, W) that crops fit into: scaled up where a side is too short, else as they are; differentiable.

    Args:
        images: float, in [0, 1].
        crop: height and width, px.
        shorter_edge: px that all images are resized to first (`attriqa.images.tensors.target_size`); None: they keep
            their size.
    """
    if shorter_edge is not None:
        images = resize_shorter(images, shorter_edge)
    if any(side < least for side, least in zip(images.shape[2:], crop, strict=True)):
        images = resize_shorter(images, max(crop), _UNBOUNDED)
    return images


def corners(image: tuple[int, int], crop: tuple[int, int], count: int, *, seed: int = 0) -> list[tuple[int, int]]:
    """Where random crops of an image begin, as (row, column): a function of the sizes, the number and the seed.

    Args:
        image: height and width, px; at least those of the crop.
        crop: likewise.
        count: crops; one is enough where the image is no larger than the crop.
        seed: of their places, which are shares of what the image has to spare.
    """
    spare = np.array(image) - np.array(crop)
    if not spare.any():
        return [(0, 0)]
    places = np.floor(np.random.default_rng(seed).random((count, 2)) * (spare + 1)).astype(int)
    return [(int(row), int(column)) for row, column in places]


def seeded_crops(
    images: Tensor, crop: tuple[int, int], count: int, *, shorter_edge: int | None = None, seed: int = 0
) -> Tensor:
    """Random crops that are always the same; differentiable.

    Only they are copied, whatever the size of the images.

    Args:
        images: ``(B, 3, H, W)`` float, in [0, 1].
        crop: height and width, px.
        count: K.
        shorter_edge: as in `fitted`.
        seed: as in `corners`.

    Returns:
        ``(B, K, 3, h, w)``; K is 1 where the images are no larger than the crop.
    """
    images = fitted(images, crop, shorter_edge)
    places = corners((images.shape[2], images.shape[3]), crop, count, seed=seed)
    return torch.stack([images[:, :, y : y + crop[0], x : x + crop[1]] for y, x in places], 1)


def five_crops(images: Tensor, size: int) -> Tensor:
    """Square crops of ``(B,C,H,W)``: top left, top right, bottom left, bottom right, centre; differentiable.

    Returns:
        ``(B,5,C,size,size)``; a view without memory of its own where the images have that very size.
    """
    if images.ndim != 4 or not 1 <= size <= min(images.shape[2:]):
        raise ValueError(f"images: expected (B,C,H,W) with sides of at least {size} px; got {tuple(images.shape)}")
    down, right = images.shape[2] - size, images.shape[3] - size
    if down == right == 0:
        return images.unsqueeze(1).expand(-1, 5, -1, -1, -1)
    corners = ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2))
    return torch.stack([images[:, :, y : y + size, x : x + size] for y, x in corners], dim=1)  # (B,5,C,S,S)
