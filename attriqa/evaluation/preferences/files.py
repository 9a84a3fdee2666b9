"""Files of pairs that people compared, and of scores, as CSV: read whole, or refused with the line at fault."""

import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from attriqa import images
from attriqa.evaluation.preferences.pairs import JudgedPair
from attriqa.images.forms import are_blank

_PREFERRED = {"a": 1.0, "b": -1.0, "tie": 0.0}


def read_pairs(path: Path | str, *, judged: bool = True) -> list[JudgedPair]:
    """Read a CSV file of pairs (UTF-8, with a header).

    Its columns are ``image_a,image_b,prompt`` and what people said: either ``votes_a,votes_b``, perhaps with
    ``votes_tie`` and ``n_votes``, or ``preferred`` (a, b or tie). ``prompt_a,prompt_b`` may stand for ``prompt``; both
    must then be the same. Other columns are ignored. Paths are given back as they stand in the file.

    Args:
        path: the file.
        judged: False reads pairs that nobody has judged yet; what people said is ignored, and every preference is 0.

    Raises:
        OSError: the file cannot be read.
        ValueError: a column or a value is missing or wrong, votes do not sum to ``n_votes``, an image is paired with
            itself, or a pair comes twice; the message names the file and the line.
    """
    path = Path(path)
    pairs: list[JudgedPair] = []
    seen: dict[frozenset[str], int] = {}
    for line, record in read_records(path, ("image_a", "image_b")):
        place = f"{path} line {line}"
        a, b = (record[name].strip() for name in ("image_a", "image_b"))
        if not a or not b:
            raise ValueError(f"{place}: expected two images, got {a!r} and {b!r}")
        if a == b:
            raise ValueError(f"{place}: {a} is paired with itself")
        first = seen.setdefault(frozenset((a, b)), line)
        if first != line:
            raise ValueError(f"{place}: {a} and {b} are a pair already, in line {first}")
        preference, graded = _preference(record, place) if judged else (0.0, False)
        pairs.append(JudgedPair(a, b, _prompt(record, place), preference, graded))
    if not pairs:
        raise ValueError(f"{path}: expected pairs below the header, got none")
    return pairs


def _prompt(record: dict[str, str], place: str) -> str:
    if "prompt" in record:
        return record["prompt"]
    if not {"prompt_a", "prompt_b"} <= record.keys():
        raise ValueError(f"{place}: expected a column prompt, or prompt_a and prompt_b, got {', '.join(record)[:200]}")
    a, b = record["prompt_a"], record["prompt_b"]
    if a != b:
        raise ValueError(f"{place}: expected one prompt for both images, got {a[:80]!r} and {b[:80]!r}")
    return a


def _preference(record: dict[str, str], place: str) -> tuple[float, bool]:
    """What people said, and whether it tells how clear the case was."""
    if {"votes_a", "votes_b"} <= record.keys():
        names = [name for name in ("votes_a", "votes_b", "votes_tie") if record.get(name)]
        if not {"votes_a", "votes_b"} <= set(names):
            raise ValueError(f"{place}: expected numbers in votes_a and votes_b, got an empty field")
        votes = [_count(record, name, place) for name in names]
        total = sum(votes)
        if record.get("n_votes") and _count(record, "n_votes", place) != total:
            listed = " + ".join(f"{name} {count}" for name, count in zip(names, votes, strict=True))
            raise ValueError(f"{place}: votes do not sum: {listed} is {total}, n_votes {record['n_votes']}")
        if total == 0:
            raise ValueError(f"{place}: expected at least one vote, got none")
        return (votes[0] - votes[1]) / total, True
    if "preferred" not in record:
        columns = ", ".join(record)[:200]
        raise ValueError(f"{place}: expected columns votes_a and votes_b, or preferred, got {columns}")
    side = record["preferred"].strip().lower()
    if side not in _PREFERRED:
        raise ValueError(f"{place}: expected preferred to be a, b or tie, got {side[:80]!r}")
    return _PREFERRED[side], False


