"""NIQE and the natural scene statistics under it, against plain NumPy and SciPy and against published values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.special import gamma

from attriqa.images import read
from attriqa.judges.natural_scenes import fit_aggd
from attriqa.judges.niqe import BLOCK, NIQE, UNTEXTURED, halve
from tests.judges.natural_scenes import Floats, photo, plain_aggd, write_niqe


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_niqe(tmp_path_factory.mktemp("niqe") / "parameters.npz")


# Against a plain restatement.


def plain_block(block: Floats) -> list[float]:
    a, left, right = plain_aggd(block)
    scale = np.sqrt(gamma(1 / a) / gamma(3 / a))
    found = [a, (left + right) / 2 * scale]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a, left, right = plain_aggd(block * np.roll(block, shift, (0, 1)))
        scale = np.sqrt(gamma(1 / a) / gamma(3 / a))
        found += [a, (right - left) * scale * gamma(2 / a) / gamma(1 / a), left * scale, right * scale]
    return found


def cubic(t: Floats) -> Floats:
    t = np.abs(t)
    inner, outer = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t <= 1, inner, np.where(t <= 2, outer, 0))


def half_matrix(side: int) -> Floats:
    """MATLAB's imresize(x, 0.5) along one side, as a (side / 2, side) matrix."""
    matrix = np.zeros((side // 2, side))
    mirror = [*range(side), *range(side - 1, -1, -1)]
    for row in range(side // 2):
        centre = 2 * row + 0.5
        taps = np.arange(int(np.floor(centre)) - 3, int(np.floor(centre)) + 5)
        weights = cubic((centre - taps) / 2)
        for tap, weight in zip(taps, weights / weights.sum(), strict=True):
            matrix[row, mirror[tap % (2 * side)]] += weight
    return matrix


def plain_niqe(image: NDArray[np.uint8], path: Path) -> float:
    parameters = np.load(path)
    gray = np.round(image.astype(float) @ [0.298936021293775, 0.587043074451121, 0.114020904255103])
    rows, columns = gray.shape[0] // BLOCK, gray.shape[1] // BLOCK
    gray = gray[: rows * BLOCK, : columns * BLOCK]
    features = []
    for block in (BLOCK, BLOCK // 2):
        mean = ndimage.convolve(gray, parameters["gaussian_window"], mode="nearest")
        square = ndimage.convolve(gray**2, parameters["gaussian_window"], mode="nearest")
        normalised = (gray - mean) / (np.sqrt(np.abs(square - mean**2)) + 1)
        features.append(
            [
                plain_block(normalised[y * block : (y + 1) * block, x * block : (x + 1) * block])
                for y in range(rows)
                for x in range(columns)
            ]
        )
        gray = half_matrix(gray.shape[0]) @ gray @ half_matrix(gray.shape[1]).T
    told = np.concatenate(features, 1)
    apart = parameters["mu_pris_param"][0] - told.mean(0)
    spread = (parameters["cov_pris_param"] + np.cov(told.T)) / 2
    return float(np.sqrt(apart @ np.linalg.pinv(spread) @ apart))


def test_niqe_is_what_plain_numpy_makes_of_the_paper(photos: list[NDArray[np.uint8]], parameters: Path) -> None:
    for image, size in zip(photos, [(210, 300), (192, 96), (100, 290)], strict=True):
        found = NIQE(parameters).distance(photo(image, *size)).item()
        assert found == pytest.approx(plain_niqe(image[: size[0], : size[1]], parameters), rel=1e-9)


def test_halving_is_matlabs_and_inside_pillows(photos: list[NDArray[np.uint8]]) -> None:
    gray = photos[0][:64, :96, 1].astype(np.float64)
    found = halve(torch.tensor(gray)[None])[0].numpy()
    np.testing.assert_allclose(found, half_matrix(64) @ gray @ half_matrix(96).T, rtol=1e-12)
    pillow = Image.fromarray(gray.astype(np.float32)).resize((48, 32), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(found[3:-3, 3:-3], np.asarray(pillow)[3:-3, 3:-3], atol=1e-3)


# Against published values.


@pytest.mark.shared_data
def test_published_values(shared_data: Path) -> None:
    """BasicSR prints 5.72957 for its baboon; TID2013's are of the authors' MATLAB code.

    I04 has no flat areas and agrees to rounding. In the others the sign of what is zero but for rounding decides which
    side of the distribution a flat pixel counts to; ours counts it to neither.
    """
    path = shared_data / "weights" / "niqe_pris_params.npz"
    reference = shared_data / "reference"
    baboon = read(reference / "basicsr_baboon.png")[None]
    assert NIQE(path, luminance="y").distance(baboon).item() == pytest.approx(5.72957, abs=6e-6)
    lines = (reference / "results_official.csv").read_text(encoding="utf-8").splitlines()
    published = dict(line.split(",", 1) for line in lines)["niqe"].split(",")
    names = [name.removesuffix(".bmp") for name in lines[0].split(",")[1:]]
    images = torch.stack([read(reference / f"dist_dir_{name}.webp") for name in names])
    found = dict(zip(names, NIQE(path).distance(images).tolist(), strict=True))
    for name, value in zip(names, map(float, published), strict=True):
        assert found[name] == pytest.approx(value, rel=1e-11 if name == "I04" else 6e-3), name


# As a judge.


def test_chunks_change_nothing(
    photos: list[NDArray[np.uint8]], parameters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    niqe, images = NIQE(parameters), torch.cat([photo(image, 192, 192) for image in photos])
    at_once = niqe(images)
    torch.testing.assert_close(niqe.distance(images), -at_once)
    monkeypatch.setattr("attriqa.judges.natural_scenes.CHUNK_PIXELS", 192 * 192 * 2)
    torch.testing.assert_close(niqe(images), at_once, rtol=1e-12, atol=0)


def test_images_without_texture_have_the_worst_value(parameters: Path) -> None:
    assert NIQE(parameters)(torch.full((1, 3, 192, 192), 0.5)).tolist() == [-UNTEXTURED]


def test_flat_blocks_are_left_out(photos: list[NDArray[np.uint8]], parameters: Path) -> None:
    image = photo(photos[1], 192, 288).clone()
    image[:, :, :, 192:] = 1.0  # two of six blocks, but for what their left edge sees of the neighbour
    image = image.requires_grad_()
    score = NIQE(parameters)(image)
    assert score.item() > -UNTEXTURED
    assert torch.autograd.grad(score.sum(), image)[0].isfinite().all()


def test_the_gradient_of_a_shape_is_that_of_the_function(photos: list[NDArray[np.uint8]]) -> None:
    """The table's steps of 0.001 are small beside what a change of 2 % does."""
    values = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    peaked = values.sign() * values.abs() ** 1.3
    power = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    bent = peaked.sign() * peaked.abs() ** power
    (slope,) = torch.autograd.grad(fit_aggd(bent).shape.sum(), power)
    high, low = (fit_aggd(peaked.sign() * peaked.abs() ** p).shape.item() for p in (1.02, 0.98))
    assert slope.item() == pytest.approx((high - low) / 0.04, rel=0.05)
    gaussian, laplacian = fit_aggd(values).shape.item(), fit_aggd(values.sign() * -torch.rand_like(values).log())
    assert gaussian == pytest.approx(2, abs=0.15)
    assert laplacian.shape.item() == pytest.approx(1, abs=0.15)


# Bad input.


@pytest.mark.parametrize("shape", [(1, 3, 95, 400), (1, 3, 100, 100)])
def test_wrong_sizes_are_refused(shape: tuple[int, ...], parameters: Path) -> None:
    with pytest.raises(ValueError, match="images: "):
        NIQE(parameters)(torch.rand(shape, generator=torch.Generator().manual_seed(0)))


def test_wrong_files_are_refused(parameters: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        NIQE(tmp_path / "nothing.npz")
    good: dict[str, Any] = dict(np.load(parameters))
    window = np.eye(7) / 7
    for name, value in {"mu_pris_param": np.zeros(36), "cov_pris_param": None, "gaussian_window": window}.items():
        changed = {key: array for key, array in (good | {name: value}).items() if array is not None}
        np.savez(tmp_path / "odd.npz", **changed)
        with pytest.raises(ValueError, match=rf"odd\.npz: expected .*{name}"):
            NIQE(tmp_path / "odd.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.npz: expected an \.npz"):
        NIQE(tmp_path / "text.npz")
    with pytest.raises(ValueError, match="luminance: expected gray or y, got 'red'"):
        NIQE(parameters, luminance="red")  # type: ignore[arg-type]
