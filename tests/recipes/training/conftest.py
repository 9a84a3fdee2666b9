"""What tests of the recipes that train in steps share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from tests.support import clip_recipes
from tests.support.clip_recipes import Recipe


@pytest.fixture(scope="session")
def clip_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `clip_recipes.build_tree`."""
    return clip_recipes.build_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def run(request: pytest.FixtureRequest, clip_tree: Path, tmp_path: Path) -> Iterator[Recipe]:
    """The recipe that a module is about, its ``RECIPE``; Accelerate then forgets what it was told."""
    yield Recipe(request.module.RECIPE, clip_tree, tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
