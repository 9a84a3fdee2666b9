"""LIQE's annotation files as they are published, and what data sets themselves call their distortions."""

from pathlib import Path

import pytest

from attriqa.data.datasets.scenes import Annotation, class_of_type, match, read_annotations
from attriqa.data.datasets.synthetic import KADID_TYPES
from attriqa.distortions import DISTORTION_KEYS
from attriqa.distortions.classes import CSIQ_TYPES, DISTORTION_CLASSES, LIVE_TYPES, SCENES

# The 33 words that the files have for a distortion, and LIQE's class of each.
WORDS = {
    "jpeg2000 compression": "jpeg2000 compression", "jpeg compression": "jpeg compression", "white noise": "noise",
    "gaussian blur": "blur", "fastfading": "jpeg2000 compression", "fnoise": "noise", "contrast": "contrast",
    "lens": "blur", "motion": "blur", "diffusion": "color", "shifting": "blur", "color quantization": "quantization",
    "oversaturation": "color", "desaturation": "color", "white with color": "noise", "impulse": "noise",
    "multiplicative": "noise", "white noise with denoise": "noise", "brighten": "overexposure",
    "darken": "underexposure", "shifting the mean": "other", "jitter": "spatial", "noneccentricity patch": "spatial",
    "pixelate": "spatial", "quantization": "quantization", "color blocking": "spatial", "sharpness": "contrast",
    "realistic blur": "blur", "realistic noise": "noise", "underexposure": "underexposure",
    "overexposure": "overexposure", "realistic contrast change": "contrast", "other realistic": "other",
}  # fmt: skip
KADID_WORDS = (
    "gaussian blur", "lens", "motion", "diffusion", "shifting", "color quantization", "oversaturation", "desaturation",
    "jpeg2000 compression", "jpeg compression", "white noise", "white with color", "impulse", "multiplicative",
    "white noise with denoise", "brighten", "darken", "shifting the mean", "jitter", "noneccentricity patch",
    "pixelate", "quantization", "color blocking", "sharpness", "contrast",
)  # fmt: skip


def line(name: str, score: float = 50, kind: str = "white noise", *scenes: str) -> str:
    words = [*(scenes or ("human",)), "invalid", "invalid", "invalid"][:3]
    return "\t".join([name, f"{score:.6f}", kind, *words])


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_line_is_a_path_a_score_a_distortion_and_up_to_three_scenes(tmp_path: Path) -> None:
    path = write(
        tmp_path / "clive_all_clip.txt",
        "Images/12.bmp\t50.092896\trealistic blur\tlandscape\tinvalid\tinvalid",
        "Images/900.JPG\t35.5\tother realistic\thuman\tlandscape\tstill_life",
        "",
        "Images/77.bmp\t3.42\tunderexposure\tnight\tothers\tinvalid",
    )
    assert read_annotations([path]) == [
        Annotation("Images/12.bmp", 50.092896, "blur", ("landscape",)),
        Annotation("Images/900.JPG", 35.5, "other", ("human", "landscape", "still_life")),
        Annotation("Images/77.bmp", 3.42, "underexposure", ("night", "others")),
    ]


def test_every_word_has_its_class(tmp_path: Path) -> None:
    assert len(WORDS) == 33
    path = write(tmp_path / "a.txt", *(line(f"{number}.png", 1, word) for number, word in enumerate(WORDS)))
    assert [entry.distortion for entry in read_annotations([path])] == list(WORDS.values())
    assert set(WORDS.values()) == set(DISTORTION_CLASSES)
    path = write(tmp_path / "b.txt", *(line(f"{number}.png", 1, "lens", word) for number, word in enumerate(SCENES)))
    assert [entry.scenes for entry in read_annotations([path])] == [(word,) for word in SCENES]


def test_the_papers_names_stand_for_theirs() -> None:
    assert list(SCENES.values()) == [
        "animal", "cityscape", "human", "indoor scene", "landscape", "night scene", "plant", "still-life", "others"
    ]  # fmt: skip
    assert list(DISTORTION_CLASSES.values()) == [
        "blur", "color-related", "contrast", "JPEG compression", "JPEG2000 compression", "noise", "over-exposure",
        "quantization", "under-exposure", "spatially-localized", "others",
    ]  # fmt: skip


def test_fastfading_is_no_noise_unless_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "live_all_clip.txt", line("fastfading/img39.bmp"), line("wn/img39.bmp"))
    assert [entry.distortion for entry in read_annotations([path])] == ["jpeg2000 compression", "noise"]
    as_written = read_annotations([path], fix_fastfading=False)
    assert [entry.distortion for entry in as_written] == ["noise", "noise"]


