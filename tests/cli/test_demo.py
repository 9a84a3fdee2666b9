"""``attriqa demo``: works from what is installed, offline, and tells what it found."""

import re
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attriqa.cli import demo
from tests.pages.cases import decoded, texts
from tests.support.browser import Browser
from tests.support.fake_scorer import FakeScorer, attriqa


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the demo went to the network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
def test_table_and_page(
    scorer: FakeScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert attriqa("demo") == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("score of"))
    assert lines[start].split() == ["score", "of", "original", "blurred", "darkened", "noisy", "JPEG"]
    rows = [line.split() for line in lines[start + 1 : start + 7]]
    assert [row[0] for row in rows] == list(demo.PHOTOS)
    scores = np.array([[float(value) for value in row[1:]] for row in rows])
    assert scores.shape == (6, 5)
    assert (scores[:, 2] < 0.4 * scores[:, 0]).all(), "the fake scores brightness, and the third version is dark"
    # What is printed has three decimals; the sentence counts with all of them.
    sentence = re.search(r"The original scores higher in (\d+) of 24 pairs(; not against (.*))?\.", out)
    assert sentence is not None
    lost = sentence[3].split(", ") if sentence[3] else []
    assert int(sentence[1]) + len(lost) == 24
    clear = {
        f"{photo} {version}"
        for photo, row in zip(demo.PHOTOS, scores, strict=True)
        for version, score in zip(demo.VERSIONS[1:], row[1:], strict=True)
        if score > row[0] + 0.001
    }
    assert clear <= set(lost)
    assert not any(name.endswith("darkened") for name in lost)
    page = Path("attriqa-demo.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 30
    assert sentence[0] in page
    assert re.search(r"wrote attriqa-demo\.html \(0\.\d MB\)", out)
    assert [path.name for path in tmp_path.iterdir()] == ["attriqa-demo.html"]


def test_page_has_a_section_per_photo(scorer: FakeScorer, browser: Browser, tmp_path: Path) -> None:
    assert attriqa("demo", "--out", tmp_path / "page.html") == 0
    browser.open(tmp_path / "page.html")
    assert texts(browser, ".group") == ["Mean of the 6 photos", *(photo.capitalize() for photo in demo.PHOTOS)]
    assert texts(browser, ".ref bdi") == ["original"] * 7
    assert decoded(browser) == [[192, 128]] * 30
    values = browser.script(
        "const value = row => Number(row.querySelector('.v').style.getPropertyValue('--v'));"
        "return [...document.querySelectorAll('tbody')].map(b => [...b.querySelectorAll('.item')].map(value))"
    )
    means = np.array(values[1:]).mean(0)
    assert values[0] == pytest.approx(means.tolist(), abs=2e-6)
    change = browser.script(
        "return document.querySelectorAll('tbody')[1].querySelectorAll('.item')[2].querySelector('i').textContent"
    )
    assert float(change.replace("\N{MINUS SIGN}", "-")) == pytest.approx(values[1][2] - values[1][0], abs=2e-3)


def test_versions_are_what_they_are_called_and_repeatable(tmp_path: Path) -> None:
    with Image.open(demo.photo_paths()["astronaut"]) as file:
        picture = file.convert("RGB")
    (tmp_path / "again").mkdir()
    paths = demo.degrade(picture, tmp_path, seed=3)
    again = demo.degrade(picture, tmp_path / "again", seed=3)
    assert list(paths) == list(demo.VERSIONS[1:])
    assert all(paths[name].read_bytes() == again[name].read_bytes() for name in paths)
    other = demo.degrade(picture, tmp_path / "again", seed=4)
    assert paths["noisy"].read_bytes() != other["noisy"].read_bytes()
    original = np.asarray(picture, dtype=float)
    pixels = {name: np.asarray(Image.open(path), dtype=float) for name, path in paths.items()}
    assert all(version.shape == original.shape for version in pixels.values())
    detail = {name: np.abs(np.diff(version, axis=1)).mean() for name, version in pixels.items()}
    assert detail["blurred"] < 0.5 * np.abs(np.diff(original, axis=1)).mean() < 0.5 * detail["noisy"]
    assert pixels["darkened"].mean() == pytest.approx(0.3 * original.mean(), rel=0.02)
    noise = (pixels["noisy"] - original)[(original > 80) & (original < 175)]
    assert noise.std() == pytest.approx(25.5, rel=0.02)
    assert abs(noise.mean()) < 0.3
    assert paths["JPEG"].stat().st_size < paths["blurred"].stat().st_size / 10


def test_without_scikit_image(
    scorer: FakeScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert attriqa("demo", "--out", tmp_path / "page.html") == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert 'pip install "attriqa[eval]"' in err
    assert list(tmp_path.iterdir()) == []


def test_a_photo_that_cannot_be_scored_is_named(
    scorer: FakeScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    monkeypatch.setattr(demo, "photo_paths", lambda: {"astronaut": tmp_path / "small.png"})
    assert attriqa("demo", "--out", tmp_path / "page.html") == 1
    assert re.match(r"attriqa: astronaut, original: .*20", capsys.readouterr().err)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_with_the_real_scorer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attriqa("demo", "--out", tmp_path / "page.html") == 0
    found = re.search(r"The original scores higher in (\d+) of 24 pairs", capsys.readouterr().out)
    assert found is not None
    assert int(found[1]) >= 18
