"""The README's Python, run as it stands but for what only a GPU or a download would give."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import small_diffusion

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).resolve().parents[1] / "README.md").read_text(), re.S)


def run(block: str, **known: Any) -> dict[str, Any]:
    exec(compile(block, "README.md", "exec"), known)
    return known


def test_the_first_lines_give_scores_and_gradients() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = run(BLOCKS[0], images=images)
    assert found["r"].shape == (2,)
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.slow
def test_the_first_reward_of_generated_images(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if "DiffusionPipeline" in block]
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
