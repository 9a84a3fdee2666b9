"""What a comparison of generators says: win rates, intervals, changes, orders, sample sizes."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from attriqa.attributes import ATTRIBUTES
from attriqa.evaluation import metrics
from attriqa.evaluation.bootstrap import images_needed, kendall_tau, superiority, superiority_interval
from attriqa.evaluation.preferences.generator_report import DIFFERENCES, compare, comparison_text
from attriqa.evaluation.preferences.generators import (
    Generator,
    distributions,
    duel,
    mean_changes,
    order_agreement,
    prompt_changes,
)
from attriqa.files import write_json

NAMES = ("score", *ATTRIBUTES, "jpeg", "white_noise")
Floats = NDArray[np.float64]


def generator(
    name: str, scores: Floats | list[float], prompts: list[str] | None = None, opinions: Floats | None = None
) -> Generator:
    """One whose other values follow from its scores."""
    column = np.asarray(scores, dtype=np.float64)
    values = np.stack([column, *(np.full(column.size, 0.1 * n) for n in range(1, len(NAMES)))], axis=1)
    prompts = [f"prompt {n}" for n in range(column.size)] if prompts is None else prompts
    return Generator(name, [f"{name}/{n}.png" for n in range(column.size)], prompts, values, opinions)


def several(name: str, seed: int, prompts: int = 40, shift: float = 0.0) -> Generator:
    """One to three images of each prompt, whose difficulty all generators share."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(prompts), rng.integers(1, 4, prompts))
    easy = np.random.default_rng(99).uniform(0.2, 0.7, prompts)
    scores = np.clip(np.round(easy[of] + rng.normal(shift, 0.1, of.size), 2), 0, 1)  # rounded, so that there are ties
    return generator(name, scores, [f"prompt {n}" for n in of])


def shuffled(given: Generator, seed: int) -> Generator:
    order = np.random.default_rng(seed).permutation(len(given.images))
    images, prompts = ([side[n] for n in order] for side in (given.images, given.prompts))
    return Generator(given.name, images, prompts, given.values[order])


# Win rates


def test_one_image_per_prompt_is_won_lost_or_half() -> None:
    found = duel(generator("a", [0.9, 0.2, 0.5, 0.7, 0.6]), generator("b", [0.1, 0.3, 0.5, 0.6, 0.1]))
    assert (found.paired, found.n, found.rate) == (True, 5, 3.5 / 5)
    assert (found.rate_low, found.rate_high) == metrics.wilson(3.5, 5)
    differences = [0.8, -0.1, 0.0, 0.1, 0.5]
    assert found.difference == pytest.approx(np.mean(differences))
    assert found.sd == pytest.approx(np.std(differences, ddof=1))
    assert found.needed == images_needed(found.sd, found.difference, paired=True)


def test_each_shared_prompt_counts_once_whatever_its_images() -> None:
    a, b = several("a", 1), several("b", 2)
    b = Generator("b", b.images[9:], b.prompts[9:], b.values[9:])  # some prompts are only the first's
    shares, gaps = [], []
    for prompt in sorted(set(a.prompts) & set(b.prompts)):
        x, y = ([g.values[n, 0] for n, of in enumerate(g.prompts) if of == prompt] for g in (a, b))
        shares.append(np.mean([(u > v) + 0.5 * (u == v) for u, v in product(x, y)]))
        gaps.append(np.mean(x) - np.mean(y))
    found = duel(a, b)
    assert 0 < found.n == len(shares) < 40
    assert any(0 < share < 1 for share in shares)
    assert found.rate == pytest.approx(np.mean(shares))
    assert found.difference == pytest.approx(np.mean(gaps))
    assert found.difference_low is not None
    assert found.difference_high is not None
    assert found.difference_low < found.difference < found.difference_high


def test_sides_swap_and_the_order_of_images_does_not_matter() -> None:
    a, b = several("a", 1), several("b", 2, shift=0.05)
    one, other = duel(a, b), duel(b, a)
    assert other.rate == pytest.approx(1 - one.rate)
    assert (other.rate_low, other.rate_high) == pytest.approx((1 - one.rate_high, 1 - one.rate_low))
    assert other.difference == pytest.approx(-one.difference)
    mixed = duel(shuffled(a, 5), shuffled(b, 6))
    assert mixed[2:8] == pytest.approx(one[2:8])
    assert mixed.sd == pytest.approx(one.sd)


