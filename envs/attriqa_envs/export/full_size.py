"""Rendering pictures of any size, and writing them as files."""

import struct
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attriqa.files import atomic_path
from attriqa_envs.isp import render

_REACH = 16  # px; denoising reaches 4 for lightness and 8 more for chroma, sharpening 6 after the first
_STRIP_PIXELS = 1 << 19


@torch.no_grad()
def render_levels(linear: Tensor, params: Tensor) -> NDArray[np.uint8]:
    """Render one picture in strips, so that 50 megapixels take little more memory than their linear light.

    Args:
        linear: ``(3, H, W)`` linear light, as `attriqa_envs.isp.render` takes it.
        params: ``(P,)`` physical.

    Returns:
        ``(H, W, 3)`` in 8 bits: what rendering it at once gives, up to a level where float32 rounds.

    Raises:
        ValueError: as `attriqa_envs.isp.render`.
    """
    _, height, width = linear.shape
    rows = max(_REACH, _STRIP_PIXELS // width)
    levels = np.empty((height, width, 3), np.uint8)
    for first in range(0, height, rows):
        top, last = max(0, first - _REACH), min(first + rows, height)
        strip = linear[None, :, top : last + _REACH].float()
        picture = render(strip, params[None].to(strip))[0, :, first - top : last - top]
        levels[first:last] = (picture * 255).round().byte().permute(1, 2, 0).numpy(force=True)
    return levels


def write_picture(path: Path | str, levels: NDArray[np.uint8], *, quality: int = 95) -> None:
    """Write ``(H, W, 3)`` sRGB with its profile as PNG, or as JPEG without chroma subsampling; by the name's suffix.

    Raises:
        ValueError: the suffix is another than ``.png`` and ``.jpg``, or ``quality`` is not from 1 to 100.
    """
    from PIL import Image

    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".jpg") or not 1 <= quality <= 100:
        raise ValueError(f"path, quality: expected .png or .jpg, and 1 to 100; got {suffix!r}, {quality}")
    profile = _srgb_profile()
    with atomic_path(path) as temporary:
        if suffix == ".png":
            Image.fromarray(levels).save(temporary, "PNG", icc_profile=profile)
        else:
            Image.fromarray(levels).save(temporary, "JPEG", quality=quality, subsampling=0, icc_profile=profile)


def _srgb_profile() -> bytes:
    """Made on a fixed day: the same picture is to give the same file."""
    from PIL import ImageCms

    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    made[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)  # ICC.1:2022, 7.2.8
    return bytes(made)
