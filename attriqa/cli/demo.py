"""``attriqa demo``: a handful of photos, each also made worse in four ways, scored and shown on one page.

The photos are files that scikit-image ships inside its wheel; they are opened by path, so nothing is ever downloaded.
"""

import argparse
import functools
import statistics
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attriqa import __version__
from attriqa.cli import options
from attriqa.cli.options import CommandError, add_scorer, ending_in
from attriqa.pages.report import ReportRow, write_report

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from attriqa.reward import QualityReward

PHOTOS = {
    "astronaut": ("astronaut.png", (225, 120)),
    "cat": ("chelsea.png", (170, 130)),
    "coffee": ("coffee.png", (335, 205)),
    "rocket": ("rocket.jpg", (320, 350)),
    "motorcycle": ("motorcycle_left.png", (380, 290)),
    "cameraman": ("camera.png", (235, 120)),
}
"""Name -> file in scikit-image's data folder, and the (x, y) in pixels around which it is worth seeing at full size."""

VERSIONS = ("original", "blurred", "darkened", "noisy", "JPEG")
_ABOUT = "Photos that scikit-image ships, each as it is and made worse in four ways; shown are crops at full size."
Photos = dict[str, dict[str, ReportRow]]  # by photo and version
_CROP = (192, 128)  # width, height of the page's pictures: pixel for pixel, or blur and noise could not be seen
_SEED = 20260101


def add_parser(commands: Any) -> None:
    """Add the command to ``attriqa``."""
    parser = commands.add_parser(
        "demo",
        help="score a few photos, each also made worse, and write a page",
        description="Score photos that scikit-image ships, each also blurred, darkened, noised and JPEG-compressed.",
        allow_abbrev=False,
    )
    page = Path("attriqa-demo.html")
    parser.add_argument("--out", type=ending_in(".html"), default=page, metavar="F.html", help=f"the page [{page}]")
    add_scorer(parser)
    parser.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> int:
    if args.out.is_dir():
        raise CommandError(f"--out {args.out}: expected a file, found a folder")
    run(functools.partial(options.make_scorer, args), args.out, threads=args.threads)
    return 0


class DemoError(RuntimeError):
    """The demo's photos are not there, or one of them could not be scored."""


def photo_paths() -> dict[str, Path]:
    """The photos by name, without importing scikit-image.

    Raises:
        DemoError: scikit-image is not installed, or its photos are elsewhere in this release.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise DemoError('the demo scores photos that scikit-image ships; install it with: pip install "attriqa[eval]"')
    folder = Path(spec.origin).parent / "data"
    paths = {photo: folder / name for photo, (name, _) in PHOTOS.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise DemoError(f"this release of scikit-image does not ship {', '.join(missing)} in {folder}")
    return paths


def degrade(picture: "Image.Image", folder: Path, *, seed: int) -> dict[str, Path]:
    """Save worse versions of an RGB picture as files in ``folder``; the same seed gives the same files.

    Returns:
        version -> file: Gaussian blur (standard deviation 2.5 px), sRGB values times 0.3, Gaussian noise (standard
        deviation 0.1 of the range), JPEG quality 8.
    """
    import numpy as np
    from PIL import Image, ImageFilter

    noise = np.random.default_rng(seed).normal(0, 0.1 * 255, (picture.height, picture.width, 3))
    noisy = np.clip(np.asarray(picture, dtype=np.float64) + noise, 0, 255).round().astype(np.uint8)
    versions = {
        "blurred": picture.filter(ImageFilter.GaussianBlur(2.5)),
        "darkened": picture.point(lambda value: value * 0.3),
        "noisy": Image.fromarray(noisy),
    }
    paths = {version: folder / f"{version}.png" for version in versions} | {"JPEG": folder / "JPEG.jpg"}
    for version, worse in versions.items():
        worse.save(paths[version], compress_level=1)
    picture.save(paths["JPEG"], quality=8)
    return paths


def run(make_scorer: "Callable[[], QualityReward]", out: Path, *, threads: int | None = None) -> None:
    """Score every version of every photo, print a table and write the page.

    Args:
        make_scorer: called once the photos are known to be there.
        out: the HTML file to write.
        threads: decoding threads; ``None``: the scorer's choice.

    Raises:
        DemoError: see `photo_paths`; or a photo could not be scored.
    """
    from PIL import Image

    originals = photo_paths()
    scorer = make_scorer()
    print(f"scoring {len(originals)} photos, each as it is and made worse in {len(VERSIONS) - 1} ways", flush=True)
    with tempfile.TemporaryDirectory(prefix="attriqa-demo-") as folder:
        files: list[tuple[str, str, Path]] = []
        for number, (photo, path) in enumerate(originals.items()):
            (Path(folder) / photo).mkdir()
            with Image.open(path) as picture:
                worse = degrade(picture.convert("RGB"), Path(folder) / photo, seed=_SEED + number)
            files += [(photo, name, {"original": path, **worse}[name]) for name in VERSIONS]
        photos: Photos = {photo: {} for photo in originals}
        results = scorer.score_files([path for _, _, path in files], threads=threads)
        for (photo, version, path), result in zip(files, results, strict=True):
            if result.error is not None or result.score is None or result.attributes is None:
                raise DemoError(f"{photo}, {version}: {result.error}")
            crop = _crop(photo, path)
            photos[photo][version] = ReportRow(
                path, result.score, tuple(result.attributes), version, group=photo.capitalize(), image=crop
            )
        lead = f"{_ABOUT} {_print_table(photos)}"
        rows = [*_means(photos), *(row for versions in photos.values() for row in versions.values())]
        write_report(out, rows, title="attriqa demo", identity=scorer.identity, version=__version__, lead=lead)
    print(f"\nwrote {out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")


def _print_table(photos: Photos) -> str:
    """Print the scores, a photo per line, and how often the original wins; returns that last sentence."""
    print(f"\n{'score of':<12}" + "".join(f"{version:>10}" for version in VERSIONS))
    for photo, versions in photos.items():
        print(f"{photo:<12}" + "".join(f"{versions[version].score:>10.3f}" for version in VERSIONS))
    pairs = [(photo, worse) for photo in photos for worse in VERSIONS[1:]]
    lost = [" ".join(pair) for pair in pairs if not photos[pair[0]]["original"].score > photos[pair[0]][pair[1]].score]
    sentence = f"The original scores higher in {len(pairs) - len(lost)} of {len(pairs)} pairs"
    sentence += f"; not against {', '.join(lost)}." if lost else "."
    print(f"\n{sentence}")
    return sentence


def _means(photos: Photos) -> list[ReportRow]:
    """A row per version: the means over the photos."""
    rows = []
    for version in VERSIONS:
        values = [(versions[version].score, *versions[version].attributes) for versions in photos.values()]
        score, *attributes = map(statistics.fmean, zip(*values, strict=True))
        rows.append(ReportRow("", score, tuple(attributes), version, group=f"Mean of the {len(photos)} photos"))
    return rows


def _crop(photo: str, path: Path) -> "Tensor":
    """What the page shows of a picture, pixel for pixel: ``(3,H,W)`` in [0,1]."""
    from attriqa import images

    (x, y), (width, height) = PHOTOS[photo][1], _CROP
    left, top = x - width // 2, y - height // 2
    return images.read(path)[:, top : top + height, left : left + width]
