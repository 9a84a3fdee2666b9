"""Teachers: images -> scores of the five attributes, from which a student learns without human labels (ATTIQA 3.1).

A teacher's scores mean something by their order only: one attribute of two images may be compared, two attributes of
one image may not. Higher is always the positive prompt's side, so noisiness is high for a clean image.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from attriqa.attributes import ATTRIBUTES, PROMPT_PAIRS, prompt_texts, read_pairs, table_hash
from attriqa.images import check
from attriqa.judges import signal as signal_measures
from attriqa.models.clip.towers import CLIPEncoder, Preprocess, drop_positional_embedding

__all__ = [
    "CLIPEncoder",
    "CLIPTeacher",
    "Preprocess",
    "SignalTeacher",
    "Teacher",
    "drop_positional_embedding",
]


class Teacher(Protocol):
    """What a labelling recipe needs to know of a teacher."""

    @property
    def identity(self) -> str:
        """What made the labels, in one line: class, weights, prompts, options. Equal identities, equal labels."""

    @property
    def prompts_hash(self) -> str | None:
        """`attriqa.attributes.table_hash` of its prompts; ``None`` where it has none."""

    @property
    def shorter_edge(self) -> int | None:
        """Pixels: read files with ``attriqa.images.read(path, shorter_edge=...)``; ``None`` is their own size."""

    @property
    def size(self) -> tuple[int, int] | None:
        """``(height, width)`` of what `prepare` returns.

        ``None``: images keep their sizes, and only images of one size can share a batch.
        """

    def prepare(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> what the teacher looks at, (B, 3, h, w) in [0, 1].

        The part of the work that a loader's workers can do for each image alone. `__call__` does it too; done twice it
        changes nothing.
        """

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], prepared or not -> (B, 5) float32 in the order of `ATTRIBUTES`.

        The result is on the device of ``images`` and carries no gradient.

        Raises:
            ValueError: ``images`` break the contract of `attriqa.images.tensors.check`.
        """


class CLIPTeacher:
    """The zero-shot attributes of an open_clip model (ATTIQA, equations 1 and 2, after CLIP-IQA).

    The score of an attribute is the difference of two cosines, image to positive prompt minus image to negative prompt.
    The paper's softmax over the two, at any temperature, is a rising function of it: no order and no ranking loss
    changes, and nothing saturates.

    Args:
        model_name: as in `CLIPEncoder`; the paper's teacher is ``"ViT-B-16"``.
        pretrained: as in `CLIPEncoder`.
        pairs: attribute -> (positive, negative) adjective, or the ``prompts.json`` of ``training/select_prompts.py``.
        positional_embedding: as in `CLIPEncoder`. Without it, files of different sizes cannot share a batch.
        device: where the model lives and works.

    Raises:
        ValueError: as `CLIPEncoder`; ``pairs`` has other attributes or another order than `ATTRIBUTES`.
    """

    def __init__(
        self,
        model_name: str,
        pretrained: str | Path | None = None,
        *,
        pairs: Mapping[str, tuple[str, str]] | str | Path = PROMPT_PAIRS,
        positional_embedding: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        table = pairs if isinstance(pairs, Mapping) else read_pairs(pairs)
        if tuple(table) != ATTRIBUTES:
            raise ValueError(f"pairs: expected {', '.join(ATTRIBUTES)} in this order, got {', '.join(table)}")
        self.encoder = CLIPEncoder(model_name, pretrained, positional_embedding=positional_embedding, device=device)
        self.prompts_hash = table_hash(table)
        self.identity = f"CLIPTeacher({self.encoder.identity}, prompts={self.prompts_hash[:16]})"
        self.shorter_edge: int | None = None  # the model's own resize starts from the file's pixels
        self.size = self.encoder.size
        texts = [text for pair in prompt_texts(table) for text in pair]
        positive, negative = self.encoder.encode_text(texts).unflatten(0, (-1, 2)).unbind(1)  # (A, D) each
        self._directions = positive - negative

    def prepare(self, images: Tensor) -> Tensor:
        """As `Teacher.prepare`."""
        return self.encoder.prepare(images)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """As `Teacher.__call__`; each score is within [-2, 2], in practice within 0.1 of zero."""
        features = self.encoder.encode_image(images)
        with torch.autocast(features.device.type, enabled=False):
            scores: Tensor = features @ self._directions.T
        return scores.to(images.device)


class SignalTeacher:
    """Five classical measures, one per attribute (`attriqa.judges.signal`): no weights, no training, no prompts.

    Args:
        shorter_edge: pixels that files should be read at; ``None``, their own size. Sharpness and noisiness are
            measured in pixels: images of very different resolutions compare better at one size.
    """

    prompts_hash: str | None = None
    size: tuple[int, int] | None = None

    def __init__(self, shorter_edge: int | None = None) -> None:
        self.shorter_edge = shorter_edge
        self.identity = f"SignalTeacher(measures={signal_measures.VERSION}, shorter_edge={shorter_edge})"

    def prepare(self, images: Tensor) -> Tensor:
        """As `Teacher.prepare`: images stay as they are."""
        check(images)
        return images

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """As `Teacher.__call__`; the units are those of each measure."""
        check(images)
        pixels = images.float()
        return torch.stack([getattr(signal_measures, name)(pixels) for name in ATTRIBUTES], dim=1)


def teacher_of(
    name: str,
    device: torch.device,
    *,
    prompts: Path | None = None,
    positional_embedding: bool = True,
    shorter_edge: int | None = None,
) -> Teacher:
    """The teacher that a command line names.

    Args:
        name: ``"signal"`` or ``"clip:MODEL:PRETRAINED"``: a model of open_clip and its tag or local file;
            ``clip:hf-hub:ORG/REPO`` and ``clip:local-dir:FOLDER`` name both at once.
        device: where CLIP works.
        prompts: of CLIP: a ``prompts.json`` of training/select_prompts.py; `None`: the pairs that ATTIQA selected.
        positional_embedding: of CLIP; see `CLIPTeacher`.
        shorter_edge: of the signal teacher; see `SignalTeacher`.

    Raises:
        ValueError: ``name`` is none of these, or open_clip has no such weights.
    """
    kind, _, rest = name.partition(":")
    if name == "signal":
        return SignalTeacher(shorter_edge)
    if kind != "clip" or not rest:
        raise ValueError(f"teacher: expected signal or clip:MODEL:PRETRAINED, got {name}")
    model, _, weights = (rest, "", "") if rest.startswith(("hf-hub:", "local-dir:")) else rest.partition(":")
    pairs = prompts or PROMPT_PAIRS
    return CLIPTeacher(model, weights or None, pairs=pairs, positional_embedding=positional_embedding, device=device)
