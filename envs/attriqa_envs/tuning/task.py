"""What an episode is: the task, its modes and its horizon."""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attriqa_envs.isp import KEYS

Mode = Literal["params", "tools"]

Values = TypeVar("Values", Tensor, NDArray[np.float64])

HORIZON: dict[str, int] = {"params": 5, "tools": 3}  # steps; 3 as in DRL-ISP


@dataclass(frozen=True)
class TuningTask:
    """What is tuned, and what it costs. The arguments of `attriqa_envs.tuning.ISPTuningEnv` of the same names.

    Raises:
        ValueError: a field is out of its range, or has no meaning in the mode.
    """

    mode: Mode = "params"
    parameters: tuple[str, ...] | None = None
    horizon: int | None = None
    step_size: float = 0.4
    score_weight: float = 1.0
    distance_weight: float = 0.1
    clipping_weight: float = 0.1
    random_start: float = 0.0
    observe_gradient: bool = False

    def __post_init__(self) -> None:
        if self.mode not in HORIZON:
            raise ValueError(f"mode: expected one of {', '.join(HORIZON)}; got {self.mode!r}")
        if self.horizon is not None and (not isinstance(self.horizon, int) or self.horizon < 1):
            raise ValueError(f"horizon: expected an integer of at least 1; got {self.horizon!r}")
        if self.parameters is not None:
            unknown = sorted(set(self.parameters) - set(KEYS))
            if unknown or not self.parameters or len(set(self.parameters)) < len(self.parameters):
                raise ValueError(f"parameters: expected different ones of {', '.join(KEYS)}; got {self.parameters}")
        limits = {"step_size": 2.0, "random_start": 2.0}
        for name in ("step_size", "score_weight", "distance_weight", "clipping_weight", "random_start"):
            value, most = getattr(self, name), limits.get(name, math.inf)
            if not (0 <= value <= most and math.isfinite(value)) or (name == "step_size" and value == 0):
                expected = f"in (0, {most:g}]" if name == "step_size" else f"from 0 to {most:g}, finite"
                raise ValueError(f"{name}: expected a number {expected}; got {value!r}")
        if self.mode == "tools" and (self.parameters is not None or self.random_start or self.observe_gradient):
            raise ValueError("parameters, random_start, observe_gradient: expected none in tools mode, without params")

    @property
    def steps(self) -> int:
        """Steps of an episode."""
        return HORIZON[self.mode] if self.horizon is None else self.horizon

    def potential(self, score: Values, distance: Values, clipped: Values) -> Values:
        """What a picture is worth, whose growth is the reward: the score minus the penalties, elementwise."""
        return self.score_weight * score - self.distance_weight * distance - self.clipping_weight * clipped
