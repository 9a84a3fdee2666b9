"""The built-in table, tables of one's own, and what is asked of a language model."""

import dataclasses
from pathlib import Path

import open_clip
import pytest

from attriqa.distortions import DISTORTION_KEYS
from attriqa.distortions.attributes import (
    DISTORTION_ATTRIBUTES,
    DistortionAttributes,
    check_table,
    llm_query,
    parse_answer,
    read_table,
    sentences,
    table_hash,
)

TOML = """
[[distortion]]
key = "vignetting"
name = "Vignetting"
explanation = "brightness falls from the center to the corners"
attributes = ["dark corners", "There is a spotlight in the photo."]

[[distortion]]
key = "rain"
name = "Rain"
explanation = "bright streaks are drawn over the image"
attributes = ["thin streaks", "a wet haze"]
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_table_has_five_attributes_for_each_of_the_25() -> None:
    assert tuple(entry.key for entry in DISTORTION_ATTRIBUTES) == DISTORTION_KEYS
    assert {len(entry.attributes) for entry in DISTORTION_ATTRIBUTES} == {5}
    phrases = [phrase for entry in DISTORTION_ATTRIBUTES for phrase in entry.attributes]
    assert len({phrase.casefold() for phrase in phrases}) == 125
    for entry in DISTORTION_ATTRIBUTES:
        assert entry.name
        assert 3 <= len(entry.explanation.split()) <= 20
        for phrase in entry.attributes:
            assert phrase == " ".join(phrase.split()), phrase
            assert phrase[-1].isalpha(), phrase
            assert "." not in phrase
            assert phrase.split()[0] not in ("There", "there", "not"), phrase


def test_every_text_fits_into_clips_context() -> None:
    tokenize = open_clip.SimpleTokenizer()
    texts = [
        text for side in sentences(a for entry in DISTORTION_ATTRIBUTES for a in entry.attributes) for text in side
    ]
    tokens = tokenize(texts)
    assert int(tokens.argmax(1).max()) < 32  # the end token, of 77
    assert len(tokens.unique(dim=0)) == 250


def test_sentences_take_phrases_and_whole_sentences() -> None:
    given = ["a softening of details", "There is a  softening of details in the photo.", "there are dots in the image"]
    positive, negative = sentences(given)
    assert positive == [
        "There is a softening of details in the photo.",
        "There is a softening of details in the photo.",
        "There is dots in the photo.",
    ]
    assert negative[0] == "There is not a softening of details in the photo."
    with pytest.raises(ValueError, match=r"attributes: expected a noun phrase, got 'There is \.'"):
        sentences(["There is ."])


def test_the_query_states_the_task_and_the_answer_is_read_back() -> None:
    query = llm_query("Rolling shutter", "rows are shifted one after the other.")
    assert query.rstrip().endswith("Distortion: Rolling shutter: rows are shifted one after the other.")
    example = query[query.index("1- ") : query.index("\n\nDistortion: Rolling")]
    assert len(parse_answer(example)) == 5, "the example shows the format that is read"
    assert len(parse_answer("\n".join(f"{n}. {'abcdefg'[n]}" for n in range(1, 4)), count=3)) == 3
    assert "3 visual attributes" in llm_query("a", "b", count=3)
    with pytest.raises(ValueError, match="count: expected 1 to 7, got 8"):
        llm_query("a", "b", count=8)


@pytest.mark.parametrize("mark", ["{}- {}", "{}. {}", "{}) {}", "  {}: {} ", "**{}.** {}"])
def test_answers_come_in_several_forms(mark: str) -> None:
    said = ["softening of details", "There is a reduction in clarity in the photo.", "c, d", "e", "f"]
    text = "Here they are:\n" + "\n".join(mark.format(number, line) for number, line in enumerate(said, 1)) + "\nBye."
    assert parse_answer(text) == ("softening of details", "a reduction in clarity", "c, d", "e", "f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1- a\n2- b\n3- c\n4- d", r"expected lines numbered 1 to 5, got \[1, 2, 3, 4\]"),
        ("1- a\n2- b\n3- c\n4- d\n5- e\n6- f", r"got \[1, 2, 3, 4, 5, 6\]"),
        ("1- a\n2- b\n4- c\n3- d\n5- e", r"got \[1, 2, 4, 3, 5\]"),
        ("I cannot.", "got none in 'I cannot.'"),
        ("1- a\n2- b\n3- A\n4- a\n5- e", "expected 5 different attributes, got 'a' twice"),
    ],
)
def test_other_answers_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"text: .*{message}"):
        parse_answer(text)


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "own.toml", TOML))
    assert table[0] == DistortionAttributes(
        "vignetting",
        "Vignetting",
        "brightness falls from the center to the corners",
        ("dark corners", "a spotlight"),
    )
    assert [entry.key for entry in table] == ["vignetting", "rain"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"dark corners", ', "", "rain, attributes: expected 1, as vignetting has, got 2"),
        ('key = "rain"', 'key = "vignetting"', "key: expected a different one for each distortion, got 'vignetting'"),
        ('key = "rain"', "key = 3", "distortion 2, key: expected a text, got 3"),
        ('name = "Rain"', 'name = " "', r"distortion 2 \(rain\), name: expected a text, got ' '"),
        ('name = "Rain"', 'title = "Rain"', r"distortion 2 \(rain\): expected the fields key, name.*got .*title"),
        (
            '"a wet haze"]',
            "7]",
            r"distortion 2 \(rain\), attributes: expected a list of texts, got \['thin streaks', 7\]",
        ),
        ('["thin streaks", "a wet haze"]', '"dots"', "attributes: expected a list of texts, got 'dots'"),
        ('"a wet haze"', '"There is ."', r"distortion 2 \(rain\), attributes: expected a noun phrase"),
        ('"a wet haze"', '"There is dark Corners."', "'dark corners' in vignetting and rain"),
        ("[[distortion]]", "[[kind]]", r"expected one \[\[distortion\]\] or more and nothing else, got \['kind'\]"),
        ("[[distortion]]", "[distortion", "expected a TOML file"),
    ],
)
def test_a_broken_table_is_refused_by_file_entry_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TOML
    path = write(tmp_path / "own.toml", TOML.replace(old, new))
    with pytest.raises(ValueError, match=rf"own\.toml: .*{message}"):
        read_table(path)


def test_bytes_that_are_no_text_and_an_empty_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"bad\.toml: expected a TOML file"):
        read_table(tmp_path / "bad.toml")
    with pytest.raises(ValueError, match=r"empty\.toml: expected one \[\[distortion\]\]"):
        read_table(write(tmp_path / "empty.toml", ""))
    with pytest.raises(ValueError, match="table: expected one distortion or more with attributes, got none"):
        check_table(())


def test_the_hash_is_of_what_the_model_reads() -> None:
    table = DISTORTION_ATTRIBUTES[:3]
    spoken = dataclasses.replace(table[0], attributes=tuple(sentences(table[0].attributes)[0]))
    for same in (table, (dataclasses.replace(table[0], name="x", explanation="y"), *table[1:]), (spoken, *table[1:])):
        assert table_hash(same) == table_hash(table)
    assert len(table_hash(table)) == 64
    others = [table[::-1], table[:2], (dataclasses.replace(table[0], key="x"), *table[1:])]
    others += [(dataclasses.replace(table[0], attributes=table[0].attributes[::-1]), *table[1:])]
    assert len({table_hash(other) for other in [table, *others]}) == 5