def test_without_shared_prompts_every_two_images_are_compared() -> None:
    a = generator("a", [0.4, 0.5, 0.9, 0.5], [f"a {n}" for n in range(4)])
    b = generator("b", [0.5, 0.1, 0.8], [f"b {n}" for n in range(3)])
    found = duel(a, b)
    wins = np.mean([(x > y) + 0.5 * (x == y) for x, y in product(a.values[:, 0], b.values[:, 0])])
    assert (found.paired, found.n) == (False, 7)
    assert found.rate == pytest.approx(wins) == pytest.approx(superiority(a.values[:, 0], b.values[:, 0]))
    assert found.rate_low < found.rate < found.rate_high
    assert duel(b, a).rate == pytest.approx(1 - found.rate)


@pytest.mark.parametrize(("shift", "n", "m"), [(0.0, 12, 30), (0.8, 25, 25), (2.0, 15, 20)])
def test_the_interval_of_superiority_holds_the_truth_in_95_of_100(shift: float, n: int, m: int) -> None:
    truth = stats.norm.cdf(shift / np.sqrt(2))
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        low, high = superiority_interval(superiority(rng.normal(shift, 1, n), rng.normal(0, 1, m)), n, m)
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.995


def test_the_interval_of_superiority_has_a_width_even_without_overlap() -> None:
    low, high = superiority_interval(1.0, 10, 10)
    assert 0.6 < low < 0.9
    assert high == 1
    assert superiority_interval(0.0, 10, 10) == pytest.approx((0, 1 - low))
    assert superiority_interval(1.0, 100, 100).low > low
    for wrong in ((1.1, 5, 5), (0.5, 0, 5)):
        with pytest.raises(ValueError, match=r"expected a rate in \[0, 1\] and sizes of at least 1"):
            superiority_interval(*wrong)


# Intervals and distributions


def test_copies_of_images_make_no_interval_narrower() -> None:
    a, b = several("a", 3), several("b", 4)
    double = [
        Generator(g.name, [*g.images, *(f"{i} copy" for i in g.images)], [*g.prompts] * 2, np.tile(g.values, (2, 1)))
        for g in (a, b)
    ]
    for once, twice in zip((a, b), double, strict=True):
        plain, more = distributions(once, NAMES)["score"], distributions(twice, NAMES)["score"]
        assert (more.mean, more.low, more.high) == pytest.approx((plain.mean, plain.low, plain.high))
    c, d = double
    assert duel(c, d)[2:10] == pytest.approx(duel(a, b)[2:10])
    assert mean_changes(c, d, NAMES)["score"] == pytest.approx(mean_changes(a, b, NAMES)["score"])


def test_an_interval_of_a_mean_is_as_wide_as_statistics_say() -> None:
    scores = np.random.default_rng(0).uniform(0, 1, 400)
    found = distributions(generator("a", scores), NAMES, resamples=2000)["score"]
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * scores.std() / 20, rel=0.08)
    assert found.mean == pytest.approx(scores.mean())
    assert found.sd == pytest.approx(scores.std(ddof=1))
    assert sum(found.histogram) == 400
    assert found.quantiles == pytest.approx(np.quantile(scores, [0.05, 0.25, 0.5, 0.75, 0.95]))


def test_the_ends_of_the_range_have_a_bin() -> None:
    counts = distributions(generator("a", [0.0, 1.0, 1.0]), NAMES)["score"].histogram
    assert (counts[0], counts[-1], sum(counts)) == (1, 2, 3)


def test_same_seed_same_numbers_and_no_global_randomness() -> None:
    a, b = several("a", 1), several("b", 2)
    np.random.seed(7)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    assert duel(a, b, seed=3) == duel(a, b, seed=3)
    assert duel(a, b, seed=3).difference_low != duel(a, b, seed=4).difference_low
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


# Sample sizes


@pytest.mark.parametrize(("effect", "paired", "unpaired"), [(0.2, 199, 394), (0.5, 34, 64), (0.8, 15, 26)])
def test_sample_sizes_are_those_of_the_tables(effect: float, paired: int, unpaired: int) -> None:
    """Cohen's "Statistical Power Analysis for the Behavioral Sciences" (1988): 394, 64 and 26 for two samples."""
    assert images_needed(0.1, 0.1 * effect, paired=True) == paired
    assert images_needed(0.1, -0.1 * effect, paired=False) == unpaired


