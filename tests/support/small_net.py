"""A small AttributeNet with random weights, for tests that need a model and not its opinion."""

from pathlib import Path

import torch

from attriqa.models import AttributeNet, AttributeNetConfig

CONFIG = AttributeNetConfig(
    backbone="mobilenet_v1",
    taps=(3, 5, 7, 9, 11, 12),
    statistics="mean_std",
    head_width=32,
    regressor_width=0,
    shorter_edge=96,
    crop=80,
)


def build(seed: int = 0) -> AttributeNet:
    """The net in eval mode; its BatchNorms have seen a few batches, its scores spread over (0, 1)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = AttributeNet(CONFIG).train()
        batches = [torch.rand(4, 3, 3, 3) for _ in range(4)]
        smooth = [torch.nn.functional.interpolate(batch, size=(96, 96), mode="bilinear") for batch in batches]
        with torch.no_grad():
            for _ in range(5):
                for batch in smooth:
                    net.pool((batch + 0.1 * torch.randn_like(batch)).clamp(0, 1))
            net.eval()
            pooled = torch.cat([net.pool(batch) for batch in smooth])
            net.pooled_mean.copy_(pooled.mean(0))
            net.pooled_std.copy_(pooled.std(0) + 0.05)
            net.calibrate_attributes(net.read(net.pool(torch.cat(smooth)))[1])
    return net


def save(path: Path, seed: int = 0, **provenance: object) -> Path:
    """Write the net of `build` as a checkpoint."""
    build(seed).save(path, provenance)
    return path
