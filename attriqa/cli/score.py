"""``attriqa score``: everything between its command line and the files that it leaves behind."""

import argparse
import functools
import os
import shutil
import statistics
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from attriqa import __version__
from attriqa.attributes import ATTRIBUTES
from attriqa.cli import options
from attriqa.cli.options import CommandError, add_scorer, ending_in
from attriqa.evaluation.score_table import ScoreRow, ScoreTable, TableError, path_text
from attriqa.files import write_json
from attriqa.pages.html import printable
from attriqa.pages.report import ReportRow, write_report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
_SHORT = ("score", "sharp", "contr", "bright", "color", "noise")
_FEW = 3
_MAP_SIDE = 384  # px, shorter edge of a picture whose map is shown, where the model has no size of its own


def add_parser(commands: Any) -> None:
    """Add the command to ``attriqa``."""
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
    parser.add_argument("--csv", type=ending_in(".csv"), metavar="F.csv", help="append rows to this table as they come")
    parser.add_argument("--json", type=ending_in(".json"), metavar="F.json", help="write the whole result")
    parser.add_argument(
        "--report", type=ending_in(".html"), metavar="F.html", help="write a page with thumbnails and bars"
    )
    add_scorer(parser)
    parser.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> int:
    job = Job(args.paths, args.recursive, args.csv, args.json, args.report, args.threads)
    return run(job, functools.partial(options.make_scorer, args))


@dataclass(frozen=True)
class Job:
    """What to score and where the results go."""

    paths: Sequence[str]
    recursive: bool = False
    csv: Path | None = None
    json: Path | None = None
    report: Path | None = None
    threads: int | None = None

    @property
    def outputs(self) -> dict[str, Path]:
        """The files asked for, by their flag."""
        every = {"--csv": self.csv, "--json": self.json, "--report": self.report}
        return {flag: path for flag, path in every.items() if path is not None}


def run(job: Job, make_scorer: "Callable[[], QualityReward]") -> int:
    """Score a job's images; returns the exit status: 0, 1 (some image failed) or 130 (interrupted).

    Args:
        job: what to do.
        make_scorer: called once the inputs are known to be there.

    Raises:
        CommandError: an input does not exist, an output cannot be written or holds something else.
        BrokenPipeError: nobody reads the table any more and no file was asked for.
    """
    wanted = {path_text(path): path for path in _find(job)}
    _check_outputs(job)
    scorer = make_scorer()
    results = _Results(wanted)
    if job.csv is not None:
        try:
            results.table = ScoreTable(
                job.csv,
                scorer.identity,
                version=__version__,
                columns=("path", *scorer.names),
                attributes=scorer.attributes,
            )
        except TableError as error:
            raise CommandError(str(error)) from None
        results.rows = {text: row for text, row in results.table.rows.items() if text in wanted}
    screen = _Screen(wanted, keep_going=bool(job.outputs), attributes=scorer.attributes)
    try:
        results.score_rest(scorer, screen, job.threads)
    except KeyboardInterrupt:
        results.interrupted = True
    finally:
        if results.table is not None:
            results.table.close()
    return _finish(job, results, screen, scorer)


def _find(job: Job) -> list[Path]:
    from attriqa import images

    try:
        paths = images.find(job.paths, recursive=job.recursive)
    except OSError as error:
        raise CommandError(str(error)) from None
    if not paths:
        hint = "" if job.recursive else "; --recursive looks into subfolders too"
        raise CommandError(f"no images in {', '.join(job.paths)}{hint}")
    return paths


