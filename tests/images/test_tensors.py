"""Sizes, resizing and crops of tensors, and image files in folders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from attriqa import images
from tests.images.test_images import read
from tests.support import image_cases as cases


def test_files_and_tensors_are_resized_alike(tmp_path: Path, photos: list[NDArray[np.uint8]]) -> None:
    rng = np.random.default_rng(0)
    edges = (np.indices((257, 400)).sum(0) // 5 % 2 * 255).astype(np.uint8)
    noise = rng.integers(0, 256, (301, 403, 3)).astype(np.uint8)
    wide = rng.integers(0, 256, (60, 700, 3)).astype(np.uint8)
    for pixels in (*photos, photos[0][:391, :577], edges, noise, wide):
        data = cases.encode(Image.fromarray(pixels), "PNG")
        whole = read(tmp_path, data)
        for size in (33, 97, 224, 384):
            apart = (read(tmp_path, data, size) - images.resize_shorter(whole[None], size)[0]).abs()
            assert apart.max() < 1.1 / 255
            assert apart.mean() < 0.35 / 255


@pytest.mark.parametrize(
    ("height", "width", "edge", "limit", "expected"),
    [
        (500, 500, 384, None, (384, 384)),
        (375, 500, 384, None, (384, 512)),
        (500, 375, 384, None, (512, 384)),
        (100, 133, 32, None, (32, 43)),  # 42.56
        (64, 97, 32, None, (32, 49)),  # 48.5: half goes up
        (100, 400, 384, None, (384, 1536)),  # 4:1 is just within the limit
        (100, 2000, 384, None, (171, 3420)),  # 20:1: 4 * 384 ** 2 px at most
        (2000, 100, 384, None, (3420, 171)),
        (32, 32000, 384, None, (32, 18432)),  # 1000:1: the aspect gives way
        (40, 50, 224, 10_000, (89, 111)),
        (500, 500, 384, 32 * 32, (32, 32)),
    ],
)
def test_target_size(height: int, width: int, edge: int, limit: int | None, expected: tuple[int, int]) -> None:
    assert images.target_size(height, width, edge, limit) == expected


def test_target_size_never_exceeds_its_limits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        height, width = (int(side) for side in np.exp(rng.uniform(0, 11, 2)).round())
        edge = int(rng.integers(32, 1000))
        h, w = images.target_size(height, width, edge)
        assert 32 <= min(h, w) <= edge
        assert h * w <= 4 * edge**2
        assert images.target_size(width, height, edge) == (w, h)
        if max(height, width) <= 4 * min(height, width):
            assert min(h, w) == edge
        if min(h, w) > 32:  # rounding of either side apart, the aspect is kept
            assert abs(max(h, w) / min(h, w) * min(height, width) / max(height, width) - 1) <= 1 / 32


@pytest.mark.parametrize("bad", [(0, 9, 64, None), (9, -1, 64, None), (64, 64, 31, None), (64, 64, 64, 1023)])
def test_target_size_refuses(bad: tuple[int, int, int, int | None]) -> None:
    with pytest.raises(ValueError, match="expected"):
        images.target_size(*bad)


@pytest.mark.parametrize("edge", [31, 0, -5, 384.0, "384"])
def test_read_blames_a_wrong_edge_on_the_caller(tmp_path: Path, edge: Any) -> None:
    (tmp_path / "photo.png").write_bytes(cases.encode(cases.scene(), "PNG"))
    with pytest.raises(ValueError, match="shorter_edge") as caught:
        images.read(tmp_path / "photo.png", shorter_edge=edge)
    assert not isinstance(caught.value, images.ImageError)


def test_resizing_by_a_half_weighs_as_a_triangle() -> None:
    pixels = torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8  # the triangle of radius 2 at half-pixel offsets
    kernel = (weights[:, None] * weights).expand(3, 1, 4, 4)
    expected = torch.nn.functional.conv2d(pixels[..., 1:, 1:], kernel, stride=2, groups=3)  # all but the borders
    assert torch.allclose(images.resize_shorter(pixels, 32)[..., 1:31, 1:39], expected)


def test_resizing_keeps_constants_range_dtype_and_identity() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 90, 140, generator=generator)
    assert images.resize_shorter(pixels, 90) is pixels
    for size in (32, 57, 200):
        extreme = images.resize_shorter((pixels > 0.5).float(), size)
        images.check(extreme)
        assert torch.allclose(images.resize_shorter(torch.full_like(pixels, 0.3), size), torch.tensor(0.3), atol=1e-6)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        resized = images.resize_shorter(pixels.to(dtype), 50)
        assert resized.dtype is dtype
        exact = images.resize_shorter(pixels.to(dtype).double(), 50)
        assert (resized.double() - exact).abs().max() <= torch.finfo(dtype).eps / 2 + 1e-6
    with pytest.raises(ValueError, match="images: expected float"):
        images.resize_shorter(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 32)


def test_gradients_pass_resizing_and_crops() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 1, 33, 35, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: images.resize_shorter(x, 32), pixels)
    ones = torch.ones(2, 3, 40, 60, requires_grad=True)
    (gradient,) = torch.autograd.grad(images.five_crops(ones, 32).sum(), ones)
    assert gradient.sum() == 2 * 5 * 3 * 32 * 32


def test_five_crops_are_the_corners_and_the_centre() -> None:
    rows, columns = torch.arange(50.0), torch.arange(70.0)
    place = torch.stack([rows[:, None].expand(50, 70), columns.expand(50, 70)])[None]  # (1,2,50,70)
    crops = images.five_crops(place, 40)
    assert crops.shape == (1, 5, 2, 40, 40)
    assert crops[0, :, :, 0, 0].tolist() == [[0, 0], [0, 30], [10, 0], [10, 30], [5, 15]]
    assert crops[0, :, :, -1, -1].tolist() == [[39, 39], [39, 69], [49, 39], [49, 69], [44, 54]]
    whole = images.five_crops(place[..., :40, :40], 40)
    assert whole.shape == (1, 5, 2, 40, 40)
    assert whole.stride(1) == 0  # five views of one memory
    for size in (51, 0):
        with pytest.raises(ValueError, match=rf"at least {size} px; got \(1, 2, 50, 70\)"):
            images.five_crops(place, size)


def test_find_lists_images_once_and_in_order(tmp_path: Path) -> None:
    def found(paths: Any, recursive: bool = False) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in images.find(paths, recursive=recursive)]

    for name in ("b.JPG", "a.png", "notes.txt", "raw.dng", ".hidden.png", "sub/c.webp", "sub/deep/d.tif", ".git/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    assert found([tmp_path]) == ["a.png", "b.JPG", "gone.png"]
    assert found(str(tmp_path), True) == ["a.png", "b.JPG", "gone.png", "sub/c.webp", "sub/deep/d.tif"]
    twice = [tmp_path / "sub", tmp_path, tmp_path / "a.png", tmp_path / "sub" / ".." / "a.png", tmp_path / "notes.txt"]
    assert found(twice) == ["a.png", "b.JPG", "gone.png", "notes.txt", "sub/c.webp"]
    assert found([tmp_path / "empty"]) == []
    assert found([tmp_path / ".git"]) == [".git/e.png"]
    for missing in (tmp_path / "nowhere", tmp_path / "a.png" / "x"):
        with pytest.raises(FileNotFoundError, match=missing.name):
            images.find([tmp_path, missing])


@pytest.mark.shared_data
def test_raw_files_are_no_images(shared_data: Path) -> None:
    raw = sorted(path for path in (shared_data / "raw").iterdir() if path.suffix.lower() in (".dng", ".kdc", ".raw"))
    assert len(raw) == 3
    for path in raw:
        with pytest.raises(images.ImageError, match=r"raw file|not an image"):
            images.read(path)
