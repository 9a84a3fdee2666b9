"""Tune raw files or photos, and write the renderings with their parameters: what to do with a trained policy.

    python envs/tune.py raws --policy runs/train_isp/policy --out tuned
    python envs/tune.py raws --method adam --renders 60 --format png --out tuned

A folder (and the folders in it) of raw files, or of photos where it has no raws, or one file. Each is tuned at the size
of the policy, --side px, on its central square, and then rendered whole. For NAME.dng, OUT gets

    NAME.jpg            the rendering (or .png)
    NAME.json           the parameters; attriqa_envs.export.load_params reads them, and they give the same rendering
    NAME.xmp            for raw files: what comes near to them in Adobe Camera Raw, with how near (attriqa_envs/xmp.py)

A photo stands for its own raw file here: its display values are made linear, its camera's tone curve stays in it.
Lengths (denoising, sharpening) are in px of whatever is rendered, so at full size they act on finer detail than when
tuned. Without a policy, --method searches each picture by itself: adam (best), cmaes or random, --renders each.

A file that cannot be read is reported and the rest goes on; the exit status is then 1. A killed run goes on with the
same command. OUT/metrics.json has a row per file: its score before and after, on the square that was tuned, and more.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attriqa.config import check_least, claim_folder, opt, required, run_command
from attriqa.files import as_dict, write_json
from attriqa.images import MIN_SIDE, ImageError
from attriqa_envs.agents.search import Method
from attriqa_envs.evaluation.records import measure
from attriqa_envs.evaluation.setup import PolicyOptions, Setup, report_left_out, set_up
from attriqa_envs.export import save_params
from attriqa_envs.export.full_size import render_levels, write_picture
from attriqa_envs.export.xmp import camera_of, render_error, to_camera_raw, write_xmp
from attriqa_envs.isp import render
from attriqa_envs.raw import LinearImage
from attriqa_envs.raw.bank import load_bank
from attriqa_envs.raw.cache import RenditionCache
from attriqa_envs.raw.find import ImageFile, find_images


@dataclass(frozen=True, kw_only=True)
class Config(PolicyOptions):
    """What is tuned, and how."""

    images: Path = required("folder of raw files or photos, or one file", bare=True)
    method: Literal["policy", "adam", "cmaes", "random"] | None = opt(None, "policy where one is given, or else adam")
    renders: int = opt(60, "adam, cmaes, random: budget per picture")
    out: Path = opt(Path("runs/tuned"), "where everything goes")
    format: Literal["jpeg", "png"] = opt("jpeg", "of the renderings")
    quality: int = opt(95, "of JPEG, 1 to 100")
    size: int | None = opt(None, "px of the shorter side of the renderings; whole unless given")
    xmp: bool = opt(True, "write sidecars for raw files")
    side: int | None = opt(None, "px of the square that is tuned; the policy's, or 256")
    batch: int = opt(8, "pictures that are tuned at once")
    smoke: bool = opt(False, "a size for tests: two files, 64 px, three renders")

    def __post_init__(self) -> None:
        if (self.policy is None) == (self.how == "policy"):
            raise ValueError("--policy: expected one with --method policy, and none with the others")
        super().__post_init__()
        check_least(self, renders=1, quality=1)
        for name in ("size", "side"):
            if getattr(self, name) is not None and getattr(self, name) < MIN_SIDE:
                raise ValueError(f"--{name}: expected at least {MIN_SIDE} px, got {getattr(self, name)}")
        if self.quality > 100:
            raise ValueError(f"--quality: expected at most 100, got {self.quality}")

    @property
    def how(self) -> Method:
        """The method that is used."""
        return self.method or ("adam" if self.policy is None else "policy")


def main(argv: Sequence[str] | None = None) -> None:
    """Tune every file that is not tuned yet."""
    run_command({"": tune}, argv, __doc__)


def tune(config: Config) -> None:
    """Tune what is not tuned yet; status 1 where files cannot be read, each with the reason."""
    if config.smoke:
        config = replace(config, side=64, renders=3)
    sources = find_images(config.images)
    names = names_of(sources, config.images)
    if config.smoke:
        names = dict(list(names.items())[:2])
    setup = set_up(config, side=256)
    claim_folder(config.out, config)
    kept = read_rows(config, setup)
    todo = [(source, name) for source, name in names.items() if name not in kept]
    failures: list[str] = []
    with tqdm(total=len(names), initial=len(names) - len(todo), unit="file", disable=None) as bar:
        for first in range(0, len(todo), config.batch):
            part = todo[first : first + config.batch]
            for name, row in tuned(config, setup, part, failures):
                kept[name] = row
                write_rows(config, setup, kept, failures)
            bar.update(len(part))
    write_rows(config, setup, kept, failures)
    report(config, [kept[name] for name in names.values() if name in kept])
    if failures:
        raise SystemExit(f"{len(failures)} files were left out:\n" + "\n".join(f"  {line}" for line in failures))


def names_of(sources: Sequence[ImageFile], root: Path) -> dict[ImageFile, str]:
    """What each file's results are called, without suffix: as the file, and with its suffix where two would clash."""
    folder = root if root.is_dir() else root.parent
    relative = {source: source.path.relative_to(folder) for source in sources}
    counts = Counter(path.with_suffix("") for path in relative.values())
    return {
        source: (path if counts[path.with_suffix("")] > 1 else path.with_suffix("")).as_posix()
        for source, path in relative.items()
    }


