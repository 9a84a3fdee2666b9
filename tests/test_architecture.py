"""Who may import whom, what an import costs, and what a wheel holds.

The rules are those of CONTRIBUTING.md. They speak of rooms, the folders of ``attriqa`` and ``attriqa_envs``: a new file
in a room needs no line here.
"""

import ast
import graphlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"attriqa": Path("attriqa"), "attriqa_envs": Path("envs/attriqa_envs")}
RECIPE_FOLDERS = ("envs", "evals", "evals/speed", "training", "examples")
MOST_LINES, MOST_FILES = 400, 14

# Room -> the rooms that it may import. "+" takes over what the rooms behind it may import, and themselves.
RULES: dict[str, str] = {
    "attributes": "",
    "files": "",
    "config": "files",
    "images": "",
    "distortions": "attributes files",
    "models": "+distortions images",
    "data": "+distortions images config",
    "reward": "+models",
    "explain": "+models",
    "judges": "+reward",
    "evaluation": "+reward +data",
    "training": "+evaluation +judges",
    "pages": "attributes files images distortions evaluation explain",
    "cli": "+pages models reward judges root",
    "moved": "",  # old names; it goes with the next version
    "root": "+reward moved",  # attriqa/__init__.py: the public names, which resolve when they are first asked for
    "__main__": "cli",
    "weights": "",
}
# Within attriqa_envs, which may import all of attriqa but its commands, and which attriqa knows nothing of.
ENVS_RULES: dict[str, str] = {
    "isp": "",
    "raw": "+isp",
    "tuning": "+raw",
    "fivek": "+raw",
    "export": "+raw",
    "agents": "+tuning +fivek +export",
    "evaluation": "+agents",
    "root": "agents",
}

OPTIONAL = {"gymnasium", "stable_baselines3", "diffusers", "accelerate", "rawpy", "open_clip"}
OPTIONAL |= {"matplotlib", "pandas", "skimage"}
IMPORT_NAMES = {"pillow": "PIL", "open_clip_torch": "open_clip", "scikit_image": "skimage"}  # where they differ


