"""What every page keeps to: one file, no network, words that stay words, narrow screens, readable, all or nothing."""

import re
from pathlib import Path

import pytest

from attriqa.pages.html import printable
from tests.pages.cases import HOSTILE, PAGES, decoded, texts
from tests.support.browser import Browser

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


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name) / f"{name}.html", None) for name, make in PAGES.items()}


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, pages: dict[str, Path]) -> Path:
    return pages[request.param]


def test_hostile_words_are_words(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.script("return [window.hacked === undefined, document.title]") == [True, printable(HOSTILE)]
    assert texts(browser, "h1") == [printable(HOSTILE)]
    source = page.read_text(encoding="utf-8")
    assert browser.script("return document.scripts.length") == source.count("</script>") <= 2
    assert browser.script("return document.querySelectorAll('[onload], b > script').length") == 0
    assert "\u202e" not in source
    policy = browser.script("return document.querySelector('meta[http-equiv]').content")
    assert ("script-src" in policy) == (page.stem != "comparison"), "a page without scripts may run none"
    if page.stem != "ab":  # which shows no names
        shown = browser.script("return document.body.textContent")
        assert shown.count(printable(HOSTILE)) + shown.count(HOSTILE) >= 3


def test_it_is_whole_without_a_network(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert min(min(size) for size in decoded(browser)) > 30
    text = re.sub(r"base64,[\w+/=]+", "", page.read_text(encoding="utf-8"))
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", text)
    assert {link[0] for link in re.findall(r'\b(?:src|href)="([^"])', text)} <= {
        "d",
        "#",
    }  # data, and places of its own
    assert (
        browser.script("return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'))") == []
    )


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, 844)
    browser.open(page)
    assert browser.script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(browser: Browser, page: Path, scheme: str) -> None:
    browser.prefer(scheme)
    browser.open(page)
    gray = page.stem in ("ab", "isp")  # in every scheme, as the surround changes how a picture looks
    words = "h1, p, small, th, td, figcaption, a, label, .strip span, footer"
    for selector, least in (("body", 5 if gray else 12), (words, 4 if gray else 4.5)):
        assert min(browser.script(CONTRASTS, selector)) >= least, selector
    backdrop = browser.script("return getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", backdrop)[0])
    assert 40 < red < 128 if gray else (red > 128) == (scheme == "light")


@pytest.mark.parametrize("kind", PAGES)
def test_an_interrupted_page_leaves_the_old_one(tmp_path: Path, kind: str) -> None:
    path = PAGES[kind](tmp_path / "page.html", None)
    before, files = path.read_bytes(), sorted(tmp_path.iterdir())

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PAGES[kind](path, stop)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == files
