"""Result files: plain JSON, and files that are there whole or not at all."""

import errno
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attriqa.files import as_dict, atomic_path, write_json


def test_a_config_becomes_plain_json_types() -> None:
    @dataclass(frozen=True)
    class Config:
        data: Path
        size: tuple[int, int]
        limit: int | None = None

    plain = as_dict(Config(Path("photos"), (340, 340)))
    assert plain == json.loads(json.dumps(plain)) == {"data": "photos", "size": [340, 340], "limit": None}


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
