"""training/pretrain.py; what it shares with others is in test_steps_contract.py. Nothing says that it learns well."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from safetensors.torch import save_file
from torch import Tensor

from attriqa import load
from attriqa.attributes import ATTRIBUTES
from attriqa.data import pseudo_labels
from attriqa.data.batches import central
from attriqa.data.crops import RandomCrops
from attriqa.data.unlabelled import index_images
from attriqa.models import checkpoint
from attriqa.training import state as training_state
from attriqa.training.loop import Loop, loader
from tests.support import small_clip
from tests.support.clip_recipes import differing, result, watched_steps, weights
from tests.support.trees import unlabelled as unlabelled_tree

# A small encoder without BatchNorm: what one process computes of a batch, two can.
NET = ("--net", "test_convnext", "--shorter-edge", 64, "--crop", 48, "--held-out", 0.2, "--workers", 0)
FLAGS = (*NET, "--batch", 8, "--epochs", 2, "--lr", 0.02, "--save-every", 3, "--log-every", 2)
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """40 pictures with the labels of a teacher whom the heads can follow: 32 of them to train on, 8 held out."""
    root = tmp_path_factory.mktemp("source")
    images = unlabelled_tree.folder(root / "photos", 40)
    index = index_images(images)
    scores = torch.cat([unlabelled_tree.mean_colours(index.read(i)[None]) for i in range(40)]).numpy()
    origin = pseudo_labels.Origin("MeanColours(1)", None)
    pseudo_labels.write_part(root / "labels", list(index.keys), scores, origin)
    pseudo_labels.merge(root / "labels", origin)
    return ["--images", str(images), "--labels", str(root / "labels")]


@pytest.fixture
def recipe() -> Iterator[ModuleType]:
    yield unlabelled_tree.load_recipe("pretrain")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def run(recipe: ModuleType, source: list[str], tmp_path: Path) -> Run:
    """``run(name, *flags)`` -> its folder."""

    def call(name: str, *flags: object) -> Path:
        recipe.main([*source, *map(str, FLAGS), "--out", str(tmp_path / name), *map(str, flags)])
        return tmp_path / name

    return call


def without_labels(source: list[str]) -> list[str]:
    return source[: source.index("--labels")]


def test_a_run_learns_what_it_is_shown_and_writes_what_it_prints(
    run: Run, source: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = run("out", "--epochs", 12, "--lr", 0.2)
    found, text = result(out), capsys.readouterr().out
    assert (found["images"], found["n_train"], found["n_held_out"], found["steps"]) == (40, 32, 8, 48)
    history = found["history"]
    assert [(row["epoch"], row["step"]) for row in history] == [(epoch, 4 * epoch) for epoch in range(1, 13)]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    for row in history:
        assert list(row["order_accuracy"]) == list(ATTRIBUTES)
        accuracy = "  ".join(f"{name} {value:.4f}" for name, value in row["order_accuracy"].items())
        assert f"epoch {row['epoch']}, step {row['step']}: loss {row['loss']:.5f}; order accuracy {accuracy}" in text
    assert np.mean(list(history[-1]["order_accuracy"].values())) > 0.6, "better than chance on images never seen"
    assert not (out / "state.safetensors").exists()


def test_its_checkpoint_is_calibrated_and_goes_on(run: Run, source: list[str]) -> None:
    out = run("out")
    net = load(out / "model.safetensors")
    assert net.config.backbone == "test_convnext"
    index = index_images(source[1])
    held_out = np.argsort(index.keys.digests(), kind="stable")[:8]
    crops = RandomCrops(index, held_out, shorter_edge=64, crop=48, seed=0)
    (batch,) = loader(crops, central(held_out), workers=0)
    with torch.no_grad():
        spread = net(batch.pixels(torch.device("cpu"))).attributes
    assert spread.quantile(0.5, 0).numpy() == pytest.approx(0.5, abs=0.01), "calibrated on the held-out images"
    assert spread.quantile(0.9, 0).min() > 0.75
    saved = checkpoint.load(out / "model.safetensors")
    assert saved.prompts_hash is None
    assert saved.provenance["metrics"]["teacher"] == "MeanColours(1)"
    again = run("again", "--init", out / "model.safetensors", "--epochs", 1, "--lr", 1e-12)
    assert torch.allclose(weights(again)["heads_in.weight"], weights(out)["heads_in.weight"], atol=1e-8)


def test_only_chosen_attributes_are_trained_and_measured(run: Run) -> None:
    out, none = run("out", "--attributes", "contrast", "--weight-decay", 0), run("none", "--lr", 0, "--epochs", 1)
    row = result(out)["history"][-1]
    assert list(row["order_accuracy"]) == ["contrast"]
    moved = differing(weights(out), weights(none))
    assert "heads_out.1.weight" in moved
    assert not {f"heads_out.{head}.weight" for head in (0, 2, 3, 4)} & moved


@pytest.mark.parametrize("flags", [("--loss", "l2"), ("--loss", "l2", "--tau", "3"), ("--accumulate", "2")])
def test_the_variants_run_and_differ(run: Run, flags: tuple[str, ...]) -> None:
    out = run("out", *flags)
    assert "backbone.trunk.stem_0.weight" in differing(weights(out), weights(run("plain")))
    assert result(out)["steps"] == (4 if "--accumulate" in flags else 8)


def test_accumulated_batches_are_a_step_on_their_mean(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches per step are worth the mean of the two batches' gradients, taken one by one at the same weights."""
    gradients: list[Tensor] = []
    step = torch.optim.SGD.step

    def noted(self: Any, *arguments: Any) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    run("two", "--accumulate", 2, "--epochs", 1)
    run("one", "--epochs", 1, "--lr", 0)
    both, _, first, second, *_ = gradients
    assert not torch.allclose(first, second, atol=1e-4)
    torch.testing.assert_close(both, (first + second) / 2, rtol=0, atol=1e-6)


