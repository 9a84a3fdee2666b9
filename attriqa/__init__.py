"""attriqa: how good an image is, why, and where, as a differentiable reward.

>>> from attriqa import QualityReward
>>> reward = QualityReward()
>>> reward(images)  # (B, 3, H, W) sRGB in [0, 1] -> (B,), higher is better, gradients to images
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attriqa import moved
from attriqa.attributes import ATTRIBUTES

if TYPE_CHECKING:
    from attriqa.images import ImageError
    from attriqa.models import load
    from attriqa.models.assessment import Assessment
    from attriqa.reward import Guard, QualityReward, as_reward, best_of_n

__version__ = "0.1.0"
__all__ = [
    "ATTRIBUTES",
    "Assessment",
    "Guard",
    "ImageError",
    "QualityReward",
    "__version__",
    "as_reward",
    "best_of_n",
    "load",
]

# Resolved on first use, so that `attriqa --help` does not wait for torch.
_LAZY = {
    "Assessment": "attriqa.models.assessment",
    "Guard": "attriqa.reward",
    "ImageError": "attriqa.images",
    "QualityReward": "attriqa.reward",
    "as_reward": "attriqa.reward",
    "best_of_n": "attriqa.reward",
    "load": "attriqa.models",
}

moved.install()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'attriqa' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
