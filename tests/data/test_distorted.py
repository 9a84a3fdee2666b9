"""What a loader draws for ExIQA: a function of (seed, epoch, number), the pixels and strengths of one recipe."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from attriqa.data.batches import CENTRAL, central
from attriqa.data.crops import Example, stack
from attriqa.data.distorted import (
    Files,
    FixedMixtures,
    Mixtures,
    mean_strengths,
    one_distortion,
    photo_tests,
    several_distortions,
)
from attriqa.data.sources import DistortionSource, photo_source, rated_source
from attriqa.distortions import DISTORTION_KEYS
from attriqa.distortions.mixtures import Mixture, apply_mixtures, draw_mixture, strengths
from attriqa.images import ImageError, read
from tests.support.trees import exiqa as exiqa_tree

CHEAP = ("gaussian_blur", "white_noise", "impulse_noise", "brighten", "darken", "pixelate", "contrast_change")
AMONG = [DISTORTION_KEYS.index(key) for key in CHEAP]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> DistortionSource:
    return photo_source(exiqa_tree.photos(tmp_path_factory.mktemp("photos"), 4, side=96), ("*",), CHEAP)


def mixtures(source: DistortionSource, clean_share: float = 0.2, seed: int = 3, crop: int = 64) -> Mixtures:
    return Mixtures(source, crop=crop, most=4, clean_share=clean_share, seed=seed)


def whole(image: Tensor) -> Tensor:
    """A stand-in for a model's resize."""
    return torch.nn.functional.interpolate(image, (40, 40), mode="bilinear", antialias=True)


def same(one: Example, other: Example, most: int = 0) -> bool:
    apart = (one.image.int() - other.image.int()).abs().max().item()
    return torch.equal(one.strengths, other.strengths) and one.number == other.number and apart <= most


def test_an_item_does_not_depend_on_its_batch(photos: DistortionSource) -> None:
    items = mixtures(photos)
    where = [(epoch, number) for epoch in (1, 2) for number in range(8)]
    together = items.__getitems__(where)
    alone = [mixtures(photos)[place] for place in reversed(where)][::-1]
    assert all(same(a, b, 1) for a, b in zip(together, alone, strict=True)), "a byte may be rounded the other way"
    assert all(same(a, b) for a, b in zip(together, mixtures(photos).__getitems__(where), strict=True))


def test_items_differ_with_epoch_number_and_seed(photos: DistortionSource) -> None:
    items, other = mixtures(photos, 0), mixtures(photos, 0, seed=4)
    variants = [items[1, 0], items[2, 0], items[1, 4], items[1, 1], other[1, 0]]
    assert items.path(4) == items.path(0) == photos.paths[0], "the photos take turns"
    for i, one in enumerate(variants):
        assert not any(torch.equal(one.image, another.image) for another in variants[:i])


