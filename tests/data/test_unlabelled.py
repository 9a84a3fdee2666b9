import dataclasses
import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from attriqa.data.unlabelled import SourceError, Strings, TooManyUnreadableError, Unreadable, index_images
from attriqa.images import ImageError, read
from tests.support.trees import unlabelled as unlabelled_tree


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_folder_is_read_with_its_subfolders(tmp_path: Path) -> None:
    root = unlabelled_tree.folder(tmp_path / "photos", 5)
    (root / ".hidden.jpg").write_bytes(b"")
    (root / ".cache").mkdir()
    shutil.copy(root / "000.JPG", root / ".cache" / "thumb.jpg")
    (root / "notes.txt").write_text("no image")
    (root / "sub" / "loop").symlink_to(root)
    index = index_images(root)
    assert list(index.keys) == ["000.JPG", "002.JPG", "004.JPG", "sub/001.jpg", "sub/003.jpg"]
    assert torch.equal(index.read(3), read(root / "sub" / "001.jpg"))
    assert index.read(3, shorter_edge=64).shape[1] == 64
    assert index.where(3) == str(root / "sub" / "001.jpg")


def test_keys_do_not_depend_on_where_a_source_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    roots = [unlabelled_tree.folder(tmp_path / "folder", 4), unlabelled_tree.shards(tmp_path / "shards", 4, 2)]
    for root in roots:
        before = index_images(root)
        shutil.move(root, tmp_path / "moved" / root.name)
        for place in (tmp_path / "moved" / root.name, f"moved/{root.name}"):
            after = index_images(place)
            assert list(after.keys) == list(before.keys)
            assert after.digest() == before.digest()
        assert not any("folder" in key or "shards" in key for key in before.keys)


