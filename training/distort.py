"""Sets of images whose distortions are known, because they were made here: ExIQA-100k, and KADID's single distortions.

    python training/distort.py --images kadis700k/ref_imgs --out runs/exiqa-100k --crop 512x384
    python training/distort.py --images photos --out runs/single --single --distortions jpeg gaussian_blur
    python training/distort.py --images photos/a.jpg --contact-sheet sheet.png

Writes OUT/images and OUT/manifest.csv, which `attriqa.distortions.mixtures.read_manifest` reads. Its columns are
`image,ref,d01..d25,order`: levels 0 to 5, and the distortions' numbers in the order of application. As in ExIQA
(section on ExIQA-100k), an image gets in each of 10 passes K ~ U{1..25} distinct distortions, at levels of U{1..5}.

With --single the columns are `image,ref,distortion,level`, and every image gets every level of every distortion. Images
are named and numbered as KADID-10k's, the pristine ones beside them; OUT/references.csv says which is which.

What is drawn depends on --seed, the image's name in its source and the pass alone; an image is written whole or not at
all, and never made again. So a run that was killed goes on with the same command, and with the same packages on the
same kind of processor the bytes are the same, whatever the number of --workers and restarts.

An image that cannot be read or is too small is told, counted and left out (OUT/unreadable.json); more than 0.1 % of
them, and more than one, end the run, with the images made so far kept.
"""

import contextlib
import csv
import io
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, features
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from attriqa.config import claim_folder, opt, required, run_command
from attriqa.data.unlabelled import ImageIndex, TooManyUnreadableError, Unreadable, index_images
from attriqa.distortions import DISTORTIONS, find_distortion
from attriqa.distortions.contact_sheet import contact_sheet
from attriqa.distortions.mixtures import Mixture, apply_mixtures, draw_mixture, smallest_side, write_manifest
from attriqa.files import atomic_path, write_json
from attriqa.images import ImageError, find, read

GRAY = 1.5 / 255  # channels that differ by one step of 8 bits come from rounding, not from colour
SHEET_EDGE = 192  # px, shorter edge of the contact sheet's photos
Entry = tuple[str, str, Mixture]  # name of an image in OUT, name of its reference, what is done to it


