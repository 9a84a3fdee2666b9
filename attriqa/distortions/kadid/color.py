"""Changes of colour (KADID-10k #4, #5, #7 and #8), after the MATLAB scripts of KADIS-700k."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.distortions.kadid import per_image
from attriqa.distortions.kadid.colorspaces import lab_to_rgb, rgb_to_lab
from attriqa.distortions.kadid.filters import gaussian

EDGE_SIGMA = 4.0  # px, of the smoothing of edges in `color_shift`
_GRAY = (0.2989, 0.5870, 0.1140)  # MATLAB's rgb2gray


def color_diffusion(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#4: CIELAB's a and b are blurred with a Gaussian of sigma ``1.5 v + 2`` px and multiplied by ``v``."""
    lab = rgb_to_lab(images)
    lab[:, 1:] = gaussian(lab[:, 1:], (1.5 * values + 2).tolist()).mul_(per_image(values, images))
    return lab_to_rgb(lab).clamp_(0, 1)


def color_shift(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#5: where there are edges, green gives way to green from up to ``v`` pixels above and to the left.

    ``G + e (shifted G - G)``; ``e`` in [0, 1] is the length of gray's gradient (central differences), smoothed, and
    stretched over its range without the lowest tenth and the 1 % at either end. Each generator draws two uniform
    numbers: the shift's direction, down and right, before it is scaled to the length ``v`` and rounded to pixels.
    """
    out = images.clone(memory_format=torch.contiguous_format)
    height, width = images.shape[-2:]
    for image, length, generator in zip(out, values.tolist(), generators, strict=True):
        direction = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        # 0 would be no direction: then along the diagonal.
        scale = length / math.hypot(*direction) if any(direction) else 0.0
        down, right = (math.floor(part * scale + 0.5) for part in direction)
        rows = (torch.arange(height, device=image.device) - down).clamp_(min=0)
        columns = (torch.arange(width, device=image.device) - right).clamp_(min=0)
        green = image[1]
        shifted = green.index_select(0, rows).index_select(1, columns)
        green += shifted.sub_(green).mul_(_edges(image))
    return out


def _edges(image: Tensor) -> Tensor:
    """How much of an edge there is at each pixel: ``(3, H, W)`` -> ``(H, W)`` in [0, 1]."""
    gray = sum(channel * weight for channel, weight in zip(image, _GRAY, strict=True))
    padded = F.pad(gray[None, None], (1, 1, 1, 1), mode="replicate")
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    edges = _stretch(gaussian(torch.hypot(down, right), [EDGE_SIGMA])[0, 0])
    edges = _stretch(edges.clamp_(0.1, 1))
    return _stretch(edges.clamp_(*_ends(edges, 0.01)))


def _stretch(values: Tensor) -> Tensor:
    """Onto [0, 1], in place; a constant stays as it is."""
    low, high = values.aminmax()
    return values.sub_(low).div_(high - low) if high > low else values


def _ends(values: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The quantiles ``share`` and ``1 - share``, interpolated linearly; ``torch.quantile`` would sort all for them."""
    below, between = divmod(share * (values.numel() - 1), 1)
    count = min(int(below) + 2, values.numel())
    lowest = values.flatten().topk(count, largest=False).values
    highest = values.flatten().topk(count).values
    return torch.lerp(lowest[int(below)], lowest[-1], between), torch.lerp(highest[int(below)], highest[-1], between)


def color_saturation_1(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#7: HSV's saturation is multiplied by a factor.

    With hue and V kept, each channel ``c`` of a colour of saturation S is ``V (1 - S t)``, with ``t`` of the hue alone:
    so it becomes ``V + factor (c - V)``. A negative factor turns the hue around, weakly, and brightens.
    """
    return torch.lerp(images.amax(1, keepdim=True), images, per_image(values, images))


def color_saturation_2(images: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """#8: CIELAB's a and b are multiplied by a factor; 1 changes nothing."""
    lab = rgb_to_lab(images)
    lab[:, 1:] *= per_image(values, images)
    return lab_to_rgb(lab).clamp_(0, 1)
