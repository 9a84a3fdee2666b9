"""The learning curve of a policy: one entry per evaluation, as JSON, as a line of text and as a picture."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attriqa.files import atomic_path
from attriqa_envs.evaluation.evaluator import Gains


def entry_of(step: int, gains: Gains) -> dict[str, Any]:
    """One evaluation in JSON types: means, and the values of the images, in the order of the test images."""
    judges = {name: values.tolist() for name, values in gains.judge_gains.items()}
    return {
        "step": step,
        "reward": float(gains.reward.mean()),
        "score_gain": float(gains.score_gain.mean()),
        "clipped": float(gains.clipped_end.mean()),
        "clipped_default": float(gains.clipped_start.mean()),
        "judge_gains": {name: float(values.mean()) for name, values in gains.judge_gains.items()},
        "images": {"score_gain": gains.score_gain.tolist(), "judge_gains": judges},
    }


def line_of(entry: dict[str, Any]) -> str:
    """An evaluation in one line."""
    judges = "  ".join(f"{name} {value:+.4f}" for name, value in entry["judge_gains"].items())
    clipped = f"clipped {100 * entry['clipped_default']:.2f} % -> {100 * entry['clipped']:.2f} %"
    return (
        f"step {entry['step']}: reward {entry['reward']:+.4f}  score {entry['score_gain']:+.4f}  {clipped}  "
        f"judges: {judges}"
    )


def draw_curve(path: Path, curve: Sequence[dict[str, Any]]) -> None:
    """Draw gains of the score and, each on its own scale, of the judges as a PNG; nothing without matplotlib.

    Args:
        path: of the file.
        curve: entries of `entry_of`, each with a list ``"alarms"`` of dicts that name their ``"judge"``.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure

    names = list(curve[0]["judge_gains"])
    figure = Figure(figsize=(7, 2 + 1.5 * (1 + len(names))), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1 + len(names), sharex=True))
    steps = [entry["step"] for entry in curve]
    axes[0].plot(steps, [entry["score_gain"] for entry in curve], label="score")
    axes[0].plot(steps, [entry["reward"] for entry in curve], label="reward, with penalties", linestyle="--")
    axes[0].set_ylabel("gain")
    axes[0].legend()
    for axis, name in zip(axes[1:], names, strict=True):
        axis.plot(steps, [entry["judge_gains"][name] for entry in curve], color="C2")
        alarmed = [entry for entry in curve if any(alarm["judge"] == name for alarm in entry["alarms"])]
        axis.plot([e["step"] for e in alarmed], [e["judge_gains"][name] for e in alarmed], "rv", label="alarm")
        kind, colon, _ = name.partition(":")  # niqe:FILE goes by its kind, a checkpoint by its name
        axis.set_ylabel(f"held-out: {kind if colon else Path(name).stem}")
    for axis in axes:
        axis.axhline(0, color="gray", linewidth=0.5)
    axes[-1].set_xlabel("steps of training")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
