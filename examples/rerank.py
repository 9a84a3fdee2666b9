"""The best of eight pictures that Stable Diffusion draws for a prompt.

python examples/rerank.py MODEL "PROMPT" OUT.png
"""

import sys

from diffusers import StableDiffusionPipeline

from attriqa import QualityReward
from attriqa.reward import best_of_n

if len(sys.argv) != 4:
    raise SystemExit(__doc__)
model, prompt, out = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(model, use_safetensors=True)
images = pipeline(prompt, num_images_per_prompt=8).images
ranking = best_of_n(QualityReward(), images, n=8)
images[ranking.best].save(out)
print("rewards", *(f"{score:.4f}" for score in ranking.scores[0]), "kept", ranking.best.item())
