"""training/pretrain.py in this process where one is enough, and as users run it (slow); nothing says it learns well."""

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from attriqa import load
from attriqa.attributes import ATTRIBUTES
from attriqa.data import pseudo_labels
from attriqa.data.batches import GlobalBatches, central
from attriqa.data.crops import RandomCrops, stack
from attriqa.data.unlabelled import index_images
from attriqa.models import checkpoint
from attriqa.training import state as training_state
from tests.support import small_clip
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield unlabelled_tree.load_recipe("pretrain")
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def run(recipe: ModuleType, source: list[str], tmp_path: Path) -> Run:
    """``run(name, *flags)`` -> its folder."""

    def call(name: str, *flags: object) -> Path:
        recipe.main([*source, *map(str, FLAGS), "--out", str(tmp_path / name), *map(str, flags)])
        return tmp_path / name

    return call


def weights(out: Path) -> dict[str, Tensor]:
    return checkpoint.load(out / "model.safetensors").state


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def without_labels(source: list[str]) -> list[str]:
    return source[: source.index("--labels")]


def test_a_run_learns_what_it_is_shown_and_writes_what_it_prints(
    run: Run, source: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = run("out", "--epochs", 12, "--lr", 0.2)
    result, text = json.loads((out / "metrics.json").read_text()), capsys.readouterr().out
    assert (result["images"], result["n_train"], result["n_held_out"], result["steps"]) == (40, 32, 8, 48)
    history = result["history"]
    assert [(row["epoch"], row["step"]) for row in history] == [(epoch, 4 * epoch) for epoch in range(1, 13)]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    for row in history:
        assert list(row["order_accuracy"]) == list(ATTRIBUTES)
        accuracy = "  ".join(f"{name} {value:.4f}" for name, value in row["order_accuracy"].items())
        assert f"epoch {row['epoch']}, step {row['step']}: loss {row['loss']:.5f}; order accuracy {accuracy}" in text
    assert np.mean(list(history[-1]["order_accuracy"].values())) > 0.6, "better than chance on images never seen"
    assert not (out / "state.safetensors").exists()


def test_its_checkpoint_loads_and_says_where_it_comes_from(run: Run, source: list[str], tmp_path: Path) -> None:
    out = run("out")
    net = load(out / "model.safetensors")
    assert net.config.backbone == "test_convnext"
    index = index_images(source[1])
    held_out = np.argsort(index.keys.digests(), kind="stable")[:8]
    crops = RandomCrops(index, held_out, shorter_edge=64, crop=48, seed=0)
    (batch,) = DataLoader(crops, batch_sampler=central(held_out), collate_fn=stack)
    with torch.no_grad():
        spread = net(batch.pixels(torch.device("cpu"))).attributes
    assert spread.quantile(0.5, 0).numpy() == pytest.approx(0.5, abs=0.01), "calibrated on the held-out images"
    assert spread.quantile(0.9, 0).min() > 0.75
    saved = checkpoint.load(out / "model.safetensors")
    assert saved.prompts_hash is None
    assert saved.provenance["metrics"] == json.loads((out / "metrics.json").read_text())
    assert saved.provenance["metrics"]["teacher"] == "MeanColours(1)"
    assert str(tmp_path.parent) not in json.dumps(saved.provenance)
    again = run("again", "--init", out / "model.safetensors", "--epochs", 1, "--lr", 1e-12)
    assert torch.allclose(weights(again)["heads_in.weight"], weights(out)["heads_in.weight"], atol=1e-8)


def test_a_finished_run_only_prints(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("out")
    text, before = capsys.readouterr().out, (out / "model.safetensors").stat().st_mtime_ns
    run("out")
    assert capsys.readouterr().out == text
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match=r"another configuration \(seed: 0 there, 1 now\)"):
        run("out", "--seed", 1)


def test_only_chosen_attributes_are_trained_and_measured(run: Run) -> None:
    out, none = run("out", "--attributes", "contrast", "--weight-decay", 0), run("none", "--lr", 0, "--epochs", 1)
    row = json.loads((out / "metrics.json").read_text())["history"][-1]
    assert list(row["order_accuracy"]) == ["contrast"]
    moved = differing(weights(out), weights(none))
    assert "heads_out.1.weight" in moved
    assert not {f"heads_out.{head}.weight" for head in (0, 2, 3, 4)} & set(moved)


@pytest.mark.parametrize("flags", [("--loss", "l2"), ("--loss", "l2", "--tau", "3"), ("--accumulate", "2")])
def test_the_variants_run_and_differ(run: Run, flags: tuple[str, ...]) -> None:
    out = run("out", *flags)
    assert "backbone.trunk.stem_0.weight" in differing(weights(out), weights(run("plain")))
    assert json.loads((out / "metrics.json").read_text())["steps"] == (4 if "--accumulate" in flags else 8)


def test_accumulated_batches_are_a_step_on_their_mean(run: Run, recipe: ModuleType) -> None:
    """Two batches per step are worth the mean of the two batches' gradients, taken one by one at the same weights."""
    seen: list[Tensor] = []
    step = recipe.Training.step

    def first_step_only(self: Any, number: int) -> None:
        step(self, number)
        if number == 0:
            seen.append(self.net.heads_in.weight.grad.clone())

    recipe.Training.step = first_step_only
    run("two", "--accumulate", 2, "--epochs", 1)
    run("first", "--epochs", 1, "--lr", 0)

    def second_step(self: Any, number: int) -> None:
        step(self, number)
        if number == 1:
            seen.append(self.net.heads_in.weight.grad.clone())

    recipe.Training.step = second_step
    run("second", "--epochs", 1, "--lr", 0)
    both, first, second = seen
    assert not torch.allclose(first, second, atol=1e-4)
    assert torch.allclose(both, (first + second) / 2, atol=1e-6)


def test_the_signal_teacher_rates_the_crops_as_they_come(recipe: ModuleType, source: list[str], tmp_path: Path) -> None:
    for name, loss in (("a", "ranking"), ("b", "l2")):
        flags = ["--teacher", "signal", "--loss", loss, "--out", str(tmp_path / name)]
        recipe.main([*without_labels(source), *map(str, FLAGS), *flags])
        result = json.loads((tmp_path / name / "metrics.json").read_text())
        assert result["teacher"].startswith("SignalTeacher(")
        assert result["history"][-1]["order_accuracy"].keys() == set(ATTRIBUTES)


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
    tracker = Memory()
    monkeypatch.setattr(recipe, "Accelerator", lambda **settings: Accelerator(**{**settings, "log_with": tracker}))
    run("out")
    assert tracker.logged[0][1]["batch"] == "8"
    assert [step for step, values in tracker.logged if "images_per_second" in values] == [2, 3, 4, 6, 8]
    assert [step for step, values in tracker.logged if "order_accuracy/contrast" in values] == [4, 8]


def test_a_tracker_that_is_not_installed_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--tracker: expected one whose package is installed \(none.*\), got swanlab"):
        run("out", "--tracker", "swanlab")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_ends_with_the_weights_of_a_whole_one(
    run: Run, recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, an epoch's middle and its end, accumulation: whatever the step at which it stops."""
    flags = ("--pooled-dropout", 0.3, "--accumulate", 2, "--save-every", 1)
    whole = run("whole", *flags)
    step, started = recipe.Training.step, list[int]()

    def counted(self: Any, at: int) -> None:
        started.append(at)
        step(self, at)

    for stop in (1, 3):
        with monkeypatch.context() as patch:
            patch.setattr(
                recipe.Training, "step", lambda self, at, stop=stop: (1 / 0) if at == stop else step(self, at)
            )
            with pytest.raises(ZeroDivisionError):
                run(f"stop{stop}", *flags)
        started.clear()
        with monkeypatch.context() as patch:
            patch.setattr(recipe.Training, "step", counted)
            out = run(f"stop{stop}", *flags)
        assert started == list(range(stop, 4)), "nothing is done twice"
        assert differing(weights(out), weights(whole)) == []
        ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (out, whole))
        assert ours == theirs
    assert differing(weights(run("seed", *flags, "--seed", 1)), weights(whole))


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
        with pytest.raises(OSError, match="No space left on device"):
            run("out")
    assert (tmp_path / "out" / "state.safetensors").read_bytes() == saved[0]
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".tmp"]
    assert differing(weights(run("out")), weights(whole)) == []


