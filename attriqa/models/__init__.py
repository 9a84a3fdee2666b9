"""The models, and one function that loads any of them."""

from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attriqa import checkpoint
from attriqa.assessment import Assessment
from attriqa.models.attribute_net import AttributeNet, AttributeNetConfig

__all__ = ["Assessment", "AttributeNet", "AttributeNetConfig", "Loaded", "load", "load_with_provenance"]


class Loaded(NamedTuple):
    """A model and where it comes from."""

    model: AttributeNet
    provenance: dict[str, Any]
    sha256: str  # of the checkpoint file


def load(model: str | Path = "default") -> AttributeNet:
    """Load a trained model, in float32, on the CPU, in eval mode.

    Args:
        model: ``"default"``, the weights inside the package, or the path of an attriqa checkpoint.

    Raises:
        attriqa.checkpoint.CheckpointError: the file is not one, is damaged, or does not fit its own configuration.
        FileNotFoundError: there is no such file.
    """
    return load_with_provenance(model).model


def load_with_provenance(model: str | Path = "default") -> Loaded:
    """`load`, with what the checkpoint says of its origin."""
    path = Path(str(files("attriqa.weights") / "default.safetensors")) if model == "default" else Path(model)
    saved = checkpoint.load(path)
    if saved.architecture != AttributeNet.__name__:
        raise checkpoint.CheckpointError(
            path, f"expected a checkpoint of {AttributeNet.__name__}, got {saved.architecture}"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # layers draw their initial values from the global generator
            net = AttributeNet(AttributeNetConfig.from_dict(saved.config))
    except (ValueError, TypeError) as error:
        raise checkpoint.CheckpointError(path, f"its config does not build: {error}") from error
    checkpoint.load_into(net, saved.state, path)
    return Loaded(net.eval(), saved.provenance, saved.sha256)