def test_the_signal_teacher_rates_the_crops_as_they_come(recipe: ModuleType, source: list[str], tmp_path: Path) -> None:
    for name, loss in (("a", "ranking"), ("b", "l2")):
        flags = ["--teacher", "signal", "--loss", loss, "--out", str(tmp_path / name)]
        recipe.main([*without_labels(source), *map(str, FLAGS), *flags])
        found = result(tmp_path / name)
        assert found["teacher"].startswith("SignalTeacher(")
        assert found["history"][-1]["order_accuracy"].keys() == set(ATTRIBUTES)


def test_a_stub_teacher_sees_the_pixels_that_the_net_sees(
    recipe: ModuleType, source: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tensor] = []
    rated: list[Tensor] = []
    forward = recipe.RawHeads.forward

    class Teacher(unlabelled_tree.MeanColours):
        def __call__(self, images: Tensor) -> Tensor:
            rated.append(images)
            return super().__call__(images)

    def look(self: Any, images: Tensor) -> Tensor:
        shown.append(images)
        return forward(self, images)  # type: ignore[no-any-return]

    monkeypatch.setattr(recipe, "teacher_of", lambda *_, **__: Teacher())
    monkeypatch.setattr(recipe.RawHeads, "forward", look)
    recipe.main([*without_labels(source), *map(str, FLAGS), "--teacher", "signal", "--out", str(tmp_path / "out")])
    assert len(rated) == len(shown) > 8
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(rated, shown, strict=True))


class Memory(GeneralTracker):  # type: ignore[misc]
    name = "memory"
    requires_logging_directory = False
    tracker = None

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, Any]]] = []

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.logged.append((None, values))

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged.append((step, values))


