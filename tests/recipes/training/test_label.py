"""training/label.py in this process with a teacher that counts, and as users run it (slow)."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from attriqa.attributes import ATTRIBUTES
from attriqa.data import pseudo_labels
from attriqa.data.unlabelled import index_images
from attriqa.images import read
from attriqa.training.teachers import CLIPTeacher
from tests.support import small_clip
from tests.support.trees import unlabelled as unlabelled_tree

Run = Callable[..., None]


@pytest.fixture
def teacher() -> Any:
    return unlabelled_tree.MeanColours()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, teacher: Any) -> Iterator[Run]:
    """``run(images, out, *flags)`` with the counting teacher."""
    recipe = unlabelled_tree.load_recipe("label")
    monkeypatch.setattr(recipe, "teacher_of", lambda *_, **__: teacher)
    yield lambda images, out, *flags: recipe.main(["--images", str(images), "--out", str(out), "--smoke", *flags])
    AcceleratorState._reset_state(reset_partial_state=True)


def test_every_image_gets_the_teachers_scores(
    run: Run, teacher: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = unlabelled_tree.folder(tmp_path / "photos", 11)
    run(root, tmp_path / "out")
    labels = pseudo_labels.load(tmp_path / "out" / "labels.parquet", pseudo_labels.Origin("MeanColours(1)", None))
    assert len(labels) == teacher.seen == 11
    for key in ("000.JPG", "sub/009.jpg"):
        expected = unlabelled_tree.mean_colours(read(root / key)[None])
        np.testing.assert_allclose(labels.align([key]), expected, rtol=1e-6)
    summary, text = json.loads((tmp_path / "out" / "metrics.json").read_text()), capsys.readouterr().out
    assert summary["n"] == 11
    assert "11 images labelled by MeanColours(1), 0 unreadable" in text
    for name in ATTRIBUTES:
        line = re.search(rf"^{name} +mean (\S+)  std (\S+)  ", text, re.MULTILINE)
        assert line is not None
        assert [line[1], line[2]] == [f"{summary[name][key]:.4g}" for key in ("mean", "std")]


def test_shards_and_a_folder_of_the_same_pictures_get_the_same_labels(run: Run, tmp_path: Path) -> None:
    shards = unlabelled_tree.shards(tmp_path / "shards", 6, 4)
    (tmp_path / "photos").mkdir()
    for number in range(6):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(unlabelled_tree.jpeg(number))
    run(f"{shards}/part-{{000..001}}.tar", tmp_path / "a")
    run(tmp_path / "photos", tmp_path / "b")
    first = pseudo_labels.load(tmp_path / "a").align(f"v1.0/{number:05d}" for number in range(6))
    second = pseudo_labels.load(tmp_path / "b").align(f"{number}.jpg" for number in range(6))
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_a_label_is_never_computed_again(run: Run, teacher: Any, tmp_path: Path) -> None:
    root = unlabelled_tree.folder(tmp_path / "photos", 10)
    run(root, tmp_path / "out")
    before = (tmp_path / "out" / "labels.parquet").read_bytes()
    run(root, tmp_path / "out")
    assert teacher.seen == 10
    assert (tmp_path / "out" / "labels.parquet").read_bytes() == before
    (root / "aaa.jpg").write_bytes(unlabelled_tree.jpeg(77))
    run(root, tmp_path / "out")
    assert teacher.seen == 11
    assert len(pseudo_labels.load(tmp_path / "out")) == 11


def test_an_interrupted_run_loses_at_most_a_part(run: Run, teacher: Any, tmp_path: Path) -> None:
    root = unlabelled_tree.folder(tmp_path / "photos", 30)
    teacher.fail_after = 22  # parts of 8: two are written
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "out")
    assert len(pseudo_labels.load(tmp_path / "out")) >= 16
    assert not (tmp_path / "out" / "labels.parquet").exists()
    kept, teacher.fail_after, teacher.seen = len(pseudo_labels.load(tmp_path / "out")), 10**9, 0
    run(root, tmp_path / "out")
    assert teacher.seen == 30 - kept
    assert len(pseudo_labels.load(tmp_path / "out" / "labels.parquet")) == 30
    assert not list((tmp_path / "out" / "parts").iterdir())


def test_another_teacher_is_refused_and_both_are_named(run: Run, teacher: Any, tmp_path: Path) -> None:
    root = unlabelled_tree.folder(tmp_path / "photos", 3)
    run(root, tmp_path / "out")
    before = (tmp_path / "out" / "labels.parquet").read_bytes()
    teacher.identity, teacher.seen = "MeanColours(2)", 0
    with pytest.raises(SystemExit, match=r"MeanColours\(1\).*MeanColours\(2\).*never mixed"):
        run(root, tmp_path / "out")
    assert teacher.seen == 0
    assert (tmp_path / "out" / "labels.parquet").read_bytes() == before


def test_one_unreadable_image_is_told_and_left_out(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = unlabelled_tree.folder(tmp_path / "photos", 5)
    (root / "002.JPG").write_bytes((root / "002.JPG").read_bytes()[:300])
    run(root, tmp_path / "out")
    assert "unreadable, left out: 002.JPG: " in capsys.readouterr().err
    reasons = json.loads((tmp_path / "out" / "unreadable.json").read_text())
    assert list(reasons) == ["002.JPG"]
    assert str(tmp_path) not in reasons["002.JPG"]
    labels = pseudo_labels.load(tmp_path / "out").align(["000.JPG", "002.JPG"])
    assert np.isnan(labels).all(1).tolist() == [False, True]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["unreadable"] == 1


def test_too_many_unreadable_images_end_the_run_and_keep_its_labels(run: Run, teacher: Any, tmp_path: Path) -> None:
    root = unlabelled_tree.folder(tmp_path / "photos", 24)
    for number in (18, 20):
        (root / f"sub/{number + 1:03d}.jpg").write_bytes(b"")
    with pytest.raises(
        SystemExit, match=r"2 of 24 images cannot be read, more than the 1 allowed.*sub/019\.jpg: a file of 0 bytes"
    ):
        run(root, tmp_path / "out")
    assert not (tmp_path / "out" / "labels.parquet").exists()
    assert len(json.loads((tmp_path / "out" / "unreadable.json").read_text())) == 2
    kept = len(pseudo_labels.load(tmp_path / "out"))
    assert kept >= 8
    for number in (18, 20):
        (root / f"sub/{number + 1:03d}.jpg").write_bytes(unlabelled_tree.jpeg(number))
    teacher.seen = 0
    run(root, tmp_path / "out")
    assert teacher.seen == 24 - kept


def test_a_folder_of_another_source_is_refused(run: Run, tmp_path: Path) -> None:
    run(unlabelled_tree.folder(tmp_path / "a", 2), tmp_path / "out")
    with pytest.raises(SystemExit, match=r"another configuration \(images: .*a' there, .*b' now"):
        run(unlabelled_tree.folder(tmp_path / "b", 2), tmp_path / "out")


@pytest.mark.slow
def test_two_processes_killed_and_started_again_write_what_one_does(tmp_path: Path) -> None:
    images = unlabelled_tree.folder(tmp_path / "photos", 40)
    flags = ["--images", images, "--part", 4, "--batch", 2, "--workers", 1]
    words = [*unlabelled_tree.command("label", 2), *flags, "--out", tmp_path / "two"]
    unlabelled_tree.killed(words, lambda: list((tmp_path / "two").glob("parts/[!.]*.parquet")))
    assert not (tmp_path / "two" / "labels.parquet").exists(), "it was killed too late to test anything"
    kept = len(pseudo_labels.load(tmp_path / "two"))
    done = unlabelled_tree.shell(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("40 images labelled") == 1, "by the main process alone"
    assert f"/{(40 - kept + 1) // 2} [" in done.stderr, "half of what was left"
    done = unlabelled_tree.shell(*unlabelled_tree.command("label"), *flags, "--out", tmp_path / "one")
    assert done.returncode == 0, done.stderr[-3000:]
    keys = list(index_images(images).keys)
    one, two = (pseudo_labels.load(tmp_path / name / "labels.parquet").align(keys) for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_small_clip_labels_from_the_command_line(tmp_path: Path) -> None:
    images = unlabelled_tree.folder(tmp_path / "photos", 6)
    name = small_clip.write(tmp_path / "clip")
    words = [*unlabelled_tree.command("label"), "--images", images, "--smoke", "--out", tmp_path / "out"]
    done = unlabelled_tree.shell(*words, "--teacher", f"clip:{name}")
    assert done.returncode == 0, done.stderr[-3000:]
    teacher = CLIPTeacher(name)
    labels = pseudo_labels.load(tmp_path / "out", pseudo_labels.Origin(teacher.identity, teacher.prompts_hash))
    for key in ("000.JPG", "sub/005.jpg"):
        expected = teacher(read(images / key)[None]).numpy()
        np.testing.assert_allclose(labels.align([key]), expected, atol=1e-5)
    done = unlabelled_tree.shell(*words)
    assert done.returncode == 1
    assert "CLIPTeacher" in done.stderr
    assert "SignalTeacher" in done.stderr
