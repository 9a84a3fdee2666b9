"""What can be learnt inside a frozen CLIP: tokens among those of its image tower, words in front of its texts.

Neither class holds the towers. They are passed in, so that a model's state has them once, under open_clip's own names.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PromptKind = Literal["none", "shallow", "deep", "first"]

_CONTEXT_STD = 0.02
_LEAST_TOKENS = 4  # of a text: start, a word, the full stop, end


class VisualPrompts(nn.Module):
    """A vision transformer of open_clip with learnt tokens beside its own (ExIQA, equations 3 to 5; MP-IQE, 7).

    The tower's own tokens are CLS and the patches, after positions and ``ln_pre``. Prompts come after them and have no
    position. Where they stand makes no difference: without positions, attention and MLP do not see the order of tokens,
    so that these are MP-IQE's prompts between CLS and patches, too.

    Args:
        tower: ``model.visual`` of open_clip, for its sizes; it is not kept.
        prompts: tokens, K; 0 with ``"none"``.
        kind: ``"shallow"``: K prompts enter block 1 and go through all blocks (3). ``"deep"``: each block gets K of its
            own, and what it makes of them is dropped (4, 5). ``"first"``: as deep, in block 1 alone. ``"none"``: the
            tower as it is.
        seed: of the start values, uniform within ``sqrt(6 / (3 P^2 + D))`` for patches of P px and D channels
            (Jia et al., "Visual Prompt Tuning", ECCV 2022).

    Raises:
        ValueError: the tower is of another kind, or ``prompts`` does not fit ``kind``.
    """

    def __init__(self, tower: nn.Module, prompts: int = 0, kind: PromptKind = "none", *, seed: int = 0) -> None:
        super().__init__()
        check_tower(tower)
        if kind not in ("none", "shallow", "deep", "first"):
            raise ValueError(f"kind: expected none, shallow, deep or first, got {kind!r}")
        if (prompts > 0) != (kind != "none") or prompts < 0:
            wanted = "0" if kind == "none" else "at least 1"
            raise ValueError(f"prompts: expected {wanted} for {kind} prompts, got {prompts}")
        self.kind = kind
        self.prompts: nn.Parameter | None = None  # (layers, K, D)
        if prompts:
            vit = cast(Any, tower)
            (down, across), width = vit.conv1.kernel_size, vit.conv1.out_channels
            layers = len(vit.transformer.resblocks) if kind == "deep" else 1
            bound = (6 / (3 * down * across + width)) ** 0.5
            drawn = torch.rand(layers, prompts, width, generator=torch.Generator().manual_seed(seed))
            self.prompts = nn.Parameter((2 * drawn - 1) * bound)

    def hidden(self, tower: nn.Module, pixels: Tensor) -> Tensor:
        """The last block's output at the tower's own tokens.

        Args:
            tower: ``model.visual``.
            pixels: ``(B, 3, H, W)``, normalised, of the size that the tower wants.

        Returns:
            ``(B, 1 + N, D)``: CLS, then the patches row by row.
        """
        vit = cast(Any, tower)
        x = vit.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([vit.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
        x = vit.ln_pre(vit.patch_dropout(x + vit.positional_embedding.to(x.dtype)))
        own, layers = x.shape[1], 0 if self.prompts is None else len(self.prompts)
        for number, block in enumerate(vit.transformer.resblocks):
            if self.prompts is not None and number < layers:
                x = torch.cat([x[:, :own], self.prompts[number].to(x.dtype).expand(len(x), -1, -1)], 1)
            elif self.kind != "shallow":
                x = x[:, :own]
            x = _run(vit.transformer, block, x)
        return cast(Tensor, x[:, :own])

    def tokens(self, tower: nn.Module, pixels: Tensor) -> Tensor:
        """As `hidden`, after ``ln_post`` and the projection into the space of the texts: ``(B, 1 + N, E)``."""
        return project(tower, cast(Any, tower).ln_post(self.hidden(tower, pixels)))

    def forward(self, tower: nn.Module, pixels: Tensor) -> Tensor:
        """The image's features ``(B, E)``; without prompts, what ``model.encode_image`` gives. As `hidden`."""
        return pool(tower, self.hidden(tower, pixels))


def pool(tower: nn.Module, hidden: Tensor) -> Tensor:
    """An image's features ``(B, E)``, as the tower makes them of its last block's output ``(B, 1 + N, D)``."""
    vit = cast(Any, tower)
    if vit.pool_type == "tok":
        return project(tower, vit.ln_post(hidden[:, :1])[:, 0])
    if vit.final_ln_after_pool:
        return project(tower, vit.ln_post(hidden[:, 1:].mean(1)))
    return project(tower, vit.ln_post(hidden)[:, 1:].mean(1))


def check_tower(tower: nn.Module) -> None:
    """Refuse, with a ``ValueError``, an image tower that prompts cannot enter."""
    name = type(tower).__name__
    if name != "VisionTransformer" or not hasattr(tower, "class_embedding"):
        raise ValueError(f"tower: expected a vision transformer of open_clip's own, got its {name}")
    if getattr(tower, "attn_pool", None) is not None:
        raise ValueError(f"tower: expected pooling by the class token or the mean, got a {name} with attention pooling")
    if tower.pool_type not in ("tok", "avg"):
        raise ValueError(f"tower: expected pooling by the class token or the mean, got {tower.pool_type!r}")


def _run(transformer: Any, block: nn.Module, x: Tensor) -> Tensor:
    """One block on (B, T, D); its activations are computed again in backward where open_clip was asked to do so."""
    x = x if transformer.batch_first else x.transpose(0, 1)
    again = transformer.grad_checkpointing and torch.is_grad_enabled()
    y = checkpoint(block, x, use_reentrant=False) if again else block(x)
    return cast(Tensor, y if transformer.batch_first else y.transpose(0, 1))


