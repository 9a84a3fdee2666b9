"""The images of a tuning environment: linear light of one size, in half precision, on one device."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.images import MIN_SIDE, resize_shorter
from attriqa_envs.isp import MAX_LINEAR
from attriqa_envs.raw.decode import LinearImage

DEFAULT_SIDE = 256  # px
_SHOWN = 3  # unreadable files that a warning names

Images = str | Path | Tensor | Sequence[Tensor] | Sequence[LinearImage]


def load_bank(
    images: Images,
    *,
    side: int | None = None,
    cache: Path | str | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Bring images into the one form that an environment holds.

    The central square is kept of images that must change their size, so that all fit one batch and none is distorted.

    Args:
        images: linear light, sRGB primaries, in [0, 1000], 1 being display white: ``(N, 3, H, W)``, or a sequence of
            ``(3, H, W)`` or of `LinearImage`, or a folder of raw files or photos (see
            `attriqa_envs.raw.find.find_images`). Files that cannot be read are left out, with a warning that counts
            and names them.
        side: px of the squares; `None`: as they are, in which case they must be of one size; 256 for a folder.
        cache: folder that keeps decoded files; `None`: nothing is kept.
        device: of the result; `None`: that of the tensors, or the CPU.

    Returns:
        ``(N, 3, H, W)`` float16; the argument itself where it is that already.

    Raises:
        ValueError: no images, sizes that differ, a side under 32 px, NaN or values out of range; it names the image.
    """
    if side is not None and (not isinstance(side, int) or side < MIN_SIDE):
        raise ValueError(f"side: expected an integer of at least {MIN_SIDE} px; got {side!r}")
    if isinstance(images, str | Path):
        side = side or DEFAULT_SIDE
        images = _read_folder(images, side, cache)
    elif cache is not None:
        raise ValueError("cache: expected none, as images are no files")
    single = [image.pixels if isinstance(image, LinearImage) else image for image in images]
    if not single:
        raise ValueError("images: expected at least one; got none")
    for number, image in enumerate(single):
        _check(image, number)
    if side is not None:
        single = [_square(image, side) for image in single]
    shapes = {tuple(image.shape) for image in single}
    if len(shapes) > 1:
        some = ", ".join(map(str, sorted(shapes)[:3]))
        raise ValueError(
            f"images: expected one size, or a side to bring them to; got {len(shapes)} sizes ({some}, ...)"
        )
    untouched = isinstance(images, Tensor) and images.shape[1:] == single[0].shape
    bank = images if untouched and isinstance(images, Tensor) else torch.stack([image.half() for image in single])
    return bank.to(device=device, dtype=torch.float16)


def _read_folder(root: str | Path, side: int, cache: Path | str | None) -> Sequence[LinearImage]:
    from attriqa_envs.raw.cache import RenditionCache
    from attriqa_envs.raw.find import find_images

    loaded = RenditionCache(cache, side).read_all(find_images(root))
    if loaded.failures:
        named = "; ".join(map(str, loaded.failures[:_SHOWN]))
        count = len(loaded.failures)
        warnings.warn(f"{root}: {count} of {count + len(loaded.images)} files left out: {named}", stacklevel=3)
    return loaded.images


def _check(image: object, number: int) -> None:
    expected = (
        f"images: expected float (3, H, W), sides of at least {MIN_SIDE} px, in [0, {MAX_LINEAR:g}]; image {number}"
    )
    if not isinstance(image, Tensor):
        raise ValueError(f"{expected} is a {type(image).__name__}")  # noqa: TRY004 (the contract: always ValueError)
    if not image.is_floating_point() or image.ndim != 3 or image.shape[0] != 3 or min(image.shape[1:]) < MIN_SIDE:
        raise ValueError(f"{expected} is {str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}")
    low, high = torch.stack(torch.aminmax(image.detach())).tolist()
    if not (low >= 0 and high <= MAX_LINEAR):
        raise ValueError(f"{expected} " + ("has NaN" if low != low else f"goes from {low:g} to {high:g}"))


def _square(image: Tensor, side: int) -> Tensor:
    if image.shape[1:] == (side, side):
        return image
    resized = resize_shorter(image[None].float(), side)[0]
    if min(resized.shape[1:]) < side:  # a long panorama: its shorter side stays under what was asked for
        short = min(resized.shape[1:])
        resized = F.interpolate(centre(resized, short)[None], (side, side), mode="bilinear", antialias=True)[0]
    return centre(resized, side)


def centre(image: Tensor, side: int) -> Tensor:
    """The central square of ``(..., H, W)``; a view."""
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    return image[..., top : top + side, left : left + side]
