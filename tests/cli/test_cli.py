"""The command line: what it prints, writes and refuses."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attriqa import ATTRIBUTES, __version__
from attriqa.cli import options
from attriqa.evaluation.score_table import COLUMNS
from attriqa.explain import why
from tests.support import small_net
from tests.support.fake_scorer import FakeScorer, Result, attriqa, environment, paint, table


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_net.save(tmp_path_factory.mktemp("weights") / "small.safetensors")


def score(*arguments: object) -> int:
    return attriqa("score", *arguments)


def test_table_and_summary(
    scorer: FakeScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(paint(tmp_path / "photos", 4).name)
    assert score(folder) == 0
    out, err = capsys.readouterr()
    assert err == ""
    header, *rows = [line.split() for line in out.split("\n\n")[0].splitlines()]
    assert tuple(header) == COLUMNS
    assert [row[0] for row in rows] == [str(folder / f"{n:03d}.png") for n in range(4)]
    assert [float(row[1]) for row in rows] == pytest.approx([5 * n / 255 for n in range(4)], abs=5e-4)
    assert len({len(line) for line in out.split("\n\n")[0].splitlines()}) == 1, "columns are aligned"
    summary = out.split("\n\n")[1]
    assert "4 scored\n" in summary
    assert "mean 0.029, median 0.029" in summary
    assert re.search(r"worst +0\.000  \S+000\.png\n +0\.020  \S+001\.png\nbest +0\.059  \S+003\.png\n", summary)
    assert re.search(r"[\d.]+ images/s", summary)
    assert scorer.identity in summary


def test_what_stderr_shows_of_a_name_is_harmless(
    scorer: FakeScorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "\x1b[2J\n.png").touch()
    assert score(tmp_path) == 1
    err = capsys.readouterr().err
    assert r"\x1b[2J\x0a.png: " in err
    assert err.count("\n") == 1


def test_bad_files_are_listed_and_the_rest_is_scored(
    scorer: FakeScorer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(photos, "--csv", "s.csv", "--json", "s.json") == 1
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["photos/001.png", "photos/004.png"]
    assert all(len(line.split(": ", 1)[1]) > 5 for line in lines)
    assert "4 scored; 2 failed, listed in s.csv.errors.csv" in out
    assert [row[0] for row in table(Path("s.csv"))[1:]] == [f"photos/00{n}.png" for n in (0, 2, 3, 5)]
    errors = table(Path("s.csv.errors.csv"))
    assert errors == [["path", "error"], *[line.split(": ", 1) for line in lines]]
    data = json.loads(Path("s.json").read_text())
    assert data["complete"] is True
    assert (data["n"], data["failed"], data["identity"], data["version"]) == (4, 2, scorer.identity, __version__)
    assert [[row["path"], *(f"{row[name]:.6f}" for name in COLUMNS[1:])] for row in data["rows"]] == table(
        Path("s.csv")
    )[1:]
    assert [[error["path"], error["error"]] for error in data["errors"]] == errors[1:]


def test_the_same_command_skips_rows_and_retries_errors(scorer: FakeScorer, photos: Path) -> None:
    command = (photos, "--csv", "s.csv", "--json", "s.json")
    assert score(*command) == 1
    rows = table(Path("s.csv"))
    first = Path("s.json").read_text()
    scorer.asked.clear()
    assert score(*command) == 1
    assert scorer.asked == ["photos/001.png", "photos/004.png"]
    assert table(Path("s.csv")) == rows
    assert Path("s.json").read_text() == first
    paint(photos, 6)
    scorer.asked.clear()
    assert score(*command) == 0
    assert scorer.asked == ["photos/001.png", "photos/004.png"]
    assert not Path("s.csv.errors.csv").exists()
    resumed = json.loads(Path("s.json").read_text())
    assert score(photos, "--json", "at-once.json") == 0
    assert resumed == json.loads(Path("at-once.json").read_text())
    scorer.asked.clear()
    assert score(*command) == 0
    assert scorer.asked == []


def test_a_table_grows_with_other_folders(scorer: FakeScorer, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score(photos, "--csv", "s.csv")
    paint(Path("more"), 2)
    capsys.readouterr()
    assert score("more", "--csv", "s.csv", "--json", "s.json") == 0
    assert "2 scored\n" in capsys.readouterr().out
    assert len(table(Path("s.csv"))) == 1 + 4 + 2
    assert json.loads(Path("s.json").read_text())["n"] == 2
    assert len(table(Path("s.csv.errors.csv"))) == 1 + 2, "errors of files that were not tried again stay"


def test_report(scorer: FakeScorer, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(photos, "--report", "pages/s.html", "--csv", "s.csv") == 1
    assert score(photos, "--report", "pages/again.html", "--csv", "s.csv") == 1
    assert re.search(r"wrote pages/s\.html \([\d.]+ MB\)", capsys.readouterr().err)
    for name in ("s", "again"):
        page = Path(f"pages/{name}.html").read_text(encoding="utf-8")
        assert page.count('<tr class="item') == page.count("data:image/jpeg;base64,") == 4
        assert "<title>Scores of photos</title>" in page
        assert scorer.identity in page
        assert re.findall(r"<li><bdi>(.*?)</bdi>", page) == ["photos/001.png", "photos/004.png"]


def test_a_score_that_is_no_number_is_a_failure(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(FakeScorer):
        def score_files(self, paths: object, *, threads: int | None = None) -> Iterator[Result]:
            yield Result("photos/000.png", float("nan"), (0.5,) * 5, None)

    monkeypatch.setattr(options, "make_scorer", lambda args: Broken())
    assert score("photos/000.png", "--csv", "s.csv", "--json", "s.json", "--report", "s.html") == 1
    assert "photos/000.png: the model gave no finite score" in capsys.readouterr().err
    assert len(table(Path("s.csv"))) == 1
    assert json.loads(Path("s.json").read_text())["mean"] is None


def contents() -> dict[Path, bytes]:
    """Everything in and below the working directory."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in sorted(Path().rglob("*"))}


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("", 2, "the following arguments are required: COMMAND"),
        ("score", 2, "the following arguments are required: PATH"),
        ("score photos --frobnicate", 2, "--frobnicate"),
        ("score photos --rec", 2, "--rec"),
        ("score photos --threads 0", 2, "expected a whole number of at least 1, got '0'"),
        ("score photos --view half", 2, "invalid choice: 'half'"),
        ("score gone", 2, "gone"),
        ("score photos gone.jpg", 2, "gone.jpg"),
        ("score nothing", 2, "no images in nothing; --recursive"),
        ("score photos --report photos/000.png", 2,
         "--report: expected a name that ends in .html, got 'photos/000.png'"),
        ("score photos --csv folder.csv", 2, "--csv folder.csv: expected a file, found a folder"),
        ("score photos --csv photos/000.png/s.csv", 2, "--csv photos/000.png/s.csv: cannot make its folder"),
        ("score photos page.html --report page.html", 2, "--report page.html: is also an input"),
        ("score photos --csv foreign.csv", 2, "foreign.csv: exists without foreign.csv.meta.json"),
        ("score photos --csv header.csv", 2, "header.csv: not a table of ours"),
        ("score photos --csv other.csv", 2,
         "made by default-1/five_crop, these would be made by fake-0123456789ab/full"),
        ("score photos --model gone.safetensors", 2, "gone.safetensors"),
        ("score photos --device toaster", 2, "--device toaster: "),
        ("explain", 2, "the following arguments are required: IMAGE"),
        ("explain gone.png", 2, "gone.png: expected an image file, found none"),
        ("explain photos", 2, "photos: expected an image file, found a folder"),
        ("explain photos/000.png --of sharpnes", 2, "did you mean 'sharpness'?"),
        ("explain photos/000.png --of jpeg --model SMALL", 2, "as this model tells no distortions; got 'jpeg'"),
        ("explain photos/000.png --out a.jpg", 2, "expected a name that ends in .png, got 'a.jpg'"),
        ("explain photos/000.png --out photos/../photos/000.png", 2, "photos/../photos/000.png: is also the input"),
        ("explain photos/000.png --out folder.png", 2, "--out folder.png: expected a file, found a folder"),
        ("explain photos/004.png --model SMALL", 1, "photos/004.png: "),
        ("explain photos/000.png --out photos/000.png/a.png --model SMALL", 1, "photos/000.png"),
        ("demo --out folder.html", 2, "--out folder.html: expected a file, found a folder"),
        ("demo --out page.htm", 2, "expected a name that ends in .html, got 'page.htm'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_touches_nothing(
    photos: Path, checkpoint: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str],
    command: str, status: int, message: str,
) -> None:  # fmt: skip
    real = command.startswith("explain") or "toaster" in command or "gone.safe" in command
    scorer = FakeScorer() if real else request.getfixturevalue("scorer")
    paint(Path("nothing/below"), 1)
    for name in ("folder.csv", "folder.png", "folder.html"):
        Path(name).mkdir()
    Path("page.html").write_text("a page")
    Path("foreign.csv").write_text("path,score\n")
    good = ",".join(COLUMNS) + "\r\na,1,1,1,1,1,1\r\n"
    for name, text, identity in (("header", "name,mos\n", scorer.identity), ("other", good, "default-1/five_crop")):
        Path(f"{name}.csv").write_text(text, newline="")
        meta = {"kind": "attriqa scores", "identity": identity}
        Path(f"{name}.csv.meta.json").write_text(json.dumps(meta))
    before = contents()
    assert attriqa(*command.replace("SMALL", str(checkpoint)).split()) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1, err
    assert contents() == before
    assert scorer.asked == []


