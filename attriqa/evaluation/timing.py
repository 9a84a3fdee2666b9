"""Timing that survives a noisy machine: tasks in turn, and ratios within a round."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

Numbers = dict[str, float]


def machine() -> dict[str, Any]:
    """What timings depend on besides the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.machine()
    about = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    return about | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def interleave(tasks: Mapping[str, Callable[[], object]], rounds: int, title: str) -> dict[str, list[float]]:
    """Seconds of each task in each round, after one round that does not count; a GPU's queued work is waited for."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in tqdm(range(rounds + 1), desc=title, unit="round", leave=False, disable=None):
        for name, task in tasks.items():
            _wait()
            started = time.perf_counter()
            task()
            _wait()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratios(name: str, top: Sequence[float], bottom: Sequence[float]) -> Numbers:
    """Median, least and greatest of the rounds' ratios: a machine that slows down for a while slows both sides."""
    values = [a / b for a, b in zip(top, bottom, strict=True)]
    return {name: statistics.median(values), f"{name}_low": min(values), f"{name}_high": max(values)}


def print_table(part: str, numbers: Numbers, targets: Mapping[str, tuple[str, float]]) -> None:
    """A table in Markdown; ``targets`` maps ``PART.NAME`` to a sign, ``">="`` or ``"<="``, and a number."""
    print(f"\n| {part} | | target | |\n|---|---:|---:|---|")
    for name, value in numbers.items():
        sign, target = targets.get(f"{part}.{name}", ("", 0.0))
        wanted = f"{sign} {target:g}" if sign else ""
        verdict = ("met" if (value >= target if sign == ">=" else value <= target) else "missed") if sign else ""
        print(f"| {name} | {value:.4g} | {wanted} | {verdict} |", flush=True)
