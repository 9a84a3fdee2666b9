"""Compression: JPEG 2000 and JPEG, encoded and decoded by Pillow (KADID-10k #9 and #10).

A codec works on 8 bits: images are rounded to the nearest level, on the CPU. The pictures of a batch are coded by as
many threads as PyTorch may use (Pillow lets go of the interpreter's lock meanwhile); each by itself, so that the
result does not depend on their number.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_picture(image: Tensor) -> Image.Image:
    """One image ``(3, H, W)`` in [0, 1] as a picture of 8 bits per channel, rounded to the nearest level."""
    planes = (image * 255).round_().to(torch.uint8).cpu().numpy()
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])


def through_pictures(images: Tensor, values: Tensor, change: Callable[[Image.Image, float], Image.Image]) -> Tensor:
    """Apply ``change(picture, value)``, RGB to RGB of the same size, to each image; several threads at once."""
    out = torch.empty(images.shape, dtype=images.dtype)

    def work(index: int, value: float) -> None:
        changed = change(to_picture(images[index]), value)
        for plane, band in zip(out[index], changed.split(), strict=True):
            torch.div(torch.from_numpy(np.array(band)), 255, out=plane)

    threads = min(torch.get_num_threads(), len(images))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(len(images)), values.tolist()))  # the list: an error in a thread is raised here
    else:
        for index, value in enumerate(values.tolist()):
            work(index, value)
    return out.to(images.device)


def jpeg2000(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#9: JPEG 2000, with the irreversible wavelet (9/7) and one quality layer; multiples of 1/255.

    A value is the compression ratio: bytes of the 8-bit picture by those of the file.

    Source: MATLAB's ``imwrite(..., 'CompressionRatio', r)``, as KADIS-700k calls it.
    """
    options = {"quality_mode": "rates", "irreversible": True}
    return through_pictures(images, values, lambda p, ratio: _coded(p, "JPEG2000", quality_layers=[ratio], **options))


def jpeg(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#10: JPEG, chroma at half resolution (4:2:0); multiples of 1/255.

    A value is the quality of libjpeg, a whole number of 1 to 95.

    Source: MATLAB's ``imwrite(..., 'Quality', q)``, as KADIS-700k calls it.
    """
    options = {"subsampling": "4:2:0"}
    return through_pictures(images, values, lambda p, quality: _coded(p, "JPEG", quality=round(quality), **options))


def _coded(picture: Image.Image, format: str, **options: Any) -> Image.Image:  # noqa: A002 (Pillow's word)
    file = io.BytesIO()
    picture.save(file, format, **options)
    return Image.open(file)
