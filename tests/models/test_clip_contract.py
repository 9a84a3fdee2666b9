"""What every model on a CLIP promises: what learns and what stands still, texts read once, whole checkpoints."""

import json
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attriqa import load
from attriqa.files import as_dict
from attriqa.images.crops import seeded_crops
from attriqa.models import checkpoint
from attriqa.models.checkpoint import CheckpointError
from attriqa.models.clip.towers import load_clip
from tests.support import clip_models, small_clip
from tests.support.clip_models import CASES, CONFIG, Case, last_layer, towers_of, train
from tests.support.small_clip import pictures

ZERO_SHOT = Case(clip_models.clip_iqa, lambda model: pytest.fail("it does not learn"), lambda _: False,
                 changes={"quality": ("Fine photo.", "Poor photo."), "pairs": ()})  # fmt: skip
ALL = {**CASES, "clip-iqa": ZERO_SHOT}
SCORED_BY_A_HEAD = pytest.mark.parametrize("build", [clip_models.exiqa, clip_models.mp_iqe], ids=["exiqa", "mp-iqe"])
cases = pytest.mark.parametrize("case", ALL.values(), ids=ALL)
learning = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
frozen = pytest.mark.parametrize(
    "case", [case for name, case in ALL.items() if name not in ("liqe", "tuned exiqa")],
    ids=[name for name in ALL if name not in ("liqe", "tuned exiqa")],
)  # fmt: skip


@torch.no_grad()
def same(one: Any, two: Any, tolerance: float) -> None:
    for ours, theirs in zip(one.eval()(pictures()), two.eval()(pictures()), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@learning
def test_training_changes_what_learns_and_nothing_else(case: Case) -> None:
    model = case.build()
    before = deepcopy(model.state_dict())
    losses = train(model, case, 12)
    assert losses[-1] < 0.95 * losses[0]
    assert model.clip.visual.training == (model.towers.reloadable or case is CASES["tuned exiqa"])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if case.learns(name)}


@cases
@pytest.mark.parametrize("size", [(60, 80), (48, 48), (40, 33), (33, 300), (200, 50)])
def test_one_image_is_worth_as_much_alone_and_at_any_size(case: Case, size: tuple[int, int]) -> None:
    model = case.build().eval()
    images = pictures(4, *size).requires_grad_()
    together = model(images).score
    together.sum().backward()
    alone = torch.cat([model(image[None]).score for image in images.detach().flip(0)]).flip(0)
    torch.testing.assert_close(together.detach(), alone.detach(), rtol=0, atol=1e-5)
    assert together.std() > 1e-5
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    learns = [name for name, parameter in model.clip.named_parameters() if parameter.grad is not None]
    assert all(case.learns(f"clip.{name}") for name in learns), "a frozen tower gets no gradient"


