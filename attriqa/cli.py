"""The ``attriqa`` command: ``score`` for files and folders of images, ``explain`` for one, ``demo`` for a first look.

Exit status: 0 all scored; 1 an image could not be scored, or a result could not be written; 2 the command was wrong;
130 interrupted; 141 the reader of the table went away. Nothing heavy is imported before the command line is understood.
"""

import argparse
import functools
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import attriqa
from attriqa import demo, scoring
from attriqa.scoring import CommandError

if TYPE_CHECKING:
    from attriqa.reward import QualityReward

_EXAMPLES = """\
examples:
  attriqa score photo.jpg
  attriqa score photos/ --recursive --report photos.html
  attriqa score photos/ --csv scores.csv      # after an interruption the same command goes on
  attriqa score old/ new/ --json scores.json

Score and attributes run from 0 to 1, higher is better; a high noisiness means a clean image.
With --csv F, files that cannot be scored are listed in F.errors.csv and tried again by the next run;
F.meta.json says which weights and view made the table: it never takes another model's scores.
The page of --report takes about 6 MB per 1,000 images.
"""


_OVERLAY_SIDE = 1080  # px; an overlay is to be looked at, and a map has no more detail than the model's view


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


def _run_score(args: argparse.Namespace) -> int:
    job = scoring.Job(args.paths, args.recursive, args.csv, args.json, args.report, args.threads)
    return scoring.run(job, functools.partial(make_scorer, args), version=attriqa.__version__)


def _run_explain(args: argparse.Namespace) -> int:
    from PIL import Image

    from attriqa import explain, images
    from attriqa.recipe import atomic_path
    from attriqa.report import printable

    image_path, out = Path(args.image), args.out
    if not image_path.is_file():
        raise CommandError(
            f"{args.image}: expected an image file, found {'a folder' if image_path.is_dir() else 'none'}"
        )
    if out.is_dir():
        raise CommandError(f"--out {out}: expected a file, found a folder")
    if out.resolve() == image_path.resolve():
        raise CommandError(f"--out {out}: is also the input")
    try:
        if args.model == "default":
            explain.find_output(args.of)  # before the model is loaded
        scorer = make_scorer(args)
        explain.find_output(args.of, scorer.model.distortions, scorer.model.attributes)
    except ValueError as error:
        raise CommandError(f"--{error}") from None
    said = next(iter(scorer.score_files([image_path])))
    if said.score is None:
        print(f"{printable(args.image)}: {printable(said.error or 'the model gave no score')}", file=sys.stderr)
        return 1
    picture = images.read(image_path)[None]
    if min(picture.shape[2:]) > _OVERLAY_SIDE:
        picture = images.resize_shorter(picture, _OVERLAY_SIDE)
    found = explain.saliency(scorer.model, picture.to(args.device), args.of)[0]
    with atomic_path(out) as temporary:
        Image.fromarray(explain.overlay(picture[0], found)).save(temporary, format="PNG")
    what = (
        f"it sees {args.of}"
        if args.of in scorer.model.distortions
        else f"{'the score' if args.of == 'score' else args.of} is lost"
    )
    why = explain.why(said.attributes, said.distortions, keys=scorer.model.distortions, names=scorer.attributes)
    print(f"{printable(args.image)}: score {said.score:.3f}\nwhy: {why}")
    shown = (
        f"coloured where {what}, brightest where most"
        if found.any()
        else f"all gray: nowhere more than elsewhere {what}"
    )
    print(f"where: {printable(str(out))}, {shown}")
    return 0


def _run_demo(args: argparse.Namespace) -> int:
    if args.out.is_dir():
        raise CommandError(f"--out {args.out}: expected a file, found a folder")
    demo.run(functools.partial(make_scorer, args), args.out, version=attriqa.__version__, threads=args.threads)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="attriqa", description="How good an image is, and why.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"attriqa {attriqa.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_score(commands)
    _add_explain(commands)
    _add_demo(commands)
    return parser


def _add_score(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="score image files and folders",
        description="Score image files and folders: a table as the results come, then a summary.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image file, or folder of images")
    parser.add_argument("--recursive", action="store_true", help="look into subfolders too")
    parser.add_argument("--csv", type=_file(".csv"), metavar="F.csv", help="append rows to this table as they come")
    parser.add_argument("--json", type=_file(".json"), metavar="F.json", help="write the whole result")
    parser.add_argument("--report", type=_file(".html"), metavar="F.html", help="write a page with thumbnails and bars")
    _add_scorer(parser)
    parser.set_defaults(command=_run_score)


def _add_explain(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        help="say why an image got its score, and show where",
        description="Say why an image got its score, and write a picture that shows where: the image in gray, and in "
        "colour what lowers the score or an attribute, or what raises the strength of a distortion.",
        allow_abbrev=False,
    )
    picture = Path("attriqa-explain.png")
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument(
        "--of",
        default="score",
        metavar="NAME",
        help="what to show: score, an attribute (sharpness, ...), or, where the model tells them, a distortion (jpeg, "
        "...) [score]",
    )
    parser.add_argument("--out", type=_file(".png"), default=picture, metavar="F.png", help=f"the picture [{picture}]")
    _add_scorer(parser)
    parser.set_defaults(command=_run_explain)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="score a few photos, each also made worse, and write a page",
        description="Score photos that scikit-image ships, each also blurred, darkened, noised and JPEG-compressed.",
        allow_abbrev=False,
    )
    page = Path("attriqa-demo.html")
    parser.add_argument("--out", type=_file(".html"), default=page, metavar="F.html", help=f"the page [{page}]")
    _add_scorer(parser)
    parser.set_defaults(command=_run_demo)


def _add_scorer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="default", help="default, robust, judge, or a checkpoint [default]")
    parser.add_argument(
        "--view", choices=("five_crop", "full", "native", "own"), help="what the model looks at [its usual view]"
    )
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda or cuda:1 [cpu]")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads [as many as there are cores]")


def _file(suffix: str) -> Callable[[str], Path]:
    """An argparse type: a path with this ending, so that a slip like ``--report *.jpg`` cannot overwrite a photo."""

    def parse(text: str) -> Path:
        if not text.lower().endswith(suffix):
            raise argparse.ArgumentTypeError(f"expected a name that ends in {suffix}, got {text!r}")
        return Path(text)

    return parse


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


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
            scoring.discard(stream)


if __name__ == "__main__":
    sys.exit(main())
