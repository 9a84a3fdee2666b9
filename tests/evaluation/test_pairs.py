"""Pairs that people compared: what is read, what is refused, and what the statistics say."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from attriqa.evaluation import metrics
from attriqa.evaluation.preferences.files import read_pairs, read_scores
from attriqa.evaluation.preferences.pairs import (
    JudgedPair,
    accuracy,
    correctness,
    margin_curve,
    mcnemar,
    same_prompt_pairs,
)

NAN = math.nan


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def judged(*preferences: float, prompts: str = "") -> list[JudgedPair]:
    return [
        JudgedPair(f"{n}a", f"{n}b", prompts[n] if prompts else str(n), preference)
        for n, preference in enumerate(preferences)
    ]


def test_votes_become_preferences(tmp_path: Path) -> None:
    path = write(
        tmp_path / "pairs.csv",
        "image_a,image_b,prompt,votes_a,votes_b,votes_tie,n_votes,extra",
        'a.png,b.png,"a cat, sitting",9,3,,12,x',
        "c.png,d.png,ein Baum,1,4,5,10,",
        "e.png,f.png,,2,2,0,,",
    )
    pairs = read_pairs(path)
    assert [pair.preference for pair in pairs] == [0.5, -0.3, 0.0]
    assert [pair.prompt for pair in pairs] == ["a cat, sitting", "ein Baum", ""]
    assert all(pair.graded for pair in pairs)
    assert pairs[1].margin == 0.3


def test_winners_alone_have_no_margin(tmp_path: Path) -> None:
    lines = ("image_a,image_b,prompt,preferred,n_votes", "a,b,p,a,60", "c,d,p,B,60", "e,f,p,tie,60")
    pairs = read_pairs(write(tmp_path / "pairs.csv", *lines))
    assert [pair.preference for pair in pairs] == [1, -1, 0]
    with pytest.raises(ValueError, match="only the winner"):
        margin_curve(pairs, np.ones(3), (0, 1))


def test_pairs_that_nobody_judged_are_read_on_request(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", "image_a,image_b,prompt", "a,b,p")
    assert read_pairs(path, judged=False)[0].preference == 0
    with pytest.raises(ValueError, match="votes_a and votes_b, or preferred"):
        read_pairs(path)


VOTES = "image_a,image_b,prompt,votes_a,votes_b,n_votes"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((VOTES, "a,b,p,5,6,12"), r"line 2: votes do not sum: votes_a 5 \+ votes_b 6 is 11, n_votes 12"),
        ((VOTES, "a,b,p,0,0,0"), "line 2: expected at least one vote"),
        ((VOTES, "a,b,p,-1,6,"), "votes_a to be a whole number of votes, got '-1'"),
        ((VOTES, "a,b,p,2.5,6,"), "votes_a to be a whole number of votes, got '2.5'"),
        ((VOTES, "a,b,p,,6,"), "votes_a and votes_b, got an empty field"),
        ((VOTES, "a,b,p,1,6,7", "b,a,p,6,1,7"), "line 3: b and a are a pair already, in line 2"),
        ((VOTES, "a,a,p,1,6,7"), "a is paired with itself"),
        ((VOTES, "a,,p,1,6,7"), "expected two images"),
        ((VOTES, "a,b,p,1,6"), "line 2: expected 6 fields, got 5"),
        ((VOTES,), "expected pairs below the header, got none"),
        (("image_a,prompt,preferred", "a,p,a"), "expected the columns image_a, image_b"),
        (("image_a,image_b,prompt,preferred", "a,b,p,left"), "preferred to be a, b or tie, got 'left'"),
        (("image_a,image_b,preferred", "a,b,a"), "expected a column prompt"),
        (("image_a,image_b,prompt_a,prompt_b,preferred", "a,b,a cat,,a"), "one prompt for both images, got 'a cat'"),
        (("image_a,image_a,image_b,prompt,preferred", "a,a,b,p,a"), "expected each column once"),
    ],
)
def test_bad_pairs_are_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    path = write(tmp_path / "pairs.csv", *lines)
    with pytest.raises(ValueError, match=message) as refusal:
        read_pairs(path)
    assert str(path) in str(refusal.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes(b"image_a,image_b\n\xff\xfe,b\n")
    with pytest.raises(ValueError, match="expected a UTF-8 CSV file"):
        read_pairs(tmp_path / "pairs.csv")


@pytest.mark.parametrize("column", ["path", "name"])
def test_another_scorers_table(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "scores.csv", f"{column},score,sharpness", "a.png,0.5,0.1", "b.png,-3e2,0.2")
    assert read_scores(path) == {"a.png": 0.5, "b.png": -300.0}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("path,score", "a,1", "a,2"), "line 3: a second score of a"),
        (("path,score", "a,nan"), "expected a finite score of a, got 'nan'"),
        (("path,score", "a,good"), "expected a finite score of a, got 'good'"),
        (("image,score", "a,1"), "expected a column path or name, got image, score"),
        (("path,quality", "a,1"), "expected the columns score"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_scores(write(tmp_path / "scores.csv", *lines))


def test_same_prompt_pairs_are_all_of_them_and_no_others() -> None:
    names, prompts, mos = list("uvwxyz"), ["p", "q", "p", "q", "p", "alone"], [1.0, 2.0, 3.0, 2.0, 0.5, 4.0]
    found = same_prompt_pairs(names, prompts, mos)
    expected = {(i, j) for i, j in product(range(6), repeat=2) if i < j and prompts[i] == prompts[j]}
    assert {(names.index(pair.image_a), names.index(pair.image_b)) for pair in found} == expected
    for pair in found:
        assert pair.preference == mos[names.index(pair.image_a)] - mos[names.index(pair.image_b)]
    with pytest.raises(ValueError, match="each name once"):
        same_prompt_pairs(["u", "u"], ["p", "p"], [1.0, 2.0])


def test_accuracy_is_that_of_the_metrics_on_decided_pairs() -> None:
    rng = np.random.default_rng(3)
    preferences = rng.choice([-1.0, -0.2, 0.0, 0.4], 50)
    a, b = rng.integers(0, 4, 50) / 4, rng.integers(0, 4, 50) / 4
    pairs = judged(*preferences)
    result = accuracy(pairs, correctness(pairs, a, b))
    kept = preferences != 0
    assert result.accuracy == metrics.pair_accuracy(a[kept], b[kept], preferences[kept], np.zeros(kept.sum()))
    assert (result.n, result.human_ties) == (kept.sum(), 50 - kept.sum())
    assert result.score_ties == np.count_nonzero((a == b) & kept) > 0
    assert (result.accuracy_low, result.accuracy_high) == metrics.wilson(result.accuracy * result.n, result.n)


def test_swapping_sides_changes_nothing_and_flipping_scores_mirrors() -> None:
    rng = np.random.default_rng(0)
    pairs, a, b = judged(*rng.normal(size=40)), rng.normal(size=40), rng.normal(size=40)
    swapped = [pair._replace(image_a=pair.image_b, image_b=pair.image_a, preference=-pair.preference) for pair in pairs]
    right = correctness(pairs, a, b)
    assert np.array_equal(right, correctness(swapped, b, a))
    assert np.array_equal(1 - right, correctness(pairs, -a, -b))


def test_prompts_that_agree_within_themselves_widen_the_interval() -> None:
    """100 pairs of 5 prompts, all right or all wrong within each: they tell no more than 5 pairs would."""
    prompts = "".join(f"{n}" * 20 for n in range(5))
    pairs = judged(*[1.0] * 100, prompts=prompts)
    right = np.repeat([1.0, 1.0, 1.0, 0.0, 0.0], 20)
    clustered = accuracy(pairs, right, resamples=400)
    single = accuracy(judged(*[1.0] * 100), right, resamples=400)
    assert clustered.by_prompt_low is not None
    assert clustered.by_prompt_high is not None
    assert single.by_prompt_low is not None
    assert clustered.by_prompt_high - clustered.by_prompt_low > 0.6
    assert single.by_prompt_low == pytest.approx(single.accuracy_low, abs=0.03)
    assert accuracy(pairs, right, resamples=400) == clustered, "the same seed gives the same interval"


def test_nothing_decided_is_no_accuracy_and_one_prompt_no_bootstrap() -> None:
    with pytest.raises(ValueError, match="at least one that people decided, got 2 ties"):
        accuracy(judged(0, 0), np.array([NAN, NAN]))
    assert accuracy(judged(1, -1, prompts="pp"), np.array([1.0, 0.0])).by_prompt_low is None


@pytest.mark.parametrize(("a", "b"), [([1.0], [2.0]), ([1.0, NAN], [1.0, 2.0]), ([1.0, 2.0], [[1.0, 2.0]])])
def test_bad_scores_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="score_a, score_b"):
        correctness(judged(1, -1), a, b)


def test_the_margin_curve_divides_the_decided_pairs() -> None:
    pairs = judged(0.0, 0.2, -0.2, 0.21, -0.9, 1.0)
    right = np.array([NAN, 1.0, 0.0, 1.0, 0.5, 1.0])
    bins = margin_curve(pairs, right, (0, 0.2, 0.5, 0.7, 1.0))
    assert [(entry.n, entry.accuracy) for entry in bins] == [(2, 0.5), (1, 1.0), (0, None), (2, 0.75)]
    assert (bins[3].accuracy_low, bins[3].accuracy_high) == metrics.wilson(1.5, 2)
    for edges in ((0.1, 1.0), (0.0, 1.0, 1.0), (0.0,)):
        with pytest.raises(ValueError, match="edges: expected"):
            margin_curve(pairs, right, edges)


def test_mcnemar_is_the_exact_sign_test_on_what_differs() -> None:
    first = np.array([1.0] * 9 + [0.0] * 1 + [1.0] * 20 + [NAN, 0.5, 1.0])
    second = np.array([0.0] * 9 + [1.0] * 1 + [1.0] * 20 + [1.0, 0.0, 0.5])
    result = mcnemar(first, second)
    assert result[:3] == (9, 1, 30)
    assert result.p == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(second, first) == (1, 9, 30, result.p)
    assert mcnemar(first, first).p == 1.0
    with pytest.raises(ValueError, match="equal lengths"):
        mcnemar(first, second[1:])
