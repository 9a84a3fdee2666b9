"""The page that compares generators, in a real browser where behaviour is what counts."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from attriqa.attributes import ATTRIBUTES
from attriqa.distortions import DISTORTION_KEYS
from attriqa.evaluation.preferences.generator_report import compare
from attriqa.evaluation.preferences.generators import Generator
from attriqa.pages import comparison as comparison_page
from attriqa.pages.comparison import pictures_per_list, write_comparison_page
from attriqa.pages.report import THUMBNAIL_SIDE, printable

if TYPE_CHECKING:
    from tests.support.browser import Browser


NAMES = ("score", *ATTRIBUTES, *DISTORTION_KEYS)
HOSTILE = "<script>window.hacked = 1</script>\"' onload='hacked()' & {{title}} 東京 \u202egpj.exe"
PROMPTS = ["a cat", HOSTILE, "a very long prompt " * 30, "d", "e", "f"]
DECODED = "return Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth))).then(w => w)"
CONTRASTS = """
const pen = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const light = color => {
  pen.clearRect(0, 0, 1, 1); pen.fillStyle = color; pen.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
return [...document.querySelectorAll(arguments[0])].map(element => {
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
});
"""


def members(folder: Path, count: int = 3, *, opinions: bool = True) -> list[Generator]:
    """Generators of six images, of different sizes; a later one is better; one image's file is gone."""
    rng = np.random.default_rng(0)
    found = []
    for level in range(count):
        values = rng.uniform(0, 0.4, (6, len(NAMES)))
        values[:, 0] = np.clip(0.2 + 0.5 * level / count + rng.uniform(0, 0.3, 6), 0, 1)
        files = []
        for number in range(6):
            file = folder / f"g{level}_{number}.png"
            pixels = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((300 + 40 * level, 240), Image.Resampling.BICUBIC).save(file)
            files.append(str(file))
        found.append(Generator(f"g{level}", files, PROMPTS, values, values[:, 0] + 1 if opinions else None))
    Path(found[0].images[int(np.argmin(found[0].values[:, 0]))]).unlink()
    return found


def write(path: Path, generators: list[Generator], baseline: str | None = "g1", **settings: Any) -> dict[str, Any]:
    result = compare(generators, NAMES, baseline=baseline, resamples=200)
    given: dict[str, Any] = {"title": "A <b>title</b>", "identity": "m/full", "version": "9.8", "gallery": 3}
    write_comparison_page(path, generators, result, **(given | settings))
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Generator]]:
    folder = tmp_path_factory.mktemp("comparison")
    generators = members(folder)
    left_out = [("bad<i>.jpg", "not an image & more")]
    result = write(folder / "page.html", generators, notes=[f"1 < 2 images {HOSTILE}"], left_out=left_out)
    return folder / "page.html", result, generators


def cells(browser: "Browser", selector: str) -> list[list[str]]:
    found: list[list[str]] = browser.script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent.trim()))",
        selector,
    )
    return found


def test_the_page_is_whole_without_a_network_and_without_scripts(
    browser: "Browser", made: tuple[Path, dict[str, Any], list[Generator]]
) -> None:
    page, _, generators = made
    browser.open(page)
    assert min(browser.script(DECODED)) > 0
    assert browser.script("return [...document.images].every(i => i.src.startsWith('data:image/jpeg;base64,'))")
    assert browser.script("return Math.max(...[...document.images].map(i => i.naturalWidth))") <= THUMBNAIL_SIDE
    # Three worst and three best of each, three prompts' two pictures for each of two comparisons, but for a lost file.
    assert browser.script("return document.images.length + document.querySelectorAll('.gone').length") == 6 * 3 + sum(
        2 * min(3, sum(entry["after"] < entry["before"] for entry in change["worst"]))
        for change in made[1]["changes"].values()
    )
    assert browser.script("return document.querySelectorAll('.gone').length") >= 1
    assert browser.script("return document.scripts.length") == 0
    assert "{{" not in page.read_text(encoding="utf-8").replace("{{title}} 東京", "")
    assert (
        browser.script(
            "return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length"
        )
        == 0
    )
    assert len(generators) == 3


def test_tables_say_what_was_found(browser: "Browser", made: tuple[Path, dict[str, Any], list[Generator]]) -> None:
    page, result, _ = made
    browser.open(page)
    rows = cells(browser, "#summary")
    assert [row[0].split()[0] for row in rows] == list(result["generators"]) == ["g2", "g1", "g0"]
    assert rows[1][0] == "g1 baseline"
    for row, entry in zip(rows, result["generators"].values(), strict=True):
        score = entry["summary"]["score"]
        assert row[2] == f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
        assert row[5] == f"{entry['mean_opinion']:.2f}"
        assert row[6:] == [f"{entry['summary'][name]['mean']:.3f}" for name in ATTRIBUTES]
    assert "1.00 [" in browser.script("return document.querySelector('#people p').textContent")
    sizes = cells(browser, "#sizes")
    assert [row[0] for row in sizes[:4]] == ["0.005", "0.01", "0.02", "0.05"]
    assert sizes[4][0] == "g2 / g1"