def test_a_list_names_files_relative_to_it(tmp_path: Path) -> None:
    root = unlabelled_tree.folder(tmp_path / "photos", 4)
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists" / "some.txt"
    file.write_text("../photos/sub/003.jpg\n\n../photos//./000.JPG\r\n../photos/missing.jpg\n")
    index = index_images(file)
    assert list(index.keys) == ["../photos/sub/003.jpg", "../photos/000.JPG", "../photos/missing.jpg"]
    assert torch.equal(index.read(0), read(root / "sub" / "003.jpg"))
    with pytest.raises(ImageError, match=r"missing\.jpg: No such file"):
        index.read(2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\n{root}/a.jpg\n", "line 2: expected a path relative to the list, got /"),
        ("a.jpg\nb.jpg\n./a.jpg\n", r"line 3: a\.jpg is in line 1 already"),
        ("\n \n", "no image in"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "some.txt"
    file.write_text(text.format(root=tmp_path))
    with pytest.raises(SourceError, match=message):
        index_images(file)


def test_shards_that_webdataset_wrote_are_read_at_any_position(tmp_path: Path) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    root = unlabelled_tree.shards(tmp_path / "shards", 7, 3)
    expected = {}
    for path in sorted(root.glob("*.tar")):
        with path.open("rb") as file:
            members = ({**member, "__url__": str(path)} for member in tar_file_iterator(file))
            expected.update({sample["__key__"]: sample["jpg"] for sample in group_by_keys(members)})
    index = index_images(root)
    assert list(index.keys) == list(expected) == [f"v1.0/{number:05d}" for number in range(7)]
    for number in (6, 0, 3, 2):
        assert torch.equal(index.read(number), read("x", data=expected[index.keys[number]]))
    assert index.where(4) == f"{root / 'part-001.tar'}: v1.0/00004"


@pytest.mark.parametrize("pattern", ["part-{000..002}.tar", "part-*.tar", "part-{000..001}.tar", "part-00[01].tar"])
def test_patterns_of_shards(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unlabelled_tree.shards(tmp_path / "shards", 6, 2)
    count = 6 if "2" in pattern or "*" in pattern else 4
    assert len(index_images(f"{root}/{pattern}")) == count
    monkeypatch.chdir(root)
    assert len(index_images(pattern)) == count
    assert len(index_images("part-001.tar")) == 2


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    unlabelled_tree.shards(tmp_path / "shards", 2, 1)
    for source, message in {
        "nothing": "no such folder, list or shard: .*nothing",
        "shards/part-{000..003}.tar": r"no such shard: .*part-002\.tar",
        "shards/other-*.tar": "no shard matches .*other",
    }.items():
        with pytest.raises(FileNotFoundError, match=message):
            index_images(tmp_path / source)
    with pytest.raises(SourceError, match="rising range"):
        index_images(tmp_path / "shards" / "part-{003..001}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no image in .*empty; expected files ending in \.apng"):
        index_images(tmp_path / "empty")
    with pytest.raises(SourceError, match=r"000\.JPG is not a text file of paths"):
        index_images(unlabelled_tree.folder(tmp_path / "photos", 1) / "000.JPG")
    shutil.copy(tmp_path / "photos" / "000.JPG", tmp_path / "shards" / "a.jpg")
    with pytest.raises(SourceError, match="both shards and images"):
        index_images(tmp_path / "shards")


def test_a_shard_cut_off_anywhere_is_named_with_its_last_whole_key(tmp_path: Path) -> None:
    path = unlabelled_tree.shards(tmp_path / "shards", 3, 3) / "part-000.tar"
    whole = path.read_bytes()
    index = index_images(path)
    ends = [int(offset + size) for offset, size in zip(index.offset, index.size, strict=True)]
    blocks = len(whole.rstrip(b"\0")) // 512 + 1  # the archive's, without the zeros at its end
    cuts = [*range(0, blocks * 512, 512), *(end - 1 for end in ends), *(end + 1 for end in ends), 700, blocks * 512 - 1]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        last = [key for key, end in zip(index.keys, ends, strict=True) if end <= cut]
        expected = f"the last whole image is {last[-1]}" if last else "no image in it is whole"
        with pytest.raises(SourceError, match=rf"part-000\.tar: cut off or damaged .* of {cut} on; {expected}"):
            index_images(path)
    path.write_bytes(whole[: (blocks + 1) * 512])  # the end mark is there
    assert len(index_images(path)) == 3


def test_a_damaged_header_in_a_shard_is_not_the_end_of_it(tmp_path: Path) -> None:
    path = unlabelled_tree.shards(tmp_path / "shards", 3, 3) / "part-000.tar"
    data = bytearray(path.read_bytes())
    place = int(index_images(path).offset[1]) - 512  # tarfile stops there, and says nothing
    data[place : place + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"damaged from byte \d+ .*last whole image is v1\.0/00000"):
        index_images(path)


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(SourceError, match="decompress it"):
        index_images(tmp_path / "a.tar.gz")


def test_a_key_that_comes_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    picture = unlabelled_tree.jpeg(0)
    write_tar(tmp_path / "a.tar", {"x/1.jpg": picture, "x/2.jpg": picture})
    write_tar(tmp_path / "b.tar", {"x/3.jpg": picture, "x/1.jpg": picture})
    with pytest.raises(SourceError, match=r"the key x/1 comes twice, in .*a\.tar and in .*b\.tar"):
        index_images(tmp_path)
    write_tar(tmp_path / "b.tar", {"x/3.jpg": picture, "x/3.png": picture})
    with pytest.raises(SourceError, match=r"the key x/3 comes twice, in .*b\.tar and in .*b\.tar"):
        index_images(tmp_path)


def test_members_that_are_no_image_of_a_sample_are_left_out(tmp_path: Path) -> None:
    picture = unlabelled_tree.jpeg(0)
    names = ["1.jpg", "1.cls", "1.seg.png", ".DS_Store", "a/._2.jpg", "a/2.JPEG", "noextension", "a" * 150 + ".jpg"]
    write_tar(tmp_path / "a.tar", dict.fromkeys(names, picture))
    index = index_images(tmp_path / "a.tar")
    assert list(index.keys) == ["1", "a/2", "a" * 150]
    assert torch.equal(index.read(2), read("x", data=picture))


def test_a_kept_scan_is_used_until_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = unlabelled_tree.shards(tmp_path / "shards", 4, 2), tmp_path / "index.npz"
    first = index_images(root, cache=cache)
    monkeypatch.setattr("attriqa.data.unlabelled._scan_shard", lambda path: pytest.fail(f"{path} was scanned again"))
    again = index_images(root, cache=cache)
    for field in dataclasses.fields(first):
        ours, theirs = getattr(again, field.name), getattr(first, field.name)
        assert list(ours) == list(theirs)
    assert torch.equal(again.read(3), first.read(3))
    monkeypatch.undo()
    shutil.copy(root / "part-000.tar", tmp_path / "old.tar")
    write_tar(root / "part-000.tar", {"new.jpg": unlabelled_tree.jpeg(9)})
    changed = index_images(root, cache=cache)
    assert list(changed.keys) == ["new", "v1.0/00002", "v1.0/00003"]
    assert list(index_images(root, cache=cache).keys) == list(changed.keys)


def test_a_damaged_image_in_a_shard_names_the_shard_and_the_key(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x/1.jpg": unlabelled_tree.jpeg(0)[:500]})
    with pytest.raises(ImageError, match=r"a\.tar: x/1: ") as caught:
        index_images(tmp_path / "a.tar").read(0)
    assert str(tmp_path) not in caught.value.reason


def test_strings_are_packed_and_come_back() -> None:
    texts = ["", "a", "äöü", "日本", "x" * 1000, ""]
    packed = pickle.loads(pickle.dumps(Strings.of(texts)))
    assert list(packed) == texts
    assert [packed[i] for i in range(6)] == texts
    assert len(set(packed.digests().tolist())) == 5, "equal texts, equal digests"
    for index in (6, -1):
        with pytest.raises(IndexError, match="expected 0 to 5"):
            packed[index]
    with pytest.raises(SourceError, match="expected names in UTF-8"):
        Strings.of([os.fsdecode(b"\xff.jpg")])


def test_an_index_of_many_images_is_small_and_quick_to_hand_over(tmp_path: Path) -> None:
    file = tmp_path / "many.txt"
    file.write_text("\n".join(f"train/n{number // 1000:08d}/{number:08d}.jpg" for number in range(100_000)))
    index = index_images(file)
    assert index.keys[99_999] == "train/n00000099/00099999.jpg"
    assert len(pickle.dumps(index)) < 100_000 * (100 + len(str(tmp_path)))  # paths are kept with their folder
    assert np.array_equal(index.keys.digests()[:3], Strings.of(list(index.keys)[:3]).digests())


@pytest.mark.parametrize(("total", "allowed"), [(1, 1), (24, 1), (1999, 1), (2000, 2), (1_281_167, 1281)])
def test_a_thousandth_may_be_unreadable_and_one_always(total: int, allowed: int) -> None:
    unreadable = Unreadable(total)
    for number in range(allowed):
        unreadable.add({f"{number}.jpg": "truncated"})
        unreadable.add({f"{number}.jpg": "truncated"})  # the same image again counts once
    with pytest.raises(TooManyUnreadableError, match=rf"{allowed + 1} of {total} images cannot be read.*0\.1%.*0\.jpg"):
        unreadable.add({"one more.jpg": "empty"})
