"""ExIQA on small random CLIPs: its equations, what learns and what stands still, its checkpoint."""

import dataclasses
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.distortions.attributes import DISTORTION_ATTRIBUTES, DistortionAttributes, table_hash
from attriqa.models import checkpoint
from attriqa.models.assessment import Assessment
from attriqa.models.checkpoint import CheckpointError
from attriqa.models.clip.towers import CLIPTowers, build_clip, load_clip
from attriqa.models.exiqa import ExIQA, ExIQAConfig, load, transfer
from attriqa.training.losses import strength_loss
from tests.support import small_clip
from tests.support.small_clip import pictures

CONFIG = small_clip.vit(32)
TABLE = DISTORTION_ATTRIBUTES[:4]


def towers_of(seed: int = 0, **changes: Any) -> CLIPTowers:
    return build_clip({"model_cfg": CONFIG | changes}, name="tiny", seed=seed)


def model_of(towers: CLIPTowers | None = None, seed: int = 0, **changes: Any) -> ExIQA:
    settings: dict[str, Any] = {"table": TABLE, "prompts": 4, "regressor_widths": (16, 8)} | changes
    return ExIQA(ExIQAConfig(**settings), towers or towers_of(), seed=seed)


def whole(**changes: Any) -> ExIQA:
    return model_of(tune="all", prompts=0, prompt_kind="none", **changes)


def targets(count: int = 3, seed: int = 1) -> Tensor:
    return torch.randint(0, 6, (count, len(TABLE)), generator=torch.Generator().manual_seed(seed)) / 5


def train(model: ExIQA, steps: int = 4, lr: float = 0.02) -> list[float]:
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=lr)
    model.train()
    losses = []
    for _ in range(steps):
        loss = strength_loss(model.identify(pictures()).strengths, targets())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def teach_score(model: ExIQA) -> None:
    """A regressor that has an opinion."""
    with torch.no_grad():
        model.regressor[-1].weight.copy_(torch.linspace(-1, 1, 8))  # type: ignore[operator]


# Equations


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 1 / 0.07),
        ({"logit_scale": 100.0}, 100.0),
        ({"normalize": False}, 1.0),
        ({"normalize": False, "logit_scale": 3.0}, 3.0),
    ],
)
@torch.no_grad()
def test_probabilities_and_strengths_are_equations_6_and_7(settings: dict[str, Any], scale: float) -> None:
    towers = towers_of()
    model = model_of(towers, prompts=0, prompt_kind="none", **settings).eval()
    weights = torch.rand(4, 5, generator=torch.Generator().manual_seed(2))
    model.weights.copy_(weights.log())
    images = pictures()
    found = model(images)
    seen = towers.model.encode_image(towers.preprocess.normalize(towers.preprocess.geometry(images)))
    for d, entry in enumerate(TABLE):
        expected = torch.zeros(3)
        for k, phrase in enumerate(entry.attributes):
            texts = [f"There is {phrase} in the photo.", f"There is not {phrase} in the photo."]
            t = towers.model.encode_text(towers.tokenize(texts))
            unit = [F.normalize(x, dim=1) if model.config.normalize else x for x in (seen, t)]
            p = (scale * unit[0] @ unit[1].T).softmax(1)[:, 0]
            torch.testing.assert_close(found.attribute_probs[:, 5 * d + k], p, rtol=0, atol=1e-5)
            expected += weights[d, k] / weights[d].sum() * p
        torch.testing.assert_close(found.distortions[:, d], expected, rtol=0, atol=1e-5)
    assert found.attribute_probs.std(0).max() > 1e-3


def test_an_assessment_has_what_the_model_knows() -> None:
    model = model_of().eval()
    found = model(pictures())
    assert isinstance(found, Assessment)
    assert found.attributes is None
    assert found.distortions is not None
    assert found.attribute_probs is not None
    assert (found.score.shape, found.distortions.shape, found.attribute_probs.shape) == ((3,), (3, 4), (3, 20))
    assert torch.equal(found.distortions, model.identify(pictures()).strengths)
    joined = Assessment.cat([found, found.map(lambda field: field[:1])])
    assert joined.attributes is None
    assert joined.distortions is not None
    assert torch.equal(joined.distortions, torch.cat([found.distortions, found.distortions[:1]]))


