import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attriqa.attributes import ATTRIBUTES, PROMPT_PAIRS, table_hash
from attriqa.models import checkpoint
from attriqa.models.attribute_net import COMPACT_CONFIG, AttributeNet, AttributeNetConfig
from attriqa.training.loop import gather_rows
from attriqa.training.pretraining import Objective, RawHeads, order_accuracy, shape_of, standardise, start_from
from attriqa.training.schedules import cosine
from attriqa.training.teachers import teacher_of
from tests.support import small_clip

CPU = torch.device("cpu")


SHAPE = AttributeNetConfig(backbone="test_resnet", taps=(2, 4), head_width=16, pooled_dropout=0.5)


def build(seed: int = 0) -> AttributeNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AttributeNet(SHAPE).eval()


def save(path: Path) -> Path:
    net = build()
    checkpoint.save(path, net.state_dict(), architecture="AttributeNet", config=CONFIG, provenance={})
    return path


CONFIG = {**dataclasses.asdict(SHAPE), "taps": list(SHAPE.taps)}


def outputs(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, generator=generator), torch.randn(count, 5, generator=generator)


def test_ranking_is_the_sum_over_attributes_of_the_mean_over_pairs() -> None:
    raw, labels = outputs()
    labels[3] = labels[7]  # ties are dropped
    expected = sum(
        np.mean([
            max(0.0, 0.2 - np.sign(float(labels[i, a] - labels[j, a])) * float(raw[i, a] - raw[j, a]))
            for i, j in itertools.combinations(range(12), 2)
            if labels[i, a] != labels[j, a]
        ])
        for a in range(5)
    )  # fmt: skip
    assert Objective("ranking", ATTRIBUTES, margin=0.2)(raw, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["ranking", "l2"])
def test_only_the_attributes_that_learn_get_a_gradient(kind: str) -> None:
    raw, labels = outputs()
    raw.requires_grad_()
    known = labels if kind == "l2" else None
    Objective(kind, ("contrast", "noisiness"), known=known)(raw, labels).backward()  # type: ignore[arg-type]
    assert raw.grad is not None
    assert raw.grad.abs().sum(0).gt(0).tolist() == [False, True, False, False, True]


def test_l2_is_to_standardised_labels() -> None:
    raw, labels = outputs()
    known = outputs(50)[1] * 3 + 7
    wanted = (labels - known.mean(0)) / known.std(0)
    loss = Objective("l2", ATTRIBUTES, known=known)
    assert loss(wanted, labels).item() == pytest.approx(0, abs=1e-9)
    assert loss(raw, labels).item() == pytest.approx(((raw - wanted) ** 2).mean(0).sum().item(), rel=1e-5)


def test_tau_moves_l2_and_no_ranking() -> None:
    raw, labels = outputs()
    labels = labels / 100
    squashed = torch.sigmoid(100 * labels)
    wanted = (squashed - squashed.mean(0)) / squashed.std(0)
    assert Objective("l2", ATTRIBUTES, tau=100, known=labels)(wanted, labels).item() == pytest.approx(0, abs=1e-9)
    plain, with_tau = (Objective("ranking", ATTRIBUTES, tau=tau)(raw, labels) for tau in (0, 100))
    assert torch.equal(plain, with_tau)
    with pytest.raises(ValueError, match="known: expected labels with l2 and none with ranking, got NoneType"):
        Objective("l2", ATTRIBUTES)
    with pytest.raises(ValueError, match="got Tensor"):
        Objective("ranking", ATTRIBUTES, known=labels)


def test_rows_of_a_lone_process_stay_what_they_are() -> None:
    rows = torch.randn(3, 5)
    assert gather_rows(rows) is rows


def test_order_accuracy_counts_pairs_with_different_labels() -> None:
    raw, labels = outputs(9)
    labels[:, 2] = 1.0  # nothing to order
    labels[4] = labels[5]
    raw[:2, 0] = 0.25  # a tie of the head's: half
    found = order_accuracy(raw, labels, ("sharpness", "brightness", "noisiness"))
    assert list(found) == ["sharpness", "noisiness"]
    for name, value in found.items():
        x, y = (values[:, ATTRIBUTES.index(name)].tolist() for values in (raw, labels))
        pairs = [(i, j) for i, j in itertools.combinations(range(9), 2) if y[i] != y[j]]
        right = [0.5 if x[i] == x[j] else float((x[i] > x[j]) == (y[i] > y[j])) for i, j in pairs]
        assert value == pytest.approx(np.mean(right))
    assert order_accuracy(labels, labels, ["contrast"]) == {"contrast": 1.0}
    assert order_accuracy(-labels, labels, ["contrast"]) == {"contrast": 0.0}


