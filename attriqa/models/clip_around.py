"""Learnt words on both sides of a text, as CLIP-IQA+ has them."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from attriqa.models.clip_prompts import TextContext


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

    def forward(self, model: nn.Module) -> Tensor:
        """As `TextContext`: ``(N, E)``, not normalised."""

        def insert(module: nn.Module, args: object, embedded: Tensor) -> Tensor:
            where = self.places[:, :, None].expand(-1, -1, embedded.shape[2])
            return embedded.scatter(1, where, self.context.to(embedded.dtype).expand_as(where))

        clip = cast(Any, model)
        handle = getattr(clip, "text", clip).token_embedding.register_forward_hook(insert)
        try:
            return cast(Tensor, clip.encode_text(self.tokens))
        finally:
            handle.remove()
