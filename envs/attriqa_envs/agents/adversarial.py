"""Examples that a score is wrong about, found by tuning an ISP for it: for `training/adversarial_heads.py`."""

import numpy as np
import torch
from torch import Tensor

from attriqa.distortions import develop, draw_departure
from attriqa.training.adversarial import Pool, Read
from attriqa_envs.agents.search import Objective, adam
from attriqa_envs.isp import render
from attriqa_envs.isp.color import decode
from attriqa_envs.tuning import TuningTask

FAR = 0.2  # root mean square difference of display values from which pictures of a scene count as wholly different
_SHARE_DEPARTED = 2 / 3


def tuned(
    squares: Tensor, pool: Pool, read: Read, rng: np.random.Generator, *, renders: int, levels: int, chunk: int
) -> dict[str, Tensor]:
    """Each pristine photo, and what Adam through the ISP makes of it for the score, as a ramp of one scene.

    Two of three photos depart before they are tuned (casts, exposure, contrast, saturation, sharpness at once), so that
    tuning can undo it: a level is one minus the distance to the pristine photo, whichever way a rendering came there.

    Args:
        squares: ``(N, 3, S, S)`` in [0, 1].
        pool: the encoder.
        read: the heads for which the ISP is tuned.
        rng: of the departures.
        renders: of Adam per photo.
        levels: renderings per ramp: the photo, then even steps to the best, in the ISP's parameters.
        chunk: images at once in the encoder.

    Returns:
        ``ramps`` raw statistics (N, levels, D) fp16; ``levels`` (N, levels); ``gain`` (N,), the change of the logit
        from the photo to the last.
    """
    ramps, nearness = [], []
    task = TuningTask(distance_weight=0.0, clipping_weight=0.0)
    for part in squares.split(chunk):
        severity = rng.uniform(0, 1, len(part)) * (rng.random(len(part)) < _SHARE_DEPARTED)
        departures = torch.stack([draw_departure("mixed", rng) * share for share in severity])
        linear = decode(develop(part, departures.to(part))).half()
        best = adam(Objective(linear, lambda pictures, rows: read(pool(pictures)), task, batch=chunk), renders)
        with torch.no_grad():
            shares = torch.linspace(0, 1, levels)[1:]
            made = [part, *(render(linear.float(), (share * best.params).to(part)) for share in shares)]
            off = torch.stack([(one - part).square().mean((1, 2, 3)).sqrt() for one in made], 1)
            ramps.append(torch.stack([pool(one).half().cpu() for one in made], 1))
        nearness.append(1 - (off / FAR).clamp(max=1).cpu())
    together = torch.cat(ramps)
    with torch.no_grad():
        gain = (read(together[:, -1]) - read(together[:, 0])).cpu()
    return {"ramps": together, "levels": torch.cat(nearness), "gain": gain}
