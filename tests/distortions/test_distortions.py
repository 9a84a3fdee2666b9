"""The table of distortions and what all 25 have in common; formulas have their tests beside this file, by family."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

import attriqa.distortions
from attriqa.distortions import DISTORTION_KEYS, DISTORTIONS, Distortion, distort, distort_seeded, find_distortion
from tests.support.distortion_pictures import detailed, generators, seeded

RANDOM = {"motion_blur", "color_shift", "white_noise", "white_noise_cc", "impulse_noise", "multiplicative_noise"}
RANDOM |= {"denoise", "jitter", "non_eccentricity_patch", "color_block"}
UNCHANGED = {("gaussian_blur", 1), ("motion_blur", 1), ("color_saturation_2", 1), ("mean_shift", 3)}


every = pytest.mark.parametrize("entry", DISTORTIONS, ids=DISTORTION_KEYS)


def pictures(count: int = 1, height: int = 51, width: int = 62) -> Tensor:
    """(B, 3, H, W) with detail at several scales."""
    return (1.6 * (detailed(count, height, width, (3, 8, 25)) - 0.5) + 0.5).clamp(0, 1)


def test_the_table_is_that_of_kadid() -> None:
    assert [entry.number for entry in DISTORTIONS] == list(range(1, 26))
    assert len(set(DISTORTION_KEYS)) == 25
    assert tuple(entry.key for entry in DISTORTIONS) == DISTORTION_KEYS
    assert all(entry.apply.__name__ == entry.key for entry in DISTORTIONS)
    larger = {entry.key: entry.smallest for entry in DISTORTIONS if entry.smallest > 1}
    assert larger == {"non_eccentricity_patch": 48, "color_block": 32}  # 16 px of margin and patch; the block's side
    assert find_distortion(1).levels == (0.1, 0.5, 1, 2, 5)
    assert find_distortion("jpeg2000").levels == (16, 32, 45, 120, 400)
    assert find_distortion(18).levels == (0.15, 0.08, 0, -0.08, -0.15)
    assert find_distortion("contrast_change").levels == (0.3, 0.15, 0, -0.4, -0.6)


def test_an_unknown_distortion_is_refused_with_the_nearest() -> None:
    for name, nearest in (("JPEG", "jpeg"), ("gausian_blur", "gaussian_blur"), ("color_satuation_2", "saturation_2")):
        with pytest.raises(ValueError, match=rf"distortion: expected .* got '{name}'; did you mean '.*{nearest}'"):
            find_distortion(name)
    for wrong in ("qqqq", 0, 26, True):
        with pytest.raises(ValueError, match=r"distortion: expected a key .* or a number of 1 to 25, got"):
            find_distortion(wrong)


@every
def test_each_level_uses_its_value_of_the_table(entry: Distortion) -> None:
    images = pictures(5)
    found = distort_seeded(images, entry.number, torch.arange(1, 6), range(5))
    values = torch.tensor(entry.levels, dtype=torch.float64)
    expected = entry.apply(images, values, generators(*range(5))).clamp(0, 1)
    assert torch.equal(found, expected)
    wider = torch.cat([images, images], -1)[..., : images.shape[-1]]
    for same in (images.contiguous(memory_format=torch.channels_last), wider):
        again = entry.apply(same, values, generators(*range(5))).clamp(0, 1)
        torch.testing.assert_close(again, expected, rtol=0, atol=1e-6)
    for level in range(1, 6):
        moved = (found[level - 1] - images[level - 1]).abs().max()
        assert (moved < 2e-5) == ((entry.key, level) in UNCHANGED), level


@every
def test_a_batch_is_its_images_one_by_one(entry: Distortion) -> None:
    images, levels = pictures(3), torch.tensor([4, 1, 5])
    generator = seeded(7)
    alone = [distort(images[b : b + 1], entry.key, int(levels[b]), generator) for b in range(3)]
    together = distort(images, entry.key, levels, seeded(7))
    assert (together.shape, together.dtype) == (images.shape, torch.float32)
    assert together.isfinite().all()
    assert 0 <= together.min() <= together.max() <= 1
    assert torch.equal(together, torch.cat(alone))


@every
def test_a_seed_decides_all_that_is_random(entry: Distortion) -> None:
    images, state = pictures().expand(3, -1, -1, -1), torch.get_rng_state()
    found = distort_seeded(images, entry.key, 5, [3, 3, 3 + 2**40])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) == (entry.key not in RANDOM)
    again = distort_seeded(images[:1], entry.key, 5, torch.tensor([3]))
    assert torch.equal(again[0], found[0])
    assert torch.equal(torch.get_rng_state(), state)


@every
def test_dtype_layout_and_gradients_do_not_change_the_result(entry: Distortion) -> None:
    images = pictures(2)
    before = images.clone()
    found = distort_seeded(images, entry.key, 3, [0, 1])
    assert torch.equal(images, before)
    double = distort_seeded(images.double(), entry.key, 3, [0, 1])
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), found, rtol=0, atol=1e-4)
    for other in (images.contiguous(memory_format=torch.channels_last), images.flip(3).flip(3)):
        assert torch.equal(distort_seeded(other, entry.key, 3, [0, 1]), found)
    live = images.clone().requires_grad_()
    assert not distort_seeded(live, entry.key, 3, [0, 1]).requires_grad


@every
def test_how_many_images_go_at_a_time_does_not_change_the_result(
    entry: Distortion, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, levels = pictures(3), torch.tensor([2, 3, 5])
    clipped = distort_seeded(images, entry.key, levels, [0, 1, 2])
    stretched = distort_seeded(images, entry.key, levels, [0, 1, 2], finalize="mapmm")
    monkeypatch.setattr(attriqa.distortions, "CHUNK_PIXELS", 1)
    assert torch.equal(distort_seeded(images, entry.key, levels, [0, 1, 2]), clipped)
    assert torch.equal(distort_seeded(images, entry.key, levels, [0, 1, 2], finalize="mapmm"), stretched)


@every
def test_gray_and_constant_images_stay_finite(entry: Distortion) -> None:
    gray = pictures()[:, :1].expand(-1, 3, -1, -1)
    flat = [torch.full_like(gray, value) for value in (0.0, 0.5, 1.0)]
    images = torch.cat([gray, *flat])
    for level in (1, 5):
        for finalize in ("clip", "mapmm"):
            found = distort_seeded(images, entry.key, level, range(4), finalize=finalize)
            assert found.isfinite().all()
            assert 0 <= found.min() <= found.max() <= 1
    if entry.key in ("color_saturation_1", "color_saturation_2", "color_diffusion"):
        grayish = distort_seeded(gray, entry.key, 4, [0])
        torch.testing.assert_close(grayish, gray, rtol=0, atol=1e-4)


@every
def test_the_smallest_side_is_true(entry: Distortion) -> None:
    tall, wide = pictures(1, entry.smallest + 2, entry.smallest), pictures(1, entry.smallest, entry.smallest + 2)
    for level in range(1, 6):
        for images in (tall, wide):
            found = distort_seeded(images, entry.key, level, [level])
            assert found.shape == images.shape
            assert found.isfinite().all()
    if entry.smallest > 1:
        with pytest.raises(ValueError, match=rf"images: expected sides of {entry.smallest} px or more for {entry.key}"):
            distort_seeded(tall[:, :, :, :-1], entry.key, 1, [0])


def test_severity_sorts_the_two_rows_that_do_not_rise() -> None:
    images = torch.full((5, 3, 8, 8), 0.5)
    levels = torch.arange(1, 6)
    shifted = distort_seeded(images, "mean_shift", levels, range(5), level_order="severity")[:, 0, 0, 0] - 0.5
    torch.testing.assert_close(shifted, torch.tensor([0, 0.08, -0.08, 0.15, -0.15]))
    tones = torch.full((5, 3, 8, 8), 0.7)  # the curve's upper point, 0.75 + a / 4
    curved = distort_seeded(tones, "contrast_change", levels, range(5), level_order="severity")[:, 0, 0, 0]
    torch.testing.assert_close(curved, 0.75 + torch.tensor([0, -0.4, 0.15, 0.3, -0.6]) / 4)
    for key in ("jpeg", "darken"):
        by_order = [distort_seeded(pictures(), key, 5, [0], level_order=order) for order in ("kadid", "severity")]
        assert torch.equal(*by_order)


def test_mapmm_stretches_before_and_after() -> None:
    images = 0.2 + 0.5 * pictures(2)
    lowest, highest = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    stretched = (images - lowest) / (highest - lowest)
    found = distort_seeded(images, "mean_shift", 5, [0, 0], finalize="mapmm")
    torch.testing.assert_close(found, (stretched - 0.15).clamp(0, 1) / 0.85)
    # A shift that is undone: only what was clipped tells it.
    assert (found - stretched).abs().max() < 0.16
    constant = torch.full((1, 3, 8, 8), 0.5)
    assert torch.equal(distort_seeded(constant, "gaussian_blur", 1, [0], finalize="mapmm"), constant)


def test_an_empty_batch_gives_an_empty_batch() -> None:
    assert distort(torch.zeros(0, 3, 64, 64), "jpeg", 3, seeded()).shape == (0, 3, 64, 64)


def test_wrong_images_are_refused() -> None:
    for images, words in (
        (torch.zeros(3, 64, 64), r"expected shape \(B, 3, H, W\), got \(3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), r"expected shape \(B, 3, H, W\), got \(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 0, 64), r"expected shape"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"expected float32 or float64, got torch\.uint8"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.float16), r"expected float32 or float64, got torch\.float16"),
        (torch.full((1, 3, 64, 64), 1.5), r"expected values in \[0, 1\], got 1\.5 to 1\.5"),
        (torch.full((1, 3, 64, 64), -0.1), r"expected values in \[0, 1\], got -0\.1"),
        (torch.full((1, 3, 64, 64), float("nan")), r"expected values in \[0, 1\], got nan"),
    ):
        with pytest.raises(ValueError, match="images: " + words):
            distort(images, "jpeg", 1, seeded())
        with pytest.raises(ValueError, match="images: " + words):
            distort_seeded(images, "jpeg", 1, [0])


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (0, r"expected 1 to 5, got \[0, 0\]"),
        (6, r"expected 1 to 5, got \[6, 6\]"),
        (2.0, r"expected an integer or a tensor of integers, got 2\.0"),
        (torch.tensor([1, 6]), r"expected 1 to 5, got \[1, 6\]"),
        (torch.tensor([1, 2, 3]), r"expected one integer or shape \(2,\) of integers, got \(3,\)"),
        (torch.tensor(3), r"expected one integer or shape \(2,\) of integers, got \(\)"),
        (torch.tensor([1.0, 2.0]), r".* of integers, got \(2,\) of torch\.float32"),
        (torch.tensor([True, True]), r".* of integers, got \(2,\) of torch\.bool"),
    ],
)
def test_wrong_levels_are_refused(levels: int | Tensor, words: str) -> None:
    with pytest.raises(ValueError, match="levels: " + words):
        distort(pictures(2), "darken", levels, seeded())


def test_levels_may_be_numpy_integers() -> None:
    expected = distort_seeded(pictures(), "darken", 4, [0])
    assert torch.equal(distort_seeded(pictures(), "darken", int(np.int64(4)), [0]), expected)
    assert torch.equal(distort_seeded(pictures(), "darken", torch.tensor([4], dtype=torch.uint8), [0]), expected)


def test_wrong_seeds_and_options_are_refused() -> None:
    for seeds, words in (
        ([0], r"expected one for each of 2 images, got 1"),
        ([0, -1], r"expected 0 to 2\*\*63 - 1, got \[0, -1\]"),
        (torch.zeros(2), r"expected shape \(2,\) of integers, got \(2,\) of torch\.float32"),
        (torch.zeros(2, 1, dtype=torch.long), r"expected shape \(2,\) of integers"),
    ):
        with pytest.raises(ValueError, match="seeds: " + words):
            distort_seeded(pictures(2), "darken", 1, seeds)
    with pytest.raises(ValueError, match=r"level_order: expected 'kadid' or 'severity', got 'rising'"):
        distort(pictures(), "darken", 1, seeded(), level_order="rising")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"finalize: expected 'clip' or 'mapmm', got 'none'"):
        distort(pictures(), "darken", 1, seeded(), finalize="none")  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every
def test_a_gpu_gives_what_a_cpu_gives(entry: Distortion) -> None:
    images, levels = pictures(3), torch.tensor([5, 2, 4])
    found = distort(images.cuda(), entry.key, levels, seeded())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), distort(images, entry.key, levels, seeded()), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "entry", [entry for entry in DISTORTIONS if entry.key not in ("mean_shift", "contrast_change")], ids=lambda e: e.key
)
def test_a_higher_level_is_farther_from_the_photo(entry: Distortion, colour_photos: Tensor) -> None:
    """Mean Spearman correlation of level and squared error over several crops of photos."""
    found = []
    for seed, photo in enumerate(colour_photos):
        distorted = distort_seeded(photo.expand(5, -1, -1, -1), entry.key, torch.arange(1, 6), [seed] * 5)
        error = (distorted - photo).square().mean((1, 2, 3))
        found.append(spearmanr(np.arange(5), error.numpy()).statistic)
    assert np.mean(found) >= 0.95


@pytest.fixture(scope="module")
def colour_photos(photos: list[NDArray[np.uint8]]) -> Tensor:
    """(6, 3, 160, 160): two squares of each."""
    whole = [torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255 for photo in photos]
    return torch.stack([photo[:, side : side + 160, side : side + 160] for photo in whole for side in (0, 140)])
