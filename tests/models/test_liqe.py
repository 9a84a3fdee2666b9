"""LIQE on small random CLIPs: its texts and formulas, its crops, what learns, its checkpoint."""

import json
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attriqa import load
from attriqa.files import as_dict
from attriqa.models import checkpoint
from attriqa.models.checkpoint import CheckpointError
from attriqa.models.clip.towers import CLIPTowers, build_clip
from attriqa.models.liqe import LIQE, LIQEConfig, evenly, fit, grid
from attriqa.training.losses import quality_fidelity
from tests.support import small_clip
from tests.support.small_clip import pictures

CONFIG = small_clip.vit(32)
SCENES = ["animal", "cityscape", "human", "indoor", "landscape", "night", "plant", "still_life", "others"]
DISTORTIONS = "jpeg2000 compression,jpeg compression,noise,blur,color,contrast,overexposure,underexposure,spatial,"
FEW: dict[str, Any] = {"scenes": ("animal", "plant"), "distortions": ("blur", "noise", "other")}


def towers_of(seed: int = 0, **changes: Any) -> CLIPTowers:
    return build_clip({"model_cfg": CONFIG | changes}, name="tiny", seed=seed)


def model_of(towers: CLIPTowers | None = None, **changes: Any) -> LIQE:
    settings: dict[str, Any] = {**FEW, "stride": 8, "crops": 4} | changes
    return LIQE(LIQEConfig(**settings), towers or towers_of()).eval()


