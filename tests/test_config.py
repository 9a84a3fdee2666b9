"""Command lines: every kind of field, every refusal, the help page, commands, and the claim to a folder."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from attriqa.config import claim_folder, opt, parse_config, required, run_command


@dataclass(frozen=True)
class Config:
    data: Path = required("the folder of photos")
    out: Path = opt(Path("runs/a"), "where results go")
    epochs: int = opt(3, "passes over the data")
    rate: float = opt(1e-4, "learning rate, per step")
    smoke: bool = opt(False, "a size for CI")
    flip: bool = opt(True, "mirror half of the crops, 50%")
    view: Literal["five_crop", "full"] = opt("five_crop", "what is scored")
    crop: Literal[224, 320] = opt(320, "crop side, px")
    weights: tuple[float, ...] = opt((1.0, 0.5), "loss weights")
    size: tuple[int, int] = opt((340, 340), "px")
    limit: int | None = opt(None, "at most so many photos")
    init: Path | None = opt(None, "a checkpoint")
    names: tuple[Literal["a", "b"], ...] | None = opt(None, "some")
    tag: str = opt("100%", "a name")
    stages: tuple[int, ...] = field(default_factory=lambda: (2, 3), metadata={"help": "encoder stages"})

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"--epochs: expected at least 1, got {self.epochs}")


DEFAULT = Config(data=Path("photos"))


def parse(*words: str) -> Config:
    return parse_config(Config, ["--data", "photos", *words], "What it does,\nfor 100% of the photos.\n\n    a line")


def refusal(capsys: pytest.CaptureFixture[str], call: Callable[[], object]) -> str:
    """What a wrong command line ends with, on standard error."""
    with pytest.raises(SystemExit) as caught:
        call()
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def helped(capsys: pytest.CaptureFixture[str], call: Callable[[], object]) -> str:
    """What ``--help`` prints."""
    with pytest.raises(SystemExit) as caught:
        call()
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_defaults_are_those_of_the_dataclass() -> None:
    assert parse() == DEFAULT


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--out o", {"out": Path("o")}),
        ("--epochs=7 --rate 2.5e-3", {"epochs": 7, "rate": 2.5e-3}),
        ("--smoke --no-flip", {"smoke": True, "flip": False}),
        ("--view full --crop 224", {"view": "full", "crop": 224}),
        ("--weights 1 -2 3 --size 3 4", {"weights": (1.0, -2.0, 3.0), "size": (3, 4)}),
        ("--limit 5 --init None", {"limit": 5, "init": Path("None")}),
        ("--names b a", {"names": ("b", "a")}),
        ("--tag 7 --stages 1", {"tag": "7", "stages": (1,)}),
        ("--tag None", {"tag": "None"}),
        ("--epochs 1 --epochs 2", {"epochs": 2}),
    ],
)
def test_every_type_is_read_from_words(words: str, expected: dict[str, Any]) -> None:
    found = parse(*words.split())
    assert found == replace(DEFAULT, **expected)
    assert [type(getattr(found, name)) for name in expected] == [type(value) for value in expected.values()]


def test_a_value_may_be_flags_for_another_recipe() -> None:
    for words in (["--tag=--init a"], ["--tag", "--init a"]):
        assert parse(*words).tag == "--init a"


def test_words_come_from_the_command_line_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["recipe.py", "--data", "elsewhere"])
    assert parse_config(Config).data == Path("elsewhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "3"], "unrecognized arguments: --epoch 3; --epoch: did you mean --epochs?\n"),
        (["--no_flip"], "unrecognized arguments: --no_flip; --no_flip: did you mean --no-flip?\n"),
        (["--ouch=a"], "unrecognized arguments: --ouch=a; --ouch: did you mean --out?\n"),
        (["--qqqq", "--epochs", "3"], "unrecognized arguments: --qqqq\n"),
        (["--epochs", "three", "--tag", "--init a"], "argument --epochs: invalid int value: 'three'\n"),
        (["--epochs", "0"], "error: --epochs: expected at least 1, got 0\n"),
        (["--view", "half"], "argument --view: invalid choice: 'half'"),
        (["--crop", "225"], "argument --crop: invalid choice: 225"),
        (["--names", "a", "c"], "argument --names: invalid choice: 'c'"),
        (["--size", "3"], "argument --size: expected 2 arguments\n"),
        (["--weights"], "argument --weights: expected at least one argument\n"),
        (["--limit", "1.5"], "argument --limit: invalid int value: '1.5'\n"),
        (["word"], "unrecognized arguments: word\n"),
    ],
)
def test_wrong_words_are_refused(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    text = refusal(capsys, lambda: parse(*words))
    assert text.startswith("usage: ")
    assert message in text


def test_a_required_field_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(capsys, lambda: parse_config(Config, ["--dat", "a"]))
    assert "the following arguments are required: --data; --dat: did you mean --data?" in text


def test_help_names_every_field_with_its_default_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    raw = helped(capsys, lambda: parse("--help"))
    assert "What it does,\nfor 100% of the photos.\n\n    a line\n" in raw
    assert all(len(line) <= 80 for line in raw.splitlines())
    assert "\033" not in raw
    text = " ".join(raw.split())
    for line in (
        "--data DATA the folder of photos [required]",
        "--epochs EPOCHS passes over the data [3]",
        "mirror half of the crops, 50% [True] --view",  # Python 3.11 and 3.12 would add the default again
        "--tag TAG a name [100%]",
        "encoder stages [(2, 3)]",
        "--view {five_crop,full}",
    ):
        assert line in text


@dataclass(frozen=True, kw_only=True)
class Base:
    """The machine. More of it."""

    out: Path = required("where results go")
    workers: int = opt(2, "processes")


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    """What a run does."""

    data: str = required("the folder of photos")
    out: Path = opt(Path("runs/b"), "where all goes")


def test_what_is_inherited_is_read_and_listed_below_its_own_title(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_config(Derived, ["--data", "d", "--workers", "5"]) == Derived(data="d", workers=5, out=Path("runs/b"))
    text = helped(capsys, lambda: parse_config(Derived, ["--help"]))
    own, machine = text.partition("options:")[2].split("The machine. More of it:")
    assert "--data DATA the folder of photos [required]" in " ".join(own.split())
    assert "--out" not in own, "where it was before the text and the default changed"
    assert "--out OUT where all goes [runs/b] --workers WORKERS processes [2]" in " ".join(machine.split())


@pytest.mark.parametrize(
    "hint",
    [dict, list, list[int], int | str, bytes, tuple, tuple[()], tuple[int, str], tuple[bool, ...], Literal[1, "a"]],
)
def test_a_type_that_no_command_line_gives_is_refused(hint: Any) -> None:
    with pytest.raises(TypeError, match=r"odd: a field of type .* cannot be read"):
        parse_config(dataclass(type("Odd", (), {"__annotations__": {"odd": hint}})), [])


# Commands.


@dataclass(frozen=True)
class Count:
    """Count the files, 100% of them.

    More of it.
    """

    vote_files: tuple[Path, ...] = required("CSV files", bare=True)
    seed: int = opt(0, "unused")


@dataclass(frozen=True)
class Draw:
    """Draw one."""

    model: str = required("its name")


ran: list[object] = []


def tally(config: Count) -> None:
    if not config.vote_files[0].name.startswith("."):
        ran.append(config)
        return
    raise (ValueError if config.seed else OSError)(f"{config.vote_files[0]}: hidden")


def draw(config: Draw) -> None:
    ran.append(config)


def command(*words: str, default: bool = False) -> object:
    """Run a recipe of two commands; what it was given."""
    ran.clear()
    run_command({"" if default else "draw": draw, "tally": tally}, words, "What all of it does.")
    (config,) = ran
    return config


def test_the_first_word_names_the_command() -> None:
    assert command("draw", "--model", "m") == Draw("m")
    two = Count((Path("a"), Path("b")), seed=3)
    assert command("tally", "--seed", "3", "--vote-files", "a", "b") == two
    assert command("tally", "a", "b", "--seed", "3") == two, "without the flag"


def test_a_recipe_may_have_a_default_command() -> None:
    assert command("--model", "m", default=True) == Draw("m")
    assert command("tally", "a", default=True) == Count((Path("a"),))
    with pytest.raises(SystemExit):
        command(default=True)


def test_bare_words_need_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_config(Count, ["a"]) == Count((Path("a"),))
    text = refusal(capsys, lambda: command("draw", "--model", "m", "a"))
    assert "unrecognized arguments: a" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: command"),
        (["drew"], "argument command: invalid choice: 'drew' (choose from "),
        (["--model", "m"], "the following arguments are required: command"),
        (["draw"], " draw: error: the following arguments are required: --model"),
        (["tally", "a", "--sead", "3"], "unrecognized arguments: --sead 3; --sead: did you mean --seed?"),
        (["tally", "--seed", "3"], "the following arguments are required: --vote-files"),
    ],
)
def test_wrong_commands_are_refused(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in refusal(capsys, lambda: command(*words))


def test_each_command_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(helped(capsys, lambda: command("--help")).split())
    assert "What all of it does. options:" in text
    assert "draw Draw one. tally Count the files, 100% of them." in text
    assert " [-h] {draw,tally} ..." in text
    text = helped(capsys, lambda: command("tally", "--help"))
    assert " tally [-h] --vote-files" in text
    assert "\nCount the files, 100% of them.\n\nMore of it.\n" in text
    assert "CSV files; may be given without the flag [required]" in " ".join(text.split())
    text = helped(capsys, lambda: command("-h", default=True))
    assert "What all of it does." in text
    assert "its name [required]" in text


def test_commands_are_those_of_the_program_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["folder/recipe.py", "tally", "c"])
    ran.clear()
    run_command({"draw": draw, "tally": tally})
    assert ran == [Count((Path("c"),))]


@pytest.mark.parametrize("seed", ["0", "1"])
def test_an_error_of_a_command_ends_with_its_message(seed: str) -> None:
    with pytest.raises(SystemExit, match=r"^\.a: hidden$"):
        command("tally", ".a", "--seed", seed)


def test_a_folder_is_claimed_for_one_configuration(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    claim_folder(out, DEFAULT)
    claim_folder(out, DEFAULT)
    assert json.loads((out / "config.json").read_text())["size"] == [340, 340]
    with pytest.raises(SystemExit, match=r"another configuration \(epochs: 3 there, 4 now; limit: None there, 5 now\)"):
        claim_folder(out, replace(DEFAULT, epochs=4, limit=5))
    assert json.loads((out / "config.json").read_text())["epochs"] == 3
