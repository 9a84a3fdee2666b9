"""One page of each kind, full of hostile words; what a browser shows of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attriqa.attributes import ATTRIBUTES
from attriqa.distortions import DISTORTION_KEYS
from attriqa.evaluation.preferences.generator_report import compare
from attriqa.evaluation.preferences.generators import Generator
from attriqa.pages.ab import ABPair, write_ab_page
from attriqa.pages.comparison import write_comparison_page
from attriqa.pages.report import ReportRow, write_report
from attriqa_envs.evaluation.page import Item, Version, write_compare_page
from tests.support.browser import Browser
from tests.support.isp_pictures import params

HOSTILE = "</script><script>window.hacked = 1</script>\"' onload='hacked()' & {{title}} {% x %} 東京 é\u202egpj.exe"
NAMES = ("b10.jpg", "b9.jpg", "Zebra.jpg", "alpha.jpg", HOSTILE)
SCORES = (0.5, 0.2, 0.9, 0.5, 0.7)
OUTPUTS = ("score", *ATTRIBUTES, *DISTORTION_KEYS)
PROMPTS = ["a cat", HOSTILE, "a very long prompt " * 30, "d", "e", "f"]
Advance = Callable[[], object] | None


def texts(browser: Browser, selector: str) -> list[str]:
    """The text of every element that a selector finds."""
    found: list[str] = browser.script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )
    return found


def cells(browser: Browser, selector: str) -> list[list[str]]:
    """The text of every cell of the rows that a selector finds."""
    found: list[list[str]] = browser.script(
        "return [...document.querySelectorAll(arguments[0])].map(r => [...r.cells].map(c => c.textContent.trim()))",
        selector,
    )
    return found


def decoded(browser: Browser) -> list[list[int]]:
    """Width and height of every picture, once all are there."""
    found: list[list[int]] = browser.script(
        "const all = [...document.images].filter(i => i.src);"
        "return Promise.all(all.map(i => i.decode())).then(() => all.map(i => [i.naturalWidth, i.naturalHeight]))"
    )
    return found


def noise(seed: int, height: int = 60, width: int = 90) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def report_rows() -> list[ReportRow]:
    return [
        ReportRow(name, score, (0.1 * n, 0.9 - 0.1 * n, 0.3, 1.0, 0.0), image=noise(n))
        for n, (name, score) in enumerate(zip(NAMES, SCORES, strict=True))
    ]


def report(path: Path, rows: list[ReportRow] | None = None, *, title: str = HOSTILE, **settings: Any) -> Path:
    given: dict[str, Any] = {"errors": [(HOSTILE, "not an image & more")], "lead": "5 < 6 photos"}
    rows = report_rows() if rows is None else rows
    write_report(path, rows, title=title, identity="m/full", version="9.8", **(given | settings))
    return path


def sections(path: Path, advance: Advance = None) -> Path:
    """A report whose rows are compared with the first of their section."""
    rows = [row._replace(group=f"{n % 2}{HOSTILE}" * 2) for n, row in enumerate(report_rows())]
    return report(path, rows, advance=advance)


def generators(folder: Path, count: int = 3, *, opinions: bool = True) -> list[Generator]:
    """Generators of six images, of different sizes; a later one is better; one image's file is gone."""
    rng = np.random.default_rng(0)
    made = []
    for level in range(count):
        values = rng.uniform(0, 0.4, (6, len(OUTPUTS)))
        values[:, 0] = np.clip(0.2 + 0.5 * level / count + rng.uniform(0, 0.3, 6), 0, 1)
        files = [str(folder / f"g{level}_{number}.png") for number in range(6)]
        for file in files:
            pixels = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((300 + 40 * level, 240), Image.Resampling.BICUBIC).save(file)
        made.append(Generator(f"g{level}", files, PROMPTS, values, values[:, 0] + 1 if opinions else None))
    Path(made[0].images[int(np.argmin(made[0].values[:, 0]))]).unlink()
    return made


def comparison(
    path: Path, compared: list[Generator] | None = None, baseline: str | None = "g1", **settings: Any
) -> dict[str, Any]:
    """The page, and what it is made of."""
    compared = generators(path.parent) if compared is None else compared
    result = compare(compared, OUTPUTS, baseline=baseline, resamples=200)
    given: dict[str, Any] = {"title": HOSTILE, "identity": "m/full", "version": "9.8", "gallery": 3}
    write_comparison_page(path, compared, result, **(given | settings))
    return result


def comparison_page(path: Path, advance: Advance = None) -> Path:
    comparison(path, advance=advance, notes=[HOSTILE], left_out=[(HOSTILE, "not an image & more")])
    return path


def ab_pairs(folder: Path, count: int = 6) -> list[ABPair]:
    """Pairs whose pictures tell, by red, which pair they are of, and by green, whether they are the first of it."""
    made = []
    for n in range(count):
        for side, green in (("a", 200), ("b", 50)):
            Image.new("RGB", (48, 40), (40 * n, green, 0)).save(folder / f"{n}{side}.png")
        made.append(ABPair(f"pair {n}", f"{n}a.png", folder / f"{n}b.png", HOSTILE if n == 3 else f"prompt {n}"))
    return made


def ab(path: Path, advance: Advance = None, *, seed: int = 0, count: int = 6) -> Path:
    write_ab_page(path, ab_pairs(path.parent, count), HOSTILE, HOSTILE, seed, folder=path.parent, advance=advance)
    return path


def flat(color: tuple[float, float, float]) -> Tensor:
    return torch.tensor(color)[:, None, None].expand(3, 40, 60)


def isp(path: Path, advance: Advance = None) -> Path:
    versions = [
        Version("default", flat((1, 0, 0)), {"score": "0.4", HOSTILE: "1"}, params(1)[0]),
        Version("policy", flat((0, 1, 0)), {"score": "0.6"}, params(1, exposure=0.75, hue=-4)[0]),
        Version("expert", flat((0, 0, 1)), {"score": "0.5"}),
    ]
    items = [Item(HOSTILE, versions, right="policy"), Item("b.dng", versions[:2])]
    table = "method  n\nadam <4>"
    write_compare_page(path, iter(items), title=HOSTILE, notes=[HOSTILE], table=table, advance=advance)
    return path


PAGES: dict[str, Callable[[Path, Advance], Path]] = {
    "report": lambda path, advance: report(path, advance=advance),
    "sections": sections,
    "comparison": comparison_page,
    "ab": ab,
    "isp": isp,
}
