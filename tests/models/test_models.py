import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import attriqa
from attriqa import ATTRIBUTES, load
from attriqa.models import AttributeNet, AttributeNetConfig, checkpoint, load_with_provenance
from attriqa.models.attribute_heads import MeanAndDeviation, squash
from attriqa.models.attribute_net import rebuilt
from attriqa.models.backbones import Backbone, fold_batch_norm, load_compact_trunk
from attriqa.models.checkpoint import CheckpointError
from tests.support import small_net

TAPS = (3, 5, 7, 9, 11, 12)
TRUNK = "mobilenet_v1_100_imagenet_trunk.safetensors"


@pytest.fixture(scope="module")
def net() -> AttributeNet:
    return small_net.build()


def pictures(count: int = 2, side: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")


# Backbones


@pytest.mark.shared_data
def test_the_mobilenet_port_gives_the_published_activations(shared_data: Path) -> None:
    backbone = Backbone("mobilenet_v1", TAPS).eval()
    load_compact_trunk(backbone, shared_data / "weights" / TRUNK)
    golden = np.load(shared_data / "weights" / "mobilenet_v1_golden.npz")
    with torch.no_grad():
        maps = backbone(torch.from_numpy(golden["image"]))
    assert backbone.channels == tuple(features.shape[1] for features in maps)
    for tap, features in zip(TAPS, maps, strict=True):
        assert sorted(features.shape) == sorted(golden[f"block{tap}_shape"].tolist())
        expected = golden[f"block{tap}_mean"]
        found = features.mean((0, 2, 3)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))


