"""Golden numbers of generated images: what every packaged weight makes of them, and an ISP's rendering.

    python -m tests.golden        # writes tests/golden.json anew: only when scores are meant to change

Each entry holds the numbers themselves and a digest of their bits. Bits depend on the processor and on the libraries,
so they are compared where both are those of the file; elsewhere the numbers are, to 1e-6.
"""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attriqa import QualityReward
from attriqa.models import PACKAGED
from attriqa.models.views import View

FILE = Path(__file__).with_name("golden.json")
VIEWS: tuple[View, ...] = ("five_crop", "full", "native")
SIZES = ((48, 64), (240, 321), (420, 400))  # smaller than a model's size, odd, larger
_KEPT = 64  # numbers of a large tensor that are kept beside its digest


def machine() -> dict[str, str]:
    """What the bits of a result depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def image(height: int, width: int) -> Tensor:
    """A generated picture (1, 3, height, width): smooth colors, an edge, a texture, some noise."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    checks = ((rows // 7 + columns // 5) % 2).float() * 0.3 * (columns > width // 2)
    noise = 0.1 * (torch.rand(1, 3, height, width, generator=generator) - 0.5)
    return (0.8 * smooth + checks + noise).clamp(0, 1)


def kept(values: Tensor) -> dict[str, Any]:
    """A tensor's digest, its mean magnitude, and evenly spaced values of it."""
    flat = values.detach().contiguous().flatten()
    step = max(1, len(flat) // _KEPT)
    return {
        "sha256": hashlib.sha256(flat.numpy().tobytes()).hexdigest(),
        "magnitude": float(flat.double().abs().mean()),
        "values": [float(value) for value in flat[::step]],
    }


def of_weights(name: str) -> dict[str, Any]:
    """Score, attributes, strengths and gradient by view and size."""
    found = {}
    for view in VIEWS:
        reward = QualityReward(name, view=view)
        for size in SIZES:
            pixels = image(*size).requires_grad_()
            told = reward.assess(pixels)
            told.score.sum().backward()
            assert pixels.grad is not None
            parts = {"score": told.score, "attributes": told.attributes, "distortions": told.distortions,
                     "gradient": pixels.grad * 1000}  # fmt: skip
            found[f"{view} {size[0]}x{size[1]}"] = {key: kept(part) for key, part in parts.items() if part is not None}
    return found


def of_isp() -> dict[str, Any]:
    """A rendering with every parameter off its default, and its gradients by light and params."""
    from attriqa_envs.isp import bounds, render

    linear = (image(120, 161) ** 2.2 * 1.3).requires_grad_()
    low, high = bounds(linear)
    params = (low + (high - low) * torch.linspace(0.35, 0.6, len(low)))[None].requires_grad_()
    rendered = render(linear, params)
    rendered.square().mean().backward()
    assert linear.grad is not None
    assert params.grad is not None
    return {"rendering": kept(rendered), "by light": kept(linear.grad * 1e5), "by params": kept(params.grad)}


def compute() -> dict[str, Any]:
    """All of them, on one thread."""
    torch.set_num_threads(1)
    return {name: of_weights(name) for name in PACKAGED} | {"isp": {"render": of_isp()}}


if __name__ == "__main__":
    FILE.write_text(json.dumps({"machine": machine(), "golden": compute()}, indent=1) + "\n")
