"""How well a tuned ISP does: held-out judges, the alarm, learning curves, recovery, and the page."""

from attriqa.judges import Judge
from attriqa_envs.evaluation.evaluator import Evaluator, Gains
from attriqa_envs.evaluation.judges import REWARDS, SIGNAL_JUDGES, make_judge, make_judges, make_reward
from attriqa_envs.tuning.episodes import Act

__all__ = ["REWARDS", "SIGNAL_JUDGES", "Act", "Evaluator", "Gains", "Judge", "make_judge", "make_judges", "make_reward"]
