"""What distortions look like, in words: five attributes of each of the 25, as texts for a CLIP; tables of one's own.

Source: ExIQA, "Explainable Image Quality Assessment Using Distortion Attributes", the section on distortion attributes.
The paper had GPT-3 write the attributes and prints those of one distortion alone: the table here is our own.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attriqa.distortions.classes import CSIQ_TYPES, KADID_KEYS, LIVE_TYPES, TID2013_TYPES

POSITIVE = "There is {} in the photo."
NEGATIVE = "There is not {} in the photo."  # the paper's wording, kept to the letter

_SENTENCE = re.compile(
    r"^(?:there\s+(?:is|are)\s+)?(.*?)(?:\s+in\s+the\s+(?:photo|image|picture))?\s*\.?$", re.I | re.S
)
_NUMBERED = re.compile(r"^\s*(\d+)\s*[-.):]\s*(.+?)\s*$")
_FIELDS = ("key", "name", "explanation", "attributes")


@dataclass(frozen=True)
class DistortionAttributes:
    """A distortion in words."""

    key: str  # as in `attriqa.distortions.DISTORTION_KEYS`, or of one's own
    name: str  # for people
    explanation: str  # how it is applied, one clause
    attributes: tuple[str, ...]  # what it looks like: noun phrases, to be set into `POSITIVE` and `NEGATIVE`


def sentences(attributes: Iterable[str]) -> tuple[list[str], list[str]]:
    """The positive and the negative text of each attribute, in the paper's templates `POSITIVE` and `NEGATIVE`.

    Args:
        attributes: noun phrases (``"a softening of details"``), or full sentences (``"There is a softening of details
            in the photo."``), of which the phrase is taken.

    Returns:
        ``(positives, negatives)``, as many as attributes each.

    Raises:
        ValueError: an attribute without words.
    """
    phrases = [_phrase(text) for text in attributes]
    return [POSITIVE.format(phrase) for phrase in phrases], [NEGATIVE.format(phrase) for phrase in phrases]


def _phrase(text: str) -> str:
    match = _SENTENCE.match(" ".join(text.split()))
    phrase = match[1] if match else ""
    if not phrase:
        raise ValueError(f"attributes: expected a noun phrase, got {text!r}")
    return phrase


def llm_query(name: str, explanation: str, count: int = 5) -> str:
    """What to ask a large language model for the attributes of a distortion; `parse_answer` reads the answer.

    Args:
        name: of the distortion.
        explanation: how it is applied, one clause.
        count: attributes to ask for, 1 to 7.

    Raises:
        ValueError: another ``count``.
    """
    example = (
        "dark corners and edges",
        "a gradual loss of light toward the frame",
        "a bright center like a spotlight",
        "a tunnel-like view",
        "uneven illumination of a plain background",
        "murky color near the borders",
        "an old-fashioned toy-camera look",
    )
    if not 1 <= count <= len(example):
        raise ValueError(f"count: expected 1 to {len(example)}, got {count}")
    listed = "\n".join(f"{number}- {phrase}" for number, phrase in enumerate(example[:count], 1))
    return (
        f"You know how image distortions look. Write {count} visual attributes that a person who sees a distorted "
        "photo could point at.\n"
        f'Each is a short noun phrase that fits into "{POSITIVE.format("...")}", says something different, describes '
        "the visible effect and not the method, and would be wrong for a pristine photo.\n"
        f"Answer with {count} numbered lines and nothing else.\n\n"
        f"Distortion: Vignetting: brightness falls from the center to the corners.\n{listed}\n\n"
        f"Distortion: {name.strip()}: {explanation.strip().rstrip('.')}.\n"
    )


def parse_answer(text: str, count: int = 5) -> tuple[str, ...]:
    """The attributes in a language model's answer to `llm_query`.

    Args:
        text: lines ``1- ...``, ``1. ...``, ``1) ...`` or ``1: ...``, numbered from 1; other lines are passed over.
        count: attributes that were asked for.

    Returns:
        Noun phrases; full sentences in the template are stripped of it.

    Raises:
        ValueError: more, fewer or otherwise numbered lines than ``count``, or one attribute twice.
    """
    lines = [match for line in text.replace("*", "").splitlines() if (match := _NUMBERED.match(line))]
    numbers = [int(match[1]) for match in lines]
    if numbers != list(range(1, count + 1)):
        raise ValueError(f"text: expected lines numbered 1 to {count}, got {numbers or 'none'} in {text[:80]!r}")
    phrases = tuple(_phrase(match[2].strip(" \"'")) for match in lines)
    if repeated := _repeated(phrases):
        raise ValueError(f"text: expected {count} different attributes, got {repeated!r} twice")
    return phrases


def read_table(path: Path | str) -> tuple[DistortionAttributes, ...]:
    """A table of one's own: for distortions beyond the 25, or for another set of them.

    Args:
        path: a TOML file with one ``[[distortion]]`` per distortion: ``key``, ``name``, ``explanation`` and
            ``attributes``, a list of phrases or sentences, equally many in each.

    Raises:
        ValueError: the file is no such table; file, entry and field are named.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML, or of UTF-8
        raise ValueError(f"{path}: expected a TOML file ({error})") from error
    entries = content.get("distortion")
    if set(content) != {"distortion"} or not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{path}: expected one [[distortion]] or more and nothing else, got {sorted(content) or 'none'}"
        )
    table = tuple(_read_entry(f"{path}: distortion {number}", entry) for number, entry in enumerate(entries, 1))
    try:
        check_table(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return table


def _read_entry(where: str, entry: Any) -> DistortionAttributes:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a table [[distortion]], got {entry!r}")  # noqa: TRY004
    where += f" ({entry['key']})" if isinstance(entry.get("key"), str) else ""
    if set(entry) != set(_FIELDS):
        raise ValueError(f"{where}: expected the fields {', '.join(_FIELDS)}, got {', '.join(sorted(entry)) or 'none'}")
    for field in _FIELDS[:3]:
        if not isinstance(entry[field], str) or not entry[field].strip():
            raise ValueError(f"{where}, {field}: expected a text, got {entry[field]!r}")
    attributes = entry["attributes"]
    if not isinstance(attributes, list) or not attributes or not all(isinstance(text, str) for text in attributes):
        raise ValueError(f"{where}, attributes: expected a list of texts, got {attributes!r}")
    try:
        phrases = tuple(_phrase(text) for text in attributes)
    except ValueError as error:
        raise ValueError(f"{where}, {error}") from error
    return DistortionAttributes(entry["key"], entry["name"], entry["explanation"], phrases)


def check_table(table: Sequence[DistortionAttributes]) -> None:
    """Refuse a table that no model can be built from.

    Raises:
        ValueError: it is empty, a key or an attribute stands twice, or the numbers of attributes differ.
    """
    if not table or not table[0].attributes:
        raise ValueError("table: expected one distortion or more with attributes, got none")
    if repeated := _repeated([entry.key for entry in table]):
        raise ValueError(f"key: expected a different one for each distortion, got {repeated!r} twice")
    count = len(table[0].attributes)
    for entry in table:
        if len(entry.attributes) != count:
            raise ValueError(
                f"{entry.key}, attributes: expected {count}, as {table[0].key} has, got {len(entry.attributes)}"
            )
    if repeated := _repeated([_phrase(text).casefold() for entry in table for text in entry.attributes]):
        owners = [entry.key for entry in table for text in entry.attributes if _phrase(text).casefold() == repeated]
        raise ValueError(f"attributes: expected each once in the table, got {repeated!r} in {' and '.join(owners)}")


def _repeated(texts: Sequence[str]) -> str:
    """The first text that stands twice; empty if none does."""
    return next((text for place, text in enumerate(texts) if text in texts[:place]), "")


def table_hash(table: Sequence[DistortionAttributes]) -> str:
    """SHA-256 (64 hexadecimal digits) of a table: keys, full texts and their order.

    Attribute probabilities mean something with the table alone that they were learnt for; names and explanations for
    people do not count.
    """
    texts = [[entry.key, *map(list, zip(*sentences(entry.attributes), strict=True))] for entry in table]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


DISTORTION_ATTRIBUTES = read_table(Path(__file__).with_name("kadid.toml"))
"""The 25 of KADID-10k in its order, five attributes each."""


def _named_as(types: Iterable[str]) -> tuple[DistortionAttributes, ...]:
    """A data set's table: the built-in entries of its distortions, under the keys that it has for them."""
    others = read_table(Path(__file__).with_name("other_data_sets.toml"))
    known = {entry.key: entry for entry in (*DISTORTION_ATTRIBUTES, *others)}
    return tuple(replace(known[KADID_KEYS.get(key, key)], key=key) for key in map(str.lower, types))


DATASET_ATTRIBUTES = {
    "kadid": DISTORTION_ATTRIBUTES,
    "tid2013": _named_as(TID2013_TYPES),
    "csiq": _named_as(CSIQ_TYPES),
    "live": _named_as(LIVE_TYPES),
}
"""Data set, as `attriqa.data.datasets.READERS` calls it -> what its distortions look like, in its order."""
