"""Tuning the ISP step by step as environments: Gymnasium's, and stable-baselines3's."""

from attriqa_envs.tuning.gym_envs import (
    ISPTuningEnv,
    ISPTuningVectorEnv,
    Observation,
    check_options,
    check_render_mode,
    spread_seeds,
)
from attriqa_envs.tuning.task import HORIZON, Mode, TuningTask, Values

__all__ = [
    "HORIZON",
    "ISPTuningEnv",
    "ISPTuningVectorEnv",
    "Mode",
    "Observation",
    "TuningTask",
    "Values",
    "check_options",
    "check_render_mode",
    "spread_seeds",
]
