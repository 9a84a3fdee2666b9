"""What may be wrong with AGIQA-3K on disk: all of it is named, and no numbers are given."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attriqa.evaluation import metrics
from tests.support.trees import agiqa as small
from tests.support.trees.agiqa import set_mos


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return small.build(tmp_path / "AGIQA-3K")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tree: Path) -> small.Run:
    return small.runner(monkeypatch, tree)


Fault = Callable[[Path], object]


def cut(name: str, size: int | None) -> Fault:
    """The beginning of an image; None: no image at all."""

    def change(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).unlink()
        if size is not None:
            (root / name).write_bytes(data[:size])

    return change


def with_line(line: str) -> Fault:
    return lambda root: small.edit(root, lambda lines: lines.append(line))


def a_folder(root: Path) -> None:
    cut("sd1.5_lowcorr_002.jpg", None)(root)
    (root / "sd1.5_lowcorr_002.jpg").mkdir()


def a_second_row(root: Path) -> None:
    small.edit(root, lambda lines: lines.append(lines[5].replace(",0.5,", ",0.7,")))


@pytest.mark.parametrize(
    ("break_it", "message", "lost"),
    [
        (cut("sd1.5_lowcorr_002.jpg", None), "sd1.5_lowcorr_002.jpg: no such image", 1),
        (a_folder, "sd1.5_lowcorr_002.jpg: no such image", 1),
        (cut("glide_normal_001.jpg", 200), "glide_normal_001.jpg: ", 1),
        (cut("xl2.2_normal_003.jpg", 0), "xl2.2_normal_003.jpg: ", 1),
        (a_second_row, "AttnGAN_normal_004.jpg: more than one row in data.csv, the last is row 62", 1),
        (set_mos("good"), "glide_normal_001.jpg: expected mos_quality within 0 to 5, found 'good'", 1),
        (set_mos("nan"), "expected mos_quality within 0 to 5, found 'nan'", 1),
        (set_mos("87.5"), "expected mos_quality within 0 to 5, found '87.5'", 1),
        (with_line("AttnGAN_009.jpg,prompt"), "data.csv row 62: expected 9 fields, found 2: AttnGAN_009.jpg,prompt", 0),
        (with_line(""), "data.csv row 62: expected 9 fields, found 0", 0),
        (with_line("dalle9_normal_001.jpg,cat,,,,1,1,1,1"), "'dalle9_normal_001.jpg' is no official image name", 0),
        (with_line("../glide_normal_001.jpg,cat,,,,1,1,1,1"), "'../glide_normal_001.jpg' is no official", 0),
        (with_line("glide_normal_009.jpg, ,,,,1,1,1,1"), "glide_normal_009.jpg: expected a prompt of one line", 0),
        (with_line('glide_normal_009.jpg,"a\nb",,,,1,1,1,1'), "glide_normal_009.jpg: expected a prompt of one line", 0),
    ],
)
def test_a_fault_is_named_and_no_numbers_are_given(
    break_it: Fault, message: str, lost: int, run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it(tree)
    assert run() == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert "1 images or rows cannot be used" in printed.err
    assert "no numbers are given; --allow-missing" in printed.err
    assert "SROCC" not in printed.out
    assert not (tree / "out" / "metrics.json").exists()
    assert run("--allow-missing") == 0
    assert message in capsys.readouterr().out
    result = small.result_of(tree)
    ((name, reason),) = result["excluded"]["reasons"].items()
    assert message in f"{name}: {reason}"
    assert result["excluded"]["n"] == 1
    assert result["n"] == small.N - lost
    assert f"{small.N - lost} images of 2,982" in result["protocol"]


def test_all_faults_are_counted_and_ten_listed(run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(len(small.PROMPTS)):
        (tree / f"glide_normal_{number:03}.jpg").unlink()
        (tree / f"xl2.2_normal_{number:03}.jpg").unlink()
    assert run() == 1
    err = capsys.readouterr().err
    assert "12 images or rows cannot be used" in err
    assert err.count("no such image") == 10
    assert "and 2 more" in err
    assert run("--allow-missing") == 0
    assert len(small.result_of(tree)["excluded"]["reasons"]) == 12


def test_unreadable_images_are_tried_again_and_the_others_kept(run: small.Run, tree: Path) -> None:
    path = tree / "glide_normal_001.jpg"
    whole = path.read_bytes()
    cut(path.name, 200)(tree)
    assert run() == 1
    path.write_bytes(whole)
    scorer = small.FakeScorer()
    assert run(scorer=scorer) == 0
    assert scorer.asked == ["glide_normal_001.jpg"]
    assert small.result_of(tree)["n"] == small.N


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,mos\n", f"expected the header {small.HEADER}, found name,mos"),
        (small.HEADER.replace("mos_quality", "MOS") + "\n", "found name,prompt,adj1,adj2,style,MOS,"),
        ("", "found nothing"),
        ("\xff\xfe", "cannot be read as a UTF-8 CSV file"),
        (f'{small.HEADER}\n"a', "cannot be read as a UTF-8 CSV file"),
        (None, "cannot be read as a UTF-8 CSV file: [Errno 2]"),
    ],
)
def test_a_wrong_header_is_named_whatever_is_allowed(
    text: str | None, message: str, run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is None:
        (tree / "data.csv").unlink()
    else:
        (tree / "data.csv").write_text(text, encoding="latin-1")
    for flags in ((), ("--allow-missing",)):
        assert run(*flags) == 1
        err = capsys.readouterr().err
        assert message in err
        assert str(tree / "data.csv") in err


def test_a_model_that_is_not_there_is_one_line(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--root", str(tree), "--out", str(tree / "out"), "--model", str(tree / "none.safetensors")]
    assert small.load_recipe().main(flags) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: --model {tree / 'none.safetensors'}: ")
    assert not (tree / "out").exists()


# A safety checker blanked an image of the true set: it counts, as in the protocol, and is told.


def test_a_black_image_is_named_and_the_numbers_are_also_given_without_it(
    run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (48, 40), (0, 2, 1)).save(tree / "DALLE2_normal_003.jpg")
    assert run() == 0
    result, printed = small.result_of(tree), capsys.readouterr().out
    assert result["n"] == small.N
    assert result["black_images"] == ["DALLE2_normal_003.jpg"]
    rows = [row for row in small.scores_of(tree) if row["name"] != "DALLE2_normal_003.jpg"]
    score, mos = (np.array([float(row[name]) for row in rows]) for name in ("score", "mos_quality"))
    expected = metrics.report(score, mos, seed=0, resamples=result["resamples"])
    assert {name: result["without_black"][name] for name in expected} == pytest.approx(expected)
    assert result["without_black"]["srocc"] != result["srocc"]
    assert "all black, as a safety checker leaves an image: 1, DALLE2_normal_003.jpg" in printed
    line = next(line for line in printed.splitlines() if line.startswith("all but black ones"))
    assert f"{expected['srocc']:.3f} [" in line


def test_without_black_images_nothing_is_said(run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    result = small.result_of(tree)
    assert (result["black_images"], result["without_black"]) == ([], None)
    assert "black ones" not in capsys.readouterr().out


def test_an_image_that_broke_after_it_was_scored_is_an_error(
    run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    (tree / "glide_normal_001.jpg").write_bytes(b"gone")
    assert run() == 1
    assert "glide_normal_001.jpg: " in capsys.readouterr().err
