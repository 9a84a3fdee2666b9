"""Tensors that are computed once and kept in files: a killed run goes on with what is there."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from attriqa.files import atomic_path

PART = 16  # items of `in_parts` whose tensors go into one file: what a killed search loses at most


def keep(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a file holds, on the CPU; unless it is there, it is made, and written whole or not at all."""
    if not path.exists():
        made = make()
        with atomic_path(path) as temporary:
            save_file(made, temporary)
    return load_file(path)


def in_parts(
    folder: Path,
    title: str,
    items: Sequence[Any],
    find: Callable[[Any, np.random.Generator], dict[str, Tensor]],
    seed: int,
) -> dict[str, Tensor]:
    """What a search finds of some items, a part of them at a time, each kept in a file.

    Args:
        folder: of the files.
        title: of the search, in their names, on the progress bar and in the draws.
        items: what is searched.
        find: maps some of them and a generator to tensors, along whose first dimension parts are joined.
        seed: of the draws.
    """
    parts = []
    for first in tqdm(range(0, len(items), PART), title, leave=False):
        rng = np.random.default_rng([seed, *title.encode(), first])
        parts.append(keep(folder / f"{title}-{first:05d}.safetensors", partial(find, items[first : first + PART], rng)))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
