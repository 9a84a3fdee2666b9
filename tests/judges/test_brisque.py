"""BRISQUE against plain NumPy and SciPy and against OpenCV's values."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import gamma
from torch import Tensor

from attriqa.images import read
from attriqa.judges.brisque import BRISQUE, MODEL, RANGE, UNTEXTURED

Floats = NDArray[np.float64]
SHAPES = np.arange(200, 10001) / 1000
MOMENTS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))
# PYTHONPATH=. python -c "import cv2; print(cv2.quality.QualityBRISQUE_compute(cv2.imread(PICTURE),
#   'brisque_model_live.yml', 'brisque_range_live.yml')[0])" with opencv-contrib-python-headless 5.0.0.
OPENCV = {
    "basicsr_baboon.png": 29.14141845703125,
    "ref_dir_I03.webp": 5.234428405761719,
    "ref_dir_I08.webp": 4.868260860443115,
    "ref_dir_I19.webp": 16.981159210205078,
}
OPENCV_FLAT = {"dist_dir_I03.webp": 84.4626693725586, "dist_dir_I08.webp": 7.912171840667725}


def listed(values: Floats) -> str:
    return "[ " + ",\n      ".join(f"{value:.17g}" for value in values) + " ]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in OpenCV's layout, whose ranges are about those of photos."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("brisque")
    low, high = np.tile([0.3, 0.0, 0.0, 0.0], 9), np.tile([4.0, 1.5, 1.0, 1.0], 9)
    (path / RANGE).write_text(
        f"%YAML:1.0\n---\nrange: !!opencv-matrix\n   rows: 2\n   data: {listed(np.r_[low, high])}\n"
    )
    rows = "\n".join(f"      - {listed(row)}" for row in rng.uniform(-1, 1, (5, 36)))
    (path / MODEL).write_text(
        "%YAML:1.0\n---\nopencv_ml_svm:\n   svmType: EPS_SVR\n   kernel:\n      type: RBF\n      gamma: 5.0e-02\n"
        f"   sv_total: 5\n   support_vectors:\n{rows}\n   decision_functions:\n      -\n         sv_count: 5\n"
        f"         rho: -4.25e+01\n         alpha: {listed(rng.normal(size=5) * 50)}\n"
    )
    return path


def photo(image: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """The upper left part of a photo, (1, 3, height, width)."""
    return torch.tensor(image[:height, :width]).permute(2, 0, 1)[None] / 255


# Against a plain restatement.


def plain_aggd(values: Floats) -> tuple[float, float, float]:
    left, right = np.sqrt(np.mean(values[values < 0] ** 2)), np.sqrt(np.mean(values[values > 0] ** 2))
    ratio = left / right
    moment = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    wanted = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    return float(SHAPES[np.argmin((MOMENTS - wanted) ** 2)]), float(left), float(right)


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
    taps = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2
    features = []
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
    low, high = np.tile([0.3, 0.0, 0.0, 0.0], 9), np.tile([4.0, 1.5, 1.0, 1.0], 9)
    rng = np.random.default_rng(0)
    vectors, weights = rng.uniform(-1, 1, (5, 36)), rng.normal(size=5) * 50
    scaled = -1 + 2 * (np.array(plain_features(photos[0][:64, :80])) - low) / (high - low)
    value = np.exp(-0.05 * ((scaled - vectors) ** 2).sum(1)) @ weights + 42.5
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


def test_a_batch_is_its_images_one_by_one(
    photos: list[NDArray[np.uint8]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brisque = BRISQUE(folder)
    images = torch.cat([photo(image, 64, 80) for image in photos])
    single = torch.cat([brisque(image[None]) for image in images])
    assert single.shape == (3,)
    assert len(single.unique()) == 3
    torch.testing.assert_close(brisque(images), single, rtol=1e-12, atol=0)
    monkeypatch.setattr("attriqa.judges.brisque._CHUNK_PIXELS", 64 * 80 * 2)
    torch.testing.assert_close(brisque(images), single, rtol=1e-12, atol=0)


def test_gradients_reach_the_pixels_and_lead_up(photos: list[NDArray[np.uint8]], folder: Path) -> None:
    brisque = BRISQUE(folder)
    image = photo(photos[1], 96, 96).requires_grad_()
    score = brisque(image)
    (slope,) = torch.autograd.grad(score.sum(), image)
    assert slope.isfinite().all()
    assert (slope != 0).float().mean() > 0.9
    assert brisque((image.detach() + 2 / 255 * slope.sign()).clamp(0, 1)) > score
    assert not list(brisque.parameters())


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_images_without_texture_have_a_value_and_finite_gradients(value: float, folder: Path) -> None:
    flat = torch.full((1, 3, 64, 64), value, requires_grad=True)
    score = BRISQUE(folder)(flat)
    assert score.tolist() == [-UNTEXTURED]
    (slope,) = torch.autograd.grad(score.sum(), flat)
    assert slope.isfinite().all()


# Bad input.


def test_wrong_images_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="images: expected a float tensor"):
        BRISQUE(folder)(torch.zeros(1, 1, 64, 64))


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
