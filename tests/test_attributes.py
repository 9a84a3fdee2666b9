import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from attriqa.attributes import ATTRIBUTES, CANDIDATES, PROMPT_PAIRS, TEMPLATE, prompt_texts, read_pairs, table_hash


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_candidates_are_fifty_and_fifty_different_single_words(attribute: str) -> None:
    positive, negative = CANDIDATES[attribute]
    assert len(positive) == len(negative) == 50
    counts = Counter(word.lower() for word in positive + negative)
    assert [word for word, count in counts.items() if count > 1] == []
    for word in positive + negative:
        assert word.replace("-", "").isalpha(), word
        assert word == word.capitalize()


def test_candidates_hold_the_pairs_that_the_paper_selected() -> None:
    assert tuple(CANDIDATES) == tuple(PROMPT_PAIRS) == ATTRIBUTES
    for attribute, (positive, negative) in PROMPT_PAIRS.items():
        assert positive in CANDIDATES[attribute].positive
        assert negative in CANDIDATES[attribute].negative


# Words whose side no one would dispute; a list pasted on the wrong side, or an attribute upside down, shows here.
SIDES = {
    "sharpness": ("sharp crisp focused", "blurred defocused shaky"),
    "contrast": ("high-contrast punchy contrasty", "low-contrast flat washed-out"),
    "brightness": ("bright sunlit well-lit", "dark dim underexposed"),
    "colorfulness": ("colorful saturated vivid", "monochrome gray desaturated"),
    "noisiness": ("clean noise-free grainless", "noisy speckled grainy"),
}


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_positive_means_more_of_the_attribute_and_clean_for_noisiness(attribute: str) -> None:
    for words, side in zip(SIDES[attribute], CANDIDATES[attribute], strict=True):
        assert {word.capitalize() for word in words.split()} <= set(side)


def test_a_table_hash_tells_texts_names_and_order_apart() -> None:
    changed = [
        dict(reversed(PROMPT_PAIRS.items())),
        {**PROMPT_PAIRS, "contrast": ("Vague", "Distinct")},
        {name.upper(): pair for name, pair in PROMPT_PAIRS.items()},
    ]
    hashes = {table_hash(table) for table in (PROMPT_PAIRS, *changed)}
    assert len(hashes) == 4
    assert table_hash(dict(PROMPT_PAIRS)) == table_hash(PROMPT_PAIRS)
    assert prompt_texts(PROMPT_PAIRS)[0] == ("Splendid image", "Blurry image")


def table(**changes: Any) -> dict[str, Any]:
    choices = {key: {"positive": f"More-{key}", "negative": f"Less-{key}"} for key in ("best", "median", "worst")}
    return {"template": TEMPLATE, "attributes": dict.fromkeys(reversed(ATTRIBUTES), choices), **changes}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_pairs_come_back_in_the_order_of_attributes(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.json", table())
    assert list(read_pairs(path).items()) == [(name, ("More-best", "Less-best")) for name in ATTRIBUTES]
    assert read_pairs(path, "worst")["contrast"] == ("More-worst", "Less-worst")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "expected the prompts.json"),
        ([], "expected the prompts.json"),
        ({"attributes": {}}, "no 'template'"),
        (table(attributes={"sharpness": {}}), "no 'best'"),
        (table(template="a {} picture"), r"expected adjectives for the template '\{\} image', got 'a \{\} picture'"),
        (
            table(attributes={name: {"best": {"positive": "", "negative": "Bad"}} for name in ATTRIBUTES}),
            "sharpness: expected two adjectives",
        ),
    ],
)
def test_a_file_that_is_no_table_of_prompts_is_refused(tmp_path: Path, content: object, reason: str) -> None:
    path = write(tmp_path / "prompts.json", content)
    with pytest.raises(ValueError, match=rf"prompts\.json: .*{reason}"):
        read_pairs(path)
