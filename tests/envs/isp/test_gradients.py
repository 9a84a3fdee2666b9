import pytest
import torch
from torch import Tensor

from attriqa_envs.isp import KEYS, render
from tests.support.isp_pictures import P, awkward, corners, params, picture, random_params

BLACK, DARK, WHITE, CLIPPED = (2e-6,) * 3, (0.001,) * 3, (1.0,) * 3, (6.0, 5.0, 7.0)
SPECIAL = [
    (BLACK, WHITE, (0.18,) * 3, CLIPPED, (0.5, 0.2, 0.1), DARK),  # each beside other kinds
    (BLACK,) * 6,
    ((0.18,) * 3,) * 6,
    (CLIPPED,) * 6,
    ((1.0, 2e-6, 2e-6), (2e-6, 1.0, 2e-6), (2e-6, 2e-6, 1.0), (4.0, 0.3, 2e-6), (2e-6, 0.4, 4.0), WHITE),
]


def special(index: int) -> Tensor:
    """(1, 3, 2, 3) of the awkward pixels; 2e-6 stands for black, so that a step of 1e-6 stays above zero."""
    return torch.tensor(SPECIAL[index], dtype=torch.float64).T.reshape(1, 3, 2, 3)


def given(seed: int, index: int) -> Tensor:
    """Random params; those of seed 0 stand right beside the default."""
    if seed == 0:
        return torch.full((1, P), 1e-4, dtype=torch.float64)
    return random_params(1, seed=10 * index + seed, inside=0.9, dtype=torch.float64)


@pytest.mark.parametrize("index", range(len(SPECIAL)))
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_is_that_of_finite_differences(index: int, seed: int) -> None:
    """Along a random direction; a slow test looks at each entry."""
    inputs = (special(index).requires_grad_(), given(seed, index).requires_grad_())
    assert torch.autograd.gradcheck(render, inputs, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(SPECIAL)))
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_each_entry_of_the_gradient_is_that_of_finite_differences(index: int, seed: int) -> None:
    inputs = (special(index).requires_grad_(), given(seed, index).requires_grad_())
    assert torch.autograd.gradcheck(render, inputs)


@pytest.mark.slow
def test_the_gradient_is_itself_differentiable() -> None:
    linear = special(0)[:, :, :1, :2].clone().requires_grad_()
    values = random_params(1, seed=5, inside=0.8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(render, (linear, values))


def gradients(linear: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    linear, values = linear.clone().requires_grad_(), values.clone().requires_grad_()
    srgb = render(linear, values)
    # Weights, or the gradients of a picture's pixels could cancel in the params.
    weights = torch.linspace(-1, 1.5, srgb.numel(), dtype=srgb.dtype).reshape(srgb.shape)
    to_linear, to_params = torch.autograd.grad((srgb * weights).sum(), (linear, values))
    return srgb.detach(), to_linear, to_params


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_finite_everywhere_in_the_box(dtype: torch.dtype) -> None:
    for values in (random_params(200), corners(200), params(50)):
        srgb, to_linear, to_params = gradients(awkward(len(values)).to(dtype), values.to(dtype))
        assert srgb.isfinite().all()
        assert srgb.min() >= 0
        assert srgb.max() <= 1
        assert to_linear.isfinite().all()
        assert to_params.isfinite().all()
        assert to_params.abs().max() < 1e6  # nor so large that one pixel decides for all


@pytest.mark.parametrize("value", [1.5, 8.0, 100.0])
def test_clipped_pixels_still_pull(value: float) -> None:
    """Three stops above white, where a clip or a tanh would give nothing at all."""
    linear = torch.full((1, 3, 6, 6), value)
    _, to_linear, _ = gradients(linear, params())
    assert (to_linear != 0).all()
    values = params().requires_grad_()
    render(linear, values).sum().backward()
    assert values.grad is not None
    assert values.grad[0, KEYS.index("exposure")] > 1e-3
    assert values.grad[0, KEYS.index("highlights")] > 1e-3


def test_black_pixels_and_colours_outside_the_gamut_still_pull() -> None:
    black = torch.zeros(1, 3, 6, 6, requires_grad=True)
    render(black, params()).sum().backward()
    assert black.grad is not None
    assert (black.grad > 0.1).all()
    values = params(saturation=1.0).requires_grad_()  # drives blue of a pure red far below zero
    srgb = render(torch.tensor([0.8, 0.01, 0.01]).view(1, 3, 1, 1).expand(1, 3, 6, 6), values)
    assert srgb[0, 2].max() < 1 / 1000
    srgb[0, 2].sum().backward()
    assert values.grad is not None
    assert values.grad[0, KEYS.index("saturation")] < -1e-6


def test_every_parameter_can_leave_the_default() -> None:
    """The radius of no sharpening alone changes nothing; once there is some, it counts."""
    _, _, to_params = gradients(picture(), params())
    still = {key for key, value in zip(KEYS, to_params[0].tolist(), strict=True) if abs(value) < 1e-4}
    assert still == {"sharpen_radius"}
    _, _, to_params = gradients(picture(), params(sharpen_amount=0.5))
    assert to_params[0, KEYS.index("sharpen_radius")].abs() > 1e-4


def test_the_gradients_of_an_image_are_its_own() -> None:
    linear, values = picture(3), random_params(3, inside=0.9)
    values.requires_grad_()
    linear.requires_grad_()
    to_linear, to_params = torch.autograd.grad(render(linear, values)[1].sum(), (linear, values))
    assert to_params.shape == (3, P)
    for grad in (to_linear, to_params):
        assert (grad[[0, 2]] == 0).all()
        assert (grad[1] != 0).any()


def test_a_search_by_gradient_finds_the_params_of_a_picture() -> None:
    """Exposure, white balance, contrast and saturation of a rendering are recovered from the picture alone."""
    linear = picture(1, 16, 16)
    keys = ("exposure", "temperature", "tint", "contrast", "saturation")
    places = torch.tensor([KEYS.index(key) for key in keys])
    wanted = torch.tensor([[1.2, -40, 0.3, -0.3, 0.3]])
    target = render(linear, torch.zeros(1, P).index_copy(1, places, wanted))
    scale = torch.tensor([[1.0, 50, 0.5, 0.5, 0.5]])
    free = torch.zeros(1, len(keys), requires_grad=True)
    search = torch.optim.LBFGS([free], max_iter=30, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def loss() -> float:
        search.zero_grad()
        srgb = render(linear, torch.zeros(1, P).index_copy(1, places, free * scale))
        error = 100 * (srgb - target).square().mean()
        error.backward()
        return error.item()

    search.step(loss)
    assert loss() < 1e-5
    torch.testing.assert_close(free.detach() * scale, wanted, rtol=0.01, atol=0.01)