def test_trackers_are_told(run: Run, recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, made = Memory(), recipe.accelerator_of

    def remembering(*arguments: Any, **settings: Any) -> Any:
        accelerator = made(*arguments, **settings)
        accelerator.log_with = [tracker]
        return accelerator

    monkeypatch.setattr(recipe, "accelerator_of", remembering)
    run("out")
    assert tracker.logged[0][1]["batch"] == "8"
    assert [step for step, values in tracker.logged if "images_per_second" in values] == [2, 3, 4, 6, 8]
    assert [step for step, values in tracker.logged if "order_accuracy/contrast" in values] == [4, 8]


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[bytes] = []
    whole = run("whole")

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        if saved:
            path.write_bytes(b"half of a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path, metadata=metadata)
        saved.append(path.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(training_state, "save_file", full)
        with pytest.raises(SystemExit, match="No space left on device"):
            run("out")
    assert (tmp_path / "out" / "state.safetensors").read_bytes() == saved[0]
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".tmp"]
    assert differing(weights(run("out")), weights(whole)) == set()


def test_unreadable_images_are_replaced_counted_and_not_many(
    recipe: ModuleType,
    source: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(source[1], tmp_path / "photos")
    keys = index_images(source[1]).keys
    broken = [tmp_path / "photos" / keys[int(row)] for row in np.argsort(keys.digests(), kind="stable")[8:10]]
    keys_of = [path.relative_to(tmp_path / "photos").as_posix() for path in broken]
    words = ["--images", str(tmp_path / "photos"), *source[2:], *map(str, FLAGS)]
    broken[0].write_bytes(b"")
    recipe.main([*words, "--out", str(tmp_path / "one")])
    assert result(tmp_path / "one")["unreadable"].keys() == {keys_of[0]}
    assert capsys.readouterr().err.count(f"unreadable, replaced: {keys_of[0]}: a file of 0 bytes") == 1
    broken[1].write_bytes(b"")
    monkeypatch.setattr(Loop, "_end_row", lambda *_: pytest.fail("it looks before the epoch is over"))
    with pytest.raises(SystemExit, match="2 of 40 images cannot be read"):
        recipe.main([*words, "--out", str(tmp_path / "two")])


def test_images_without_labels_are_refused_when_they_are_many(
    recipe: ModuleType, source: list[str], tmp_path: Path
) -> None:
    shutil.copytree(source[1], tmp_path / "photos")
    words = ["--images", str(tmp_path / "photos"), *source[2:], *map(str, FLAGS), "--epochs", "1"]
    (tmp_path / "photos" / "new.jpg").write_bytes(unlabelled_tree.jpeg(99))
    recipe.main([*words, "--out", str(tmp_path / "one")])
    assert result(tmp_path / "one")["n_train"] == 32, "one may be missing"
    (tmp_path / "photos" / "newer.jpg").write_bytes(unlabelled_tree.jpeg(98))
    with pytest.raises(SystemExit, match=r"2 of 42 images are not in .*labels: run label\.py"):
        recipe.main([*words, "--out", str(tmp_path / "two")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--labels, --teacher: expected one of them"),
        (("--teacher", "signal", "--batch", "1"), "--batch: expected at least 2, got 1"),
        (("--teacher", "signal", "--save-every", "0"), "--save-every: expected at least 1, got 0"),
        (("--teacher", "signal", "--attributes", "beauty"), "invalid choice: 'beauty'"),
    ],
)
def test_wrong_flags_are_refused(
    recipe: ModuleType, tmp_path: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recipe.main(["--images", str(tmp_path), "--out", str(tmp_path / "out"), *flags])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_state_of_other_labels_or_images_is_refused(run: Run, source: list[str], tmp_path: Path) -> None:
    with watched_steps(dies=4), pytest.raises(ZeroDivisionError):
        run("out")
    table = pseudo_labels.load(source[3])
    shutil.copytree(source[3], tmp_path / "kept")
    try:
        pseudo_labels._write(Path(source[3]) / "labels.parquet", table.table, pseudo_labels.Origin("Other(2)", None))
        with pytest.raises(SystemExit, match=r"origin: \['MeanColours\(1\)', None\] there, \['Other\(2\)', None\] now"):
            run("out")
    finally:
        shutil.copy(tmp_path / "kept" / "labels.parquet", source[3])


@pytest.mark.slow
def test_shards_a_small_clip_and_the_compact_net(tmp_path: Path) -> None:
    shards = unlabelled_tree.shards(tmp_path / "shards", 24, 10)
    teacher = f"clip:{small_clip.write(tmp_path / 'clip')}"
    done = unlabelled_tree.shell(
        *unlabelled_tree.command("pretrain"), "--images", f"{shards}/part-{{000..002}}.tar", "--teacher", teacher,
        "--net", "compact", "--precision", "bf16", "--smoke", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    saved = checkpoint.load(tmp_path / "out" / "model.safetensors")
    assert saved.config["backbone"] == "mobilenet_v1"
    assert saved.prompts_hash is not None
    assert "CLIPTeacher(" in saved.provenance["metrics"]["teacher"]
    assert str(tmp_path) not in json.dumps(saved.provenance)
    other = unlabelled_tree.shell(
        *unlabelled_tree.command("pretrain"), "--images", shards, "--teacher", "signal", "--net", "compact", "--smoke",
        "--init", tmp_path / "out" / "model.safetensors", "--out", tmp_path / "other",
    )  # fmt: skip
    assert other.returncode == 1
    assert f"made with the prompt table {saved.prompts_hash}, but the table in use is (none)" in other.stderr
