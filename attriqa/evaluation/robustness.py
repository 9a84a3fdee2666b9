"""What adversarial training bought and what it cost, from measures of the same net before and after on the same photos.

A measure of a fold is plain JSON: ``sd``, the deviation of what the net says of the clean photos, on the scale of the
``score`` and of its ``logit``; ``attacks``, for each ``budget`` the ``gains`` on both scales, a number per photo, and
after the training also ``transferred``, what the examples found before gain now; where there is a test side,
``five_crop`` with ``srocc``; where ramps were followed, ``ramp_srocc`` by attribute. A result holds ``fold``, a measure
under ``before``, one under ``after``, and ``rounds``: for each search for examples ``examples``, their number, and what
they changed in the logit, ``up`` and ``down``; where these were sought, ``tempted``, what departures of the photo that
it likes did, and ``tuned``, what tuning an ISP for it did.

A score ends at 1, and an attack that reaches it says nothing of how much further it could have gone: robustness is read
from the logit, and the score says what of it a user sees.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attriqa.attributes import ATTRIBUTES
from attriqa.evaluation.metrics import mean_interval
from attriqa.evaluation.text_tables import estimate, markdown

Result = dict[str, Any]
WHEN = ("before", "after")
SCALES = ("logit", "score")
GAINS = ("before", "after", "bought", "transferred")
_HIDDEN = 1.1  # times what the net's own attack gains: an older one that gains more shows that its gradients mislead


def attack_gains(results: Sequence[Result], scale: str, *, seed: int) -> list[dict[str, Any]]:
    """What the attacks gain, in standard deviations over the clean photos of the net that is attacked, mean over folds.

    Args:
        results: of folds that were attacked on the same photos, two or more of these.
        scale: one of `SCALES`.
        seed: of the bootstrap over photos.

    Returns:
        For each budget: ``budget``, ``scale``, and ``mean``, ``low`` and ``high`` (95 % interval) of what is gained
        ``before`` and ``after``, of the photos' difference, ``bought``, and of what is ``transferred``.
    """
    rows = []
    for index, attack in enumerate(results[0]["before"]["attacks"]):
        before, after = (_in_sd(results, scale, index, when, "gains") for when in WHEN)
        transferred = _in_sd(results, scale, index, "after", "transferred")
        row: dict[str, Any] = {"budget": attack["budget"], "scale": scale}
        for name, values in zip(GAINS, (before, after, before - after, transferred), strict=True):
            low, high = mean_interval(values, rng=np.random.default_rng(seed))
            row[name] = {"mean": float(values.mean()), "low": low, "high": high}
        rows.append(row)
    return rows


def _in_sd(results: Sequence[Result], scale: str, index: int, when: str, kind: str) -> NDArray[np.float64]:
    per_fold = [np.divide(one[when]["attacks"][index][kind][scale], one[when]["sd"][scale]) for one in results]
    return np.asarray(np.mean(per_fold, 0), dtype=np.float64)


def ramp_change(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """The SROCC of each head with the level of its own ramp, ``before`` and ``after``, mean over folds."""
    return {
        name: {when: float(np.mean([result[when]["ramp_srocc"][name] for result in results])) for when in WHEN}
        for name in ATTRIBUTES
    }


def srocc_cost(results: Sequence[Result]) -> dict[str, float]:
    """The median SROCC of tested folds and what it cost.

    Returns:
        ``before`` and ``after``, medians over folds; ``median_cost``, what the median falls by; ``mean_cost`` and
        ``worst_cost``, what it falls by within a fold.
    """
    before, after = ([result[when]["five_crop"]["srocc"] for result in results] for when in WHEN)
    falls = np.subtract(before, after)
    found = {"before": float(np.median(before)), "after": float(np.median(after))}
    found |= {"median_cost": found["before"] - found["after"], "mean_cost": float(falls.mean())}
    return found | {"worst_cost": float(falls.max())}


def verdict(
    attacks: Sequence[dict[str, Any]],
    srocc: dict[str, float],
    ramps: dict[str, dict[str, float]],
    *,
    limit: float,
    ramp_limit: float,
) -> dict[str, Any]:
    """Whether it is worth it: pushed less at every budget, by attacks old and new, and within the limits.

    Args:
        attacks: of `attack_gains`, on the scale of the logit.
        srocc: of `srocc_cost`; the greater of the median's and the mean cost counts.
        ramps: of `ramp_change`, or empty.
        limit: the SROCC it may cost.
        ramp_limit: the SROCC that the worst head may lose on its ramp.

    Returns:
        ``robust``: the interval of what was bought is above 0 at every budget. ``gradients_hidden``: examples found
        before push the net after clearly further than its own do, so these say too little. ``srocc_cost``,
        ``ramp_cost``, ``within_limits``, ``worth_it``, and all of it in ``words``.
    """
    robust = all(row["bought"]["low"] > 0 for row in attacks)
    hidden = any(row["transferred"]["mean"] > _HIDDEN * row["after"]["mean"] for row in attacks)
    paid = max(srocc["median_cost"], srocc["mean_cost"])
    lost = max((row["before"] - row["after"] for row in ramps.values()), default=0.0)
    within = paid <= limit and lost <= ramp_limit
    worth = robust and within and not hidden
    bought = ", ".join(f"{row['bought']['mean']:+.2f} sd at {row['budget']}/255" for row in attacks)
    words = [
        f"robustness bought, on the logit: {bought}, {'beyond' if robust else 'not beyond'} chance at every budget"
        f"{', but gradients are hidden' if hidden else ''}",
        f"SROCC cost {paid:+.4f}, {'within' if paid <= limit else 'over'} the limit of {limit}",
    ]
    if ramps:
        words.append(
            f"ramp SROCC cost {lost:+.3f}, {'within' if lost <= ramp_limit else 'over'} the limit of {ramp_limit}"
        )
    return {
        "robust": robust, "gradients_hidden": hidden, "srocc_cost": paid, "ramp_cost": lost, "within_limits": within,
        "worth_it": worth, "words": f"verdict: {'; '.join(words)}: {'worth it' if worth else 'not worth it'}",
    }  # fmt: skip


def _tested(results: Sequence[Result]) -> list[str]:
    """The median of every metric after, and the SROCC of each split."""
    after = [result["after"]["five_crop"] for result in results]
    names = [name for name, value in after[0].items() if isinstance(value, float)]
    medians = ", ".join(f"{name} {np.median([one[name] for one in after]):.4f}" for name in names)
    each = " ".join(f"{one['srocc']:.3f}" for one in after)
    return [f"after, median over splits: {medians}; SROCC of each: {each}"]


_HEADER = ("folds", "attack", "before", "after", "bought", "those before, shown to the net after")


def robustness_table(
    results: Sequence[Result], *, in_domain: str, seed: int, limit: float, ramp_limit: float
) -> tuple[dict[str, Any], list[str]]:
    """All of the above over all folds: for ``metrics.json``, and as lines to print.

    Args:
        results: of the folds; those with a test side, ``splits``, are taken together, and ``all`` that have none.
        in_domain: protocol of the test sides, in words.
        seed: of the bootstraps.
        limit: see `verdict`; there is none without a test side.
        ramp_limit: likewise.
    """
    tested = [result for result in results if "five_crop" in result["before"]]
    groups = {"splits": tested, "all": [result for result in results if result not in tested]}
    attacks = {
        name: {scale: attack_gains(group, scale, seed=seed) for scale in SCALES}
        for name, group in groups.items()
        if group
    }
    sd = {
        scale: {when: float(np.mean([result[when]["sd"][scale] for result in results])) for when in WHEN}
        for scale in SCALES
    }
    ramps = ramp_change(results) if "ramp_srocc" in results[0]["before"] else {}
    summary: dict[str, Any] = {"attacks": attacks, "sd": sd, "ramp_srocc": ramps}
    cells = [
        [name, f"PGD {row['budget']}/255, {row['scale']}", *(estimate(row[key], form="+.2f") for key in GAINS)]
        for name, scales in attacks.items()
        for row in chain.from_iterable(scales.values())
    ]
    lines = [*map(_searches, results), "", *markdown(_HEADER, cells, "llrrrr").splitlines(), ""]
    for scale, spread in sd.items():
        both = f"{spread['before']:.3f} -> {spread['after']:.3f}"
        lines.append(f"standard deviation of the {scale} over the clean photos, mean over folds: {both}")
    for name, change in ramps.items():
        lines.append(f"{name} on its ramp, mean over folds: SROCC {change['before']:.3f} -> {change['after']:.3f}")
    if tested:
        srocc = srocc_cost(tested)
        decision = verdict(attacks["splits"]["logit"], srocc, ramps, limit=limit, ramp_limit=ramp_limit)
        summary |= {"srocc": srocc, "verdict": decision}
        lines += [
            f"{in_domain}, five crops: SROCC {srocc['before']:.4f} -> {srocc['after']:.4f}; within a split "
            f"{-srocc['mean_cost']:+.4f} in the mean, {-srocc['worst_cost']:+.4f} at worst",
            *_tested(tested),
            decision["words"],
        ]
    return summary, lines


def _searches(result: Result) -> str:
    each = []
    for row in result["rounds"]:
        more = "".join(f" {row[kind]:+.2f} {kind}" for kind in ("tempted", "tuned") if kind in row)
        each.append(f"{row['examples']} examples {row['up']:+.2f} up {row['down']:+.2f} down{more}")
    return f"{result['fold']}, mean change of the logit by search: {'; '.join(each)}"
