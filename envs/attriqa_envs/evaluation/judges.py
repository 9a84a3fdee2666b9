"""Which reward is tuned for, and the judges that nobody optimises."""

import torch

from attriqa import Guard, QualityReward, judges, load
from attriqa.judges import signal as signal_measures
from attriqa.models.views import View
from attriqa.reward import GuardedModel

Judge = judges.Judge


SIGNAL_JUDGES: dict[str, Judge] = {
    "contrast": signal_measures.contrast,
    "colorfulness": signal_measures.colorfulness,
    "noisiness": signal_measures.noisiness,
    "sharpness": signal_measures.sharpness,
}


REWARDS = "robust; default; guarded, a lower bound over default and judge (attriqa.Guard); or a checkpoint's path"
"""What `make_reward` takes, for help texts."""


def make_reward(name: str, *, device: torch.device | str | None = None) -> QualityReward:
    """What an ISP is tuned for, by its name (`REWARDS`): whole images, each looked at once, small ones not scaled up.

    Raises:
        ValueError: there is no such model, or it has not learnt to score.
        FileNotFoundError: there is no such file.
    """
    guard = Guard() if name == "guarded" else None
    model = "default" if guard else name
    view: View | None = "native" if "native" in load(model).views else None
    return QualityReward(model, guard=guard, view=view, device=device)


def make_judge(name: str, *, device: torch.device | str | None = None, optimised: QualityReward | None = None) -> Judge:
    """A held-out judge by its name.

    Args:
        name: a key of `SIGNAL_JUDGES`, whose measures need no weights, or what `attriqa.judges.load_judge` takes:
            ``"judge"``, ``"default"``, the path of a checkpoint, ``"niqe:FILE"``, ``"brisque:FOLDER"``.
        device: of a checkpoint's model.
        optimised: the reward that is optimised; neither its model nor a member of its guard can judge it.

    Raises:
        ValueError: the judge is what is optimised, a file is not what it should be, or there is no such file.
    """
    if name in SIGNAL_JUDGES:
        return SIGNAL_JUDGES[name]
    try:
        judge = judges.load_judge(name, device=device)
    except ValueError as error:
        raise ValueError(f"{error}; or {', '.join(SIGNAL_JUDGES)}") from error
    if isinstance(judge, QualityReward) and optimised is not None and _model_of(judge) in _models_of(optimised):
        raise ValueError(f"judge: expected one that is not optimised; {name} is in {optimised.identity}")
    return judge


def _model_of(reward: QualityReward) -> str:
    """Name and hash of a reward's model, whatever it sees of an image."""
    return reward.identity.partition("/")[0]


def _models_of(reward: QualityReward) -> set[str]:
    guarded = reward.model if isinstance(reward.model, GuardedModel) else None
    return {_model_of(reward), *(_model_of(QualityReward(name)) for name in (guarded.guard.members if guarded else ()))}
