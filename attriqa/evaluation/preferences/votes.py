"""Votes of a blind study: reading them, tallies by pair, win rates with intervals."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from attriqa.evaluation import metrics
from attriqa.evaluation.bootstrap import Interval
from attriqa.evaluation.preferences.files import read_records

COLUMNS = ("pair", "image_a", "image_b", "prompt", "left", "preferred", "seconds", "rater")
"""Header of the CSV file that the page saves."""


class Vote(NamedTuple):
    """One person's answer to one pair: ``preferred`` is a, b or tie; ``left`` the side, a or b, that was shown left."""

    pair: str
    image_a: str
    image_b: str
    prompt: str
    left: str
    preferred: str
    rater: str


class Tally(NamedTuple):
    """All answers to one pair."""

    pair: str
    image_a: str
    image_b: str
    prompt: str
    votes_a: int
    votes_b: int
    votes_tie: int


class WinRate(NamedTuple):
    """How often the first pictures beat the second ones; a pair is won by the majority of its votes.

    Attributes:
        rate: share of the ``n`` pairs that side a wins, ties counting 1/2, in [0, 1].
        low: lower end of Wilson's 95 % interval.
        high: its upper end.
        n: pairs.
        wins: of side a.
        losses: of side a.
        ties: pairs with as many votes for a as for b.
        votes: answers in all.
    """

    rate: float
    low: float
    high: float
    n: int
    wins: int
    losses: int
    ties: int
    votes: int


def read_votes(path: Path | str) -> list[Vote]:
    """The answers of one file that a page saved.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, or a pair is answered twice by one person; the message names file and line.
    """
    votes, seen = [], set()
    for line, record in read_records(Path(path), COLUMNS):
        pair, image_a, image_b, prompt, left, preferred, _, rater = (record[name] for name in COLUMNS)
        if left not in ("a", "b") or preferred not in ("a", "b", "tie"):
            found = f"{left[:20]!r} and {preferred[:20]!r}"
            raise ValueError(f"{path} line {line}: expected left a or b and preferred a, b or tie, got {found}")
        if (pair, rater) in seen:
            raise ValueError(f"{path} line {line}: a second answer of {rater or 'one person'!r} to {pair!r}")
        seen.add((pair, rater))
        votes.append(Vote(pair, image_a, image_b, prompt, left, preferred, rater))
    return votes


def tally_votes(votes: Sequence[Vote]) -> list[Tally]:
    """All answers, pair by pair, in the order in which pairs first come.

    Raises:
        ValueError: one pair stands for different images in different answers.
    """
    counts: dict[str, Counter[str]] = {}
    about: dict[str, tuple[str, str, str]] = {}
    for vote in votes:
        known = about.setdefault(vote.pair, (vote.image_a, vote.image_b, vote.prompt))
        if known != (vote.image_a, vote.image_b, vote.prompt):
            raise ValueError(
                f"votes: {vote.pair!r} is {vote.image_a} and {vote.image_b}, elsewhere {known[0]}, {known[1]}"
            )
        counts.setdefault(vote.pair, Counter())[vote.preferred] += 1
    return [Tally(pair, *about[pair], count["a"], count["b"], count["tie"]) for pair, count in counts.items()]


def win_rate(tallies: Sequence[Tally]) -> WinRate:
    """How often side a wins, with Wilson's interval over pairs.

    Raises:
        ValueError: there is no pair.
    """
    if not tallies:
        raise ValueError("tallies: expected at least one pair, got none")
    wins = sum(tally.votes_a > tally.votes_b for tally in tallies)
    losses = sum(tally.votes_a < tally.votes_b for tally in tallies)
    ties = len(tallies) - wins - losses
    low, high = metrics.wilson(wins + ties / 2, len(tallies))
    votes = sum(tally.votes_a + tally.votes_b + tally.votes_tie for tally in tallies)
    return WinRate((wins + ties / 2) / len(tallies), low, high, len(tallies), wins, losses, ties, votes)


def left_share(votes: Sequence[Vote]) -> tuple[float, Interval] | None:
    """Share of decided answers that went to the left picture, and its 95 % interval; None where none was decided.

    Sides are random, so an interval without 1/2 tells of people who press one key.
    """
    decided = [vote.preferred == vote.left for vote in votes if vote.preferred != "tie"]
    return (sum(decided) / len(decided), metrics.wilson(sum(decided), len(decided))) if decided else None