@dataclass(frozen=True)
class Config:
    """What a run does."""

    images: str = required("pristine images: a folder, a text file of paths, .tar shards or a pattern of them")
    out: Path = opt(Path("runs/distorted"), "where images/ and manifest.csv go")
    passes: int = opt(10, "versions of every image, each with distortions of its own")
    most: int = opt(25, "the greatest number of distortions on an image")
    single: bool = opt(False, "instead: every image with each distortion at each level, named as in KADID-10k")
    distortions: tuple[str, ...] | None = opt(None, "keys, such as jpeg, or numbers 1 to 25; without it, all")
    level_order: Literal["kadid", "severity"] = opt("kadid", "severity re-sorts mean_shift's and contrast_change's")
    finalize: Literal["clip", "mapmm"] = opt("clip", "mapmm: stretch to [0, 1] around each step, as KADID's scripts do")
    shorter_edge: int | None = opt(None, "px that images are scaled to; without it, their own size")
    crop: str | None = opt(None, "WxH px, the centre; without --shorter-edge, of images scaled down to just cover it")
    format: Literal["png", "webp"] = opt("png", "webp: lossless")
    allow_gray: bool = opt(False, "go on when all images are gray, where several distortions change nothing")
    contact_sheet: Path | None = opt(None, "only make this PNG: the first photo of --images under everything")
    workers: int = opt(2, "processes; 0: none but this one")
    seed: int = opt(0, "of all draws")
    smoke: bool = opt(False, "a size for tests: 2 passes, up to 4 distortions, 96 px, no other process")

    def __post_init__(self) -> None:
        for name, least in (("passes", 1), ("most", 1), ("workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.crop is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.crop):
            raise ValueError(f"crop: expected WIDTHxHEIGHT in px, as 512x384, got {self.crop}")
        if self.format == "webp" and not features.check("webp"):
            raise ValueError("format: this Pillow was built without WebP, got webp")
        if len(set(self.among)) < len(self.among):
            raise ValueError(f"distortions: expected each once, got {' '.join(self.distortions or ())}")

    @property
    def among(self) -> tuple[int, ...]:
        """Indices in `DISTORTIONS` of those to use."""
        names = self.distortions or tuple(entry.key for entry in DISTORTIONS)
        found = (find_distortion(int(name) if name.isdecimal() else name) for name in names)
        return tuple(entry.number - 1 for entry in found)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """Make what is not there yet, then list it."""
    if config.smoke:
        edge = 96 if config.crop is None else None
        edge = config.shorter_edge or edge
        config = replace(config, passes=2, most=min(config.most, 4), workers=0, shorter_edge=edge)
    if config.contact_sheet is not None:
        draw_sheet(config, config.contact_sheet)
        return
    index = open_source(config)
    if not config.allow_gray:
        refuse_all_gray(index)
    claim_folder(config.out, claim_of(config))
    if config.single:
        claim_references(config, index)
    unreadable = Unreadable(len(index))
    try:
        with one_thread():
            timing = generate(config, index, unreadable)
    except TooManyUnreadableError as error:
        raise SystemExit(f"{error}\nThe images made so far are kept in {config.out}") from error
    finally:
        write_json(config.out / "unreadable.json", dict(sorted(unreadable.reasons.items())))
    made = [entry for number in range(len(index)) for entry in entries(config, index, number)]
    made = [entry for entry in made if entry[2].order and (config.out / entry[0]).is_file()]
    if not made:
        raise SystemExit(f"no image of {config.images} could be used: {unreadable.reasons}")
    write_manifest(config.out / "manifest.csv", made, single=config.single)
    report(config, made, unreadable, timing)


@dataclass(frozen=True)
class Claim(Config):
    """What an output folder is claimed for."""

    draws: str = opt("", "digest of what this NumPy and this code draw from the seed")


def claim_of(config: Config) -> Claim:
    """The configuration less what does not change the pixels: a run may go on elsewhere and with other workers.

    The manifest's labels are drawn again when the images are there, so the draws must still be the same ones.
    """
    probe = [draw_mixture(np.random.default_rng(seed_of(config.seed, "", turn))) for turn in range(8)]
    draws = blake2b(repr(probe).encode(), digest_size=8).hexdigest()
    return Claim(**{**vars(config), "out": Path(), "workers": 0, "allow_gray": False}, draws=draws)


def open_source(config: Config) -> ImageIndex:
    """The pristine images; faults of the source end the program."""
    source = Path(config.images)
    if source.is_dir() and config.out.resolve().is_relative_to(source.resolve()):
        raise SystemExit(f"--out {config.out} lies in --images {source}: its images would be taken for pristine ones")
    index = index_images(config.images)
    for key in index.keys:  # which become names below OUT
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise SystemExit(f"--images {config.images}: expected images inside its own folder, got {key}")
    return index


def refuse_all_gray(index: ImageIndex) -> None:
    """End the program unless an image has colour; of most folders, this reads the first image only."""
    gray = 0
    for number in range(len(index)):
        try:
            if not is_gray(index.read(number)):
                return
            gray += 1
        except ImageError:  # told when its turn comes
            continue
    if gray:
        raise SystemExit(
            f"all {gray} images are gray: distortions of colour would leave them as they are and their labels would be "
            "wrong; --allow-gray, best with --distortions, makes them all the same"
        )


def is_gray(image: Tensor) -> bool:
    """Whether an image (3, H, W) has one value in all channels."""
    return bool((image.amax(0) - image.amin(0)).max() <= GRAY)


def claim_references(config: Config, index: ImageIndex) -> None:
    """Write which pristine image has which number, or compare: a source that has grown would shift the numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("ref", "source"))
    writer.writerows((f"images/{stem(index, number)}.{config.format}", key) for number, key in enumerate(index.keys))
    path = config.out / "references.csv"
    if path.exists():
        if path.read_text(encoding="utf-8") != text.getvalue():
            raise SystemExit(f"{path} numbers other images than {config.images} holds now; choose another --out")
        return
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def stem(index: ImageIndex, number: int) -> str:
    """KADID's name of a pristine image: I01, and wider where there are more than 99."""
    return f"I{number + 1:0{max(2, len(str(len(index))))}d}"


def entries(config: Config, index: ImageIndex, number: int) -> Iterator[Entry]:
    """All that is made of one pristine image. With --single the first is that image itself, at its final size."""
    key = index.keys[number]
    if not config.single:
        among = config.among
        for turn in range(1, config.passes + 1):
            rng = np.random.default_rng(seed_of(config.seed, key, turn))
            recipe = draw_mixture(rng, most=config.most, among=among)
            yield f"images/{key}.{turn:02d}.{config.format}", key, recipe
        return
    name = f"images/{stem(index, number)}"
    reference = f"{name}.{config.format}"
    yield reference, reference, Mixture((), (), 0)
    for kind in config.among:
        for level in range(1, 6):
            seed = seed_of(config.seed, key, kind, level).generate_state(1, np.uint64)[0]
            recipe = Mixture((kind,), (level,), int(seed))
            yield f"{name}_{kind + 1:02d}_{level:02d}.{config.format}", reference, recipe


def seed_of(seed: int, key: str, *which: int) -> np.random.SeedSequence:
    """The seed of one version of an image, whatever else its source holds."""
    digest = int.from_bytes(blake2b(key.encode(), digest_size=16).digest())
    return np.random.SeedSequence([seed, digest, *which])


@dataclass(frozen=True)
class Outcome:
    """What became of one pristine image."""

    key: str
    made: int = 0  # images written
    seconds: float = 0.0
    gray: bool = False
    reason: str | None = None  # why there are none


class Jobs(Dataset[Outcome]):
    """One pristine image each: read once, and all of its versions made and written that are not there yet."""

    def __init__(self, config: Config, index: ImageIndex) -> None:
        self.config = config
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Outcome:
        config, key = self.config, self.index.keys[number]
        started = time.perf_counter()
        todo = [(config.out / name, recipe) for name, _, recipe in entries(config, self.index, number)]
        todo = [(path, recipe) for path, recipe in todo if not path.exists()]
        if not todo:
            return Outcome(key)
        try:
            image = sized(config, key, self.index.read(number, shorter_edge=config.shorter_edge))
        except ImageError as error:
            return Outcome(key, reason=error.reason)
        for path, recipe in todo:
            # One at a time: in a batch, sums of floats may round otherwise, and the bytes depend on what is left to do.
            made = apply_mixtures(image, [recipe], level_order=config.level_order, finalize=config.finalize)
            save(path, made, config.format)
        return Outcome(key, len(todo), time.perf_counter() - started, is_gray(image[0]))


def sized(config: Config, key: str, image: Tensor) -> Tensor:
    """An image (3, H, W) as it is distorted, (1, 3, H', W').

    Raises:
        ImageError: it is too small.
    """
    images, least = image[None], smallest_side(config.among)
    if config.crop is not None:
        width, height = map(int, config.crop.split("x"))
        scale = max(height / images.shape[2], width / images.shape[3])
        if scale < 1 and config.shorter_edge is None:
            size = [max(a, round(b * scale)) for a, b in zip((height, width), images.shape[2:], strict=True)]
            images = F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        if top < 0 or left < 0:
            raise ImageError(key, f"{images.shape[3]} x {images.shape[2]} px; --crop {config.crop} does not upscale")
        images = images[:, :, top : top + height, left : left + width].contiguous()
    if min(images.shape[2:]) < least:
        found = f"{images.shape[3]} x {images.shape[2]} px"
        raise ImageError(key, f"{found}; these distortions need sides of at least {least} px")
    return images


def save(path: Path, images: Tensor, format: Literal["png", "webp"]) -> None:  # noqa: A002 (Pillow's word)
    """Write one image (1, 3, H, W) in [0, 1], rounded to 8 bits, without any other loss."""
    pixels = (images[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    with atomic_path(path) as temporary:
        if format == "webp":
            Image.fromarray(pixels).save(temporary, "WEBP", lossless=True)
        else:
            # Of zlib's levels, 6 takes much longer than 4 and saves little.
            Image.fromarray(pixels).save(temporary, "PNG", compress_level=4)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how threads share them out, and other processes keep the other cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def generate(config: Config, index: ImageIndex, unreadable: Unreadable) -> dict[str, float]:
    """Make all images; what was made now, in which time."""
    loader = DataLoader(
        Jobs(config, index),
        batch_size=None,
        num_workers=config.workers,
        in_order=False,
        multiprocessing_context="spawn" if config.workers else None,  # a fork would inherit locks and thread pools
        generator=torch.Generator().manual_seed(config.seed),  # or else it draws from the global one
    )
    started, seconds = time.perf_counter(), 0.0
    read_now = gray = made = 0
    with tqdm(total=len(index), desc="distort", unit="photo") as bar:
        for outcome in loader:
            if outcome.reason is not None:
                bar.write(f"unreadable, left out: {outcome.key}: {outcome.reason}", file=sys.stderr)
                unreadable.add({outcome.key: outcome.reason})
            made += outcome.made
            seconds += outcome.seconds
            gray += outcome.gray
            read_now += outcome.made > 0
            bar.update()
    if gray:
        left = "distortions of colour left them as they are"
        print(f"warning: {gray} of {read_now} photos are gray: {left}", file=sys.stderr)
    return {
        "made": made,
        "gray": gray,
        "seconds": time.perf_counter() - started,
        "seconds_per_image": seconds / max(1, made),  # of one process
    }


def report(config: Config, made: list[Entry], unreadable: Unreadable, timing: dict[str, float]) -> None:
    """Print and write what the set is, and how long this run took for its part of it."""
    counts = np.bincount([index for *_, recipe in made for index in recipe.order], minlength=len(DISTORTIONS))
    summary = {
        "n": len(made),
        "references": len({reference for _, reference, _ in made}),
        "unreadable": len(unreadable.reasons),
        "distortions_per_image": counts.sum() / max(1, len(made)),
        "images_with": {entry.key: int(count) for entry, count in zip(DISTORTIONS, counts, strict=True)},
        "last_run": timing,
        "versions": {name: version(name) for name in ("attriqa", "torch", "numpy", "pillow")},
    }
    print(
        f"{summary['n']} images of {summary['references']} references, {summary['unreadable']} unreadable, "
        f"{summary['distortions_per_image']:.4g} distortions per image"
    )
    if timing["made"]:
        print(f"{timing['made']} made now in {timing['seconds']:.4g} s; {timing['seconds_per_image']:.4g} s per image")
    write_json(config.out / "metrics.json", summary)


def draw_sheet(config: Config, path: Path) -> None:
    """Write the contact sheet of one photo."""
    image = sized(config, config.images, read_one(config))[0]
    sheet = contact_sheet(image, config.among, config.seed, level_order=config.level_order, finalize=config.finalize)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")
    print(f"{path}: {sheet.width} x {sheet.height} px")


def read_one(config: Config) -> Tensor:
    """The photo (3, H, W) that --images names, or the first in that folder that can be read."""
    edge = SHEET_EDGE if config.shorter_edge is None and config.crop is None else config.shorter_edge
    reasons = []
    for path in find(config.images, recursive=True):
        try:
            return read(path, shorter_edge=edge)
        except ImageError as error:
            reasons.append(str(error))
    raise SystemExit("; ".join(reasons[:5]) or f"no image in {config.images}")


if __name__ == "__main__":
    main()