def test_the_sample_size_sees_the_difference_as_often_as_promised() -> None:
    n = images_needed(0.2, 0.07, paired=True)
    draws = np.random.default_rng(0).normal(0.07, 0.2, (4000, n))
    seen = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert np.mean(seen) == pytest.approx(0.8, abs=0.025)


def test_sample_sizes_grow_with_the_square_and_never_stop() -> None:
    assert images_needed(0.2, 0.001, paired=True) == pytest.approx(4 * images_needed(0.2, 0.002, paired=True), rel=0.01)
    assert images_needed(0.0, 0.1, paired=True) == 2
    assert images_needed(0.001, 0.9, paired=False) == 2
    for bad in ((-1.0, 0.1), (0.1, 0.0), (float("nan"), 0.1)):
        with pytest.raises(ValueError, match="expected sd >= 0, difference other than 0"):
            images_needed(*bad, paired=True)


# Changes between checkpoints


def test_prompts_that_fell_come_first_with_the_images_and_the_reason() -> None:
    before, after = generator("old", [0.5, 0.6, 0.7]), generator("new", [0.6, 0.2, 0.6])
    after.values[1, 1:] = before.values[1, 1:] + [0.1, -0.05, 0, 0, 0, 0.3, 0]  # sharper, less contrast, more JPEG
    found = prompt_changes(before, after, NAMES)
    assert [entry.prompt for entry in found] == ["prompt 1", "prompt 2", "prompt 0"]
    worst = found[0]
    assert (worst.before, worst.after) == pytest.approx((0.6, 0.2))
    assert (worst.image_before, worst.image_after) == ("old/1.png", "new/1.png")
    assert worst.most == "jpeg"
    assert worst.most_change == pytest.approx(0.3)
    assert (found[1].most, found[1].most_change) == (None, None)
    after.values[0, 1:3] += [0.2, -0.3]
    assert prompt_changes(before, after, NAMES)[-1].most == "sharpness"


def test_of_several_images_the_typical_one_is_shown() -> None:
    before = generator("old", [0.9, 0.1, 0.52, 0.4], ["p", "p", "p", "q"])
    after = generator("new", [0.3, 0.35, 0.9, 0.1], ["q", "p", "r", "p"])
    found = {entry.prompt: entry for entry in prompt_changes(before, after, NAMES)}
    assert found.keys() == {"p", "q"}
    assert found["p"].image_before == "old/2.png"
    assert found["p"].before == pytest.approx(1.52 / 3)
    assert found["q"].image_after == "new/0.png"


def test_nothing_changes_against_oneself() -> None:
    a = several("a", 1)
    assert {tuple(change[2:]) for change in mean_changes(a, a, NAMES).values()} == {(0.0, 0.0, 0.0)}
    assert duel(a, generator("b", a.values[:, 0], list(a.prompts))).rate == 0.5


# The order of generators


def test_tau_is_kendalls_with_ties() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (50, 8)).astype(float), rng.integers(0, 5, (50, 8)).astype(float)
    assert kendall_tau(x, y) == pytest.approx([stats.kendalltau(u, v).statistic for u, v in zip(x, y, strict=True)])
    assert np.isnan(kendall_tau(np.ones((1, 4)), np.arange(4.0)[None])).all()


def liked(flip: bool = False, prompts: int = 60) -> list[Generator]:
    rng = np.random.default_rng(0)
    found = []
    for level in range(5):
        opinions = 1 + 0.6 * level + rng.normal(0, 0.3, prompts)
        scores = 0.5 + (-1 if flip else 1) * 0.08 * (level - 2) + rng.normal(0, 0.05, prompts)
        found.append(generator(f"g{level}", np.clip(scores, 0, 1), opinions=opinions))
    return found


def test_the_order_is_that_of_people_or_its_reverse() -> None:
    for flip, tau in ((False, 1.0), (True, -1.0)):
        found = order_agreement(liked(flip))
        assert (found.tau, found.tau_low, found.tau_high, found.n, found.prompts) == (tau, tau, tau, 5, 60)
        assert len(found.discordant) == (10 if flip else 0)
    assert found.discordant[0] == ("g4", "g3")


