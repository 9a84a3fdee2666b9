"""A diffusion model as a policy: what policy gradients, and backprop through the sampler, need of DDIM."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class DDIMPolicy:
    """A denoiser and its DDIM scheduler with eta 1: each step draws from a Gaussian around what the denoiser says.

    Steps are counted from 0, the one out of pure noise; B pictures are worked on at once, and ``which (B,)`` says the
    index of each one's prompt.

    Attributes:
        unet: a UNet of diffusers, without or with text, whose first argument is the state and whose second the time.
        without_adapter: a context in which ``unet`` is the model at its start, as ``disable_adapter`` of peft.
        scheduler: a ``DDIMScheduler`` of diffusers whose steps are set.
        decode: the last states -> pictures ``(B, 3, H, W)`` in [0, 1].
        shape: ``(C, h, w)`` of a state.
        prompts: P texts; one empty text for a model that takes none.
        texts: ``(P + 1, L, D)``, the prompts' embeddings, then that of no prompt; ``None`` for a model that takes none.
        guidance: scale of classifier-free guidance (Ho and Salimans, 2022, w + 1 in equation 6); 1: none.
    """

    unet: Any
    without_adapter: Callable[[], AbstractContextManager[Any]]
    scheduler: Any
    decode: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int]
    prompts: Sequence[str]
    texts: Tensor | None = None
    guidance: float = 1.0

    @property
    def steps(self) -> int:
        """How many there are, T."""
        return len(self.scheduler.timesteps)

    @property
    def random_steps(self) -> list[int]:
        """The steps that have noise. Some schedulers end without any, and such a step has no likelihood."""
        return [step for step in range(self.steps) if self.deviation(step) > 0]

    def deviation(self, step: int) -> float:
        """Standard deviation of a step's noise (Song et al., DDIM, ICLR 2021, equation 16 with eta 1)."""
        now, then = self._alphas(step)
        return float(((1 - then) / (1 - now) * (1 - now / then)) ** 0.5)

    def _alphas(self, step: int) -> tuple[float, float]:
        """The share of the signal's variance before and after a step."""
        alphas, time = self.scheduler.alphas_cumprod, int(self.scheduler.timesteps[step])
        before = time - self.scheduler.config.num_train_timesteps // self.steps
        return float(alphas[time]), float(alphas[before] if before >= 0 else self.scheduler.final_alpha_cumprod)

    def mean(self, state: Tensor, step: int, which: Tensor) -> Tensor:
        """Where a step goes to from ``state (B, C, h, w)``, but for its noise; differentiable, in float32."""
        time, (now, then) = self.scheduler.timesteps[step], self._alphas(step)
        drawn = self.scheduler.step(self._predict(state, time, which), int(time), state, eta=0.0)
        clean: Tensor = drawn.pred_original_sample
        # The scheduler's own step with eta 1 takes the root of 1 - then - deviation^2, which out of pure noise is
        # nothing but rounding and may be negative; the same in one fraction is not.
        kept = (now * (1 - then) / (then * (1 - now))) ** 0.5
        mean: Tensor = then**0.5 * clean + kept * (drawn.prev_sample - then**0.5 * clean)
        return mean

    def _predict(self, state: Tensor, time: Tensor, which: Tensor) -> Tensor:
        dtype = next(self.unet.parameters()).dtype
        if self.texts is None:
            predicted: Tensor = self.unet(state.to(dtype), time).sample
        elif self.guidance == 1:
            predicted = self.unet(state.to(dtype), time, self.texts[which]).sample
        else:
            both = torch.cat([self.texts[-1].expand(len(which), -1, -1), self.texts[which]])
            free, led = self.unet(torch.cat([state, state]).to(dtype), time, both).sample.float().chunk(2)
            predicted = free + self.guidance * (led - free)
        return predicted.to(state.dtype)

    def rollout(self, noise: Tensor, which: Tensor, last_steps: int = 0) -> list[Tensor]:
        """Draw pictures: the T + 1 states ``(B, C, h, w)`` from pure noise to the last, which `decode` takes.

        Args:
            noise: ``(T + 1, B, C, h, w)``: the first state, then the noise of each step. Nothing else is random.
            which: ``(B,)``.
            last_steps: through how many steps gradients flow; the states before them have none.
        """
        states = [noise[0]]
        for step in range(self.steps):
            with torch.set_grad_enabled(step >= self.steps - last_steps):
                states.append(self.mean(states[-1], step, which) + self.deviation(step) * noise[step + 1])
        return states

    def draw(self, count: int, group: int, key: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What a rollout of ``count`` pictures starts from, a function of ``key`` alone: ``noise`` and ``which``.

        Prompts are drawn at random, and each stands for ``group`` pictures in a row.
        """
        generator = torch.Generator().manual_seed(int(np.random.default_rng(key).integers(2**62)))
        noise = torch.randn(self.steps + 1, count, *self.shape, generator=generator)
        which = torch.randint(len(self.prompts), (-(-count // group),), generator=generator)
        device = next(self.unet.parameters()).device
        return noise.to(device), which.repeat_interleave(group)[:count].to(device)

    def ratio(self, mean: Tensor, following: Tensor, noise: Tensor, step: int) -> Tensor:
        """How much likelier a step of a rollout has become since, ``(B,)``.

        The exponential of the difference of log-likelihoods per value, as in the authors' code of DDPO (Black et al.,
        ICLR 2024): their sum over all values would make it 0 or infinite for pictures of any size.

        Args:
            mean: where the step goes to now, `mean` of its first state.
            following: the state that it went to.
            noise: the noise that it was drawn with.
            step: one of `random_steps`.
        """
        squared = ((following - mean) / self.deviation(step)).square() - noise.square()
        return (-squared.flatten(1).mean(1) / 2).exp()

    def divergence(self, mean: Tensor, state: Tensor, step: int, which: Tensor) -> Tensor:
        """KL divergence of a step from the same step of the model at its start: nats per value, ``(B,)``.

        Args:
            mean: where the step from ``state`` goes to now.
            state: ``(B, C, h, w)``.
            step: one of `random_steps`.
            which: ``(B,)``.
        """
        with torch.no_grad(), self.without_adapter():
            start = self.mean(state, step, which)
        return ((mean - start) / self.deviation(step)).square().flatten(1).mean(1) / 2
