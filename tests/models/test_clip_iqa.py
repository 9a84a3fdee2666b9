"""CLIP-IQA and CLIP-IQA+ on small random CLIPs: formulas, any size, words; the rest is in test_clip_contract.py."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa import QualityReward, load
from attriqa.attributes import ATTRIBUTES
from attriqa.models.clip.towers import build_clip
from attriqa.models.clip_iqa import PAIRS, ClipIQA, Pair, read_pairs, zero_shot
from tests.support import small_clip
from tests.support.clip_models import CONFIG as VIT
from tests.support.clip_models import RESNET, towers_of
from tests.support.clip_models import clip_iqa as zero
from tests.support.clip_models import clip_iqa_plus as plus
from tests.support.small_clip import pictures

OWN = (Pair("natural", "Natural photo.", "Synthetic photo."), Pair("joy", "Happy photo.", "Sad photo."))


# CLIP-IQA


@pytest.mark.parametrize("scale", [None, 7.0])
@torch.no_grad()
def test_scores_and_attributes_are_the_paper_s_softmax(scale: float | None) -> None:
    towers = towers_of()
    model = zero(towers, logit_scale=scale, positional_embedding=True)
    images = pictures()
    found = model(images)
    clip, ready = towers.model, towers.preprocess.normalize(towers.preprocess.geometry(images))
    v = F.normalize(clip.encode_image(ready), dim=1)
    expected = []
    for good, bad in (("Good photo.", "Bad photo."), *((pair.positive, pair.negative) for pair in PAIRS)):
        t = F.normalize(clip.encode_text(towers.tokenize([good, bad])), dim=1)
        expected.append(((scale or clip.logit_scale.exp()) * v @ t.T).softmax(1)[:, 0])
    torch.testing.assert_close(found.score, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.attributes, torch.stack(expected[1:], 1), rtol=0, atol=1e-5)
    assert found.score.std() > 1e-4
    assert (model.attributes, model.names) == (ATTRIBUTES, ("score", *ATTRIBUTES))


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (60, 80), (67, 107), (33, 300)])
def test_images_are_seen_at_any_size_as_they_are(config: dict[str, Any], size: tuple[int, int]) -> None:
    towers = towers_of(config=config)
    model = zero(towers)
    images = pictures(3, *size).requires_grad_()
    together = model(images)
    together.score.sum().backward()
    alone = torch.cat([model(image[None]).score for image in images.detach().flip(0)]).flip(0)
    assert alone.shape == (3,)
    torch.testing.assert_close(together.score.detach(), alone.detach(), rtol=0, atol=1e-5)
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    flat = model(F.interpolate(images.detach(), (48, 48), mode="bilinear", antialias=True)).score
    assert size in [(48, 48)] or not torch.allclose(flat, together.score, atol=1e-6), "a resize is seen"


def test_positions_count_for_nothing_and_the_towers_keep_theirs() -> None:
    towers = towers_of()
    before = deepcopy(towers.model.state_dict())
    blind, seeing = zero(towers), zero(towers, positional_embedding=True)
    images = pictures(2, 48, 48)
    shuffled = images.unflatten(2, (3, 16)).flip(2).flatten(2, 3)  # rows of patches in another order
    torch.testing.assert_close(blind(images).score, blind(shuffled).score, rtol=0, atol=1e-5)
    assert not torch.allclose(seeing(images).score, seeing(shuffled).score, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in towers.model.state_dict().items())
    assert next(towers.model.parameters()).data_ptr() == next(seeing.clip.parameters()).data_ptr()


def test_pairs_of_your_own_take_the_place_of_the_five() -> None:
    model = zero(pairs=OWN)
    found = model(pictures())
    assert model.attributes == ("natural", "joy")
    assert found.attributes is not None
    assert found.attributes.shape == (3, 2)
    turned = zero(pairs=(Pair("synthetic", OWN[0].negative, OWN[0].positive),))(pictures()).attributes
    torch.testing.assert_close(turned[:, 0], 1 - found.attributes[:, 0], rtol=0, atol=1e-5)
    none = zero(pairs=())
    assert none(pictures()).attributes is None
    assert none.names == ("score",)
    reward = QualityReward(model, attribute_weights={"score": 0, "joy": 1})
    torch.testing.assert_close(reward(pictures()), found.attributes[:, 1], rtol=0, atol=1e-5)


def test_pairs_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.toml"
    path.write_text('natural = ["Natural photo.", "Synthetic photo."]\njoy = ["Happy photo.", "Sad photo."]\n')
    assert read_pairs(path) == OWN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected lines of TOML.*, got none"),
        ("joy = 3", r"expected lines of TOML.*, got something else for joy"),
        ('joy = ["a"]', r"expected lines of TOML.*, got something else for joy"),
        ("joy = [", r"expected lines of TOML"),
        ('joy = ["a", "a"]', r"joy: expected two different texts, got 'a', 'a'"),
        ('score = ["a", "b"]', r"pairs: expected different names beside score, got 'score'"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"pairs\.toml: {message}"):
        read_pairs(path)


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_the_memory_estimate_follows_the_size_of_the_image(config: dict[str, Any]) -> None:
    model = zero(towers_of(config=config))
    small, large = (
        [model.activation_bytes(side, side, "own", gradients=gradients) for gradients in (False, True)]
        for side in (256, 512)
    )
    for one, four in zip(small, large, strict=True):
        assert 3.5 * one < four < 4.5 * one
    assert small[0] < small[1]


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_the_memory_estimate_is_near_what_a_backward_pass_keeps(config: dict[str, Any]) -> None:
    model, kept = zero(towers_of(config=config)), {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    images = pictures(1, 320, 320).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        score = model(images).score
    found = sum(size for place, size in kept.items() if place not in weights)
    assert score.requires_grad
    assert 0.4 * found < model.activation_bytes(320, 320, "own", gradients=True) < 2.5 * found


# CLIP-IQA+


@torch.no_grad()
def test_words_stand_around_the_text() -> None:
    """SOS, the first half of the words, the text, the second half, EOS."""
    towers = towers_of()
    model, clip = plus(towers, context=5), towers.model
    words = model.context.context
    good, bad = (towers.tokenize([text])[0] for text in ("Good photo..", "Bad photo.."))
    for row, tokens in enumerate((good, bad)):
        embedded = clip.token_embedding(tokens)
        sequence = torch.cat([embedded[:1], words[:2], embedded[1:4], words[2:], embedded[4:-5]])
        assert tokens[4] == towers.tokenize.eot_token_id  # type: ignore[attr-defined]
        assert len(sequence) == len(tokens)
        x = clip.transformer((sequence + clip.positional_embedding)[None], attn_mask=clip.attn_mask)
        expected = clip.ln_final(x)[0, 4 + 5] @ clip.text_projection
        torch.testing.assert_close(model.context(clip)[row], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_text_without_a_full_stop_gets_one_behind_the_words() -> None:
    towers = towers_of()
    model = plus(towers, context=4, quality=("Good", "Very bad photo"))
    first, second = model.context.tokens.tolist()
    sos, good, stop, eos = towers.tokenize(["Good."])[0, :4].tolist()
    assert [first[0], first[3], *first[6:8]] == [sos, good, stop, eos]
    assert [second[0], *second[3:6], *second[8:10]] == [
        sos, *towers.tokenize(["Very bad photo"])[0, 1:4].tolist(), stop, eos
    ]  # fmt: skip
    assert model.context.places.tolist() == [[1, 2, 4, 5], [1, 2, 6, 7]]


def test_each_text_can_have_words_of_its_own() -> None:
    one, two = plus(shared=True), plus(shared=False)
    assert one.context.context.shape == (16, 16)
    assert two.context.context.shape == (2, 16, 16)
    with torch.no_grad():
        two.context.context.copy_(one.context.context.expand(2, -1, -1))
        torch.testing.assert_close(one(pictures()).score, two(pictures()).score, rtol=0, atol=1e-6)
        two.context.context[1] += torch.linspace(-1, 1, 16)
    two.train().eval()
    assert not torch.allclose(one(pictures()).score, two(pictures()).score, atol=1e-4)


# Names


def test_a_name_alone_is_clip_iqa(tmp_path: Path) -> None:
    name = small_clip.write(tmp_path / "clip", VIT)
    model = load(f"clip-iqa:{name}")
    assert isinstance(model, ClipIQA)
    assert not model.training
    torch.testing.assert_close(model(pictures()).score, zero_shot(name)(pictures()).score, rtol=0, atol=0)
    first, second = (QualityReward(f"clip-iqa:{name}") for _ in range(2))
    assert first.identity == second.identity
    other = small_clip.write(tmp_path / "other", VIT, seed=4)
    assert QualityReward(f"clip-iqa:{other}").identity != first.identity
    with pytest.raises(ValueError, match=r"expected one of open_clip's .* models"):
        load("clip-iqa:RN5O:openai")
    with pytest.raises(FileNotFoundError):
        load("clip-iqa:nowhere.safetensors")


# Bad input


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (zero, {"quality": ("a", "a")}, "quality: expected two different texts"),
        (zero, {"pairs": (OWN[0], OWN[0])}, "pairs: expected different names beside score"),
        (zero, {"pairs": (Pair("joy", "", "x"),)}, "joy: expected two different texts, got '', 'x'"),
        (zero, {"logit_scale": 0.0}, "logit_scale: expected a number above 0, got 0.0"),
        (zero, {"quality": ("long " * 40 + "good", "long " * 40 + "bad")}, "pairs: tiny reads 32 tokens of a text"),
        (plus, {"context": 1}, "context: expected at least 2, got 1"),
        (
            plus,
            {"context": 28},
            r"tiny: names: expected at most 4 tokens beside 28 of context, got 5 .* 'Good photo\.'",
        ),
    ],
)
def test_what_does_not_fit_is_named(build: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_a_tower_whose_positions_cannot_be_left_out_is_refused() -> None:
    timm = VIT | {"vision_cfg": {"timm_model_name": "resnet18", "timm_pool": "avg", "image_size": 32}}
    towers = build_clip({"model_cfg": timm}, name="timm")
    with pytest.raises(ValueError, match="timm: positional_embedding: expected a vision transformer or a ResNet"):
        zero(towers)
    assert zero(towers, positional_embedding=True)(pictures()).score.isfinite().all()
