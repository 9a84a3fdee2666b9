"""Moved to evals/speed/training.py; this name goes with the next version."""

import runpy
import warnings

if __name__ == "__main__":
    warnings.warn("evals/speed_training.py is now evals/speed/training.py", DeprecationWarning, stacklevel=1)
    runpy.run_path(__file__.removesuffix("_training.py") + "/training.py", run_name="__main__")
