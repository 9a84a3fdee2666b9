from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from attriqa import ATTRIBUTES
from attriqa.data.crops import PhotoCrops
from attriqa.data.ramps import DRAWN, RAMPS, DepartureGroups, RampGroups
from attriqa.images import read


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six photos in which every window differs from every other."""
    root = tmp_path_factory.mktemp("photos")
    found = [root / f"{seed}.png" for seed in range(6)]
    for seed, path in enumerate(found):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 80, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return found


def crops(paths: list[Path], epoch: int = 0, workers: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    dataset = PhotoCrops(paths, 64, 40, seed)
    dataset.start_epoch(epoch)
    images, indices = zip(*DataLoader(dataset, 2, num_workers=workers), strict=True)
    return torch.cat(images), torch.cat(indices)


def test_crops_are_windows_of_their_photos_perhaps_flipped(paths: list[Path]) -> None:
    flips = 0
    for epoch in range(4):
        images, indices = crops(paths, epoch)
        assert images.shape == (6, 3, 40, 40)
        assert sorted(indices.tolist()) == list(range(6))
        for image, index in zip(images, indices.tolist(), strict=True):
            windows = read(paths[index]).unfold(1, 40, 1).unfold(2, 40, 1)  # (3, y, x, 40, 40)
            hits = [
                (windows == view[:, None, None]).all(-1).all(-1).all(0).sum().item() for view in (image, image.flip(2))
            ]
            assert sorted(hits) == [0, 1], "geometry only: the very pixels"
            flips += hits[1]
    assert 4 <= flips <= 20


def test_draws_depend_on_seed_epoch_and_index_alone(paths: list[Path]) -> None:
    state = torch.get_rng_state()
    images, indices = crops(paths, epoch=2)
    for workers in (0, 2):
        again, order = crops(paths, epoch=2, workers=workers)
        assert torch.equal(again, images)
        assert torch.equal(order, indices)
    late = PhotoCrops(paths, 64, 40, 0)
    for epoch in (0, 1, 2):
        late.start_epoch(epoch)
    assert torch.equal(late[4][0], images[4]), "no earlier draw counts"
    assert not torch.equal(crops(paths, epoch=3)[1], indices)
    assert not torch.equal(crops(paths, epoch=2, seed=1)[0], images)
    by_index = dict(zip(indices.tolist(), images, strict=True))
    other, order = crops(paths, epoch=3)
    assert all(not torch.equal(by_index[i], image) for i, image in zip(order.tolist(), other, strict=True))
    torch.set_rng_state(state)


def test_ramp_groups_are_one_crop_at_several_levels(paths: list[Path]) -> None:
    dataset = RampGroups(paths, 40, levels=4, seed=0)
    assert len(dataset) == 6 * len(RAMPS)
    for index in range(24):
        images, level, ramp = dataset[index]
        assert images.shape == (4, 3, 40, 40)
        assert 0 <= images.min() <= images.max() <= 1
        assert level.shape == (4,)
        assert ((level >= 0) & (level <= 1)).all()
        assert ramp == index % len(RAMPS)
        if RAMPS[ramp] == "brightness":
            assert torch.equal(images.mean((1, 2, 3)).argsort(), level.argsort())
        if RAMPS[ramp] == "colorfulness":
            assert torch.equal((images.amax(1) - images.amin(1)).mean((1, 2)).argsort(), level.argsort())
        if ramp >= len(ATTRIBUTES):
            assert level[0] == 1, "the photo as it was developed"
            away = (images - images[0]).square().mean((1, 2, 3))
            assert torch.equal(away.argsort(), level.argsort(descending=True)), RAMPS[ramp]


def test_ramp_draws_depend_on_seed_epoch_and_index_alone(paths: list[Path]) -> None:
    def groups(epoch: int, workers: int = 0, seed: int = 0) -> Tensor:
        dataset = RampGroups(paths[:2], 40, levels=2, seed=seed)
        dataset.start_epoch(epoch)
        return torch.cat([images for images, _, _ in DataLoader(dataset, 2, num_workers=workers)])

    first = groups(1)
    assert torch.equal(groups(1), first)
    assert torch.equal(groups(1, workers=2), first)
    for other in (groups(2), groups(1, seed=1)):
        assert (other != first).flatten(1).any(1).all()


def test_half_of_the_ramps_start_from_a_changed_photo(tmp_path: Path) -> None:
    """On a gray photo a colorfulness ramp has no other colour than noise put there first."""
    path = tmp_path / "gray.png"
    Image.fromarray(np.random.default_rng(0).integers(60, 190, (64, 64)).astype(np.uint8)).save(path)
    dataset = RampGroups([path] * 60, 40, levels=2, seed=0)
    coloured = 0
    for index in range(3, 60 * len(RAMPS), len(RAMPS)):  # colorfulness
        images, _, _ = dataset[index]
        coloured += int((images[:, 0] - images[:, 1]).abs().max() > 0.01)
    assert 1 <= coloured <= 15, "one in ten starts from a noisy photo"


def test_drawn_departures_go_away_from_where_they_begin(paths: list[Path]) -> None:
    dataset = DepartureGroups(paths[:2], 60, levels=4, seed=0)
    assert len(dataset) == 2 * len(DRAWN)
    chroma, sides = {}, set()
    for index in range(len(dataset)):
        images, level = dataset[index]
        side = images.shape[-1]
        assert images.shape == (4, 3, side, side)
        sides.add(side)
        assert 0 <= images.min() <= images.max() <= 1
        assert level[0] == 1
        assert ((level[1:] >= 0) & (level[1:] < 1)).all()
        away = (images - images[0]).square().mean((1, 2, 3))
        assert torch.equal(away.argsort(), level.argsort(descending=True)), DRAWN[index % len(DRAWN)]
        spread = (images.amax(1) - images.amin(1)).mean((1, 2))
        chroma[index] = torch.equal(spread.argsort(), level.argsort())
    grays = [index for index in chroma if DRAWN[index % len(DRAWN)] == "gray"]
    assert sides == {36, 48, 60}
    assert all(chroma[index] for index in grays)
    assert not all(chroma.values())
    again = DepartureGroups(paths[:2], 60, levels=4, seed=0)
    assert torch.equal(again[5][0], dataset[5][0])
    assert not torch.equal(DepartureGroups(paths[:2], 60, levels=4, seed=1)[5][0], dataset[5][0])


def test_some_drawn_departures_start_from_a_changed_photo_but_none_that_ends_gray_from_a_cast(tmp_path: Path) -> None:
    """A gray photo gets chroma from noise, from a cast, and from nothing else."""
    path = tmp_path / "gray.png"
    Image.fromarray(np.random.default_rng(0).integers(60, 190, (128, 128)).astype(np.uint8)).save(path)
    dataset = DepartureGroups([path] * 100, 120, levels=2, seed=0)
    tinted: dict[str, list[bool]] = {"gray": [], "harsh": []}
    colored = 0
    for index in range(len(dataset)):
        if DRAWN[index % len(DRAWN)] in tinted:
            start = dataset[index][0][0]
            colored += int((start[0] - start[1]).abs().max() > 0.01)
            mean = start.mean((1, 2))
            tinted[DRAWN[index % len(DRAWN)]].append(bool((mean.amax() - mean.amin()) > 0.015))
    assert not any(tinted["gray"])
    assert 1 <= sum(tinted["harsh"]) <= 15, "two in five depart already, one in seven of these in balance"
    assert 0.3 * 300 < colored < 0.55 * 300, "two in five are noisy"


def test_a_crop_larger_than_the_photo_is_refused(paths: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"crop: expected at most the shorter side of .*png, 64, got 65"):
        PhotoCrops(paths, 64, 65, 0)[0]
