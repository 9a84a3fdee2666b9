"""A diffusion model as a policy, against what diffusers does and what can be computed by hand."""

import contextlib
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from attriqa.reward.ddim import DDIMPolicy

LIBRARY: Any = diffusers  # its classes carry few annotations


class Denoiser(nn.Module):
    """Says a scaled copy of what it is shown, plus what its adapter adds; a text adds its own mean."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.adapter = nn.Parameter(torch.tensor(0.0))
        self.adapted = True

    def forward(self, x: Tensor, t: Tensor, texts: Tensor | None = None) -> Any:
        said = self.scale * x + (self.adapter * torch.sin(5 * x) if self.adapted else 0)
        if texts is not None:
            said = said + texts.mean((1, 2)).view(-1, 1, 1, 1)
        return SimpleNamespace(sample=said)

    @contextlib.contextmanager
    def without(self) -> Iterator[None]:
        self.adapted = False
        yield
        self.adapted = True


def policy(steps: int = 5, *, prompts: int = 1, texts: Tensor | None = None, **settings: Any) -> DDIMPolicy:
    unet = Denoiser()
    scheduler = LIBRARY.DDIMScheduler(**{"set_alpha_to_one": False, "timestep_spacing": "trailing"} | settings)
    scheduler.set_timesteps(steps)
    names = [str(number) for number in range(prompts)]
    return DDIMPolicy(unet, unet.without, scheduler, lambda x: (x / 2 + 0.5).clamp(0, 1), (3, 8, 8), names, texts)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1, "beta_start": 0.00085, "beta_end": 0.012},
        {"set_alpha_to_one": True},
        {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
        {"prediction_type": "sample", "clip_sample": False},
    ],
)
def test_a_rollout_is_what_the_scheduler_draws(settings: dict[str, Any]) -> None:
    """The mean and the deviation are those that diffusers' own step with eta 1 mixes."""
    own = policy(7, **settings)
    noise, which = own.draw(2, 1, (0, 1))
    states = own.rollout(noise, which)
    assert len(states) == 8
    x = noise[0]
    for step, t in enumerate(own.scheduler.timesteps):
        said = own.unet(x, t).sample
        x = own.scheduler.step(said, int(t), x, eta=1.0, variance_noise=noise[step + 1]).prev_sample
        rounding = 3e-4 if "beta_schedule" in settings else 1e-5  # of theirs, out of pure noise; see below
        torch.testing.assert_close(states[step + 1], x, atol=rounding, rtol=1e-5)
        assert states[step + 1].requires_grad is False


@pytest.mark.parametrize("steps", range(3, 12))
def test_steps_out_of_pure_noise_are_finite(steps: int) -> None:
    """Where no signal is left the scheduler's own step with eta 1 may take the root of less than nothing."""
    for settings in ({"beta_schedule": "squaredcos_cap_v2"}, {"rescale_betas_zero_snr": True}):
        own = policy(steps, prediction_type="v_prediction", **settings)
        assert all(state.isfinite().all() for state in own.rollout(*own.draw(1, 1, (0, 1))))


def test_a_step_without_noise_is_not_a_random_one() -> None:
    assert policy(5).random_steps == [0, 1, 2, 3, 4]
    assert policy(5, set_alpha_to_one=True).random_steps == [0, 1, 2, 3]


def test_gradients_flow_through_the_last_steps_alone() -> None:
    own = policy(5)
    noise, which = own.draw(2, 1, (0, 1))
    states = own.rollout(noise, which, last_steps=2)
    assert [state.requires_grad for state in states] == [False] * 4 + [True, True]
    states[-1].sum().backward()
    assert own.unet.adapter.grad.abs() > 0


def test_the_gradient_of_the_last_steps_is_the_slope_of_the_picture() -> None:
    own = policy(4, clip_sample=False)
    own.unet.double()
    noise, which = (value.double() if value.is_floating_point() else value for value in own.draw(2, 1, (0, 1)))
    own.rollout(noise, which, last_steps=4)[-1].square().sum().backward()
    with torch.no_grad():
        ends = []
        for change in (1e-5, -1e-5):
            own.unet.adapter.fill_(change)
            ends.append(own.rollout(noise, which)[-1].square().sum().item())
    assert own.unet.adapter.grad.item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_a_ratio_is_that_of_the_gaussian_densities() -> None:
    own = policy(5)
    noise, which = own.draw(3, 1, (0, 1))
    states = own.rollout(noise, which)
    for step in own.random_steps:
        mean = own.mean(states[step], step, which)
        same = own.ratio(mean, states[step + 1], noise[step + 1], step)
        torch.testing.assert_close(same, torch.ones(3), atol=1e-5, rtol=0)
        moved = mean + 0.3 * own.deviation(step) * noise[step + 1]  # towards where the step went: likelier
        density = [torch.distributions.Normal(at, own.deviation(step)).log_prob(states[step + 1]) for at in
                   (moved, mean)]  # fmt: skip
        expected = (density[0] - density[1]).flatten(1).mean(1).exp()
        ratio = own.ratio(moved, states[step + 1], noise[step + 1], step)
        torch.testing.assert_close(ratio, expected, atol=1e-4, rtol=1e-4)
        assert (ratio > 1.1).all()


