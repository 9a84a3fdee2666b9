"""Where a model on CLIP looks: maps of what bears on an output, from open_clip's image towers, whatever stands on them.

Nothing is asked of the model but that it calls its tower: which part of an image each picture in the tower's batch
shows (resized, one of several crops, ...) is found out by showing the model an image whose colors are coordinates.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.models.clip.prompts import VisualPrompts


def tower_map(model: nn.Module, image: Tensor, harm: Callable[[Tensor], Tensor]) -> Tensor:
    """How much each place of an image bears on an output.

    In a vision transformer: gradient-weighted attention (Chefer et al., "Generic Attention-model Explainability", ICCV
    2021, equations 5 and 6), from the tokens that are read to the patches. A model that reads the class token and
    patches alike counts each by its gradient times its value. In a ResNet: Grad-CAM (Selvaraju et al., ICCV 2017) on
    its last maps. Where several crops overlap, the map is their mean; where none lies, it is 0.

    Args:
        model: images (1, 3, H, W) -> anything, through one image tower of open_clip.
        image: ``(1, 3, H, W)``.
        harm: what the model says of such an image, as a number that a map is wanted of.

    Returns:
        ``(1, H, W)``, at least 0.

    Raises:
        ValueError: the model has no such tower.
    """
    tower = _tower(model)
    places = _places(model, tower, image)
    wide = hasattr(tower, "class_embedding")
    relevance = _by_attention(model, tower, image, harm) if wide else _by_gradient(tower, image, harm)
    total, cover = torch.zeros_like(image[0, 0]), torch.zeros_like(image[0, 0])
    for part, (top, left, height, width) in zip(relevance, places, strict=True):
        rows, columns = slice(top, top + height), slice(left, left + width)
        total[rows, columns] += F.interpolate(part[None, None], (height, width), mode="bilinear")[0, 0]
        cover[rows, columns] += 1
    seen = cover > 0
    total = total / cover.clamp(min=1)
    low = total[seen].min()  # attention never vanishes: what every patch gets says nothing
    return torch.where(seen, total - low, 0.0)[None]


def _tower(model: nn.Module) -> Any:
    """The image tower of open_clip inside a model."""
    for part in model.modules():
        blocks = hasattr(part, "class_embedding") and any(isinstance(x, nn.MultiheadAttention) for x in part.modules())
        if blocks or (hasattr(part, "attnpool") and hasattr(part, "layer4")):
            return part
    raise ValueError(
        "model: expected an AttributeNet or a model on an open_clip vision transformer with a class token, or its "
        f"ResNet, got {type(model).__name__}"
    )


class _TowerReachedError(Exception):
    """What the tower is shown is known; the rest of the model need not run."""


def _entering(model: nn.Module, tower: Any, image: Tensor) -> Tensor:
    """What the tower is shown of an image: (K, 3, h, w), normalised."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _TowerReachedError

    handle = tower.conv1.register_forward_pre_hook(stop)
    try:
        with torch.no_grad():
            model(image)
    except _TowerReachedError:
        pass
    finally:
        handle.remove()
    if not seen:
        raise ValueError(f"model: expected one that calls its image tower, got {type(model).__name__}")
    return seen[0]


def _places(model: nn.Module, tower: Any, image: Tensor) -> list[tuple[int, int, int, int]]:
    """Top, left, height and width, in pixels of the image, of each picture that the tower is shown."""
    height, width = image.shape[2:]
    ramp = torch.zeros_like(image)
    ramp[:, 0] = ((torch.arange(width, device=image.device) + 0.5) / width).expand(height, width)
    ramp[:, 1] = ((torch.arange(height, device=image.device) + 0.5) / height)[:, None].expand(height, width)
    black, white, coordinates = (
        _entering(model, tower, shown) for shown in (torch.zeros_like(image), torch.ones_like(image), ramp)
    )
    shares = ((coordinates - black) / (white - black)).float()  # the normalisation taken back
    across = [_ends(line, width) for line in shares[:, 0].mean(1)]
    down = [_ends(line, height) for line in shares[:, 1].mean(2)]
    return [(top, left, tall, broad) for (top, tall), (left, broad) in zip(down, across, strict=True)]


def _ends(line: Tensor, side: int) -> tuple[int, int]:
    """Where coordinates, as shares of ``side`` pixels, begin, and how far they go; from their middle half."""
    count = len(line)
    first, last = count // 4, max(count // 4 + 1, (3 * count) // 4)
    pitch = (line[last] - line[first]).item() / (last - first)
    begin = line[first].item() - (first + 0.5) * pitch
    start = min(max(round(begin * side), 0), side - 1)
    return start, max(1, min(round((begin + count * pitch) * side), side) - start)


