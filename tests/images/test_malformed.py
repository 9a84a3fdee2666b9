"""More than 500 malformed inputs: each gives a clear error or a right result, quietly and soon."""

import io
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFile
from torch import Tensor

from attriqa import images
from tests.support import image_cases as cases

# Of each family: cases, errors, pictures; at least so many, so that none can pass by being empty.
FAMILIES = {
    "truncated": (390, 380, 5),
    "closed again": (108, 108, 0),
    "flipped": (240, 40, 170),
    "foreign": (85, 85, 0),
    "sizes": (60, 55, 2),
    "exif": (36, 0, 36),
    "icc": (40, 25, 5),
    "bombs": (7, 5, 2),
    "modes": (45, 2, 43),
}
SECONDS = 2.0  # of processor time per file; they take a hundredth. A hang is for pytest-timeout to end


@pytest.fixture
def quiet() -> Iterator[None]:
    """Fails the test if it makes anything warn, once or many times, in any thread."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield
    assert [str(warning.message) for warning in warned] == []


def read(path: Path) -> Tensor | str:
    """The pixels of a file, or the reason why there are none, after checking that either keeps the contract."""
    found: Tensor | images.ImageError
    started = time.thread_time()
    try:
        found = images.read(path)
    except images.ImageError as error:
        found = error
    assert time.thread_time() - started < SECONDS
    if isinstance(found, Tensor):
        images.check(found[None])
        return found
    assert found.path == str(path)
    assert str(found) == f"{path}: {found.reason}"
    assert found.reason.isprintable()
    assert 5 < len(found.reason) < 200
    assert "0x" not in found.reason  # no address of an object
    return found.reason


def same(found: Tensor, path: Path, original: bytes) -> bool:
    path.write_bytes(original)
    expected = images.read(path)
    return found.shape == expected.shape and torch.equal(found, expected)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_every_file_gives_a_clear_error_or_a_right_picture(tmp_path: Path, seed: int) -> None:
    outcomes: Counter[tuple[str, str]] = Counter()
    wrong = []
    for case in cases.malformed_files(seed):
        path = tmp_path / "file"
        path.write_bytes(case.data)
        found = read(path)
        refused = isinstance(found, str)
        outcomes[case.family, "error" if refused else "picture"] += 1
        if not isinstance(found, str) and case.original is not None and case.expect != "sane":
            right = case.expect in ("valid", "whole") and same(found, tmp_path / "original", case.original)
        else:
            right = refused if case.expect == "error" else case.expect != "valid" or not refused
        wrong += [] if right else [(case.family, case.name, case.expect, found if refused else "picture")]
    assert wrong == []
    assert sum(outcomes.values()) > 500
    assert {family for family, _ in outcomes} == set(FAMILIES)
    for family, (count, errors, pictures) in FAMILIES.items():
        assert outcomes[family, "error"] >= errors, family
        assert outcomes[family, "picture"] >= pictures, family
        assert outcomes[family, "error"] + outcomes[family, "picture"] >= count, family


def test_the_cases_are_the_same_every_time() -> None:
    first, second = list(cases.malformed_files(3)), list(cases.malformed_files(3))
    assert first == second
    assert list(cases.malformed_files(4)) != first


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("case", cases.malformed_tensors(), ids=lambda case: case.name)
def test_every_wrong_tensor_is_refused_by_name(case: "cases.TensorCase") -> None:
    with pytest.raises(ValueError, match=r"^photos: expected") as caught:
        images.check(case.value, name="photos")
    assert case.word in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_right_tensors_pass(dtype: torch.dtype) -> None:
    pixels = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    pixels[0, 0, 0, :2] = torch.tensor([0.0, 1.0], dtype=dtype)
    images.check(pixels)
    images.check(pixels[:1].permute(0, 1, 3, 2).requires_grad_())
    images.check(torch.full((1, 3, 32, 32), 1 + 5e-7))


def test_paths_that_are_no_image_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "huge.png").touch()
    os.truncate(tmp_path / "huge.png", images.MAX_FILE_BYTES + 1)  # takes no space
    (tmp_path / "secret.png").write_bytes(cases.encode(cases.scene(), "PNG"))
    reasons = {"missing.png": "No such file", ".": "a folder", "pipe": "not a regular file", "loop": "symbolic links"}
    reasons |= {"x" * 300: "too long", "nul\0": "null byte", "huge.png": "bytes", "secret.png/x": "Not a directory"}
    for name, reason in reasons.items():
        with pytest.raises(images.ImageError, match=reason):
            images.read(tmp_path / name)

    def refuse(self: Path) -> bytes:  # tests may run as root, whom no permission stops
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(images.ImageError, match=r"secret\.png: Permission denied$"):
        images.read(tmp_path / "secret.png")


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(images.ImageError("a photo.png", "truncated")))
    assert isinstance(error, images.ImageError)
    assert (error.path, error.reason, str(error)) == ("a photo.png", "truncated", "a photo.png: truncated")


def test_gray_pictures_are_not_taken_for_truncated_ones(tmp_path: Path) -> None:
    mixed = Image.new("RGB", (64, 96), (128, 128, 128))
    mixed.paste(cases.scene(), (0, 0))
    path = tmp_path / "gray.jpg"
    for image in (mixed, Image.new("L", (64, 64), 128), Image.new("CMYK", (64, 64), (127, 127, 127, 127))):
        for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}):
            path.write_bytes(cases.encode(image, "JPEG", options))
            assert isinstance(read(path), Tensor)
    whole = cases.encode(mixed, "JPEG", {"quality": 95})
    path.write_bytes(whole[: len(whole) * 2 // 3] + b"\xff\xd9")
    assert read(path) == "truncated: the end-of-image marker comes before the last blocks"


def test_a_thumbnail_has_an_end_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    whole = cases.encode(
        cases.scene(), "JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0" + cases.originals()["jpeg"]}
    )
    path.write_bytes(whole)
    assert isinstance(read(path), Tensor)
    path.write_bytes(whole[:-400] + bytes(400))
    assert read(path) == "truncated: no end-of-image marker"


@pytest.mark.parametrize("tag", [50706, 254])  # DNGVersion; NewSubfileType with the bit of a reduced version
def test_raw_files_and_previews_are_refused(tmp_path: Path, tag: int) -> None:
    path = tmp_path / "photo.tif"
    path.write_bytes(cases.tiff(64, 48, bytes(3072), {tag: (4, 1, 1)}))
    assert str(read(path)).startswith("a raw file, or a TIFF that begins with a preview")
    path.write_bytes(cases.tiff(64, 48, bytes(3072), {254: (4, 1, 2)}))  # a page of many
    assert isinstance(read(path), Tensor)


def test_bytes_after_the_end_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for name in ("jpeg", "jpeg-progressive", "png", "gif", "bmp", "webp", "tiff"):
        path.write_bytes(cases.originals()[name] + b"a video follows, as in motion photos" * 40)
        found = read(path)
        assert isinstance(found, Tensor), name
        assert same(found, path, cases.originals()[name])


def test_threads_read_the_same_as_one(tmp_path: Path) -> None:
    paths = []
    for index, case in enumerate(cases.malformed_files(7)):
        if index % 9 == 0:
            paths.append(tmp_path / f"{index}")
            paths[-1].write_bytes(case.data)
    alone = [read(path) for path in paths]
    assert sum(isinstance(found, str) for found in alone) > 20
    assert sum(isinstance(found, Tensor) for found in alone) > 20
    with ThreadPoolExecutor(4) as pool:
        for together in [list(pool.map(read, paths)) for _ in range(3)]:
            for found, expected in zip(together, alone, strict=True):
                if isinstance(found, Tensor) and isinstance(expected, Tensor):
                    assert torch.equal(found, expected)
                else:
                    assert found == expected


def corrupt_exif() -> bytes:
    """A JPEG that Pillow warns of when it is opened."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(30)
    data = cases.encode(cases.scene(), "JPEG", {"exif": exif}).replace(b"JFIF\0", b"JUNK\0")
    with pytest.warns(UserWarning, match="EXIF|Truncated"), Image.open(io.BytesIO(data)) as image:
        image.getexif()
    return data


