from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.trees import agiqa as small


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return small.build(tmp_path / "AGIQA-3K")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tree: Path) -> small.Run:
    return small.runner(monkeypatch, tree)


# What is wrong with the data


def truncate_image(root: Path) -> None:
    path = root / "glide_normal_001.jpg"
    path.write_bytes(path.read_bytes()[:200])


FAULTS: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "missing": (lambda root: (root / "sd1.5_lowcorr_002.jpg").unlink(), "sd1.5_lowcorr_002.jpg: no such image", 1),
    "folder": (
        lambda root: (root / "sd1.5_lowcorr_002.jpg").unlink() or (root / "sd1.5_lowcorr_002.jpg").mkdir(),  # type: ignore[func-returns-value]
        "sd1.5_lowcorr_002.jpg: no such image",
        1,
    ),
    "unreadable": (truncate_image, "glide_normal_001.jpg: ", 1),
    "empty": (lambda root: (root / "xl2.2_normal_003.jpg").write_bytes(b""), "xl2.2_normal_003.jpg: ", 1),
    "short row": (
        lambda root: small.edit(root, lambda lines: lines.insert(3, "AttnGAN_normal_009.jpg,prompt")),
        "data.csv row 4: expected 9 fields, found 2: AttnGAN_normal_009.jpg,prompt",
        0,
    ),
    "blank row": (
        lambda root: small.edit(root, lambda lines: lines.append("")),
        "data.csv row 62: expected 9 fields, found 0",
        0,
    ),
    "duplicate": (
        lambda root: small.edit(root, lambda lines: lines.append(lines[5].replace(",0.5,", ",0.7,"))),
        "AttnGAN_normal_004.jpg: more than one row in data.csv, the last is row 62",
        1,
    ),
    "unknown generator": (
        lambda root: small.edit(root, lambda lines: lines.append("dalle9_normal_001.jpg,cat,,,,1,1,1,1")),
        "data.csv row 62: 'dalle9_normal_001.jpg' is no official image name",
        0,
    ),
    "path": (
        lambda root: small.edit(root, lambda lines: lines.append("../glide_normal_001.jpg,cat,,,,1,1,1,1")),
        "'../glide_normal_001.jpg' is no official image name",
        0,
    ),
    "no number": (small.set_mos("good"), "glide_normal_001.jpg: expected mos_quality within 0 to 5, found 'good'", 1),
    "nan": (small.set_mos("nan"), "expected mos_quality within 0 to 5, found 'nan'", 1),
    "range": (small.set_mos("87.5"), "expected mos_quality within 0 to 5, found '87.5'", 1),
    "no prompt": (
        lambda root: small.edit(root, lambda lines: lines.append("glide_normal_009.jpg, ,,,,1,1,1,1")),
        "glide_normal_009.jpg: expected a prompt of one line, found ' '",
        0,
    ),
    "two-line prompt": (
        lambda root: small.edit(root, lambda lines: lines.append('glide_normal_009.jpg,"a\nb",,,,1,1,1,1')),
        "glide_normal_009.jpg: expected a prompt of one line",
        0,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_no_numbers_are_given(
    fault: str, run: small.Run, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, message, lost = FAULTS[fault]
    break_it(tree)
    assert run() == 1
    said = capsys.readouterr()
    assert message in said.err
    assert "1 images or rows cannot be used" in said.err
    assert "no numbers are given; --allow-missing" in said.err
    assert "SROCC" not in said.out
    assert not (tree / "out" / "metrics.json").exists()
    assert run("--allow-missing") == 0
    assert message in capsys.readouterr().out
    result = small.result_of(tree)
    assert result["excluded"]["n"] == 1
    assert any(
        message.endswith(f"{k}: {v}"[: len(message)]) or message in f"{k}: {v}"
        for k, v in result["excluded"]["reasons"].items()
    )
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
    truncate_image(tree)
    assert run() == 1
    path.write_bytes(whole)
    scorer = small.FakeScorer()
    assert run(scorer=scorer) == 0
    assert scorer.asked == ["glide_normal_001.jpg"]
    assert small.result_of(tree)["n"] == small.N


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name,mos\n",
            f"expected the header {small.HEADER}, found name,mos",
        ),
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
