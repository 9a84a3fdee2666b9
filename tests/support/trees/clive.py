"""Small folders in the official layouts, for loaders and for recipes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image, ImageFilter


def write_labels(root: Path, names: Sequence[str], mos: Sequence[float]) -> None:
    """CLIVE's two label files: names (N, 1), an object array of strings; scores (1, N)."""
    (root / "Data").mkdir(parents=True, exist_ok=True)
    cells = np.empty((len(names), 1), dtype=object)
    for index, name in enumerate(names):
        cells[index, 0] = np.array([name])
    scipy.io.savemat(root / "Data" / "AllImages_release.mat", {"AllImages_release": cells})
    scipy.io.savemat(root / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.array(mos)[None]})


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Random rectangles with noise."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((height, width, 3))
    pixels[:] = rng.integers(60, 200, 3)
    for _ in range(25):
        x, y = rng.integers(width), rng.integers(height)
        pixels[y : y + rng.integers(20, 150), x : x + rng.integers(20, 150)] = rng.integers(0, 255, 3)
    return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


def build(root: Path, count: int = 24, width: int = 400, height: int = 400) -> Path:
    """``ChallengeDB_release`` of ``count`` images, the seven training images absent; more blur has a lower MOS."""
    (root / "Images").mkdir(parents=True)
    names, mos = [f"t{i}.bmp" for i in range(1, 8)], [50.0] * 7
    for index in range(count):
        sigma = (index * 5 % count) / count * 6
        picture(index, width, height).filter(ImageFilter.GaussianBlur(sigma)).save(root / "Images" / f"{index}.jpg")
        names.append(f"{index}.jpg")
        mos.append(90 - 12 * sigma)
    write_labels(root, names, mos)
    return root


def build_photos(root: Path, count: int = 8, side: int = 512) -> Path:
    """Pristine photos named as the training recipe looks for them."""
    root.mkdir(parents=True)
    for index in range(count):
        picture(1000 + index, side, side).save(root / f"cid22_{index}.png")
    return root
