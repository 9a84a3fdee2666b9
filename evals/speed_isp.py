"""Moved to evals/speed/isp.py; this name goes with the next version."""

import runpy
import warnings

if __name__ == "__main__":
    warnings.warn("evals/speed_isp.py is now evals/speed/isp.py", DeprecationWarning, stacklevel=1)
    runpy.run_path(__file__.removesuffix("_isp.py") + "/isp.py", run_name="__main__")
