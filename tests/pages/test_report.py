"""The page of scores, in a real browser where behaviour is what counts."""

import base64
import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attriqa import images
from attriqa.attributes import ATTRIBUTES
from attriqa.distortions import DISTORTION_KEYS
from attriqa.explain import why
from attriqa.pages.html import THUMBNAIL_SIDE, printable
from attriqa.pages.report import ReportRow
from tests.pages.cases import HOSTILE, NAMES, SCORES, noise, report, report_rows, sections, texts
from tests.support.browser import Browser

SHOWN = "tr.item:not([hidden]) bdi"
SORTED = "return [...document.querySelectorAll('thead th')].map(h => h.getAttribute('aria-sort'))"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(tmp_path_factory.mktemp("report") / "page.html")


def shown(browser: Browser) -> list[str]:
    return texts(browser, SHOWN)


def head(column: int) -> str:
    """The sort button: 0 the file name, 1 the score, 2... the attributes."""
    return f"thead th:nth-child({column + 2}) button"


def test_click_sorts_by_any_column_and_says_so(browser: Browser, page: Path) -> None:
    browser.open(page)
    as_given = shown(browser)
    assert as_given == [printable(name) for name in NAMES]
    assert browser.script(SORTED) == [None] * 8
    keys = {1: SCORES, **{n + 2: [row.attributes[n] for row in report_rows()] for n in range(5)}}
    for column, values in keys.items():
        browser.open(page)
        browser.click(head(column))
        order = sorted(range(5), key=values.__getitem__)
        assert shown(browser) == [as_given[n] for n in order]
        assert browser.script(SORTED) == [*[None] * (column + 1), "ascending", *[None] * (6 - column)]
        browser.click(head(column))
        order = sorted(range(5), key=lambda n: -values[n])
        assert shown(browser) == [as_given[n] for n in order]
        assert browser.script(SORTED)[column + 1] == "descending"


