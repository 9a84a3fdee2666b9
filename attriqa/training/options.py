"""What recipes on CLIP ask for beside their own, and how a run begins; what follows: `attriqa.training.folds`."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch

from attriqa.config import check_least, claim_folder, opt, required
from attriqa.data.protocol import Plan, make_plan
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
        check_least(self, log_every=1, save_every=1)


@dataclass(frozen=True, kw_only=True)
class RatedData:
    """The folds of rated data."""

    test: tuple[str, ...] | None = opt(None, "other data sets that each split's model is tested on, whole: NAME=ROOT")
    protocol: Literal["splits", "official", "all"] = opt("splits", "random 80/20; the authors' split; train on all")
    splits: int = opt(10, "random splits, seeded 0, 1, ...; each is a run of its own")
    fraction: float = opt(1.0, "share of each training side that is used, in (0, 1]")
    smoke: bool = opt(False, "a size for tests: 40 images of each set, one split, two epochs")

    def plan(self, data: str) -> Plan:
        """`attriqa.data.protocol.make_plan` of a data set, NAME=ROOT."""
        cut: dict[str, Any] = {"protocol": self.protocol, "splits": self.splits, "fraction": self.fraction}
        return make_plan(data, self.test or (), smoke=self.smoke, **cut)


def origin_of(config: CLIPStart) -> dict[str, Any] | None:
    """The provenance of ``init``; None without one.

    Raises:
        attriqa.models.checkpoint.CheckpointError: it is no checkpoint.
        OSError: there is no such file.
    """
    return None if config.init is None else checkpoint.load(config.init).provenance


def accelerator_of(config: Any, *, patience: timedelta | None = None) -> Any:
    """An ``accelerate.Accelerator`` as the command line asks for it.

    Args:
        config: with the fields ``tracker``, ``precision`` and ``out`` of a `CLIPRun`.
        patience: that processes have with one another; None: Accelerate's.

    Raises:
        SystemExit: there is no such tracker.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.tracking import get_available_trackers

    if config.tracker not in (known := ["none", *map(str, get_available_trackers())]):
        raise SystemExit(f"--tracker: expected one that is installed ({', '.join(known)}), got {config.tracker}")
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # or else Accelerate takes torchrun's processes for lone ones
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=config.out,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)],
    )


def begin(accelerator: Any, config: Any, project: str) -> None:
    """Take the output folder for a configuration, then start the tracker; all processes come here.

    Args:
        accelerator: of `accelerator_of`.
        config: of the run, with a field ``out``.
        project: what trackers call it.

    Raises:
        SystemExit: the folder holds a run with another configuration.
    """
    if accelerator.is_main_process:
        claim_folder(config.out, config)
    accelerator.wait_for_everyone()
    accelerator.init_trackers(project, {key: str(value) for key, value in as_dict(config).items()})
