"""Folders of raws and photos, and the cache of their linear light."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attriqa import images
from attriqa.images import ImageError
from attriqa_envs.isp import PARAMETERS, render
from attriqa_envs.isp.color import encode
from attriqa_envs.raw import LinearImage, decode
from attriqa_envs.raw import cache as raw_cache
from attriqa_envs.raw.cache import RenditionCache
from attriqa_envs.raw.find import ImageFile, find_images
from tests.support.dng_files import mosaic_of, smooth_scene, write_dng, write_mosaic


def write_photo(path: Path, seed: int = 0, height: int = 48, width: int = 72) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def dng(tmp_path: Path) -> Path:
    return write_dng(tmp_path / "raws" / "a b.dng", mosaic_of(smooth_scene(80, 120)))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded, as they are decoded."""
    seen: list[Path] = []

    read = ImageFile.read

    def counted(file: ImageFile, shorter_edge: int | None = None) -> LinearImage:
        seen.append(file.path)
        return read(file, shorter_edge)

    monkeypatch.setattr(ImageFile, "read", counted)
    return seen


def test_a_folder_of_raws_photos_and_mosaics(tmp_path: Path, dng: Path) -> None:
    root = dng.parent
    mosaic = write_mosaic(root / "deep" / "er" / "m.raw", mosaic_of(smooth_scene(48, 64)))
    binary = write_mosaic(root / "n.bin", mosaic_of(smooth_scene(48, 64)))
    photo = write_photo(root / "deep" / "p.png")
    (root / "firmware.bin").write_bytes(b"no mosaic")
    (root / ".hidden.dng").touch()
    (root / "link").symlink_to(root, target_is_directory=True)
    raws = [ImageFile(dng, "raw"), ImageFile(mosaic, "mosaic"), ImageFile(binary, "mosaic")]
    assert find_images(root) == find_images(root, kind="raw") == raws
    assert find_images(root, kind="photo") == [ImageFile(photo, "photo")]
    assert find_images(photo.parent / "p.png") == [ImageFile(photo, "photo")]
    assert find_images(dng) == [ImageFile(dng, "raw")]
    write_photo(tmp_path / "photos" / "b.jpg")
    assert [source.path.name for source in find_images(tmp_path / "photos")] == ["b.jpg"]


def test_a_folder_without_what_is_wanted_tells_what_it_holds(tmp_path: Path) -> None:
    write_photo(tmp_path / "photos" / "p.png")
    with pytest.raises(ValueError, match=r"root: expected raw files in .*photos; found 0 raw files and 1 photos"):
        find_images(tmp_path / "photos", kind="raw")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected raw files or photos in .*empty; found 0 raw files and 0 photos"):
        find_images(tmp_path / "empty")
    with pytest.raises(ValueError, match="there is no"):
        find_images(tmp_path / "none")


def test_every_kind_of_source_can_be_rendered(tmp_path: Path, dng: Path) -> None:
    mosaic = write_mosaic(tmp_path / "m.raw", mosaic_of(smooth_scene(80, 120)))
    photo = write_photo(tmp_path / "p.png", height=80, width=120)
    for path in (dng, mosaic, photo):
        (source,) = find_images(path)
        linear = RenditionCache(None, 40).read(source).pixels
        assert linear.dtype == torch.float16
        assert linear.shape == (3, 40, 60)
        rendered = render(linear[None].float(), torch.zeros(1, len(PARAMETERS)))
        images.check(rendered)


def test_a_photos_linear_light_encodes_to_the_photo(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "p.png")
    linear = ImageFile(path, "photo").read()
    torch.testing.assert_close(encode(linear.pixels), images.read(path), atol=1e-6, rtol=0)
    half = RenditionCache(None, 48).read(ImageFile(path, "photo"))
    assert float((encode(half.pixels.float()) - images.read(path)).abs().max()) < 0.5 / 255
    assert half.metadata.kind == "photo"
    assert half.metadata.size == (48, 72)


def test_a_file_is_decoded_once(tmp_path: Path, dng: Path, reads: list[Path]) -> None:
    cache, source = RenditionCache(tmp_path / "cache", 32), ImageFile(dng, "raw")
    first, second = cache.read(source), RenditionCache(tmp_path / "cache", 32).read(source)
    assert reads == [dng]
    assert torch.equal(first.pixels, second.pixels)
    assert first.pixels.dtype == torch.float16
    assert first.metadata == second.metadata
    torch.testing.assert_close(first.pixels.float(), decode(dng, shorter_edge=32).pixels, rtol=1e-3, atol=1e-6)
    RenditionCache(tmp_path / "cache", 40).read(source)
    assert len(reads) == 2, "another size is another rendition"
    moved = dng.rename(dng.parent / "moved.dng")
    assert cache.read(ImageFile(moved, "raw")).metadata.path == str(moved)
    assert len(reads) == 2, "a file keeps its rendition where it moves"


