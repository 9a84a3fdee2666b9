"""Who may import whom, what an import costs, and what a wheel holds.

The rules stand in CONTRIBUTING.md; a new module needs a line in `RULES`.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECIPE_FOLDERS = ("envs", "evals", "training", "examples")

BOTTOM = {"recipe", "prompts"}
LEAVES = {"assessment", "distortion_attributes", "distortions", "losses", "images", "metrics", "checkpoint"}
LEAVES |= {"distortion_metrics", "mp_iqe_labels", "mp_iqe_windows", "natural_scenes", "ridge", "signal_measures"}
ON_LEAVES = {"datasets", "ddim_policy", "photos", "protocols", "pseudo_labels", "published", "teachers"}
ON_LEAVES |= {"contact_sheet", "mixtures", "pairs", "pictures", "recipe_runs", "report", "timing", "training_state"}
ON_LEAVES |= {"attacks", "clip_run", "robustness", "sample_statistics", "unlabelled", "views"}
COMMANDS = {"cli", "__main__", "demo", "scoring", "tables"}
SHARED_MODELS = {
    "models.base",
    "models.clip",
    "models.clip_architecture",
    "models.clip_checkpoint",
    "models.clip_prompts",
    "models.backbones",
}
SHARED_MODELS |= {"models.clip_around", "mp_iqe_crops"}

# Module of attriqa -> what it may import of attriqa. "*" stands for any name; "" is attriqa/__init__.py.
RULES: dict[str, set[str]] = {
    "weights": set(),
    "models": BOTTOM | LEAVES | {"models.*"},
    "models.*": BOTTOM | LEAVES | SHARED_MODELS | {"views"},
    "datasets.*": BOTTOM | LEAVES | {"datasets.*"},
    "reward": BOTTOM | LEAVES | {"adapters", "guard", "views", "models", "models.*"},
    "": BOTTOM | LEAVES | ON_LEAVES | {"adapters", "guard", "models", "models.*", "reward"},
}
RULES |= {module: set() for module in BOTTOM}
RULES |= dict.fromkeys(LEAVES, BOTTOM)
RULES |= dict.fromkeys(ON_LEAVES, BOTTOM | LEAVES)
RULES["datasets"] = RULES["datasets.*"]
RULES["folds"] = BOTTOM | LEAVES | {"datasets", "datasets.*", "protocols", "views"}
RULES["distortions"] = RULES["distortions.*"] = BOTTOM | {"distortions.*"}
RULES["distorted_crops"] = BOTTOM | LEAVES | {"mixtures", "photos"}
RULES["dataset_attributes"] = BOTTOM | {"distortion_attributes"}
RULES["studies"] = BOTTOM | LEAVES | {"protocols", "published", "recipe_runs"}
RULES["config"] = {"recipe"}
RULES["explain"] = BOTTOM | LEAVES | {"models", "models.*", "tower_maps"}
RULES["tower_maps"] = BOTTOM | {"models.clip_prompts"}
RULES["exiqa_sources"] = BOTTOM | LEAVES | {"datasets", "datasets.*", "mixtures", "protocols"}
RULES["pair_files"] = BOTTOM | LEAVES | {"pairs", "pictures"}
RULES["pair_report"] = BOTTOM | LEAVES | {"published"}
RULES["ab_page"] = BOTTOM | LEAVES | {"pair_files"}
RULES["adapters"] = BOTTOM | LEAVES | {"pictures"}
RULES["niqe"] = RULES["brisque"] = BOTTOM | LEAVES
RULES["mp_iqe_crops"] = BOTTOM | {"images"}
RULES["guard"] = BOTTOM | LEAVES | {"views", "models", "models.*"}
RULES["judges"] = BOTTOM | LEAVES | {"niqe", "brisque", "models", "reward"}
RULES["image_prompts"] = BOTTOM | LEAVES | {"pair_files"}
RULES["comparison"] = BOTTOM | LEAVES | {"sample_statistics"}
RULES["comparison_report"] = BOTTOM | LEAVES | {"comparison", "sample_statistics"}
RULES["comparison_html"] = BOTTOM | LEAVES | {"comparison_report", "report"}
RULES["comparison_page"] = BOTTOM | LEAVES | {"comparison", "comparison_html", "comparison_report", "explain"}
RULES["crops"] = BOTTOM | LEAVES | {"unlabelled"}
RULES["exiqa_examples"] = BOTTOM | LEAVES | {"crops", "exiqa_sources", "mixtures"}
RULES["exiqa_training"] = BOTTOM | LEAVES | {"exiqa_examples", "models", "models.*", "pretraining", "protocols"}
RULES["exiqa_training"] |= {"dataset_attributes"}
RULES["models.converters"] = RULES["models.*"] | {"models.clip_iqa", "models.liqe"}
RULES["training_loop"] = BOTTOM | LEAVES | {"training_state"}
RULES["liqe_training"] = BOTTOM | LEAVES | {"crops", "folds", "models", "models.*", "protocols"}
RULES["liqe_training"] |= {"mp_iqe_crops", "mp_iqe_training"}
RULES["mp_iqe_training"] = BOTTOM | LEAVES | {"folds", "models", "models.*", "mp_iqe_crops", "protocols"}
RULES["adversarial_examples"] = BOTTOM | LEAVES | {"attacks"}
RULES["probe_run"] = BOTTOM | LEAVES | {"attacks", "folds", "models", "models.*", "photos", "protocols", "views"}
RULES["pretraining"] = BOTTOM | LEAVES | {"models", "models.*", "teachers"}
RULES["teachers"] = BOTTOM | LEAVES | {"models.clip", "views"}
RULES |= {module: {"", "*"} for module in COMMANDS}

OPTIONAL = {"gymnasium", "stable_baselines3", "diffusers", "accelerate", "rawpy", "open_clip"}
OPTIONAL |= {"matplotlib", "pandas", "skimage"}
IMPORT_NAMES = {"pillow": "PIL", "open_clip_torch": "open_clip", "scikit_image": "skimage"}  # where they differ


def modules(root: Path) -> dict[str, Path]:
    """Every module of attriqa by its name without ``attriqa.``."""
    found = {}
    for path in sorted((root / "attriqa").rglob("*.py")):
        parts = path.relative_to(root / "attriqa").with_suffix("").parts
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


def own_imports(root: Path, module: str) -> set[str]:
    """The modules of attriqa that ``module`` imports."""
    known = modules(root)
    path = known[module]
    package = ".".join(filter(None, ["attriqa", module if path.name == "__init__.py" else module.rpartition(".")[0]]))
    found = set()
    for _, name in imported(path, package):
        if name.split(".")[0] == "attriqa":
            inner = name.partition(".")[2]
            while inner not in known:  # a function or class of the module before the last dot
                inner = inner.rpartition(".")[0]
            found.add(inner)
    return found


def fits(module: str, patterns: set[str]) -> bool:
    stem = module.partition(".")[0]
    return module in patterns or "*" in patterns or ("." in module and f"{stem}.*" in patterns)


def violations(root: Path) -> list[str]:
    """Each broken rule of `RULES` in words."""
    found = []
    for module, path in modules(root).items():
        rule = RULES.get(module, RULES.get(f"{module.partition('.')[0]}.*"))
        if rule is None:
            found.append(f"{path.relative_to(root)} is not in RULES of tests/test_architecture.py: add it to the table")
            continue
        found += [
            f"attriqa.{module} imports attriqa.{name}, which is not below it"
            for name in sorted(own_imports(root, module))
            if not fits(name, rule)
        ]
    return found


def recipes() -> list[Path]:
    return [path for folder in RECIPE_FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]


def sources() -> list[Path]:
    """Every Python file of the project."""
    return [path for folder in ("attriqa", "tests", *RECIPE_FOLDERS) for path in sorted((ROOT / folder).rglob("*.py"))]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def import_names(requirements: list[str]) -> set[str]:
    names = {re.split(r"[^\w.-]", text)[0].lower().replace("-", "_") for text in requirements}
    return {IMPORT_NAMES.get(name, name) for name in names}


def test_every_module_imports_only_what_is_below_it() -> None:
    assert len(modules(ROOT)) > 10
    assert violations(ROOT) == []


def test_no_import_cycle() -> None:
    graph = {module: own_imports(ROOT, module) - {module} for module in modules(ROOT)}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("path", "text", "broken"),
    [
        ("images.py", "import attriqa.metrics", "attriqa.images imports attriqa.metrics"),
        ("images.py", "from attriqa import metrics", "attriqa.images imports attriqa.metrics"),
        ("images.py", "from .metrics import srocc", "attriqa.images imports attriqa.metrics"),
        ("images.py", "def f():\n    from . import metrics", "attriqa.images imports attriqa.metrics"),
        ("images.py", "if True:\n    from attriqa import ATTRIBUTES", "attriqa.images imports attriqa., "),
        ("report.py", "from attriqa.reward import QualityReward", "attriqa.report imports attriqa.reward"),
        (
            "models/liqe.py",
            "from attriqa.models.exiqa import ExIQA",
            "attriqa.models.liqe imports attriqa.models.exiqa",
        ),
        ("models/liqe.py", "from .. import reward", "attriqa.models.liqe imports attriqa.reward"),
        ("models/liqe.py", "from attriqa.models import load", "attriqa.models.liqe imports attriqa.models,"),
        ("reward.py", "import attriqa.cli", "attriqa.reward imports attriqa.cli"),
        ("helpers.py", "", "helpers.py is not in RULES"),
        ("checkpoint.py", "from attriqa.recipe import atomic_path", None),
        ("models/liqe.py", "from .clip import CLIP\nfrom attriqa import images, prompts", None),
        ("reward.py", "from attriqa.models import load\nfrom attriqa.models.exiqa import ExIQA", None),
        ("cli.py", "import attriqa\nfrom attriqa import reward, __version__", None),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, path: str, text: str, broken: str | None) -> None:
    names = (
        "__init__ recipe images metrics prompts report checkpoint reward cli models/__init__ models/clip models/exiqa"
    )
    for name in names.split():
        file = tmp_path / "attriqa" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "attriqa" / path).write_text(text)
    found = violations(tmp_path)
    assert len(found) == (broken is not None)
    assert broken is None or broken in found[0]


def test_nobody_imports_a_recipe() -> None:
    unreachable = {*RECIPE_FOLDERS, *(path.stem for path in recipes())}
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


def test_the_library_imports_no_environment() -> None:
    for path in modules(ROOT).values():
        assert [name for _, name in imported(path) if name.split(".")[0] == "attriqa_envs"] == [], path


def test_every_third_party_import_is_a_declared_dependency() -> None:
    extras = tuple(name for name in pyproject()["project"]["optional-dependencies"] if name not in ("all", "dev"))
    known = sys.stdlib_module_names | declared(extras) | {"attriqa", "attriqa_envs"}
    for path in [*modules(ROOT).values(), *recipes(), *(ROOT / "envs").rglob("*.py")]:
        assert {name.split(".")[0] for _, name in imported(path)} <= known, path


def test_the_library_imports_optional_packages_inside_functions() -> None:
    known = sys.stdlib_module_names | declared(()) | {"attriqa"}
    for path in modules(ROOT).values():
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
    long = {path: lines for path, lines in lengths.items() if lines > 400 and not path.startswith("tests/")}
    assert long == {}


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
    assert set(pyproject()["tool"]["setuptools"]["packages"]) == {".".join(file.parent.parts) for file in files}


@pytest.mark.slow
def test_a_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for name in ("attriqa", "tests", *RECIPE_FOLDERS):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=skip)
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