def modules(root: Path) -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = (package, *path.relative_to(root / folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, package: str = "") -> Iterator[tuple[ast.stmt, str]]:
    """Every ``import`` of a file, wherever it stands, as a dotted name; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            parts = [*base, *([node.module] if node.module else [])]
            yield from ((node, ".".join([*parts, alias.name])) for alias in node.names)


def own_imports(known: dict[str, Path], module: str) -> set[str]:
    """The modules of ours that ``module`` imports."""
    path = known[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for _, name in imported(path, package):
        if name.split(".")[0] in PACKAGES:
            while name not in known:  # a function or class of the module before the last dot
                name = name.rpartition(".")[0]
            found.add(name)
    return found


def room_of(module: str) -> tuple[str, str]:
    """``attriqa.models.clip.towers`` -> ``("attriqa", "models")``; ``attriqa`` -> ``("attriqa", "root")``."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0] or "root"


def allowed(rules: dict[str, str], room: str) -> set[str]:
    """What a row of rules says, its "+" followed."""
    found = set()
    for word in rules[room].split():
        found |= {word.removeprefix("+")} | (allowed(rules, word[1:]) if word[0] == "+" else set())
    return found


def violations(root: Path) -> list[str]:
    """Each broken rule in words."""
    known, found = modules(root), []
    for module in known:
        package, room = room_of(module)
        rules = RULES if package == "attriqa" else ENVS_RULES
        if room not in rules:
            found.append(f"{module} is in no room of tests/test_architecture.py")
            continue
        below = allowed(rules, room) | {room}
        for name in sorted(own_imports(known, module)):
            other, its_room = room_of(name)
            fits = its_room in below if other == package else package == "attriqa_envs" and its_room != "cli"
            if not fits:
                found.append(f"{module} imports {name}, which is not below it")
    return found


def recipes() -> list[Path]:
    return [path for folder in RECIPE_FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]


def sources() -> list[Path]:
    """Every Python file of the project."""
    folders = ("attriqa", "tests", "envs", "evals", "training", "examples")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def import_names(requirements: list[str]) -> set[str]:
    names = {re.split(r"[^\w.-]", text)[0].lower().replace("-", "_") for text in requirements}
    return {IMPORT_NAMES.get(name, name) for name in names}


def test_every_module_imports_only_what_is_below_it() -> None:
    assert len(modules(ROOT)) > 10
    assert violations(ROOT) == []


def test_no_import_cycle() -> None:
    known = modules(ROOT)
    graph = {module: own_imports(known, module) - {module} for module in known}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("path", "text", "broken"),
    [
        ("attriqa/images/decode.py", "import attriqa.evaluation.metrics", "decode imports attriqa.evaluation.metrics"),
        ("attriqa/images/decode.py", "from attriqa import evaluation", "decode imports attriqa.evaluation"),
        ("attriqa/images/decode.py", "from ..evaluation.metrics import srocc", "imports attriqa.evaluation.metrics"),
        ("attriqa/images/decode.py", "def f():\n    from ..evaluation import metrics", "imports attriqa.evaluation"),
        ("attriqa/images/decode.py", "if True:\n    from attriqa import ATTRIBUTES", "decode imports attriqa, "),
        ("attriqa/pages/report.py", "from attriqa.reward import QualityReward", "report imports attriqa.reward"),
        ("attriqa/models/liqe.py", "from .. import reward", "liqe imports attriqa.reward"),
        ("attriqa/data/crops.py", "from attriqa import models", "crops imports attriqa.models"),
        ("attriqa/training/loop.py", "from attriqa.pages import report", "loop imports attriqa.pages.report"),
        ("attriqa/evaluation/metrics.py", "import attriqa.training.loop", "metrics imports attriqa.training.loop"),
        ("attriqa/reward/quality.py", "import attriqa.cli", "quality imports attriqa.cli"),
        ("attriqa/reward/quality.py", "import attriqa_envs", "quality imports attriqa_envs"),
        ("attriqa/helpers.py", "", "attriqa.helpers is in no room"),
        ("envs/attriqa_envs/isp/render.py", "from attriqa_envs.raw import decode", "render imports attriqa_envs.raw"),
        ("envs/attriqa_envs/isp/render.py", "from attriqa import cli", "render imports attriqa.cli"),
        ("envs/attriqa_envs/isp/render.py", "from attriqa.reward import quality\nfrom attriqa import images", None),
        ("attriqa/models/liqe.py", "from .clip import towers\nfrom attriqa import files, images, attributes", None),
        ("attriqa/reward/quality.py", "from attriqa.models import load\nfrom attriqa.models.exiqa import ExIQA", None),
        ("attriqa/cli/score.py", "import attriqa\nfrom attriqa import reward, __version__", None),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, path: str, text: str, broken: str | None) -> None:
    for module, file in modules(ROOT).items():
        if module.count(".") < 3:
            copy = tmp_path / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.touch()
    (tmp_path / path).write_text(text)
    found = violations(tmp_path)
    assert len(found) == (broken is not None)
    assert broken is None or broken in found[0]


def test_nobody_imports_a_recipe() -> None:
    unreachable = {"envs", "evals", "training", "examples", *(path.stem for path in recipes())}
    found = [f"{path.relative_to(ROOT)}: {name}" for path in sources() for _, name in imported(path)
             if name.split(".")[0] in unreachable]  # fmt: skip
    assert found == []


def test_no_recipe_hides_a_module() -> None:
    """A recipe's folder comes first in ``sys.path`` when it runs."""
    extras = tuple(pyproject()["project"]["optional-dependencies"])
    taken = sys.stdlib_module_names | declared(extras) | {"attriqa", "attriqa_envs"}
    assert [path for path in recipes() if path.stem in taken] == []


def declared(extras: tuple[str, ...]) -> set[str]:
    project = pyproject()["project"]
    return import_names([*project["dependencies"], *(r for e in extras for r in project["optional-dependencies"][e])])


def test_every_third_party_import_is_a_declared_dependency() -> None:
    extras = tuple(name for name in pyproject()["project"]["optional-dependencies"] if name not in ("all", "dev"))
    known = sys.stdlib_module_names | declared(extras) | {"attriqa", "attriqa_envs"}
    for path in [*modules(ROOT).values(), *recipes()]:
        assert {name.split(".")[0] for _, name in imported(path)} <= known, path


def test_the_library_imports_optional_packages_inside_functions() -> None:
    known = sys.stdlib_module_names | declared(()) | {"attriqa"}
    for path in (path for module, path in modules(ROOT).items() if room_of(module)[0] == "attriqa"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        later = {
            id(inner)
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.dump(outer.test))
            for inner in ast.walk(outer)
        }
        names = {
            alias.name if isinstance(node, ast.Import) else str(node.module)
            for node in ast.walk(tree)
            if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
            if id(node) not in later
            for alias in node.names
        }
        assert {name.split(".")[0] for name in names} <= known, path


def test_no_file_holds_too_much() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_folder_holds_too_much() -> None:
    held = Counter(str(path.parent.relative_to(ROOT)) for path in sources())
    # An __init__.py counts as a file where it holds code; those of tests only make packages, and are empty.
    empty = Counter(str(path.parent.relative_to(ROOT)) for path in sources() if not path.stat().st_size)
    assert {folder: files for folder, files in (held - empty).items() if files > MOST_FILES} == {}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("statement", ["import attriqa", "from attriqa import QualityReward, load"])
def test_the_import_loads_nothing_optional(statement: str) -> None:
    loaded = json.loads(run_python(f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"))
    assert "attriqa" in loaded
    assert OPTIONAL & set(loaded) == set()


def test_the_import_takes_little_longer_than_that_of_torch() -> None:
    """Under 1.5 times; the best of alternating runs, more of them while another program disturbs."""
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    own, torch = [], []
    for turn in range(6):
        own.append(float(run_python(code.format("attriqa"))))
        torch.append(float(run_python(code.format("torch"))))
        if turn and min(own) < 1.5 * min(torch):
            break
    assert min(own) < 1.5 * min(torch)


def package_files(folder: Path) -> set[str]:
    """Files of an installed package relative to the folder above it, without caches and hidden files."""
    found = (path.relative_to(folder.parent) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not any(p == "__pycache__" or p[0] == "." for p in path.parts)}


def packages_on_disk() -> dict[str, Path]:
    return {path.name: path for path in (ROOT / "attriqa", ROOT / "envs" / "attriqa_envs") if path.is_dir()}


def test_pyproject_lists_the_packages_on_disk() -> None:
    files = {Path(file) for folder in packages_on_disk().values() for file in package_files(folder)}
    assert set(pyproject()["tool"]["setuptools"]["packages"]) == {
        ".".join(file.parent.parts) for file in files if file.parent.name != "templates"
    }


@pytest.mark.slow
def test_a_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for name in ("attriqa", "tests", *RECIPE_FOLDERS):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=skip, dirs_exist_ok=True)  # evals/speed lies in evals
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path)]
    done = subprocess.run([sys.executable, *words, str(tree)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (licence,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert held == set().union(*map(package_files, packages_on_disk().values()))
    assert {name.split("/")[0] for name in held} == set(packages_on_disk())
    assert "attriqa/py.typed" in held
