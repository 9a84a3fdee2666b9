"""Small sources of images whose distortions are known, for ExIQA."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from tests.support.trees import clive as clive_tree

# KADID's numbers of three types that are easily told apart, with an imitation of each that needs no code of ours.
TYPES = {1: "gaussian_blur", 11: "white_noise", 17: "darken"}


def photos(root: Path, count: int, *, side: int = 64, name: str = "pristine") -> Path:
    """``root`` with ``count`` more pictures, ``NAME_0.png``, ..."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        seed = sum(map(ord, name)) * 1000 + number
        clive_tree.picture(seed, side, side).save(root / f"{name}_{number}.png")
    return root


def kadid(root: Path, references: int = 5, *, side: int = 48, types: Sequence[int] = tuple(TYPES)) -> Path:
    """KADID-10k's layout: references x types x five levels; a higher level has a lower score."""
    (root / "images").mkdir(parents=True)
    lines = ["dist_img,ref_img,dmos,var"]
    for reference in range(1, references + 1):
        picture = clive_tree.picture(reference, side, side)
        picture.save(root / "images" / f"I{reference:02d}.png")
        for kind in types:
            for level in range(1, 6):
                name = f"I{reference:02d}_{kind:02d}_{level:02d}.png"
                _distorted(picture, kind, level).save(root / "images" / name)
                lines.append(f"{name},I{reference:02d}.png,{5 - 0.7 * level - 0.02 * reference:.2f},0.5")
    (root / "dmos.csv").write_text("\n".join(lines) + "\n")
    return root


def csiq(root: Path, references: int = 5, *, side: int = 48) -> Path:
    """CSIQ's layout, with two of its types."""
    lines = []
    for reference in range(references):
        picture = clive_tree.picture(50 + reference, side, side)
        for folder in ("src_imgs", "dst_imgs/AWGN", "dst_imgs/BLUR"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        picture.save(root / "src_imgs" / f"scene{reference}.png")
        for kind, number in (("AWGN", 11), ("BLUR", 1)):
            for level in range(1, 6):
                name = f"scene{reference}.{kind}.{level}.png"
                _distorted(picture, number, level).save(root / "dst_imgs" / kind / name)
                lines.append(f"{name} {0.15 * level + 0.01 * reference:.2f}")
    (root / "csiq_label.txt").write_text("\n".join(lines) + "\n")
    return root


def _distorted(picture: Image.Image, kind: int, level: int) -> Image.Image:
    if kind == 1:
        return picture.filter(ImageFilter.GaussianBlur(0.6 * level))
    if kind == 17:
        return ImageEnhance.Brightness(picture).enhance(1 - 0.16 * level)
    noise = np.random.default_rng(level).normal(0, 10 * level, (*picture.size[::-1], 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
