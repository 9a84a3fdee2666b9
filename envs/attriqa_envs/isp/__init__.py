"""The image signal processor: linear light and parameters become a display picture, differentiable in both."""

from attriqa_envs.isp.parameters import (
    ISP_VERSION,
    KEYS,
    PARAMETERS,
    TONE_KNOTS,
    Parameter,
    Stage,
    bounds,
    check_params,
    clip_params,
    parameter_table_markdown,
    table_hash,
    to_action,
    to_params,
)
from attriqa_envs.isp.render import MAX_LINEAR, render

__all__ = [
    "ISP_VERSION",
    "KEYS",
    "MAX_LINEAR",
    "PARAMETERS",
    "TONE_KNOTS",
    "Parameter",
    "Stage",
    "bounds",
    "check_params",
    "clip_params",
    "parameter_table_markdown",
    "render",
    "table_hash",
    "to_action",
    "to_params",
]