def test_names_sort_as_people_count(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click(head(0))
    assert shown(browser) == [printable(HOSTILE), "alpha.jpg", "b9.jpg", "b10.jpg", "Zebra.jpg"]


def test_sort_is_stable_in_both_directions(browser: Browser, page: Path) -> None:
    browser.open(page)
    for tied in (["alpha.jpg", "b10.jpg"], ["b10.jpg", "alpha.jpg"]):  # equal scores; names up, then down
        browser.open(page)
        browser.click(head(0))
        if tied[0] == "b10.jpg":
            browser.click(head(0))
        for _ in range(2):
            browser.click(head(1))
            assert [name for name in shown(browser) if name in tied] == tied


def test_keyboard_alone_sorts(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.type(head(1), browser.ENTER)
    assert shown(browser)[0] == "b9.jpg"
    browser.type(head(1), browser.SPACE)
    assert shown(browser)[0] == "Zebra.jpg"
    assert browser.script("return document.activeElement.textContent") == "score"
    assert browser.script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_filter_by_name(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.type("#filter", "B")
    assert shown(browser) == ["b10.jpg", "b9.jpg", "Zebra.jpg"]
    assert browser.script("return document.getElementById('count').value") == "3 of 5"
    browser.click(head(1))
    assert shown(browser) == ["b9.jpg", "b10.jpg", "Zebra.jpg"]
    browser.type("#filter", browser.BACKSPACE)
    assert len(shown(browser)) == 5
    browser.type("#filter", " zE ")
    assert shown(browser) == ["Zebra.jpg"]


def test_values_bars_and_reasons(browser: Browser, page: Path) -> None:
    browser.open(page)
    bar = "parseFloat(getComputedStyle(cell, '::after').backgroundSize)"
    cells = f"[...document.querySelectorAll('tr.item:nth-child(2) .v')].map(cell => [Number(cell.textContent), {bar}])"
    expected = [0.2, 0.1, 0.8, 0.3, 1.0, 0.0]
    assert browser.script(f"return {cells}") == [[value, pytest.approx(100 * value)] for value in expected]
    assert browser.script("return document.querySelectorAll('.name small')[1].textContent") == "lowest: noisiness 0.00"
    assert "high noisiness means a clean image" in browser.script("return document.body.innerText")


@pytest.mark.parametrize("kind", [report, sections])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_cut_off_at_any_width(
    browser: Browser, tmp_path: Path, width: int, kind: Callable[[Path], Path]
) -> None:
    browser.resize(width, 844)
    browser.open(kind(tmp_path / "page.html"))
    # Each value is inside the window, and named: by the header's column, or on a phone by its own label.
    right = browser.script(
        "return Math.max(...[...document.querySelectorAll('.v, .pic, bdi')].map(c => c.getBoundingClientRect().right))"
    )
    assert right <= width
    labels = browser.script(
        "const cells = [...document.querySelector('tr.item').querySelectorAll('.v')];"
        "return cells.map(cell => getComputedStyle(cell, '::before').content)"
    )
    named = ["none", *(f'"{name}"' for name in ATTRIBUTES)]
    assert labels == (named if width < 1056 else ["none"] * 6)
    browser.click(head(6))
    assert browser.script(SORTED)[-1] == "ascending"


def test_sections_compare_with_their_first_row(browser: Browser, tmp_path: Path) -> None:
    better, worse = (0.5,) * 5, (0.5, 0.125, 0.75, 0.5, 0.5)
    members = [
        ReportRow("a", 0.25, better, name="a original", group="a", image=noise(0)),
        ReportRow("a1", 0.75, worse, name="a first", group="a", image=noise(1)),
        ReportRow("a2", 0.5, worse, name="a second", group="a", image=noise(2)),
        ReportRow("", 0.5, better, name="b original", group="b & co"),
        ReportRow("b1", 0.5, better, name="b first", group="b & co", image=noise(3)),
    ]
    browser.open(report(tmp_path / "page.html", members))
    changes = browser.script(
        "const rows = [...document.querySelectorAll('tr.item')];"
        "return rows.map(row => [...row.querySelectorAll('i')].map(change => change.textContent))"
    )
    assert changes[0] == changes[3] == []
    assert changes[1] == ["+0.500", "±0", "−0.375", "+0.250", "±0", "±0"]
    notes = texts(browser, "small")
    assert notes[1] == "fell most: contrast, by 0.38"
    assert notes[4] == "no attribute fell"
    assert texts(browser, "tr.group") == ["a", "b & co"]
    browser.click(head(1))
    assert shown(browser) == ["a original", "a second", "a first", "b original", "b first"]
    browser.click(head(1))
    assert shown(browser) == ["a original", "a first", "a second", "b original", "b first"]
    browser.type("#filter", "second")
    assert browser.script("return [...document.querySelectorAll('tbody')].map(b => b.hidden)") == [False, True]
    browser.type("#filter", browser.BACKSPACE * 6 + "B & C")
    assert shown(browser) == ["b original", "b first"]


def test_thousands_of_rows_sort_and_filter(browser: Browser, tmp_path: Path) -> None:
    many = [ReportRow("", (n * 7919 % 3000) / 3000, (0.5,) * 5, name=f"{n}.jpg") for n in range(3000)]
    browser.open(report(tmp_path / "page.html", many))
    browser.click(head(1))
    assert shown(browser) == [row.name for row in sorted(many, key=lambda row: row.score)]
    browser.type("#filter", "299")
    assert browser.script("return document.getElementById('count').value") == "13 of 3000"


def test_histogram_counts_every_score_once(tmp_path: Path) -> None:
    scores = [0.0, 0.04999, 0.05, 0.5, 1.0, 1.0]
    rows = [ReportRow("", score, (0.5,) * 5, name="x") for score in scores]
    text = report(tmp_path / "p.html", rows).read_text(encoding="utf-8")
    counts = re.findall(r"<title>([\d.]+) to ([\d.]+): (\d+)</title>", text)
    assert counts == [("0.00", "0.05", "2"), ("0.05", "0.10", "1"), ("0.50", "0.55", "1"), ("0.95", "1.00", "2")]
    assert "median 0.275" in text


def test_thumbnails_come_from_files_in_order(tmp_path: Path) -> None:
    members = []
    for n, size in enumerate([(300, 200), (40, 2000), (64, 64)]):
        Image.new("RGB", size, (80 * n, 0, 0)).save(tmp_path / f"{n}.png")
        members.append(ReportRow(tmp_path / f"{n}.png", 0.5, (0.5,) * 5))
    members.append(ReportRow(tmp_path / "gone.png", 0.5, (0.5,) * 5))
    text = report(tmp_path / "page.html", members).read_text(encoding="utf-8")
    pictures = re.findall(r'class="pic">(.*?)</td>', text)
    assert len(pictures) == 4
    assert pictures[3] == '<span class="gone"></span>'
    for n, tag in enumerate(pictures[:3]):
        found = re.search(r"base64,([\w+/=]+)", tag)
        assert found is not None
        (tmp_path / "t.jpg").write_bytes(base64.b64decode(found[1]))
        with Image.open(tmp_path / "t.jpg") as thumbnail:
            assert thumbnail.format == "JPEG"
            assert max(thumbnail.size) <= THUMBNAIL_SIDE
            red = thumbnail.convert("RGB").getpixel((thumbnail.width // 2, thumbnail.height // 2))
            assert isinstance(red, tuple)
            assert abs(red[0] - 80 * n) < 8


def test_few_pictures_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    furthest = 0

    def read(path: str, *, shorter_edge: int) -> Tensor:
        nonlocal furthest
        furthest = max(furthest, int(path) - written)
        return noise(0)

    def advance() -> None:
        nonlocal written
        written += 1

    monkeypatch.setattr(images, "read", read)
    members = [ReportRow(str(n), 0.5, (0.5,) * 5) for n in range(100)]
    report(tmp_path / "p.html", members, threads=2, advance=advance)
    assert written == 100
    assert furthest < 12


@pytest.mark.parametrize("attributes", [(0.5,) * 4, (0.5, 0.5, 0.5, 0.5, 1.5), (float("nan"),) * 5])
def test_bad_rows_are_named(tmp_path: Path, attributes: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"rows: expected .* for odd\.jpg, got"):
        report(tmp_path / "page.html", [ReportRow("odd.jpg", 0.5, attributes)])
    assert list(tmp_path.iterdir()) == []


def test_page_without_images(browser: Browser, tmp_path: Path) -> None:
    browser.open(report(tmp_path / "page.html", []))
    figures = browser.script("return document.querySelector('.figures').innerText")
    assert " ".join(figures.split()) == "images 0 not scored 1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 東京 👩\u200d🔬.jpg", "plain é 東京 👩\u200d🔬.jpg"),
        ("a\nb\tc\x1b[31m", r"a\x0ab\x09c\x1b[31m"),
        ("\udcff\u2028\u202e", r"\udcff\u2028\u202e"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert html.escape(expected) == expected


def test_a_box_shows_where_the_score_is_lost(browser: Browser, tmp_path: Path) -> None:
    members = report_rows()[:3]
    red = np.zeros((60, 90, 3), np.uint8)
    red[..., 0] = 255

    def where(row: ReportRow) -> NDArray[np.uint8] | None:
        return None if row is members[1] else red

    page = tmp_path / "page.html"
    browser.open(report(page, members, where=where))
    shown = "return [...document.images].filter(i => i.checkVisibility()).map(i => i.classList.contains('where'))"
    assert browser.script(shown) == [False] * 3
    browser.click("#where")
    assert browser.script(shown) == [True, False, True], "a row without one keeps its picture"
    browser.click("#where")
    assert browser.script(shown) == [False] * 3
    data = re.findall(r'<img class="where"[^>]*base64,([^"]+)"', page.read_text(encoding="utf-8"))
    assert len(data) == 2
    with Image.open(io.BytesIO(base64.b64decode(data[0]))) as picture:
        assert picture.size == (90, 60)
        assert np.abs(np.asarray(picture).astype(int) - red).max() < 5
    assert 'id="where"' not in report(page, members).read_text(encoding="utf-8")


def test_a_note_replaces_the_default_reason(tmp_path: Path) -> None:
    note = why((0.5,) * 5, [0.8 if key == "jpeg" else 0.3 * (key == "white_noise") for key in DISTORTION_KEYS])
    row = report_rows()[0]._replace(note=f"why: {note}")
    page = report(tmp_path / "page.html", [row]).read_text(encoding="utf-8")
    assert "<small>why: strong JPEG (0.8), some white noise (0.3)</small>" in page
    assert "lowest:" not in page
