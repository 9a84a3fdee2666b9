from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from attriqa import ATTRIBUTES
from attriqa.data.leaks import LeakError, check_leak, find_leaks, identical_files, merge_duplicates
from attriqa.data.splits import official_fold, random_folds, random_split, training_subset
from attriqa.distortions import luma
from attriqa.evaluation.bootstrap import median_of_folds
from attriqa.evaluation.probes import follow_departures, follow_ramps


def test_a_split_is_complete_disjoint_and_keeps_groups() -> None:
    groups = [f"g{i % 23}" for i in range(60)]
    train, test = random_split(groups, seed=3)
    assert sorted(train + test) == list(range(60))
    assert train == sorted(train)
    assert test == sorted(test)
    assert not {groups[i] for i in train} & {groups[i] for i in test}
    assert len({groups[i] for i in test}) == round(0.2 * 23)


def test_a_split_is_a_function_of_its_seed() -> None:
    groups = [str(i) for i in range(50)]
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    assert random_split(groups, seed=4) == random_split(groups, seed=4)
    tests = [tuple(random_split(groups, seed)[1]) for seed in range(5)]
    assert len(set(tests)) == 5
    assert all(len(test) == 10 for test in tests)
    assert len(random_split(groups, 0, test_fraction=0.5)[1]) == 25
    assert (np.random.get_state(legacy=False)["state"]["key"] == state).all()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_wrong_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"test_fraction: expected a number within \(0, 1\)"):
        random_split(["a", "b", "c"], 0, fraction)


@pytest.mark.parametrize("groups", [[], ["a"], ["a"] * 30, ["a", "b"]])
def test_too_few_groups_are_refused(groups: list[str]) -> None:
    with pytest.raises(ValueError, match=r"groups: .* too few to split"):
        random_split(groups, 0)


@pytest.mark.parametrize(("references", "train", "test"), [(29, 23, 6), (30, 24, 6), (25, 20, 5), (81, 65, 16)])
def test_references_are_split_as_the_papers_do(references: int, train: int, test: int) -> None:
    groups = [f"I{i:02d}" for i in range(references) for _ in range(3)]
    sides = [{groups[i] for i in side} for side in random_split(groups, seed=0)]
    assert [len(side) for side in sides] == [train, test]


