"""What the tests of these recipes share."""

from pathlib import Path

import pytest

from tests.support import small_net


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint, to be optimised."""
    return small_net.save(tmp_path_factory.mktemp("weights") / "small.safetensors")
