"""The reward on three photos: scores, the reasons, and a gradient to every pixel.

python examples/reward.py
"""

import torch
from skimage import data

from attriqa import ATTRIBUTES, QualityReward

photos = {"astronaut": data.astronaut(), "chelsea": data.chelsea(), "coffee": data.coffee()}
pixels = [torch.from_numpy(photo[:300, :400].copy()).permute(2, 0, 1) for photo in photos.values()]  # bytes (3, H, W)
images = (torch.stack(pixels) / 255).requires_grad_()  # (B, 3, H, W), sRGB in [0, 1]

reward = QualityReward()
rewards = reward(images)  # (B,), higher is better
(-rewards.mean()).backward()  # a loss to minimise

with torch.no_grad():
    assessment = reward.assess(images)
gradients = images.grad if images.grad is not None else torch.zeros_like(images)
for row, name in enumerate(photos):
    reasons = ", ".join(f"{attribute} {assessment.attribute(attribute)[row]:.2f}" for attribute in ATTRIBUTES)
    print(f"{name}: reward {rewards[row].item():.3f} ({reasons}), gradient norm {gradients[row].norm().item():.2e}")
