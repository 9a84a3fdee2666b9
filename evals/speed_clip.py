"""Moved to evals/speed/clip.py; this name goes with the next version."""

import runpy
import warnings

if __name__ == "__main__":
    warnings.warn("evals/speed_clip.py is now evals/speed/clip.py", DeprecationWarning, stacklevel=1)
    runpy.run_path(__file__.removesuffix("_clip.py") + "/clip.py", run_name="__main__")
