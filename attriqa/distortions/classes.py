"""What papers and data sets call distortions and scenes; ``classes.toml`` holds the names."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("classes.toml").read_text(encoding="utf-8"))

SCENES: Mapping[str, str] = _TABLE["scenes"]
"""LIQE's word for a scene -> MP-IQE's, in the order of MP-IQE."""
DISTORTION_CLASSES: Mapping[str, str] = {name: entry["mp_iqe"] for name, entry in _TABLE["classes"].items()}
"""LIQE's word for one of eleven classes of distortions -> MP-IQE's, in the order of MP-IQE."""
CLASS_OF_ANNOTATION = {word: name for name, entry in _TABLE["classes"].items() for word in entry["annotated"]}
"""A distortion's name in LIQE's annotation files -> its class."""
CLASS_OF_TYPE = {word: name for name, entry in _TABLE["classes"].items() for word in entry["types"]}
"""A distortion's name in KADID-10k, CSIQ or LIVE, in lower case -> its class."""

TID2013_TYPES: tuple[str, ...] = tuple(_TABLE["types"]["tid2013"])
CSIQ_TYPES: tuple[str, ...] = tuple(_TABLE["types"]["csiq"])
LIVE_TYPES: Mapping[str, int] = _TABLE["types"]["live"]
"""Names of distortions in a data set, in its own order; LIVE's with the number of their images."""
KADID_KEYS: Mapping[str, str] = _TABLE["kadid_keys"]
"""A type of these sets, in lower case -> KADID-10k's key of the same distortion, where it has another name."""
