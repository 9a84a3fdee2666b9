"""The five quality attributes and the antonym prompts that stand for them, as plain data."""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

ATTRIBUTES = ("sharpness", "contrast", "brightness", "colorfulness", "noisiness")
"""The order of every ``(B, 5)`` tensor of attributes. Noisiness is high for a clean image."""

TEMPLATE = "{} image"

PROMPT_PAIRS: dict[str, tuple[str, str]] = {
    "sharpness": ("Splendid", "Blurry"),
    "contrast": ("Distinct", "Vague"),
    "brightness": ("Sunny", "Darkened"),
    "colorfulness": ("Vibrant", "Colorless"),
    "noisiness": ("Peerless", "Grainy"),
}
"""Attribute -> (positive, negative) adjective, to be set into `TEMPLATE`: the pairs that ATTIQA selected."""


class Candidates(NamedTuple):
    """The adjectives that `training/select_prompts.py` pairs: any positive one with any negative one."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


CANDIDATES = {
    name: Candidates(*(tuple(map(str.capitalize, words[side].split())) for side in Candidates._fields))
    for name, words in tomllib.loads(Path(__file__).with_name("candidates.toml").read_text(encoding="utf-8")).items()
}
"""Attribute -> its candidates. Each positive word says more of the attribute (noisiness: cleaner) than each negative
one; no word stands twice within an attribute. The pairs of `PROMPT_PAIRS` are among them."""


def prompt_texts(pairs: Mapping[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """The full (positive, negative) texts in the order of ``pairs``: ``("Splendid image", "Blurry image")``, ..."""
    return [(TEMPLATE.format(positive), TEMPLATE.format(negative)) for positive, negative in pairs.values()]


def table_hash(pairs: Mapping[str, tuple[str, str]]) -> str:
    """SHA-256 (64 hexadecimal digits) of a prompt table: names, full texts and their order.

    A checkpoint keeps the hash of the table that its pseudo-labels or text features came from; another table means
    other attributes.
    """
    table = [[name, *texts] for name, texts in zip(pairs, prompt_texts(pairs), strict=True)]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def read_pairs(path: str | Path, choice: Literal["best", "median", "worst"] = "best") -> dict[str, tuple[str, str]]:
    """The prompt pairs that a run of ``training/select_prompts.py`` selected.

    Args:
        path: its ``prompts.json``: ``{"template": ..., "attributes": {name: {"best": {"positive": ..., "negative":
            ...}, "median": ..., "worst": ...}}}``.
        choice: the pair of the highest, the median or the lowest score; the last two are ATTIQA's ablation.

    Returns:
        Attribute -> (positive, negative) adjective, in the order of `ATTRIBUTES`.

    Raises:
        ValueError: the file is something else, or its adjectives were scored in another template than `TEMPLATE`.
        OSError: it cannot be read.
    """
    try:
        table: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        template = table["template"]
        chosen = {name: table["attributes"][name][choice] for name in ATTRIBUTES}
        pairs = {name: (pair["positive"], pair["negative"]) for name, pair in chosen.items()}
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: expected the prompts.json of training/select_prompts.py, got {reason}") from error
    if template != TEMPLATE:
        raise ValueError(f"{path}: expected adjectives for the template {TEMPLATE!r}, got {template!r}")
    for name, pair in pairs.items():
        if not all(isinstance(word, str) and word for word in pair):
            raise ValueError(f"{path}: {name}: expected two adjectives, got {pair}")
    return pairs
