"""Examine a copy of MIT-Adobe FiveK: what is missing, unreadable, corrupt or of the wrong size, and why.

    python envs/fivek.py doctor /data/fivek_dataset
    python envs/fivek.py doctor /data/fivek_dataset --experts c --splits train.txt test.txt --out runs/fivek

Every file is read whole, as training reads it. Writes OUT/findings.json and OUT/metrics.json; the exit status is 1
where there is a fault. OUT/examined.json keeps what was found in each photo, with size and time of its files, and it is
read again only when these change: a killed run goes on with the same command, one after a repair reads what is new.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from attriqa.config import opt, required, run_command
from attriqa.files import write_json
from attriqa_envs.fivek import COUNT, EXPERTS, FiveK, Photo, read_split
from attriqa_envs.fivek.doctor import VERSION, Finding, count, examine_photo, examine_tree

SHOWN = 40  # findings that are printed
SAVED_EVERY = 50  # photos


@dataclass(frozen=True)
class Config:
    """Examine a copy of MIT-Adobe FiveK; the exit status is 1 where there is a fault."""

    root: Path = required("the folder that holds raw_photos", bare=True)
    experts: tuple[str, ...] = opt(
        (), "letters of experts whose renderings are needed; without it, those with a folder"
    )
    splits: tuple[Path, ...] = opt((), "lists of the photos that are needed, one number or name a line; without, all")
    out: Path = opt(Path("runs/fivek"), "where findings.json and metrics.json go")
    threads: int = opt(0, "files read at a time; 0: one per CPU, up to 8")
    seed: int = opt(0, "unused: nothing here is random")
    smoke: bool = opt(False, "the first 8 photos only")

    def __post_init__(self) -> None:
        if wrong := [letter for letter in self.experts if letter not in EXPERTS]:
            raise ValueError(f"experts: expected letters a to e, got {' '.join(wrong)}")
        if self.threads < 0:
            raise ValueError(f"threads: expected 0 or more, got {self.threads}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    run_command({"doctor": doctor}, argv, __doc__)


def doctor(config: Config) -> None:
    """Examine and report."""
    fivek = FiveK(config.root)
    numbers = sorted({number for path in config.splits for number in read_split(path)}) or range(1, COUNT + 1)
    experts = config.experts or tuple(e for e in EXPERTS if any(e in photo.experts for photo in fivek.photos))
    photos = fivek.select(numbers)
    if config.smoke:
        config, photos = replace(config, threads=1), photos[:8]
    findings = [*examine_tree(fivek, numbers, experts), *examine(config, fivek, photos, experts)]
    report(config, findings, len(photos), experts)


def examine(config: Config, fivek: FiveK, photos: Sequence[Photo], experts: Sequence[str]) -> list[Finding]:
    """Read each photo that was not read before, or that changed since."""
    path = config.out / "examined.json"
    version = f"doctor {VERSION}"
    known: dict[str, Any] = {}
    if path.exists() and (earlier := json.loads(path.read_text(encoding="utf-8")))["version"] == version:
        known = earlier["photos"]  # by the same code
    todo = [photo for photo in photos if known.get(photo.name, {}).get("files") != files_of(photo, experts)]
    pool = ThreadPoolExecutor(config.threads or min(8, os.cpu_count() or 1))
    try:
        results = [pool.submit(examine_photo, photo, fivek, experts) for photo in todo]
        done = zip(todo, results, strict=True)
        for number, (photo, result) in enumerate(tqdm(done, "photos", len(todo), unit="photo", disable=None), 1):
            files = files_of(photo, experts)
            known[photo.name] = {"files": files, "findings": [asdict(finding) for finding in result.result()]}
            if number % SAVED_EVERY == 0:
                write_json(path, {"version": version, "photos": known})
    finally:
        pool.shutdown(cancel_futures=True)
        write_json(path, {"version": version, "photos": known})
    return [Finding(**fields) for photo in photos for fields in known[photo.name]["findings"]]


def files_of(photo: Photo, experts: Sequence[str]) -> list[list[Any]]:
    """Path, size and time of change of a photo's files."""
    paths = [photo.dng, *(photo.experts[letter] for letter in experts if letter in photo.experts)]
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def report(config: Config, findings: Sequence[Finding], examined: int, experts: Sequence[str]) -> None:
    """Print and write what was found; status 1 where there is a fault."""
    counts = count(findings)
    faults = sum(number for kind, number in counts.items() if kind != "note")
    for finding in findings[:SHOWN]:
        print(f"{finding.kind:10}  {finding.what}: {finding.reason}")
    if len(findings) > SHOWN:
        print(f"... and {len(findings) - SHOWN} more in {config.out / 'findings.json'}")
    listed = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    print(f"{examined} photos examined, experts {' '.join(experts) or 'none'}: {faults} faults ({listed})")
    write_json(config.out / "findings.json", [asdict(finding) for finding in findings])
    metrics = {"n": examined, "experts": list(experts), "faults": faults, **counts}
    write_json(config.out / "metrics.json", metrics)
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
