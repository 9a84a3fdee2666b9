"""Judges by name: what watches an optimisation without being optimised."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from attriqa.judges.brisque import BRISQUE
from attriqa.judges.niqe import NIQE
from attriqa.models import PACKAGED
from attriqa.reward import QualityReward

Judge = Callable[[Tensor], Tensor]  # (B, 3, H, W) sRGB in [0, 1] -> (B,), higher is better, on any scale

NAMES = f"{', '.join(PACKAGED)}, a checkpoint, niqe:FILE (niqe_pris_params.npz), brisque:FOLDER (brisque_*_live.yml)"
"""What `load_judge` takes, for messages and help."""


def load_judge(name: str, *, device: torch.device | str | None = None) -> Judge:
    """A judge by its name; differentiable, frozen.

    Args:
        name: ``"niqe:FILE"`` with the parameters that `attriqa.judges.niqe.NIQE` reads, ``"brisque:FOLDER"`` with those
            of `attriqa.judges.brisque.BRISQUE`, or what `attriqa.QualityReward` takes as model: ``"judge"``, the
            packaged one on another encoder than ``"default"`` and ``"robust"`` share, one of these, or a checkpoint. A
            model takes the native view if it can.
        device: where it is put.

    Raises:
        ValueError: there is no such file, or it is not what the name says.
    """
    kind, _, where = name.partition(":")
    try:
        if where and kind == "niqe":
            return NIQE(where).to(device)
        if where and kind == "brisque":
            return BRISQUE(where).to(device)
        reward = QualityReward(name, device=device)
        return QualityReward(name, view="native", device=device) if "native" in reward.model.views else reward
    except FileNotFoundError as error:
        missing = Path(where or name) if error.filename is None else error.filename
        raise ValueError(f"judge: expected {NAMES}; got {name}, and there is no {missing}") from error