def test_a_changed_file_is_decoded_again(tmp_path: Path, dng: Path, reads: list[Path]) -> None:
    cache, source = RenditionCache(tmp_path / "cache", 32), ImageFile(dng, "raw")
    before, times = cache.read(source), dng.stat()
    write_dng(dng, mosaic_of(smooth_scene(80, 120, seed=5)))
    os.utime(dng, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copying tool does
    assert dng.stat().st_size == times.st_size
    assert not torch.equal(cache.read(source).pixels, before.pixels)
    os.utime(dng)
    cache.read(source)
    assert len(reads) == 3


def test_a_changed_json_of_a_mosaic_counts_as_a_changed_file(tmp_path: Path, reads: list[Path]) -> None:
    cache, mosaic = RenditionCache(tmp_path / "cache", 32), mosaic_of(smooth_scene(80, 120))
    source = ImageFile(write_mosaic(tmp_path / "m.raw", mosaic), "mosaic")
    before, times = cache.read(source), source.path.stat()
    write_mosaic(source.path, mosaic, gains=[1.5, 1.0, 1.5])
    os.utime(source.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not torch.equal(cache.read(source).pixels, before.pixels)


def test_a_change_of_the_code_invalidates(tmp_path: Path, dng: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, source = RenditionCache(tmp_path / "cache", 32), ImageFile(dng, "raw")
    before = cache.entry(source)
    monkeypatch.setattr(raw_cache, "_code_version", lambda kind: "another")
    assert cache.entry(source) != before


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "noise"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, dng: Path, reads: list[Path], damage: str) -> None:
    cache, source = RenditionCache(tmp_path / "cache", 32), ImageFile(dng, "raw")
    whole = cache.read(source)
    entry = cache.entry(source)
    data = bytearray(entry.read_bytes())
    data[-100] ^= 4
    damaged = {"cut": data[: len(data) // 2], "flip": data, "empty": bytearray(), "noise": bytearray(b"noise" * 100)}[
        damage
    ]
    entry.write_bytes(damaged)
    assert torch.equal(cache.read(source).pixels, whole.pixels)
    assert len(reads) == 2
    cache.read(source)
    assert len(reads) == 2, "the new entry is whole"


def test_a_killed_run_leaves_nothing_that_is_read(
    tmp_path: Path, dng: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, source = RenditionCache(tmp_path / "cache", 32), ImageFile(dng, "raw")

    def dies(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(raw_cache, "save_file", dies)
        with pytest.raises(KeyboardInterrupt):
            cache.read(source)
    assert not cache.entry(source).exists()
    cache.read(source)
    assert len(reads) == 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [cache.entry(source).name]


def test_one_bad_file_ends_nothing(tmp_path: Path, reads: list[Path]) -> None:
    for seed in range(5):
        write_dng(tmp_path / "raws" / f"{seed}.dng", mosaic_of(smooth_scene(80, 120, seed)))
    (tmp_path / "raws" / "2.dng").write_bytes((tmp_path / "raws" / "2.dng").read_bytes()[:3000])
    sources = find_images(tmp_path / "raws")
    loaded = RenditionCache(tmp_path / "cache", 32).read_all(sources, threads=3, progress=False)
    assert [Path(image.metadata.path).name for image in loaded.images] == ["0.dng", "1.dng", "3.dng", "4.dng"]
    assert [Path(error.path).name for error in loaded.failures] == ["2.dng"]
    again = RenditionCache(tmp_path / "cache", 32).read_all(sources, threads=1, progress=False)
    assert len(reads) == 6, "only the bad one is tried again"
    for first, second in zip(loaded.images, again.images, strict=True):
        assert torch.equal(first.pixels, second.pixels)
    with pytest.raises(ValueError, match=r"expected one that can be read among 1; got none \(.*2\.dng: LibRaw cannot"):
        RenditionCache(None, 32).read_all([sources[2]], progress=False)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter_edge: expected an integer of at least 32"):
        RenditionCache(tmp_path, 16)
    with pytest.raises(ImageError, match="No such file"):
        RenditionCache(tmp_path, 32).read(ImageFile(tmp_path / "none.dng", "raw"))
    with pytest.raises(ValueError, match="kind: expected any, raw or photo"):
        find_images(tmp_path, kind="video")  # type: ignore[arg-type]


@pytest.mark.shared_data
def test_the_real_raws_go_through_the_cache(shared_data: Path, tmp_path: Path) -> None:
    sources = find_images(shared_data / "raw" / "colorchart.dng") + find_images(shared_data / "raw", kind="photo")
    loaded = RenditionCache(tmp_path, 256).read_all(sources, progress=False)
    assert not loaded.failures
    assert loaded.images[0].pixels.shape == (3, 256, 384)
    everything = RenditionCache(tmp_path, 64).read_all(find_images(shared_data / "raw"), progress=False)
    assert [Path(error.path).suffix for error in everything.failures] == [".raw"], "which has no JSON"