def _check_outputs(job: Job) -> None:
    """Refuse now what could not be written at the end; makes the outputs' folders."""
    seen = {Path(path).resolve(): "an input" for path in job.paths}
    for flag, path in job.outputs.items():
        if path.is_dir():
            raise CommandError(f"{flag} {path}: expected a file, found a folder")
        other = seen.setdefault(path.resolve(), flag)
        if other != flag:
            raise CommandError(f"{flag} {path}: is also {other}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"{flag} {path}: cannot make its folder: {error.strerror}") from None
        if not os.access(path.parent, os.W_OK):
            raise CommandError(f"{flag} {path}: its folder is not writable")


@dataclass
class _Results:
    """What came out so far, by path: of this run, and of earlier runs that the table remembers."""

    wanted: dict[str, Path]
    rows: dict[str, ScoreRow] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    table: ScoreTable | None = None
    earlier: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    def score_rest(self, scorer: "QualityReward", screen: "_Screen", threads: int | None) -> None:
        """Score what has no row yet, showing and keeping each result as it comes."""
        from tqdm import tqdm

        from attriqa.evaluation.score_files import score_files

        rest = {text: path for text, path in self.wanted.items() if text not in self.rows}
        self.earlier = len(self.rows)
        if self.earlier and self.table is not None:
            print(f"{self.earlier} of {len(self.wanted)} images are in {self.table.path} already", file=sys.stderr)
        started = time.perf_counter()

        def take(text: str, row: ScoreRow | str) -> None:
            self.seconds = time.perf_counter() - started
            if isinstance(row, str):
                self.errors[text] = row
                tqdm.write(f"{printable(text)}: {printable(row)}", file=sys.stderr)
            else:
                self.rows[text] = row
                screen.row(row)

        score_files(scorer, rest, self.table, threads=threads, watch=take)

    def in_order(self) -> list[ScoreRow]:
        """The rows in the order of the inputs, whatever the order in which they were made."""
        return [self.rows[text] for text in self.wanted if text in self.rows]


class _Screen:
    """The table on stdout; when its reader goes away (``| head``) and files were asked for, the work goes on."""

    def __init__(self, paths: Iterable[str], *, keep_going: bool, attributes: Sequence[str]) -> None:
        self._keep_going = keep_going
        self._gone = False
        self._header_due = True
        terminal = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        short = terminal is not None and terminal < 100 and tuple(attributes) == ATTRIBUTES
        self._heads: Sequence[str] = _SHORT if short else ("score", *attributes)
        longest = max((_width(printable(path)) for path in paths), default=4)
        numbers = sum(max(len(head), 5) + 2 for head in self._heads)
        # Piped, paths are never cut, and one long path does not push all numbers to the right.
        self._room = min(longest, 72) if terminal is None else max(12, min(longest, terminal - numbers - 1))
        self._cut = terminal is not None

    def row(self, row: ScoreRow) -> None:
        """Show one row, below the header."""
        if self._header_due:
            self.line(self._pad("path") + "".join(f"  {head:>{max(len(head), 5)}}" for head in self._heads))
            self._header_due = False
        values = zip(self._heads, (row.score, *row.attributes), strict=True)
        self.line(self._pad(self._fit(row.path)) + "".join(f"  {v:>{max(len(head), 5)}.3f}" for head, v in values))

    def line(self, text: str) -> None:
        """Show a line at once, above the progress bar if there is one."""
        from tqdm import tqdm

        if self._gone:
            return
        try:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:
            if not self._keep_going:
                raise
            self._gone = True
            discard(sys.stdout)

    def _pad(self, text: str) -> str:
        return text + " " * (self._room - _width(text))

    def _fit(self, path: str) -> str:
        text = printable(path)
        if self._cut and _width(text) > self._room:
            while _width(text) > self._room - 1:  # the end of a path tells more than its beginning
                text = text[1:]
            text = "…" + text
        return text


def discard(stream: TextIO) -> None:
    """Point a stream that nobody reads at nothing, also what it still holds, which the next flush would fail on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _width(text: str) -> int:
    """Terminal cells of ``text``."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _finish(job: Job, results: _Results, screen: _Screen, scorer: "QualityReward") -> int:
    """Write what is written at the end, say what came out, and give the exit status."""
    if job.json is not None:
        write_json(job.json, _as_json(results, scorer))
    done, total = len(results.rows) + len(results.errors), len(results.wanted)
    if results.interrupted:
        kept = [f"{len(results.rows)} rows are in {path}" for path in (job.csv or job.json,) if path is not None]
        resume = (
            "the same command goes on from here" if job.csv else "with --csv F the same command could go on from here"
        )
        page = ["no page was written"] if job.report else []
        print(f"interrupted after {done} of {total} images; {'; '.join([*kept, *page, resume])}", file=sys.stderr)
        return 130
    for line in _summary(job, results, scorer.identity):
        screen.line(line)
    if job.report is not None:
        _write_page(job.report, job, results, scorer)
    return 1 if results.errors else 0


def _as_json(results: _Results, scorer: "QualityReward") -> dict[str, Any]:
    rows = results.in_order()
    scores = [row.score for row in rows]
    return {
        "identity": scorer.identity,
        "version": __version__,
        "complete": not results.interrupted,
        "n": len(rows),
        "failed": len(results.errors),
        "mean": statistics.fmean(scores) if scores else None,
        "median": statistics.median(scores) if scores else None,
        "rows": [dict(zip(("path", *scorer.names), (row.path, *row.values), strict=True)) for row in rows],
        "errors": [{"path": path, "error": reason} for path, reason in results.errors.items()],
    }


def _summary(job: Job, results: _Results, identity: str) -> list[str]:
    rows = sorted(results.in_order(), key=lambda row: row.score)
    lines = ["", f"{len(rows)} scored" + (f", {results.earlier} of them by earlier runs" if results.earlier else "")]
    if results.errors:
        where = f", listed in {results.table.errors_path}" if results.table is not None else ""
        lines[-1] += f"; {len(results.errors)} failed{where}"
    if len(rows) > 1:
        scores = [row.score for row in rows]
        lines.append(f"score: mean {statistics.fmean(scores):.3f}, median {statistics.median(scores):.3f}")
        few = min(_FEW, len(rows) // 2)
        for name, members in (("worst", rows[:few]), ("best", rows[: -few - 1 : -1])):
            lines += [
                f"{name if n == 0 else '':<7}{row.score:.3f}  {printable(row.path)}" for n, row in enumerate(members)
            ]
    fresh = len(rows) - results.earlier
    if fresh and results.seconds:
        lines.append(f"{fresh / results.seconds:.1f} images/s")
    lines.append(f"scores by {identity}")
    return lines


def _write_page(path: Path, job: Job, results: _Results, scorer: "QualityReward") -> None:
    from tqdm import tqdm

    rows = [
        ReportRow(results.wanted[row.path], row.score, row.attributes, note=_reasons(row, scorer))
        for row in results.in_order()
    ]
    first = Path(job.paths[0])
    title = f"Scores of {first.resolve().name if str(first) in {'.', '..'} else first}"
    if len(job.paths) > 1:
        title += f" and {len(job.paths) - 1} more"
    with tqdm(total=len(rows), desc="page", unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:
        write_report(
            path,
            rows,
            title=title,
            identity=scorer.identity,
            version=__version__,
            errors=list(results.errors.items()),
            threads=job.threads or min(8, os.cpu_count() or 1),
            advance=bar.update,
            where=_where(scorer),
            attributes=scorer.attributes,
        )
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)


def _reasons(row: ScoreRow, scorer: "QualityReward") -> str | None:
    """Why, in words; ``None``, the page's own line, where nothing stands out."""
    from attriqa.explain import NOTHING, why

    keys = scorer.names[1 + len(scorer.attributes) :]
    words = why(row.attributes or None, row.distortions or None, keys=keys, names=scorer.attributes)
    return None if words == NOTHING else f"why: {words}"


def _where(scorer: "QualityReward") -> "Callable[[ReportRow], NDArray[np.uint8] | None] | None":
    """What `write_report` asks for the pictures that show where; ``None`` for a scorer without a model to look into."""
    from attriqa import explain, images
    from attriqa.reward import QualityReward

    if not isinstance(scorer, QualityReward):
        return None

    def where(row: ReportRow) -> "NDArray[np.uint8] | None":
        try:
            picture = images.read(row.path, shorter_edge=scorer.model.reads_at or _MAP_SIDE)
        except images.ImageError:
            return None
        device = next(scorer.model.buffers()).device
        return explain.overlay(picture, explain.saliency(scorer.model, picture[None].to(device))[0])

    return where
