"""Why an image got its score, in words, and where, as a map over its pixels.

`saliency` points at the regions that move one number of an `Assessment`: for the score and the five attributes, those
that lower it (the defects); for a distortion, those that raise its strength (the cause). A map tells one region of an
image from the others, so it is relative to that image: two maps do not compare.
"""

import difflib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from attriqa.attributes import ATTRIBUTES
from attriqa.distortions import DISTORTION_KEYS
from attriqa.explain.tower_maps import tower_map
from attriqa.images import check, resize_shorter
from attriqa.models.attribute_net import AttributeNet
from attriqa.models.base import QualityModel

_WINDOW = 0.1  # standard deviation of the Gaussian window, of the shorter side
_CELL = 16  # pixels between windows, at the model's size
_SHARE = 0.5  # of the pooling weight, moved to a window and taken from it
_LEAST = 1e-3  # a map whose every region moves the output by less shows rounding, and is left empty
_VARIANCE_FLOOR = 1e-5  # the one of AttributeNet.pool

_Place = tuple[str, int, int]  # field of an Assessment, column, and 1 where more of it is bad, else -1


# Steps of 10 in CIE L*, from dark violet to pale yellow: as far apart to the eye as the values are.
_COLORS = (
    (42, 12, 85), (90, 7, 114), (141, 4, 118), (188, 26, 105), (223, 66, 81), (238, 113, 63), (235, 160, 90),
    (238, 198, 91), (248, 231, 143),
)  # fmt: skip


