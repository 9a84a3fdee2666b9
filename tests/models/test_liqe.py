"""LIQE on small random CLIPs: its texts and formulas, its crops; the rest is in test_clip_contract.py."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.models import checkpoint
from attriqa.models.checkpoint import CheckpointError
from attriqa.models.liqe import LIQE, LIQEConfig, evenly, fit, grid
from tests.support.clip_models import FEW, towers_of
from tests.support.clip_models import liqe as model_of
from tests.support.small_clip import pictures

SCENES = ["animal", "cityscape", "human", "indoor", "landscape", "night", "plant", "still_life", "others"]
DISTORTIONS = "jpeg2000 compression,jpeg compression,noise,blur,color,contrast,overexposure,underexposure,spatial,"


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


# Bad input


def test_a_value_that_makes_no_model_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model_of().save(path, {})
    saved = checkpoint.load(path)
    checkpoint.save(path, saved.state, architecture="LIQE", config=saved.config | {"crops": 0}, provenance={})
    with pytest.raises(CheckpointError, match=r"model.*: its config does not build: crops: expected at least 1, got 0"):
        LIQE.load(path)


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