def test_folders_of_results_are_made_but_not_for_a_wrong_command(scorer: FakeScorer, photos: Path) -> None:
    assert score("gone", "--csv", "new/s.csv") == 2
    assert not Path("new").exists()
    outputs = ("--csv", "new/a/s.csv", "--json", "new/b/s.json", "--report", "new/c/s.html")
    assert score("photos/000.png", *outputs) == 0
    assert all(Path(path).is_file() for path in outputs[1::2])


def test_recursive(scorer: FakeScorer, photos: Path) -> None:
    paint(photos / "deep" / "er", 1)
    score(photos)
    assert len(scorer.asked) == 6
    scorer.asked.clear()
    score(photos, "--recursive")
    assert "photos/deep/er/000.png" in scorer.asked
    assert len(scorer.asked) == 7


def test_odd_names(scorer: FakeScorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"caf\xe9.png", "東京 é.png".encode(), b'a,"b".png', b"line\nbreak\x1b[31m.png"]
    Image.new("RGB", (32, 32)).save(tmp_path / "x.bmp")
    for name in names:
        os.rename(paint(tmp_path, 1) / "000.png", os.fsencode(tmp_path) + b"/" + name)  # noqa: PTH104 - bytes
    results = ("--csv", tmp_path / "s.csv", "--json", tmp_path / "s.json", "--report", tmp_path / "s.html")
    for _ in range(2):
        assert score(tmp_path, *results) == 0
        assert "\x1b" not in capsys.readouterr().out
    found = {row[0].removeprefix(f"{tmp_path}/") for row in table(tmp_path / "s.csv")[1:]}
    assert found == {r"caf\xe9.png", "東京 é.png", 'a,"b".png', "line\nbreak\x1b[31m.png", "x.bmp"}
    assert (tmp_path / "s.html").read_text(encoding="utf-8").count("data:image/jpeg") == 5


