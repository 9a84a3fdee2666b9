"""The five quality attributes and the antonym prompts that stand for them, as plain data."""

import hashlib
import json
from collections.abc import Mapping

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
