"""One photo under every distortion at every level, to be looked at."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attriqa.distortions import DISTORTIONS, Finalize, LevelOrder, distort_seeded

_MARGIN = 8  # px between pictures
_LABEL = 20  # px above each, for its name


def contact_sheet(
    image: Tensor,
    among: Sequence[int],
    seed: int,
    *,
    level_order: LevelOrder = "kadid",
    finalize: Finalize = "clip",
) -> Image.Image:
    """Draw the sheet: the pristine photo, then a row per distortion with its five levels, each labelled.

    Args:
        image: ``(3, H, W)`` in [0, 1]; wide enough for a label (at least 190 px), as large as the distortions ask for.
        among: indices in `attriqa.distortions.DISTORTIONS`, a row each.
        seed: of what is random in them; the levels of a distortion share it.
        level_order: what a level means, as in `attriqa.distortions.distort`.
        finalize: what ends a distortion, as there.

    Returns:
        An RGB picture, every photo in its own pixels.
    """
    font = ImageFont.load_default(12)
    height, width = image.shape[1] + _LABEL, image.shape[2] + _MARGIN
    sheet = Image.new("RGB", (5 * width + _MARGIN, (len(among) + 1) * height + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)

    def place(row: int, column: int, picture: Tensor, label: str) -> None:
        left, top = _MARGIN + column * width, row * height
        draw.text((left, top + 3), label, fill="black", font=font)
        pixels = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        sheet.paste(Image.fromarray(pixels), (left, top + _LABEL))

    place(0, 0, image, "pristine")
    five = image.expand(5, -1, -1, -1).contiguous()
    for row, index in enumerate(among, 1):
        entry = DISTORTIONS[index]
        results = distort_seeded(
            five, entry.key, torch.arange(1, 6), [seed] * 5, level_order=level_order, finalize=finalize
        )
        for column, result in enumerate(results):
            place(row, column, result, f"{entry.number} {entry.key}, {column + 1}")
    return sheet
