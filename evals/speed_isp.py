"""Moved to evals/speed/isp.py; this name goes with the next version."""

import runpy
import warnings
from pathlib import Path

if __name__ == "__main__":
    warnings.warn("evals/speed_isp.py is now evals/speed/isp.py", DeprecationWarning, stacklevel=1)
    runpy.run_path(str(Path(__file__).with_name("speed") / "isp.py"), run_name="__main__")
