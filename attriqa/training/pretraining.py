"""What pretraining stands on: teachers by name, an AttributeNet's start and raw heads, losses over all processes."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import timm
import torch
from torch import Tensor, nn

from attriqa.attributes import ATTRIBUTES
from attriqa.evaluation import metrics
from attriqa.models import checkpoint
from attriqa.models.attribute_net import COMPACT_CONFIG, AttributeNet, AttributeNetConfig
from attriqa.training.loop import gather_rows
from attriqa.training.losses import margin_ranking


def shape_of(encoder: str) -> AttributeNetConfig:
    """The net on an encoder: ``"compact"``, or a name of timm, whose last stage is pooled (ATTIQA's ResNet-50).

    Raises:
        ValueError: timm has no such encoder, or not as one that gives feature maps.
    """
    if encoder == "compact":
        return COMPACT_CONFIG
    try:
        with torch.random.fork_rng(devices=[]):  # layers draw their initial values from the global generator
            info = timm.create_model(encoder, features_only=True).feature_info
    except Exception as error:  # timm raises what its entry points raise
        raise ValueError(
            f"net: expected compact or a timm encoder with feature maps, got {encoder} ({error})"
        ) from error
    return AttributeNetConfig(backbone=encoder, taps=(len(info.channels()),))


def start_from(net: AttributeNet, path: Path | str, prompts_hash: str | None) -> None:
    """Fill ``net`` from a checkpoint.

    Raises:
        attriqa.models.checkpoint.CheckpointError: it is of another architecture, configuration or prompt table than
            ``prompts_hash``; both sides are named.
    """
    saved = checkpoint.load(path)
    if saved.architecture != AttributeNet.__name__:
        raise checkpoint.CheckpointError(
            path, f"expected a checkpoint of {AttributeNet.__name__}, got {saved.architecture}"
        )
    mine = asdict(net.config) | {"taps": list(net.config.taps)}
    differing = [
        f"{key}: {saved.config.get(key)!r} there, {mine.get(key)!r} here"
        for key in {**saved.config, **mine}
        if saved.config.get(key) != mine.get(key)
    ]
    if differing:
        raise checkpoint.CheckpointError(path, f"of another {AttributeNet.__name__} ({'; '.join(differing)})")
    checkpoint.check_prompts(saved.prompts_hash, prompts_hash, path)
    checkpoint.load_into(net, saved.state, path)


@torch.no_grad()
def standardise(net: AttributeNet, batches: Iterable[Tensor]) -> None:
    """Give the heads inputs of mean 0 and deviation 1 over some photos, in place, the net in eval mode.

    The statistics of a trained encoder differ from one another by orders of magnitude.

    Args:
        net: with an encoder that has seen training.
        batches: of images (B, 3, H, W) in [0, 1], two images or more in all.
    """
    net.eval()
    pooled = torch.cat([net.pool(images) for images in batches]) * net.pooled_std + net.pooled_mean
    net.pooled_mean.copy_(pooled.mean(0))
    net.pooled_std.copy_(pooled.std(0) + 0.02)  # some channels hardly move


class RawHeads(nn.Module):
    """The net up to its heads' unbounded outputs, which the losses want, in one forward (for data parallelism)."""

    def __init__(self, net: AttributeNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 5) float32."""
        pooled = self.net.pool(images.contiguous(memory_format=torch.channels_last))
        with torch.autocast(images.device.type, enabled=False):
            return self.net.read(pooled)[1]

    def learn(self, *, freeze_norm: bool) -> None:
        """Go to train mode; with ``freeze_norm``, BatchNorm goes on using the statistics that it has."""
        self.train()
        for module in self.modules() if freeze_norm else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


class Objective:
    """The loss of a batch of all processes, summed over the attributes that learn.

    Args:
        kind: ``"ranking"``: margin ranking over all pairs of the batch, their mean per attribute (ATTIQA, equation 4);
            ``"l2"``: its ablation, the squared distance to standardised targets.
        attributes: names of those that learn.
        margin: of the ranking, in units of a head's output.
        tau: with ``"l2"``: the targets are ``sigmoid(tau * label)``, equation 2 where a label is the difference of two
            cosines; 0: the labels themselves. No order depends on it, hence no ranking.
        known: (N, 5) labels whose targets' mean and deviation standardise those of ``"l2"``.
    """

    def __init__(
        self,
        kind: Literal["ranking", "l2"],
        attributes: Sequence[str],
        *,
        margin: float = 0.1,
        tau: float = 0.0,
        known: Tensor | None = None,
    ) -> None:
        if (kind == "l2") != (known is not None):
            raise ValueError(f"known: expected labels with l2 and none with ranking, got {type(known).__name__}")
        self.kind = kind
        self.columns = [ATTRIBUTES.index(name) for name in attributes]
        self.margin = margin
        self.tau = tau
        if known is not None:
            target = self._squashed(known)
            self.mean, self.std = target.mean(0), target.std(0).clamp(min=1e-12)

    def _squashed(self, labels: Tensor) -> Tensor:
        return torch.sigmoid(self.tau * labels) if self.tau else labels

    def __call__(self, raw: Tensor, labels: Tensor) -> Tensor:
        """Outputs and labels (B, 5) of this process' images -> the loss over all processes' images, a scalar."""
        raw, labels = gather_rows(raw), gather_rows(labels)
        if self.kind == "l2":
            wanted = (self._squashed(labels) - self.mean.to(labels)) / self.std.to(labels)
            return (raw - wanted)[:, self.columns].square().mean(0).sum()
        return torch.stack([margin_ranking(raw[:, a], labels[:, a], self.margin) for a in self.columns]).sum()


def order_accuracy(raw: Tensor, labels: Tensor, attributes: Sequence[str]) -> dict[str, float]:
    """How well heads order images as their labels do.

    Args:
        raw: (N, 5) outputs.
        labels: (N, 5).
        attributes: names of those that are wanted.

    Returns:
        Attribute -> share of all pairs of images with different labels that the head orders likewise, in [0, 1]; equal
        outputs count half. An attribute in which all labels are equal is left out.
    """
    first, second = np.triu_indices(len(raw), 1)
    found = {}
    for name in attributes:
        ours, theirs = (values[:, ATTRIBUTES.index(name)].double().numpy() for values in (raw, labels))
        differ = theirs[first] != theirs[second]
        if differ.any():
            i, j = first[differ], second[differ]
            found[name] = metrics.pair_accuracy(ours[i], ours[j], theirs[i], theirs[j])
    return found
