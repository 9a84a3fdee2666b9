"""Stands in for training/finetune.py: its flags, its folders, its resuming by fold; the numbers are made up.

FAKE_FAIL names a fold (``full/clive/split1``) that fails; FAKE_SLEEP one that hangs. Each fold it works on is a line in
``folds.txt`` above the benchmark's folders, and its flags are in ``flags.json`` beside the results.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

TITLES = {"clive": "CLIVE", "koniq": "KonIQ-10k", "flive": "FLIVE", "csv": "scores"}  # Dataset.name, as in the true one
STATISTICS = ("srocc", "plcc", "plcc_fitted", "krocc", "rmse")


def number(*parts: str) -> float:
    """Between 0.3 and 0.9, the same for the same words."""
    return 0.3 + sum(map(ord, "".join(parts))) * 37 % 601 / 1000


def block(*parts: str) -> dict[str, float]:
    values: dict[str, float] = {"n": 20}
    for name in STATISTICS:
        middle = number(*parts, name)
        values |= {name: middle, f"{name}_low": middle - 0.05, f"{name}_high": middle + 0.05}
    return values


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in ("data", "out", "protocol", "splits", "fraction", "mode", "seed", "init"):
        parser.add_argument(f"--{flag}")
    parser.add_argument("--test", nargs="+", default=[])
    parser.add_argument("--smoke", action="store_true")
    flags = parser.parse_args()
    out = Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "flags.json").write_text(json.dumps(vars(flags)))
    names = ["official"] if flags.protocol == "official" else [f"split{i}" for i in range(int(flags.splits))]
    folds: list[dict[str, Any]] = []
    for name in names:
        path, key = out / name / "metrics.json", f"{out.parent.name}/{out.name}/{name}"
        if not path.exists():
            with (out.parent.parent / "folds.txt").open("a") as file:
                file.write(f"{key}\n")
            if os.environ.get("FAKE_FAIL") == key:
                raise SystemExit(f"the loss is nan in {key}")
            if os.environ.get("FAKE_SLEEP") == key:
                time.sleep(60)
            path.parent.mkdir(parents=True, exist_ok=True)
            cross = {TITLES[spec.partition("=")[0]]: block(key, spec.partition("=")[0]) for spec in flags.test}
            fold = {"fold": name, "n_train": 80, "five_crop": block(key), "full": block(key, "full"), "cross": cross}
            path.write_text(json.dumps(fold | {"feature_cosine": number(key, "cosine")}))
        folds.append(json.loads(path.read_text()))
    (out / "metrics.json").write_text(json.dumps({"folds": [{"fold": "all", "n_train": 100}, *folds]}))
    print(f"{len(folds)} folds")  # for the log


if __name__ == "__main__":
    main()
