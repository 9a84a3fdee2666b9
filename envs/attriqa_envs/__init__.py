"""Camera pipelines as environments: raw files, a differentiable ISP, and Gymnasium environments that tune it.

>>> import gymnasium
>>> env = gymnasium.make("attriqa_envs:attriqa/ISPTuning-v0", images="photos")
>>> envs = gymnasium.make_vec("attriqa_envs:attriqa/ISPTuning-v0", num_envs=32, images="photos")
"""

import gymnasium

ENV_ID = "attriqa/ISPTuning-v0"

if ENV_ID not in gymnasium.registry:  # a reload of this module must not warn
    # No max_episode_steps: the end after the horizon is part of the task, a termination and not a truncation.
    gymnasium.register(
        id=ENV_ID,
        entry_point="attriqa_envs.tuning:ISPTuningEnv",
        vector_entry_point="attriqa_envs.tuning:ISPTuningVectorEnv",
    )