def test_explain_says_why_and_shows_where(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save("photo.png")
    assert score("photo.png", "--model", checkpoint, "--json", "s.json") == 0
    told = json.loads(Path("s.json").read_text())["rows"][0]
    capsys.readouterr()
    shown = {}
    for of in ("score", "brightness"):
        assert attriqa("explain", "photo.png", "--model", checkpoint, "--of", of, "--out", f"new/{of}.png") == 0
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert lines[0] == f"photo.png: score {told['score']:.3f}"
        assert lines[1] == f"why: {why([told[name] for name in ATTRIBUTES])}"
        assert lines[2].startswith(
            f"where: new/{of}.png, coloured where {'the score' if of == 'score' else of} is lost"
        )
        assert (len(lines), err) == (3, "")
        with Image.open(f"new/{of}.png") as picture:
            assert picture.size == (70, 50)
            shown[of] = np.asarray(picture)
    assert not np.array_equal(shown["score"], shown["brightness"])
    assert np.ptp(shown["score"].astype(int), axis=2).max() > 30
    assert attriqa("explain", "photo.png", "--model", checkpoint) == 0
    assert Path("attriqa-explain.png").read_bytes() == Path("new/score.png").read_bytes()


def test_a_column_per_distortion(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = FakeScorer(distortions=True)
    monkeypatch.setattr(options, "make_scorer", lambda args: scorer)
    for _ in range(2):  # a finished table goes on
        assert score("photos/000.png", "photos/002.png", "--csv", "s.csv", "--json", "s.json") == 0
        header, *rows = table(Path("s.csv"))
        assert header == [*COLUMNS, "jpeg", "white_noise"]
        assert [float(value) for value in rows[0][7:]] == pytest.approx([40 / 255, 200 / 255], abs=1e-6)
        assert json.loads(Path("s.json").read_text())["rows"][1]["white_noise"] == float(rows[1][8])
    assert len(scorer.asked) == 2
    monkeypatch.setattr(options, "make_scorer", lambda args: FakeScorer())
    assert score("photos/000.png", "--csv", "s.csv") == 2, "other columns are another table"
    assert "expected the header path,score,sharpness" in capsys.readouterr().err


def test_only_bad_files_have_no_speed(scorer: FakeScorer, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score("photos/004.png") == 1
    out = capsys.readouterr().out
    assert "0 scored; 1 failed" in out
    assert "images/s" not in out


def test_help_and_version_do_not_wait_for_torch() -> None:
    code = """if True:
        import contextlib, io, sys
        from attriqa import cli
        helps = [[command, "--help"] for command in ("score", "explain", "demo")]
        for words in (["--help"], *helps, ["--version"], ["score"]):
            with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                cli.main(words)
        heavy = {"torch", "timm", "PIL", "scipy", "tqdm"} & set(sys.modules)
        assert not heavy, heavy
    """
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "attriqa score photos/ --recursive --report photos.html" in result.stdout
    assert f"attriqa {__version__}\n" in result.stdout