def test_a_loss_that_is_no_number_stops_with_the_images_of_its_batch(
    run: Run, recipe: ModuleType, tmp_path: Path, source: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = recipe.Objective.__call__
    calls: list[int] = []

    def spoilt(self: Any, raw: Tensor, labels: Tensor) -> Tensor:
        calls.append(0)
        loss: Tensor = objective(self, raw, labels)
        return loss * float("nan") if len(calls) == 6 else loss

    monkeypatch.setattr(recipe.Objective, "__call__", spoilt)
    with pytest.raises(SystemExit, match=r"the loss is nan at step 5; .*bad_batch\.json names the batch's images"):
        run("out")
    bad = json.loads((tmp_path / "out" / "bad_batch.json").read_text())
    assert (bad["step"], bad["epoch"], bad["loss"]) == (5, 1, "nan")
    index = index_images(source[1])
    rows = np.argsort(index.keys.digests(), kind="stable")[8:]
    epoch, numbers = GlobalBatches(rows, 8, 8).whole(5)
    assert epoch == 1
    assert bad["keys"] == [[index.keys[int(number)] for number in numbers]]
    state = load_file(tmp_path / "out" / "state.safetensors")
    assert all(value.isfinite().all() for value in state.values()), "the checkpoint is from before it"
    assert not (tmp_path / "out" / "model.safetensors").exists()


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
    assert json.loads((tmp_path / "one" / "metrics.json").read_text())["unreadable"].keys() == {keys_of[0]}
    assert capsys.readouterr().err.count(f"unreadable, replaced: {keys_of[0]}: a file of 0 bytes") == 1
    broken[1].write_bytes(b"")
    monkeypatch.setattr(recipe.Training, "validate", lambda self: pytest.fail("it looks before the epoch is over"))
    with pytest.raises(SystemExit, match="2 of 40 images cannot be read"):
        recipe.main([*words, "--out", str(tmp_path / "two")])


def test_images_without_labels_are_refused_when_they_are_many(
    recipe: ModuleType, source: list[str], tmp_path: Path
) -> None:
    shutil.copytree(source[1], tmp_path / "photos")
    words = ["--images", str(tmp_path / "photos"), *source[2:], *map(str, FLAGS), "--epochs", "1"]
    (tmp_path / "photos" / "new.jpg").write_bytes(unlabelled_tree.jpeg(99))
    recipe.main([*words, "--out", str(tmp_path / "one")])
    assert json.loads((tmp_path / "one" / "metrics.json").read_text())["n_train"] == 32, "one may be missing"
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


def test_a_state_of_other_labels_or_images_is_refused(
    run: Run, recipe: ModuleType, source: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(recipe.Training, "finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
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
def test_a_run_killed_by_the_system_ends_with_the_very_same_weights(source: list[str], tmp_path: Path) -> None:
    words = [
        *unlabelled_tree.command("pretrain"),
        *source,
        *map(str, FLAGS),
        "--epochs",
        "10",
        "--pooled-dropout",
        "0.3",
    ]
    words[words.index("--workers") + 1] = "1"
    whole = unlabelled_tree.shell(*words, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    command = [*words, "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        command, cwd=unlabelled_tree.ROOT, env=unlabelled_tree.ENVIRONMENT, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "state.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        unlabelled_tree.kill(process.pid)
    assert process.returncode == -9
    assert not (tmp_path / "out" / "model.safetensors").exists(), "it was killed too late to test anything"
    done = unlabelled_tree.shell(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert " 0/40 " not in done.stderr, "it went on"
    assert differing(weights(tmp_path / "out"), weights(tmp_path / "whole")) == []
    assert done.stdout == whole.stdout


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--accumulate", "2", "--loss", "l2")], ids=["ranking", "accumulated l2"])
def test_two_processes_take_the_steps_of_one(source: list[str], tmp_path: Path, flags: tuple[str, ...]) -> None:
    words = [*source, *map(str, FLAGS), "--epochs", "3", *flags]
    for processes in (1, 2):
        done = unlabelled_tree.shell(
            *unlabelled_tree.command("pretrain", processes), *words, "--out", tmp_path / str(processes)
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("epoch 1,") == 1, "printed by the main process alone"
    steps = json.loads((tmp_path / "2" / "metrics.json").read_text())["steps"]
    assert steps >= 5
    one, two = (weights(tmp_path / name) for name in "12")
    apart = {name: (one[name] - two[name]).abs().max().item() for name in one if one[name].is_floating_point()}
    assert max(apart.values()) < 1e-5
    start = unlabelled_tree.shell(
        *unlabelled_tree.command("pretrain"), *words, "--lr", "0", "--weight-decay", "0", "--out", tmp_path / "0"
    )
    assert start.returncode == 0, start.stderr[-3000:]
    moved = (weights(tmp_path / "0")["backbone.trunk.stem_0.weight"] - one["backbone.trunk.stem_0.weight"]).abs().max()
    assert moved > 1e-3, "steps so small would be equal whatever was gathered"


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
