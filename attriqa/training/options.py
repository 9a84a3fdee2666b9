"""What recipes on CLIP ask for beside their own, and how a run of theirs begins; its steps: `attriqa.training.loop`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from attriqa.config import claim_folder, opt, required
from attriqa.files import as_dict
from attriqa.models import checkpoint


@dataclass(frozen=True, kw_only=True)
class CLIPStart:
    """The CLIP and the folder.

    A recipe's ``Config`` adds fields of its own. It repeats ``out`` with its folder and ``init`` with what that may be.

    Raises:
        ValueError: not one of ``clip``, ``clip_config`` and ``init`` is given.
    """

    out: Path = required("where everything goes")
    clip: str | None = opt(None, "MODEL[:PRETRAINED] of open_clip: a tag or a file; hf-hub:..., local-dir:...")
    clip_config: Path | None = opt(None, "or an open_clip configuration (JSON), for a model with random weights")
    init: Path | None = opt(None, "or a checkpoint of ExIQA, whose CLIP is the start")
    workers: int = opt(2, "loading processes per process; 0: none")
    seed: int = opt(0, "of everything random but the splits")

    def __post_init__(self) -> None:
        if (self.clip, self.clip_config, self.init).count(None) != 2:
            raise ValueError("--clip, --clip-config, --init: expected one of them")

    def require_counts(self, *names: str) -> None:
        """Refuse, with a ``ValueError``, fields that are less than 1."""
        for name in names:
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class CLIPRun(CLIPStart):
    """These and the steps of a training.

    Raises:
        ValueError: as `CLIPStart`, or an interval is not positive.
    """

    precision: Literal["fp32", "bf16"] = opt("fp32", "of the activations")
    log_every: int = opt(10, "steps between looks at the loss")
    save_every: int = opt(200, "steps between checkpoints")
    tracker: str = opt("none", "of Accelerate: tensorboard, wandb, ...")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("log_every", "save_every")


def origin_of(config: CLIPStart) -> dict[str, Any] | None:
    """The provenance of ``init``; None without one.

    Raises:
        attriqa.models.checkpoint.CheckpointError: it is no checkpoint.
        OSError: there is no such file.
    """
    return None if config.init is None else checkpoint.load(config.init).provenance


def accelerator_of(config: CLIPRun) -> Any:
    """An ``accelerate.Accelerator`` as the command line asks for it.

    Raises:
        SystemExit: there is no such tracker.
    """
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    if config.tracker not in (known := ["none", *map(str, get_available_trackers())]):
        raise SystemExit(f"--tracker: expected one that is installed ({', '.join(known)}), got {config.tracker}")
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # or else Accelerate takes torchrun's processes for lone ones
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=config.out,
    )


def begin(accelerator: Any, config: CLIPRun, project: str) -> None:
    """Take the output folder for a configuration, then start the tracker; all processes come here.

    Args:
        accelerator: of `accelerator_of`.
        config: of the run.
        project: what trackers call it.

    Raises:
        SystemExit: the folder holds a run with another configuration.
    """
    if accelerator.is_main_process:
        claim_folder(config.out, config)
    accelerator.wait_for_everyone()
    accelerator.init_trackers(project, {key: str(value) for key, value in as_dict(config).items()})