def tuned(
    config: Config, setup: Setup, part: Sequence[tuple[ImageFile, str]], failures: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tune some files at once, then render and write each; gives its row when all of it is written."""
    small: list[tuple[ImageFile, str, LinearImage]] = []
    cache = RenditionCache(config.out / "cache", setup.side)
    for source, name in part:
        try:
            small.append((source, name, cache.read(source)))
        except ImageError as error:
            failures.append(str(error))
            report_left_out([error])
    if not small:
        return
    linear = load_bank([image for *_, image in small], side=setup.side, device=config.device)
    begun = time.perf_counter()
    best = setup.search(config, config.how, linear, [name for _, name, _ in small], renders=config.renders)
    seconds = (time.perf_counter() - begun) / len(small)
    params = best.params.to(linear.device)
    with torch.no_grad():
        pictures = [render(linear.float(), some) for some in (torch.zeros_like(params), params)]
    before, after = (measure(some, setup.reward, {}) for some in pictures)
    for place, (source, name, image) in enumerate(small):
        try:
            row = finish(config, source, name, image, best.params[place])
        except ImageError as error:
            failures.append(str(error))
            report_left_out([error])
            continue
        scores = {
            f"{figure}_{when}": figures[place][figure]
            for figure in ("score", "clipped", "oversaturated")
            for when, figures in (("before", before), ("after", after))
        }
        yield name, row | scores | {"seconds": seconds}


def finish(config: Config, source: ImageFile, name: str, image: LinearImage, params: Tensor) -> dict[str, Any]:
    """Render a file whole, and write everything that there is of it."""
    pixels = source.read(config.size).pixels
    picture = config.out / f"{name}.{'jpg' if config.format == 'jpeg' else 'png'}"
    write_picture(picture, render_levels(pixels, params), quality=config.quality)
    error = None
    if config.xmp and source.kind == "raw":
        camera = camera_of(image.metadata)
        sidecar = to_camera_raw(params, camera)
        error = render_error(image.pixels, params, sidecar, camera)
        write_xmp(config.out / f"{name}.xmp", sidecar, source=source.path.name, error=error)
    save_params(config.out / f"{name}.json", params, source=source.path.name)
    return {"file": str(source.path), "rendering": str(picture.relative_to(config.out)), "xmp_error": error}


# Results.


def read_rows(config: Config, setup: Setup) -> dict[str, dict[str, Any]]:
    """The rows of files that an earlier run has tuned."""
    path = config.out / "metrics.json"
    if not path.is_file():
        return {}
    metrics = json.loads(path.read_text(encoding="utf-8"))
    if metrics["identity"] != as_dict(setup.identity):
        raise ValueError(f"{config.out} holds pictures tuned by other weights; choose another --out")
    rows: dict[str, dict[str, Any]] = metrics["files"]
    return rows


def write_rows(config: Config, setup: Setup, rows: dict[str, dict[str, Any]], failures: list[str]) -> None:
    """What the next run goes on from."""
    means = {
        name: float(np.mean([row[name] for row in rows.values()]))
        for name in ("score_before", "score_after", "seconds")
        if rows
    }
    about = {"identity": as_dict(setup.identity), "config": as_dict(config), "method": config.how}
    write_json(config.out / "metrics.json", {**about, "n": len(rows), **means, "left_out": failures, "files": rows})


def report(config: Config, rows: Sequence[dict[str, Any]]) -> None:
    """A line per file, and the means."""
    for row in rows:
        stated = "" if row["xmp_error"] is None else f"  XMP off by CIEDE2000 {row['xmp_error']['delta_e']:.2f}"
        print(f"{row['score_before']:.4f} -> {row['score_after']:.4f}  {row['rendering']}{stated}")
    if rows:
        before, after = (float(np.mean([row[f"score_{when}"] for row in rows])) for when in ("before", "after"))
        print(f"{len(rows)} files by {config.how}: mean score {before:.4f} -> {after:.4f}, in {config.out}")


if __name__ == "__main__":
    main()
