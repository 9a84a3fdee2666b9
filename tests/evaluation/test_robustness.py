"""attriqa.evaluation.robustness: what adversarial training bought and cost, from made-up measures."""

import json
from typing import Any

import numpy as np
import pytest

from attriqa.attributes import ATTRIBUTES
from attriqa.evaluation.robustness import SCALES, attack_gains, ramp_change, robustness_table, srocc_cost, verdict

PHOTOS = 30
LIMITS = {"limit": 0.005, "ramp_limit": 0.01}


def measure(
    gain: float, *, seed: int, sd: float = 0.1, srocc: float | None = None, ramp: float = 0.99
) -> dict[str, Any]:
    """A measure whose attacks gain about ``gain`` deviations at 2/255 and twice that at 8/255."""
    rng = np.random.default_rng(seed)
    attacks = []
    for budget, times in ((2, 1), (8, 2)):
        gains = rng.normal(times * gain, 0.1, PHOTOS)
        both = {"score": (sd * gains).clip(max=0.2).tolist(), "logit": (6 * sd * gains).tolist()}
        attacks.append({"budget": budget, "gains": both})
    spread = {"score": sd, "logit": 6 * sd}
    found: dict[str, Any] = {"sd": spread, "attacks": attacks, "ramp_srocc": dict.fromkeys(ATTRIBUTES, ramp)}
    return found | ({} if srocc is None else {"five_crop": {"srocc": srocc}})


def fold(name: str, before: dict[str, Any], after: dict[str, Any], transferred: float = 0.1) -> dict[str, Any]:
    for attack in after["attacks"]:
        attack["transferred"] = {scale: [transferred * sd] * PHOTOS for scale, sd in after["sd"].items()}
    rounds = [{"round": 1, "examples": 6, "up": 0.5, "down": 0.25}]
    return {"fold": name, "rounds": rounds, "before": before, "after": after}


def folds(gain_after: float = 0.5, sroccs: tuple[float, ...] = (0.80, 0.82, 0.84), **more: Any) -> list[dict[str, Any]]:
    before = (0.81, 0.82, 0.83)
    return [
        fold(
            f"split{i}", measure(1.5, seed=i, srocc=before[i]), measure(gain_after, seed=9 + i, srocc=sroccs[i], **more)
        )
        for i in range(3)
    ]


def test_gains_are_told_in_each_nets_own_deviations() -> None:
    """A net that says half as much about everything is pushed half as far, and is no more robust."""
    halved = json.loads(json.dumps(measure(1.5, seed=0, srocc=0.8)))
    halved["sd"]["logit"] /= 2
    for attack in halved["attacks"]:
        attack["gains"]["logit"] = [gain / 2 for gain in attack["gains"]["logit"]]
    small, large = attack_gains([fold("split0", measure(1.5, seed=0, srocc=0.8), halved)], "logit", seed=0)
    assert [small["budget"], large["budget"]] == [2, 8]
    for row in (small, large):
        assert row["before"] == pytest.approx(row["after"])
        assert row["bought"]["mean"] == pytest.approx(0)
    assert small["before"]["mean"] == pytest.approx(1.5, abs=0.06)
    assert large["before"]["mean"] == pytest.approx(3.0, abs=0.06)