def test_pillow_is_silenced_here_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(corrupt_exif())
    stop = threading.Event()
    heard = []

    def complain() -> None:  # another thread of the application, at the same time
        while not stop.wait(0.001):
            try:
                warnings.warn("mine", UserWarning, stacklevel=1)
            except UserWarning:  # pytest makes warnings errors
                heard.append(True)
            else:
                heard.append(False)

    thread = threading.Thread(target=complain, daemon=True)
    thread.start()
    try:
        for _ in range(50):
            warnings.simplefilter("error")  # comes before whatever stands there
            assert isinstance(read(path), Tensor)
    finally:
        stop.set()
        thread.join()
    assert heard
    assert all(heard)
    with pytest.raises(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


@pytest.mark.slow
def test_no_warning_filter_turns_a_warning_into_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(corrupt_exif())
    code = f"from attriqa import images; print(tuple(images.read({str(path)!r}).shape))"
    for flags in (["-W", "error"], ["-W", "default"]):
        done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("(3, 48, 64)\n", "")


def test_pillow_keeps_its_settings(tmp_path: Path) -> None:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    for name in ("jpeg", "tiff"):
        (tmp_path / name).write_bytes(cases.originals()[name][:-20])
        assert isinstance(read(tmp_path / name), str)
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


def test_a_large_picture_needs_no_warning_and_a_bomb_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # so that Pillow warns of 3,072 px, as it does of 100 million
    path = tmp_path / "photo.png"
    path.write_bytes(cases.encode(cases.scene(), "PNG"))
    assert isinstance(read(path), Tensor)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "exceeds limit" in str(read(path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path.write_bytes(cases.png(60000, 60000, bytes(1000)))
    assert read(path) == "60000 x 60000 px; at most 170000000 pixels are read"