def test_one_image_is_worth_as_much_alone_and_at_any_size() -> None:
    model = model_of().eval()
    teach_score(model)
    images = pictures(4)
    with torch.no_grad():
        together = model(images)
        alone = Assessment.cat([model(image[None]) for image in images])
        prepared = model(model.preprocess.geometry(images))
    for one, two, three in zip(together, alone, prepared, strict=True):
        if one is not None:
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
            torch.testing.assert_close(one, three, rtol=0, atol=1e-6)


def test_there_is_no_score_before_a_regressor_is_trained() -> None:
    model = model_of().eval()
    assert not model.has_score
    assert torch.equal(model(pictures()).score, torch.full((3,), 0.5))
    teach_score(model)
    assert model.has_score
    assert model(pictures()).score.std() > 0


def test_the_score_stays_within_0_and_1_and_keeps_its_gradient() -> None:
    model = model_of().eval()
    teach_score(model)
    for offset in (-5.0, 5.0):
        with torch.no_grad():
            model.regressor[-1].bias.fill_(offset)  # type: ignore[operator]
        images = pictures().requires_grad_()
        score = model(images).score
        assert torch.equal(score, torch.full((3,), float(offset > 0)))
        score.sum().backward()
        assert images.grad is not None
        assert (images.grad.flatten(1).norm(dim=1) > 0).all()


def test_autocast_leaves_the_head_in_float32() -> None:
    model = model_of().eval()
    with torch.no_grad():
        plain = model(pictures())
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(pictures())
    for exact, rough in zip(plain, mixed, strict=True):
        if exact is not None:
            assert rough.dtype == torch.float32
            torch.testing.assert_close(rough, exact, rtol=0, atol=0.02)


def test_the_loss_is_equation_8() -> None:
    predicted, strengths = torch.tensor([[0.2, 0.9], [0.5, 0.0]]), torch.tensor([[0.0, 0.8], [1.0, 0.0]])
    p, t = predicted.double().clamp(1e-6, 1 - 1e-6), strengths.double()
    expected = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    assert strength_loss(predicted, strengths).item() == pytest.approx(expected.item(), rel=1e-5)


# What learns


@pytest.mark.parametrize("kind", ["shallow", "deep", "first"])
def test_prompt_tuning_changes_prompts_and_weights_and_nothing_else(kind: str) -> None:
    model = model_of(prompt_kind=kind)
    model.regressor.requires_grad_(False)
    before = deepcopy(model.state_dict())
    losses = train(model, 6)
    assert losses[-1] < losses[0]
    assert not model.clip.training, "frozen towers are in eval mode, whatever the rest"
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"prompts.prompts", "weights"}


def test_tuning_all_changes_both_towers_but_not_tau() -> None:
    model = whole()
    model.regressor.requires_grad_(False)
    before = deepcopy(model.state_dict())
    losses = train(model, 6, lr=2e-3)
    assert losses[-1] < losses[0]
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {"clip.logit_scale", *(name for name in before if name.startswith("regressor"))}


def test_gradients_reach_the_pixels_and_frozen_towers_get_none() -> None:
    model = model_of().eval()
    images = pictures().requires_grad_()
    model(images).distortions.sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in model.clip.parameters())


def test_texts_of_a_frozen_clip_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    calls = count_calls(model, monkeypatch)
    with torch.inference_mode():
        model.eval()(pictures())
    model(pictures())
    train(model, 3)
    first = model.eval()(pictures())
    assert calls == [None]
    assert torch.equal(model(pictures()).distortions, first.distortions)
    other = model_of(towers_of(7))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(pictures()).distortions, first.distortions)
    other.load_state_dict(model_of(towers_of(7)).state_dict())
    assert not torch.equal(other(pictures()).distortions, first.distortions)
    assert torch.equal(other(pictures()).distortions, model_of(towers_of(7)).eval()(pictures()).distortions)


