"""Classical measures, alone and as a teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from attriqa import ATTRIBUTES
from attriqa.distortions import apply_ramp, gaussian_blur
from attriqa.images import read, resize_shorter
from attriqa.judges import signal as signal_measures
from attriqa.training.teachers import SignalTeacher
from tests.support.distortion_pictures import seeded as generator
from tests.training.test_teachers import pictures

# Classical measures


def test_the_signal_teachers_columns_are_the_measures_in_the_order_of_attributes() -> None:
    images = pictures()
    found = SignalTeacher()(images)
    assert found.shape == (3, 5)
    for index, name in enumerate(ATTRIBUTES):
        assert torch.equal(found[:, index], getattr(signal_measures, name)(images)), name


def test_lightness_and_contrast_are_cielabs() -> None:
    from skimage.color import rgb2lab

    images = pictures(2).sqrt()
    lightness = rgb2lab(images.permute(0, 2, 3, 1).numpy())[..., 0]
    np.testing.assert_allclose(signal_measures.brightness(images), lightness.mean((1, 2)), rtol=1e-4)
    blocks = F.interpolate(torch.rand(2, 3, 4, 4, generator=generator()), (128, 128), mode="nearest")  # free of noise
    lightness = rgb2lab(blocks.permute(0, 2, 3, 1).numpy())[..., 0]
    np.testing.assert_allclose(signal_measures.contrast(blocks), lightness.std((1, 2)), rtol=1e-3)


def test_colorfulness_is_that_of_the_paper() -> None:
    blocks = F.interpolate(torch.rand(2, 3, 4, 4, generator=generator()), (128, 128), mode="nearest")
    for image, found in zip(blocks.numpy() * 255, signal_measures.colorfulness(blocks), strict=True):
        rg, yb = image[0] - image[1], 0.5 * (image[0] + image[1]) - image[2]
        expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
        assert found.item() == pytest.approx(expected, rel=1e-3)
    gray = pictures(1).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert signal_measures.colorfulness(gray).item() == pytest.approx(0, abs=1e-3)


def test_the_noise_estimate_is_that_of_the_noise() -> None:
    smooth = 0.4 + 0.2 * pictures(1, 256, 256)
    for sigma in (0.01, 0.03, 0.08):
        noisy = smooth + sigma * torch.randn(smooth.shape, generator=generator(1))
        assert signal_measures.noisiness(noisy).item() == pytest.approx(-sigma, rel=0.2)
    plane = torch.linspace(0, 1, 96).expand(1, 3, 96, 96)
    assert signal_measures.noisiness(plane).item() == pytest.approx(0, abs=1e-6)


def test_noise_is_neither_colour_nor_contrast_nor_detail() -> None:
    gray = gaussian_blur(pictures(1, 256, 256), torch.tensor([2.0])).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    noisy = gray + 0.05 * torch.randn(gray.shape, generator=generator(2))
    assert signal_measures.colorfulness(noisy).item() < 6, "uncorrected it is about 22"
    assert signal_measures.contrast(noisy).item() == pytest.approx(signal_measures.contrast(gray).item(), rel=0.1)
    assert signal_measures.sharpness(noisy).item() < signal_measures.sharpness(gray).item()


def test_sharpness_tells_the_blur_of_an_edge_whatever_its_contrast() -> None:
    edge = (torch.arange(128) >= 64).float().expand(1, 3, 128, 128)
    values = []
    for sigma in (0.5, 1.0, 2.0, 4.0):
        blurred = gaussian_blur(edge, torch.tensor([sigma]))
        strong, weak = (signal_measures.sharpness(0.5 + depth * (blurred - 0.5)).item() for depth in (0.8, 0.2))
        assert strong == pytest.approx(weak, abs=0.05)
        # Energy of a Gaussian-blurred step's gradient: in inverse proportion to its total deviation.
        total = [(sigma**2 + scale**2) ** 0.5 for scale in (0.7, 3.0)]
        assert strong == pytest.approx(0.5 * np.log(total[1] / total[0]), abs=0.12)
        values.append(strong)
    assert values == sorted(values, reverse=True)
    assert signal_measures.sharpness(torch.full((1, 3, 64, 64), 0.5)).item() < min(values) - 1


@pytest.mark.shared_data
def test_every_measure_follows_its_own_ramp_on_photos(shared_data: Path) -> None:
    paths = sorted((shared_data / "photos").glob("cid22_*"))[::35][:6]
    assert len(paths) == 6
    teacher, level = SignalTeacher(), torch.linspace(0, 1, 9)
    photos = [resize_shorter(read(path)[None], 224).expand(9, -1, -1, -1) for path in paths]
    heads = torch.stack([
        torch.stack([teacher(apply_ramp(photo, name, level, generator())) for name in ATTRIBUTES]) for photo in photos
    ])  # (photos, ramps, levels, heads)  # fmt: skip
    change = (heads[:, :, -1] - heads[:, :, 0]).mean(0)  # (ramps, heads)
    noise, blur = ATTRIBUTES.index("noisiness"), ATTRIBUTES.index("sharpness")
    for index in range(5):
        srocc = [spearmanr(level, row).statistic for row in heads[:, index, :, index]]
        assert np.mean(srocc) >= 0.95, (ATTRIBUTES[index], srocc)
    noisy_to_clean = heads[:, noise, :, blur]
    assert (noisy_to_clean[:, -1] > noisy_to_clean[:, 0]).all(), "noise makes nothing sharper"
    assert (noisy_to_clean[:, -1:] >= noisy_to_clean - 0.02).all(), "nor at any level"
    assert change[noise, noise] > 10 * abs(change[blur, noise]), "noise moves noisiness more than blur does"
    assert change[blur, blur] > 2 * change[noise, blur], "blur moves sharpness more than noise does"
    colour, contrast = ATTRIBUTES.index("colorfulness"), ATTRIBUTES.index("contrast")
    assert abs(change[noise, colour]) < 0.25 * change[colour, colour]
    assert abs(change[noise, contrast]) < 0.25 * change[contrast, contrast]