def find_output(of: str, distortions: Sequence[str] = DISTORTION_KEYS, attributes: Sequence[str] = ATTRIBUTES) -> str:
    """``of`` itself, once it is known to name something that a model says.

    Args:
        of: ``"score"``, one of ``attributes``, or one of ``distortions``.
        distortions: the keys of those that the model tells; empty: it has no head for them.
        attributes: the names of those that it tells.

    Raises:
        ValueError: it is none of them; the message suggests the nearest.
    """
    qualities = ("score", *attributes)
    if of in qualities or of in distortions:
        return of
    for kind, every, known in (("distortions", DISTORTION_KEYS, distortions), ("attributes", ATTRIBUTES, attributes)):
        if of in every and not known:
            raise ValueError(f"of: expected {', '.join(qualities)}, as this model tells no {kind}; got {of!r}")
    name = of.lower().replace("-", "_").replace(" ", "_")
    near = difflib.get_close_matches(name, (*qualities, *distortions), n=1, cutoff=0.4)
    known = ", ".join(qualities) + (" or a distortion's key" if distortions else "")
    raise ValueError(f"of: expected {known}, got {of!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def saliency(model: nn.Module, images: Tensor, of: str = "score") -> Tensor:
    """Where in each image the model finds what it says: defects for a quality, the cause for a distortion.

    *Convolutional models* (`AttributeNet`) read the mean and deviation of their maps. Around each position, half of the
    pooling weight is moved to a Gaussian window (a tenth of the shorter side) and, the other way, taken from it; the
    difference of the two readings is what the region contributes. It is a finite derivative with respect to the
    region's weight: a region like the image's average contributes nothing, and for small shares and windows it becomes
    gradient x (feature - mean), summed over the maps.

    *Models on CLIP* (vision transformers and ResNets of open_clip's own): `attriqa.explain.tower_maps.tower_map`. Where
    the model does not look, as outside of the centre square that CLIP's preprocessing cuts out, their map is zero.

    Args:
        model: an `AttributeNet`, or a module ``(B, 3, H, W) -> Assessment`` around an image tower of open_clip.
        images: ``(B, 3, H, W)`` sRGB in [0, 1], sides of at least 32 px.
        of: what is explained: ``"score"`` or an attribute (the map shows what **lowers** it), or the key of a
            distortion that the model tells (the map shows what **raises** its strength).

    Returns:
        ``(B, H, W)`` float32 in [0, 1] on the images' device; the most salient pixel of each image is 1, and a map
        is 0 everywhere where no region of the image makes a difference.

    Raises:
        ValueError: images or ``of`` are not as above, or the model cannot tell ``of`` or cannot be explained.
    """
    check(images)
    wide = images.detach().float()
    if isinstance(model, AttributeNet):
        find_output(of, model.distortions)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return torch.cat([_contributions(model, image[None], of) for image in wide])
    known = (ATTRIBUTES, DISTORTION_KEYS)
    attributes, distortions = (model.attributes, model.distortions) if isinstance(model, QualityModel) else known
    find_output(of, distortions, attributes)
    places: dict[str, _Place] = {"score": ("score", 0, -1)}
    places |= {name: ("attributes", index, -1) for index, name in enumerate(attributes)}
    places |= {key: ("distortions", index, 1) for index, key in enumerate(distortions)}
    return torch.cat([_seen_by_tower(model, image[None], places[of]) for image in wide])


def _contributions(net: AttributeNet, image: Tensor, of: str) -> Tensor:
    """(1, 3, H, W) -> (1, H, W): what each region adds to ``of`` where that is bad."""
    height, width = image.shape[2:]
    windows, overall = _window_statistics(net, resize_shorter(image, net.config.shorter_edge))
    apart = windows - overall  # (cells, D)
    added = _harm(net, overall + _SHARE * apart.flatten(0, 1), of) - _harm(
        net, overall - _SHARE * apart.flatten(0, 1), of
    )
    harm = added.view(1, 1, *apart.shape[:2]).clamp(min=0)
    return _to_unit(F.interpolate(harm, (height, width), mode="bilinear", align_corners=False)[:, 0])


def _window_statistics(net: AttributeNet, image: Tensor, window: float = _WINDOW) -> tuple[Tensor, Tensor]:
    """What `AttributeNet.pool` computes, under windows: (h, w, D) on a grid over the image, and (1, D) of the whole.

    Deviations are about the mean of the whole image, so that the windows' means and variances average to the whole's.
    """
    height, width = image.shape[2:]
    rows, columns = -(-height // _CELL), -(-width // _CELL)
    sigma = window * min(height, width)
    local, overall = [], []
    for features in net.backbone(image):
        x = features[0].float()  # (C, h, w)
        down = _windows(rows, x.shape[1], sigma / height, x)
        along = _windows(columns, x.shape[2], sigma / width, x)
        mean = x.mean((1, 2), keepdim=True)
        for moment in (x, (x - mean).square())[: 2 if net.config.statistics == "mean_std" else 1]:
            under, over = down @ moment @ along.T, moment.mean((1, 2))  # (C, rows, columns), (C,)
            if moment is not x:
                under, over = ((value + _VARIANCE_FLOOR).sqrt() for value in (under, over))
            local.append(under.permute(1, 2, 0))
            overall.append(over[None])
    mean, std = net.pooled_mean, net.pooled_std
    return (torch.cat(local, 2) - mean) / std, (torch.cat(overall, 1) - mean) / std


def _windows(cells: int, size: int, sigma: float, like: Tensor) -> Tensor:
    """Gaussian weights (cells, size) over a side of length 1, each row summing to 1."""
    at = (torch.arange(cells, device=like.device) + 0.5) / cells
    position = (torch.arange(size, device=like.device) + 0.5) / size
    return (-0.5 * ((at[:, None] - position) / sigma).square()).softmax(1).to(like)


def _harm(net: AttributeNet, pooled: Tensor, of: str) -> Tensor:
    """Standardised statistics (N, D) -> (N,), more is worse; before the functions that saturate, where there are."""
    if of in DISTORTION_KEYS:
        assert net.distortion_head is not None
        strengths: Tensor = net.distortion_head(pooled).strengths
        return strengths[:, DISTORTION_KEYS.index(of)]
    logits, raw = net.read(pooled)
    if of == "score":
        return -logits
    return -(raw / net.attribute_scale)[:, ATTRIBUTES.index(of)]


def _seen_by_tower(model: nn.Module, image: Tensor, place: _Place) -> Tensor:
    """(1, 3, H, W) -> (1, H, W): how much each place bears on an output where that is bad."""
    field, index, sign = place

    def harm(seen: Tensor) -> Tensor:
        values: Tensor | None = getattr(model(seen), field)
        if values is None:
            raise ValueError(f"of: {type(model).__name__} tells no {field}")
        return sign * values.view(1, -1)[0, index]

    return _to_unit(tower_map(model, image, harm), least=torch.finfo(torch.float32).tiny)


def _to_unit(maps: Tensor, least: float = _LEAST) -> Tensor:
    """(B, H, W) of at least 0 -> [0, 1]; a map that stays below ``least`` becomes 0."""
    most = maps.amax((1, 2), keepdim=True)
    return torch.where(most < least, 0.0, maps / most.clamp(min=least))


def overlay(image: Tensor, saliency_map: Tensor) -> NDArray[np.uint8]:
    """The image in gray with the map over it in colour, dark violet to pale yellow.

    Args:
        image: ``(3, H, W)`` sRGB in [0, 1].
        saliency_map: ``(H, W)`` in [0, 1]; the colour covers more where it is higher, and nothing at 0.

    Returns:
        ``(H, W, 3)`` bytes, ready for Pillow.

    Raises:
        ValueError: the shapes do not fit, or the map leaves [0, 1].
    """
    if image.ndim != 3 or image.shape[0] != 3 or saliency_map.shape != image.shape[1:]:
        raise ValueError(
            "image, saliency_map: expected (3, H, W) and (H, W), "
            f"got {tuple(image.shape)} and {tuple(saliency_map.shape)}"
        )
    value = saliency_map.detach().double().cpu().numpy()
    if not ((value >= 0) & (value <= 1)).all():
        raise ValueError(f"saliency_map: expected values in [0, 1], got {value.min():g} to {value.max():g}")
    weights = np.array([0.299, 0.587, 0.114])
    gray = np.tensordot(weights, image.detach().double().cpu().numpy(), 1)[..., None] * 255
    at = np.linspace(0, 1, len(_COLORS))
    color = np.stack([np.interp(value, at, [entry[channel] for entry in _COLORS]) for channel in range(3)], -1)
    cover = (0.65 * np.minimum(1, 3 * value) ** 0.5)[..., None]
    shown: NDArray[np.uint8] = (gray * (1 - cover) + color * cover).round().clip(0, 255).astype(np.uint8)
    return shown
