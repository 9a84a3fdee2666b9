"""The page of blind comparisons, in a real browser, and what its answers say."""

import base64
import csv
import io
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attriqa.evaluation import metrics
from attriqa.evaluation.preferences.votes import COLUMNS, Vote, left_share, read_votes, tally_votes, win_rate
from attriqa.pages.ab import ABPair, write_ab_page
from tests.pages.cases import ab, ab_pairs, decoded
from tests.support.browser import Browser

SHOWN = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
return ["left", "right"].map(side => {
  const image = document.getElementById("image-" + side);
  canvas.drawImage(image, 0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 2);
});
"""
LEFT, RIGHT, DOWN = "\ue012", "\ue014", "\ue015"  # W3C WebDriver, section 17.4.2


def listed(page: Path) -> list[list[str]]:
    text = page.read_text(encoding="utf-8").split('id="pairs">')[1].split("</script>")[0]
    found: list[list[str]] = json.loads(text)
    return found


def shown(browser: Browser) -> tuple[int, str]:
    """The pair on screen and the side, a or b, that is left."""
    decoded(browser)
    (red, green), (other, _) = browser.script(SHOWN)
    assert abs(red - other) <= 4
    return round(red / 40), "a" if green > 125 else "b"


@pytest.fixture
def downloads(browser: Browser, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "downloads"
    folder.mkdir()
    browser.devtools("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    yield folder
    browser.script("localStorage.clear()")


def saved(browser: Browser, folder: Path) -> Path:
    for path in folder.iterdir():
        path.unlink()
    browser.click("#save")
    deadline = time.monotonic() + 20
    while not (folder / "answers.csv").exists():
        assert time.monotonic() < deadline, "no answers.csv was downloaded"
        time.sleep(0.05)
    return folder / "answers.csv"


def test_answers_by_keyboard_come_back_as_given(browser: Browser, downloads: Path, tmp_path: Path) -> None:
    page = ab(tmp_path / "page.html")
    browser.open(page)
    browser.type("#rater", 'Ann "A", b12')
    keys = [(LEFT, "left"), (RIGHT, "right"), (DOWN, "tie"), ("1", "left"), ("2", "right"), ("0", "tie")]
    expected = {}
    for turn in range(6):
        number, left = shown(browser)
        key, chosen = keys[turn]
        browser.type("body", key)
        preferred = chosen if chosen == "tie" else left if chosen == "left" else "ab".replace(left, "")
        expected[f"pair {number}"] = (left, preferred)
    assert len(expected) == 6, "every pair came once"
    assert not browser.script("return document.getElementById('done').hidden")
    votes = read_votes(saved(browser, downloads))
    assert {vote.pair: (vote.left, vote.preferred) for vote in votes} == expected
    by_name = {pair.name: pair for pair in ab_pairs(tmp_path)}
    for vote in votes:
        assert vote.rater == 'Ann "A", b12'
        assert (vote.image_a, vote.prompt) == (by_name[vote.pair].image_a, by_name[vote.pair].prompt)


def test_buttons_back_and_a_reload(browser: Browser, downloads: Path, tmp_path: Path) -> None:
    page = ab(tmp_path / "page.html", seed=4)
    browser.open(page)
    assert browser.script("return document.getElementById('save').disabled")
    first, left = shown(browser)
    browser.click("#left")
    browser.click("#choose-right")
    browser.type("body", browser.BACKSPACE)
    browser.click("#back")
    assert shown(browser) == (first, left)
    assert browser.script("return document.querySelector('#left').classList.contains('chosen')")
    browser.click("#tie")
    time.sleep(1)  # a browser under load hands what one page has stored to the next one's process a moment later
    browser.open(page)
    assert browser.script("return document.getElementById('count').textContent") == "3 of 6"
    votes = read_votes(saved(browser, downloads))
    assert [vote.preferred == "tie" for vote in votes] == [True, False]
    assert votes[0].pair == f"pair {first}"
    browser.open(ab(tmp_path / "other.html", seed=5))
    assert browser.script("return document.getElementById('count').textContent") == "1 of 6", "answers are of one page"


def test_the_page_is_blind_and_fits(browser: Browser, downloads: Path, tmp_path: Path) -> None:
    """Nothing on screen or in a tooltip tells names or prompts, the name field takes keys, and nothing is cut off."""
    browser.open(ab(tmp_path / "page.html"))
    visible = browser.script("return document.body.innerText + [...document.querySelectorAll('*')].map(e => e.title)")
    for word in ("pair", "prompt", ".png"):
        assert word not in visible
    browser.type("#rater", "120" + LEFT)
    assert browser.script("return document.getElementById('count').textContent") == "1 of 6"
    for width, height in ((1280, 900), (390, 700)):
        browser.resize(width, height)
        box = "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        assert browser.script(box) == [width, height]
        sizes = browser.script("return [...document.images].map(i => [i.clientWidth, i.clientHeight])")
        assert sizes[0] == sizes[1], "both pictures are shown at one size"
    assert downloads.is_dir()


def test_sides_and_order_follow_the_seed(tmp_path: Path) -> None:
    one = listed(ab(tmp_path / "1.html", count=40))
    assert listed(ab(tmp_path / "2.html", count=40)) == one
    other = listed(ab(tmp_path / "3.html", seed=1, count=40))
    assert [record[0] for record in other] != [record[0] for record in one]
    assert {record[0]: record[4] for record in other} != {record[0]: record[4] for record in one}
    for records in (one, other):
        assert sorted(record[0] for record in records) == sorted(f"pair {n}" for n in range(40))
        assert [record[4] for record in records].count("a") == 20, "each side is left in half of the pairs"
        turns = sum(before[4] != after[4] for before, after in pairwise(records))
        assert 10 < turns < 30, "sides do not take turns, nor come in blocks"


def test_both_pictures_of_a_pair_are_reduced_alike_and_keep_no_metadata(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("a", (300, 200)), ("b", (150, 100))):
        exif = Image.Exif()
        exif[0x010E] = "made by the candidate"
        picture = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
        picture.save(tmp_path / f"{name}.jpg", exif=exif)
    write_ab_page(tmp_path / "p.html", [ABPair("p", "a.jpg", "b.jpg")], "t", "q", 0, folder=tmp_path, side=100)
    (record,) = listed(tmp_path / "p.html")
    blobs = [base64.b64decode(source.split(",")[1]) for source in record[5:]]
    assert [Image.open(io.BytesIO(blob)).size for blob in blobs] == [(100, 67), (50, 33)]
    assert not any(b"candidate" in blob for blob in blobs)


def test_bad_pages_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    good = ab_pairs(tmp_path, 2)
    for members, side, message in (
        ([], 64, "at least one, got none"),
        ([good[0], good[0]], 64, "each name once, got 'pair 0'"),
        (good, 8, "at least 32 px, got 8"),
        ([ABPair("x", "0a.png", "absent.png")], 64, "absent.png"),
    ):
        with pytest.raises(ValueError, match=message):
            write_ab_page(tmp_path / "p.html", members, "t", "q", 0, folder=tmp_path, side=side)
    assert not list(tmp_path.glob("*.html")) + list(tmp_path.glob(".*.tmp"))


def vote(pair: str, preferred: str, left: str = "a", rater: str = "r") -> Vote:
    return Vote(pair, f"{pair}a", f"{pair}b", "", left, preferred, rater)


def test_a_pair_is_won_by_the_majority() -> None:
    votes = [vote("x", "a"), vote("x", "a"), vote("x", "b"), vote("y", "b"), vote("y", "tie"), vote("z", "tie")]
    tallies = tally_votes(votes)
    assert [entry[4:] for entry in tallies] == [(2, 1, 0), (0, 1, 1), (0, 0, 1)]
    rate = win_rate(tallies)
    assert rate[:1] + rate[3:] == (0.5, 3, 1, 1, 1, 6)
    assert (rate.low, rate.high) == metrics.wilson(1.5, 3)
    with pytest.raises(ValueError, match="at least one pair"):
        win_rate([])
    with pytest.raises(ValueError, match="'x' is other and xb, elsewhere xa, xb"):
        tally_votes([vote("x", "a"), vote("x", "a")._replace(image_a="other")])


def test_people_who_always_press_left_are_seen() -> None:
    sides = ["a", "b"] * 20
    assert left_share([vote(str(n), side, left=side) for n, side in enumerate(sides)]) == (1.0, metrics.wilson(40, 40))
    honest = left_share([vote(str(n), "a", left=side) for n, side in enumerate(sides)])
    assert honest is not None
    assert honest[1].low < honest[0] == 0.5 < honest[1].high
    assert left_share([vote("x", "tie")]) is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["p", "a", "b", "", "a", "left", "1", ""], "line 2: expected left a or b and preferred a, b or tie"),
        (["p", "a", "b", "", "c", "a", "1", ""], "line 2: expected left a or b"),
        (["p", "a", "b"], "line 2: expected 8 fields, got 3"),
    ],
)
def test_bad_answers_are_refused(tmp_path: Path, record: list[str], message: str) -> None:
    path = tmp_path / "answers.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, record])
    with pytest.raises(ValueError, match=message):
        read_votes(path)


def test_answers_twice_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    record = ["p", "a", "b", "", "a", "b", "1", "ann"]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, record, [*record[:5], "a", "2", "ann"]])
    with pytest.raises(ValueError, match="line 3: a second answer of 'ann' to 'p'"):
        read_votes(path)
    path.write_text("pair,choice\n")
    with pytest.raises(ValueError, match="expected the columns pair"):
        read_votes(path)