def test_the_rate_rises_and_falls_to_zero() -> None:
    assert [cosine(done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [cosine(done, 0.2) for done in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_the_shape_of_a_net_on_an_encoder() -> None:
    assert shape_of("compact") is COMPACT_CONFIG
    assert shape_of("resnet50") == AttributeNetConfig(), "ATTIQA's"
    assert shape_of("test_convnext").taps == (4,)
    for name in ("resnet5", "test_vit_nothing"):
        with pytest.raises(ValueError, match=f"expected compact or a timm encoder with feature maps, got {name}"):
            shape_of(name)


def test_raw_heads_are_those_of_the_net() -> None:
    net = build()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(RawHeads(net)(images), net.read(net.pool(images))[1], atol=1e-5)  # another memory format


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for freeze in (False, True):
        heads = RawHeads(build())
        heads.learn(freeze_norm=freeze)
        assert heads.net.pooled_dropout.training
        before = {name: value.clone() for name, value in heads.named_buffers() if "running" in name}
        heads(images)
        assert before
        same = all(torch.equal(value, before[name]) for name, value in heads.named_buffers() if name in before)
        assert same is freeze


def test_standardised_heads_see_mean_zero_and_deviation_one() -> None:
    net = build()
    photos = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1)) ** 2
    for _ in range(2):  # whatever it was before
        standardise(net, [photos[:8], photos[8:]])
        pooled = net.pool(photos)
        assert pooled.mean(0).abs().max() < 1e-3
        assert pooled.std(0).max() < 1.001
    assert net.pool(photos[:, :, :24]).requires_grad, "the encoder can learn"


def test_a_net_starts_from_a_checkpoint_of_its_kind(tmp_path: Path) -> None:
    path = save(tmp_path / "small.safetensors")
    net = build(seed=5)
    start_from(net, path, None)
    kept = checkpoint.load(path).state
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())


def test_a_checkpoint_of_another_kind_is_refused_with_both_sides(tmp_path: Path) -> None:
    net = build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cases: dict[str, dict[str, Any]] = {
        "expected a checkpoint of AttributeNet, got MPIQE": {"architecture": "MPIQE"},
        r"crop: 32 there, 320 here; head_width: 64 there, 16 here": {
            "config": {**CONFIG, "head_width": 64, "crop": 32}
        },
        rf"made with the prompt table {'a' * 64}, but the table in use is \(none\)": {"prompts_hash": "a" * 64},
    }
    for message, change in cases.items():
        about: dict[str, Any] = {
            "architecture": "AttributeNet",
            "config": CONFIG,
            "provenance": {},
            "prompts_hash": None,
            **change,
        }
        checkpoint.save(tmp_path / "x.safetensors", {"weight": torch.ones(2)}, **about)
        with pytest.raises(checkpoint.CheckpointError, match=message):
            start_from(net, tmp_path / "x.safetensors", None)
    with pytest.raises(checkpoint.CheckpointError, match=rf"\(none\), but the table in use is {'b' * 64}"):
        start_from(net, save(tmp_path / "y.safetensors"), "b" * 64)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_teachers_by_name(tmp_path: Path) -> None:
    assert "shorter_edge=320" in teacher_of("signal", CPU, shorter_edge=320).identity
    name = small_clip.write(tmp_path / "clip")
    teacher = teacher_of(f"clip:{name}", CPU)
    assert teacher.prompts_hash == table_hash(PROMPT_PAIRS)
    assert teacher_of(f"clip:{name}", CPU, positional_embedding=False).size is None
    for wrong in ("signals", "clip", "clip:", "signal:512"):
        with pytest.raises(ValueError, match=f"teacher: expected signal or clip:MODEL:PRETRAINED, got {wrong}"):
            teacher_of(wrong, CPU)
    with pytest.raises(ValueError, match="nowhere"):
        teacher_of("clip:ViT-B-16:nowhere/to/be.found", CPU)
