"""How far each scorer can be pushed by small changes of pixels: FGSM and PGD on photos, and what the others say.

    python evals/attack.py --photos photos --scorers default guarded judge niqe:niqe_pris_params.npz brisque:weights

Every scorer is attacked at every budget (the largest change of any pixel value, in 1/255): by one step along the sign
of its gradient (FGSM; Goodfellow et al. 2015, arXiv 1412.6572), by several projected ones (PGD; Madry et al. 2018,
arXiv 1706.06083; the best of them), and by random signs, which is what the budget alone does.
Attacked photos are rounded to 8 bits before they are scored, as a file would be. A gain is the score after less the
score before, in standard deviations of the scorer over the clean photos; NIQE and BRISQUE count negated, so that more
is better for all.

The first table says how far each scorer is pushed; the second, what every scorer makes of each attack: a reward that is
pushed while the others stand still is being fooled. Means over photos with 95 % bootstrap intervals. OUT/metrics.json
holds every number, OUT/NAME.png the photo that PGD pushed furthest: clean, attacked, the difference amplified. A killed
run goes on with the same command.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attriqa import QualityReward
from attriqa.config import claim_folder, opt, parse_config, required
from attriqa.data.ramps import find_photos
from attriqa.evaluation.attacks import (
    Scorer,
    fgsm,
    middle_squares,
    pgd,
    random_signs,
    score_all,
    summarise_gains,
    to_8_bits,
)
from attriqa.evaluation.text_tables import estimate, markdown
from attriqa.files import atomic_path, write_json
from attriqa.judges import NAMES, load_judge
from attriqa.models.views import View
from attriqa.reward import Guard

Method = Literal["random", "fgsm", "pgd"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Config:
    """What a run does."""

    photos: Path = required("folder of photos")
    pattern: str = opt("*", "which of its files are used")
    scorers: tuple[str, ...] = opt(("default", "robust", "guarded", "judge"), f"attacked and told: guarded, {NAMES}")
    n: int = opt(16, "photos, evenly spaced over the sorted files; 2 or more")
    side: int = opt(256, "photos are reduced to this shorter edge and cut square, px; NIQE needs 192 or more")
    budgets: tuple[int, ...] = opt((2, 8), "largest change of a pixel value, in 1/255")
    steps: int = opt(10, "of PGD, at first 2.5 budgets over their number long")
    view: Literal["five_crop", "full"] = opt("full", "what default, robust and guarded see")
    std_weight: float = opt(1.0, "guarded: standard deviations off the mean")
    jitter_views: int = opt(0, "guarded: random boxes that are looked at; 0: the whole")
    batch: int = opt(4, "photos at once")
    device: str | None = opt(None, "as torch names it; none: the CPU")
    out: Path = opt(Path("runs/attack"), "where everything goes")
    seed: int = opt(0, "of the random signs and the intervals")
    smoke: bool = opt(False, "a size for tests: two photos, one budget, two steps")

    def __post_init__(self) -> None:
        if min(self.n, self.steps, self.batch, *self.budgets) < 1 or self.n < 2:
            raise ValueError("n, steps, batch, budgets: expected at least 2 photos and positive numbers")
        if len(set(self.scorers)) < len(self.scorers) or len(set(self.budgets)) < len(self.budgets):
            raise ValueError("scorers, budgets: expected each of them once")


def main(argv: Sequence[str] | None = None) -> None:
    """Make every attack that has no result yet, then print and write the tables."""
    config = parse_config(Config, argv, __doc__)
    if config.smoke:
        config = replace(config, n=2, side=min(config.side, 192), budgets=config.budgets[:1], steps=2, batch=2)
    try:
        scorers = {short(name): load_scorer(name, config) for name in config.scorers}
        photos = find_photos(config.photos, config.pattern, config.n)
        chosen = np.linspace(0, len(photos) - 1, config.n).round().astype(int)
        clean = middle_squares([photos[i] for i in chosen], config.side)
        before = {name: tell(config, scorer, clean) for name, scorer in scorers.items()}
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    if len(scorers) < len(config.scorers):
        raise SystemExit(f"scorers: expected different names, got {', '.join(map(short, config.scorers))}")
    claim_folder(config.out, config)
    cells = [(name, method, budget) for name in scorers for method in METHODS for budget in config.budgets]
    results = []
    for name, method, budget in tqdm(cells, "attacks"):
        path = config.out / "attacks" / f"{name}_{method}_{budget}.json"
        if not path.exists():
            after = run_attack(config, scorers, clean, name, method, budget)
            told = {other: (values - before[other]).tolist() for other, values in after.items()}
            write_json(path, {"target": name, "method": method, "budget": budget, "gains": told})
        results.append(json.loads(path.read_text(encoding="utf-8")))
    report(config, {name: values.tolist() for name, values in before.items()}, results)


def short(name: str) -> str:
    """What a scorer is called in tables and file names: ``niqe:FILE`` -> ``niqe``, a path -> its folder and stem."""
    if name.startswith(("niqe:", "brisque:")):
        return name.partition(":")[0]
    return re.sub(r"\W+", "-", "-".join(Path(name).with_suffix("").parts[-2:])).strip("-")


def load_scorer(name: str, config: Config) -> Scorer:
    """A scorer by its name."""
    view: View = config.view
    if name == "guarded":
        guard = Guard(std_weight=config.std_weight, jitter_views=config.jitter_views)
        return QualityReward(guard=guard, view=view, device=config.device)
    if name in ("default", "robust"):
        return QualityReward(name, view=view, device=config.device)
    return load_judge(name, device=config.device)


def tell(config: Config, scorer: Scorer, images: Tensor) -> NDArray[np.float64]:
    """What a scorer says of images, (N,)."""
    return score_all(scorer, images, batch=config.batch, device=config.device)


def run_attack(
    config: Config, scorers: dict[str, Scorer], clean: Tensor, name: str, method: Method, budget: int
) -> dict[str, NDArray[np.float64]]:
    """Attack one scorer on all photos; what all of them say of the results."""
    epsilon = budget / 255
    if method == "random":
        attacked = random_signs(clean, epsilon, torch.Generator().manual_seed(config.seed))
    else:
        attack = fgsm if method == "fgsm" else partial(pgd, steps=config.steps)
        parts = [attack(scorers[name], part.to(config.device), epsilon) for part in clean.split(config.batch)]
        attacked = torch.cat(parts).cpu()
    attacked = to_8_bits(attacked)
    after = {other: tell(config, scorer, attacked) for other, scorer in scorers.items()}
    if method == "pgd" and budget == max(config.budgets):
        worst = int((after[name] - tell(config, scorers[name], clean)).argmax())
        save_picture(config.out / f"{name}.png", clean[worst], attacked[worst], budget)
    return after


def save_picture(path: Path, clean: Tensor, attacked: Tensor, budget: int) -> None:
    """Clean, attacked, and the difference around gray, the budget at full swing; written whole or not at all."""
    difference = ((attacked - clean) * 255 / (2 * budget) + 0.5).clamp(0, 1)
    pixels = (torch.cat([clean, attacked, difference], 2) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG")


def report(config: Config, before: dict[str, list[float]], results: list[dict[str, Any]]) -> None:
    """Print and write both tables."""
    scale = {name: float(np.std(values, ddof=1)) or 1.0 for name, values in before.items()}
    rows = []
    for result in results:
        told = {}
        for name, gains in result["gains"].items():
            told[name] = summarise_gains(gains, scale[name], seed=config.seed)._asdict()
        rows.append({key: result[key] for key in ("target", "method", "budget")} | {"told": told})
    protocol = (
        f"{config.n} photos, {config.side} px square, PGD of {config.steps} steps; "
        "gains in standard deviations over the clean photos"
    )
    print(f"{protocol}\n\nHow far each scorer is pushed, mean [95 % interval]:\n")
    columns = [(method, budget) for budget in config.budgets for method in METHODS]
    by_cell = {(row["target"], row["method"], row["budget"]): row["told"] for row in rows}
    pushed = [[name, *(_cell(by_cell[name, *column][name]) for column in columns)] for name in before]
    print(markdown(["attacked", *(f"{method} {budget}/255" for method, budget in columns)], pushed))
    largest = max(config.budgets)
    print(f"\nWhat all of them make of it, PGD {largest}/255, rows are attacked:\n")
    others = [[name, *(_cell(by_cell[name, "pgd", largest][other]) for other in before)] for name in before]
    print(markdown(["attacked", *before], others))
    write_json(
        config.out / "metrics.json",
        {"protocol": protocol, "n": config.n, "clean": before, "clean_sd": scale, "attacks": rows},
    )


def _cell(gain: dict[str, float]) -> str:
    return estimate(gain, "in_sd", "+.1f")


if __name__ == "__main__":
    main()
