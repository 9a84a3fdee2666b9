"""Why an image got its score, in words, and where it lost it, as a map."""

from attriqa.explain.saliency import find_output, overlay, saliency
from attriqa.explain.words import NOTHING, why

__all__ = ["NOTHING", "find_output", "overlay", "saliency", "why"]
