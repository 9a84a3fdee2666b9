"""Recipes of several distortions, the manifests of images made by them, and crops distorted while a model trains."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torch import Tensor
from torch.utils.data import DataLoader

from attriqa.data.distorted import DistortedCrops
from attriqa.distortions import DISTORTION_KEYS, DISTORTIONS, distort_seeded
from attriqa.distortions.mixtures import (
    ManifestError,
    Mixture,
    apply_mixtures,
    draw_mixture,
    read_manifest,
    smallest_side,
    strengths,
    write_manifest,
)
from attriqa.images import read

SIDE = smallest_side()
CHEAP = tuple(DISTORTION_KEYS.index(key) for key in ("white_noise", "brighten", "mean_shift", "color_block", "jpeg"))


def scene(batch: int, seed: int = 0, side: int = SIDE) -> Tensor:
    """Smooth colours with edges in them, which no distortion leaves as they are."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((batch, 3, side // 8, side // 8))).float()
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    smooth[:, :, side // 3 : side // 2, side // 4 :] *= 0.4
    return smooth * 0.9 + 0.05


def draws(count: int, **settings: object) -> list[Mixture]:
    rng = np.random.default_rng(0)
    return [draw_mixture(rng, **settings) for _ in range(count)]  # type: ignore[arg-type]


def test_the_numbers_of_distortions_and_their_levels_are_uniform() -> None:
    recipes = draws(5000)
    lengths = Counter(len(recipe.order) for recipe in recipes)
    assert chisquare([lengths[k] for k in range(1, 26)]).pvalue > 0.01
    levels = Counter(level for recipe in recipes for level in recipe.levels)
    assert chisquare([levels[level] for level in range(1, 6)]).pvalue > 0.01
    for place in (0, -1):
        ends = Counter(recipe.order[place] for recipe in recipes)
        assert chisquare([ends[index] for index in range(25)]).pvalue > 0.01, "any distortion comes first, or last"
    assert sum(lengths.values()) == 5000
    assert sum(levels.values()) / 5000 == pytest.approx(13, abs=0.3)
    assert len({recipe.seed for recipe in recipes}) == 5000


def test_recipes_keep_to_what_they_are_drawn_from() -> None:
    among = (9, 0, 14)
    recipes = draws(300, among=among, most=2)
    assert {len(recipe.order) for recipe in recipes} == {1, 2}
    assert {recipe.order for recipe in recipes} >= {(9,), (0,), (14,), (9, 0), (0, 9), (14, 9)}
    assert {index for recipe in recipes for index in recipe.order} == set(among)
    assert {len(recipe.order) for recipe in draws(300, among=among)} == {1, 2, 3}, "never more than there are"


@pytest.mark.parametrize(
    ("order", "levels", "seed", "fault"),
    [
        ((0, 0), (1, 1), 0, r"order: expected different indices of 0 to 24, got \(0, 0\)"),
        ((25,), (1,), 0, r"order: .*got \(25,\)"),
        ((0,), (6,), 0, r"levels: expected 1 of 1 to 5, got \(6,\)"),
        ((0,), (0,), 0, r"levels: .*got \(0,\)"),
        ((0, 1), (3,), 0, r"levels: expected 2 of 1 to 5, got \(3,\)"),
        ((0,), (3,), -1, "seed: expected at least 0, got -1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(
    order: tuple[int, ...], levels: tuple[int, ...], seed: int, fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        Mixture(order, levels, seed)


def test_draws_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="most: expected at least 1, got 0"):
        draws(1, most=0)
    for among in ((), (3, 3), (25,), (-1,)):
        with pytest.raises(ValueError, match="among: expected one or more different indices of 0 to 24, got"):
            draws(1, among=among)


def test_a_recipe_is_its_steps_one_after_another() -> None:
    image = scene(1)
    recipe = Mixture((17, 9, 10, 22), (5, 4, 3, 2), 7)
    expected = image
    for index, level in zip(recipe.order, recipe.levels, strict=True):
        expected = distort_seeded(expected, DISTORTION_KEYS[index], level, [recipe.step_seed(index)])
    assert torch.equal(apply_mixtures(image, [recipe]), expected)
    turned = Mixture(recipe.order[::-1], recipe.levels[::-1], 7)
    assert not torch.equal(apply_mixtures(image, [turned]), expected), "the order counts"
    assert len({recipe.step_seed(index) for index in range(25)} | {replace(recipe, seed=8).step_seed(0)}) == 26


def test_a_batch_gets_what_each_image_would_get_alone() -> None:
    """Whatever is applied together, each image sees its own steps in its own order."""
    images = scene(6)
    recipes = [*draws(5, among=CHEAP), Mixture((), (), 0)]
    kept = images.clone()
    batch = apply_mixtures(images, recipes)
    assert torch.equal(images, kept), "the input stays as it is"
    assert torch.equal(batch[5], images[5]), "no distortion, no change"
    assert 0 <= batch.min() <= batch.max() <= 1
    for image, recipe, result in zip(images, recipes, batch, strict=True):
        # JPEG turns a last bit into a step of 1/255 at a few pixels.
        alone = apply_mixtures(image[None], [recipe])[0]
        assert (alone - result).abs().mean() < 1e-5
    flipped = apply_mixtures(images.flip(0), recipes[::-1])
    assert (flipped.flip(0) - batch).abs().mean() < 1e-5


def test_all_25_in_one_recipe() -> None:
    images = scene(2)
    recipes = [Mixture(tuple(range(25)), (1,) * 25, 1), Mixture(tuple(range(24, -1, -1)), (3,) * 25, 2)]
    state = torch.get_rng_state()
    batch = apply_mixtures(images, recipes)
    assert torch.isfinite(batch).all()
    assert torch.equal(batch, apply_mixtures(images, recipes))
    assert torch.equal(torch.get_rng_state(), state)
    other = apply_mixtures(images, [replace(recipe, seed=9) for recipe in recipes])
    assert not torch.equal(other, batch)
    assert apply_mixtures(images.double(), recipes).dtype == torch.float64


def test_options_reach_every_step() -> None:
    images = scene(1)
    shift = Mixture((DISTORTION_KEYS.index("mean_shift"),), (1,), 0)
    assert apply_mixtures(images, [shift]).mean() - images.mean() > 0.1, "KADID's first level is its second brightest"
    assert torch.allclose(apply_mixtures(images, [shift], level_order="severity"), images, atol=1e-6)
    stretched = apply_mixtures(images, [shift], finalize="mapmm")
    assert stretched.min() == 0
    assert stretched.max() == 1


def test_as_many_recipes_as_images() -> None:
    with pytest.raises(ValueError, match="mixtures: expected one for each of 2 images, got 1"):
        apply_mixtures(scene(2), [Mixture((), (), 0)])


def test_strengths_are_fifths_of_levels() -> None:
    target = strengths([Mixture((24, 0), (5, 2), 0), Mixture((), (), 0)])
    assert (target.shape, target.dtype) == ((2, 25), torch.float32)
    assert target[0, 24] == 1
    assert target[0, 0] == pytest.approx(0.4)
    assert target.sum() == pytest.approx(1.4)


# Manifests


ENTRIES = [
    ("images/a.jpg.01.png", "a.jpg", Mixture((2, 16, 8), (5, 1, 3), 11)),
    ("images/b, c.png", 'sub/"b".jpg', Mixture((24,), (4,), 12)),
]


def stored(root: Path, entries: list[tuple[str, str, Mixture]], *, single: bool = False) -> Path:
    for name, _, _ in entries:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    write_manifest(root / "manifest.csv", entries, single=single)
    return root / "manifest.csv"


@pytest.mark.parametrize("single", [False, True])
def test_a_manifest_says_what_was_done(tmp_path: Path, single: bool) -> None:
    entries = [(name, ref, Mixture(r.order[:1], r.levels[:1], 0)) for name, ref, r in ENTRIES] if single else ENTRIES
    found = read_manifest(stored(tmp_path, entries, single=single))
    assert [image.path for image in found] == [tmp_path / name for name, _, _ in entries]
    assert [image.reference for image in found] == [ref for _, ref, _ in entries]
    assert torch.equal(torch.stack([image.strengths for image in found]), strengths([r for *_, r in entries]))
    assert len(read_manifest(tmp_path)) == 2, "its folder will do"


def test_a_line_of_a_manifest(tmp_path: Path) -> None:
    stored(tmp_path, ENTRIES)
    with (tmp_path / "manifest.csv").open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert list(row) == ["image", "ref", *(f"d{number:02d}" for number in range(1, 26)), "order"]
    assert row["order"] == "3 17 9", "the numbers of KADID-10k, as applied"
    assert (row["d03"], row["d17"], row["d09"], row["d01"]) == ("5", "1", "3", "0")


def test_images_that_are_gone_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    entries = [(f"images/{number}.png", "a.jpg", Mixture((0,), (1,), 0)) for number in range(9)]
    path = stored(tmp_path, entries)
    for number in (8, 3, 5):
        (tmp_path / f"images/{number}.png").unlink()
    with pytest.raises(
        ManifestError, match=rf"manifest\.csv: 3 of its 9 images are gone, first {tmp_path}/images/3\.png"
    ):
        read_manifest(path)


@pytest.mark.parametrize(
    ("single", "old", "new", "fault"),
    [
        (False, "5,0", "6,0", r"manifest\.csv line 2: levels: expected 3 of 1 to 5, got \(6, 1, 3\)"),
        (False, "3 17 9", "3 17", r"line 2: order: expected the numbers of the levels above 0, 3 9 17; got '3 17'"),
        (False, "3 17 9", "3 17 9 9", "line 2: order: expected different indices"),
        (False, "3 17 9", "3 17 x", "line 2: invalid literal"),
        (False, ",3 17 9", "", "line 2: expected 28 fields"),
        (False, "d25", "d26", "expected the columns image,ref,d01..d25,order or image,ref,distortion,level; got image"),
        (
            True,
            "motion_blur",
            "motionblur",
            "line 2: distortion: expected a key such as gaussian_blur, got 'motionblur'",
        ),
        (True, "motion_blur,5", "motion_blur,0", r"line 2: levels: expected 1 of 1 to 5, got \(0,\)"),
    ],
)
def test_a_manifest_with_a_fault_is_refused(tmp_path: Path, single: bool, old: str, new: str, fault: str) -> None:
    entries = [(name, ref, Mixture(r.order[:1], r.levels[:1], 0)) for name, ref, r in ENTRIES] if single else ENTRIES
    path = stored(tmp_path, entries, single=single)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ManifestError, match=fault):
        read_manifest(path)


def test_no_manifest_or_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=rf"{tmp_path}/manifest\.csv: no such manifest"):
        read_manifest(tmp_path)
    with pytest.raises(ManifestError, match="expected one line per image, got none"):
        read_manifest(stored(tmp_path, []))
    (tmp_path / "manifest.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match="expected a CSV file in UTF-8"):
        read_manifest(tmp_path)


# Crops


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six photos, larger than the crop, in which every window differs from every other."""
    root = tmp_path_factory.mktemp("photos")
    found = [root / f"{seed}.png" for seed in range(6)]
    for seed, path in enumerate(found):
        pixels = np.random.default_rng(seed).integers(0, 256, (SIDE + 8, SIDE + 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return found


def crops(paths: list[Path], epoch: int = 0, workers: int = 0, seed: int = 0, clean: float = 0.3) -> list[Tensor]:
    dataset = DistortedCrops(paths, crop=SIDE, most=3, seed=seed, among=CHEAP, clean_share=clean)
    dataset.start_epoch(epoch)
    images, targets = zip(*DataLoader(dataset, 2, num_workers=workers), strict=True)
    return [torch.cat(images), torch.cat(targets)]


def test_crops_depend_on_seed_epoch_and_photo_alone(paths: list[Path]) -> None:
    state = torch.get_rng_state()
    images, targets = crops(paths, epoch=2)
    assert images.shape == (6, 3, SIDE, SIDE)
    assert targets.shape == (6, 25)
    for workers in (0, 2):
        again, others = crops(paths, epoch=2, workers=workers)
        assert torch.equal(again, images)
        assert torch.equal(others, targets)
    late = DistortedCrops(paths, crop=SIDE, most=3, seed=0, among=CHEAP, clean_share=0.3)
    for epoch in (0, 1, 2):
        late.start_epoch(epoch)
    assert torch.equal(late[4][0], images[4]), "no earlier draw counts"
    for other in (crops(paths, epoch=3), crops(paths, epoch=2, seed=1)):
        assert (other[0] != images).flatten(1).any(1).all()
        assert not torch.equal(other[1], targets)
    torch.set_rng_state(state)


def test_crops_are_photos_windows_under_the_strengths_that_they_are_labelled_with(paths: list[Path]) -> None:
    dataset = DistortedCrops(paths, crop=SIDE, most=2, seed=0, among=CHEAP, clean_share=0.4)
    seen: Counter[int] = Counter()
    for epoch in range(10):
        dataset.start_epoch(epoch)
        for position, index in enumerate(dataset.order.tolist()):
            image, target = dataset[position]
            seen[int((target > 0).sum())] += 1
            assert set(target.nonzero().flatten().tolist()) <= set(CHEAP)
            photo = read(paths[index])
            windows = [photo[:, y : y + SIDE, x : x + SIDE] for y in range(9) for x in range(17)]
            hits = sum(bool((view == window).all()) for window in windows for view in (image, image.flip(2)))
            assert hits == (0 if target.any() else 1), "without distortions the very pixels, perhaps flipped"
    assert set(seen) == {0, 1, 2}
    assert 13 <= seen[0] <= 36, "60 draws of 0.4"
    assert abs(seen[1] - seen[2]) < 20


def test_the_strengths_of_a_crop_are_those_of_what_was_done_to_it(tmp_path: Path) -> None:
    """On flat gray, the offset or the density tells the level."""
    path = tmp_path / "gray.png"
    Image.new("RGB", (96, 96), (128, 128, 128)).save(path)
    shift, impulse = (DISTORTIONS[DISTORTION_KEYS.index(key)] for key in ("mean_shift", "impulse_noise"))
    among = (shift.number - 1, impulse.number - 1)
    dataset = DistortedCrops([path] * 40, crop=96, most=1, seed=0, among=among, clean_share=0)
    seen = set()
    for image, target in (dataset[position] for position in range(40)):
        kind, level = int(target.argmax()), round(float(target.max()) * 5)
        assert target.sum() == target.max()
        if kind == among[0]:
            assert image.mean() - 128 / 255 == pytest.approx(shift.levels[level - 1], abs=1e-5)
        else:
            density = float((image != image.median()).float().mean())
            assert min(impulse.levels, key=lambda value: abs(value - density)) == impulse.levels[level - 1]
        seen.add((kind, level))
    assert len(seen) > 7


def test_crops_are_cut_from_photos_of_the_size_asked_for(paths: list[Path]) -> None:
    dataset = DistortedCrops(paths, crop=SIDE, most=1, seed=0, clean_share=1, shorter_edge=SIDE)
    expected = read(paths[int(dataset.order[0])], shorter_edge=SIDE)
    window = dataset[0][0]
    positions = [expected[:, :, left : left + SIDE] for left in range(expected.shape[2] - SIDE + 1)]
    assert any(torch.equal(view, cut) for cut in positions for view in (window, window.flip(2)))


def test_settings_of_crops_that_cannot_be_are_refused(paths: list[Path]) -> None:
    with pytest.raises(ValueError, match=f"crop: expected at least {SIDE} px for these distortions, got {SIDE - 1}"):
        DistortedCrops(paths, crop=SIDE - 1, most=1, seed=0)
    with pytest.raises(ValueError, match=r"clean_share: expected a share in \[0, 1\], got 1.5"):
        DistortedCrops(paths, crop=SIDE, most=1, seed=0, clean_share=1.5)
    with pytest.raises(ValueError, match="most: expected at least 1, got 0"):
        DistortedCrops(paths, crop=SIDE, most=0, seed=0)
    large = DistortedCrops(paths, crop=SIDE + 9, most=1, seed=0)
    with pytest.raises(
        ValueError, match=rf"crop: expected at most the shorter side of .*\.png, {SIDE + 8}, got {SIDE + 9}"
    ):
        large[0]
