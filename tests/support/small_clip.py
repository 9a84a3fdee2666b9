"""Small open_clip models with random weights, for tests that need a CLIP and not its knowledge."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

VIT: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
RESNET: dict[str, Any] = VIT | {
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
}
PREPROCESS: dict[str, Any] = {"mean": [0.5, 0.45, 0.4], "std": [0.25, 0.3, 0.2]}


def vit(context_length: int) -> dict[str, Any]:
    """`VIT`, which reads texts of so many tokens."""
    return VIT | {"text_cfg": VIT["text_cfg"] | {"context_length": context_length}}


def pictures(count: int = 3, height: int = 60, width: int = 80, seed: int = 0) -> Tensor:
    """Smooth random colours (B, 3, H, W) in [0, 1]."""
    coarse = torch.rand(count, 3, 9, 12, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def write(folder: Path, config: dict[str, Any] = VIT, *, seed: int = 0, **preprocess: object) -> str:
    """A model as a folder that open_clip loads: its configuration and its weights as safetensors.

    Returns:
        Its name for ``open_clip.create_model``: ``local-dir:FOLDER``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model_cfg": config, "preprocess_cfg": PREPROCESS | preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}")
        for name, parameter in model.named_parameters():  # open_clip starts with the residual branches switched off
            if name.endswith("bn3.weight"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        size = model.visual.image_size
        for _ in range(20 if config is RESNET else 0):  # BatchNorms that have seen images tell them apart
            model.visual.train()(torch.nn.functional.interpolate(torch.rand(8, 3, 9, 9), size, mode="bilinear"))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    return f"local-dir:{folder}"


def tagged(folder: Path, name: str, config: dict[str, Any] = VIT) -> tuple[str, str]:
    """Make ``name`` known with weights in ``folder`` under a tag, as if open_clip had fetched them: name and tag."""
    write(folder, config)
    weights = str(folder / "open_clip_model.safetensors")
    open_clip.pretrained._PRETRAINED[name] = {"tiny": {"file": weights, **PREPROCESS}}
    return register(folder / "names", name, config), "tiny"


def register(folder: Path, name: str, config: dict[str, Any] = VIT) -> str:
    """Make ``name`` known to open_clip, in this process, as an architecture without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    return name
