"""QualityReward: a frozen quality model as a differentiable reward."""

import copy
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attriqa import images as image_io
from attriqa.models import Loaded, QualityModel, load_with_provenance
from attriqa.models.assessment import Assessment
from attriqa.models.clip.towers import weights_hash
from attriqa.models.views import View
from attriqa.reward.compose import Reward
from attriqa.reward.guard import Guard, GuardedModel, draw_boxes

_CPU_BYTES = 198_000_000  # of activations, forward, on a CPU: more leave its caches, which is slower
_WINDOW = 32  # files decoded ahead of the model


class FileScore(NamedTuple):
    """One file's result; ``error`` is ``None`` exactly when the file was scored."""

    path: str
    score: float | None
    attributes: tuple[float, ...] | None  # in the order of ATTRIBUTES, if the model tells them
    error: str | None
    distortions: tuple[float, ...] | None = None  # strengths in the order of DISTORTION_KEYS, if the model tells them

    @property
    def values(self) -> tuple[float, ...]:
        """All numbers in the order of the reward's ``names``; empty with an error."""
        return () if self.score is None else (self.score, *(self.attributes or ()), *(self.distortions or ()))


class QualityReward(Reward):
    """How good images are, as a reward: ``reward(images) -> (B,)``, higher is better, differentiable.

    The weights are frozen and the model stays in eval mode, whatever ``train()`` or ``requires_grad_()`` of an
    enclosing module asks; gradients reach the images, always, and never the weights. The same image gets the same
    score in any batch (1e-5 in fp32).

    Args:
        model: weights inside the package: ``"default"``, which measures, ``"robust"``, the same network trained to be
            optimised, ``"judge"``; the path of a checkpoint of any kind, or a name as `attriqa.load` takes it; or a
            model, of which a copy is used.
        attribute_weights: what the reward is made of, e.g. ``{"score": 1, "sharpness": 0.3, "jpeg": -0.2}``: names
            among ``"score"`` and the attributes and distortions that the model tells (``names``), finite weights; a
            distortion's strength is no merit, so a negative one keeps it away. The reward is the weighted sum over the
            sum of absolute weights, so it stays within [-1, 1], and within [0, 1] where no weight is negative.
            ``"score"`` counts 1 unless given. ``None``: the score alone.
        view: ``"five_crop"``: mean over four corners and the centre, the view that the default was tested with;
            ``"full"``: the whole image at the model's shorter edge, 3.5 times fewer pixels for the encoder;
            ``"native"``: the same, but small images are not scaled up, which a model takes for blur; ``"own"``: what
            the model cuts out by itself, as CLIP's preprocessing does. ``None``: the model's usual one,
            ``"five_crop"`` for an `AttributeNet`, ``"own"`` for a model on CLIP.
        device: where the model is put.
        dtype: ``torch.float32``, or ``torch.bfloat16`` / ``torch.float16`` to run the encoder under autocast (the
            first blocks and the heads stay in fp32). Faster, but scores of photos move by up to 0.01.
        memory_mib: budget for activations in MiB. A batch that needs more is worked on in chunks, and in the backward
            pass each chunk's forward is computed again. One image is never split; in fp32 a photo takes 160 MiB,
            with gradients 540 MiB, at ``"five_crop"``.
        guard: makes the reward harder to fool, at a price: a lower bound over several models, random looks, bounds on
            attributes; see `attriqa.reward.guard.Guard`.

    Attributes:
        identity: model, hash of its weights, view and guard; scores are comparable when it is equal.
        names: what the model tells of an image: ``"score"`` and, as far as it does, attributes and distortions; for the
            default `ATTRIBUTES` and `DISTORTION_KEYS`.
        attributes: names of the attributes among them.

    Raises:
        ValueError: an argument is none of the above, or the model has not learnt to score.
    """

    def __init__(
        self,
        model: str | Path | QualityModel = "default",
        *,
        attribute_weights: Mapping[str, float] | None = None,
        view: View | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        memory_mib: int = 512,
        guard: Guard | None = None,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype: expected torch.float32, torch.bfloat16 or torch.float16, got {dtype}")
        if memory_mib < 1:
            raise ValueError(f"memory_mib: expected at least 1, got {memory_mib}")
        loaded = _copied(model) if isinstance(model, QualityModel) else load_with_provenance(model)
        self.model = loaded.model if guard is None else GuardedModel(loaded.model, guard)
        self.view: View = self.model.views[0] if view is None else view
        if self.view not in self.model.views:
            raise ValueError(f"view: expected {' or '.join(self.model.views)} of this model, got {view!r}")
        if not self.model.has_score:
            raise ValueError(f"model: expected one that has learnt to score; {loaded.stem} tells distortions alone")
        self.dtype = dtype
        self.memory_mib = memory_mib
        self.names, self.attributes = self.model.names, self.model.attributes
        self._weights = _checked_weights(attribute_weights, self.names)
        self.provenance = loaded.provenance
        self.identity = f"{loaded.stem}-{loaded.sha256[:12]}/{self.view}"
        if isinstance(self.model, GuardedModel):
            self.identity += f"/guard-{self.model.identity}"
        self.model.prepare()
        _parameters_to_buffers(self.model)
        self.model.to(device=device).to(memory_format=torch.channels_last)
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Stay frozen."""
        return self

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Reward of each image.

        Args:
            images: ``(B, 3, H, W)`` floating, sRGB in [0, 1], sides of at least 32 pixels.
            generator: with a guard that has ``jitter_views``: draws where this call looks, the same for all images.

        Returns:
            ``(B,)`` float32, unreduced.

        Raises:
            ValueError: images are anything else; the message names what was expected and what came.
        """
        return self.weigh(self.assess(images, generator=generator))

    def weigh(self, assessment: Assessment) -> Tensor:
        """The reward of what `assess` gave, ``(B,)``: for those who want both from one forward."""
        if self._weights is None:
            reward = assessment.score
        else:
            values = _values(assessment)
            reward = values @ self._weights.to(values)
        return reward - self.model.penalty(assessment) if isinstance(self.model, GuardedModel) else reward

    def breakdown(self, images: Tensor, prompts: Sequence[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward, and what the model says of the images by its `names`; prompts are not looked at."""
        assessment = self.assess(images)
        columns = _values(assessment).detach().unbind(1)
        return self.weigh(assessment), dict(zip(self.names, columns, strict=True))

    def assess(self, images: Tensor, *, generator: torch.Generator | None = None) -> Assessment:
        """Score and attributes of each image, averaged over the view's crops; arguments and errors as in `forward`."""
        image_io.check(images)
        boxes = None
        if generator is not None:
            if not isinstance(self.model, GuardedModel) or not self.model.guard.jitter_views:
                raise ValueError("generator: expected a guard with jitter_views, where there is something to draw")
            boxes = draw_boxes(self.model.guard, generator)
        fitting, count = self._chunk(images)
        parts = [self._assess_chunk(chunk, boxes, recompute=fitting < len(images)) for chunk in images.split(count)]
        return Assessment.cat(parts)

    def _assess_chunk(self, images: Tensor, boxes: Tensor | None, recompute: bool) -> Assessment:
        see = self._see if boxes is None else partial(self._see, boxes=boxes)
        if recompute and images.requires_grad and torch.is_grad_enabled():
            return checkpoint(see, images, use_reentrant=False, preserve_rng_state=False)
        return see(images)

    def _see(self, images: Tensor, boxes: Tensor | None = None) -> Assessment:
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if boxes is not None and isinstance(self.model, GuardedModel):
                return self.model.see_through(images.float(), self.view, boxes)
            return self.model.see(images.float(), self.view)

    def _chunk(self, images: Tensor) -> tuple[int, int]:
        """How many images of this size fit the memory budget at once, and how many are worked on; at least one."""
        height, width = images.shape[2:]
        forward, backward = (
            max(1, self.model.activation_bytes(height, width, self.view, gradients=gradients))
            for gradients in (False, True)
        )
        each = backward if images.requires_grad and torch.is_grad_enabled() else forward
        fitting = max(1, self.memory_mib * 2**20 // each)
        return fitting, fitting if images.is_cuda else min(fitting, max(1, _CPU_BYTES // forward))

    def score_files(self, paths: Iterable[str | Path], *, threads: int | None = None) -> Iterator[FileScore]:
        """Score image files in the order given, decoding ahead on threads while the model works.

        Files are resized by Pillow in 8 bits while they are read; the score differs from
        ``reward(attriqa.images.read(path)[None])`` by less than 0.005.

        Args:
            paths: image files; may be a generator of any length, it is read as rows are asked for.
            threads: decoding threads; by default as many as there are cores, at most 8.

        Yields:
            A row per path. A file that cannot be read gives a row with ``error``, and the rest goes on.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        workers = threads or min(8, os.cpu_count() or 1)
        source = iter(paths)
        edge = None if self.view == "native" else self.model.reads_at
        with ThreadPoolExecutor(workers, thread_name_prefix="attriqa-read") as pool:

            def submit() -> list[tuple[str, Future[Tensor]]]:
                ahead = islice(source, _WINDOW)
                return [(str(path), pool.submit(image_io.read, path, shorter_edge=edge)) for path in ahead]

            window = submit()
            try:
                while window:
                    following = submit()
                    yield from self._score_window(window)
                    window = following
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _score_window(self, window: list[tuple[str, "Future[Tensor]"]]) -> list[FileScore]:
        rows: dict[int, FileScore] = {}
        by_shape: dict[torch.Size, list[tuple[int, Tensor]]] = {}
        for index, (path, future) in enumerate(window):
            try:
                image = future.result()
            except image_io.ImageError as error:
                rows[index] = FileScore(path, None, None, error.reason)
            else:
                by_shape.setdefault(image.shape, []).append((index, image))
        device = next(self.model.buffers()).device  # weights are buffers here
        with torch.no_grad():
            for group in by_shape.values():
                result = self.assess(torch.stack([image for _, image in group]).to(device))
                scores = result.score.tolist()
                attributes, distortions = (
                    _rows(field, len(group)) for field in (result.attributes, result.distortions)
                )
                for (index, _), score, five, strengths in zip(group, scores, attributes, distortions, strict=True):
                    rows[index] = FileScore(window[index][0], score, five, None, strengths)
        return [rows[index] for index in range(len(window))]


def _copied(model: QualityModel) -> Loaded:
    """A model in memory as if it were loaded."""
    copied = copy.deepcopy(model).eval()
    return Loaded(copied, {}, weights_hash(copied.state_dict()), type(model).__name__)


def _values(assessment: Assessment) -> Tensor:
    """What a model told, as ``(B, N)`` in the order of its names."""
    fields = (assessment.score[:, None], assessment.attributes, assessment.distortions)
    return torch.cat([field for field in fields if field is not None], 1)


def _rows(field: Tensor | None, count: int) -> list[tuple[float, ...] | None]:
    return [None] * count if field is None else [tuple(row) for row in field.tolist()]


def _parameters_to_buffers(module: nn.Module) -> None:
    """Hide the weights from optimizers, and from an enclosing module's ``requires_grad_()``, which asks no child."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())


def _checked_weights(weights: Mapping[str, float] | None, names: Sequence[str]) -> Tensor | None:
    """Normalised weights over what the model can be asked for."""
    if weights is None:
        return None
    unknown = set(weights) - set(names)
    if unknown:
        raise ValueError(
            f"attribute_weights: expected names among {', '.join(names)}, got {', '.join(sorted(unknown))}"
        )
    values = [float(weights.get(name, 1.0 if name == "score" else 0.0)) for name in names]
    total = sum(abs(value) for value in values)
    if not math.isfinite(total) or total == 0:
        raise ValueError(f"attribute_weights: expected finite weights that are not all zero, got {dict(weights)}")
    return torch.tensor([value / total for value in values])