def test_the_divergence_is_that_of_the_gaussians_and_zero_at_the_start() -> None:
    own = policy(5)
    noise, which = own.draw(3, 1, (0, 1))
    state, step = noise[0], 1
    start = own.mean(state, step, which)
    assert own.divergence(start, state, step, which).abs().max() == 0
    with torch.no_grad():
        own.unet.adapter.fill_(0.5)
    mean = own.mean(state, step, which)
    deviation = own.deviation(step)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, deviation), torch.distributions.Normal(start, deviation)
    )
    divergence = own.divergence(mean, state, step, which)
    torch.testing.assert_close(divergence, expected.flatten(1).mean(1))
    assert (divergence > 0).all()
    divergence.sum().backward()
    assert own.unet.adapter.grad != 0
    assert own.unet.adapted


def test_learning_from_ratios_finds_the_better_pictures() -> None:
    """The policy gradient itself: steps of the brighter pictures made likelier give brighter pictures."""
    own = policy(4, clip_sample=False)
    own.unet.offset = nn.Parameter(torch.zeros(()))
    forward = own.unet.forward
    own.unet.forward = lambda x, t: SimpleNamespace(sample=forward(x, t).sample - own.unet.offset)
    optimizer = torch.optim.Adam([own.unet.offset], lr=0.02)
    seen = []
    for epoch in range(15):
        noise, which = own.draw(32, 1, (0, epoch))
        states = own.rollout(noise, which)
        rewards = states[-1].mean((1, 2, 3))
        seen.append(rewards.mean().item())
        advantages = (rewards - rewards.mean()) / rewards.std()
        optimizer.zero_grad()
        for step in own.random_steps:
            mean = own.mean(states[step], step, which)
            (-advantages * own.ratio(mean, states[step + 1], noise[step + 1], step)).mean().backward()
        optimizer.step()
    assert seen[-1] > seen[0] + 0.1


def test_draws_depend_on_the_key_alone() -> None:
    own = policy(3, prompts=50)
    state = torch.random.get_rng_state()
    noise, which = own.draw(10, 4, (5, 7))
    assert noise.shape == (4, 10, 3, 8, 8)
    assert (noise.std() - 1).abs() < 0.05
    again, same = own.draw(10, 4, (5, 7))
    assert (again == noise).all()
    assert (same == which).all()
    other, different = own.draw(10, 4, (5, 8))
    assert not torch.isclose(other, noise).all()
    assert which.tolist() == [which[0]] * 4 + [which[4]] * 4 + [which[8]] * 2
    assert (different != which).any()
    assert (torch.random.get_rng_state() == state).all()


def test_pictures_do_not_depend_on_their_batch() -> None:
    own = policy(4, prompts=3, texts=torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0)))
    noise, which = own.draw(6, 2, (0, 1))
    together = own.rollout(noise, which)[-1]
    parts = [own.rollout(noise[:, part], which[part])[-1] for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    torch.testing.assert_close(together, torch.cat(parts))


def test_guidance_goes_on_past_the_text() -> None:
    texts = torch.tensor([1.0, 3.0, 0.5]).view(3, 1, 1)  # two prompts, then none
    own = policy(4, prompts=2, texts=texts, clip_sample=False)
    noise, which = own.draw(4, 1, (0, 3))
    assert set(which.tolist()) == {0, 1}
    plain = {}
    for guidance in (1.0, 2.0, 4.0):
        own.guidance = guidance
        plain[guidance] = own.mean(noise[0], 0, which)
    change = plain[2.0] - plain[1.0]
    torch.testing.assert_close(plain[4.0] - plain[1.0], 3 * change, atol=1e-5, rtol=1e-4)
    sizes = change.abs().mean((1, 2, 3))
    distance = (texts[which] - texts[-1]).abs().flatten()
    torch.testing.assert_close(sizes / sizes[0], distance / distance[0], atol=1e-4, rtol=1e-4)
    assert math.isclose(own.deviation(0), policy(4).deviation(0))