def test_texts_of_a_learning_clip_are_read_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = whole()
    calls = count_calls(model, monkeypatch)
    model.eval()(pictures())
    train(model, 3)
    assert len(calls) == 4
    model.eval()
    with torch.no_grad():
        model(pictures())
        after = model(pictures()).distortions
    assert len(calls) == 5
    fresh = whole(towers=towers_of(7))
    fresh.eval()(pictures())  # reads its own texts
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(pictures()).distortions, after, rtol=0, atol=1e-6)


def count_calls(model: ExIQA, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    calls: list[None] = []
    encode = model.clip.encode_text

    def counted(tokens: Tensor) -> Tensor:
        calls.append(None)
        return encode(tokens)  # type: ignore[no-any-return]

    monkeypatch.setattr(model.clip, "encode_text", counted)
    return calls


def test_the_same_seed_gives_the_same_model_and_no_global_draw_is_made() -> None:
    before = torch.get_rng_state()
    models = [model_of(towers_of(), seed=seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert not torch.equal(models[0]["prompts.prompts"], models[2]["prompts.prompts"])
    assert not torch.equal(models[0]["regressor.0.weight"], models[2]["regressor.0.weight"])


# Checkpoints


def same(one: ExIQA, two: ExIQA, tolerance: float = 1e-6) -> None:
    with torch.no_grad():
        for a, b in zip(one.eval()(pictures()), two.eval()(pictures()), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_a_frozen_clip_with_a_name_stays_out_of_the_checkpoint(tmp_path: Path) -> None:
    model = model_of(load_clip(*small_clip.tagged(tmp_path / "clip", "attriqa-small-exiqa", CONFIG)), seed=3)
    train(model)
    teach_score(model)
    model.save(tmp_path / "model.safetensors", {"data": "made up"})
    saved = checkpoint.load(tmp_path / "model.safetensors")
    assert not any(name.startswith("clip.") for name in saved.state)
    assert saved.provenance == {"data": "made up"}
    assert saved.prompts_hash == table_hash(TABLE)
    loaded = load(tmp_path / "model.safetensors")
    assert not loaded.training
    assert loaded.has_score
    assert loaded.config == model.config
    same(loaded, model, 1e-3)  # what learnt is kept as float16
    moved = (tmp_path / "clip").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"its CLIP cannot be had: the weights 'tiny' of .* are not on this"):
        load(tmp_path / "model.safetensors")
    same(load(tmp_path / "model.safetensors", towers=load_clip(f"local-dir:{moved}")), loaded)
    with pytest.raises(CheckpointError, match=r"with the weights [0-9a-f]{16}, those of tiny are [0-9a-f]{16}"):
        load(tmp_path / "model.safetensors", towers=towers_of(5))


@pytest.mark.parametrize("tune", ["prompts", "all"])
def test_a_checkpoint_without_a_name_to_go_by_holds_everything(tmp_path: Path, tune: str) -> None:
    model = whole() if tune == "all" else model_of()
    train(model, lr=1e-3)
    model.save(tmp_path / "model.safetensors", {})
    loaded = load(tmp_path / "model.safetensors")
    same(loaded, model, 2e-3)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]


def test_a_tuned_clip_is_in_the_checkpoint_though_it_once_had_a_name(tmp_path: Path) -> None:
    model = whole(towers=load_clip(small_clip.write(tmp_path / "clip", CONFIG)))
    train(model, lr=1e-3)
    assert not model.towers.reloadable
    model.save(tmp_path / "model.safetensors", {})
    (tmp_path / "clip").rename(tmp_path / "gone")
    loaded = load(tmp_path / "model.safetensors")
    same(loaded, model, 2e-3)
    further = model_of(loaded.towers)  # prompts inside the tuned towers
    further.save(tmp_path / "further.safetensors", {})
    same(load(tmp_path / "further.safetensors"), further, 2e-3)


def test_another_table_is_refused_with_both_sizes(tmp_path: Path) -> None:
    model = model_of()
    model.save(tmp_path / "model.safetensors", {})
    load(tmp_path / "model.safetensors", table=TABLE)
    message = (
        rf"{table_hash(TABLE)[:16]} \(4 distortions, 20 attributes\), but the table in use is "
        rf"{table_hash(DISTORTION_ATTRIBUTES)[:16]} \(25 distortions, 125 attributes\)"
    )
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "model.safetensors", table=DISTORTION_ATTRIBUTES)


def test_a_checkpoint_whose_table_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model_of().save(path, {})
    saved = checkpoint.load(path)
    config = deepcopy(saved.config)
    settings: dict[str, Any] = {"architecture": "ExIQA", "provenance": {}, "prompts_hash": saved.prompts_hash}
    config["table"][0]["attributes"][0] = "something else"
    checkpoint.save(path, saved.state, config=config, **settings)
    with pytest.raises(CheckpointError, match=f"made with the prompt table {saved.prompts_hash}, but"):
        load(path)
    config = deepcopy(saved.config) | {"colour": 3}
    checkpoint.save(path, saved.state, config=config, **settings)
    with pytest.raises(CheckpointError, match=r"its config does not build: .*differing: \['colour'\]"):
        load(path)
    checkpoint.save(path, saved.state, config=saved.config, **settings | {"architecture": "AttributeNet"})
    with pytest.raises(CheckpointError, match="expected a checkpoint of ExIQA, got AttributeNet"):
        load(path)
    state = {**saved.state, "weights": torch.zeros(5, 5)}
    checkpoint.save(path, state, config=saved.config, **settings)
    with pytest.raises(CheckpointError, match=r"of another shape: weights \(file \(5, 5\), model \(4, 5\)\)"):
        load(path)


def test_the_configuration_survives_json() -> None:
    config = ExIQAConfig(regressor_widths=(7,), logit_scale=9.5, prompt_kind="deep")
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    assert ExIQAConfig.from_dict(plain) == config


# Other tables


def own(key: str, count: int = 5) -> DistortionAttributes:
    return DistortionAttributes(key, key, "is applied", tuple(f"{key} {number}" for number in range(count)))


def test_a_model_names_distortions_of_ones_own() -> None:
    model = model_of(table=(own("rain", 3), own("fog", 3))).eval()
    found = model(pictures())
    assert (found.distortions.shape, found.attribute_probs.shape) == ((3, 2), (3, 6))


def test_another_table_keeps_the_weights_of_what_it_shares() -> None:
    model = model_of(seed=1)
    train(model)
    changed = dataclasses.replace(TABLE[0], attributes=tuple(f"thing {n}" for n in range(5)))
    other = transfer(model, (own("rain"), TABLE[2], changed))
    assert torch.equal(other.weights[1], model.weights[2])
    assert not other.weights[[0, 2]].any()
    assert other.clip is model.clip
    with torch.no_grad():
        found, known = other.eval()(pictures()), model.eval()(pictures())
    torch.testing.assert_close(found.distortions[:, 1], known.distortions[:, 2], rtol=0, atol=1e-6)
    assert not other.has_score


def test_attributes_that_the_clip_cannot_tell_apart_are_refused() -> None:
    long = "very " * 30
    table = (DistortionAttributes("a", "A", "is applied", (long + "dark", long + "light")),)
    with pytest.raises(ValueError, match=r"table: tiny reads 32 tokens of a text, and so cannot tell .*very.* from"):
        model_of(table=table)


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tune": "text"}, "tune: expected prompts or all, got 'text'"),
        ({"logit_scale": 0.0}, "logit_scale: expected a number above 0, got 0.0"),
        ({"logit_scale": float("nan")}, "logit_scale: expected a number above 0, got nan"),
        ({"regressor_widths": ()}, "regressor_widths: expected numbers of at least 1"),
        ({"table": ()}, "table: expected one distortion or more"),
        ({"table": (TABLE[0], TABLE[0])}, "key: expected a different one"),
        ({"prompts": 0}, "tiny: prompts: expected at least 1 for shallow prompts, got 0"),
        ({"prompt_kind": "none"}, "tiny: prompts: expected 0 for none prompts, got 4"),
    ],
)
def test_settings_that_make_no_model_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(**settings)


def test_a_tower_that_prompts_cannot_enter_is_refused_by_name() -> None:
    vision = small_clip.VIT["vision_cfg"] | {"attentional_pool": True}
    with pytest.raises(ValueError, match=r"tiny: tower: expected pooling .* attention pooling"):
        model_of(towers_of(vision_cfg=vision))
