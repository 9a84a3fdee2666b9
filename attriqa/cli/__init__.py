"""The ``attriqa`` command: ``score`` for files and folders of images, ``explain`` for one, ``demo`` for a first look.

Exit status: 0 all scored; 1 an image could not be scored, or a result could not be written; 2 the command was wrong;
130 interrupted; 141 the reader of the table went away. Nothing heavy is imported before the command line is understood.
"""

import argparse
import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import attriqa
from attriqa.cli import demo, explain, score
from attriqa.cli.options import CommandError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (``sys.argv[1:]`` when ``None``) and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end the run
    try:
        with _sigterm_as_interrupt():
            args = _parser().parse_args(argv)
            status: int = args.command(args)
            sys.stdout.flush()
            return status
    except (CommandError, demo.DemoError) as error:
        print(f"attriqa: {error}", file=sys.stderr)
        return 2 if isinstance(error, CommandError) else 1
    except KeyboardInterrupt:
        print("attriqa: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:  # a full disk, a folder that went away: a line, not a traceback
        print(f"attriqa: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 1
    finally:
        _flush()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="attriqa", description="How good an image is, and why.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"attriqa {attriqa.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (score, explain, demo):
        command.add_parser(commands)
    return parser


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let ``kill`` and a batch system's stop end a run as Ctrl-C does: rows kept, resources closed."""

    def interrupt(signum: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _flush() -> None:
    """Flush what is left, or Python does so at exit and complains of a reader that left or of a full disk."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            score.discard(stream)
