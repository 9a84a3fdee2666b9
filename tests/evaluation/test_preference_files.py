"""Which prompt an image was made for."""

from pathlib import Path

import pytest

from attriqa.evaluation.preferences.files import match_images, prompts_by_name, read_image_prompts


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("column", ["image", "path", "name"])
def test_prompts_are_read_whatever_the_column_is_called(tmp_path: Path, column: str) -> None:
    file = write(tmp_path / "p.csv", f'seed,{column},prompt\n1,images/a.png,"a cat, ""sitting"""\n2,b.png,東京\n')
    assert read_image_prompts(file) == {"images/a.png": 'a cat, "sitting"', "b.png": "東京"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,prompt\na.png,cat\n", "expected a column image, path or name, got file, prompt"),
        ("image,text\na.png,cat\n", "expected the columns prompt, got image, text"),
        ("image,prompt\na.png, \n", "line 2: expected an image and its prompt, got 'a.png' and ''"),
        ("image,prompt\na.png,cat\na.png,dog\n", "line 3: a second prompt of a.png"),
        ("image,prompt\na.png\n", "line 2: expected 2 fields, got 1"),
    ],
)
def test_a_wrong_file_of_prompts_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_image_prompts(write(tmp_path / "p.csv", text))


def test_an_image_is_found_by_its_path_then_its_name_then_its_stem() -> None:
    prompts = {"x/a.png": "1", "a.png": "2", "images/b.png": "3", "c": "4"}
    files = ["x/a.png", "a.png", "b.png", "deep/b.webp", "c.jpg", "d.png"]
    assert match_images(files, prompts) == ["x/a.png", "a.png", "images/b.png", "images/b.png", "c", None]


def test_a_name_of_two_prompts_stands_for_neither() -> None:
    prompts = {"old/a.png": "a cat", "new/a.png": "a dog", "old/b.png": "a cow", "new/b.png": "a cow"}
    assert match_images(["a.png", "old/a.png", "b.png"], prompts)[:2] == [None, "old/a.png"]
    found = match_images(["b.png"], prompts)[0]
    assert found is not None
    assert prompts[found] == "a cow"


def test_names_without_suffixes_stand_for_prompts() -> None:
    assert prompts_by_name(["a.png", "sub/a.jpg", "v1.5_cat.png"]) == ["a", "sub/a", "v1.5_cat"]
    with pytest.raises(ValueError, match=r"expected each name once, got a.png, a.jpg \(1 such names\)"):
        prompts_by_name(["a.png", "b.png", "a.jpg"])
