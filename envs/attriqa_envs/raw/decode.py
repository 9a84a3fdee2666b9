"""Raw files to linear light: black and white level, white balance, demosaic, colour matrix, orientation and crop.

What comes out is what `attriqa_envs.isp.render` takes: linear light with sRGB primaries in which 1 is display white.

- *Brightness* is LibRaw's without automatic brightening: the channel with the smallest white balance gain reaches 1
  where the sensor clips. The others reach their gains, so values above 1 are real headroom that exposure or highlights
  may bring back. Up to how much is known: `RawMetadata.white_balance` has the gains.
- *Clipped areas* would turn magenta, as the channels clip at different heights: see
  `attriqa_envs.raw.color.rebuild_highlights`, or choose ``highlights="clip"``, LibRaw's own way.
- *Below zero* there is noise around black, and colours outside sRGB; both become 0, the noise only after resizing.
- A file *without white balance* (or a zero one) gets its matrix's daylight gains, or, without a matrix too, none; one
  *without a matrix* keeps camera RGB; the metadata tell. An all-black frame is black.

Decode in threads: LibRaw releases the GIL. Its wheels use OpenMP, so a forked process that decodes may hang.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attriqa.images import ImageError, resize_shorter
from attriqa_envs.raw.color import apply_matrix, rebuild_highlights
from attriqa_envs.raw.demosaic import bin_sites, interpolate
from attriqa_envs.raw.libraw import read_libraw
from attriqa_envs.raw.mosaic import header_of, read_mosaic
from attriqa_envs.raw.sensor import RawMetadata, Sensor

Highlights = Literal["rebuild", "clip"]


@dataclass(frozen=True)
class LinearImage:
    """Linear light and where it comes from.

    Attributes:
        pixels: ``(3,H,W)`` float32 (float16 out of a cache), sRGB primaries, upright, finite, >= 0; display white is 1,
            and what is brighter is kept.
        metadata: of the file.
    """

    pixels: Tensor
    metadata: RawMetadata


def decode(
    path: Path | str,
    *,
    half_size: bool | None = None,
    shorter_edge: int | None = None,
    highlights: Highlights = "rebuild",
) -> LinearImage:
    """Read a raw file, or a headerless mosaic (see `attriqa_envs.raw.mosaic`).

    Args:
        path: of the file.
        half_size: bin each 2 x 2 quad of the mosaic to a pixel, without interpolation, instead of demosaicing at full
            size (Malvar, He, Cutler 2004; X-Trans by LibRaw). `None`: where ``shorter_edge`` is still reached.
        shorter_edge: px of the shorter side, resized in linear light with antialiasing; `None`: as it is.
        highlights: ``"rebuild"`` what clipped, from the channels that did not, or ``"clip"`` all channels at 1.

    Raises:
        ImageError: whatever is wrong with the file.
        ValueError: ``shorter_edge`` or ``highlights`` is none of the above.
    """
    if highlights not in ("rebuild", "clip"):
        raise ValueError(f"highlights: expected 'rebuild' or 'clip'; got {highlights!r}")
    if shorter_edge is not None and (not isinstance(shorter_edge, int) or shorter_edge < 32):
        raise ValueError(f"shorter_edge: expected an integer of at least 32 px; got {shorter_edge!r}")
    sensor = read_sensor(Path(path))
    if half_size is None:
        half_size = shorter_edge is not None and min(sensor.crop[2:]) // 2 >= shorter_edge
    pixels = _camera_rgb(sensor, half_size, highlights)
    if highlights == "rebuild":
        pixels = rebuild_highlights(pixels, torch.tensor(sensor.metadata.white_balance))
    if shorter_edge is not None:
        pixels = resize_shorter(pixels[None], shorter_edge)[0]
    pixels = apply_matrix(pixels, torch.tensor(sensor.metadata.camera_to_srgb)).clamp_(min=0)
    return LinearImage(upright(pixels, sensor.metadata.orientation).contiguous(), sensor.metadata)


def read_sensor(path: Path) -> Sensor:
    """Sensor values of a raw file, or of a headerless mosaic where ``NAME.json`` stands beside ``NAME.raw``.

    Raises:
        ImageError: whatever is wrong with the file or its JSON.
        ImportError: rawpy or tifffile, which raw files need, is not installed.
    """
    header = header_of(path)
    try:
        sensor = read_libraw(path) if header is None else read_mosaic(path, header)
        sensor.check()
    except ImportError:
        raise
    except Exception as error:  # decoders answer hostile bytes with every kind of exception, MemoryError included
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(str(path), " ".join(text.split())) from error
    return sensor


def upright(pixels: Tensor, orientation: int) -> Tensor:
    """Turn ``(3,H,W)`` as EXIF's ``orientation``, 1 to 8, says; a view.

    Raises:
        ValueError: another orientation.
    """
    if orientation not in range(1, 9):
        raise ValueError(f"orientation: expected 1 to 8; got {orientation}")
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (1,), 7: (1, 2), 8: (2,)}.get(orientation, ())
    pixels = pixels.flip(flipped) if flipped else pixels
    return pixels.transpose(1, 2) if orientation > 4 else pixels


def _camera_rgb(sensor: Sensor, half_size: bool, highlights: Highlights) -> Tensor:
    """White balanced camera RGB ``(3,H,W)`` of the picture, or of half its size; 1 where the first channel clips."""
    top, left, height, width = sensor.crop
    if sensor.colors is None:
        values = sensor.values[top : top + height, left : left + width]
        planes = [_balanced(values[..., color], sensor, color, highlights) for color in range(3)]
        pixels = torch.from_numpy(np.stack(planes))
        return torch.nn.functional.avg_pool2d(pixels, 2) if half_size else pixels
    if half_size:  # a crop may start at an odd site: then its quads are others, of a shifted pattern
        values = sensor.values[top : top + height // 2 * 2, left : left + width // 2 * 2]
        sites = [torch.from_numpy(_site(values, sensor, site, (top, left), highlights)) for site in range(4)]
        return bin_sites(sites, sensor.pattern_at(top, left))
    mosaic = np.empty(sensor.values.shape, np.float32)
    for site in range(4):
        mosaic[site // 2 :: 2, site % 2 :: 2] = _site(sensor.values, sensor, site, (0, 0), highlights)
    full = interpolate(torch.from_numpy(mosaic), sensor.pattern_at(0, 0))  # its edge may lean on what is cropped
    return full[:, top : top + height, left : left + width]


def _site(
    values: NDArray[Any], sensor: Sensor, site: int, start: tuple[int, int], highlights: Highlights
) -> NDArray[np.float32]:
    """One of the four sites of each 2 x 2 quad of ``values``, which start at ``start`` on the sensor."""
    y, x = divmod(site, 2)
    return _balanced(values[y::2, x::2], sensor, sensor.color_at(start[0] + y, start[1] + x), highlights)


def _balanced(values: NDArray[Any], sensor: Sensor, color: int, highlights: Highlights) -> NDArray[np.float32]:
    """Values of one colour with black at 0, white balanced."""
    black, gain = (
        sensor.metadata.black[color],
        (*sensor.metadata.white_balance, sensor.metadata.white_balance[1])[color],
    )
    plane = values.astype(np.float32)
    plane -= np.float32(black)
    plane *= np.float32(gain / (sensor.metadata.white - black))
    return np.minimum(plane, 1, out=plane) if highlights == "clip" else plane
