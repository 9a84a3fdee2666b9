"""Published weights: files written here in the layouts of OpenAI, LIQE and CLIP-IQA+, and files that are refused."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attriqa import load
from attriqa.models.checkpoint import CheckpointError
from attriqa.models.clip import converters
from attriqa.models.clip.towers import CLIPTowers, build_clip
from attriqa.models.clip_iqa import ClipIQA, ClipIQAConfig, ClipIQAPlus, ClipIQAPlusConfig
from attriqa.models.liqe import LIQE, LIQEConfig
from tests.support.small_clip import pictures

TEXT = {"context_length": 26, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
VIT: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "head_width": 64, "patch_size": 16},
    "text_cfg": TEXT,
}
RESNET = VIT | {"vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None}}
PREPROCESS = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


def openai(config: dict[str, Any] = VIT, seed: int = 3) -> CLIPTowers:
    """A model as OpenAI's are; its state has the names and shapes of theirs."""
    return build_clip({"model_cfg": config, "preprocess_cfg": PREPROCESS}, name="theirs", seed=seed)


def state_of(towers: CLIPTowers, *, half: bool = False, prefix: str = "", sizes: bool = False) -> dict[str, Tensor]:
    state: dict[str, Tensor] = OrderedDict()
    for name, value in towers.model.state_dict().items():
        state[prefix + name] = value.half() if half and value.is_floating_point() else value
    if sizes:  # as in the archives that OpenAI gives out
        side = towers.preprocess.size[0]
        for name, number in {"input_resolution": side, "context_length": 26, "vocab_size": 49408}.items():
            state[name] = torch.tensor(number)
    return state


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


# OpenAI's CLIP


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
@torch.no_grad()
def test_a_state_of_openai_s_clip_becomes_the_same_model(config: dict[str, Any], tmp_path: Path) -> None:
    towers = openai(config)
    found = converters.openai_towers(saved(tmp_path / "clip.pt", state_of(towers, sizes=True)))
    assert found.preprocess == towers.preprocess
    assert (found.name, found.reloadable, found.model.training) == ("clip", False, False)
    texts = found.tokenize(["a photo of a cat", "a dog"])
    assert torch.equal(found.model.encode_text(texts), towers.model.encode_text(texts))
    seen = towers.preprocess.normalize(towers.preprocess.geometry(pictures()))
    assert torch.equal(found.model.encode_image(seen), towers.model.encode_image(seen))


@torch.no_grad()
def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    towers = openai()
    found = converters.openai_towers(saved(tmp_path / "clip.pt", state_of(towers, half=True)))
    assert {value.dtype for value in found.model.state_dict().values()} == {torch.float32}
    texts = found.tokenize(["a photo of a cat"])
    torch.testing.assert_close(found.model.encode_text(texts), towers.model.encode_text(texts), rtol=0, atol=0.05)


@torch.no_grad()
def test_a_converted_clip_goes_through_a_checkpoint(tmp_path: Path) -> None:
    towers = converters.openai_towers(saved(tmp_path / "clip.pt", state_of(openai())))
    model = ClipIQA(ClipIQAConfig(), towers).eval()
    model.save(tmp_path / "model.safetensors", {"converted_from": "clip.pt"})
    (tmp_path / "clip.pt").unlink()
    loaded = load(tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded.see(pictures(), "own").score, model(pictures()).score, rtol=0, atol=5e-3)


# LIQE


