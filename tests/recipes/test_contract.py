"""What every recipe promises on its command line: help, refusals, a launch line, fields that explain themselves."""

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_architecture import ROOT, recipes

RECIPES = [
    path for path in recipes() if "def main(" in path.read_text(encoding="utf-8") and path.parent.name != "examples"
]
COMMANDS = {"sd_pairs.py": ["generate"], "fivek.py": ["doctor"]}  # those that do nothing without a command


@pytest.fixture(params=RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def recipe(request: pytest.FixtureRequest) -> ModuleType:
    path: Path = request.param
    name = "recipe_" + "_".join(path.relative_to(ROOT).with_suffix("").parts)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configs(recipe: ModuleType) -> list[type]:
    """Its dataclasses that a command line fills: those with a help text on every field."""
    classes = [value for value in vars(recipe).values() if isinstance(value, type) and dataclasses.is_dataclass(value)]
    own = [value for value in classes if value.__module__ == recipe.__name__]
    return [value for value in own if all("help" in field.metadata for field in dataclasses.fields(value))]


def say(recipe: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    command = COMMANDS.get(Path(str(recipe.__file__)).name, [])
    with pytest.raises(SystemExit) as end:
        recipe.main([*command, *words])
    out, err = capsys.readouterr()
    return end.value.code, out + err


def test_help_names_every_flag(recipe: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = say(recipe, ["--help"], capsys)
    assert status == 0
    known = {"--" + field.name.replace("_", "-") for config in configs(recipe) for field in dataclasses.fields(config)}
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    assert flags <= known | {"--help"} | {"--no-" + flag[2:] for flag in known} | flags_in_words(recipe)
    assert {"--out", "--smoke"} <= flags


def flags_in_words(recipe: ModuleType) -> set[str]:
    """Flags that docstrings and help texts speak of: of other programs, or of other commands."""
    texts = [recipe.__doc__ or "", *(f.metadata["help"] for c in configs(recipe) for f in dataclasses.fields(c))]
    texts += [value.__doc__ or "" for value in vars(recipe).values() if callable(value)]
    return {flag for text in texts for flag in re.findall(r"--[a-z][\w-]*", str(text))}


def test_an_unknown_flag_is_refused_with_the_nearest_one(
    recipe: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, text = say(recipe, ["--smoek"], capsys)
    assert status == 2
    assert "--smoek: did you mean --smoke?" in text
    assert list(tmp_path.iterdir()) == [], "nothing is written before the command line is understood"


def test_its_page_begins_with_a_launch_line(recipe: ModuleType) -> None:
    path = Path(str(recipe.__file__)).relative_to(ROOT)
    assert recipe.__doc__
    assert re.search(rf"(python|accelerate launch( --\S+ \S+)*) {path}", recipe.__doc__)


def test_its_configuration_is_frozen_and_explains_itself(recipe: ModuleType) -> None:
    assert configs(recipe)
    for config in configs(recipe):
        assert config.__dataclass_params__.frozen  # type: ignore[attr-defined]
        for field in dataclasses.fields(config):
            assert len(field.metadata["help"]) > 3, field.name
