"""Files as a stream of rows."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attriqa import ATTRIBUTES, QualityReward, images
from tests.reward.test_quality import pictures

# Files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty files: sizes mixed, three of them bad, one missing."""
    root = tmp_path_factory.mktemp("files")
    sizes = [(140, 104), (200, 150), (150, 200), (96, 96), (700, 60)]
    paths = []
    for index in range(40):
        width, height = sizes[index % len(sizes)]
        pixels = (pictures(1, height, width, seed=index)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        path = root / f"{(index * 7) % 40:02}.png"
        Image.fromarray(pixels).save(path)
        paths.append(path)
    paths[3].write_bytes(b"")
    paths[17].write_bytes(b"not an image at all")
    paths[30].write_bytes(paths[29].read_bytes()[:2000])
    paths[35].unlink()
    return paths


BAD = {3, 17, 30, 35}


def test_files_score_in_the_order_given_and_bad_ones_say_why(reward: QualityReward, folder: list[Path]) -> None:
    rows = list(reward.score_files(folder))
    assert [row.path for row in rows] == [str(path) for path in folder]
    assert {index for index, row in enumerate(rows) if row.error is not None} == BAD
    for index, (path, row) in enumerate(zip(folder, rows, strict=True)):
        if index in BAD:
            assert row.score is None
            assert row.attributes is None
            assert row.error
            continue
        expected = reward.assess(images.read(path)[None])
        assert row.score == pytest.approx(expected.score.item(), abs=0.005)
        assert row.attributes is not None
        # The random net's attributes reach from 0 to 1 over these images: steeper than the default's, see below.
        assert row.attributes == pytest.approx([expected.attribute(name).item() for name in ATTRIBUTES], abs=0.1)


def test_neither_threads_nor_neighbours_change_a_row(reward: QualityReward, folder: list[Path]) -> None:
    first, *others = (list(reward.score_files(folder, threads=threads)) for threads in (1, 2, 4))
    assert len(first) == len(folder)
    assert all(rows == first for rows in others)
    rows = {row.path: row.score for row in first}
    alone = [next(iter(reward.score_files([path]))) for path in folder[:6]]
    for row in [*alone, *reward.score_files(reversed(folder))]:
        assert row.score == (None if rows[row.path] is None else pytest.approx(rows[row.path], abs=1e-5))


def test_an_endless_source_is_read_only_as_rows_are_asked_for(reward: QualityReward, folder: list[Path]) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for path in itertools.cycle(folder[:3]):
            taken += 1
            yield str(path)

    rows = reward.score_files(endless(), threads=2)
    assert taken == 0
    found = [row.path for row in itertools.islice(rows, 3)]
    assert found == [str(path) for path in folder[:3]]
    assert taken <= 64
    rows.close()  # type: ignore[attr-defined]


def reading() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("attriqa-read")]


def test_no_thread_outlives_the_rows(reward: QualityReward, folder: list[Path]) -> None:
    rows = reward.score_files(folder, threads=3)
    next(rows)
    assert reading()
    rows.close()  # type: ignore[attr-defined]
    assert not reading()
    assert len(list(reward.score_files(folder, threads=3))) == len(folder)
    assert not reading()

    def broken() -> Iterator[Path]:
        yield from folder[:2]
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        list(reward.score_files(broken(), threads=2))
    assert not reading()


def test_rows_leave_the_callers_gradient_mode_alone(reward: QualityReward, folder: list[Path]) -> None:
    for _ in reward.score_files(folder[:2]):
        assert torch.is_grad_enabled()
    assert list(reward.score_files([])) == []
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        list(reward.score_files(folder, threads=0))