def project(tower: nn.Module, x: Tensor) -> Tensor:
    """``(..., D)`` after ``ln_post`` -> ``(..., E)``, the space of the texts."""
    projection = cast(Any, tower).proj
    return x if projection is None else cast(Tensor, x @ projection)


class TextContext(nn.Module):
    """Learnt words in front of class names: ``[V]_1 ... [V]_M name.`` (Zhou et al., CoOp, IJCV 2022; MP-IQE, 6).

    All names share the M vectors.

    Args:
        model: an open_clip model, for its sizes; it is not kept.
        tokenize: its tokenizer, one of open_clip's own vocabulary.
        names: N classes.
        context: vectors, M.
        seed: of the start values, normal with standard deviation 0.02.

    Raises:
        ValueError: the text tower or the tokenizer is of another kind, or context or a name is too long.
    """

    tokens: Tensor

    def __init__(
        self,
        model: nn.Module,
        tokenize: Callable[[list[str]], Tensor],
        names: Sequence[str],
        context: int,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        embedding, end = _embedding(model), getattr(tokenize, "eot_token_id", None)
        if end is None:
            kind = type(tokenize).__name__
            raise ValueError(f"tokenize: expected a tokenizer with open_clip's own vocabulary, got a {kind}")
        if context < 1 or not names:
            raise ValueError(f"context, names: expected at least 1 each, got {context} and {len(names)}")
        tokens = tokenize([f"{name}." for name in names])  # (N, L): start, words, end, padding
        length = tokens.shape[1]
        if context > length - _LEAST_TOKENS:
            most = length - _LEAST_TOKENS
            raise ValueError(f"context: expected at most {most} in texts of {length} tokens, got {context}")
        for name, row in zip(names, tokens, strict=True):
            used = int((row == end).int().argmax()) + 1
            if used + context > length:
                raise ValueError(
                    f"names: expected at most {length - context} tokens beside {context} of context, "
                    f"got {used} or more in {name!r}"
                )
        # Any token of the text holds the places of the context: it is neither start, end nor padding.
        place = tokens[:, 1:2].expand(-1, context)
        self.register_buffer("tokens", torch.cat([tokens[:, :1], place, tokens[:, 1:-context]], 1), persistent=False)
        drawn = torch.randn(context, embedding.embedding_dim, generator=torch.Generator().manual_seed(seed))
        self.context = nn.Parameter(_CONTEXT_STD * drawn)

    def forward(self, model: nn.Module) -> Tensor:
        """The features of the N texts, ``(N, E)``, not normalised; ``model`` as above.

        open_clip's text towers differ in masks, pooling and projection, but all begin with one embedding of tokens:
        there the context takes its place.
        """
        handle = _embedding(model).register_forward_hook(lambda _, __, embedded: self._inserted(embedded))
        try:
            return cast(Tensor, cast(Any, model).encode_text(self.tokens))
        finally:
            handle.remove()

    def _inserted(self, embedded: Tensor) -> Tensor:
        """The embedded tokens of all texts (N, L, D) with the context in its place."""
        context = self.context.to(embedded.dtype).expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :1], context, embedded[:, 1 + len(self.context) :]], 1)


def _embedding(model: nn.Module) -> nn.Embedding:
    found = getattr(getattr(model, "text", model), "token_embedding", None)
    if not isinstance(found, nn.Embedding):
        kind = type(getattr(model, "text", model)).__name__
        raise ValueError(f"model: expected a text transformer of open_clip's own, got its {kind}")  # noqa: TRY004
    return found


class AroundContext(TextContext):
    """Learnt words on both sides of a text: ``[V]_1 ... [V]_8 Good photo. [V]_9 ... [V]_16``.

    Source: Wang, Chan and Loy, "Exploring CLIP for Assessing the Look and Feel of Images" (AAAI 2023).

    CLIP-IQA's code reads the text with another full stop behind it, which belongs behind the context but for a text
    that ends with one: the two stops are one word of CLIP's vocabulary, and it stays with the text. So it is here.

    Args:
        model: as in `TextContext`, and the next three.
        tokenize: its tokenizer.
        names: N texts.
        context: vectors, M; half of them, rounded down, come first.
        shared: by all texts; else each has M of its own.
        seed: of the start values, normal with standard deviation 0.02.

    Raises:
        ValueError: as `TextContext`.
    """

    places: Tensor

    def __init__(
        self,
        model: nn.Module,
        tokenize: Callable[[list[str]], Tensor],
        names: Sequence[str],
        context: int,
        *,
        shared: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(model, tokenize, names, context, seed=seed)
        if not shared:
            drawn = torch.randn(len(names), *self.context.shape, generator=torch.Generator().manual_seed(seed))
            self.context = nn.Parameter(0.02 * drawn)
        half, length = context // 2, self.tokens.shape[1]
        words = (tokenize(list(names)) == cast(Any, tokenize).eot_token_id).int().argmax(1) - 1  # of each text
        order, places = [], []
        for count in words.tolist():
            text, rest = range(1 + context, 1 + context + count), range(1 + context + count, length)
            order.append([*range(1 + half), *text, *range(1 + half, 1 + context), *rest])
            places.append([*range(1, 1 + half), *range(1 + half + count, 1 + context + count)])
        self.tokens = self.tokens.gather(1, torch.tensor(order))
        self.register_buffer("places", torch.tensor(places), persistent=False)  # (N, M)

    def _inserted(self, embedded: Tensor) -> Tensor:
        where = self.places[:, :, None].expand(-1, -1, embedded.shape[2])
        return embedded.scatter(1, where, self.context.to(embedded.dtype).expand_as(where))
