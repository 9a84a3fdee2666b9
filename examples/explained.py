"""Photos with a defect in one half, and what the model makes of them: what, how much, and where.

    python examples/explained.py docs/three_explained.jpg
    python examples/explained.py docs/explained.jpg one

The photos are scikit-image's. Each row: the photo, the map of its score, the map of the distortion that was applied;
``one``: a single row without words, and in place of the distortion the sharpness that it takes.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from attriqa import QualityReward
from attriqa.cli.demo import photo_paths
from attriqa.distortions import distort_seeded
from attriqa.explain import overlay, saliency, why
from attriqa.images import read

THREE = (("astronaut", "jpeg", "left"), ("coffee", "white_noise", "right"), ("cat", "gaussian_blur", "left"))
ONE = (("astronaut", "gaussian_blur", "left"),)
LEVEL, TEXT = 5, 34  # KADID-10k's worst; px of the line below a row

if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["one"]):
    sys.exit(f"usage: {sys.argv[0]} OUT.jpg [one]")
one = len(sys.argv) == 3
edge, text = (384, 0) if one else (300, TEXT)  # px of a photo's shorter side, of the line below it
reward = QualityReward(view="full")
paths = photo_paths()
rows: list[Image.Image] = []
for name, key, side in ONE if one else THREE:
    photo = read(paths[name], shorter_edge=edge)[None]
    half = photo.shape[3] // 2
    spoilt = distort_seeded(photo, key, LEVEL, [0])
    place = slice(0, half) if side == "left" else slice(half, None)
    photo[..., place] = spoilt[..., place]
    assessment = reward.assess(photo)
    assert assessment.attributes is not None
    assert assessment.distortions is not None
    words = why(assessment.attributes[0].tolist(), assessment.distortions[0].tolist())
    shown = "sharpness" if one else key
    maps = [overlay(photo[0], saliency(reward.model, photo, of)[0]) for of in ("score", shown)]
    plain = (photo[0].permute(1, 2, 0) * 255).round().byte().numpy()
    pictures = [Image.fromarray(pixels) for pixels in (plain, *maps)]
    width, height = pictures[0].size
    row = Image.new("RGB", (3 * width, height + text), "white")
    for column, picture in enumerate(pictures):
        row.paste(picture, (column * width, 0))
    result = f"score {assessment.score.item():.2f}; {words}"
    line = f"{key} in the {side} half: {result} | where the score is lost | where it sees {shown}"
    if text:
        ImageDraw.Draw(row).text((8, height + 7), line, fill="black", font_size=17)
    rows.append(row)
    print(line)
sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
for number, row in enumerate(rows):
    sheet.paste(row, (0, sum(above.height for above in rows[:number])))
sheet.save(Path(sys.argv[1]), quality=85)
