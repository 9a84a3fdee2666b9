"""How well a tuned ISP does: held-out judges, the alarm, learning curves, recovery, and the page."""

from attriqa_envs.evaluation.evaluator import Act, Evaluator, Floats, Gains
from attriqa_envs.evaluation.judges import REWARDS, SIGNAL_JUDGES, Judge, make_judge, make_reward

__all__ = ["REWARDS", "SIGNAL_JUDGES", "Act", "Evaluator", "Floats", "Gains", "Judge", "make_judge", "make_reward"]
