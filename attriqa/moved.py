"""Old names of modules: they warn, and go with the next version.

The rooms of the package came after people had imported its first, flat names. Delete this file, and its two imports, to
be rid of them.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "attriqa.adapters": ("attriqa.reward",),
    "attriqa.assessment": ("attriqa.models.assessment",),
    "attriqa.brisque": ("attriqa.judges.brisque",),
    "attriqa.checkpoint": ("attriqa.models.checkpoint",),
    "attriqa.datasets": ("attriqa.data.datasets",),
    "attriqa.distortion_attributes": ("attriqa.distortions.attributes",),
    "attriqa.guard": ("attriqa.reward.guard",),
    "attriqa.losses": ("attriqa.training.losses",),
    "attriqa.metrics": ("attriqa.evaluation.metrics",),
    "attriqa.models.converters": ("attriqa.models.clip.converters",),
    "attriqa.niqe": ("attriqa.judges.niqe",),
    "attriqa.prompts": ("attriqa.attributes",),
    "attriqa.protocols": ("attriqa.data.splits", "attriqa.data.leaks", "attriqa.evaluation.bootstrap"),
    "attriqa.pseudo_labels": ("attriqa.data.pseudo_labels",),
    "attriqa.published": ("attriqa.evaluation.papers.published",),
    "attriqa.recipe": ("attriqa.config", "attriqa.files"),
    "attriqa.teachers": ("attriqa.training.teachers",),
    "attriqa.unlabelled": ("attriqa.data.unlabelled",),
    "attriqa.views": ("attriqa.models.views",),
    "attriqa_envs.parameters": ("attriqa_envs.isp.parameters",),
    "attriqa_envs.policy": ("attriqa_envs.agents.policy",),
    "attriqa_envs.raw_cache": ("attriqa_envs.raw.cache", "attriqa_envs.raw.find"),
    "attriqa_envs.sb3": ("attriqa_envs.tuning.sb3",),
    "attriqa_envs.unprocess": ("attriqa_envs.raw.unprocess",),
    "attriqa_envs.xmp": ("attriqa_envs.export.xmp",),
}
"""Old name -> the modules that its names went to."""


class _Moved(types.ModuleType):
    """Hands every name on from where it went."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for place in MOVED[self.__name__]:
                module = importlib.import_module(place)
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Moved(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        places = ", ".join(MOVED[module.__name__])
        message = f"{module.__name__} is now {places}; the old name goes with the next version"
        warnings.warn(message, DeprecationWarning, stacklevel=2)


def install() -> None:
    """Answer imports of old names from now on; to do so twice changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
