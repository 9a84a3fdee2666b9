"""What a file may say of a CLIP: plain sizes and switches, and names that timm and open_clip bring along themselves.

A configuration (inside a checkpoint, a ``*.json``, an ``open_clip_config.json``) is data from strangers. open_clip
hands parts of it on as keyword arguments and names: to Hugging Face's tokenizers, where ``trust_remote_code`` imports
a module, to timm, where ``hf-hub:`` asks a network. So nothing is handed on that does not stand in this list.
"""

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import timm

LOCATIONS = ("hf-hub:", "local-dir:")
"""How names of open_clip begin that lead to a place; a user may say them, a file may not."""

_CLEAN = ("whitespace", "lower", "canonicalize")  # what open_clip's tokenizers do to a text first
_TOP = {"embed_dim", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}
_WORDS = {"pool_type", "pos_embed_type", "block_type", "proj_type", "timm_pool", "timm_proj", "attentional_pool",
          "hf_proj_type", "hf_pooler_type", "tokenizer_mode"}  # fmt: skip
_PREPROCESS_WORDS = {"mode", "interpolation", "resize_mode"}
_MOST = 2**20  # no size of a model is larger


class ArchitectureError(ValueError):
    """A configuration says what no file may say: the field, what was expected and what came."""


def check_architecture(config: Mapping[str, Any], *, text_tower: bool = False) -> None:
    """Refuse a CLIP's configuration that holds anything but sizes, switches and known names.

    Args:
        config: ``model_cfg`` of an ``open_clip_config.json``.
        text_tower: a text tower of Hugging Face is allowed, of those that open_clip's own models have; building one
            asks their hub, so no file that is loaded offline may have one.

    Raises:
        ArchitectureError: a field is not in the list, or has a value that it cannot have.
    """
    for name, value in config.items():
        if name in ("vision_cfg", "text_cfg"):
            if not isinstance(value, Mapping):
                raise _refused(name, "a table", value)
            for field, inner in value.items():
                _check(f"{name}.{field}", field, inner, _fields(name), text_tower=text_tower)
        else:
            _check(name, name, value, _TOP, text_tower=text_tower)


def check_preprocess(config: Mapping[str, Any]) -> None:
    """Refuse a ``preprocess_cfg`` that holds anything but open_clip's fields with plain values."""
    import open_clip

    known = {field.name for field in dataclasses.fields(open_clip.transform.PreprocessCfg)}
    for name, value in config.items():
        if name not in known or not (_is_plain(value) or (name in _PREPROCESS_WORDS and isinstance(value, str))):
            raise _refused(f"preprocess_cfg.{name}", "numbers in a field that open_clip knows", value)


def tokenizer_of(text: Mapping[str, Any], folder: Path | None = None, *, offline: bool = True) -> Any:
    """The tokenizer of a ``text_cfg`` that `check_architecture` let through.

    Args:
        text: the configuration.
        folder: of a ``local-dir:`` that a user named; the files of a tokenizer of Hugging Face's kind lie in it.
        offline: files of a tokenizer of Hugging Face's come from their cache alone; no network is asked.

    Raises:
        ValueError: they are not there.
    """
    import open_clip

    length, settings = text.get("context_length", 77), dict(text.get("tokenizer_kwargs") or {})
    name = text.get("hf_tokenizer_name")
    if not name:
        return open_clip.SimpleTokenizer(context_length=length, **{k: v for k, v in settings.items() if k == "clean"})
    source = name if folder is None else str(folder)
    try:
        return open_clip.tokenizer.HFTokenizer(
            source,
            context_length=length,
            tokenizer_mode=text.get("tokenizer_mode"),
            local_files_only=offline or folder is not None,
            trust_remote_code=False,  # never what a file says
            **settings,
        )
    except Exception as error:  # of transformers, tokenizers, the hub: whatever the files or the network had
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"text_cfg.hf_tokenizer_name: the tokenizer {source} cannot be had: {reason}") from error


