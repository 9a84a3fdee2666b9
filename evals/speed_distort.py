"""Moved to evals/speed/distortions.py; this name goes with the next version."""

import runpy
import warnings

if __name__ == "__main__":
    warnings.warn("evals/speed_distort.py is now evals/speed/distortions.py", DeprecationWarning, stacklevel=1)
    runpy.run_path(__file__.removesuffix("_distort.py") + "/distortions.py", run_name="__main__")
