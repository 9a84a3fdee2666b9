"""Moved to evals/speed/generators.py; this name goes with the next version."""

import runpy
import warnings

if __name__ == "__main__":
    warnings.warn("evals/speed_generators.py is now evals/speed/generators.py", DeprecationWarning, stacklevel=1)
    runpy.run_path(__file__.removesuffix("_generators.py") + "/generators.py", run_name="__main__")
