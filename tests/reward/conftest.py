"""A small net with random weights as a reward: for tests that need one and not its opinion."""

from pathlib import Path

import pytest

from attriqa import QualityReward
from tests.support import small_net


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_net.save(tmp_path_factory.mktemp("weights") / "small.safetensors", data="none")


@pytest.fixture(scope="session")
def reward(weights: Path) -> QualityReward:
    return QualityReward(weights)
