"""Reward hacking: an alarm when what is optimised rises while judges that are not optimised fall."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

Values = Sequence[float]


@dataclass(frozen=True)
class Look:
    """What one evaluation during training saw, on the same N images, in the same order, each time.

    Attributes:
        step: transitions trained on until then.
        score: gain of the optimised score, end of the episode minus start, ``(N,)``.
        judges: the same of each held-out judge, by its name.
    """

    step: int
    score: Values
    judges: Mapping[str, Values]


@dataclass(frozen=True)
class Alarm:
    """The score rose and a judge fell, both beyond what the images' scatter explains.

    Attributes:
        judge: its name.
        since: the step of the evaluation where its mean gain was highest.
        score_rise: mean growth of the score's gain since then, positive.
        judge_fall: mean growth of the judge's gain since then, negative, in its own unit.
    """

    judge: str
    since: int
    score_rise: float
    judge_fall: float

    def __str__(self) -> str:
        return (
            f"ALARM: since step {self.since} the score's gain rose by {self.score_rise:.4f} while that of the held-out "
            f"judge {self.judge} fell by {-self.judge_fall:.4f}: the reward may be hacked"
        )


def find_alarms(looks: Sequence[Look], *, confidence: float = 0.975) -> list[Alarm]:
    """The alarms of the last evaluation.

    For each judge, the last evaluation is compared with the earlier one where that judge liked the results best. The
    alarm sounds if, over the images, the score's gain grew and the judge's shrank by one-sided paired t-tests. So it
    needs no scale of a judge, ignores what the images' scatter explains, and sounds too where a judge ends up below the
    untrained policy, if that was evaluated.

    Args:
        looks: evaluations in the order of training.
        confidence: of each of the two tests, in [0.5, 1).

    Returns:
        One per judge that fell; none for fewer than two looks or two images.

    Raises:
        ValueError: ``confidence`` is out of range, looks have other judges or numbers of images than the last one, or a
            value is not finite.
    """
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence: expected a number in [0.5, 1), got {confidence}")
    for look in looks:
        _check(look, looks[-1])
    if len(looks) < 2:
        return []
    *earlier, now = looks
    alarms = []
    for name, values in now.judges.items():
        best = max(earlier, key=lambda look: float(np.mean(look.judges[name])))  # the first of equals
        rise, fall = np.subtract(now.score, best.score), np.subtract(values, best.judges[name])
        if _surely_positive(rise, confidence) and _surely_positive(-fall, confidence):
            alarms.append(Alarm(name, best.step, float(rise.mean()), float(fall.mean())))
    return alarms


def _check(look: Look, last: Look) -> None:
    if look.judges.keys() != last.judges.keys():
        raise ValueError(f"looks: expected the judges {', '.join(last.judges)}; step {look.step} has others")
    for name, values in {"score": look.score, **look.judges}.items():
        if len(values) != len(last.score) or not np.isfinite(values).all():
            raise ValueError(
                f"looks: expected {len(last.score)} finite values of {name}; step {look.step} has {len(values)} values"
            )


def _surely_positive(differences: "np.ndarray[tuple[int], np.dtype[np.float64]]", confidence: float) -> bool:
    count = len(differences)
    if count < 2:
        return False
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    return bool(differences.mean() > max(error * float(student_t.ppf(confidence, count - 1)), 1e-9))