def _by_attention(model: nn.Module, tower: Any, image: Tensor, harm: Callable[[Tensor], Tensor]) -> Tensor:
    """(K, rows, columns): how much each patch of each picture raises ``harm`` through attention."""
    blocks = [part for part in tower.modules() if isinstance(part, nn.MultiheadAttention)]
    with (
        _outputs(tower.conv1) as patches,
        _explicit_attention(blocks) as seen,
        _last_tokens(tower) as last,
        torch.enable_grad(),
    ):
        value = harm(image.clone().requires_grad_())
        attention, tokens = tuple(seen), last[0]
        *gradients, to_tokens = torch.autograd.grad(value, (*attention, tokens))
    rows, columns = patches[0].shape[2:]
    own = 1 + rows * columns  # CLS and the patches; learnt prompts come after them
    kept = any(isinstance(part, VisualPrompts) and part.kind == "shallow" for part in model.modules())
    relevance = torch.eye(own, device=image.device)[:, 1:].expand(len(tokens), -1, -1)  # (K, T, N): of each patch
    for weights, gradient in zip(attention, gradients, strict=True):
        if not kept or relevance.shape[1] == own:  # prompts that enter here have seen no patch
            relevance = F.pad(relevance[:, :own], (0, 0, 0, weights.shape[-1] - own))
        relevance = relevance + (gradient * weights).detach().clamp(min=0).mean(1) @ relevance
    reading = _reading((to_tokens * tokens)[:, :own].sum(2).detach(), to_tokens[:, :own])
    shown: Tensor = reading[:, None] @ relevance[:, :own]
    return shown.view(-1, rows, columns)


def _reading(merit: Tensor, gradient: Tensor) -> Tensor:
    """(K, T): how much of what each token says is read."""
    alive = gradient.abs().amax((0, 2)) > 0
    even = torch.zeros_like(merit)
    if not alive[1:].any():
        even[:, 0] = 1  # the class token alone
    elif not alive[0]:
        even[:, 1:] = 1 / (merit.shape[1] - 1)  # the mean of the patches
    else:
        even = merit.clamp(min=0) / merit.clamp(min=0).sum().clamp(min=torch.finfo(torch.float32).tiny)
    return even


def _by_gradient(tower: Any, image: Tensor, harm: Callable[[Tensor], Tensor]) -> Tensor:
    """(K, rows, columns): Grad-CAM on the last maps of a ResNet."""
    with _outputs(tower.layer4) as maps, torch.enable_grad():
        value = harm(image.clone().requires_grad_())
        (gradient,) = torch.autograd.grad(value, maps[0])
    cam: Tensor = (gradient.mean((2, 3), keepdim=True) * maps[0]).sum(1).detach()
    return cam.clamp(min=0).float()


@contextmanager
def _outputs(part: nn.Module) -> Iterator[list[Tensor]]:
    """While inside, what the part gives is in the list."""
    seen: list[Tensor] = []
    handle = part.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _last_tokens(tower: Any) -> Iterator[list[Tensor]]:
    """While inside, what the last block says is in the list, (K, T, D)."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
        # The copy that goes on is the one that a gradient is asked of, in the order that is wanted.
        first = output if tower.transformer.batch_first else output.transpose(0, 1)
        tokens = first.clone()
        seen.append(tokens)
        return tokens if tower.transformer.batch_first else tokens.transpose(0, 1)

    handle = tower.transformer.resblocks[-1].register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _explicit_attention(blocks: Sequence[nn.MultiheadAttention]) -> Iterator[list[Tensor]]:
    """While inside, the blocks' attention weights (B, heads, T, T) are in the graph and in the list, in order.

    open_clip asks torch for no weights, and torch's fused attention has none to give.
    """
    seen: list[Tensor] = []

    def replace(
        block: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: object
    ) -> tuple[Tensor, None]:
        assert isinstance(block, nn.MultiheadAttention)
        if kwargs.get("attn_mask") is not None or args[0] is not args[1]:
            raise ValueError("model: expected self-attention without a mask in its vision transformer")
        x = args[0] if block.batch_first else args[0].transpose(0, 1)  # (B, T, D)
        query, key, values = (
            part.unflatten(2, (block.num_heads, -1)).transpose(1, 2)  # (B, heads, T, D / heads)
            for part in F.linear(x, block.in_proj_weight, block.in_proj_bias).chunk(3, 2)
        )
        weights = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(3)
        seen.append(weights)
        mixed = block.out_proj((weights @ values).transpose(1, 2).flatten(2))
        return (mixed if block.batch_first else mixed.transpose(0, 1)), None

    handles = [block.register_forward_hook(replace, with_kwargs=True) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