@pytest.mark.shared_data
def test_the_trunk_loader_refuses_other_files(shared_data: Path, tmp_path: Path) -> None:
    published = load_file(shared_data / "weights" / TRUNK)
    backbone = Backbone("mobilenet_v1", (12,))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    lacking = {key: value for key, value in published.items() if not key.startswith("conv_pw_7_bn")}
    save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(ValueError, match=r"lacking\.safetensors: expected the \d+ tensors of mobilenet_v1.*blocks\.6"):
        load_compact_trunk(backbone, tmp_path / "lacking.safetensors")
    save_file({**published, "conv_pw_13.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"differing: .*blocks\.12"):
        load_compact_trunk(backbone, tmp_path / "more.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    with pytest.raises(ValueError, match="backbone: expected mobilenet_v1, got resnet18"):
        load_compact_trunk(Backbone("resnet18", (1,)), shared_data / "weights" / TRUNK)


def test_the_trunk_loader_refuses_foreign_names(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(32, 3, 3, 3), "a_head": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: expected the .*a_head"):
        load_compact_trunk(Backbone("mobilenet_v1", (12,)), tmp_path / "other.safetensors")


@pytest.mark.parametrize("taps", [(), (0, 3), (3, 13), (5, 3), (3, 3)])
def test_wrong_taps_are_refused(taps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"taps: expected ascending depths within 1\.\.12 of mobilenet_v1, got \("):
        Backbone("mobilenet_v1", taps)


def test_the_compact_trunk_is_not_downloaded() -> None:
    with pytest.raises(ValueError, match="pretrained: mobilenet_v1 loads its weights from a file"):
        Backbone("mobilenet_v1", (3,), pretrained=True)


def test_folding_batch_norms_changes_no_map(net: AttributeNet) -> None:
    folded = small_net.build()
    fold_batch_norm(folded)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.backbone.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.backbone.modules())
    with torch.no_grad():
        for ours, theirs in zip(folded.backbone(pictures()), net.backbone(pictures()), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(folded(pictures()).score, net(pictures()).score, rtol=0, atol=1e-4)


def test_folding_works_on_a_timm_network() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = Backbone("resnet18", (1, 3)).train()
        plain(pictures(4, 64))  # gives the BatchNorms statistics that are not 0 and 1
        plain.eval()
    folded = Backbone("resnet18", (1, 3))
    folded.load_state_dict(plain.state_dict())
    fold_batch_norm(folded.eval())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        for ours, theirs in zip(folded(pictures(2, 64)), plain(pictures(2, 64)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_freezing_stops_the_stem_the_first_blocks_and_every_batch_norm() -> None:
    backbone = Backbone("mobilenet_v1", (12,))
    backbone.freeze(4)
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    first = tuple(f"trunk.blocks.{i}." for i in range(4))
    early = {n for n, _ in backbone.named_parameters() if n.startswith(("trunk.stem", *first))}
    assert frozen == early | {n for n, _ in backbone.named_parameters() if ".bn" in n}
    with pytest.raises(TypeError, match="freeze: only mobilenet_v1 counts its blocks, this is resnet18"):
        Backbone("resnet18", (1,)).freeze(1)


# AttributeNet


def test_the_papers_net_has_the_papers_shapes() -> None:
    net = AttributeNet(AttributeNetConfig()).eval()
    assert net.backbone.channels == (2048,)
    assert net.heads_in.weight.shape == (5 * 512, 2048)
    assert [tuple(head.state_dict()["weight"].shape) for head in net.heads_out] == [(1, 512)] * len(ATTRIBUTES)
    widths = [tuple(layer.weight.shape) for layer in net.regressor if isinstance(layer, nn.Linear)]
    assert widths == [(512, 2560), (1, 512)]
    with torch.no_grad():
        said = net(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert said.score.shape == (2,)
    assert said.attributes.shape == (2, 5)


def test_an_assessment_is_in_range_also_of_one_image(net: AttributeNet) -> None:
    for count in (1, 3):
        with torch.no_grad():
            said = net(pictures(count))
        assert said.score.shape == (count,)
        assert said.attributes.shape == (count, 5)
        assert said.distortions is None
        assert said.attribute_probs is None
        for values in (said.score, said.attributes):
            assert ((values >= 0) & (values <= 1)).all()


def test_statistics_are_mean_and_deviation_of_the_maps(net: AttributeNet) -> None:
    with torch.no_grad():
        maps = net.backbone(pictures())
        found = net.pool(pictures()) * net.pooled_std + net.pooled_mean
    parts = [part for m in maps for part in (m.mean((2, 3)), (m.var((2, 3), correction=0) + 1e-5).sqrt())]
    torch.testing.assert_close(found, torch.cat(parts, 1), rtol=1e-4, atol=1e-5)


def test_each_head_reads_its_own_features(net: AttributeNet) -> None:
    pooled = net.pool(pictures()).detach()
    _, before = net.read(pooled)
    changed = small_net.build()
    width = small_net.CONFIG.head_width
    with torch.no_grad():
        changed.heads_in.weight[2 * width : 3 * width] += 1.0
    _, after = changed.read(pooled)
    assert (before != after).any(0).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_gradients_of_a_constant_image_are_finite(net: AttributeNet, value: float) -> None:
    image = torch.full((1, 3, 96, 96), value, requires_grad=True)
    said = net(image)
    (found,) = torch.autograd.grad(said.score.sum() + said.attributes.sum(), image)
    assert found.isfinite().all()


def test_calibration_spreads_the_natural_photos() -> None:
    net = small_net.build()
    raw = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1, 10, 3, 0.5]) + 2
    net.calibrate_attributes(raw)
    spread = squash((raw - net.attribute_shift) / net.attribute_scale)
    low, middle, high = spread.quantile(torch.tensor([0.1, 0.5, 0.9]), 0)
    torch.testing.assert_close(middle, torch.full((5,), 0.5), rtol=0, atol=0.01)
    assert ((low > 0.05) & (low < 0.15)).all()
    assert ((high > 0.85) & (high < 0.95)).all()
    net.calibrate_attributes(torch.zeros(10, 5))
    assert (net.attribute_scale > 0).all(), "heads that stand still must not divide by zero"


def test_squash_rises_within_bounds_and_keeps_pulling_from_far() -> None:
    x = torch.tensor([-1e3, -100.0, -4 / 3, 0.0, 4 / 3, 100.0, 1e3], requires_grad=True)
    y = squash(x)
    assert y.diff().gt(0).all()
    assert 0 < y[0] < 1e-4
    assert 1 - 1e-4 < y[-1] < 1
    torch.testing.assert_close(y[2:5], torch.tensor([0.1, 0.5, 0.9]))
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope.min() > 1e-10
    assert slope[1] > 1e-7, "a sigmoid's slope is 4e-44 here"


# Configurations and checkpoints


def as_json(config: AttributeNetConfig) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dataclasses.asdict(config))))


def test_a_config_survives_json_and_refuses_other_fields() -> None:
    for config in (AttributeNetConfig(), small_net.CONFIG):
        assert AttributeNetConfig.from_dict(as_json(config)) == config
    with pytest.raises(ValueError, match=r"config: expected the fields .*differing: \['colour'\]"):
        AttributeNetConfig.from_dict({**as_json(small_net.CONFIG), "colour": 1})
    lacking = as_json(small_net.CONFIG)
    del lacking["crop"]
    with pytest.raises(ValueError, match=r"differing: \['crop'\]"):
        AttributeNetConfig.from_dict(lacking)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_net.save(tmp_path_factory.mktemp("weights") / "small.safetensors", data="none")


def test_load_gives_the_saved_net(net: AttributeNet, weights: Path) -> None:
    state, numpy_state = torch.get_rng_state(), repr(np.random.get_state(legacy=False))
    loaded = load_with_provenance(weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(np.random.get_state(legacy=False)) == numpy_state
    assert loaded.provenance == {"data": "none"}
    assert len(loaded.sha256) == 64
    assert loaded.model.config == small_net.CONFIG
    assert not loaded.model.training
    assert {value.dtype for value in loaded.model.state_dict().values()} <= {torch.float32, torch.int64}
    with torch.no_grad():  # the file holds half precision
        torch.testing.assert_close(load(weights)(pictures()).score, net(pictures()).score, rtol=0, atol=2e-3)


Change = Callable[[dict[str, Tensor], dict[str, Any]], str]


def drop(state: dict[str, Tensor], config: dict[str, Any]) -> str:
    del state["heads_in.bias"]
    return "AttributeNet"


def shape(state: dict[str, Tensor], config: dict[str, Any]) -> str:
    config["head_width"] = 16
    return "AttributeNet"


def unknown_field(state: dict[str, Tensor], config: dict[str, Any]) -> str:
    config["colour"] = 1
    return "AttributeNet"


def wrong_taps(state: dict[str, Tensor], config: dict[str, Any]) -> str:
    config["taps"] = [3, 40]
    return "AttributeNet"


def architecture(state: dict[str, Tensor], config: dict[str, Any]) -> str:
    return "Strange"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"1 in the model but not in the file: heads_in\.bias"),
        (shape, r"of another shape: .*heads_in\.weight \(file \(160, \d+\), model \(80, \d+\)\)"),
        (unknown_field, r"its config does not build: .*colour"),
        (wrong_taps, r"its config does not build: taps: expected"),
        (architecture, r"expected a checkpoint of AttributeNet or .*, got Strange"),
    ],
)
def test_what_does_not_fit_is_refused(net: AttributeNet, tmp_path: Path, change: Change, message: str) -> None:
    state, config = dict(net.state_dict()), as_json(small_net.CONFIG)
    name = change(state, config)
    path = tmp_path / "odd.safetensors"
    checkpoint.save(path, state, architecture=name, config=config, provenance={})
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert str(error.value).startswith(str(path))


