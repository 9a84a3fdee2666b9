from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from attriqa import ATTRIBUTES
from attriqa.distortions import apply_ramp, gaussian_blur, luma
from tests.support.distortion_pictures import detailed
from tests.support.distortion_pictures import seeded as generator

UNCHANGED = {"sharpness": 1.0, "contrast": 0.5, "brightness": 0.5, "colorfulness": 0.5, "noisiness": 1.0}


def picture() -> Tensor:
    """(1, 3, 60, 72) with detail at several scales, away from black and white."""
    return 0.3 + 0.4 * detailed(1, 60, 72, (4, 12, 40))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5, 4.0])
def test_blur_is_scipys_gaussian_with_replicated_borders(sigma: float) -> None:
    image = picture()
    found = gaussian_blur(image, torch.tensor([sigma]))
    radius = int(np.ceil(3 * sigma))
    for channel in range(3):
        expected = gaussian_filter(image[0, channel].double().numpy(), sigma, mode="nearest", radius=radius)
        np.testing.assert_allclose(found[0, channel].numpy(), expected, atol=1e-5)


def test_each_image_has_its_own_blur_whatever_stands_beside_it() -> None:
    image = picture()
    sigmas = torch.tensor([0.0, 0.04, 0.3, 1.0, 4.0])
    together = gaussian_blur(image.expand(5, -1, -1, -1), sigmas)
    assert torch.equal(together[0], image[0])
    assert torch.equal(together[1], image[0])
    for index, sigma in enumerate(sigmas):
        torch.testing.assert_close(gaussian_blur(image, sigma[None])[0], together[index], rtol=0, atol=1e-3)


def test_blur_keeps_a_constant_and_passes_gradients() -> None:
    torch.testing.assert_close(
        gaussian_blur(torch.full((1, 3, 40, 40), 0.3), torch.tensor([3.0])), torch.full((1, 3, 40, 40), 0.3)
    )
    image = picture().requires_grad_()
    gaussian_blur(image, torch.tensor([2.0])).sum().backward()
    assert image.grad is not None
    # The weights of each kernel sum to one, and the border gives to no one else.
    assert image.grad.sum().item() == pytest.approx(image.numel(), rel=1e-4)


def test_luma_is_bt601() -> None:
    colours = torch.eye(3).view(3, 3, 1, 1)
    torch.testing.assert_close(luma(colours).flatten(), torch.tensor([0.299, 0.587, 0.114]))


def detail(images: Tensor) -> Tensor:
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(luma(images), kernel).var((1, 2, 3))


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "sharpness": detail,
    "contrast": lambda images: luma(images).std((1, 2, 3)),
    "brightness": lambda images: luma(images).mean((1, 2, 3)),
    "colorfulness": lambda images: (images.amax(1) - images.amin(1)).mean((1, 2)),
    "noisiness": lambda images: -(images - picture()).var((1, 2, 3)),
}


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_higher_level_has_more_of_the_attribute(attribute: str) -> None:
    level = torch.linspace(0, 1, 7)  # the last eighth of the sharpness ramp, sigma < 0.18, is too little for float32
    ramp = apply_ramp(picture().expand(7, -1, -1, -1), attribute, level, generator())
    assert ramp.shape == (7, 3, 60, 72)
    assert 0 <= ramp.min() <= ramp.max() <= 1
    measured = MEASURES[attribute](ramp)
    assert (measured.diff() > 0).all(), measured


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_one_level_leaves_the_photo_as_it_is(attribute: str) -> None:
    image = picture()
    same = apply_ramp(image, attribute, torch.tensor([UNCHANGED[attribute]]), generator())
    torch.testing.assert_close(same, image, rtol=0, atol=1e-6)
    other = apply_ramp(image, attribute, torch.tensor([0.2]), generator())
    assert (other - image).abs().max() > 0.01


def test_the_ends_are_as_documented() -> None:
    image, zero, one = picture(), torch.zeros(1), torch.ones(1)
    mean = luma(image).mean()
    torch.testing.assert_close(apply_ramp(image, "sharpness", zero), gaussian_blur(image, torch.tensor([4.0])))
    torch.testing.assert_close(apply_ramp(image, "contrast", zero), mean + 0.2 * (image - mean))
    torch.testing.assert_close(apply_ramp(image, "contrast", one), (mean + 1.8 * (image - mean)).clamp(0, 1))
    gray = apply_ramp(image, "colorfulness", zero)
    torch.testing.assert_close(gray, luma(image).expand(-1, 3, -1, -1))
    half = torch.full((1, 3, 32, 32), 0.5)
    assert apply_ramp(half, "brightness", zero).mean().item() == pytest.approx(0.275)
    assert apply_ramp(half, "brightness", one).mean().item() == pytest.approx(0.725)
    noise = apply_ramp(half, "noisiness", torch.tensor([0.5]), generator()) - half
    assert noise.var().item() == pytest.approx(0.05 * 0.25, rel=0.1)


def test_brightness_keeps_black_and_white_and_the_order_of_tones() -> None:
    tones = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    for level in (0.0, 0.3, 1.0):
        curve = apply_ramp(tones, "brightness", torch.tensor([level]))[0, 0, 0]
        assert curve[0] == 0
        assert curve[-1].item() == pytest.approx(1)
        assert (curve.diff() > 0).all()


def test_noise_comes_from_the_generator_alone() -> None:
    image, level = picture(), torch.tensor([0.2])
    state = torch.get_rng_state()
    first, again, other = (apply_ramp(image, "noisiness", level, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_levels_belong_to_their_images_and_the_input_stays() -> None:
    batch = torch.cat([picture(), picture().flip(3)])
    before = batch.clone()
    for attribute in ATTRIBUTES[:4]:
        ramp = apply_ramp(batch, attribute, torch.tensor([0.1, 0.8]))
        for index, level in enumerate((0.1, 0.8)):
            alone = apply_ramp(batch[index : index + 1], attribute, torch.tensor([level]))
            torch.testing.assert_close(ramp[index], alone[0], rtol=0, atol=1e-3)
    assert torch.equal(batch, before)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_ramps_are_differentiable(attribute: str) -> None:
    image = picture().requires_grad_()
    apply_ramp(image, attribute, torch.tensor([0.4]), generator()).square().mean().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert image.grad.abs().max() > 0


def test_wrong_arguments_are_refused() -> None:
    image = picture()
    with pytest.raises(ValueError, match=r"attribute: expected one of sharpness, .*, got 'blur'"):
        apply_ramp(image, "blur", torch.zeros(1))
    for level in (
        torch.zeros(2),
        torch.tensor(0.5),
        torch.tensor([1.5]),
        torch.tensor([-0.1]),
        torch.tensor([float("nan")]),
    ):
        with pytest.raises(ValueError, match=r"level: expected shape \(1,\) within \[0, 1\]"):
            apply_ramp(image, "contrast", level)
    with pytest.raises(ValueError, match=r"generator: the noisiness ramp needs a torch\.Generator"):
        apply_ramp(image, "noisiness", torch.zeros(1))
