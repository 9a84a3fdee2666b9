"""open_clip models: how they want to see an image, where their weights come from, both towers as an encoder."""

import copy
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.images import check
from attriqa.models.clip.architecture import (
    LOCATIONS,
    ArchitectureError,
    check_architecture,
    check_preprocess,
    on_this_machine,
    read_architecture,
    tokenizer_of,
)


class Preprocess(NamedTuple):
    """How an open_clip model wants to see an image; fields and values as in its preprocess configuration."""

    size: tuple[int, int]  # height, width
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str  # "bicubic", "bilinear" or "random", which is bicubic except in training
    resize_mode: str  # "shortest": crop what is too long; "longest": pad what is too short; "squash"
    fill_color: int  # 0 to 255, of the padding

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preprocess":
        """From the dictionary that ``open_clip.get_model_preprocess_cfg`` gives."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size
        triple = [value if isinstance(value, Sequence) else (value,) * 3 for value in (config["mean"], config["std"])]
        kind = (config.get("interpolation") or "bicubic", config.get("resize_mode") or "shortest")
        return cls((height, width), tuple(triple[0]), tuple(triple[1]), *kind, config.get("fill_color") or 0)

    def geometry(self, images: Tensor) -> Tensor:
        """Resize and crop (B, 3, H, W) in [0, 1] to (B, 3, *size) in [0, 1]; images that have the size stay.

        As open_clip does to files with Pillow, without the rounding to 8 bits after each of Pillow's two passes: the
        results differ by at most 1.2/255, and by 0.3/255 on average.
        """
        height, width = images.shape[2:]
        resized = self._resized(height, width)
        if resized != (height, width):
            square = self.size[0] == self.size[1]  # for other shapes open_clip's "shortest" knows bicubic only
            linear = self.interpolation == "bilinear" and (square or self.resize_mode != "shortest")
            mode = "bilinear" if linear else "bicubic"
            for step in ((height, resized[1]), resized):  # as Pillow: across, cut off what overshoots, down, cut off
                images = F.interpolate(images, step, mode=mode, antialias=True).clamp(0, 1)
        return _crop_or_pad(images, self.size, self.fill_color / 255)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Size before the crop; open_clip rounds in three different ways."""
        if self.resize_mode == "squash":
            return self.size
        if self.resize_mode == "shortest" and self.size[0] == self.size[1]:
            edge = self.size[0]
            return (edge, int(edge * width / height)) if height <= width else (int(edge * height / width), edge)
        ratios = (height / self.size[0], width / self.size[1])
        ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
        return round(height / ratio), round(width / ratio)

    def normalize(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation of each channel."""
        mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (self.mean, self.std))
        return (images - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


def _crop_or_pad(images: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    missing = [max(0, wanted - found) for wanted, found in zip(size, images.shape[2:], strict=True)]
    if any(missing):
        (down, across) = missing
        sides = (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2)
        images = F.pad(images, sides, value=fill)
    top, left = (round((found - wanted) / 2) for wanted, found in zip(size, images.shape[2:], strict=True))
    return images[:, :, top : top + size[0], left : left + size[1]]


def activation_bytes(tower: nn.Module, height: int, width: int, *, extra: int = 0, gradients: bool) -> int:
    """Memory that one image of ``height`` by ``width`` px takes in a vision transformer of open_clip, about, in fp32.

    Args:
        tower: ``model.visual``; for another kind than a transformer the pixels alone count.
        height: px, before it is resized.
        width: px.
        extra: tokens beside its own: learnt prompts.
        gradients: a backward pass follows, so each block's activations are kept.
    """
    resized = 4 * 3 * 4 * height * width  # the image, and what resizing makes of it
    transformer = getattr(tower, "transformer", None)
    if transformer is None:
        return resized * (20 if gradients else 4)
    (rows, columns), channels = cast(Any, tower).grid_size, cast(Any, tower).conv1.out_channels
    block: int = 4 * 18 * (1 + rows * columns + extra) * channels  # norms, queries, keys, values, MLP, residuals
    return resized + block * (len(cast(Any, transformer).resblocks) if gradients else 1)


def drop_positional_embedding(tower: nn.Module) -> None:
    """Make an image tower of open_clip blind to positions, in place, so that it runs on images of any size.

    CLIP-IQA (Wang et al., AAAI 2023, section 3.2) removes the positional embedding because a resize or crop to the size
    that the embedding was learnt for changes the quality that is to be judged. A row of zeros stands in for it: added
    to every token, it changes nothing and fits any number of them.

    Args:
        tower: ``model.visual``: a vision transformer, or a ResNet with attention pooling.

    Raises:
        ValueError: any other tower (timm's), whose positions are not added in one place.
    """
    for owner in (tower, getattr(tower, "attnpool", None)):
        embedding = getattr(owner, "positional_embedding", None)
        if owner is not None and isinstance(embedding, nn.Parameter):
            owner.positional_embedding = nn.Parameter(embedding.new_zeros(1, embedding.shape[1]), requires_grad=False)
            return
    raise ValueError(
        "positional_embedding: expected a vision transformer or a ResNet of open_clip to take it away from, "
        f"got a {type(tower).__name__}"
    )


class CLIPEncoder:
    """Both towers of an open_clip model, frozen, in float32: images and texts -> unit vectors of one space.

    Args:
        model_name: what ``open_clip.create_model`` takes: a name (``"ViT-B-16"``), ``"hf-hub:ORG/REPO"`` or
            ``"local-dir:FOLDER"`` (a folder with ``open_clip_config.json`` and weights).
        pretrained: with a name: a tag (``"openai"``, ``"laion2b_s34b_b88k"``) or a checkpoint file (.safetensors, or a
            .pt that ``torch.load(weights_only=True)`` takes); with the two others, which bring weights, ``None``. A
            file says nothing about its activation: OpenAI's weights need a name with ``-quickgelu``. For a tag this is
            seen to.
        positional_embedding: ``True``: images are resized and cropped as the model's preprocessing says; ``False``:
            they are taken at any size, and positions count for nothing (`drop_positional_embedding`).
        device: where the model lives and works.

    Raises:
        ValueError: no such model, tag or file, or weights that are broken or of another model; it says what is known.
    """

    def __init__(
        self,
        model_name: str,
        pretrained: str | Path | None = None,
        *,
        positional_embedding: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        import open_clip

        quick_gelu = _check_weights(model_name, pretrained)
        towers = load_clip(model_name, pretrained)
        self.preprocess = towers.preprocess
        # Activations, heads and patches do not show in the weights; the name of a local folder means nothing elsewhere.
        architecture = [open_clip.get_model_config(model_name), quick_gelu, self.preprocess]
        self.identity = (
            f"CLIP(model={model_name if not model_name.startswith('local-dir:') else 'local-dir'}, "
            f"architecture={_short_hash(json.dumps(architecture, sort_keys=True).encode())}, "
            f"weights={weights_hash(towers.model.state_dict())}, positional_embedding={positional_embedding})"
        )
        self.size = self.preprocess.size if positional_embedding else None
        if not positional_embedding:
            drop_positional_embedding(towers.model.visual)
        self.device = torch.device(device)
        self._model = towers.model.to(self.device).requires_grad_(False)
        self._tokenizer = towers.tokenize

    def prepare(self, images: Tensor) -> Tensor:
        """As `Teacher.prepare`: the model's own resize and crop, or nothing without positional embedding."""
        check(images)
        return images.float() if self.size is None else self.preprocess.geometry(images.float())

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], prepared or not -> (B, D) float32 of length one, on the encoder's device."""
        pixels = self.preprocess.normalize(self.prepare(images).to(self.device))
        with torch.autocast(self.device.type, enabled=False):  # a pair's cosines differ by 0.01: bfloat16 drowns that
            return F.normalize(cast(Tensor, self._model.encode_image(pixels)).float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, D) float32 of length one, on the encoder's device."""
        tokens = self._tokenizer(list(texts)).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            return F.normalize(cast(Tensor, self._model.encode_text(tokens)).float(), dim=-1)


class CLIPTowers(NamedTuple):
    """An open_clip model, in float32 on the CPU, and what it takes to use it and to build it again."""

    model: Any  # open_clip.CLIP or open_clip.CustomTextCLIP, in eval mode
    preprocess: Preprocess
    tokenize: Callable[[list[str]], Tensor]  # N texts -> (N, L) int64
    name: str  # as in `load_clip`
    pretrained: str | None  # likewise
    architecture: dict[str, Any]  # "model_cfg" and "preprocess_cfg", as in an open_clip_config.json
    reloadable: bool  # name and pretrained lead to these very weights


def load_clip(name: str, pretrained: str | Path | None = None, *, seed: int = 0) -> CLIPTowers:
    """Load an open_clip model, or start one with random weights.

    Args:
        name: as in `CLIPEncoder`; or a file ``*.json``, an open_clip configuration (the model's alone, or one with
            ``model_cfg`` and ``preprocess_cfg``), of which a model with random weights is built.
        pretrained: as in `CLIPEncoder`; ``None`` with a JSON file.
        seed: of random weights.

    Raises:
        ValueError: as `CLIPEncoder`, or the configuration builds no model.
    """
    import open_clip

    if name.endswith(".json"):
        if pretrained is not None:
            raise ValueError(f"pretrained: expected None with a configuration file, got {str(pretrained)!r}")
        return build_clip(read_architecture(Path(name)), name=Path(name).stem, seed=seed)
    quick_gelu = _check_weights(name, pretrained)
    with torch.random.fork_rng(devices=[]):  # weights are drawn before they are loaded
        model = _create(name, pretrained, quick_gelu)
    known = name if name.startswith(LOCATIONS) else name.replace("/", "-")
    about = open_clip.get_model_config(known) | ({"quick_gelu": True} if quick_gelu else {})
    preprocess = open_clip.get_model_preprocess_cfg(model)
    return CLIPTowers(
        model.eval(),
        Preprocess.of(preprocess),
        _tokenizer(known),
        name,
        None if pretrained is None else str(pretrained),
        json.loads(json.dumps({"model_cfg": about, "preprocess_cfg": preprocess})),
        reloadable=_tag(name, pretrained) is not None,
    )


def _tag(name: str, pretrained: object) -> dict[str, Any] | None:
    """What open_clip knows of the weights ``pretrained`` of a model of its own; ``None``: they are no tag of it."""
    import open_clip

    if not isinstance(pretrained, str) or name.startswith(LOCATIONS):
        return None
    return open_clip.get_pretrained_cfg(name, pretrained) or None


def rebuild_clip(architecture: Mapping[str, Any], *, name: str, pretrained: str) -> CLIPTowers:
    """The CLIP that a tag of open_clip's stands for, from this machine's files alone: no network is asked.

    Args:
        architecture: as in `CLIPTowers`.
        name: of the model.
        pretrained: the tag.

    Raises:
        ValueError: the two name a place in place of a model, or the weights are not on this machine.
    """
    import open_clip

    tag = _tag(name, pretrained)
    if tag is None:
        raise ValueError(
            f"expected a model and a tag of open_clip, which a file may name, got {name!r}, {pretrained!r}"
        )
    towers, weights = build_clip(architecture, name=name), on_this_machine(tag)
    if weights is None:
        raise ValueError(
            f"the weights {pretrained!r} of {name} are not on this machine, and loading a file asks no network; "
            f"fetch them once: python -c \"import open_clip; open_clip.create_model('{name}', '{pretrained}')\""
        )
    open_clip.load_checkpoint(towers.model, str(weights), weights_only=True)
    return towers._replace(pretrained=pretrained, reloadable=True)


def build_clip(architecture: Mapping[str, Any], *, name: str, seed: int = 0) -> CLIPTowers:
    """Build a model with random weights; no network is asked.

    Args:
        architecture: as in `CLIPTowers`.
        name: what to call it.
        seed: of the weights.

    Raises:
        ValueError: the configuration builds no model of two towers, says what no file may say
            (`attriqa.models.clip.architecture`), or names a tokenizer that is not on this machine.
    """
    import open_clip

    try:
        config, preprocessing = copy.deepcopy(architecture["model_cfg"]), architecture.get("preprocess_cfg", {})
        check_architecture(config)
        check_preprocess(preprocessing)
        vision, text = config["vision_cfg"], config["text_cfg"]
        custom = config.pop("custom_text", False) or "hf_model_name" in text
        for part, kind in ((vision, "timm_model"), (text, "hf_model")):
            if f"{kind}_name" in part:
                part[f"{kind}_pretrained"] = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    except ArchitectureError as error:
        raise ValueError(f"{name}: {error}") from error
    except (KeyError, TypeError, AttributeError, AssertionError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f"{name}: expected the configuration of an open_clip model ({error!r})") from error
    tokenize = tokenizer_of(text)
    asked = {**dataclasses.asdict(open_clip.transform.PreprocessCfg()), **preprocessing}
    preprocess = json.loads(json.dumps(asked | {"size": model.visual.image_size}))
    about = {"model_cfg": copy.deepcopy(architecture["model_cfg"]), "preprocess_cfg": preprocess}
    return CLIPTowers(model.eval(), Preprocess.of(preprocess), tokenize, name, None, about, reloadable=False)


def _tokenizer(name: str) -> Any:
    """Of a model that a user named; its configuration has been checked, or is open_clip's own."""
    import open_clip

    scheme, _, place = name.partition(":")
    if f"{scheme}:" in LOCATIONS:
        text, folder = open_clip.get_model_config(name)["text_cfg"], Path(place) if scheme == "local-dir" else None
        return tokenizer_of(text, folder, offline=False)
    return open_clip.get_tokenizer(name.replace("/", "-"))


def _check_weights(model_name: str, pretrained: str | Path | None) -> bool:
    """Refuse what open_clip would answer with random weights or a bare KeyError; whether a tag needs QuickGELU."""
    import open_clip

    if model_name.startswith(LOCATIONS):
        if pretrained is not None:
            raise ValueError(f"pretrained: expected None, as {model_name} brings its weights, got {str(pretrained)!r}")
        return False
    name, known = model_name.replace("/", "-"), open_clip.list_models()
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.3)) or ", ".join(known[:5])
        raise ValueError(
            f"model_name: expected one of open_clip's {len(known)} models (nearest: {near}; all: "
            f"open_clip.list_models()), hf-hub:ORG/REPO or local-dir:FOLDER, got {model_name!r}"
        )
    tag = open_clip.get_pretrained_cfg(name, str(pretrained)) if pretrained is not None else {}
    if not tag and (pretrained is None or not Path(pretrained).is_file()):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        found = "None, which would leave the weights random" if pretrained is None else repr(str(pretrained))
        raise ValueError(
            f"pretrained: expected a checkpoint file or a tag of {model_name} (known: {tags}), got {found}"
        )
    return bool(tag.get("quick_gelu", False))


