"""BRISQUE against plain NumPy and SciPy and against OpenCV's values."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import gamma

from attriqa.images import read
from attriqa.judges.brisque import BRISQUE, MODEL, RANGE, UNTEXTURED
from tests.judges.natural_scenes import (
    HIGH,
    LOW,
    VECTORS,
    WEIGHTS,
    Floats,
    gaussian_window,
    photo,
    plain_aggd,
    write_brisque,
)

# PYTHONPATH=. python -c "import cv2; print(cv2.quality.QualityBRISQUE_compute(cv2.imread(PICTURE),
#   'brisque_model_live.yml', 'brisque_range_live.yml')[0])" with opencv-contrib-python-headless 5.0.0.
OPENCV = {
    "basicsr_baboon.png": 29.14141845703125,
    "ref_dir_I03.webp": 5.234428405761719,
    "ref_dir_I08.webp": 4.868260860443115,
    "ref_dir_I19.webp": 16.981159210205078,
}
OPENCV_FLAT = {"dist_dir_I03.webp": 84.4626693725586, "dist_dir_I08.webp": 7.912171840667725}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_brisque(tmp_path_factory.mktemp("brisque"))


# Against a plain restatement.


def half_matrix(side: int) -> Floats:
    """A cubic with a = -0.75 at the middle of pixels, edges repeated, not antialiased, along one side."""
    matrix = np.zeros((side // 2, side))
    for row in range(side // 2):
        centre = (row + 0.5) * side / (side // 2) - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t, a = abs(centre - tap), -0.75
            weight = (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            matrix[row, min(max(tap, 0), side - 1)] += weight
    return matrix


def plain_features(image: NDArray[np.uint8]) -> list[float]:
    gray = np.round(image.astype(float) @ [0.299, 0.587, 0.114]) / 255
    window, features = gaussian_window(), list[float]()
    for scale in (gray, half_matrix(gray.shape[0]) @ gray @ half_matrix(gray.shape[1]).T):
        mean = ndimage.correlate(scale, window, mode="nearest")
        spread = np.sqrt(np.maximum(ndimage.correlate(scale**2, window, mode="nearest") - mean**2, 0))
        normalised = (scale - mean) / (spread + 1 / 255)
        a, left, right = plain_aggd(normalised)
        features += [a, (left**2 + right**2) / 2]
        for down, aside in ((0, 1), (1, 0), (1, 1), (-1, 1)):
            neighbour = np.zeros_like(normalised)
            height, width = normalised.shape
            for y in range(height):
                if 0 <= y + down < height:
                    neighbour[y, : width - aside] = normalised[y + down, aside:]
            a, left, right = plain_aggd(normalised * neighbour)
            mean_of_pairs = (right - left) * gamma(2 / a) / np.sqrt(gamma(1 / a) * gamma(3 / a))
            features += [a, mean_of_pairs, left**2, right**2]
    return features


def test_the_features_are_what_plain_numpy_makes_of_the_paper(photos: list[NDArray[np.uint8]], folder: Path) -> None:
    cases = [(photos[0], (64, 80)), (photos[1], (71, 53)), (photos[1], (120, 64))]  # no gray halfway between levels
    for image, (height, width) in cases:
        found, textured = BRISQUE(folder).features(photo(image, height, width))
        assert textured.all()
        np.testing.assert_allclose(found[0].numpy(), plain_features(image[:height, :width]), rtol=1e-6, atol=1e-9)


def test_the_value_is_the_regressions(photos: list[NDArray[np.uint8]], folder: Path) -> None:
    brisque = BRISQUE(folder)
    image = photo(photos[0], 64, 80)
    scaled = -1 + 2 * (np.array(plain_features(photos[0][:64, :80])) - LOW) / (HIGH - LOW)
    value = np.exp(-0.05 * ((scaled - VECTORS) ** 2).sum(1)) @ WEIGHTS + 42.5
    assert brisque.distortion(image).item() == pytest.approx(value, rel=1e-6)
    assert brisque(image).item() == -brisque.distortion(image).item()


# Against OpenCV.


@pytest.mark.shared_data
def test_opencvs_values(shared_data: Path) -> None:
    """To 0.005 where no area is flat; OpenCV, in float32, counts flat pixels by the sign of its rounding errors."""
    brisque = BRISQUE(shared_data / "weights")
    for names, tolerance in ((OPENCV, 0.005), (OPENCV_FLAT, 0.25)):
        for name, value in names.items():
            image = read(shared_data / "reference" / name)[None]
            assert brisque.distortion(image).item() == pytest.approx(value, abs=tolerance), name


# As a judge.


def test_chunks_change_nothing(photos: list[NDArray[np.uint8]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brisque, images = BRISQUE(folder), torch.cat([photo(image, 64, 80) for image in photos])
    at_once = brisque(images)
    monkeypatch.setattr("attriqa.judges.natural_scenes.CHUNK_PIXELS", 64 * 80 * 2)
    torch.testing.assert_close(brisque(images), at_once, rtol=1e-12, atol=0)


def test_images_without_texture_have_the_worst_value(folder: Path) -> None:
    assert BRISQUE(folder)(torch.full((1, 3, 64, 64), 0.5)).tolist() == [-UNTEXTURED]


# Bad input.


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (MODEL, "EPS_SVR", "NU_SVR", "support vector regression with an RBF kernel"),
        (MODEL, "rho:", "roe:", "expected 1 finite numbers in rho, got 0"),
        (MODEL, "alpha: [ ", "alpha: [ 1.0, ", "expected 5 finite numbers in alpha, got 6"),
        (MODEL, "      - [ ", "      - [ 0.5, ", "support vectors of 36 values"),
        (RANGE, "data: [ ", "data: [ 1e400, ", "expected 72 finite numbers in data"),
        (RANGE, "data: [ 0.2", "data: [ 9.2", "expected the highest value of each feature above the lowest"),
    ],
)
def test_wrong_files_are_refused(name: str, old: str, new: str, message: str, folder: Path, tmp_path: Path) -> None:
    for part in (MODEL, RANGE):
        text = (folder / part).read_text()
        if part == name:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / part).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        BRISQUE(tmp_path)
    assert str(error.value).startswith(str(tmp_path / name))


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=RANGE):
        BRISQUE(tmp_path)
