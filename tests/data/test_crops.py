import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from attriqa.data.batches import CENTRAL, GlobalBatches, central
from attriqa.data.crops import RandomCrops, stack
from attriqa.data.unlabelled import TooManyUnreadableError, index_images
from tests.support.trees import unlabelled as unlabelled_tree


def make(root: Path, count: int = 6, *, seed: int = 0) -> RandomCrops:
    index = index_images(unlabelled_tree.folder(root, count) if not root.exists() else root)
    return RandomCrops(index, np.arange(count), shorter_edge=64, crop=48, seed=seed)


def test_a_crop_is_a_part_of_the_image_or_of_its_mirror(tmp_path: Path) -> None:
    crops = make(tmp_path / "photos", 3)
    whole = (crops.index.read(1, shorter_edge=64) * 255).round().to(torch.uint8)
    mirrored, places = 0, set()
    for epoch in range(12):
        crop = crops[epoch, 1]
        assert (crop.image.shape, crop.image.dtype, crop.number) == ((1, 3, 48, 48), torch.uint8, 1)
        assert crop.unreadable == crop.replaced == ()
        found = [
            (flipped, top, left)
            for flipped, source in ((False, whole), (True, whole.flip(2)))
            for top, left in np.ndindex(whole.shape[1] - 47, whole.shape[2] - 47)
            if torch.equal(source[:, top : top + 48, left : left + 48], crop.image[0])
        ]
        assert found, "nothing but geometry may change"
        mirrored += found[0][0]
        places.add(found[0][1:])
    assert 0 < mirrored < 12
    assert len(places) > 8
    top, left = (64 - 48) // 2, (whole.shape[2] - 48) // 2
    assert torch.equal(crops[CENTRAL, 1].image[0], whole[:, top : top + 48, left : left + 48])


def test_a_crop_is_a_function_of_seed_epoch_and_image(tmp_path: Path) -> None:
    crops = make(tmp_path / "photos")
    again = make(tmp_path / "photos")
    assert torch.equal(again[7, 2].image, crops[7, 2].image)
    assert not torch.equal(crops[7, 2].image, crops[8, 2].image)
    other = make(tmp_path / "photos", seed=1)
    assert any(not torch.equal(other[epoch, 2].image, crops[epoch, 2].image) for epoch in range(3))
    batches = [[(0, 1), (0, 2)], [(1, 3), (1, 0)]]
    lone, two = (
        list(DataLoader(crops, batch_sampler=batches, num_workers=workers, collate_fn=stack)) for workers in (0, 2)
    )
    for ours, theirs in zip(lone, two, strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.number, theirs.number)
    assert lone[0].image.shape == (2, 3, 48, 48)
    assert torch.equal(lone[1].image[:1], crops[1, 3].image)
    assert torch.allclose(lone[0].pixels(torch.device("cpu")) * 255, lone[0].image.float())


def test_an_unreadable_image_is_replaced_and_told(tmp_path: Path) -> None:
    crops = make(tmp_path / "photos", 6)
    (tmp_path / "photos" / "002.JPG").write_bytes(b"no image")
    number = list(crops.index.keys).index("002.JPG")
    for epoch in range(4):
        crop = crops[epoch, number]
        (error,) = crop.replaced
        assert (error.path, "not an image" in error.reason) == ("002.JPG", True)
        assert crop.number != number
        assert torch.equal(crop.image, crops[epoch, number].image)
        assert crop.number in crops.rows
    batch = stack([crops[0, number], crops[0, 0]])
    assert [error.path for error in batch.replaced] == ["002.JPG"]
    assert batch.pixels(torch.device("cpu")).shape == (2, 3, 48, 48)
    for path in (tmp_path / "photos").rglob("*.[jJ]*"):
        path.write_bytes(b"")
    with pytest.raises(TooManyUnreadableError, match="in a row cannot be read"):
        crops[0, 0]


def test_a_panorama_is_large_enough_for_the_crop(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (1200, 40)).save(tmp_path / "photos" / "wide.png")
    crops = make(tmp_path / "photos", 1)
    assert crops.index.read(0, shorter_edge=64).shape[1] < 48
    assert crops[0, 0].image.shape == (1, 3, 48, 48)


def test_a_crop_larger_than_the_image_is_refused(tmp_path: Path) -> None:
    index = index_images(unlabelled_tree.folder(tmp_path / "photos", 1))
    with pytest.raises(ValueError, match="crop: expected at most shorter_edge, 64 px, got 65"):
        RandomCrops(index, np.arange(1), shorter_edge=64, crop=65, seed=0)


ROWS = np.array([3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37])


def test_an_epoch_sees_no_image_twice_and_the_next_one_another_order() -> None:
    batches = list(GlobalBatches(ROWS, 4, 4, seed=3))
    assert [{epoch for epoch, _ in batch} for batch in batches] == [{0}, {0}, {1}, {1}]
    numbers = [number for batch in batches for _, number in batch]
    assert len(set(numbers[:8])) == len(set(numbers[8:])) == 8
    assert set(numbers) <= set(ROWS.tolist())
    assert numbers[:8] != numbers[8:]
    assert list(GlobalBatches(ROWS, 4, 4, seed=3)) == batches
    assert list(GlobalBatches(ROWS, 4, 4, seed=4)) != batches


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_batches_of_one(processes: int) -> None:
    whole = list(GlobalBatches(ROWS, 8, 5))
    shares = [list(GlobalBatches(ROWS, 8, 5, process=i, processes=processes)) for i in range(processes)]
    assert [[*itertools.chain(*parts)] for parts in zip(*shares, strict=True)] == whole
    assert {len(batch) for share in shares for batch in share} == {8 // processes}


@pytest.mark.parametrize("first", [0, 1, 2, 3, 7, 9])
def test_batches_resume_at_any_position(first: int) -> None:
    rest = GlobalBatches(ROWS, 4, 9, first=first, process=1, processes=2)
    assert len(rest) == 9 - first
    assert list(rest) == list(GlobalBatches(ROWS, 4, 9, process=1, processes=2))[first:]
    epoch, numbers = rest.whole(5)[0], rest.numbers(5)
    assert [(epoch, number) for number in numbers] == list(GlobalBatches(ROWS, 4, 9))[5]


@pytest.mark.parametrize(("batch", "processes"), [(5, 2), (12, 1), (0, 1)])
def test_a_batch_that_cannot_be_is_refused(batch: int, processes: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of the {processes} processes, at most the 11 images, got {batch}"):
        GlobalBatches(ROWS, batch, 1, processes=processes)


def test_central_crops_come_in_batches() -> None:
    assert central(np.array([4, 2, 9]), 2) == [[(CENTRAL, 4), (CENTRAL, 2)], [(CENTRAL, 9)]]
    assert central(np.array([], np.int64)) == []
