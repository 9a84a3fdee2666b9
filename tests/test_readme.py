"""README and documentation: short where it must be, no link to nowhere, and Python that runs as it stands.

What only a GPU, a download or a file of the reader's would give is replaced. ``mkdocs build --strict`` (.ci/run) checks
the rest of the site: pages outside of the menu, anchors, docstrings.
"""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import small_diffusion
from tests.support.dng_files import mosaic_of, smooth_scene, write_dng

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "attriqa" / "weights" / "README.md", *DOCS]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.S)


def run(block: str, **known: Any) -> dict[str, Any]:
    exec(compile(block, "documentation", "exec"), known)
    return known


def test_the_first_page_is_read_in_minutes() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    (end,) = [number for number, line in enumerate(lines, 1) if line.startswith("(-r.mean()).backward()")]
    assert end <= 10


def test_the_two_commands_stand_alone() -> None:
    """CI runs them from here in spirit: .ci/run has the same."""
    assert 'pip install ".[all]" && attriqa demo\n' in blocks(README, "bash")
    assert 'pip install -e ".[dev]" && pytest\n' in blocks(README, "bash")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_relative_link_exists(path: Path) -> None:
    links = [
        link for link in LINK.findall(path.read_text()) if "://" not in link and not link.startswith(("#", "mailto:"))
    ]
    missing = [link for link in links if not (path.parent / link.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_recipe_that_a_command_names_exists(path: Path) -> None:
    named = re.findall(r"(?:python|launch) ((?:training|evals|envs|examples)/[\w/]+\.py)", path.read_text())
    assert not [recipe for recipe in named if not (ROOT / recipe).is_file()]


def modules_of(path: Path) -> Iterator[str]:
    """Dotted names of ours: in the code of a page, and what an API page documents."""
    text = path.read_text()
    for found in re.findall(r"`[^`\n]*`|^::: .*$", text, re.M):
        yield from re.findall(r"(?<![\w./-])attriqa(?:_envs)?(?:\.[A-Za-z_]\w*)+", found)


@pytest.mark.parametrize("path", [README, *DOCS], ids=name)
def test_every_name_of_ours_exists(path: Path) -> None:
    lost = []
    for dotted in modules_of(path):
        package, *rest = dotted.split(".")
        here: Any = importlib.import_module(package)
        for part in rest:
            package += f".{part}"
            if hasattr(here, part):
                here = getattr(here, part)
                continue
            try:
                here = importlib.import_module(package)
            except ModuleNotFoundError:
                lost.append(dotted)
                break
    assert not lost


def test_the_first_lines_give_scores_and_gradients() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    first = blocks(README, "python")[0]
    assert first in blocks(ROOT / "docs" / "index.md", "python")
    found = run(first, images=images)
    assert found["r"].shape == (2,)
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_the_reward_tells_attributes_and_strengths() -> None:
    (block,) = [block for block in blocks(ROOT / "docs" / "reward.md", "python") if "attribute_weights" in block]
    assert '"cuda"' in block
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = run(block.replace('"cuda"', '"cpu"'), images=images)
    assert found["assessment"].attributes.shape == (2, 5)


def test_files_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(ROOT / "docs" / "score.md", "python")
    monkeypatch.chdir(tmp_path)
    run(block)  # neither file is there
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["a.jpg", "None"], ["b.jpg", "None"]]


@pytest.mark.slow
def test_a_raw_file_is_developed_with_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks(ROOT / "docs" / "camera.md", "python")
    monkeypatch.chdir(tmp_path)
    write_dng(tmp_path / "photo.dng", mosaic_of(smooth_scene(600, 800)))
    found = run(block)
    assert found["params"].grad.abs().sum() > 0


@pytest.mark.slow
def test_the_first_reward_of_generated_images(tmp_path: Path) -> None:
    (block,) = [block for block in blocks(ROOT / "docs" / "reward.md", "python") if "DiffusionPipeline" in block]
    assert len(block.splitlines()) <= 10
    folder = small_diffusion.write(tmp_path / "pipeline")
    for here, there in (
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", str(folder)),
        ('"cuda"', '"cpu"'),
        ("pipeline(prompts, ", "pipeline(prompts, num_inference_steps=2, "),
    ):
        assert here in block
        block = block.replace(here, there)
    found = run(block)
    assert found["scores"].shape == found["advantages"].shape == (8,)
    assert found["images"].grad.abs().sum() > 0
    assert not any(found["info"]["blank"])
