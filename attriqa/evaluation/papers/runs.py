"""Runs of recipes as processes: alone in their folder, all output to a log, what is finished not run again."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class RunError(Exception):
    """A run that failed, or whose results are not what its recipe promises."""


def words_of(script: Path, launcher: str) -> list[str]:
    """The words that start a recipe: with ``launcher``, as ``"accelerate launch"``, or with this Python."""
    return [*(shlex.split(launcher) or [sys.executable]), str(script)]


@contextmanager
def locked(out: Path) -> Iterator[int | None]:
    """Hold OUT alone. The lock passes on to what is started with the descriptor: a run that outlives us keeps it."""
    if os.name != "posix":
        yield None
        return
    import fcntl

    handle = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                f"{out}: another benchmark, or a fine-tuning that one left behind, is at work; wait for it or end it"
            ) from None
        yield handle
    finally:
        os.close(handle)


def read_folds(folder: Path, count: int, *, key: str = "fold") -> list[dict[str, Any]]:
    """The folds in the results of a finished run, those that hold ``key``.

    Raises:
        RunError: there are other than ``count`` of them.
    """
    path = folder / "metrics.json"
    try:
        folds = [fold for fold in json.loads(path.read_text(encoding="utf-8"))["folds"] if key in fold]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"no results in {path} ({type(error).__name__}: {error})") from error
    if len(folds) != count:
        raise RunError(f"{path}: expected {count} folds, found {len(folds)}")
    return folds


def execute(words: Sequence[str], folder: Path, lock: int | None, watch: Callable[[], None]) -> None:
    """Run to the end, all output to ``folder``'s log beside it.

    Args:
        words: the command.
        folder: where it writes to.
        lock: of `locked`.
        watch: called twice a second while it runs, and at the end.

    Raises:
        RunError: it ended with another status than 0; the end of its log is quoted.
    """
    log = folder.with_name(folder.name + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            pass_fds=[] if lock is None else [lock],
        )
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.5)
                watch()
        finally:
            if process.poll() is None:  # we are being interrupted: it keeps what it has finished
                process.terminate()
                process.wait()
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()[-12:]
        quoted = "\n".join(f"    {line}" for line in tail)
        raise RunError(f"status {process.returncode}; the end of {log}:\n{quoted}")