def test_what_is_bought_is_compared_photo_by_photo() -> None:
    """Photos that differ much, each of them pushed half a deviation less: the interval of the difference is narrow."""
    before = measure(1.0, seed=0, srocc=0.8)
    spread = np.linspace(0, 1, PHOTOS)
    before["attacks"][0]["gains"]["score"] = spread.tolist()
    after = measure(1.0, seed=1, srocc=0.8)
    after["attacks"][0]["gains"]["score"] = (spread - 0.05).tolist()
    (row, _) = attack_gains([fold("split0", before, after)], "score", seed=0)
    assert row["bought"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    assert row["before"]["high"] - row["before"]["low"] > 1


def test_the_mean_of_folds_has_a_narrower_interval_than_one() -> None:
    one, three = (attack_gains(group, "logit", seed=0)[0]["before"] for group in (folds()[:1], folds()))
    assert three["high"] - three["low"] < 0.8 * (one["high"] - one["low"])


def test_costs_are_falls() -> None:
    found = srocc_cost(folds(sroccs=(0.80, 0.80, 0.86)))
    expected = {"before": 0.82, "after": 0.80, "median_cost": 0.02, "mean_cost": 0.0, "worst_cost": 0.02}
    assert found == pytest.approx(expected)
    ramps = ramp_change(folds(ramp=0.9))
    assert list(ramps) == list(ATTRIBUTES)
    assert ramps["noisiness"] == pytest.approx({"before": 0.99, "after": 0.9})


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, None),
        ({"gain_after": 1.5}, "robust"),
        ({"sroccs": (0.80, 0.81, 0.84)}, "within_limits"),
        ({"sroccs": (0.72, 0.82, 0.84)}, "within_limits"),
        ({"ramp": 0.97}, "within_limits"),
    ],
)
def test_the_verdict_needs_everything(change: dict[str, Any], broken: str | None) -> None:
    """The median's cost and the mean cost both count: in one case here the one hides what the other shows."""
    results = folds(**change)
    told = verdict(attack_gains(results, "logit", seed=0), srocc_cost(results), ramp_change(results), **LIMITS)
    assert told["robust"] is (broken != "robust")
    assert told["within_limits"] is (broken != "within_limits")
    assert told["gradients_hidden"] is False
    assert told["worth_it"] is (broken is None)
    assert told["words"].endswith(": worth it" if broken is None else ": not worth it")


def test_an_attack_that_finds_less_than_an_older_one_is_no_proof() -> None:
    results = [fold("split0", measure(1.5, seed=0, srocc=0.8), measure(0.1, seed=1, srocc=0.8), transferred=1.2)]
    told = verdict(attack_gains(results, "logit", seed=0), srocc_cost(results), {}, **LIMITS)
    assert told["robust"]
    assert told["gradients_hidden"]
    assert not told["worth_it"]
    assert "gradients are hidden" in told["words"]


def test_a_score_that_ends_at_its_limit_hides_what_the_logit_shows() -> None:
    results = [fold("split0", measure(9.0, seed=0, srocc=0.8), measure(4.0, seed=1, srocc=0.8))]
    logit, score = (attack_gains(results, scale, seed=0)[0]["bought"] for scale in SCALES)
    assert logit["mean"] == pytest.approx(5.0, abs=0.1)
    assert score["mean"] == pytest.approx(0.0, abs=0.1)
    summary, _ = robustness_table(results, in_domain="", seed=0, **LIMITS)
    assert summary["verdict"]["robust"]


def test_splits_and_the_net_to_ship_are_told_apart() -> None:
    results = [fold("all", measure(2.0, seed=5), measure(1.0, seed=6)), *folds()]
    summary, lines = robustness_table(results, in_domain="in-domain: CLIVE", seed=0, **LIMITS)
    json.dumps(summary, allow_nan=False)
    for scale in SCALES:
        assert summary["attacks"]["splits"][scale] == attack_gains(results[1:], scale, seed=0)
        assert summary["attacks"]["all"][scale] == attack_gains(results[:1], scale, seed=0)
    assert summary["srocc"] == srocc_cost(results[1:])
    text = "\n".join(lines)
    (row,) = (line for line in lines if line.startswith("| all | PGD 2/255, logit |"))
    assert row.split(" | ")[2].startswith(f"{summary['attacks']['all']['logit'][0]['before']['mean']:+.2f} [")
    assert "in-domain: CLIVE, five crops: SROCC 0.8200 -> 0.8200" in text
    assert "after, median over splits: srocc 0.8200; SROCC of each: 0.8" in text
    assert lines[-1] == summary["verdict"]["words"]
    alone, lines = robustness_table(results[:1], in_domain="none", seed=0, **LIMITS)
    assert "verdict" not in alone, "without a test side nothing is known of the cost"
    assert "splits" not in alone["attacks"]
