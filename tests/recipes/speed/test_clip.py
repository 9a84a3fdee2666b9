"""evals/speed/clip.py, in this process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch

from attriqa.models.clip.towers import CLIPTowers, clip_of
from tests.support import small_clip
from tests.support.trees import unlabelled as unlabelled_tree


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    yield unlabelled_tree.load_recipe("clip", "evals/speed")
    torch.set_num_threads(threads)


def test_a_ratio_is_what_the_tokens_cost(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that counts the tokens that the tower's blocks see: that is the prompts' share, and nothing else."""
    seen: list[tuple[int, ...]] = []
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def watched(name: str, *, seed: int) -> CLIPTowers:
        towers = clip_of(name, seed=seed)
        for block in cast(Any, towers.model.visual).transformer.resblocks:
            block.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
        return towers

    def counted(tasks: dict[str, Callable[[], object]], rounds: int, title: str) -> dict[str, list[float]]:
        for name, task in tasks.items():
            seen.clear()
            task()
            shapes[name] = list(seen)
        return {name: [float(sum(shape[1] for shape in found))] * rounds for name, found in shapes.items()}

    monkeypatch.setattr(recipe, "clip_of", watched)
    monkeypatch.setattr(recipe, "interleave", counted)
    (tmp_path / "vit.json").write_text(json.dumps(small_clip.vit(32)))
    words = ("--clip", tmp_path / "vit.json", "--prompts", 3, "--batch", 5, "--threads", 1, "--rounds", 2)
    recipe.main([str(word) for word in (*words, "--out", tmp_path / "out")])
    numbers, text = json.loads((tmp_path / "out" / "metrics.json").read_text())["forward"], capsys.readouterr().out
    assert shapes["tower"] == [(5, 10, 32)] * 2  # CLS and 9 patches, in each of two blocks
    assert shapes["first"] == [(5, 13, 32), (5, 10, 32)]
    assert shapes["deep"] == shapes["shallow"] == shapes["mp_iqe"] == [(5, 13, 32)] * 2
    for kind in ("deep", "first", "shallow"):
        assert numbers[f"{kind}_ratio"] == pytest.approx(1.15 if kind == "first" else 1.3)
        assert numbers[f"{kind}_ratio_per_token"] == pytest.approx(1)
    for name, value in numbers.items():
        assert f"| {name} | {value:.4g} |" in text


def test_a_clip_that_prompts_cannot_enter_is_refused(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "resnet.json").write_text(json.dumps(small_clip.RESNET))
    with pytest.raises(SystemExit, match="expected a vision transformer of open_clip's own, got its ModifiedResNet"):
        recipe.main(["--clip", str(tmp_path / "resnet.json"), "--out", str(tmp_path / "out")])