def _count(record: dict[str, str], name: str, place: str) -> int:
    text = record[name].strip()
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{place}: expected {name} to be a whole number of votes, got {text[:80]!r}")
    return int(text)


def read_records(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Records of a CSV file by the names in its header, each with its line number.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no UTF-8 CSV file, one of ``columns`` is not in its header or a name is there twice, or a
            record has too few or too many fields.
    """
    try:
        reader = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, record) for record in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a UTF-8 CSV file ({error})") from error
    header = [name.strip() for name in lines[0][1]] if lines else []
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(header)[:200] or "nothing"
        raise ValueError(f"{path}: expected the columns {', '.join(columns)}, got {found}")
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: expected each column once, got {', '.join(header)[:200]}")
    records = []
    for line, fields in lines[1:]:
        if not fields:
            continue
        if len(fields) != len(header):
            raise ValueError(f"{path} line {line}: expected {len(header)} fields, got {len(fields)}")
        records.append((line, dict(zip(header, fields, strict=True))))
    return records


def read_scores(path: Path | str) -> dict[str, float]:
    """A scorer's table: a CSV file with the columns ``path`` (or ``name``) and ``score``, higher is better.

    Raises:
        OSError: the file cannot be read.
        ValueError: a column is missing, a score is no finite number, or an image comes twice.
    """
    path = Path(path)
    scores: dict[str, float] = {}
    for line, record in read_records(path, ("score",)):
        image = record.get("path", record.get("name"))
        if image is None:
            raise ValueError(f"{path}: expected a column path or name, got {', '.join(record)[:200]}")
        if image in scores:
            raise ValueError(f"{path} line {line}: a second score of {image}")
        try:
            score = float(record["score"])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise ValueError(f"{path} line {line}: expected a finite score of {image}, got {record['score'][:80]!r}")
        scores[image] = score
    return scores


def match_scores(scores: dict[str, float], file: Path, images: Sequence[str], folder: Path) -> dict[str, float]:
    """The scores of ``images`` by the paths that a file of pairs gives them, whatever paths the scores' table has.

    A path of the table is taken as it stands, then as relative to the working directory, then to the table's folder.

    Args:
        scores: what `read_scores` gave.
        file: the table it was read from, for messages and relative paths.
        images: as in the file of pairs.
        folder: what those are relative to.

    Raises:
        ValueError: an image has no score.
    """
    resolved = {(file.parent / image).resolve(): score for image, score in scores.items()}
    resolved |= {Path(image).resolve(): score for image, score in scores.items()}
    found = {image: scores.get(image, resolved.get((folder / image).resolve())) for image in images}
    missing = [image for image, score in found.items() if score is None]
    if missing:
        raise ValueError(f"{file}: no score of {len(missing)} of {len(images)} images, such as {missing[0]}")
    return {image: score for image, score in found.items() if score is not None}


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines are skipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, holds no prompt, or holds one twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a UTF-8 text file ({error})") from error
    prompts = [line.strip() for line in lines if line.strip()]
    twice = [prompt for prompt, count in Counter(prompts).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: expected each prompt once, got {twice[0][:80]!r} again ({len(twice)} such prompts)")
    if not prompts:
        raise ValueError(f"{path}: expected prompts, got none")
    return prompts


def image_name(prompt: str, number: int) -> str:
    """A file name for a prompt's image, which every file system takes; no other prompt or number has it."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    return f"{words or 'prompt'}-{hashlib.sha256(prompt.encode()).hexdigest()[:10]}_{number}.png"


def is_blank(path: Path) -> bool:
    """Whether an image is all black, as safety checkers leave it.

    Raises:
        ImageError: it cannot be read.
    """
    return bool(are_blank(images.read(path, shorter_edge=64)[None]))


def black_images(names: Iterable[str], folder: Path) -> list[str]:
    """Those of a folder's images that are all black. Errors as those of `is_blank`."""
    return [name for name in tqdm(names, desc="looking for black images", disable=None) if is_blank(folder / name)]


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
