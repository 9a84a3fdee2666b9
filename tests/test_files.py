import errno
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from attriqa.config import opt, parse_config, required
from attriqa.files import as_dict, atomic_path, write_json


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
    tag: str = opt("100%", "a name")
    stages: tuple[int, ...] = field(default_factory=lambda: (2, 3), metadata={"help": "encoder stages"})

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"--epochs: expected at least 1, got {self.epochs}")


def parse(*words: str) -> Config:
    return parse_config(Config, ["--data", "photos", *words], "What it does, for 100% of the photos.")


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_defaults_are_those_of_the_dataclass() -> None:
    assert parse() == Config(data=Path("photos"))


def test_every_type_is_read_from_words() -> None:
    words = "--out o --epochs 7 --rate 2.5e-3 --smoke --no-flip --view full --crop 224 --weights 1 -2 3 --size 3 4"
    found = parse(*words.split(), "--limit", "5", "--tag", "7", "--stages", "1")
    assert found == Config(
        data=Path("photos"),
        out=Path("o"),
        epochs=7,
        rate=2.5e-3,
        smoke=True,
        flip=False,
        view="full",
        crop=224,
        weights=(1.0, -2.0, 3.0),
        size=(3, 4),
        limit=5,
        tag="7",
        stages=(1,),
    )
    assert (type(found.out), type(found.weights[0]), type(found.tag)) == (type(Path()), float, str)


def test_words_come_from_the_command_line_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["recipe.py", "--data", "elsewhere"])
    assert parse_config(Config).data == Path("elsewhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--epochs", "three"], "argument --epochs: invalid int value: 'three'"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--view", "half"], "argument --view: invalid choice: 'half'"),
        (["--crop", "225"], "argument --crop: invalid choice: 225"),
        (["--size", "3"], "argument --size: expected 2 arguments"),
        (["--weights"], "argument --weights: expected at least one argument"),
        (["--limit", "1.5"], "argument --limit: invalid int value: '1.5'"),
    ],
)
def test_wrong_words_are_refused(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in refusal(capsys, *words)


def test_a_required_field_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(Config, [])
    assert "the following arguments are required: --data" in capsys.readouterr().err


def test_help_names_every_field_with_its_default_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "What it does, for 100% of the photos." in text
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
    with pytest.raises(SystemExit):
        parse_config(Derived, ["--help"])
    own, machine = capsys.readouterr().out.partition("options:")[2].split("The machine. More of it:")
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


def test_a_config_becomes_plain_json_types() -> None:
    plain = as_dict(parse("--limit", "4"))
    assert plain == json.loads(json.dumps(plain))
    assert (plain["data"], plain["out"], plain["size"], plain["limit"]) == ("photos", "runs/a", [340, 340], 4)


def test_json_keeps_numpy_numbers_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    write_json(path, {"srocc": np.float32(0.5), "n": np.int64(3), "ok": np.bool_(True), "all": np.arange(2), "p": path})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"srocc": 0.5, "n": 3, "ok": True, "all": [0, 1], "p": str(path)}
    assert text.endswith("}\n")
    assert len(text.splitlines()) > 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), np.array([1.0, -np.inf])])
def test_json_refuses_what_is_not_finite(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(ValueError, match=r"metrics\.json: Out of range float"):
        write_json(path, {"srocc": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [torch.tensor(0.5), {1, 2}, object(), torch.float16])
def test_json_refuses_what_it_would_have_to_quote(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(TypeError, match=rf"metrics\.json: a {type(value).__name__} has no place in a JSON file"):
        write_json(path, {"srocc": value})
    assert path.read_text() == "old"


def test_a_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("ha")
            raise failure

    with pytest.raises(type(failure)):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_synced_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    synced: list[tuple[str, str]] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        synced.append((kind, path.read_text()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    with atomic_path(path) as temporary:
        temporary.write_text("new")
    assert synced == [("file", "old"), ("folder", "new")]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as one, atomic_path(path) as two:
        one.write_text("one")
        two.write_text("two")
        assert one.read_text() == "one"
    assert path.read_text() == "one"  # the outer block ends last
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_permissions_are_the_old_file_s_or_a_new_file_s(tmp_path: Path) -> None:
    private, new, plain = tmp_path / "private.txt", tmp_path / "new.txt", tmp_path / "plain.txt"
    private.touch(mode=0o600)
    plain.touch()
    for path in (private, new):
        with atomic_path(path) as temporary:
            temporary.unlink()  # some writers make the file anew, with permissions of their own
            temporary.touch(mode=0o400)
            temporary.chmod(0o640)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert new.stat().st_mode == plain.stat().st_mode


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "a.txt", tmp_path / "link.txt"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
