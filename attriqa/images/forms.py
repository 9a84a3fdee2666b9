"""Pictures in the forms that image generators give them, as batches of tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attriqa import images as image_io

Picture = Tensor | NDArray[Any] | Image.Image
Pictures = Tensor | NDArray[Any] | Sequence[Picture]

_BLACK = 3 / 255  # no channel of a blanked picture is above this; JPEG does not keep 0


def are_blank(images: Tensor) -> Tensor:
    """Whether each of ``(B, 3, H, W)`` is all black, as safety checkers leave a picture: ``(B,)`` bool."""
    return images.detach().amax((1, 2, 3)) <= _BLACK


def batches_by_size(images: Pictures, device: torch.device | None = None) -> list[tuple[list[int], Tensor]]:
    """Group pictures by their size, and check them.

    Args:
        images: a tensor ``(B, 3, H, W)``, floating, in [0, 1]; an array ``(B, H, W, 3)``, uint8 or floating in [0, 1];
            or a sequence of Pillow images, tensors ``(3, H, W)`` or arrays ``(H, W, 3)``, of any sizes.
        device: where the batches are put; ``None``: where the pictures are.

    Returns:
        For each size, the places of its pictures and these as ``(N, 3, H, W)``, with the gradients of tensors.

    Raises:
        ValueError: images are none of these; of a sequence, the message tells which one is not.
    """
    if isinstance(images, np.ndarray):
        images = _planes(images, "images", "(B, H, W, 3)")
    if isinstance(images, Tensor):
        image_io.check(images)
        return [(list(range(len(images))), images.to(device=device))]
    if not isinstance(images, Sequence) or isinstance(images, str) or not images:
        got = "an empty one" if isinstance(images, Sequence) and not images else type(images).__name__
        raise ValueError(f"images: expected a tensor, an array or a sequence of at least one picture, got {got}")
    tensors = [_one(picture, f"images[{place}]") for place, picture in enumerate(images)]
    sizes: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for place, tensor in enumerate(tensors):
        sizes.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(place)
    return [(group, torch.stack([tensors[place] for place in group]).to(device=device)) for group in sizes.values()]


def _one(picture: Picture, name: str) -> Tensor:
    """One picture of a sequence as ``(3, H, W)``, checked."""
    if isinstance(picture, Image.Image):
        tensor = image_io.to_tensor(picture)
    elif isinstance(picture, np.ndarray):
        tensor = _planes(picture[None], name, "(H, W, 3)")[0]
    elif isinstance(picture, Tensor):
        tensor = picture
    else:
        got = type(picture).__name__
        raise ValueError(f"{name}: expected a tensor, an array or a Pillow image, got {got}")  # noqa: TRY004
    image_io.check(tensor[None], name=name)
    return tensor


def _planes(array: NDArray[Any], name: str, shape: str) -> Tensor:
    """``(B, H, W, 3)``, bytes or floats, as ``(B, 3, H, W)`` floats."""
    if array.ndim != 4 or array.shape[3] != 3 or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        got = f"{array.dtype} of shape {array.shape if shape.startswith('(B') else array.shape[1:]}"
        raise ValueError(f"{name}: expected an array {shape} of uint8 or of floats in [0, 1], got {got}")
    planes = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
    return planes.float() / 255 if array.dtype == np.uint8 else planes
