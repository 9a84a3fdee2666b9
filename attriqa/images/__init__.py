"""Pixels in: any file, array or tensor becomes a checked sRGB tensor ``(B, 3, H, W)`` in [0, 1]."""

from attriqa.images.crops import five_crops
from attriqa.images.decode import MAX_FILE_BYTES, ImageError, read, to_tensor
from attriqa.images.find import SUFFIXES, find
from attriqa.images.tensors import MAX_ASPECT, MAX_PIXELS, MIN_SIDE, check, resize_shorter, target_size

__all__ = [
    "MAX_ASPECT",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "MIN_SIDE",
    "SUFFIXES",
    "ImageError",
    "check",
    "find",
    "five_crops",
    "read",
    "resize_shorter",
    "target_size",
    "to_tensor",
]