@cases
def test_texts_are_read_once_unless_they_learn(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = case.build().eval(), list[int]()
    encode = model.clip.encode_text

    def counted(tokens: Tensor) -> Any:
        calls.append(len(tokens))
        return encode(tokens)

    monkeypatch.setattr(model.clip, "encode_text", counted)
    with torch.inference_mode():
        model(pictures())
    model(pictures().requires_grad_()).score.sum().backward()
    assert len(calls) == case.texts
    before = model(pictures()).score
    if case is not ZERO_SHOT:
        train(model, case, 3)
        learns = model.texts_learn
        assert learns == (case is not CASES["exiqa"])
        assert len(calls) == case.texts * (4 if learns else 1)
        after = model.eval()(pictures()).score
        assert len(calls) == case.texts * (5 if learns else 1)
        assert not torch.equal(before, after)
    other = case.build(towers_of(7)).eval()
    other(pictures())  # reads its own texts
    other.load_state_dict(model.state_dict())
    same(other, model, 1e-6)


@cases
def test_the_same_seed_gives_the_same_model_and_no_global_draw_is_made(case: Case) -> None:
    before = torch.get_rng_state()
    one, again, other = (case.build(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    drawn = {"prompts.prompts", "contexts.scenes.context", "contexts.distortions.context", "context.context"}
    drawn |= {"regressor.0.weight", "head.0.weight", "decoder.0.self_attn.in_proj_weight", "decoder.1.linear1.weight"}
    equal = {name for name in one if torch.equal(one[name], other[name])}
    assert not equal & drawn
    assert equal >= {name for name in one if name.startswith("clip.")}


@cases
def test_autocast_leaves_cosines_in_float32(case: Case) -> None:
    one, other = case.build().eval(), case.build().eval()
    with torch.no_grad():
        exact = one(pictures())
        with torch.autocast("cpu", torch.bfloat16):
            rough = other(pictures())
    assert torch.equal(one.text_features(), other.text_features()), "the next image may come without autocast"
    for ours, theirs in zip(exact, rough, strict=True):
        if ours is not None:
            assert theirs.dtype == torch.float32
            torch.testing.assert_close(theirs, ours, rtol=0, atol=0.05)


@frozen
def test_a_frozen_clip_with_a_name_stays_out_of_the_checkpoint(case: Case, tmp_path: Path) -> None:
    model, path = (
        case.build(load_clip(*small_clip.tagged(tmp_path / "clip", "attriqa-small", CONFIG)), 3),
        tmp_path / "m",
    )
    if case is not ZERO_SHOT:
        train(model, case)
    model.save(path, {"data": "made up"})
    saved = checkpoint.load(path)
    assert not any(name.startswith("clip.") for name in saved.state)
    assert saved.provenance == {"data": "made up"}
    loaded = load(path)
    assert not loaded.training
    assert loaded.has_score
    assert loaded.config == model.config
    same(loaded, model, 2e-3)  # what learnt is kept as float16
    moved, kind = (tmp_path / "clip").rename(tmp_path / "elsewhere"), type(model)
    with pytest.raises(CheckpointError, match=r"its CLIP cannot be had: the weights 'tiny' of .* are not on this"):
        load(path)
    same(kind.load(path, towers=load_clip(f"local-dir:{moved}")), loaded, 1e-6)
    for towers in (towers_of(5), towers_of(layers=3)):
        with pytest.raises(CheckpointError, match=r"made on attriqa-small with the weights .*, those of tiny are"):
            kind.load(path, towers=towers)


@cases
def test_a_checkpoint_without_a_name_to_go_by_holds_everything(case: Case, tmp_path: Path) -> None:
    model, path = case.build(), tmp_path / "model.safetensors"
    if case is not ZERO_SHOT:
        train(model, case)
    model.save(path, {})
    loaded = load(path)
    same(loaded, model, 5e-3)
    if "exiqa" not in type(model).__name__.lower():  # whose regressor stood still in `train`
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]


@cases
def test_a_checkpoint_of_something_else_is_refused(case: Case, tmp_path: Path) -> None:
    model, path = case.build(), tmp_path / "model.safetensors"
    model.save(path, {})
    saved, kind = checkpoint.load(path), type(model)
    settings: dict[str, Any] = {"architecture": kind.__name__, "provenance": {}, "prompts_hash": saved.prompts_hash}

    def refused(state: dict[str, Tensor], config: dict[str, Any], message: str, **changes: str) -> None:
        checkpoint.save(path, state, config=config, **settings | changes)
        with pytest.raises(CheckpointError, match=message):
            kind.load(path)

    refused(saved.state, saved.config | {"colour": 3}, r"its config does not build: .*differing: \['colour'\]")
    nameless = {key: value for key, value in saved.config.items() if key != "clip"}
    refused(saved.state, nameless, "it does not say which CLIP it stands on")
    refused(saved.state, saved.config, f"expected a checkpoint of {kind.__name__}, got Net", architecture="Net")
    name = next(iter(saved.state))
    refused(saved.state | {name: torch.zeros(5, 5, 5)}, saved.config, rf"of another shape: {name} \(file \(5, 5, 5\)")


@cases
def test_a_config_comes_back_from_json(case: Case) -> None:
    config = case.build(**case.changes).config
    values = json.loads(json.dumps(as_dict(config)))
    assert type(config).from_dict(values) == config
    assert config != case.build().config or not case.changes
    with pytest.raises(ValueError, match=r"differing: \['colour'\]"):
        type(config).from_dict({**values, "colour": 1})
    with pytest.raises(ValueError, match="differing"):
        type(config).from_dict({key: value for key, value in values.items() if key != next(iter(values))})


@SCORED_BY_A_HEAD
def test_there_is_no_score_before_a_head_is_trained_and_then_one_within_0_and_1(build: Any) -> None:
    model = build().eval()
    assert not model.has_score
    assert torch.equal(model(pictures()).score, torch.full((3,), 0.5))
    clip_models.teach_score(model)
    assert model.has_score
    assert model(pictures()).score.std() > 0
    for offset in (-5.0, 5.0):
        with torch.no_grad():
            last_layer(model).bias.fill_(offset)
        images = pictures().requires_grad_()
        score = model(images).score
        assert torch.equal(score, torch.full((3,), float(offset > 0)))
        score.sum().backward()
        assert images.grad is not None
        assert (images.grad.flatten(1).norm(dim=1) > 0).all(), "beyond the scale it still pulls"


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that comes out of an operation with memory of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


@pytest.mark.parametrize("look", [
    clip_models.liqe(crops=8, stride=32, shorter_edge=2160).look,
    partial(seeded_crops, crop=(48, 48), count=8),
], ids=["liqe", "mp-iqe"])  # fmt: skip
def test_crops_of_a_4k_image_take_no_more_memory_than_those_of_a_small_one(look: Any) -> None:
    found = []
    for height, width in ((300, 400), (2160, 3840)):
        image = torch.zeros(1, 3, height, width)
        with Largest() as largest:
            assert look(image).shape == (1, 8, 3, 48, 48)
        found.append(largest.bytes)
    assert found[0] == found[1] == 8 * 3 * 48 * 48 * 4


@pytest.mark.parametrize("build", [clip_models.liqe, clip_models.mp_iqe], ids=["liqe", "mp-iqe"])
def test_the_memory_estimate_follows_crops_and_gradients(build: Any) -> None:
    small, large = (
        [build(crops=crops).activation_bytes(60, 80, "own", gradients=gradients) for gradients in (False, True)]
        for crops in (2, 8)
    )
    assert 2 * small[0] < large[0] < 4 * small[0]
    assert small[0] < small[1]


def test_the_old_name_of_predict_warns() -> None:
    model = clip_models.clip_iqa()
    with pytest.warns(DeprecationWarning, match="tell is now predict"):
        assert torch.equal(model.tell(pictures()), model.predict(pictures()))
