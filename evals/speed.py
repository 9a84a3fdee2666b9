"""Moved to evals/speed/score.py; this name goes with the next version."""

import runpy
import warnings

if __name__ == "__main__":
    warnings.warn("evals/speed.py is now evals/speed/score.py", DeprecationWarning, stacklevel=1)
    runpy.run_path(__file__.removesuffix(".py") + "/score.py", run_name="__main__")