def test_the_files_of_a_split_make_up_a_set_and_may_not_contradict(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", line("a.jpg", 10), line("b.jpg", 20))
    test = write(tmp_path / "test.txt", line("c.jpg", 30), line("b.jpg", 20))
    assert [entry.name for entry in read_annotations([train, test])] == ["a.jpg", "b.jpg", "c.jpg"]
    other = write(tmp_path / "other.txt", line("b.jpg", 20, "lens"))
    with pytest.raises(ValueError, match=r"other\.txt line 1: b\.jpg is annotated in another way than in .*train\.txt"):
        read_annotations([train, other])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line("a.jpg", 1, "fog"), r"line 2: expected a distortion among gaussian blur, .*, got 'fog'"),
        (line("a.jpg", 1, "lens", "human", "beach"), r"line 2: expected one to three scenes among .*, got 'beach'"),
        (line("a.jpg", 1, "lens", "invalid"), "line 2: expected one to three scenes among .*, got none"),
        ("a.jpg 1 lens human invalid invalid", "line 2: expected a path, a score, .* parted by tabs, got 'a.jpg 1"),
        ("a.jpg\t1\tlens\thuman\tinvalid", "line 2: expected a path, a score, a distortion and three scenes"),
        ("a.jpg\tgood\tlens\thuman\tinvalid\tinvalid", "line 2: expected a number as score, got 'good'"),
        ("a.jpg\tnan\tlens\thuman\tinvalid\tinvalid", "line 2: expected a number as score, got 'nan'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, bad: str, message: str) -> None:
    path = write(tmp_path / "labels.txt", line("first.jpg"), bad)
    with pytest.raises(ValueError, match=message):
        read_annotations([path])


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="binary: expected a UTF-8 text file"):
        read_annotations([tmp_path / "binary"])
    with pytest.raises(ValueError, match=r"labels: expected annotations, got none in .*empty"):
        read_annotations([write(tmp_path / "empty")])
    with pytest.raises(FileNotFoundError):
        read_annotations([tmp_path / "nowhere"])


def entries(*names: str) -> list[Annotation]:
    return [Annotation(name, 1.0, "blur", ("human",)) for name in names]


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (("Images/12.bmp", "Images/700.JPG"), ("CLIVE/Images/12.jpg", "CLIVE/Images/700.jpg")),
        (("dst_imgs/awgn/shroom.AWGN.1.png", "dst_imgs/awgn/shroom.AWGN.2.png"),
         ("CSIQ/dst_imgs/AWGN/shroom.AWGN.1.png", "CSIQ/dst_imgs_all/shroom.AWGN.2.png")),
        (("jp2k/img39.bmp", "wn/img39.bmp"), ("live/jp2k/img39.bmp", "live/wn/img39.bmp")),
        (("1024x768/7.jpg", "1024x768/8.jpg"), ("koniq/512x384/7.jpg", "koniq/512x384/8.jpg")),
        (("ImageDatabase/DatabaseImage0456.JPG",), ("BID/DatabaseImage0456.JPG",)),
    ],
)  # fmt: skip
def test_annotations_find_the_copy_at_hand(names: tuple[str, ...], files: tuple[str, ...]) -> None:
    annotations = entries(*names)
    paths = [Path("/data") / file for file in files]
    assert match(annotations, paths) == annotations
    assert match(annotations[::-1], paths) == annotations
    assert match(annotations, [Path("/data/elsewhere/none.png"), *paths]) == [None, *annotations]


def test_files_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x/a\.png and .*y/a\.png cannot be told apart; both are Images/a\.bmp"):
        match(entries("Images/a.bmp"), [Path("x/a.png"), Path("y/a.png")])
    with pytest.raises(ValueError, match="labels: 1 annotations are of files with the name of another"):
        match(entries("Images/a.bmp", "Images/a.jpg"), [])


def test_data_sets_name_the_same_classes_as_the_files_do() -> None:
    assert KADID_TYPES == DISTORTION_KEYS
    assert [class_of_type(key) for key in KADID_TYPES] == [WORDS[word] for word in KADID_WORDS]
    csiq = ("noise", "blur", "contrast", "noise", "jpeg compression", "jpeg2000 compression")
    assert tuple(map(class_of_type, CSIQ_TYPES)) == csiq
    live = ("jpeg2000 compression", "jpeg compression", "noise", "blur", "jpeg2000 compression")
    assert tuple(map(class_of_type, LIVE_TYPES)) == live
    assert class_of_type(None) is class_of_type("comfort_noise") is None
