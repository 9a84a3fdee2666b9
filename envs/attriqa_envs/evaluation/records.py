"""What several ways of tuning make of the same pictures, side by side: what is measured, and what it comes to.

A *record* is what one method made of one picture, in JSON types: ``params``, ``curve`` (see
`attriqa_envs.agents.search`), ``renders``, ``seconds``, and ``told``, what `measure` says of the result. The camera's
default and an expert's rendering, which has no params and no curve, are records too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attriqa import images
from attriqa.attributes import ATTRIBUTES
from attriqa.evaluation import metrics
from attriqa.files import atomic_path, write_json
from attriqa.judges import Judge
from attriqa_envs.evaluation.alarm import Look, find_alarms
from attriqa_envs.evaluation.judges import finite, judge_pictures
from attriqa_envs.isp.color import clipped_share
from attriqa_envs.tuning.core import Scorer, assess

Record = dict[str, Any]
Floats = NDArray[np.float64]

DEFAULT, EXPERT = "default", "expert"
_OFF, _LIT = 2 / 255, 1 / 4  # a channel that is off while another is lit: a colour at the border of the gamut
_BATCH = 16


@torch.no_grad()
def measure(pictures: Tensor, scorer: Scorer, judges: Mapping[str, Judge]) -> list[Record]:
    """What there is to say of each of B pictures ``(B, 3, H, W)``, sRGB in [0, 1].

    Returns:
        Per picture ``score``; ``attributes`` by name, where the scorer tells them; ``judges`` by name; ``clipped``, the
        share of pixels with a channel at black or white; and ``oversaturated``, the share of those at the border of the
        gamut: one channel at most 2/255, another at least 1/4.

    Raises:
        ValueError: a judge or the scorer gives anything but finite ``(B,)``.
    """
    measured: list[Record] = []
    for some in pictures.split(_BATCH):
        score, attributes, *_ = assess(scorer, some)
        names = () if attributes is None else ATTRIBUTES
        rows = [[]] * len(some) if attributes is None else attributes.tolist()
        scores = finite("scorer", score, len(some))
        clipped = clipped_share(some).tolist()
        beyond = ((some.amin(1) <= _OFF) & (some.amax(1) >= _LIT)).float().mean((1, 2)).tolist()
        opinions = judge_pictures(judges, some)
        measured += [
            {
                "score": s,
                "clipped": c,
                "oversaturated": o,
                "attributes": dict(zip(names, row, strict=True)),
                "judges": j,
            }
            for s, c, o, row, j in zip(scores, clipped, beyond, rows, opinions, strict=True)
        ]
    return measured


class Records:
    """Records in a folder, one JSON file and one PNG each: what a killed run has done is not done again.

    Args:
        out: holds ``records`` and ``pictures``.
        group: a folder in each of them, for images that are tuned under several conditions; empty for none.
    """

    def __init__(self, out: Path | str, group: str = "") -> None:
        self._records, self._pictures = Path(out, "records", group), Path(out, "pictures", group)

    def _path(self, method: str, file: str) -> Path:
        return self._records / method / f"{quote(file, safe=' ')}.json"

    def _picture_path(self, method: str, file: str) -> Path:
        return self._pictures / method / f"{quote(file, safe=' ')}.png"

    def has(self, method: str, file: str) -> bool:
        """Whether a method's record of a file, any relative path, was written."""
        return self._path(method, file).is_file()

    def write(self, method: str, file: str, record: Record, picture: Tensor) -> None:
        """Keep a record after its picture, ``(3, H, W)`` sRGB in [0, 1], in 8 bits."""
        levels = (picture.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
        with atomic_path(self._picture_path(method, file)) as temporary:
            Image.fromarray(levels.numpy(force=True)).save(temporary, "PNG")
        write_json(self._path(method, file), {"file": file, "method": method, **record})

    def read(self, method: str, file: str) -> Record:
        """A record that was written.

        Raises:
            ValueError: the file was damaged since.
        """
        path = self._path(method, file)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: damaged ({error}); delete it, and it is made again") from error
        if not isinstance(record, dict) or record.get("file") != file:
            raise ValueError(f"{path}: expected the record of {file}; delete it, and it is made again")
        return record

    def picture(self, method: str, file: str) -> Tensor:
        """A picture that was written, ``(3, H, W)`` in [0, 1]."""
        return images.read(self._picture_path(method, file))


def table_of_methods(records: Mapping[str, Sequence[Record]], seed: int = 0) -> list[dict[str, Any]]:
    """The table: one row per method, over the same N pictures in the same order.

    Args:
        records: by method, `DEFAULT` among them; a method may have fewer pictures (`EXPERT`), each of which the default
            has too.
        seed: of the bootstrap.

    Returns:
        Rows with ``method``, ``n``, ``renders``, ``seconds`` (mean per picture), ``clipped`` and ``oversaturated``
        (means), ``gains`` over the default by name (``reward`` and ``score``, attributes, judges as ``judge NAME``),
        each with ``mean``, ``low`` and ``high`` of its 95 % bootstrap interval; ``of_adam``, the reward's mean gain
        over that of Adam, and ``behind_policy``, the policy's mean gain minus this one, each with such an interval;
        and ``alarms``, texts.
    """
    defaults = {record["file"]: record for record in records[DEFAULT]}
    rewards = {name: _reward_gains(rows, defaults) for name, rows in records.items()}
    rows = []
    for method, mine in records.items():
        gains = {name: _spread(values, seed) for name, values in _gains(mine, defaults).items()}
        if rewards[method] is not None:
            gains = {"reward": _spread(rewards[method], seed), **gains}
        row: dict[str, Any] = {"method": method, "n": len(mine), "renders": mine[0]["renders"], "gains": gains}
        row["seconds"] = None if mine[0]["seconds"] is None else _mean([record["seconds"] for record in mine])
        for name in ("clipped", "oversaturated"):
            row[name] = _mean([record["told"][name] for record in mine])
        row["of_adam"] = _ratio(rewards[method], rewards.get("adam"), seed)
        row["behind_policy"] = _difference(rewards.get("policy"), rewards[method], seed)
        row["alarms"] = [] if method in (DEFAULT, EXPERT) else _alarms(mine, defaults)
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _gains(mine: Sequence[Record], defaults: Mapping[str, Record]) -> dict[str, Floats]:
    """By name, the growth of each figure over the default, ``(n,)``."""
    pairs = [(record["told"], defaults[record["file"]]["told"]) for record in mine]
    gains = {"score": np.array([after["score"] - before["score"] for after, before in pairs])}
    for group, prefix in (("attributes", ""), ("judges", "judge ")):
        for name in pairs[0][0][group]:
            gains[prefix + name] = np.array([after[group][name] - before[group][name] for after, before in pairs])
    return gains


def _reward_gains(mine: Sequence[Record], defaults: Mapping[str, Record]) -> Floats | None:
    """What was maximised; an expert's rendering, which has no params, has no such gain."""
    if any(record["curve"] is None for record in mine):
        return None
    return np.array([record["curve"][-1] - defaults[record["file"]]["curve"][0] for record in mine])


def _spread(values: Floats | None, seed: int) -> dict[str, float]:
    assert values is not None
    if len(values) < 2:
        return {"mean": float(values.mean())}
    low, high = metrics.mean_interval(values, rng=np.random.default_rng(seed))
    return {"mean": float(values.mean()), "low": low, "high": high}


def _difference(policy: Floats | None, mine: Floats | None, seed: int) -> dict[str, float] | None:
    if policy is None or mine is None or policy is mine or len(policy) != len(mine):
        return None
    return _spread(policy - mine, seed)


def _ratio(mine: Floats | None, adam: Floats | None, seed: int) -> dict[str, float] | None:
    """Of two means, the pictures drawn together; none where Adam gains nothing worth dividing by."""
    if mine is None or adam is None or len(mine) != len(adam) or adam.mean() <= 1e-6:
        return None
    if len(mine) < 2:
        return {"mean": float(mine.mean() / adam.mean())}
    drawn = np.random.default_rng(seed).integers(0, len(mine), (1000, len(mine)))
    below = adam[drawn].mean(1)
    ratios = mine[drawn].mean(1)[below > 1e-6] / below[below > 1e-6]
    low, high = np.quantile(ratios, (0.025, 0.975)).tolist()
    return {"mean": float(mine.mean() / adam.mean()), "low": low, "high": high}


def _alarms(mine: Sequence[Record], defaults: Mapping[str, Record]) -> list[str]:
    """Where the score rises over the default and a judge falls, beyond the pictures' scatter."""
    gains = _gains(mine, defaults)
    judges = {name: values.tolist() for name, values in gains.items() if name.startswith("judge ")}
    looks = [
        Look(0, [0.0] * len(mine), {name: [0.0] * len(mine) for name in judges}),
        Look(1, gains["score"].tolist(), judges),
    ]
    return [
        f"ALARM: {mine[0]['method']}: the score rises by {alarm.score_rise:.4f} over the default while the held-out "
        f"{label_of(alarm.judge)} falls by {-alarm.judge_fall:.4g}: the reward may be hacked"
        for alarm in find_alarms(looks)
    ]


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `table_of_methods` as two tables (cost and gains, what judges say), and the alarms."""
    lines = [
        f"{'method':10}{'n':>4}{'renders':>9}{'s/image':>9}  {'reward gain [95 %]':29}{'score gain [95 %]':29}"
        f"{'of Adam’s reward gain':24}{'clipped':>9}{'over-saturated':>16}"
    ]
    for row in rows:
        gains, share = row["gains"], row["of_adam"]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        of_adam = "" if share is None else f"{100 * share['mean']:.0f} %" + _span(share, 100, 0)
        lines.append(
            f"{row['method']:10}{row['n']:>4}{'' if row['renders'] is None else row['renders']:>9}{seconds:>9}  "
            f"{_gain_text(gains.get('reward')):29}{_gain_text(gains['score']):29}{of_adam:24}"
            f"{100 * row['clipped']:>7.2f} %{100 * row['oversaturated']:>14.2f} %"
        )
    names = [name for name in rows[0]["gains"] if name not in ("reward", "score")]
    tuned = [row for row in rows if row["method"] != DEFAULT]
    if names and tuned:
        lines += ["", f"{'gain over the default':28}" + "".join(f"{row['method']:32}" for row in tuned)]
    for name in names if tuned else []:
        lines.append(f"{label_of(name):28}" + "".join(f"{_gain_text(row['gains'].get(name)):32}" for row in tuned))
    for row in rows:
        if row["behind_policy"] is not None:
            lines.append(f"the policy's reward gain minus that of {row['method']}: {_gain_text(row['behind_policy'])}")
    return "\n".join([*(line.rstrip() for line in lines), *(alarm for row in rows for alarm in row["alarms"])])


def label_of(name: str) -> str:
    """A figure's name in tables; a judge that is a file goes by its kind (``niqe:FILE``) or the file's stem."""
    kind, colon, _ = name.partition(":")
    if not name.startswith("judge ") or "/" not in name:
        return kind
    return kind if colon else f"judge {Path(name).stem}"


def _gain_text(gain: Mapping[str, float] | None) -> str:
    return "" if gain is None else f"{gain['mean']:+.4f}" + _span(gain, 1, 4)


def _span(gain: Mapping[str, float], factor: float, digits: int) -> str:
    return f" [{factor * gain['low']:.{digits}f}, {factor * gain['high']:.{digits}f}]" if "low" in gain else ""


def facts_of(record: Mapping[str, Any]) -> dict[str, str]:
    """A record's figures by name, as text."""
    figures = record["told"]
    facts = {} if record["curve"] is None else {"reward": f"{record['curve'][-1]:.4f}"}
    facts |= {"score": f"{figures['score']:.4f}"}
    facts |= {name: f"{value:.3f}" for name, value in figures["attributes"].items()}
    facts |= {label_of(f"judge {name}"): f"{value:.4g}" for name, value in figures["judges"].items()}
    facts |= {name: f"{100 * figures[name]:.2f} %" for name in ("clipped", "oversaturated")}
    if "error" in record:
        facts |= {"PSNR": f"{record['error']['psnr']:.2f} dB", "CIEDE2000": f"{record['error']['delta_e']:.2f}"}
    return facts if record["seconds"] is None else facts | {"seconds": f"{record['seconds']:.2f}"}
