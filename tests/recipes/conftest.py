"""What tests of the recipes that train in steps share; imported where it is used, for most recipes need none of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.clip_recipes import Recipe


@pytest.fixture(scope="session")
def clip_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `tests.support.clip_recipes.build_tree`."""
    from tests.support.clip_recipes import build_tree

    return build_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def run(request: pytest.FixtureRequest, clip_tree: Path, tmp_path: Path) -> "Iterator[Recipe]":
    """The recipe that a module is about, its ``RECIPE``; Accelerate then forgets what it was told."""
    from accelerate.state import AcceleratorState

    from tests.support.clip_recipes import Recipe

    yield Recipe(request.module.RECIPE, clip_tree, tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