def test_an_item_comes_from_its_photo_with_what_its_strengths_say(photos: DistortionSource) -> None:
    clean = mixtures(photos, clean_share=1)[1, 6]
    photo = (read(photos.paths[2]) * 255).round().to(torch.uint8)
    windows = photo.unfold(1, 64, 1).unfold(2, 64, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert any((windows == view).flatten(1).all(1).any() for view in (clean.image[0], clean.image[0].flip(2)))
    assert clean.strengths.tolist() == [0] * 7
    shares = torch.stack([item.strengths for item in mixtures(photos, 0.5).__getitems__([(1, n) for n in range(40)])])
    assert 8 < int((shares == 0).all(1).sum()) < 32
    assert set((shares * 5).flatten().tolist()) <= {0, 1, 2, 3, 4, 5}
    assert {int(count) for count in (shares > 0).sum(1)} == {0, 1, 2, 3, 4}


def test_fixed_recipes_are_applied_to_central_crops(photos: DistortionSource) -> None:
    recipe = Mixture((AMONG[0], AMONG[2]), (3, 5), 17)
    fixed = [(1, recipe), (2, Mixture((), (), 0))]
    first, second = FixedMixtures(photos, fixed, crop=64).__getitems__([(CENTRAL, 0), (CENTRAL, 1)])
    crop = read(photos.paths[1])[None, :, 16:80, 16:80]
    assert torch.equal(first.image[0], (apply_mixtures(crop, [recipe])[0] * 255).round().to(torch.uint8))
    assert torch.equal(first.strengths, strengths([recipe])[0, AMONG])
    assert torch.equal(second.image[0], (read(photos.paths[2])[:, 16:80, 16:80] * 255).round().to(torch.uint8))


def test_what_cannot_be_used_is_told_and_is_no_error_of_a_worker(photos: DistortionSource, tmp_path: Path) -> None:
    root = exiqa_tree.photos(tmp_path, 1, side=48, name="small")
    (root / "zero.png").write_bytes(b"")
    source = photo_source(root, ("*",), CHEAP)
    loader = DataLoader(mixtures(source), batch_sampler=[[(1, 0), (1, 1)]], num_workers=1, collate_fn=stack)
    (batch,) = loader
    small, empty = batch.unreadable
    assert (small.path, empty.path) == (str(root / "small_0.png"), str(root / "zero.png"))
    assert "crop: expected at most the shorter side of the image, 48, got 64" in small.reason
    assert "0 bytes" in empty.reason
    with pytest.raises(ImageError, match="small_0"):
        batch.pixels(torch.device("cpu"))
    assert batch.image.shape == (2, 3, 64, 64)
    assert batch.image.max() == 0
    assert batch.strengths.max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 40}, "crop: expected at least 48 px for these distortions, got 40"),
        ({"most": 0}, "most: expected at least 1, got 0"),
        ({"clean_share": 1.5}, r"clean_share: expected a share in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_arguments(photos: DistortionSource, change: dict[str, float], message: str) -> None:
    everything = replace(photos, keys=DISTORTION_KEYS)
    arguments = {"crop": 64, "most": 4, "clean_share": 0.1, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        Mixtures(everything, **arguments)  # type: ignore[arg-type]


def test_files_are_flipped_in_training_and_whole_in_the_test(tmp_path: Path) -> None:
    root = exiqa_tree.kadid(tmp_path / "kadid", 2)
    source = rated_source(f"kadid={root}", DISTORTION_KEYS, DISTORTION_KEYS)
    files = Files(source, whole, crop=0, seed=5)
    expected = (whole(read(source.paths[7])[None])[0] * 255).round().to(torch.uint8)
    assert torch.equal(files[CENTRAL, 7].image[0], expected)
    drawn = [files[epoch, 7].image[0] for epoch in range(12)]
    flips = [torch.equal(image, expected.flip(2)) for image in drawn]
    assert all(flip or torch.equal(image, expected) for flip, image in zip(flips, drawn, strict=True))
    assert 0 < sum(flips) < 12
    assert [torch.equal(files[epoch, 7].image[0], image) for epoch, image in enumerate(drawn)] == [True] * 12
    assert source.strengths is not None
    (batch,) = DataLoader(files, batch_sampler=central(np.array([3, 7])), collate_fn=stack)
    assert torch.equal(batch.strengths, source.strengths[[3, 7]])
    assert batch.number.tolist() == [3, 7]
    assert batch.pixels(torch.device("cpu")).max() <= 1


def test_squares_of_files_at_their_own_size(tmp_path: Path) -> None:
    root = exiqa_tree.kadid(tmp_path / "kadid", 1)
    source = rated_source(f"kadid={root}", DISTORTION_KEYS, DISTORTION_KEYS)
    files = Files(source, whole, crop=32, seed=5)
    photo = (read(source.paths[0]) * 255).round().to(torch.uint8)
    assert torch.equal(files[CENTRAL, 0].image[0], photo[:, 8:40, 8:40])
    assert files[0, 0].image.shape == (1, 3, 32, 32)
    assert not torch.equal(files[0, 0].image, files[1, 0].image)
    source.paths[3].write_bytes(b"nothing")
    assert [error.path for error in files[0, 3].unreadable] == [str(source.paths[3])]
    assert [error.path for error in Files(source, whole, crop=64, seed=5)[0, 0].unreadable] == [str(source.paths[0])]


def test_the_test_of_mixtures_is_fixed_and_even() -> None:
    recipes = several_distortions([4, 9], 50, 3, AMONG, 0)
    assert Counter(photo for photo, _ in recipes) == {4: 50, 9: 50}
    counts = Counter(len(recipe.order) for _, recipe in recipes)
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 20
    assert recipes == several_distortions([4, 9], 50, 3, AMONG, 0) != several_distortions([4, 9], 50, 3, AMONG, 1)
    assert len({recipe.seed for _, recipe in recipes}) == 100


def test_the_test_of_single_distortions_has_each_at_each_level() -> None:
    recipes = one_distortion([2, 3, 5], 4, AMONG, 0)
    assert Counter((recipe.order, recipe.levels) for _, recipe in recipes) == {
        ((index,), (level,)): 4 for index in AMONG for level in range(1, 6)
    }
    turns = Counter(photo for photo, _ in recipes)
    assert max(turns.values()) - min(turns.values()) <= 1
    assert all(len({photo for photo, recipe in recipes if recipe.order == (index,)}) == 3 for index in AMONG)
    assert recipes == one_distortion([2, 3, 5], 4, AMONG, 0) != one_distortion([2, 3, 5], 4, AMONG, 1)


@pytest.mark.parametrize(("count", "most", "clean"), [(25, 25, 0.0), (25, 3, 0.1), (6, 10, 0.5)])
def test_mean_strengths_are_those_of_what_is_drawn(count: int, most: int, clean: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_mixture(rng, most=most, among=range(count)) for _ in range(4000)]
    expected = (1 - clean) * strengths(drawn)[:, :count].mean().item()
    found = mean_strengths(count, most, clean)
    assert found.shape == (count,)
    assert found.unique().numel() == 1
    assert found[0].item() == pytest.approx(expected, rel=0.03)


def test_the_two_tests_on_photos(photos: DistortionSource) -> None:
    mixed, single = photo_tests(photos, [1, 3], most=3, passes=5, single_passes=2, crop=64, seed=0)
    assert (mixed.name, len(mixed.numbers)) == ("mixed", 10)
    assert (single.name, len(single.numbers)) == ("single", 7 * 5 * 2)
    assert {mixed.images.path(number) for number in mixed.numbers} == {photos.paths[1], photos.paths[3]}
    shown = torch.stack([single.images[CENTRAL, number].strengths for number in single.numbers])
    assert ((shown > 0).sum(1) == 1).all()
    assert torch.allclose(shown.mean(0), single.constant), "the best constant of a balanced set is its mean"
    assert mixed.constant[0] == pytest.approx(2 / 7 * 0.6)
