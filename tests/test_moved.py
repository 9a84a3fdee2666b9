"""Names that modules had before there were rooms still lead to what they named."""

import importlib
import subprocess
import sys

import pytest

from attriqa.moved import MOVED


@pytest.mark.parametrize("name", sorted(MOVED))
def test_an_old_name_warns_and_leads_on(name: str) -> None:
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=rf"{name} is now {MOVED[name][0]}"):
        old = importlib.import_module(name)
    for place in MOVED[name]:
        module = importlib.import_module(place)
        names = [key for key in vars(module) if not key.startswith("_")]
        assert names
        assert all(hasattr(old, key) for key in names)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing_of_this_name'"):
        old.nothing_of_this_name  # noqa: B018


def test_statements_that_people_wrote_still_run() -> None:
    code = """
from attriqa import QualityReward, load, ATTRIBUTES, Guard, as_reward, best_of_n
from attriqa.adapters import group_advantages
from attriqa.images import read, ImageError
from attriqa.distortions import DISTORTION_KEYS, develop
from attriqa.metrics import srocc
from attriqa.reward import FileScore
from attriqa.explain import saliency, why
import attriqa.datasets, attriqa_envs.sb3
from attriqa_envs import load_policy
from attriqa_envs.isp import render
from attriqa_envs.parameters import PARAMETERS
from attriqa_envs.raw import decode
from attriqa_envs.sb3 import ISPTuningSB3
from attriqa_envs.tuning import ISPTuningEnv, ISPTuningVectorEnv
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
