"""ExIQA on small random CLIPs: its equations, its tables, its tuned towers; the rest is in test_clip_contract.py."""

import dataclasses
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from attriqa.distortions.attributes import DISTORTION_ATTRIBUTES, DistortionAttributes, table_hash
from attriqa.models import checkpoint
from attriqa.models.assessment import Assessment
from attriqa.models.checkpoint import CheckpointError
from attriqa.models.clip.towers import load_clip
from attriqa.models.exiqa import load, transfer
from attriqa.training.losses import strength_loss
from tests.models.test_clip_contract import same
from tests.support import small_clip
from tests.support.clip_models import CASES, CONFIG, TABLE, towers_of, train
from tests.support.clip_models import exiqa as model_of
from tests.support.clip_models import tuned_exiqa as whole
from tests.support.small_clip import pictures

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


def test_the_loss_is_equation_8() -> None:
    predicted, strengths = torch.tensor([[0.2, 0.9], [0.5, 0.0]]), torch.tensor([[0.0, 0.8], [1.0, 0.0]])
    p, t = predicted.double().clamp(1e-6, 1 - 1e-6), strengths.double()
    expected = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    assert strength_loss(predicted, strengths).item() == pytest.approx(expected.item(), rel=1e-5)


# Checkpoints


def test_a_tuned_clip_is_in_the_checkpoint_though_it_once_had_a_name(tmp_path: Path) -> None:
    model = whole(towers=load_clip(small_clip.write(tmp_path / "clip", CONFIG)))
    train(model, CASES["tuned exiqa"])
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


# Other tables


def own(key: str, count: int = 5) -> DistortionAttributes:
    return DistortionAttributes(key, key, "is applied", tuple(f"{key} {number}" for number in range(count)))


def test_a_model_names_distortions_of_ones_own() -> None:
    model = model_of(table=(own("rain", 3), own("fog", 3))).eval()
    found = model(pictures())
    assert (found.distortions.shape, found.attribute_probs.shape) == ((3, 2), (3, 6))


def test_another_table_keeps_the_weights_of_what_it_shares() -> None:
    model = model_of(seed=1)
    train(model, CASES["exiqa"])
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
    with pytest.raises(ValueError, match=r"tiny: tower: expected pooling .* attention pooling"):
        model_of(towers_of(attentional_pool=True))
