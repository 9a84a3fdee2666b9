"""Moved to evals/speed/training.py; this name goes with the next version."""

import runpy
import warnings
from pathlib import Path

if __name__ == "__main__":
    warnings.warn("evals/speed_training.py is now evals/speed/training.py", DeprecationWarning, stacklevel=1)
    runpy.run_path(str(Path(__file__).with_name("speed") / "training.py"), run_name="__main__")
