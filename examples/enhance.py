"""Tune exposure, contrast, saturation and a tone curve of a photo by gradient ascent on the reward.

    python examples/enhance.py PHOTO [OUT.png]

Writes before and after, side by side. A no-reference reward can be fooled, so the edits are bounded and few.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from attriqa import ATTRIBUTES, QualityReward
from attriqa.images import read, resize_shorter

LIMITS = torch.tensor([1.0, 0.3, 0.4, 0.05, 0.05, 0.05])  # stops, two log gains, three heights of the curve
STEPS = 30


def develop(images: Tensor, knobs: Tensor) -> Tensor:
    """Apply the edits that ``knobs (6,)`` stand for, each bounded by `LIMITS`, to ``images (B, 3, H, W)``."""
    exposure, contrast, saturation, *curve = LIMITS * torch.tanh(knobs)
    x = (images.clamp(min=1e-3) ** 2.2 * 2**exposure) ** (1 / 2.2)  # light is (about) sRGB to the power of 2.2
    x = 0.5 + (x - 0.5) * contrast.exp()
    gray = x.mean(1, keepdim=True)
    x = (gray + (x - gray) * saturation.exp()).clamp(0, 1)
    for k, height in enumerate(curve, start=1):
        x = x + height * torch.sin(k * torch.pi * x)  # black stays black, white stays white
    return torch.clamp(x, 0, 1)


def show(title: str, reward: QualityReward, images: Tensor) -> None:
    """Print the score and the attributes of one image."""
    assessment = reward.assess(images)
    values = ", ".join(f"{name} {assessment.attribute(name).item():.3f}" for name in ATTRIBUTES)
    print(f"{title}: score {assessment.score.item():.4f} ({values})")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("photo", type=Path)
parser.add_argument("out", type=Path, nargs="?", default=Path("enhanced.png"), metavar="OUT.png")
args = parser.parse_args()
if args.out.resolve() == args.photo.resolve():
    parser.error(f"OUT: {args.out} is the photo itself")

photo = read(args.photo)[None]
small = resize_shorter(photo, 384)  # the edits are the same for every pixel, so a small copy tells what they do
reward = QualityReward()
knobs = torch.zeros(6, requires_grad=True)
optimizer = torch.optim.Adam([knobs], lr=0.1)
for _ in range(STEPS):
    optimizer.zero_grad()
    (-reward(develop(small, knobs)).mean()).backward()
    optimizer.step()

with torch.no_grad():
    after = develop(photo, knobs)
    show("before", reward, photo)
    show("after", reward, after)
pair = torch.cat([photo, after], dim=3)[0].mul(255).round().byte()  # (3, H, 2W)
Image.fromarray(pair.permute(1, 2, 0).numpy()).save(args.out, format="PNG")
print(f"wrote {args.out}: before, after")
