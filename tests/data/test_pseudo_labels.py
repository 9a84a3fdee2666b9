import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attriqa.attributes import ATTRIBUTES
from attriqa.data import pseudo_labels
from attriqa.data.pseudo_labels import LabelsError, Origin, load, merge, write_part
from tests.support.trees import unlabelled as unlabelled_tree

ORIGIN = Origin("CLIPTeacher(ViT-B-16, weights 0123)", "f" * 64)
KEYS = ["b/2.jpg", "a.jpg", "日本.jpg", "c"]
SCORES = unlabelled_tree.scores(4)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_parts_become_one_file_sorted_by_key(tmp_path: Path) -> None:
    part = write_part(tmp_path, KEYS[:3], SCORES[:3], ORIGIN)
    assert part.parent == tmp_path / "parts"
    write_part(tmp_path, KEYS[3:], SCORES[3:], ORIGIN)
    before = load(tmp_path)
    path = merge(tmp_path, ORIGIN)
    assert files(tmp_path) == ["labels.parquet"]
    merged = load(path)
    assert merged.table["key"].to_pylist() == sorted(KEYS)
    assert merged.origin == before.origin == ORIGIN
    for labels in (before, merged, load(tmp_path, ORIGIN)):
        assert len(labels) == 4
        assert np.array_equal(labels.align(KEYS), SCORES), "every bit of a float32"


def test_the_file_says_to_anyone_what_is_in_it(tmp_path: Path) -> None:
    write_part(tmp_path, KEYS, SCORES, ORIGIN)
    table = pq.read_table(merge(tmp_path, ORIGIN))
    assert table.column_names == ["key", *ATTRIBUTES]
    assert {table.schema.field(name).type for name in ATTRIBUTES} == {pa.float32()}
    about = json.loads(table.schema.metadata[b"attriqa"])
    assert (about["teacher"], about["prompts_hash"]) == ORIGIN


def test_align_gives_nan_where_there_is_no_label(tmp_path: Path) -> None:
    write_part(tmp_path, KEYS, SCORES, ORIGIN)
    found = load(tmp_path).align(["c", "missing", "a.jpg"])
    assert found.dtype == np.float32
    assert np.array_equal(found, np.stack([SCORES[3], np.full(5, np.nan, np.float32), SCORES[1]]), equal_nan=True)
    assert load(tmp_path).align([]).shape == (0, 5)


def test_a_second_merge_adds_to_the_first(tmp_path: Path) -> None:
    write_part(tmp_path, KEYS[:2], SCORES[:2], ORIGIN)
    merge(tmp_path, ORIGIN)
    write_part(tmp_path, KEYS[2:], SCORES[2:], ORIGIN)
    path = merge(tmp_path, ORIGIN)
    assert np.array_equal(load(path).align(KEYS), SCORES)
    before = path.stat().st_mtime_ns
    assert merge(tmp_path, ORIGIN) == path
    assert path.stat().st_mtime_ns == before, "nothing new, nothing written"


def test_a_label_that_was_merged_but_not_deleted_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part(tmp_path, KEYS, SCORES, ORIGIN)

    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".parquet":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            merge(tmp_path, ORIGIN)
    assert len(files(tmp_path)) == 2
    assert len(load(tmp_path)) == 4
    write_part(tmp_path, [*KEYS[:2], "new"], np.concatenate([SCORES[:2] + 1, SCORES[:1]]), ORIGIN)
    merge(tmp_path, ORIGIN)
    assert files(tmp_path) == ["labels.parquet"]
    assert np.array_equal(load(tmp_path).align([*KEYS, "new"]), np.concatenate([SCORES, SCORES[:1]])), "the first stays"


@pytest.mark.parametrize("other", [Origin("SignalTeacher(1)", ORIGIN.prompts_hash), Origin(ORIGIN.teacher, None)])
def test_two_teachers_are_never_mixed_and_both_are_named(tmp_path: Path, other: Origin) -> None:
    write_part(tmp_path, KEYS[:2], SCORES[:2], ORIGIN)
    with pytest.raises(LabelsError) as caught:
        load(tmp_path, other)
    for name in (ORIGIN.teacher, other.teacher, str(ORIGIN.prompts_hash), other.prompts_hash or "none"):
        assert name in str(caught.value)
    write_part(tmp_path, KEYS[2:], SCORES[2:], other)
    before = files(tmp_path)
    for origin, action in itertools.product((ORIGIN, other), (load, merge)):
        with pytest.raises(LabelsError, match="never mixed"):
            action(tmp_path, origin)
    with pytest.raises(LabelsError, match="never mixed"):
        load(tmp_path)
    assert files(tmp_path) == before


def test_a_wrong_part_is_not_written(tmp_path: Path) -> None:
    wrong = SCORES.copy()
    wrong[2, 4] = np.inf
    with pytest.raises(ValueError, match=r"scores: expected finite numbers, got .*inf\] for 日本\.jpg"):
        write_part(tmp_path, KEYS, wrong, ORIGIN)
    with pytest.raises(ValueError, match=r"expected \(N, 5\) for N = 3 keys, got \(4, 5\)"):
        write_part(tmp_path, KEYS[:3], SCORES, ORIGIN)
    assert files(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"no labels\.parquet in"):
        load(tmp_path)


def test_a_failed_write_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(table: pa.Table, path: Path, **_: object) -> None:
        path.write_bytes(b"PAR1 half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write_part(tmp_path, KEYS, SCORES, ORIGIN)
    assert files(tmp_path) == []


def test_an_unfinished_file_is_not_read(tmp_path: Path) -> None:
    part = write_part(tmp_path, KEYS, SCORES, ORIGIN)
    (part.parent / f".{part.name}.0123.tmp").write_bytes(b"")
    (part.parent / ".hidden.parquet").write_bytes(b"")
    assert len(load(tmp_path)) == 4
    merge(tmp_path, ORIGIN)
    assert len(load(tmp_path)) == 4


def test_what_is_no_labels_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    for data in (b"", b"no parquet", write_part(tmp_path / "x", KEYS, SCORES, ORIGIN).read_bytes()[:-30]):
        path.write_bytes(data)
        with pytest.raises(LabelsError, match=r"labels\.parquet: not a Parquet file, or a damaged one"):
            load(tmp_path)
    pq.write_table(pa.table({"key": KEYS}), path)
    with pytest.raises(LabelsError, match="expected format version 1, got None"):
        load(path)
    about = {"format_version": 1, **ORIGIN._asdict(), "attributes": ["sharpness"]}
    pq.write_table(pa.table({"key": KEYS, "sharpness": SCORES[:, 0]}).replace_schema_metadata(
        {b"attriqa": json.dumps(about)}
    ), path)  # fmt: skip
    with pytest.raises(
        LabelsError, match="labels of sharpness, in the columns key, sharpness; expected key, sharpness,"
    ):
        load(path)
    columns = {name: np.full(4, np.nan if name == "contrast" else 1, np.float32) for name in ATTRIBUTES}
    pseudo_labels._write(path, pa.table({"key": KEYS, **columns}), ORIGIN)
    with pytest.raises(LabelsError, match=r"the label of b/2\.jpg is not finite"):
        load(path)
