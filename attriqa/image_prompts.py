"""Which prompt each image of a folder was made for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from attriqa.pair_files import read_records


def read_image_prompts(path: Path | str) -> dict[str, str]:
    """Read a CSV file (UTF-8, with a header) of images and their prompts; other columns are ignored.

    Returns:
        The prompts by the text of the column ``image``, or else ``path``, or else ``name``.

    Raises:
        OSError: the file cannot be read.
        ValueError: a column or a value is missing, or an image comes twice; the message names the file and the line.
    """
    path = Path(path)
    found: dict[str, str] = {}
    for line, record in read_records(path, ("prompt",)):
        column = next((name for name in ("image", "path", "name") if name in record), None)
        if column is None:
            raise ValueError(f"{path}: expected a column image, path or name, got {', '.join(record)[:200]}")
        image, prompt = record[column].strip(), record["prompt"].strip()
        if not image or not prompt:
            raise ValueError(f"{path} line {line}: expected an image and its prompt, got {image!r} and {prompt[:80]!r}")
        if image in found:
            raise ValueError(f"{path} line {line}: a second prompt of {image}")
        found[image] = prompt
    return found


def match_images(files: Sequence[str], prompts: Mapping[str, str]) -> list[str | None]:
    """The key in ``prompts`` of each file: its own path, or else its name, or else its name without the suffix.

    Args:
        files: paths relative to the folder of images, with ``/``.
        prompts: what `read_image_prompts` gave.

    Returns:
        A key per file; None where there is none, or where its name alone could be of two prompts.
    """
    short: dict[str, str | None] = {}
    for key, prompt in prompts.items():
        for name in {PurePosixPath(key).name, PurePosixPath(key).stem}:
            other = short.setdefault(name, key)
            if other is not None and prompts[other] != prompt:
                short[name] = None
    found = []
    for file in files:
        names = (file, str(PurePosixPath(file).with_suffix("")))
        whole = next((name for name in names if name in prompts), None)
        last = PurePosixPath(file)
        found.append(whole if whole is not None else short.get(last.name, short.get(last.stem)))
    return found


def prompts_by_name(files: Sequence[str]) -> list[str]:
    """Each file's path without its suffix, which stands for its prompt.

    Raises:
        ValueError: two files differ in nothing else.
    """
    prompts = [str(PurePosixPath(file).with_suffix("")) for file in files]
    twice = [prompt for prompt, count in Counter(prompts).items() if count > 1]
    if twice:
        both = ", ".join(file for file, prompt in zip(files, prompts, strict=True) if prompt == twice[0])
        raise ValueError(f"expected each name once, got {both} ({len(twice)} such names)")
    return prompts