def test_random_folds_are_the_seeded_splits() -> None:
    groups = [str(i // 2) for i in range(100)]
    folds = random_folds(groups)
    assert [fold.name for fold in folds] == [f"split{i}" for i in range(10)]
    assert [(fold.train, fold.test) for fold in folds] == [random_split(groups, seed) for seed in range(10)]
    assert random_folds(groups, 3) == folds[:3]
    with pytest.raises(ValueError, match="repeats: expected at least 1, got 0"):
        random_folds(groups, 0)


def test_data_efficient_folds_keep_their_test_side_and_nest() -> None:
    groups = [str(i // 4) for i in range(400)]  # 100 groups: 80 train
    whole, fifth, tenth = (random_folds(groups, 2, fraction=fraction) for fraction in (1.0, 0.2, 0.1))
    for every, some, few in zip(whole, fifth, tenth, strict=True):
        assert every.test == some.test == few.test
        assert set(few.train) < set(some.train) < set(every.train)
        assert (len(few.train), len(some.train), len(every.train)) == (8 * 4, 16 * 4, 80 * 4)
        assert few.train == sorted(few.train)
        for fold in (some, few):
            left_out = {groups[i] for i in every.train} - {groups[i] for i in fold.train}
            assert not left_out & {groups[i] for i in fold.train}, "groups stay whole"
    assert tenth[0].train != tenth[1].train
    assert training_subset([5, 3], list("aabbcc"), 0.01, seed=0) in ([3], [5]), "never nothing"


@pytest.mark.parametrize("fraction", [0.0, 1.01, -1, float("nan")])
def test_a_wrong_share_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"fraction: expected a number within \(0, 1\]"):
        random_folds([str(i) for i in range(10)], 1, fraction=fraction)


def test_the_official_fold_leaves_validation_out() -> None:
    splits = ["train", "test", "val", None, "train", "test", "train"]
    fold = official_fold(splits, [str(i) for i in range(7)])
    assert fold == ("official", [0, 4, 6], [1, 5])
    small = official_fold(splits, [str(i) for i in range(7)], fraction=0.3, seed=2)
    assert len(small.train) == 1
    assert small.test == [1, 5]
    with pytest.raises(ValueError, match="groups: 1 are on both sides of the official split: b"):
        official_fold(splits, ["a", "b", "c", "d", "b", "e", "f"])
    for sides in ([None] * 7, ["train"] * 7, ["val", "test"] * 3 + ["val"]):
        with pytest.raises(ValueError, match=r"splits: expected an official split, got \d train and \d test rows"):
            official_fold(sides, [str(i) for i in range(7)])
    with pytest.raises(ValueError, match="expected equal lengths, got 7 and 6"):
        official_fold(splits, ["a"] * 6)


def test_the_median_of_folds_and_its_interval() -> None:
    values = [0.80, 0.82, 0.81, 0.90, 0.70]
    result = median_of_folds(values)
    assert result.median == 0.81
    assert 0.70 <= result.low < 0.81 < result.high <= 0.90
    assert median_of_folds(values[::-1]).median == 0.81
    assert median_of_folds(values) == result
    assert median_of_folds([0.5]) == (0.5, 0.5, 0.5)
    tight = median_of_folds([0.81 + (value - 0.81) / 10 for value in values])
    assert tight.high - tight.low == pytest.approx((result.high - result.low) / 10)
    for bad in ([], [0.5, float("nan")]):
        with pytest.raises(ValueError, match="values: expected one or more finite numbers"):
            median_of_folds(bad)


def test_the_interval_of_the_median_covers() -> None:
    """Of normal folds, 10 each: the true median is inside nearly as often as 95 % (small samples: a little less)."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        _, low, high = median_of_folds(rng.normal(0.8, 0.02, 10).tolist(), resamples=400)
        inside += low <= 0.8 <= high
    assert 176 <= inside <= 200


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two equal ones (1, 4), two equal up to their last byte (2, 3), an empty one, one of another size."""
    long = bytes(range(256)) * 200
    contents = [b"one", long + b"a", long + b"b", long + b"c", long + b"a", b""]
    paths = []
    for index, content in enumerate(contents):
        paths.append(tmp_path / f"{index}.jpg")
        paths[-1].write_bytes(content)
    return paths


def test_identical_files_are_found_by_content(files: list[Path]) -> None:
    assert identical_files(files) == [[1, 4]]
    files[5].write_bytes(b"one")
    assert identical_files(files) == [[0, 5], [1, 4]]
    assert identical_files([files[4], files[2], files[1], files[4]]) == [[0, 2, 3]]
    assert identical_files([]) == []
    with pytest.raises(FileNotFoundError, match="none"):
        identical_files([files[0], files[0].with_name("none.jpg")])


def test_merged_groups_hold_all_that_hangs_together(files: list[Path]) -> None:
    assert merge_duplicates(files, list("abcdef")) == ["a", "b", "c", "d", "b", "f"]
    assert merge_duplicates(files, ["a", "b", "c", "c", "c", "f"]) == ["a", "b", "b", "b", "b", "f"]
    files[5].write_bytes(files[2].read_bytes())
    files[0].write_bytes(files[1].read_bytes())
    assert merge_duplicates(files, ["x", "b", "x", "d", "e", "d"]) == ["x"] * 6, "0 = 1 = 4 and 2 = 5, tied by x and d"
    files[3].write_bytes(files[5].read_bytes())
    chain = [files[0], files[1], files[2], files[3]]  # 0 = 1, 2 = 3
    assert merge_duplicates(chain, ["a", "b", "c", "b"]) == ["a"] * 4, "c joins b, which has joined a"
    assert merge_duplicates(chain, ["a", "b", "c", "d"]) == ["a", "a", "c", "c"]
    crossed = [files[0], files[2], files[1], files[3]]
    assert merge_duplicates(crossed, ["a", "b", "c", "c"]) == ["a"] * 4, "c ties a to b"
    with pytest.raises(ValueError, match="expected equal lengths, got 6 and 1"):
        merge_duplicates(files, ["a"])


def test_merged_groups_do_not_leak(files: list[Path]) -> None:
    groups = merge_duplicates(files, list("abcdef"))
    for fold in random_folds(groups, 20):
        check_leak([files[i] for i in fold.train], [files[i] for i in fold.test])
    leaks = [
        find_leaks([files[i] for i in f.train], [files[i] for i in f.test]) for f in random_folds(list("abcdef"), 20)
    ]
    assert any(leaks), "without merging some splits part the two"


def test_a_leak_is_refused_and_named(files: list[Path]) -> None:
    check_leak(files[:4], files[5:])
    check_leak([files[1], files[4]], files[2:4])
    check_leak([], files)
    with pytest.raises(LeakError, match=r"(?s)training and test files: 1 test files are .*1\.jpg = .*4\.jpg$"):
        check_leak(files[:4], files[4:])
    with pytest.raises(LeakError, match=r"(?s)^mine: 1 test files.*0\.jpg on both sides$"):
        check_leak(files[:1], files[:1], what="mine")
    link = files[0].with_name("link.jpg")
    link.symlink_to(files[2])
    assert find_leaks(files[:3], [link, files[4], files[5]]) == [(files[1], files[4]), (files[2], link)]
    with pytest.raises(LeakError) as refusal:
        check_leak([files[0]], [files[0]] * 13)
    assert "13 test files" in str(refusal.value)
    assert str(refusal.value).endswith("and 3 more")


def test_leaks_are_found_without_reading_files_that_cannot_be_equal(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = Path.open

    def spy(self: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(self.name)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", spy)
    identical_files([files[0], files[1], files[5]])
    assert opened == [], "three sizes"
    files[2].write_bytes(b"?" + files[2].read_bytes()[1:])
    opened.clear()
    identical_files(files[1:3])
    assert sorted(opened) == ["1.jpg", "2.jpg"], "only their beginnings"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("photos")
    found = []
    for seed in range(2):
        small = np.random.default_rng(seed).integers(70, 186, (12, 14, 3)).astype(np.uint8)
        found.append(root / f"{seed}.png")
        Image.fromarray(small).resize((56, 48), Image.Resampling.NEAREST).save(found[-1])
    return found


def measures(images: Tensor) -> Tensor:
    """(B, 5): a planted measure for contrast, brightness, colour; a constant; the opposite of brightness."""
    gray = luma(images)
    colour = (images.amax(1) - images.amin(1)).mean((1, 2))
    mean = gray.mean((1, 2, 3))
    return torch.stack([torch.full_like(mean, 0.5), gray.std((1, 2, 3)), mean, colour, -mean], 1)


def test_planted_measures_follow_their_ramps(paths: list[Path]) -> None:
    table = follow_ramps(measures, paths, progress=False)
    assert table.photos == 2
    srocc = dict(zip(ATTRIBUTES, table.srocc, strict=True))
    for name in ("contrast", "brightness", "colorfulness"):
        assert srocc[name][ATTRIBUTES.index(name)] == pytest.approx(1)
    assert srocc["brightness"][4] == pytest.approx(-1), "a sign is kept"
    assert all(row[0] == 0 for row in table.srocc), "a head that stands still follows nothing"
    change = dict(zip(ATTRIBUTES, table.change, strict=True))
    assert change["brightness"][2] > 0.2
    assert change["brightness"][4] == pytest.approx(-change["brightness"][2])
    assert change["contrast"][0] == 0
    assert abs(change["contrast"][2]) < 0.02


def test_the_table_is_the_mean_over_photos_and_seeded(paths: list[Path]) -> None:
    both = follow_ramps(measures, paths, progress=False)
    alone = [follow_ramps(measures, [path], progress=False) for path in paths]
    # The noise of the second photo depends on the first: compare the other four ramps.
    for row in range(4):
        np.testing.assert_allclose(both.change[row], (np.array(alone[0].change[row]) + alone[1].change[row]) / 2)
    assert follow_ramps(measures, paths, progress=False) == both
    assert follow_ramps(measures, paths, seed=1, progress=False).change[4] != both.change[4]


def test_photos_are_reduced_before_they_are_changed(paths: list[Path]) -> None:
    sizes = set()

    def watched(images: Tensor) -> Tensor:
        sizes.add(min(images.shape[2:]))
        return images.mean((1, 2, 3))

    follow_departures(watched, paths, shorter_edge=40, progress=False)
    follow_ramps(lambda images: watched(images)[:, None].expand(-1, 5), paths, shorter_edge=40, progress=False)
    assert sizes == {40}


def test_scores_follow_departures_or_do_not(paths: list[Path]) -> None:
    """Nearness to the mean light of both photos, a constant, a liking for light."""
    light = follow_departures(lambda images: luma(images).mean((1, 2, 3)), paths, progress=False)
    assert light["underexposed"].srocc == pytest.approx(1)
    assert light["underexposed"].first == 1
    assert light["underexposed"].loss > 0.1
    assert light["overexposed"].srocc == pytest.approx(-1)
    assert light["overexposed"].first == 0
    assert light["overexposed"].loss < -0.05
    still = follow_departures(lambda images: torch.full((len(images),), 0.3), paths, progress=False)
    assert set(still.values()) == {(0.0, 0.0, 0.0)}

    def balance(images: Tensor) -> Tensor:
        means = images.mean((2, 3))
        return -(means - means.mean(1, keepdim=True)).abs().sum(1)

    cast = follow_departures(balance, paths, progress=False)
    assert cast["cast"].srocc > 0.8
    assert cast["flat"].loss == pytest.approx(0, abs=0.02)
    assert follow_departures(balance, paths, progress=False) == cast
    assert follow_departures(balance, paths, seed=1, progress=False)["cast"] != cast["cast"]
