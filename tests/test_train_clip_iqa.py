"""training/train_clip_iqa.py in this process where one is enough, and as users run it (slow)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from attriqa import checkpoint, load
from attriqa.models.clip import load_clip
from attriqa.models.clip_iqa import ClipIQA, ClipIQAPlus

if TYPE_CHECKING:
    from tests import clive_tree, exiqa_tree, small_clip, unlabelled_tree
else:
    import clive_tree
    import exiqa_tree
    import small_clip
    import unlabelled_tree

pytestmark = pytest.mark.filterwarnings("ignore::attriqa.metrics.FitWarning")  # few images, hardly trained
VIT = small_clip.VIT | {"text_cfg": small_clip.VIT["text_cfg"] | {"context_length": 26}}
FEW = ("--splits", 1, "--workers", 0, "--log-every", 2, "--save-every", 2, "--crop", 48, 48, "--batch", 12,
       "--epochs", 3, "--optimizer", "adam", "--lr", 0.02)  # fmt: skip
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    clive_tree.build(root / "clive", 32, 80, 64)
    exiqa_tree.kadid(root / "kadid", 5)
    (root / "vit.json").write_text(json.dumps(VIT))
    return root


@pytest.fixture
def recipe() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield unlabelled_tree.load_recipe("train_clip_iqa")
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def run(recipe: ModuleType, tree: Path, tmp_path: Path) -> Run:
    """``run(name, *flags)`` -> its folder; by default on CLIVE, with a random CLIP."""

    def call(name: str, *flags: object) -> Path:
        words = [*map(str, flags)]
        if "--data" not in words:
            words += ["--data", f"clive={tree / 'clive'}"]
        if not {"--clip", "--clip-config", "--init"} & set(words):
            words += ["--clip-config", str(tree / "vit.json")]
        recipe.main([*words, "--out", str(tmp_path / name)])
        return tmp_path / name

    return call


def result(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text())


def weights(out: Path) -> dict[str, Tensor]:
    return checkpoint.load(out / "split0" / "model.safetensors").state


def test_a_run_learns_words_and_writes_what_it_prints(
    run: Run, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = small_clip.write(tmp_path / "clip", VIT)
    out = run("out", *FEW, "--clip", name, "--epochs", 10, "--test", f"kadid={tree / 'kadid'}")
    found, text = result(out), capsys.readouterr().out
    (fold,) = found["folds"]
    assert (fold["n_train"], fold["steps"], found["test"]["n"], found["KADID-10k"]["n"]) == (26, 20, 6, 75)
    losses = [row["mse"] for row in fold["history"]]
    assert len(losses) == 10
    assert losses[-1] < 0.9 * losses[0]
    assert "test: " + "  ".join(f"{key} {value:.4g}" for key, value in found["test"].items()) in text
    path = out / "split0" / "model.safetensors"
    assert set(weights(out)) == {"context.context"}, "its folder has the rest"
    net = load(path)
    assert isinstance(net, ClipIQAPlus)
    frozen = load_clip(name).model.state_dict()
    kept = {key: value for key, value in net.clip.state_dict().items() if key != "visual.positional_embedding"}
    assert all(torch.equal(value, frozen[key]) for key, value in kept.items())
    saved = checkpoint.load(path)
    assert saved.provenance["metrics"] == json.loads((out / "split0" / "metrics.json").read_text())
    assert str(tree) not in json.dumps([saved.provenance, saved.config])
    assert sorted(file.name for file in (out / "split0").iterdir()) == ["metrics.json", "model.safetensors"]


def test_without_words_it_is_clip_iqa_on_the_same_splits(run: Run, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.toml"
    pairs.write_text('joy = ["Happy photo.", "Sad photo."]\n')
    out = run("out", *FEW, "--context", 0, "--splits", 2, "--pairs", pairs)
    found = result(out)
    assert [fold["tests"]["test"]["n"] for fold in found["folds"]] == [6, 6]
    assert [fold["n_train"] for fold in found["folds"]] == [0, 0]
    net = load(f"clip-iqa:{out / 'split1' / 'model.safetensors'}")
    assert isinstance(net, ClipIQA)
    assert net.names == ("score", "joy")
    assert load(run("five", *FEW, "--context", 0) / "split0" / "model.safetensors").names[1] == "sharpness"


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_words_of_a_whole_one(
    run: Run, recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("whole", *FEW)
    step, started = recipe.Training.step, list[int]()

    def stopping(self: Any, at: int, batch: Any) -> Tensor:
        if at == 5:
            raise ZeroDivisionError
        found: Tensor = step(self, at, batch)
        return found

    def counted(self: Any, at: int, batch: Any) -> Tensor:
        started.append(at)
        found: Tensor = step(self, at, batch)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(recipe.Training, "step", stopping)
        with pytest.raises(ZeroDivisionError):
            run("out", *FEW)
        patch.setattr(recipe.Training, "step", counted)
        out = run("out", *FEW)
    assert started == [4, 5]
    assert torch.equal(weights(out)["context.context"], weights(whole)["context.context"])
    assert result(out) == result(whole)
    seed = weights(run("seed", *FEW, "--seed", 1))["context.context"]
    assert not torch.equal(seed, weights(whole)["context.context"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch", 600), "batch: expected a multiple of the 1 processes, at most the 26 images, got 600"),
        (("--context", 80), "context: expected at most 22 in texts of 26 tokens, got 80"),
        (("--data", "koniq=nowhere"), "koniq10k_distributions_sets.csv: not found"),
        (("--init", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--context", 0, "--pairs", "nowhere.toml"), r"nowhere\.toml"),
        (("--clip", "RN5O:openai"), "expected one of open_clip's"),
    ],
)
def test_what_cannot_be_run_is_refused(run: Run, flags: tuple[object, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run("out", *FEW, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--clip, --clip-config, --init: expected one of them"),
        (("--clip", "z", "--crop", "16", "64"), "--crop: expected sides of at least 32 px, got 16 64"),
        (("--clip", "z", "--pairs", "p.toml"), "--pairs: expected --context 0 with it, got 16"),
        (("--clip", "z", "--epochs", "0"), "--epochs: expected at least 1, got 0"),
    ],
)
def test_wrong_flags_are_refused(
    recipe: ModuleType, tmp_path: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recipe.main(["--data", "clive=x", *flags, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tree: Path, tmp_path: Path) -> None:
    flags = ["--data", f"clive={tree / 'clive'}", "--clip-config", tree / "vit.json", *FEW, "--optimizer", "sgd"]
    for processes in (1, 2):
        words = [*unlabelled_tree.command("train_clip_iqa", processes), *flags, "--out", tmp_path / str(processes)]
        done = unlabelled_tree.shell(*words)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (weights(tmp_path / name)["context.context"] for name in ("1", "2"))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    ours, theirs = (result(tmp_path / name)["folds"][0] for name in ("1", "2"))
    for first, second in zip(ours["history"], theirs["history"], strict=True):
        assert first == pytest.approx(second, rel=1e-4)
    assert ours["tests"]["test"]["plcc"] == pytest.approx(theirs["tests"]["test"]["plcc"], abs=1e-2)


@pytest.mark.slow
def test_the_documented_command_runs_small(tree: Path, tmp_path: Path) -> None:
    name = small_clip.write(tmp_path / "clip", VIT)
    words = [*unlabelled_tree.command("train_clip_iqa"), "--clip", name, "--data", f"clive={tree / 'clive'}", "--smoke"]
    done = unlabelled_tree.shell(*words, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "16 learnt words" in done.stdout
    assert load(f"clip-iqa-plus:{tmp_path / 'out' / 'split0' / 'model.safetensors'}").names == ("score",)