def read_architecture(path: Path) -> dict[str, Any]:
    """A configuration of open_clip in JSON, as ``{"model_cfg": ..., ...}``.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"name: expected a configuration of open_clip in JSON, got {path} ({error})") from error
    about = found if isinstance(found, dict) and "model_cfg" in found else {"model_cfg": found}
    if not isinstance(about["model_cfg"], dict) or not {"vision_cfg", "text_cfg"} <= set(about["model_cfg"]):
        raise ValueError(f"name: expected a configuration of open_clip, with vision_cfg and text_cfg, got {path}")
    return about


def on_this_machine(tag: Mapping[str, Any]) -> Path | None:
    """Where open_clip keeps the weights of a tag, if it has fetched them."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.pretrained import HF_WEIGHTS_NAME, _get_safe_alternatives

    found: list[object] = [tag.get("file")]
    if hub := tag.get("hf_hub"):
        repository, _, file = hub.rpartition("/")
        file = file or HF_WEIGHTS_NAME
        found += [try_to_load_from_cache(repository, name) for name in (*_get_safe_alternatives(file), file)]
    if url := tag.get("url"):
        found.append(Path("~/.cache/clip").expanduser() / url.rpartition("/")[2])
    return next((Path(path) for path in found if isinstance(path, str | Path) and Path(path).is_file()), None)


def _check(place: str, field: str, value: object, known: set[str], *, text_tower: bool) -> None:
    if field not in known:
        raise _refused(place, "a field that open_clip knows", value)
    if field == "timm_model_name":
        good, expected = value is None or (isinstance(value, str) and timm.is_model(value)), "a model of timm's own"
    elif field in ("hf_tokenizer_name", "hf_model_name"):
        good, expected = not value or value in _known_names(field), f"one of open_clip's own models' ({field})"
        if field == "hf_model_name" and value and not text_tower:
            good, expected = False, "no text tower of Hugging Face in a file, for building it asks their hub"
    elif field == "tokenizer_kwargs":
        good = not value or (isinstance(value, Mapping) and all(map(_is_tokenizer_setting, value, value.values())))
        expected = f"clean (one of {', '.join(_CLEAN)}) and strip_sep_token (true or false) alone"
    elif field in ("act_kwargs", "norm_kwargs"):
        good = not value or (isinstance(value, Mapping) and all(map(_is_layer_setting, value, value.values())))
        expected = "eps (a number) and approximate (none or tanh) alone"
    elif field in _WORDS:
        good, expected = value is None or isinstance(value, str | bool), "a word"
    else:
        good, expected = _is_plain(value), f"numbers up to {_MOST}, true or false"
    if not good:
        raise _refused(place, expected, value)


def _fields(part: str) -> set[str]:
    """Those of open_clip's own configuration classes."""
    import open_clip

    kind = open_clip.CLIPVisionCfg if part == "vision_cfg" else open_clip.CLIPTextCfg
    return {field.name for field in dataclasses.fields(kind)}


@cache
def _known_names(field: str) -> frozenset[str]:
    """What open_clip's built-in configurations say in a field of ``text_cfg``."""
    import open_clip

    texts = (open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models())
    return frozenset(text[field] for text in texts if text.get(field))


def _is_tokenizer_setting(name: object, value: object) -> bool:
    return (name == "clean" and value in _CLEAN) or (name == "strip_sep_token" and isinstance(value, bool))


def _is_layer_setting(name: object, value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (name == "eps" and number) or (name == "approximate" and value in ("none", "tanh"))


def _is_plain(value: object) -> bool:
    """Whether it is nothing, a switch, a number, or up to four numbers."""
    if isinstance(value, list | tuple):
        return len(value) <= 4 and all(isinstance(one, int | float) and _is_plain(one) for one in value)
    return value is None or (isinstance(value, int | float) and abs(value) <= _MOST)


def _refused(place: str, expected: str, value: object) -> ArchitectureError:
    return ArchitectureError(f"{place}: expected {expected}, got {value!r:.80}")