@pytest.mark.parametrize(
    ("layout", "quality_only"),
    [("bare", False), ("bare", True), ("training", True), ("toolbox", True), ("parallel", True)],
)
@torch.no_grad()
def test_liqe_is_found_in_every_layout(tmp_path: Path, layout: str, quality_only: bool) -> None:
    towers = openai()
    files: dict[str, Any] = {
        "bare": state_of(towers, half=True),
        "training": {"epoch": 3, "model_state_dict": state_of(towers), "optimizer_state_dict": {"state": {}}},
        "toolbox": {"params": state_of(towers, prefix="clip_model.") | {"default_mean": torch.zeros(3)}},
        "parallel": state_of(towers, prefix="module."),
    }
    path = saved(tmp_path / "LIQE.pt", files[layout])
    model = converters.liqe(path, quality_only=quality_only)
    config = LIQEConfig(scenes=(), distortions=()) if quality_only else LIQEConfig()
    assert model.config == config
    assert not model.training
    expected = LIQE(config, openai()).eval().predict(pictures(1))
    for found, wanted in zip(model.predict(pictures(1)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=5e-3)
    assert model.predict(pictures(1)).scenes.shape == (1, 0 if quality_only else 9)


@torch.no_grad()
def test_a_converted_liqe_saves_and_loads(tmp_path: Path) -> None:
    model = converters.liqe(saved(tmp_path / "LIQE.pt", state_of(openai())), quality_only=True)
    model.save(tmp_path / "liqe.safetensors", {"converted_from": "LIQE.pt"})
    loaded = load(f"liqe:{tmp_path / 'liqe.safetensors'}")
    torch.testing.assert_close(loaded.see(pictures(), "own").score, model(pictures()).score, rtol=0, atol=5e-3)


# CLIP-IQA+


def authors_file(towers: CLIPTowers, context: Tensor) -> dict[str, Any]:
    """As mmcv writes it: the words, the towers once under the words' owner and once more beside it, the optimizer."""
    part = "generator.clipmodel_0."
    state = {f"{part}prompt_learner.ctx": context, f"{part}prompt_learner.token_prefix": torch.zeros(2, 1, 64)}
    state |= state_of(towers, prefix=f"{part}prompt_learner.clip_model.")
    state |= {f"{part}image_encoder.{k}": v for k, v in towers.model.visual.state_dict().items()}
    state |= {f"{part}logit_scale": towers.model.logit_scale.detach()}
    meta = {"iter": 80_000, "epoch": 0, "time": "Sun", "config": "model = dict()", "hook_msgs": {}}
    return {
        "meta": meta,
        "state_dict": OrderedDict(state),
        "optimizer": {"generator": {"state": {}, "param_groups": []}},
    }


@torch.no_grad()
def test_clip_iqa_plus_is_found_with_its_clip(tmp_path: Path) -> None:
    towers, context = openai(RESNET), torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    model = converters.clip_iqa_plus(saved(tmp_path / "iter_80000.pth", authors_file(towers, context)))
    assert model.config == ClipIQAPlusConfig()
    assert torch.equal(model.context.context, context)
    expected = ClipIQAPlus(ClipIQAPlusConfig(), towers)
    expected.context.context.copy_(context)
    torch.testing.assert_close(model(pictures()).score, expected.eval()(pictures()).score, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "shape"), [("tensor", (16, 64)), ("parameter", (16, 64)), ("toolbox", (16, 64)), ("toolbox", (2, 8, 64))]
)
@torch.no_grad()
def test_words_alone_need_a_clip(tmp_path: Path, shape: tuple[int, ...], layout: str) -> None:
    context = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    files = {
        "tensor": context,
        "parameter": nn.Parameter(context),
        "toolbox": {"params": {"prompt_learner.ctx": context}},
    }
    path = saved(tmp_path / "words.pth", files[layout])
    model = converters.clip_iqa_plus(path, openai())
    assert torch.equal(model.context.context, context)
    assert model.config == ClipIQAPlusConfig(context=shape[-2], shared=len(shape) == 2)
    with pytest.raises(CheckpointError, match="it holds no CLIP; expected one as towers, RN50:openai"):
        converters.clip_iqa_plus(path)
    narrow = openai(VIT | {"text_cfg": TEXT | {"width": 32}})
    wanted = r"\(.*32\) for theirs, got \(.*64\)"
    with pytest.raises(CheckpointError, match=f"expected words of the shape {wanted}"):
        converters.clip_iqa_plus(path, narrow)


# What is refused


class Harm:
    """A pickle that leaves a trace when it is built."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


READERS = (converters.openai_towers, converters.liqe, converters.clip_iqa_plus)


@pytest.mark.parametrize("read", READERS)
def test_nothing_in_a_file_is_run(read: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    zipped, legacy, bare = (tmp_path / name for name in ("zip.pt", "legacy.pt", "bare.pt"))
    torch.save({"state_dict": Harm(trace)}, zipped)
    torch.save({"state_dict": Harm(trace)}, legacy, _use_new_zipfile_serialization=False)
    bare.write_bytes(pickle.dumps(Harm(trace), protocol=2))
    for path in (zipped, legacy, bare):
        with pytest.raises(
            CheckpointError, match=rf"{path.name}: expected tensors saved by torch\.save and nothing else"
        ):
            read(path)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("read", READERS)
def test_torchscript_is_refused_with_a_way_out(read: Any, tmp_path: Path) -> None:
    path = tmp_path / "RN50.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(CheckpointError, match=r"a TorchScript archive: .* refused; name OpenAI's .* \(RN50:openai"):
        read(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"weight": torch.zeros(2, 2)}, r"expected the tensors of a CLIP under OpenAI's names \(KeyError"),
        ([torch.zeros(2)], "expected named tensors, got a list"),
        (torch.zeros(2), "expected named tensors, got a Tensor"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, value: object, message: str) -> None:
    path = saved(tmp_path / "clip.pt", value)
    for read in (converters.openai_towers, converters.liqe):
        with pytest.raises(CheckpointError, match=message):
            read(path)


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "clip.pt", state_of(openai()))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"clip\.pt: expected tensors saved by torch\.save"):
        converters.openai_towers(path)
    with pytest.raises(FileNotFoundError):
        converters.openai_towers(tmp_path / "nowhere.pt")


def test_missing_and_foreign_tensors_are_named(tmp_path: Path) -> None:
    state = state_of(openai())
    del state["visual.ln_post.weight"]
    with pytest.raises(CheckpointError, match=r"in the model but not in the file: visual\.ln_post\.weight"):
        converters.openai_towers(saved(tmp_path / "less.pt", state))
    extra = state_of(openai()) | {"visual.head.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"in the file but not in the model: visual\.head\.weight"):
        converters.openai_towers(saved(tmp_path / "more.pt", extra))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"state_dict": {"weight": torch.zeros(2)}}, "expected one tensor prompt_learner.ctx, .* got 0"),
        ({"a.prompt_learner.ctx": torch.zeros(4, 64), "b.prompt_learner.ctx": torch.zeros(4, 64)}, "got 2"),
        (torch.zeros(64), "expected one tensor prompt_learner.ctx"),
        (torch.zeros(80, 64), "context: expected at most 22 in texts of 26 tokens, got 80"),
    ],
)
def test_words_of_another_shape_are_refused(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        converters.clip_iqa_plus(saved(tmp_path / "words.pth", value), openai())
