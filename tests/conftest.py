"""Fixtures that several test modules share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest_plugins = ["tests.support.browser"]

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)  # tensors of tests are small: threads would only wait for one another


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data beside the checkout; never part of the repository."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs the development data in {path}")
    return path


@pytest.fixture(scope="session")
def run_recipe() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a recipe as users do: ``run_recipe("evals/agiqa.py", "--smoke", ...)``, from the repository's root."""

    def run(script: str | Path, *args: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *map(str, args)]
        # This checkout's packages, also where another version of them, or none, is installed.
        paths = [str(ROOT), str(ROOT / "envs"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


@pytest.fixture(scope="session")
def photos() -> list[NDArray[np.uint8]]:
    """Photos (H, W, 3), uint8, read-only, of different sizes, that scikit-image ships: nothing is downloaded."""
    from skimage import data

    images: list[NDArray[np.uint8]] = [data.astronaut(), data.chelsea(), data.coffee()]
    for image in images:
        image.flags.writeable = False
    return images
