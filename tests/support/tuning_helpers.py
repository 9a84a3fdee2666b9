"""What the tests of the tuning environments share: pictures, a scorer without weights, actions, and a comparison."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attriqa.models.assessment import Assessment
from attriqa_envs.isp import KEYS
from attriqa_envs.isp.tools import DONE
from attriqa_envs.tuning import ISPTuningEnv, ISPTuningVectorEnv
from tests.support.isp_pictures import picture

P, EXPOSURE = len(KEYS), KEYS.index("exposure")


def bank(count: int = 6, side: int = 32, seed: int = 0) -> Tensor:
    """``(count, 3, side, side)`` float16 linear light, from dark to bright, some of it clipped at the default."""
    exposure = torch.linspace(-2, 2, count)[:, None, None, None].exp2()
    return (picture(count, side, side, seed) * exposure).half()


class BrightnessScorer:
    """Likes a mean of ``target``; its attributes are moments of the picture. It remembers how many it was asked for."""

    def __init__(self, target: float = 0.6) -> None:
        self.target = target
        self.batches: list[int] = []

    def __call__(self, images: Tensor) -> Assessment:
        self.batches.append(len(images))
        flat = images.flatten(2)
        moments = (images.mean((1, 2, 3)), images.std((1, 2, 3)), *flat.mean(2).unbind(1))
        return Assessment(1 - (moments[0] - self.target).abs(), torch.stack(moments, 1))


def make(**options: Any) -> ISPTuningEnv:
    return ISPTuningEnv(bank(), scorer=options.pop("scorer", BrightnessScorer()), **options)


def make_many(count: int, **options: Any) -> ISPTuningVectorEnv:
    scorer = options.pop("scorer", BrightnessScorer())
    return ISPTuningVectorEnv(options.pop("images", bank()), num_envs=count, scorer=scorer, **options)


def one(key: str, value: float) -> np.ndarray:
    """The action that changes one parameter."""
    action = np.zeros(P, np.float32)
    action[KEYS.index(key)] = value
    return action


def frame(shown: Tensor) -> np.ndarray:
    return (shown[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def actions_of(mode: str, count: int, steps: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if mode == "params":
        return rng.uniform(-1.2, 1.2, (steps, count, P)).astype(np.float32)
    # Cheap ones of the 37 and, often, the end, so that episodes get out of step.
    return rng.choice([0, 4, 8, 11, 13, 20, 26, 30, 34, DONE, DONE], (steps, count))


def same(first: Any, second: Any, path: str = "", tolerance: float = 1e-5) -> None:
    """Equal in structure, types and dtypes; numbers to the tolerance, for sums may round.

    Thumbnails to a level; observed gradients, whose terms cancel, to a thousandth of their range.
    """
    assert type(first) is type(second), path
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key, value in first.items():
            same(value, second[key], f"{path}/{key}", tolerance)
    elif isinstance(first, tuple):
        assert len(first) == len(second), path
        for number, (a, b) in enumerate(zip(first, second, strict=True)):
            same(a, b, f"{path}/{number}", tolerance)
    elif isinstance(first, np.ndarray) and first.dtype == object:
        assert first.shape == second.shape, path
        for a, b in zip(first, second, strict=True):
            same(a, b, path, tolerance)
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype, path
        assert first.shape == second.shape, path
        atol = 1.0 if first.dtype == np.uint8 else max(tolerance, 1e-3) if path.endswith("/gradient") else tolerance
        np.testing.assert_allclose(first.astype(float), second.astype(float), rtol=0, atol=atol, err_msg=path)
    else:
        assert first == pytest.approx(second, abs=tolerance), path
