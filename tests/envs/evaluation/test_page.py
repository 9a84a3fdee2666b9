"""The page of renderings side by side, in a real browser."""

from pathlib import Path

import pytest
from PIL import Image

from attriqa_envs.evaluation.page import Item, Version, write_compare_page
from tests.pages.cases import HOSTILE, cells, decoded, flat, isp, texts
from tests.support.browser import Browser

COLOURS = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
return [...document.querySelectorAll("article:first-of-type .view img")].map(image => {
  canvas.drawImage(image, 0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(value => Math.round(value / 255)).join("");
});
"""


def middle_of(browser: Browser, path: Path, share: float) -> tuple[int, ...]:
    """The colour on screen at a share of the first picture's width."""
    box = browser.script(
        "const b = document.querySelector('.view').getBoundingClientRect(); return [b.x, b.y, b.width]"
    )
    browser.screenshot(path)
    with Image.open(path) as shot:
        pixel = shot.convert("RGB").getpixel((int(box[0] + share * box[2]), int(box[1] + 60)))
    assert isinstance(pixel, tuple)
    return tuple(round(value / 255) for value in pixel)


def test_the_page_compares_under_a_slider(browser: Browser, tmp_path: Path) -> None:
    browser.open(isp(tmp_path / "page.html"))
    decoded(browser)
    assert texts(browser, "h2") == [HOSTILE, "b.dng"]
    assert texts(browser, "pre") == ["method  n\nadam <4>"]
    assert browser.script(COLOURS) == ["100", "010"]  # the default left, the policy right
    shot = tmp_path / "shot.png"
    assert (middle_of(browser, shot, 0.25), middle_of(browser, shot, 0.75)) == ((1, 0, 0), (0, 1, 0))
    browser.type(".view input", "\ue013" * 70)  # arrow up: the line moves right by half a hundredth each
    assert (middle_of(browser, shot, 0.25), middle_of(browser, shot, 0.75)) == ((1, 0, 0), (1, 0, 0))
    browser.click("article:first-of-type fieldset:last-of-type label:last-of-type input")
    decoded(browser)
    assert browser.script(COLOURS) == ["100", "001"]
    assert texts(browser, ".on-right")[0] == "expert"
    heads, first = ["", "default", "policy", "expert"], "article:first-of-type "
    assert cells(browser, f"{first}table:first-of-type tr") == [
        heads, ["score", "0.4", "0.6", "0.5"], [HOSTILE, "1", "", ""],
    ]  # fmt: skip
    assert cells(browser, f"{first}table + table tr") == [
        heads, ["exposure EV", "+0.00", "+0.75", ""], ["hue degree", "+0.00", "-4.00", ""],
    ]  # fmt: skip


def test_pictures_fill_a_phone(browser: Browser, tmp_path: Path) -> None:
    browser.resize(390, 800)
    browser.open(isp(tmp_path / "page.html"))
    assert browser.script("return document.querySelector('.view').clientWidth") > 300


def test_a_page_needs_versions_of_different_names(tmp_path: Path) -> None:
    twice = [Version("a", flat((0, 0, 0)), {}), Version("a", flat((0, 0, 0)), {})]
    for versions in ([], twice):
        with pytest.raises(ValueError, match="item 'x': expected versions of different names"):
            write_compare_page(tmp_path / "page.html", [Item("x", versions)], title="t")
    assert list(tmp_path.iterdir()) == []
