"""PPO that is first led by the reward's gradient: what a differentiable reward behind a differentiable ISP is good for.

PPO learns from how good its random actions turned out to be. The tuning environment knows more: how its reward changes
with every param, as `attriqa_envs.agents.search.adam` uses it for a single picture. Climbing that gradient on average
over pictures, in the policy's weights, is the pathwise estimate of what PPO estimates from returns; what an action
changes in later observations is left out of it.
"""

import math
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.utils import obs_as_tensor, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from attriqa_envs.agents.search import Objective
from attriqa_envs.tuning.core import ISPCore
from attriqa_envs.tuning.sb3 import ISPTuningSB3


class GuidedPPO(PPO):
    """stable-baselines3's PPO whose first steps climb the reward's gradient through the ISP.

    A guided rollout is an episode of every environment, with actions drawn as PPO draws them, and ``guided_epochs``
    steps of Adam on it. What is climbed is the objective (`attriqa_envs.agents.search.Objective`, whose growth is the
    sum of the rewards), as a function of all actions so far, which add up to the params: they are drawn anew, from the
    same observations. It is that of the end of half the episodes, and of the others after any of their steps: who comes
    near early sees more of where it is good, which nothing else here would tell the policy. The critic learns the
    discounted returns, as it does in PPO.

    Noise of the actions is noise of the params: with the spread that PPO explores with, the policy would learn what is
    good on average over far too wide a neighbourhood. So it starts small; PPO goes on with what is left of it.

    Nothing is guided before `guide` is called.
    """

    guided_steps = 0
    guided_epochs = 4
    guided_lr = 3e-3

    def guide(self, steps: int, *, epochs: int = 4, lr: float = 3e-3, std: float = 0.05) -> Self:
        """Guide the first steps.

        Args:
            steps: of all environments together, before PPO begins.
            epochs: steps of Adam after each guided rollout; each renders and scores the ends of its episodes.
            lr: Adam's rate of the guided steps at first; it falls to a tenth along a cosine.
            std: standard deviation of the policy's actions from here on, learnt as all else; where steps are guided.

        Returns:
            This object.

        Raises:
            ValueError: a wrong number, or the environment is no `attriqa_envs.tuning.sb3.ISPTuningSB3` in ``"params"``
                mode without ``max_episode_steps``. A scorer without gradients is told when it is to be climbed.
        """
        if steps < 0 or epochs < 1 or not (0 < lr < math.inf and 0 < std < math.inf):
            given = f"{steps}, {epochs}, {lr}, {std}"
            raise ValueError(f"steps, epochs, lr, std: expected at least 0, at least 1, and more than 0; got {given}")
        env = self.env
        if not (isinstance(env, ISPTuningSB3) and env.core.task.mode == "params" and env.max_episode_steps is None):
            raise ValueError("env: expected an ISPTuningSB3 that moves params, with whole episodes, to guide PPO on")
        self.guided_steps, self.guided_epochs, self.guided_lr = steps, epochs, lr
        if steps:
            self.policy.log_std.data.fill_(math.log(std))
        return self

    @property
    def guided(self) -> bool:
        """Whether the next rollout is."""
        return self.num_timesteps < self.guided_steps

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """A rollout of PPO, or a guided one with its steps of Adam."""
        self._ppo_is_next = not self.guided
        if self._ppo_is_next:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        assert isinstance(env, ISPTuningSB3)
        callback.on_rollout_start()
        rate = self.guided_lr * (0.55 + 0.45 * math.cos(math.pi * self.num_timesteps / self.guided_steps))
        images = torch.from_numpy(env.core.images.copy())
        seen: Any = self._last_obs
        observations, rewards = [], []
        for _ in range(env.core.task.steps):
            observations.append(seen)
            with torch.no_grad():
                actions = self.policy(obs_as_tensor(seen, self.device))[0].numpy(force=True).clip(-1, 1)
            seen, gained, dones, infos = env.step(actions)
            rewards.append(gained)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
        self._last_obs, self._last_episode_starts = seen, dones
        together = {key: np.concatenate([one[key] for one in observations]) for key in seen}
        for _ in range(self.guided_epochs):
            self._climb(env.core, obs_as_tensor(together, self.device), images, self._returns(rewards), rate)
        callback.on_rollout_end()
        return True

    def train(self) -> None:
        """PPO's passes over its rollout; nothing after a guided one."""
        if self._ppo_is_next:
            super().train()

    def _returns(self, rewards: list[Any]) -> Tensor:
        """Rewards ``(n,)`` of T steps -> discounted returns ``(T, n)``."""
        returns, later = [], np.zeros_like(rewards[0])
        for reward in reversed(rewards):
            later = reward + self.gamma * later
            returns.append(later)
        return torch.as_tensor(np.stack(returns[::-1]), device=self.device)

    def _climb(self, core: ISPCore, seen: Any, images: Tensor, returns: Tensor, rate: float) -> None:
        """One step of Adam on observations ``(T * n, ...)`` of n episodes."""
        drawn = self.policy.get_distribution(seen)
        assert isinstance(drawn, DiagGaussianDistribution)  # whose samples are reparameterised
        actions = drawn.sample().clamp(-1, 1).unflatten(0, returns.shape)
        places = [seen["params"][: len(images)]]
        for action in actions:
            places.append((places[-1] + core.task.step_size * action).clamp(-1, 1))
        last = torch.where(torch.rand(len(images)) < 0.5, len(actions), torch.randint(len(actions), images.shape) + 1)
        shown = torch.stack(places)[last, torch.arange(len(images))]
        reached = Objective(core.bank, core.score, core.task, batch=len(images))(shown, images)
        value_loss = F.mse_loss(self.policy.predict_values(seen)[:, 0].view_as(returns), returns)
        update_learning_rate(self.policy.optimizer, rate)
        self.policy.optimizer.zero_grad()
        (self.vf_coef * value_loss - reached.mean()).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        self._n_updates += 1
        self.logger.record("train/guided_objective", reached.mean().item())
        self.logger.record("train/value_loss", value_loss.item())
        self.logger.record("train/learning_rate", rate)
