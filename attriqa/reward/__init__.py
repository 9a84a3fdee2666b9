"""The reward: an image becomes ``(B,)``, higher is better, with gradients to the pixels; alone, guarded or combined."""

from attriqa.reward.compose import CombinedReward, Reward, RewardFn, Scorer, Term, as_reward
from attriqa.reward.guard import NATURAL, Guard, GuardedModel, cut_box, draw_boxes, lower_bound
from attriqa.reward.quality import FileScore, QualityReward
from attriqa.reward.trainers import Ranking, best_of_n, group_advantages

__all__ = [
    "NATURAL",
    "CombinedReward",
    "FileScore",
    "Guard",
    "GuardedModel",
    "QualityReward",
    "Ranking",
    "Reward",
    "RewardFn",
    "Scorer",
    "Term",
    "as_reward",
    "best_of_n",
    "cut_box",
    "draw_boxes",
    "group_advantages",
    "lower_bound",
]