def _create(model_name: str, pretrained: str | Path | None, quick_gelu: bool) -> Any:
    import open_clip

    weights = None if pretrained is None else str(pretrained)
    try:
        if model_name.startswith(LOCATIONS):  # a stranger's configuration
            check_architecture(open_clip.get_model_config(model_name) or {}, text_tower=True)
        return open_clip.create_model(
            model_name, weights, force_quick_gelu=quick_gelu, require_pretrained=True, weights_only=True
        )
    except Exception as error:  # of torch, pickle, safetensors, the hub: whatever the file or the network had
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"pretrained: {weights or 'its weights'} cannot be loaded as {model_name}: {reason}"
        ) from error


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits of names, types, shapes and values: the same for a .pt and a .safetensors file of equal weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def clip_of(name: str, *, seed: int = 0) -> CLIPTowers:
    """The open_clip model that a command line names.

    Args:
        name: ``MODEL:PRETRAINED`` (a tag or a local file), ``hf-hub:ORG/REPO``, ``local-dir:FOLDER``, or an open_clip
            configuration ``FILE.json``, of which a model with random weights is built.
        seed: of random weights.

    Raises:
        ValueError: there is no such model, or no such weights.
    """
    model, _, weights = (name, "", "") if name.startswith(("hf-hub:", "local-dir:")) else name.partition(":")
    return load_clip(model, weights or None, seed=seed)
