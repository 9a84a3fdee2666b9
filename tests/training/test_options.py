"""What recipes on CLIP ask for beside their own, and how a run of theirs begins."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from attriqa.config import check_least, opt, parse_config, required
from attriqa.training.options import CLIPRun, accelerator_of, begin


@dataclass(frozen=True, kw_only=True)
class Config(CLIPRun):
    """What a run does."""

    data: str = required("a data set")
    out: Path = opt(Path("runs/a"), "where everything goes")
    init: Path | None = opt(None, "or a checkpoint of this recipe")
    epochs: int = opt(3, "passes")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, epochs=1)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Accelerate forgets what it was told."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_recipe_adds_its_own_and_keeps_its_words() -> None:
    found = parse_config(Config, ["--data", "d", "--init", "i", "--save-every", "7"])
    assert (found.out, found.init, found.clip, found.epochs) == (Path("runs/a"), Path("i"), None, 3)
    assert (found.save_every, found.log_every, found.seed) == (7, 10, 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--clip, --clip-config, --init: expected one of them"),
        (("--clip", "a", "--init", "b"), "--clip, --clip-config, --init: expected one of them"),
        (("--clip", "a", "--clip-config", "b"), "--clip, --clip-config, --init: expected one of them"),
        (("--clip", "a", "--log-every", "0"), "--log-every: expected at least 1, got 0"),
        (("--clip", "a", "--save-every", "-2"), "--save-every: expected at least 1, got -2"),
        (("--clip", "a", "--epochs", "0"), "--epochs: expected at least 1, got 0"),
    ],
)
def test_wrong_flags_are_refused(capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit):
        parse_config(Config, ["--data", "d", *flags])
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("fresh")
def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--tracker: expected one that is installed \(none.*got paper"):
        accelerator_of(Config(data="d", clip="c", out=tmp_path, tracker="paper"))


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_have_the_precision_that_is_asked_for(tmp_path: Path, precision: Any) -> None:
    found = accelerator_of(Config(data="d", clip="c", out=tmp_path, precision=precision))
    assert found.mixed_precision == {"fp32": "no", "bf16": "bf16"}[precision]


@pytest.mark.usefixtures("fresh")
def test_a_folder_belongs_to_one_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(data="d", clip="c", out=tmp_path)
    accelerator, told = accelerator_of(config), list[Any]()
    monkeypatch.setattr(accelerator, "init_trackers", lambda *words: told.append(words))
    begin(accelerator, config, "attriqa-test")
    ((project, settings),) = told
    assert project == "attriqa-test"
    assert settings == {name: str(value) for name, value in json.loads((tmp_path / "config.json").read_text()).items()}
    assert settings["clip"] == "c"
    begin(accelerator, config, "attriqa-test")
    with pytest.raises(SystemExit, match=r"another configuration \(seed: 0 there, 1 now\)"):
        begin(accelerator, Config(data="d", clip="c", out=tmp_path, seed=1), "attriqa-test")
    assert len(told) == 2
