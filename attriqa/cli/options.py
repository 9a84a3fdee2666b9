"""What the commands share: which scorer to load, and values of flags."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attriqa.reward import QualityReward


class CommandError(Exception):
    """What the user asked for cannot be done; the message is the one line that says why."""


def add_scorer(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `make_scorer` reads."""
    parser.add_argument("--model", default="default", help="default, robust, judge, or a checkpoint [default]")
    parser.add_argument(
        "--view", choices=("five_crop", "full", "native", "own"), help="what the model looks at [its usual view]"
    )
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda or cuda:1 [cpu]")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads [as many as there are cores]")


def make_scorer(args: argparse.Namespace) -> "QualityReward":
    """The scorer that the command line asks for.

    Raises:
        CommandError: there is no such model or device.
    """
    import torch

    from attriqa.reward import QualityReward

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's ways to say no
        raise CommandError(f"--device {args.device}: {str(error).splitlines()[0]}") from None
    try:
        return QualityReward(args.model, device=args.device, view=args.view)
    except OSError as error:
        raise CommandError(f"--model {args.model}: {error.filename}: {error.strerror}") from None
    except (ValueError, RuntimeError) as error:
        raise CommandError(f"--model {args.model}: {error}") from None


def ending_in(suffix: str) -> Callable[[str], Path]:
    """An argparse type: a path with this ending, so that a slip like ``--report *.jpg`` cannot overwrite a photo."""

    def parse(text: str) -> Path:
        if not text.lower().endswith(suffix):
            raise argparse.ArgumentTypeError(f"expected a name that ends in {suffix}, got {text!r}")
        return Path(text)

    return parse


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)
