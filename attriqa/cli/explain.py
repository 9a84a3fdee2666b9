"""``attriqa explain``: why a photo got its score, in words, and a picture that shows where."""

import argparse
import sys
from pathlib import Path
from typing import Any

from attriqa.cli import options
from attriqa.cli.options import CommandError, add_scorer, ending_in

_OVERLAY_SIDE = 1080  # px; an overlay is to be looked at, and a map has no more detail than the model's view


def add_parser(commands: Any) -> None:
    """Add the command to ``attriqa``."""
    parser = commands.add_parser(
        "explain",
        help="say why an image got its score, and show where",
        description="Say why an image got its score, and write a picture that shows where: the image in gray, and in "
        "colour what lowers the score or an attribute, or what raises the strength of a distortion.",
        allow_abbrev=False,
    )
    picture = Path("attriqa-explain.png")
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument(
        "--of",
        default="score",
        metavar="NAME",
        help="what to show: score, an attribute (sharpness, ...), or, where the model tells them, a distortion (jpeg, "
        "...) [score]",
    )
    parser.add_argument(
        "--out", type=ending_in(".png"), default=picture, metavar="F.png", help=f"the picture [{picture}]"
    )
    add_scorer(parser)
    parser.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> int:
    from PIL import Image

    from attriqa import explain, images
    from attriqa.files import atomic_path
    from attriqa.pages.html import printable

    image_path, out = Path(args.image), args.out
    if not image_path.is_file():
        raise CommandError(
            f"{args.image}: expected an image file, found {'a folder' if image_path.is_dir() else 'none'}"
        )
    if out.is_dir():
        raise CommandError(f"--out {out}: expected a file, found a folder")
    if out.resolve() == image_path.resolve():
        raise CommandError(f"--out {out}: is also the input")
    try:
        if args.model == "default":
            explain.find_output(args.of)  # before the model is loaded
        scorer = options.make_scorer(args)
        explain.find_output(args.of, scorer.model.distortions, scorer.model.attributes)
    except ValueError as error:
        raise CommandError(f"--{error}") from None
    result = next(iter(scorer.score_files([image_path])))
    if result.score is None:
        print(f"{printable(args.image)}: {printable(result.error or 'the model gave no score')}", file=sys.stderr)
        return 1
    picture = images.read(image_path)[None]
    if min(picture.shape[2:]) > _OVERLAY_SIDE:
        picture = images.resize_shorter(picture, _OVERLAY_SIDE)
    saliency_map = explain.saliency(scorer.model, picture.to(args.device), args.of)[0]
    with atomic_path(out) as temporary:
        Image.fromarray(explain.overlay(picture[0], saliency_map)).save(temporary, format="PNG")
    if args.of in scorer.model.distortions:
        what = f"it sees {args.of}"
    else:
        what = f"{'the score' if args.of == 'score' else args.of} is lost"
    why = explain.why(result.attributes, result.distortions, keys=scorer.model.distortions, names=scorer.attributes)
    print(f"{printable(args.image)}: score {result.score:.3f}\nwhy: {why}")
    gray = f"all gray: nowhere more than elsewhere {what}"
    shown = f"coloured where {what}, brightest where most" if saliency_map.any() else gray
    print(f"where: {printable(str(out))}, {shown}")
    return 0
