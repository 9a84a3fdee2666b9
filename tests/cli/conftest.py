"""Fixtures of the command line's tests."""

from pathlib import Path

import pytest

from attriqa.cli import options
from tests.support.fake_scorer import FakeScorer, paint


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> FakeScorer:
    """The scorer that every command gets."""
    fake = FakeScorer()
    monkeypatch.setattr(options, "make_scorer", lambda args: fake)
    return fake


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures in ``photos/`` of the working directory, two of which cannot be read."""
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "photos", 6)
    (tmp_path / "photos" / "001.png").write_bytes(b"")
    (tmp_path / "photos" / "004.png").write_text("not an image")
    return Path("photos")
