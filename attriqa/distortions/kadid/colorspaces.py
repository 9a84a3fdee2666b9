"""Colour spaces: batches (B, 3, H, W) of gamma-encoded sRGB to CIELAB and to YCbCr, and back. Nothing is clipped.

Any floating dtype and device; float32 agrees with float64 to about 1e-5 of full scale. Not differentiable: the steps
work in place.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STRIP_PIXELS = 3 << 14  # per thread: what lies between the steps then stays in a CPU's caches
Matrix = NDArray[np.floating[Any]]

# Linear sRGB to CIE XYZ (IEC 61966-2-1). Its row sums are the white point, D65; divided by it, gray is exactly neutral.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_TO_XYZ = _XYZ / _XYZ.sum(1, keepdims=True)
_FROM_XYZ = np.linalg.inv(_TO_XYZ)
_CUBES = np.array([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])  # f(X), f(Y), f(Z) to L + 16, a, b
_FROM_CUBES = np.linalg.inv(_CUBES)
_DELTA = 6 / 29  # where CIELAB's f turns from a line into a cube root
_KINK = 0.04045  # where sRGB's transfer curve turns from a line into a power, encoded

# ITU-R BT.601 with Y in [16, 235] / 255 and Cb, Cr in [16, 240] / 255, as MATLAB's rgb2ycbcr.
_TO_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
_FROM_YCBCR = np.linalg.inv(_TO_YCBCR)
_BLACK = (16 / 255, 128 / 255, 128 / 255)  # in YCbCr


def rgb_to_lab(images: Tensor) -> Tensor:
    """SRGB in [0, 1] to CIELAB under D65: ``(B, 3, H, W)``, L in [0, 100], a and b about -110 to 110 (CIE 15:2004)."""
    return _in_strips(_rgb_to_lab, images)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """CIELAB under D65 to sRGB, both ``(B, 3, H, W)``; colours that sRGB lacks leave [0, 1]."""
    return _in_strips(_lab_to_rgb, lab)


def rgb_to_ycbcr(images: Tensor) -> Tensor:
    """Gamma-encoded RGB in [0, 1] to BT.601 YCbCr: Y in [16, 235] / 255, Cb and Cr in [16, 240] / 255."""
    return _mix(images, _TO_YCBCR, offsets=_BLACK)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """The inverse of `rgb_to_ycbcr`; values that no colour has leave [0, 1]."""
    return _mix(ycbcr, _FROM_YCBCR, offsets=(-_FROM_YCBCR @ _BLACK).tolist())


def _in_strips(change: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``change(images)``, where a pixel is changed by itself; on a CPU image by image and in strips of rows.

    That is several times faster than at once. And no bit of an image depends on what stands beside it: a CPU computes
    the last few numbers of an array by other instructions, which round differently.
    """
    if images.device.type != "cpu":
        return change(images)
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    rows = max(1, STRIP_PIXELS * torch.get_num_threads() // images.shape[3])
    for index in range(len(images)):
        image = slice(index, index + 1)
        for top in range(0, images.shape[2], rows):
            strip = slice(top, top + rows)
            out[image, :, strip] = change(images[image, :, strip])
    return out


def _rgb_to_lab(images: Tensor) -> Tensor:
    lab = _mix(_to_cubes(_mix(to_linear(images), _TO_XYZ)), _CUBES)
    lab[:, 0] -= 16
    return lab


def _lab_to_rgb(lab: Tensor) -> Tensor:
    cubes = _mix(lab, _FROM_CUBES, offsets=(16 / 116, 16 / 116, 16 / 116))
    return from_linear(_mix(_from_cubes(cubes), _FROM_XYZ))


def _mix(images: Tensor, matrix: Matrix, offsets: Sequence[float] = (0.0, 0.0, 0.0)) -> Tensor:
    """``matrix @ channels + offsets``; as sums, so that no reduced precision of matrix products applies."""
    mixed = torch.empty_like(images, memory_format=torch.contiguous_format)
    for channel, (row, offset) in enumerate(zip(matrix.tolist(), offsets, strict=True)):
        out = torch.mul(images[:, 0], row[0], out=mixed[:, channel])
        out.add_(images[:, 1], alpha=row[1]).add_(images[:, 2], alpha=row[2])
        if offset:
            out.add_(offset)
    return mixed


# The curves below have two pieces that meet at a threshold. Each piece is taken of the values on its own side, the
# others moved to the threshold, and their sum less the common value is the curve: on a CPU twice as fast as a choice.


def to_linear(images: Tensor) -> Tensor:
    """The transfer curve of sRGB, inverted (IEC 61966-2-1): values in [0, 1], of any shape; no gradients."""
    lower = images.clamp(max=_KINK).sub_(_KINK).div_(12.92)
    return _power(images.clamp(min=_KINK).add_(0.055).div_(1.055), 2.4).add_(lower)


def from_linear(linear: Tensor) -> Tensor:
    """The transfer curve of sRGB: linear light in [0, 1], of any shape; no gradients."""
    lower = linear.clamp(max=_KINK / 12.92).mul_(12.92).sub_(_KINK + 0.055)
    return _power(linear.clamp(min=_KINK / 12.92), 1 / 2.4).mul_(1.055).add_(lower)


def _to_cubes(xyz: Tensor) -> Tensor:
    """CIELAB's f: the cube root, and near black a straight line."""
    lower = xyz.clamp(max=_DELTA**3).sub_(_DELTA**3).div_(3 * _DELTA**2)
    return _power(xyz.clamp(min=_DELTA**3), 1 / 3).add_(lower)


def _from_cubes(cubes: Tensor) -> Tensor:
    lower = cubes.clamp(max=_DELTA).sub_(_DELTA).mul_(3 * _DELTA**2)
    return cubes.clamp(min=_DELTA).pow_(3).add_(lower)


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` in place, for positive bases: on a CPU in half the time of ``torch.pow``."""
    return base.log2_().mul_(exponent).exp2_()
