"""Small pictures, and what every distortion function owes its caller."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Distort = Callable[[Tensor, Tensor, Sequence[torch.Generator]], Tensor]


def picture(height: int = 56, width: int = 64, seed: int = 0) -> Tensor:
    """(1, 3, H, W) on the 8-bit grid, with detail at several scales and the whole range of values."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        F.interpolate(torch.rand(1, 3, n, n, generator=generator), (height, width), mode="bilinear")
        for n in (3, 10, 40)
    ]
    stretched = (torch.stack(drawn).mean(0) - 0.5) * 2.5 + 0.5
    return (stretched.clamp(0, 1) * 255).round() / 255


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def assert_an_image_is_its_own(distort: Distort, *parameters: float) -> None:
    """A batch is its images one by one, with a value and a seed each; twice is the same; the input stays as it was."""
    images = torch.cat([picture(seed=seed) for seed in range(len(parameters))])
    before = images.clone()
    seeds = range(3, 3 + len(parameters))
    together = distort(images, values(*parameters), generators(*seeds))
    assert torch.equal(images, before)
    assert together.shape == images.shape
    assert torch.equal(distort(images, values(*parameters), generators(*seeds)), together)
    for index, (parameter, seed) in enumerate(zip(parameters, seeds, strict=True)):
        alone = distort(images[index : index + 1], values(parameter), generators(seed))
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-6)
    assert not torch.equal(together, images)


def assert_any_layout_and_dtype(distort: Distort, parameter: float, atol: float = 1e-5) -> None:
    """float64 gives what float32 gives, in its own dtype; so do channels-last and a slice of a larger batch."""
    image = picture()
    expected = distort(image, values(parameter), generators(7))
    assert expected.dtype == torch.float32
    double = distort(image.double(), values(parameter), generators(7))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=0, atol=atol)
    wider = torch.cat([image, image], -1)[..., : image.shape[-1]]
    for same in (image.contiguous(memory_format=torch.channels_last), wider):
        torch.testing.assert_close(distort(same, values(parameter), generators(7)), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        tracked = distort(image.clone().requires_grad_(), values(parameter), generators(7))
    assert not tracked.requires_grad