def test_who_beats_whom_is_a_mirror(browser: "Browser", made: tuple[Path, dict[str, Any], list[Generator]]) -> None:
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


def test_pictures_are_sorted_and_prompts_that_fell_are_shown_side_by_side(
    browser: "Browser", made: tuple[Path, dict[str, Any], list[Generator]]
) -> None:
    page, result, generators = made
    browser.open(page)
    shown = browser.script(
        "return [...document.querySelectorAll('#pictures .gallery')].map(g => [...g.querySelectorAll('b')]"
        ".map(b => b.textContent))"
    )
    scores = sorted(generators[2].values[:, 0])
    assert shown[0] == [f"{score:.3f}" for score in scores[:3]]
    assert shown[1] == [f"{score:.3f}" for score in scores[:2:-1]]
    falls = browser.script("return [...document.querySelectorAll('.pair b')].map(b => b.textContent)")
    worst = [entry for change in result["changes"].values() for entry in change["worst"][:3]]
    assert falls == [f"{entry['before']:.3f} → {entry['after']:.3f}" for entry in worst]
    counts = browser.script(
        "return [...document.querySelectorAll('.pair')].map(p => p.querySelectorAll('img, .gone').length)"
    )
    assert set(counts) == {2}


def test_hostile_text_stays_text(browser: "Browser", made: tuple[Path, dict[str, Any], list[Generator]]) -> None:
    browser.open(made[0])
    assert browser.script("return [window.hacked === undefined, document.title]") == [True, "A <b>title</b>"]
    texts = browser.script("return [...document.querySelectorAll('.prompt')].map(p => p.textContent)")
    assert printable(HOSTILE) in texts
    assert (
        browser.script("return document.querySelector('.notes li').textContent") == f"1 < 2 images {printable(HOSTILE)}"
    )
    assert browser.script("return document.querySelector('.errors bdi').textContent") == "bad<i>.jpg"


def test_folds_open_without_a_script(browser: "Browser", made: tuple[Path, dict[str, Any], list[Generator]]) -> None:
    browser.open(made[0])
    hidden = "return document.querySelector('#distributions details .panel').checkVisibility()"
    assert browser.script(hidden) is False
    browser.click("#distributions summary")
    assert browser.script(hidden) is True
    panels = browser.script("return document.querySelectorAll('.panel').length")
    assert panels == len(NAMES)


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_is_wider_than_the_window(
    browser: "Browser", made: tuple[Path, dict[str, Any], list[Generator]], width: int
) -> None:
    browser.resize(width, 900)
    browser.open(made[0])
    assert browser.script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(
    browser: "Browser", made: tuple[Path, dict[str, Any], list[Generator]], scheme: str
) -> None:
    browser.prefer(scheme)
    browser.open(made[0])
    for selector, least in (("body", 12), ("p, small, th, td, figcaption, a, .strip span, footer p", 4.5)):
        assert min(browser.script(CONTRASTS, selector)) >= least, selector
    backdrop = browser.script("return getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", backdrop)[0])
    assert (red > 128) == (scheme == "light")


def test_sections_without_content_are_left_out(browser: "Browser", tmp_path: Path) -> None:
    write(tmp_path / "page.html", members(tmp_path, opinions=False), baseline=None)
    browser.open(tmp_path / "page.html")
    expected = ["summary", "wins", "distributions", "pictures", "sizes"]
    assert browser.script("return [...document.querySelectorAll('section')].map(s => s.id)") == expected
    links = browser.script("return [...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
    assert links == [f"#{name}" for name in expected]
    assert browser.script("return document.querySelector('.notes')") is None


def test_generators_that_share_nothing_are_marked(browser: "Browser", tmp_path: Path) -> None:
    first, second, _ = members(tmp_path)
    second = Generator(second.name, second.images, [f"other {n}" for n in range(6)], second.values)
    write(tmp_path / "page.html", [first, second], baseline="g0")
    browser.open(tmp_path / "page.html")
    assert browser.script("return document.querySelectorAll('.wins td.up')[0].firstChild.textContent").endswith("*")
    assert "share no prompt" in browser.script("return document.querySelector('#changes h3 + p').textContent")


def test_the_number_of_pictures_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pictures_per_list(2, 1, 8) == 8
    assert pictures_per_list(10, 9, 1000) == comparison_page.PICTURES // 38
    assert pictures_per_list(5000, 0, 8) == 2
    monkeypatch.setattr(comparison_page, "PICTURES", 20)
    seen: list[int] = []
    write(tmp_path / "page.html", members(tmp_path), gallery=3, advance=lambda: seen.append(1))
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<img") <= len(seen) <= 20


def test_a_failure_leaves_the_old_page(tmp_path: Path) -> None:
    generators = members(tmp_path)
    (tmp_path / "page.html").write_text("old", encoding="utf-8")

    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "page.html", generators, advance=fail)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "old"
    result = compare(generators, NAMES, resamples=100)
    with pytest.raises(ValueError, match="generators: expected g2, g1, g0, as in the result, got g0, g1"):
        write_comparison_page(
            tmp_path / "page.html", generators[:2], result, title="t", identity="i", version="v"
        )  # fmt: skip
