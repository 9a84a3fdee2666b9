"""AttributeNet's encoders: timm's convolutional ones, the compact one of the default, SqueezeNet for a judge."""

import importlib
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

COMPACT = "mobilenet_v1"
SQUEEZENET = "squeezenet1_1"
_SQUEEZENET_AFTER_POOL = (2, 4, 6)  # fires that a max pool stands before
_COMPACT_BLOCKS = 12  # conv_pw_13 is not part of the trunk
# Under autocast the first blocks stay in fp32: most of what bf16 moves a score by is rounded off there.
_EXACT_BLOCKS = 4


class Backbone(nn.Module):
    """An encoder that returns the feature maps of several depths.

    Args:
        name: ``"mobilenet_v1"`` (the compact trunk, 12 taps, one per depthwise-separable block), ``"squeezenet1_1"``
            (9 taps: conv1, fire2 .. fire9) or the name of any timm model that supports ``features_only`` (one tap per
            stage; ``resnet50`` has five).
        taps: 1-based depths whose maps are returned, ascending.
        pretrained: start from timm's weights (a download unless cached); not for the first two, see
            `load_compact_trunk` and `load_squeezenet_trunk`.

    Attributes:
        channels: the channels of each returned map.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, taps: Sequence[int], *, pretrained: bool = False) -> None:
        super().__init__()
        self.name = name
        self.taps = tuple(taps)
        if pretrained and name in (COMPACT, SQUEEZENET):
            loader = load_compact_trunk if name == COMPACT else load_squeezenet_trunk
            raise ValueError(f"pretrained: {name} loads its weights from a file ({loader.__name__}), not from timm")
        if name == COMPACT:
            self.trunk: nn.Module = _CompactTrunk()
            depths: tuple[int, ...] = _CompactTrunk.channels
            mean, std = (0.5,) * 3, (0.5,) * 3
        elif name == SQUEEZENET:
            self.trunk = _SqueezeNetTrunk()
            depths = _SqueezeNetTrunk.channels
            mean, std = (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3
        elif not isinstance(name, str) or not timm.is_model(name):
            # Never "hf-hub:..." or "local-dir:...": the name may come from a file, and a file names no place.
            raise ValueError(f"backbone: expected {COMPACT}, {SQUEEZENET} or the name of a model of timm, got {name!r}")
        else:
            self.trunk = timm.create_model(name, features_only=True, pretrained=pretrained)
            depths = tuple(self.trunk.feature_info.channels())  # type: ignore[operator, union-attr]
            settings = timm.get_pretrained_cfg(name)
            mean, std = settings.mean, settings.std
        if (
            not self.taps
            or sorted(set(self.taps)) != list(self.taps)
            or not 1 <= self.taps[0] <= self.taps[-1] <= len(depths)
        ):
            raise ValueError(f"taps: expected ascending depths within 1..{len(depths)} of {name}, got {self.taps}")
        self.channels = tuple(depths[tap - 1] for tap in self.taps)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) sRGB in [0, 1] -> one (B, C_k, H_k, W_k) map per tap."""
        maps: list[Tensor] = self.trunk((images - self.mean) / self.std)
        return [maps[tap - 1] for tap in self.taps]

    def freeze(self, blocks: int) -> None:
        """Stop gradients to the stem, the first ``blocks`` blocks and every BatchNorm (compact trunk only)."""
        if not isinstance(self.trunk, _CompactTrunk):
            raise TypeError(f"freeze: only {COMPACT} counts its blocks, this is {self.name}")
        for module in (self.trunk.stem, *self.trunk.blocks[:blocks]):
            module.requires_grad_(False)
        for module in self.trunk.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)


class _CompactTrunk(nn.Module):
    """MobileNet v1 (Howard et al. 2017, arXiv 1704.04861) up to block 12, with the padding of its published weights.

    timm's ``mobilenetv1_100`` pads strided convolutions on both sides; the published weights were trained with one row
    and one column below and to the right. On odd sizes that differs from TensorFlow's SAME as well.
    """

    channels = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024)

    def __init__(self) -> None:
        super().__init__()
        net = timm.create_model("mobilenetv1_100")
        for module in net.modules():
            if isinstance(module, BatchNormAct2d):
                module.eps = 1e-3
        self.stem = nn.Sequential(_pad_below_right(net.conv_stem), net.bn1)
        blocks = [block for stage in net.blocks for block in stage][:_COMPACT_BLOCKS]
        self.blocks = nn.ModuleList(blocks)
        for block in blocks:
            block.conv_dw = _pad_below_right(block.conv_dw)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        with torch.autocast(images.device.type, enabled=False):
            x = self.stem(images.float())
            for block in self.blocks[:_EXACT_BLOCKS]:
                x = block(x)
                maps.append(x)
        for block in self.blocks[_EXACT_BLOCKS:]:
            x = block(x)
            maps.append(x)
        return maps


class _Fire(nn.Module):
    """SqueezeNet's module: 1x1 convolutions to an eighth of the channels, then 1x1 and 3x3 ones side by side."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, outside // 8, 1)
        self.expand1x1 = nn.Conv2d(outside // 8, outside // 2, 1)
        self.expand3x3 = nn.Conv2d(outside // 8, outside // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


class _SqueezeNetTrunk(nn.Module):
    """SqueezeNet 1.1 (Iandola et al. 2016, arXiv 1602.07360) without its classifier: conv1, then fire2 .. fire9."""

    channels = (64, 128, 128, 256, 256, 384, 384, 512, 512)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, self.channels[0], 3, stride=2), nn.ReLU())
        self.stages = nn.ModuleList()  # stages[k] is fire k + 2, after the pool before it if there is one
        for fire, (inside, outside) in enumerate(pairwise(self.channels), start=2):
            pools = [nn.MaxPool2d(3, stride=2)] if fire in _SQUEEZENET_AFTER_POOL else []
            self.stages.append(nn.Sequential(*pools, _Fire(inside, outside)))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.conv1(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class _PaddedConv2d(nn.Conv2d):
    """A stride-2 convolution that pads one pixel below and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def _pad_below_right(conv: nn.Conv2d) -> nn.Conv2d:
    if conv.stride == (1, 1):
        return conv
    return _PaddedConv2d(conv.in_channels, conv.out_channels, 3, stride=2, groups=conv.groups, bias=False)


