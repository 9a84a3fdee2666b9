"""Camera pipelines as environments: raw files, a differentiable ISP, and Gymnasium environments that tune it.

>>> import gymnasium
>>> env = gymnasium.make("attriqa_envs:attriqa/ISPTuning-v0", images="photos")
>>> envs = gymnasium.make_vec("attriqa_envs:attriqa/ISPTuning-v0", num_envs=32, images="photos")

`load_policy` is here too; it is imported, and stable-baselines3 with it, when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from attriqa_envs.agents.policy import load_policy

__all__ = ["ENV_ID", "load_policy"]

ENV_ID = "attriqa/ISPTuning-v0"

if ENV_ID not in gymnasium.registry:  # a reload of this module must not warn
    # No max_episode_steps: the end after the horizon is part of the task, a termination and not a truncation.
    gymnasium.register(
        id=ENV_ID,
        entry_point="attriqa_envs.tuning:ISPTuningEnv",
        vector_entry_point="attriqa_envs.tuning:ISPTuningVectorEnv",
    )


def __getattr__(name: str) -> Any:
    if name == "load_policy":
        from attriqa_envs.agents.policy import load_policy

        return load_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
