"""Where ExIQA's images come from: strengths by the papers' rules, references whole, clear refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from attriqa.data.datasets import read_dataset
from attriqa.data.leaks import LeakError
from attriqa.data.sources import (
    chosen,
    manifest_plan,
    manifest_source,
    photo_plan,
    photo_source,
    rated_plan,
    rated_source,
    strengths_of,
)
from attriqa.distortions import DISTORTION_KEYS
from attriqa.distortions.attributes import DISTORTION_ATTRIBUTES
from attriqa.distortions.mixtures import Mixture, write_manifest
from tests.support.trees import datasets as dataset_trees
from tests.support.trees import exiqa as exiqa_tree

JPEG = chosen(DISTORTION_ATTRIBUTES, ("jpeg",))


def test_a_rated_set_has_its_levels_in_the_columns_of_its_types(tmp_path: Path) -> None:
    root = exiqa_tree.kadid(tmp_path / "kadid", 2)
    source = rated_source(f"kadid={root}", DISTORTION_KEYS, DISTORTION_KEYS)
    assert source.strengths is not None
    assert source.mos is not None
    assert len(source.paths) == 2 * 3 * 5
    for path, group, row, mos in zip(source.paths, source.groups, source.strengths, source.mos, strict=True):
        reference, kind, level = path.stem.split("_")
        expected = torch.zeros(25)
        expected[int(kind) - 1] = int(level) / 5
        assert torch.equal(row, expected)
        assert group == reference
        native = 5 - 0.7 * int(level) - 0.02 * int(reference[1:])
        assert mos.item() == pytest.approx((native - 1) / 4, abs=1e-6)


def test_only_the_wanted_distortions_are_kept_and_limited(tmp_path: Path) -> None:
    root = exiqa_tree.kadid(tmp_path / "kadid", 2)
    source = rated_source(f"kadid={root}", ("darken", "jpeg"), DISTORTION_KEYS)
    assert source.strengths is not None
    assert source.strengths.shape == (10, 2)
    assert (source.strengths[:, 0] > 0).all()
    assert (source.strengths[:, 1] == 0).all()
    assert len(rated_source(f"kadid={root}", ("darken",), DISTORTION_KEYS, limit=3).paths) == 3
    with pytest.raises(ValueError, match="--data: KADID-10k has no image of jpeg"):
        rated_source(f"kadid={root}", ("jpeg",), DISTORTION_KEYS)


def test_distortions_without_attributes_are_named(tmp_path: Path) -> None:
    root = dataset_trees.csiq(tmp_path / "csiq", labels="csiq_label.txt")
    with pytest.raises(ValueError, match=r"--table: .* distortion of CSIQ; there are none for AWGN, BLUR, contrast"):
        rated_source(f"csiq={root}", DISTORTION_KEYS, DISTORTION_KEYS)


def test_case_does_not_count_and_the_contrast_of_csiq_has_four_levels(tmp_path: Path) -> None:
    root = dataset_trees.csiq(tmp_path / "csiq", labels="csiq_label.txt")
    keys = ("awgn", "blur", "contrast", "fnoise", "jpeg", "jpeg2000")
    source = rated_source(f"csiq={root}", keys, keys)
    assert source.strengths is not None
    found = {path.name: row.max().item() for path, row in zip(source.paths, source.strengths, strict=True)}
    assert found["1600.contrast.2.png"] == pytest.approx(2 / 4)
    assert found["1600.BLUR.5.png"] == 1
    assert found["aerial_city.fnoise.3.png"] == pytest.approx(3 / 5)
    assert source.strengths.argmax(1).unique().tolist() == [0, 1, 2, 3, 4, 5]


def test_without_names_there_are_no_strengths(tmp_path: Path) -> None:
    root = dataset_trees.csiq(tmp_path / "csiq", labels="csiq_label.txt")
    source = rated_source(f"csiq={root}", DISTORTION_KEYS, DISTORTION_KEYS, unnamed=True)
    assert source.strengths is not None
    assert (source.named, len(source.paths), source.strengths.max().item()) == (False, 6, 0)
    keys = [name.lower() for name in ("AWGN", "BLUR", "contrast", "fnoise", "JPEG", "jpeg2000")]
    known = rated_source(f"csiq={root}", keys, keys, unnamed=True)
    assert known.named
    assert known.levels == (5, 5, 4, 5, 5, 5)


def test_lvq_has_four_levels(tmp_path: Path) -> None:
    dataset = read_dataset("lvq", dataset_trees.lvq(tmp_path))
    assert strengths_of(dataset) == [row.level / 4 for row in dataset.rows if row.level]


def test_live_is_cut_into_five_bins_of_equal_count_the_worst_last(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rated: dict[str, tuple[float, str]] = {}
    parameters: dict[str, float] = {}
    for kind, sign in {"jp2k": -1, "jpeg": -1, "fastfading": -1, "wn": 1, "gblur": 1}.items():
        for number in range(1, 24):
            damage = float(rng.uniform(1, 90))  # DMOS, higher is worse
            rated[f"{kind}/img{number}.bmp"] = (damage, f"r{number % 3}.bmp")
            parameters[f"{kind}/img{number}.bmp"] = 0.1 * damage if sign > 0 else 10 - 0.1 * damage
    dataset = read_dataset("live", dataset_trees.live(tmp_path, rated, parameters))
    strengths = np.array(strengths_of(dataset))
    for kind in ("jp2k", "jpeg", "fastfading", "wn", "gblur"):
        mine = np.array([row.distortion == kind for row in dataset.rows])
        values, counts = np.unique(strengths[mine], return_counts=True)
        assert values.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert set(counts) <= {4, 5}
        mos = np.array([row.mos for row in dataset.rows])[mine]
        order = np.argsort(strengths[mine], kind="stable")
        groups = np.split(mos[order], np.cumsum(counts)[:-1])
        assert all(groups[i].min() > groups[i + 1].max() for i in range(4)), "more damage, more strength"


def test_sets_without_levels_are_refused(tmp_path: Path) -> None:
    dataset = read_dataset("agiqa", dataset_trees.agiqa(tmp_path))
    with pytest.raises(ValueError, match="--data: expected a data set with levels of distortions, AGIQA-3k has none"):
        strengths_of(dataset)


def test_a_manifest_keeps_images_with_wanted_distortions_alone(tmp_path: Path) -> None:
    exiqa_tree.photos(tmp_path, 3)
    entries = [
        ("pristine_0.png", "a", Mixture((9, 10), (1, 5), 0)),
        ("pristine_1.png", "b", Mixture((9, 0), (2, 2), 0)),
        ("pristine_2.png", "c", Mixture((), (), 0)),
    ]
    write_manifest(tmp_path / "manifest.csv", entries, single=False)
    source = manifest_source(tmp_path, ("white_noise", "jpeg"))
    assert source.strengths is not None
    assert torch.equal(source.strengths, torch.tensor([[1, 0.2], [0, 0]]))
    assert source.groups == ("a", "c")
    assert source.mos is None
    assert manifest_source(tmp_path, DISTORTION_KEYS).strengths is not None
    with pytest.raises(ValueError, match=r"--distortions: .* got blur"):
        manifest_source(tmp_path, ("blur",))
    write_manifest(tmp_path / "manifest.csv", entries[:2], single=False)
    with pytest.raises(ValueError, match=r"--manifest: .* has no image with distortions of jitter alone"):
        manifest_source(tmp_path, ("jitter",))


def test_photos_by_patterns_each_once_and_copies_in_one_group(tmp_path: Path) -> None:
    exiqa_tree.photos(tmp_path, 3, name="a")
    exiqa_tree.photos(tmp_path, 2, name="b")
    (tmp_path / "c_0.png").write_bytes((tmp_path / "a_1.png").read_bytes())
    (tmp_path / "a.txt").write_text("no image")
    source = photo_source(tmp_path, ("a*", "a_0*", "c*"), DISTORTION_KEYS)
    assert [path.name for path in source.paths] == ["a_0.png", "a_1.png", "a_2.png", "c_0.png"]
    assert source.groups[1] == source.groups[3]
    plan = photo_plan(tmp_path, ("*",), None, JPEG, splits=5, held_out=0.3)
    assert [fold.name for fold in plan.folds] == [f"split{seed}" for seed in range(5)]
    for fold in plan.folds:
        assert sorted([*fold.train, *fold.test]) == list(range(6))
        assert (1 in fold.test) == (5 in fold.test), "two copies of one photo are on one side"
    assert len({tuple(fold.test) for fold in plan.folds}) > 1
    assert plan.protocol.endswith("random 70% / 30% splits by reference, median of 5")


@pytest.mark.parametrize(
    ("pattern", "keys", "message"),
    [
        ("z*", ("jpeg",), r"--photos: expected images z\* in .*, got none"),
        ("*", ("jpeg", "smoke"), r"--distortions: expected some of the 25 that can be applied here .* got smoke"),
    ],
)
def test_photos_that_are_not_there_and_distortions_that_nobody_can_apply(
    tmp_path: Path, pattern: str, keys: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        photo_source(exiqa_tree.photos(tmp_path, 2), (pattern,), keys)


def test_test_photos_must_be_strangers(tmp_path: Path) -> None:
    exiqa_tree.photos(tmp_path, 3, name="a")
    exiqa_tree.photos(tmp_path, 2, name="b")
    plan = photo_plan(tmp_path, ("a*",), ("b*",), JPEG, splits=4, held_out=0.5)
    (fold,) = plan.folds
    assert [plan.source.paths[i].name for i in fold.train] == ["a_0.png", "a_1.png", "a_2.png"]
    assert [plan.source.paths[i].name for i in fold.test] == ["b_0.png", "b_1.png"]
    (tmp_path / "b_2.png").write_bytes((tmp_path / "a_0.png").read_bytes())
    with pytest.raises(LeakError, match="training and test photos: 1 test files are training files too"):
        photo_plan(tmp_path, ("a*",), ("b*",), JPEG, splits=1, held_out=0.5)


def test_references_stay_whole(tmp_path: Path) -> None:
    root = exiqa_tree.kadid(tmp_path / "kadid", 5)
    plan = rated_plan(f"kadid={root}", DISTORTION_ATTRIBUTES, ("darken", "white_noise"), splits=3, held_out=0.2)
    assert [entry.key for entry in plan.table] == list(plan.source.keys) == ["white_noise", "darken"]
    for fold in plan.folds:
        sides = [{plan.source.groups[i] for i in side} for side in fold[1:]]
        assert [len(side) for side in sides] == [4, 1]
        assert not sides[0] & sides[1]
        assert (len(fold.train), len(fold.test)) == (40, 10)


def test_a_manifest_is_split_by_its_references(tmp_path: Path) -> None:
    exiqa_tree.photos(tmp_path, 4)
    entries = [(f"pristine_{i}.png", "ab"[i % 2], Mixture((9,), (i + 1,), 0)) for i in range(4)]
    write_manifest(tmp_path / "manifest.csv", entries, single=True)
    (fold,) = manifest_plan(tmp_path, JPEG, splits=1, held_out=0.5).folds
    assert {tuple(fold.train), tuple(fold.test)} == {(0, 2), (1, 3)}


def test_the_digest_is_of_names_groups_and_strengths(tmp_path: Path) -> None:
    root = exiqa_tree.kadid(tmp_path / "kadid", 2)
    source = rated_source(f"kadid={root}", DISTORTION_KEYS, DISTORTION_KEYS)
    moved = rated_source(f"kadid={root.rename(tmp_path / 'elsewhere')}", DISTORTION_KEYS, DISTORTION_KEYS)
    assert source.digest() == moved.digest()
    assert source.strengths is not None
    others = [
        source.only(range(29)),
        replace(source, strengths=source.strengths / 2),
        replace(source, groups=("a",) * 30),
    ]
    assert len({source.digest(), *(other.digest() for other in others)}) == 4


def test_entries_of_a_table_in_its_order() -> None:
    assert chosen(DISTORTION_ATTRIBUTES, None) == DISTORTION_ATTRIBUTES
    assert [entry.key for entry in chosen(DISTORTION_ATTRIBUTES, ("jpeg", "lens_blur"))] == ["lens_blur", "jpeg"]
    with pytest.raises(ValueError, match=r"--distortions: expected keys .* got jpg; did you mean jpeg\?"):
        chosen(DISTORTION_ATTRIBUTES, ("lens_blur", "jpg"))
