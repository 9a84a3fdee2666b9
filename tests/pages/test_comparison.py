"""The page that compares generators, in a real browser where behaviour is what counts."""

from pathlib import Path
from typing import Any

import pytest

from attriqa.attributes import ATTRIBUTES
from attriqa.evaluation.preferences.generator_report import compare
from attriqa.evaluation.preferences.generators import Generator
from attriqa.pages import comparison as comparison_page
from attriqa.pages.comparison import pictures_per_list, write_comparison_page
from attriqa.pages.html import THUMBNAIL_SIDE, printable
from tests.pages.cases import HOSTILE, OUTPUTS, cells, comparison, decoded, generators, texts
from tests.support.browser import Browser

Made = tuple[Path, dict[str, Any], list[Generator]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("comparison")
    compared = generators(folder)
    left_out = [("bad<i>.jpg", "not an image & more")]
    result = comparison(folder / "page.html", compared, notes=[f"1 < 2 images {HOSTILE}"], left_out=left_out)
    return folder / "page.html", result, compared


def test_pictures_are_small_and_those_asked_for(browser: Browser, made: Made) -> None:
    page, result, _ = made
    browser.open(page)
    assert max(max(size) for size in decoded(browser)) <= THUMBNAIL_SIDE
    # Three worst and three best of each, three prompts' two pictures for each of two comparisons, but for a lost file.
    fallen = [2 * min(3, sum(entry["after"] < entry["before"] for entry in change["worst"]))
              for change in result["changes"].values()]  # fmt: skip
    gone = len(texts(browser, ".gone"))
    assert len(decoded(browser)) + gone == 6 * 3 + sum(fallen)
    assert gone >= 1


def test_prompts_and_notes_stay_text(browser: Browser, made: Made) -> None:
    browser.open(made[0])
    assert printable(HOSTILE) in texts(browser, ".prompt")
    assert texts(browser, ".notes li") == [f"1 < 2 images {printable(HOSTILE)}"]
    assert texts(browser, ".errors bdi") == ["bad<i>.jpg"]


def test_tables_say_what_was_found(browser: Browser, made: Made) -> None:
    page, result, _ = made
    browser.open(page)
    rows = cells(browser, "#summary tbody tr")
    assert [row[0].split()[0] for row in rows] == list(result["generators"]) == ["g2", "g1", "g0"]
    assert rows[1][0] == "g1 baseline"
    for row, entry in zip(rows, result["generators"].values(), strict=True):
        score = entry["summary"]["score"]
        assert row[2] == f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
        assert row[5] == f"{entry['mean_opinion']:.2f}"
        assert row[6:] == [f"{entry['summary'][name]['mean']:.3f}" for name in ATTRIBUTES]
    assert "1.00 [" in browser.script("return document.querySelector('#people p').textContent")
    sizes = cells(browser, "#sizes tbody tr")
    assert [row[0] for row in sizes[:4]] == ["0.005", "0.01", "0.02", "0.05"]
    assert sizes[4][0] == "g2 / g1"


def test_who_beats_whom_is_a_mirror(browser: Browser, made: Made) -> None:
    page, result, _ = made
    browser.open(page)
    rates = browser.script(
        "return [...document.querySelectorAll('.wins tbody tr')].map(row => [...row.querySelectorAll('td')]"
        ".map(cell => cell.firstChild.textContent))"
    )
    for entry in result["duels"]:
        a, b = (list(result["generators"]).index(entry[side]) for side in ("first", "second"))
        assert rates[a][b] == f"{100 * entry['rate']:.0f}"
        assert int(rates[a][b]) + int(rates[b][a]) == pytest.approx(100, abs=1)
    clear = browser.script("return document.querySelectorAll('.wins td.clear').length")
    assert clear == 2 * sum(not entry["rate_low"] <= 0.5 <= entry["rate_high"] for entry in result["duels"])


def test_pictures_are_sorted_and_prompts_that_fell_are_shown_side_by_side(browser: Browser, made: Made) -> None:
    page, result, compared = made
    browser.open(page)
    shown = browser.script(
        "return [...document.querySelectorAll('#pictures .gallery')].map(g => [...g.querySelectorAll('b')]"
        ".map(b => b.textContent))"
    )
    scores = sorted(compared[2].values[:, 0])
    assert shown[0] == [f"{score:.3f}" for score in scores[:3]]
    assert shown[1] == [f"{score:.3f}" for score in scores[:2:-1]]
    falls = texts(browser, ".pair b")
    worst = [entry for change in result["changes"].values() for entry in change["worst"][:3]]
    assert falls == [f"{entry['before']:.3f} → {entry['after']:.3f}" for entry in worst]
    counts = browser.script(
        "return [...document.querySelectorAll('.pair')].map(p => p.querySelectorAll('img, .gone').length)"
    )
    assert set(counts) == {2}


def test_folds_open_without_a_script(browser: Browser, made: Made) -> None:
    browser.open(made[0])
    hidden = "return document.querySelector('#distributions details .panel').checkVisibility()"
    assert browser.script(hidden) is False
    browser.click("#distributions summary")
    assert browser.script(hidden) is True
    assert len(texts(browser, ".panel")) == len(OUTPUTS)


def test_sections_without_content_are_left_out(browser: Browser, tmp_path: Path) -> None:
    comparison(tmp_path / "page.html", generators(tmp_path, opinions=False), baseline=None)
    browser.open(tmp_path / "page.html")
    expected = ["summary", "wins", "distributions", "pictures", "sizes"]
    assert browser.script("return [...document.querySelectorAll('section')].map(s => s.id)") == expected
    links = browser.script("return [...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
    assert links == [f"#{name}" for name in expected]
    assert browser.script("return document.querySelector('.notes')") is None


def test_generators_that_share_nothing_are_marked(browser: Browser, tmp_path: Path) -> None:
    first, second, _ = generators(tmp_path)
    second = Generator(second.name, second.images, [f"other {n}" for n in range(6)], second.values)
    comparison(tmp_path / "page.html", [first, second], baseline="g0")
    browser.open(tmp_path / "page.html")
    assert browser.script("return document.querySelectorAll('.wins td.up')[0].firstChild.textContent").endswith("*")
    assert "share no prompt" in browser.script("return document.querySelector('#changes h3 + p').textContent")


def test_the_number_of_pictures_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pictures_per_list(2, 1, 8) == 8
    assert pictures_per_list(10, 9, 1000) == comparison_page.PICTURES // 38
    assert pictures_per_list(5000, 0, 8) == 2
    monkeypatch.setattr(comparison_page, "PICTURES", 20)
    seen: list[int] = []
    comparison(tmp_path / "page.html", generators(tmp_path), gallery=3, advance=lambda: seen.append(1))
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<img") <= len(seen) <= 20


def test_generators_are_those_of_the_result(tmp_path: Path) -> None:
    compared = generators(tmp_path)
    result = compare(compared, OUTPUTS, resamples=100)
    with pytest.raises(ValueError, match="generators: expected g2, g1, g0, as in the result, got g0, g1"):
        write_comparison_page(tmp_path / "page.html", compared[:2], result, title="t", identity="i", version="v")
