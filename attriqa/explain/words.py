"""Why, in words: what is low among attributes and strong among distortions."""

from collections.abc import Sequence

from attriqa.attributes import ATTRIBUTES
from attriqa.distortions import DISTORTION_KEYS, DISTORTIONS

_STRONG, _SOME = 0.6, 0.3  # strengths from which a distortion is called so
_LOW, _VERY_LOW = 0.25, 0.1  # a tenth of natural photos lie below 0.1
_WORDS = 3
NOTHING = "nothing stands out"
"""What `why` says of an image that is not bad in any respect."""


def why(
    attributes: Sequence[float] | None,
    distortions: Sequence[float] | None = None,
    *,
    keys: Sequence[str] = DISTORTION_KEYS,
    names: Sequence[str] = ATTRIBUTES,
) -> str:
    """The reasons for a score in words, the weightiest first, as ``"strong JPEG (0.8), some noise (0.3)"``.

    Args:
        attributes: in [0, 1], in the order of ``names``; ``None``: the model tells none.
        distortions: strengths in [0, 1], in the order of ``keys``; ``None``: the model tells none.
        keys: of the distortions; those of `DISTORTION_KEYS` are called by their names.
        names: of the attributes.

    Returns:
        The up to three strongest distortions from 0.3 ("some") and 0.6 ("strong") on; where there is none, the
        attributes below 0.25 ("low") and 0.1 ("very low"); else `NOTHING`.

    Raises:
        ValueError: their number is wrong, or a value leaves [0, 1].
    """
    for field, values, known in (("attributes", attributes, names), ("distortions", distortions, keys)):
        if values is not None and (len(values) != len(known) or not all(0 <= value <= 1 for value in values)):
            raise ValueError(f"{field}: expected {len(known)} values in [0, 1], got {list(values)}")
    words = {distortion.key: distortion.name for distortion in DISTORTIONS}
    strengths = [round(strength, 1) for strength in distortions or ()]  # so that the words fit the digits shown
    reasons = [
        f"{'strong' if strength >= _STRONG else 'some'} {_in_sentence(words.get(key, key.replace('_', ' ')))} "
        f"({strength:.1f})"
        for strength, key in sorted(zip(strengths, keys, strict=False), key=lambda pair: -pair[0])
        if strength >= _SOME
    ]
    reasons = reasons or [
        _low(name, value) for value, name in sorted(zip(attributes or (), names, strict=False)) if value < _LOW
    ]
    return ", ".join(reasons[:_WORDS]) or NOTHING


def _in_sentence(name: str) -> str:
    """Names of people and formats keep their capital."""
    return name if name.startswith("Gaussian") or name[:2].isupper() else name[0].lower() + name[1:]


def _low(attribute: str, value: float) -> str:
    if attribute == "noisiness":  # where a low value means much of it
        return f"{'much noise' if value < _VERY_LOW else 'noise'} (noisiness {value:.2f})"
    return f"{'very low' if value < _VERY_LOW else 'low'} {attribute} ({value:.2f})"