def test_a_missing_or_damaged_file_is_told(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        load(tmp_path / "gone.safetensors")
    data = bytearray(weights.read_bytes())
    path = tmp_path / "damaged.safetensors"
    for cut in (0, 7, 1000, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=r"damaged\.safetensors"):
            load(path)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged: its content does not match"):
        load(path)


def test_the_default_is_inside_the_package_and_small() -> None:
    loaded = load_with_provenance()
    assert loaded.provenance["ramp_test_photos"]
    path = Path(attriqa.__file__).parent / "weights" / "default.safetensors"
    assert path.stat().st_size <= 12e6


def test_pooled_statistics_have_right_gradients_of_both_orders() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 30, 3, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(MeanAndDeviation.apply, (pixels,))
    assert torch.autograd.gradgradcheck(MeanAndDeviation.apply, (pixels,))
    flat = torch.ones(1, 30, 3, dtype=torch.float64, requires_grad=True)
    mean, deviation = MeanAndDeviation.apply(flat)
    (mean + deviation).sum().backward()
    assert flat.grad is not None
    torch.testing.assert_close(flat.grad, torch.full_like(flat, 1 / 30))  # a constant map has no way to deviate


def test_a_departure_head_takes_from_the_score_and_from_nothing_else() -> None:
    net, images = small_net.build(), torch.rand(3, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    other = rebuilt(net, departure_width=8)
    assert other.departure_head is not None
    with torch.no_grad():
        before, after = net(images), other(images)
        cost = other.departure_head(other.pool(images))
        assert (cost > 0).all()
        torch.testing.assert_close(after.score, torch.sigmoid(torch.logit(before.score) - cost))
        assert torch.equal(after.attributes, before.attributes)
    again = AttributeNetConfig.from_dict({**vars(other.config), "taps": list(other.config.taps)})
    assert again == other.config
    older = {name: value for name, value in vars(net.config).items() if name != "departure_width"}
    assert AttributeNetConfig.from_dict(older) == net.config


def test_a_rebuilt_net_changes_what_it_is_told_and_nothing_else() -> None:
    net = rebuilt(small_net.build(), distortion_width=8)
    other = rebuilt(net, regressor_reads="both")
    assert other.config == dataclasses.replace(net.config, regressor_reads="both")
    before, after = net.state_dict(), other.state_dict()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {"regressor.1.weight"}
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("regressor."))
    with pytest.raises(ValueError, match="regressor_reads: both needs a distortion head"):
        rebuilt(small_net.build(), regressor_reads="both")
