"""The command line as a process: stopped, cut off from its reader, on a terminal, and with the real weights."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from attriqa.distortions import DISTORTION_KEYS
from attriqa.evaluation.score_table import COLUMNS
from tests.support.fake_scorer import ROOT, attriqa, environment, paint, table

FAKE = [sys.executable, str(ROOT / "tests" / "support" / "fake_scorer.py")]


def run(command: list[str], *arguments: str, cwd: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    given: dict[str, Any] = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.run([*command, *arguments], cwd=cwd, timeout=200, check=False, **(given | settings))


@contextmanager
def started(folder: Path, *arguments: str, delay: float) -> Iterator[subprocess.Popen[str]]:
    """The command with the fake scorer, running; killed at the end if it still does."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [*FAKE, "score", "photos", *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment(delay), **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_rows(path: Path, count: int) -> None:
    deadline = time.monotonic() + 100
    while not path.exists() or path.read_bytes().count(b"\n") <= count:
        assert time.monotonic() < deadline, "no rows came"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_stopped_run_keeps_its_rows_and_goes_on(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 60)
    files = ("--csv", "s.csv", "--json", "s.json", "--report", "s.html")
    rows = [list(COLUMNS)]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        with started(tmp_path, *files, delay=0.05) as process:
            wait_for_rows(tmp_path / "s.csv", len(rows) + 4)
            process.send_signal(number)
            _, err = process.communicate(timeout=200)
        before, rows = rows, table(tmp_path / "s.csv")
        assert rows[: len(before)] == before, "what was there stays as it was"
        assert len(before) + 5 <= len(rows) < 61
        assert all(len(row) == 7 for row in rows)
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        assert (tmp_path / "s.json").exists() == (number != signal.SIGKILL)
        if number != signal.SIGKILL:
            resumed, message = err.splitlines()
            assert resumed == f"{len(before) - 1} of 60 images are in s.csv already"
            counts = re.match(r"interrupted after (\d+) of 60 images; (\d+) rows are in s\.csv; no page was", message)
            assert counts is not None
            assert [int(count) for count in counts.groups()] == [len(rows) - 1] * 2
            assert message.endswith("the same command goes on from here")
            interim = json.loads((tmp_path / "s.json").read_text())
            assert (interim["complete"], interim["n"]) == (False, len(rows) - 1)
    assert not (tmp_path / "s.html").exists()
    result = run(FAKE, "score", "photos", *files, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    after = table(tmp_path / "s.csv")
    assert after[: len(rows)] == rows
    assert [row[0] for row in after[1:]] == [f"photos/{n:03d}.png" for n in range(60)]
    final = json.loads((tmp_path / "s.json").read_text())
    assert (final["complete"], final["n"]) == (True, 60)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["photos", "s.csv", "s.csv.meta.json", "s.html", "s.json"]


@pytest.mark.slow
def test_interrupted_without_a_table(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 40)
    with started(tmp_path, delay=0.1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted after \d+ of 40 images; with --csv F the same command could go on .*\n", err)


@pytest.mark.slow
@pytest.mark.parametrize(("files", "status", "rows"), [((), 141, 0), (("--csv", "s.csv"), 0, 30)])
def test_a_reader_that_leaves_is_no_error(tmp_path: Path, files: tuple[str, ...], status: int, rows: int) -> None:
    paint(tmp_path / "photos", 30)
    with started(tmp_path, *files, delay=0.01) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(200) == status
    assert not rows or len(table(tmp_path / "s.csv")) == 1 + rows


@pytest.mark.slow
def test_help_for_a_reader_that_left(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        result = run(FAKE, "--help", cwd=tmp_path, stdout=gone)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_one_line(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 2)
    with Path("/dev/full").open("w") as full:
        result = run(FAKE, "score", "photos", cwd=tmp_path, stdout=full)
    assert result.returncode == 1
    assert result.stderr == "attriqa: output: No space left on device\n"


def on_a_terminal(folder: Path, columns: int) -> str:
    """Everything that the command writes to a terminal of this width."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, columns))
    own = {name: value for name, value in environment(0.2).items() if name not in {"COLUMNS", "LINES"}}
    with subprocess.Popen([*FAKE, "score", "photos"], cwd=folder, env=own, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = b""
        try:
            while chunk := os.read(master, 65536):
                shown += chunk
        except OSError:
            pass  # how Linux ends a terminal whose program is gone
        os.close(master)
        assert process.wait(200) == 0
    return shown.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "head"), [(80, "sharp"), (120, "sharpness")])
def test_on_a_terminal(tmp_path: Path, columns: int, head: str) -> None:
    for path in paint(tmp_path / "photos", 3).iterdir():
        path.rename(path.with_name("long" * 30 + path.name))
    shown = on_a_terminal(tmp_path, columns)
    assert re.search(r"\d/3 \[", shown), "a progress bar"
    lines = [re.split(r"[\r\x1b]", line)[-1] for line in shown.split("\r\n")]
    first = next(n for n, line in enumerate(lines) if line.startswith("path "))
    assert lines[first].split()[1:3] == ["score", head]
    for n, line in enumerate(lines[first + 1 : first + 4]):
        assert len(line) == len(lines[first]) < columns
        assert re.match(rf"…[long]+00{n}\.png  +0\.0\d\d ", line)


# With the weights of the package.


def test_the_real_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "photos", 2)
    (tmp_path / "photos" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    files = ("--csv", "s.csv", "--json", "s.json", "--report", "s.html")
    result = run([sys.executable, "-m", "attriqa"], "score", "photos", *files, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("photos/bad.png: ")
    header, *rows = table(tmp_path / "s.csv")
    assert header == [*COLUMNS, *DISTORTION_KEYS]
    assert [row[0] for row in rows] == ["photos/000.png", "photos/001.png"]
    assert all(0 <= float(value) <= 1 for row in rows for value in row[1:])
    identity = json.loads((tmp_path / "s.csv.meta.json").read_text())["identity"]
    made = re.fullmatch(r"default-[0-9a-f]{12}/(full|five_crop)", identity)
    assert made is not None
    before = (tmp_path / "s.csv").read_bytes()
    view = "full" if made[1] == "five_crop" else "five_crop"
    assert attriqa("score", "photos", "--csv", "s.csv", "--view", view) == 2
    err = capsys.readouterr().err
    assert f"made by {identity}, these would be made by {identity.replace(made[1], view)};" in err
    assert (tmp_path / "s.csv").read_bytes() == before
