"""Measuring speed and memory on a noisy machine: tasks in turn, ratios within a round, peaks in new processes."""

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from attriqa.evaluation.text_tables import markdown
from attriqa.files import as_dict, write_json
from attriqa.images import find, read

Numbers = dict[str, float]
Targets = Mapping[str, tuple[str, float]]
"""``PART.NAME`` -> a sign, ``">="`` or ``"<="``, and a number."""


def measure_parts(
    config: Any,
    parts: Mapping[str, Callable[[], Mapping[str, Any]]],
    targets: Targets,
    **about: Any,
) -> None:
    """Measure one part after the other; each is printed as a table, and all of it written, as soon as it is there.

    Args:
        config: of the recipe, with ``threads``, of torch, and ``out``, where ``config.json`` and ``metrics.json`` go.
        parts: what measures, by the name of its table; it gives numbers, or rows of them by name.
        targets: what the numbers are to reach.
        about: what the numbers depend on besides the machine; all of it is printed first.
    """
    torch.set_num_threads(config.threads)
    record = machine() | about
    print(", ".join(f"{name} {value}" for name, value in record.items()))
    write_json(config.out / "config.json", as_dict(config))
    for part, measure in parts.items():
        record[part] = measure()
        write_json(config.out / "metrics.json", record)
        print_table(part, record[part], targets)


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


def per_second(count: float, seconds: Sequence[float]) -> float:
    """How many a second, in the median round."""
    return count / statistics.median(seconds)


def ratios(name: str, top: Sequence[float], bottom: Sequence[float]) -> Numbers:
    """Median, least and greatest of the rounds' ratios: a machine that slows down for a while slows both sides."""
    values = [a / b for a, b in zip(top, bottom, strict=True)]
    return {name: statistics.median(values), f"{name}_low": min(values), f"{name}_high": max(values)}


def print_table(part: str, numbers: Mapping[str, Any], targets: Targets) -> None:
    """A table in Markdown: a number per row with its target; or, of numbers by name, a name per row."""
    rows: list[list[str]] = []
    heads, align = [part, "", "target", ""], "lrrl"
    for name, value in numbers.items():
        if isinstance(value, dict):
            heads, align = [part.removesuffix("s"), *value], ""
            rows.append([name, *(f"{number:.4g}" for number in value.values())])
            continue
        sign, target = targets.get(f"{part}.{name}", ("", 0.0))
        met = value >= target if sign == ">=" else value <= target
        rows.append([name, f"{value:.4g}", *((f"{sign} {target:g}", "met" if met else "missed") if sign else ("", ""))])
    print("\n" + markdown(heads, rows, align), flush=True)


def load_photos(folder: Path | None, most: int, *, shorter_edge: int | None = None) -> list[Tensor]:
    """Up to so many photos of a folder, ``(3, H, W)``; without a folder, three that scikit-image ships.

    Raises:
        OSError: there is no such folder.
        ValueError: it holds no image, or one that cannot be read.
    """
    if folder is None:
        from skimage import data

        shipped = (data.astronaut(), data.chelsea(), data.coffee())
        return [torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255 for photo in shipped]
    return [read(path, shorter_edge=shorter_edge) for path in photo_files(folder)[:most]]


def photo_files(folder: Path) -> list[Path]:
    """The image files of a folder. Errors as those of `load_photos`."""
    paths = find(folder)
    if not paths:
        raise ValueError(f"no images in {folder}")
    return paths


def ascend(task: Callable[[Tensor], Tensor], given: Tensor) -> None:
    """Forward, and backward to what is given."""
    task(given.detach().requires_grad_()).sum().backward()


def in_new_process(function: Callable[..., float], *arguments: object) -> float:
    """Call a module's function in a process that has imported the module and done nothing else.

    What earlier work left in the allocator would be used again unseen by a measure of memory.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_mib(task: Callable[[], object], device: str = "cpu") -> float:
    """What a task takes at its highest, in MiB above what was there before it: a GPU's tensors, or resident memory.

    Raises:
        OSError: the system does not let a process reset its peak.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        task()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # memory that glibc holds back for later would be used unseen
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is that from now on
    except OSError as error:
        raise OSError(f"memory: needs Linux, where a process can reset its peak ({error})") from error
    before = _resident_mib("VmRSS")
    task()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    """Resident memory of this process, now (VmRSS) or at its highest (VmHWM; unlike ru_maxrss not the parent's)."""
    return int(Path("/proc/self/status").read_text(encoding="utf-8").partition(f"{field}:")[2].split()[0]) / 1024