def train(model: LIQE, steps: int = 8) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    history = []
    for _ in range(steps):
        loss = quality_fidelity(model.predict(pictures(5)).quality, torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


# Texts and formulas


def test_there_is_a_text_for_every_combination() -> None:
    texts = LIQEConfig().texts()
    words = [*DISTORTIONS.strip(",").split(","), "quantization", "other"]
    expected = {
        f"a photo of a {scene} with {kind} artifacts, which is of {quality} quality"
        for scene, kind, quality in product(SCENES, words, ("bad", "poor", "fair", "good", "perfect"))
    }
    assert len(texts) == 495
    assert set(texts) == expected
    assert LIQEConfig(scenes=(), distortions=()).texts()[0] == "a photo with bad quality"
    assert LIQEConfig(distortions=()).texts()[0] == "a photo of a animal, which is of bad quality"
    assert LIQEConfig(scenes=()).texts()[0] == "a photo with blur artifacts, which is of bad quality"


@torch.no_grad()
def test_what_it_tells_are_sums_of_one_softmax_over_all_texts() -> None:
    towers = towers_of()
    model, clip, crops = model_of(towers), towers.model, torch.rand(2, 4, 3, 48, 48)
    told = model.read(crops)
    cosines: dict[tuple[str, str, str], Tensor] = {}
    v = F.normalize(clip.encode_image(towers.preprocess.normalize(crops.flatten(0, 1))), dim=1)
    qualities = ("bad", "poor", "fair", "good", "perfect")
    for quality, scene, kind in product(qualities, *FEW.values()):
        text = f"a photo of a {scene} with {kind} artifacts, which is of {quality} quality"
        t = F.normalize(clip.encode_text(towers.tokenize([text])), dim=1)[0]
        cosines[quality, scene, kind] = (v @ t).unflatten(0, (2, 4)).mean(1) * clip.logit_scale.exp()
    total = torch.stack(list(cosines.values())).exp().sum(0)
    share = {key: value.exp() / total for key, value in cosines.items()}
    for place, names, field in ((0, qualities, told.qualities), (1, FEW["scenes"], told.scenes),
                                (2, FEW["distortions"], told.distortions)):  # fmt: skip
        for column, name in enumerate(names):
            expected = sum(value for key, value in share.items() if key[place] == name)
            torch.testing.assert_close(field[:, column], expected, rtol=1e-4, atol=1e-5)
    mean = sum((number + 1) * told.qualities[:, number] for number in range(5))
    torch.testing.assert_close(told.quality, mean)


@pytest.mark.parametrize("without", [("scenes",), ("distortions",), ("scenes", "distortions")])
def test_a_task_that_is_left_out_is_told_nothing_of(without: tuple[str, ...]) -> None:
    nothing: dict[str, Any] = dict.fromkeys(without, ())
    model = model_of(**nothing)
    told = model.predict(pictures())
    for name, count in (("scenes", 2), ("distortions", 3)):
        assert getattr(told, name).shape == (3, 0 if name in without else count)
    torch.testing.assert_close(told.qualities.sum(1), torch.ones(3))
    assert len(model.tokens) == 5 * (1 if "scenes" in without else 2) * (1 if "distortions" in without else 3)


def test_an_assessment_is_the_quality_moved_to_0_to_1() -> None:
    model = model_of()
    found = model(pictures())
    torch.testing.assert_close(found.score, (model.predict(pictures()).quality - 1) / 4)
    assert (found.attributes, found.distortions, model.names) == (None, None, ("score",))
    assert model.has_score


# Crops


def test_crops_are_spread_over_the_grid_of_every_image_of_a_batch() -> None:
    """Not by the number of images: at batch one all crops would be the first."""
    model = model_of()
    places = grid((60, 80), (48, 48), model.config)
    assert places == [(y, x) for y in (0, 8) for x in (0, 8, 16, 24, 32)]
    assert evenly(10, 4) == [0, 2, 4, 6]
    for count in (1, 3):
        images = pictures(count)
        cut = model.look(images)
        expected = [images[:, :, y : y + 48, x : x + 48] for y, x in (places[i] for i in (0, 2, 4, 6))]
        assert torch.equal(cut, torch.stack(expected, 1))


def test_the_grid_is_wider_in_wide_images() -> None:
    config = LIQEConfig()
    assert {y for y, _ in grid((500, 500), (224, 224), config)} == set(range(0, 257, 32))
    assert {x for _, x in grid((768, 1024), (224, 224), config)} == set(range(0, 769, 48))
    assert len(grid((768, 1023), (224, 224), config)) == 18 * 25
    assert evenly(18 * 25, 15) == list(range(0, 450, 30))
    assert evenly(7, 15) == list(range(7))
    assert evenly(29, 15) == list(range(15))


def test_large_images_are_reduced_and_small_ones_scaled_up() -> None:
    config, crop = LIQEConfig(shorter_edge=64), (48, 48)
    assert fit(pictures(1, 64, 200), crop, config).shape == (1, 3, 64, 200)
    assert fit(pictures(1, 128, 200), crop, config).shape == (1, 3, 64, 100)
    assert fit(pictures(1, 200, 65), crop, config).shape == (1, 3, 197, 64)
    assert fit(pictures(1, 40, 60), crop, config).shape == (1, 3, 48, 72)


@pytest.mark.parametrize("size", [(60, 80), (48, 48), (40, 33), (33, 300), (200, 50)])
def test_one_image_is_worth_as_much_alone_and_at_any_size(size: tuple[int, int]) -> None:
    model = model_of()
    images = pictures(4, *size).requires_grad_()
    together = model(images).score
    together.sum().backward()
    alone = torch.cat([model(image[None]).score for image in images.detach().flip(0)]).flip(0)
    torch.testing.assert_close(together.detach(), alone.detach(), rtol=0, atol=1e-5)
    assert together.std() > 1e-5
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()


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


def test_only_the_crops_that_are_taken_are_copied() -> None:
    model, found = model_of(crops=15, stride=32, shorter_edge=2160), []
    for height, width in ((300, 400), (2160, 3840)):
        image = torch.zeros(1, 3, height, width)
        with Largest() as largest:
            assert model.look(image).shape == (1, 15, 3, 48, 48)
        found.append(largest.bytes)
    assert found[0] == found[1] == 15 * 3 * 48 * 48 * 4


def test_the_memory_estimate_follows_crops_and_gradients() -> None:
    small, large = (
        [model_of(crops=crops).activation_bytes(60, 80, "own", gradients=gradients) for gradients in (False, True)]
        for crops in (2, 8)
    )
    assert 2 * small[0] < large[0] < 4 * small[0]
    assert small[0] < small[1]


# What learns


def test_everything_learns_but_the_temperature_and_no_layer_changes_its_mode() -> None:
    model = model_of()
    before = deepcopy(model.state_dict())
    losses = train(model)
    assert losses[-1] < 0.9 * losses[0]
    assert model.training
    assert not any(part.training for part in model.clip.modules())
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {"clip.logit_scale"}


def test_texts_are_read_once_when_they_do_not_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = model_of(), list[int]()
    encode = model.clip.encode_text

    def counted(tokens: Tensor) -> Tensor:
        calls.append(len(tokens))
        return cast(Tensor, encode(tokens))

    monkeypatch.setattr(model.clip, "encode_text", counted)
    with torch.inference_mode():
        model(pictures())
    before = model(pictures()).score
    assert calls == [30]
    train(model, 2)
    assert calls == [30] * 3
    after = model.eval()(pictures()).score
    assert not torch.equal(before, after)
    other = model_of(towers_of(5))
    other(pictures())
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(pictures()).score, after, rtol=0, atol=1e-6)


def test_a_checkpoint_holds_the_whole_clip(tmp_path: Path) -> None:
    model, path = model_of(), tmp_path / "model.safetensors"
    train(model, 2)
    model.eval().save(path, {"data": "made up"})
    loaded = load(f"liqe:{path}")
    assert isinstance(loaded, LIQE)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded(pictures()).score, model(pictures()).score, rtol=0, atol=2e-3)
    saved = checkpoint.load(path)
    assert saved.provenance == {"data": "made up"}
    checkpoint.save(path, saved.state, architecture="LIQE", config=saved.config | {"crops": 0}, provenance={})
    with pytest.raises(CheckpointError, match="its config does not build: crops: expected at least 1, got 0"):
        load(path)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenes": ("a", "a")}, "scenes: expected different names, got 'a', 'a'"),
        ({"crops": 0}, "crops: expected at least 1, got 0"),
        ({"logit_scale": -1.0}, "logit_scale: expected a number above 0, got -1.0"),
        ({"scenes": ("very " * 30 + "wide", "other")}, "texts: tiny reads 32 tokens of a text, and so cannot tell"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(**changes)


def test_a_config_comes_back_from_json() -> None:
    config = LIQEConfig(scenes=(), crops=3)
    assert LIQEConfig.from_dict(json.loads(json.dumps(as_dict(config)))) == config