def load_compact_trunk(backbone: Backbone, path: Path | str) -> None:
    """Fill the compact backbone from a safetensors file in the published naming: ``conv1``, ``conv_dw_1_bn`` ..."""
    if backbone.name != COMPACT:
        raise ValueError(f"backbone: expected {COMPACT}, got {backbone.name}")
    published = load_file(path)
    state = {}
    for key, value in published.items():
        layer, _, parameter = key.rpartition(".")
        state[f"{_compact_layer(layer)}.{parameter}"] = value
    own = {key for key in backbone.trunk.state_dict() if not key.endswith("num_batches_tracked")}
    if own != set(state):
        raise ValueError(
            f"{path}: expected the {len(own)} tensors of {COMPACT}; differing: {sorted(own ^ set(state))[:6]}"
        )
    backbone.trunk.load_state_dict(state, strict=False)


def _compact_layer(layer: str) -> str:
    """``conv_dw_3_bn`` -> ``blocks.2.bn1``."""
    if layer in ("conv1", "conv1_bn"):
        return "stem.0" if layer == "conv1" else "stem.1"
    match = re.fullmatch(r"conv_(dw|pw)_([1-9]\d*)(_bn)?", layer)
    if match is None:
        return layer  # none of ours, which the caller tells
    convolution, norm_layer = {"dw": ("conv_dw", "bn1"), "pw": ("conv_pw", "bn2")}[match[1]]
    return f"blocks.{int(match[2]) - 1}.{norm_layer if match[3] else convolution}"


def load_squeezenet_trunk(backbone: Backbone, path: Path | str) -> None:
    """Fill the SqueezeNet backbone from the Keras file of SqueezeNet 1.1 without top; needs ``h5py``.

    Kernels come as (H, W, in, out), and conv1 reads blue first; ours read (out, in, H, W) and red first.
    """
    if backbone.name != SQUEEZENET:
        raise ValueError(f"backbone: expected {SQUEEZENET}, got {backbone.name}")
    state = _read_keras(path)
    own = backbone.trunk.state_dict()
    wrong = sorted(set(own) ^ set(state) | {key for key in own if key in state and own[key].shape != state[key].shape})
    if wrong:
        raise ValueError(f"{path}: expected the {len(own)} tensors of {SQUEEZENET}; differing: {wrong[:6]}")
    backbone.trunk.load_state_dict(state)


def _read_keras(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a Keras file, by our names."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise ValueError(f"{path}: reading HDF5 needs h5py (pip install h5py)") from error
    found: dict[str, Tensor] = {}

    def take(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            layer = "/".join(name.split("/")[:2]) if name.startswith("fire") else name.split("/")[0]
            value = torch.from_numpy(item[()]).float()
            kernel = value.ndim == 4
            if kernel:
                value = value.permute(3, 2, 0, 1)
            if kernel and layer == "conv1":
                value = value.flip(1)
            found[f"{_squeezenet_layer(layer)}.{'weight' if kernel else 'bias'}"] = value.contiguous()

    try:
        with h5py.File(path, "r") as file:
            file.visititems(take)
    except OSError as error:
        raise ValueError(f"{path}: not an HDF5 file that can be read ({error})") from error
    return found


def _squeezenet_layer(layer: str) -> str:
    """``fire4/expand3x3`` -> ``stages.2.1.expand3x3``: a stage that begins with a pool has its fire second."""
    if layer == "conv1":
        return "conv1.0"
    match = re.fullmatch(r"fire([2-9])/(squeeze1x1|expand1x1|expand3x3)", layer)
    if match is None:
        return layer  # none of ours, which the caller tells
    fire = int(match[1])
    part = "squeeze" if match[2] == "squeeze1x1" else match[2]
    return f"stages.{fire - 2}.{int(fire in _SQUEEZENET_AFTER_POOL)}.{part}"


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every timm BatchNorm (eval mode) into the bias-free convolution before it, in place; exact up to rounding.

    An inference speed-up: no separate pass over each map for the normalisation.
    """
    for conv, norm_owner, norm_name in _conv_norm_pairs(module):
        norm = getattr(norm_owner, norm_name)
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        conv.weight = nn.Parameter(
            (conv.weight * scale[:, None, None, None]).detach(), requires_grad=conv.weight.requires_grad
        )
        conv.bias = nn.Parameter(
            (norm.bias - norm.running_mean * scale).detach(), requires_grad=conv.weight.requires_grad
        )
        activation = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
        setattr(norm_owner, norm_name, activation)


def _conv_norm_pairs(module: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Module, str]]:
    """Each convolution that a BatchNorm of as many channels follows at once, in registration order, in one parent."""
    pairs = []
    for parent in module.modules():
        children = list(parent.named_children())
        for (_, first), (name, second) in pairwise(children):
            if (
                isinstance(first, nn.Conv2d)
                and first.bias is None
                and isinstance(second, nn.BatchNorm2d)
                and first.out_channels == second.num_features
            ):
                pairs.append((first, parent, name))
    yield from pairs