def test_close_generators_make_the_order_uncertain() -> None:
    close = liked()
    close[3] = generator("g3", close[2].values[:, 0] + 1e-6, opinions=close[3].opinions)
    rng = np.random.default_rng(1)
    close[3].values[:, 0] = np.clip(close[2].values[:, 0] + rng.normal(0, 0.05, 60), 0, 1)
    found = order_agreement(close)
    assert found.tau_low is not None
    assert found.tau_low < 1
    assert found.tau_high == 1


def test_an_order_needs_three_generators_that_people_judged() -> None:
    with pytest.raises(ValueError, match="expected at least 3, all with opinions"):
        order_agreement(liked()[:2])
    with pytest.raises(ValueError, match="expected at least 3, all with opinions"):
        order_agreement([*liked(), generator("x", [0.1])])
    same = [generator(name, [0.5], opinions=np.array([2.0])) for name in "abc"]
    with pytest.raises(ValueError, match="got all equal"):
        order_agreement(same)


# All of it


def test_a_comparison_is_sorted_whole_and_plain(tmp_path: Path) -> None:
    members = [several("low", 1, shift=-0.1), several("high", 2, shift=0.1), several("middle", 3)]
    found = compare(members, NAMES, baseline="middle", resamples=200)
    write_json(tmp_path / "all.json", found)
    assert json.loads((tmp_path / "all.json").read_text()) == json.loads(json.dumps(found))
    assert list(found["generators"]) == ["high", "middle", "low"]
    assert [(d["first"], d["second"]) for d in found["duels"]] == [
        ("high", "middle"), ("high", "low"), ("middle", "low")]  # fmt: skip
    assert list(found["changes"]) == ["high", "low"]
    change = found["changes"]["low"]
    assert change["worse"] + change["better"] + change["same"] == change["prompts"] == 40
    assert change["worse"] > change["better"]
    assert all(entry["after"] < entry["before"] for entry in change["worst"])
    assert found["order"] is None
    assert [row["difference"] for row in found["sample_sizes"]] == list(DIFFERENCES)
    sizes = [row["paired"] for row in found["sample_sizes"]]
    assert sizes == sorted(sizes, reverse=True)
    text = comparison_text(found)
    assert "high beats middle in " in text
    assert f"middle -> low: {change['worse']} of 40 prompts worse by more than 0.05" in text


def test_a_single_image_has_no_interval_and_is_no_fault() -> None:
    found = compare([generator("a", [0.5]), generator("b", [0.4])], NAMES, baseline="a")
    assert found["duels"][0]["difference_low"] is None
    assert found["generators"]["a"]["summary"]["score"]["low"] is None
    assert found["sample_sizes"][0]["paired"] is None
    assert "a beats b in 100.0 %" in comparison_text(found)
    found = compare([generator("a", [0.5], ["x"]), generator("b", [0.4], ["y"])], NAMES, baseline="a")
    assert found["duels"][0]["paired"] is False
    assert "a -> b: no shared prompts" in comparison_text(found)


def test_what_is_wrong_is_told() -> None:
    a, b = generator("a", [0.5, 0.6]), generator("b", [0.5])
    with pytest.raises(ValueError, match="expected at least 2, each with a name of its own, got a"):
        compare([a], NAMES)
    with pytest.raises(ValueError, match="each with a name of its own, got a, a"):
        compare([a, a], NAMES)
    with pytest.raises(ValueError, match="baseline: expected one of a, b, got c"):
        compare([a, b], NAMES, baseline="c")
    with pytest.raises(ValueError, match="names: expected one for each column of values"):
        compare([a, b], NAMES[:-1])
    with pytest.raises(ValueError, match="x: expected as many images, prompts, values and opinions"):
        Generator("x", ["1", "2"], ["p"], a.values)
    with pytest.raises(ValueError, match="x: expected each image once, got 1 again"):
        Generator("x", ["1", "1"], ["p", "q"], a.values)
    with pytest.raises(ValueError, match=r"x: expected values in \[0, 1\]"):
        generator("x", [0.5, float("nan")])
    with pytest.raises(ValueError, match="x: expected finite opinions"):
        generator("x", [0.5], opinions=np.array([np.inf]))
