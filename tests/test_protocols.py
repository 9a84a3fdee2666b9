from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from attriqa import ATTRIBUTES
from attriqa.distortions import luma
from attriqa.protocols import follow_ramps, random_split


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
