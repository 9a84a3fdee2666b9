"""MP-IQE on small random CLIPs: its equations, its ablations, its crops; the rest is in test_clip_contract.py."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attriqa.distortions import DISTORTION_KEYS
from attriqa.images.crops import corners, fitted
from attriqa.models.assessment import Assessment
from attriqa.models.mp_iqe import KADID_NAMES, gather_windows, window_features, window_weights
from tests.support.clip_models import CASES, RESNET, teach_score, towers_of, train
from tests.support.clip_models import mp_iqe as model_of
from tests.support.small_clip import pictures

M, D = 9, 11


# Equations


@pytest.mark.parametrize("pooling", [{}, {"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True}])
@torch.no_grad()
def test_scenes_are_equation_8(pooling: dict[str, Any]) -> None:
    towers = towers_of(**pooling)
    model = model_of(towers, prompts=0, prompt_kind="none").eval()
    crops = pictures(2, 48, 48)
    seen = towers.model.encode_image(towers.preprocess.normalize(crops))
    expected = F.cosine_similarity(seen[:, None], model.texts()[None, :M], dim=2) / 0.01
    torch.testing.assert_close(model.read(crops).scenes, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_distortions_are_equation_10() -> None:
    towers = towers_of(image_size=64)  # 4 x 4 patches
    model = model_of(towers, windows=2, temperature=0.02, window_temperature=0.1).eval()
    crops = pictures(2, 64, 64)
    tokens = model.prompts.tokens(towers.model.visual, towers.preprocess.normalize(crops))[:, 1:]
    texts = model.texts()[M:]
    for image, patches in enumerate(tokens.unflatten(1, (4, 4))):
        for kind in range(D):
            cosines = torch.stack([
                F.cosine_similarity(patches[y : y + 2, x : x + 2].amax((0, 1)), texts[kind], dim=0)
                for y in (0, 2) for x in (0, 2)
            ])  # fmt: skip
            z = sum(weight * cosine for weight, cosine in zip((cosines / 0.1).softmax(0), cosines, strict=True))
            assert model.read(crops).distortions[image, kind].item() == pytest.approx(float(z) / 0.02, abs=1e-3)


def test_windows_are_maxima_of_parts_of_the_image() -> None:
    patches = torch.arange(24.0).reshape(1, 24, 1) * torch.tensor([1.0, -1.0])
    found = window_features(patches, (4, 6), 2)
    assert found[0].tolist() == [[8.0, 0.0], [11.0, -3.0], [20.0, -12.0], [23.0, -15.0]]
    assert torch.equal(window_features(patches, (4, 6), 1)[0], patches[0].amax(0, keepdim=True))


@pytest.mark.parametrize("temperature", [1e-4, 0.05, 100.0])
def test_window_weights_sum_to_one_and_favour_the_likeliest(temperature: float) -> None:
    cosines = torch.rand(3, 16, D, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weights = window_weights(cosines, temperature)
    torch.testing.assert_close(weights.sum(1), torch.ones(3, D))
    gathered = gather_windows(cosines, temperature)
    low, high = (cosines.mean(1), cosines.amax(1))
    assert (gathered >= low - 1e-5).all()
    assert (gathered <= high + 1e-5).all()
    if temperature < 1e-3:
        torch.testing.assert_close(gathered, high, rtol=0, atol=1e-2)
    if temperature > 10:
        torch.testing.assert_close(gathered, low, rtol=0, atol=1e-2)


@torch.no_grad()
def test_the_score_is_equations_12_to_14() -> None:
    model = teach_score(model_of()).eval()
    crops = pictures(2, 48, 48)
    visual = model.clip.visual
    hidden = visual.ln_post(model.prompts.hidden(visual, model.preprocess.normalize(crops)))
    memory = hidden @ model.memory.weight.T + model.memory.bias
    query = model.texts().expand(2, -1, -1)
    assert query.shape[1:] == (M + D, 24)
    for layer in model.decoder:
        state = cast(Any, layer)
        normed = state.norm1(query)
        query = attention(state.self_attn, normed, normed) + query
        query = attention(state.multihead_attn, state.norm2(query), memory) + query
        query = state.linear2(F.gelu(state.linear1(state.norm3(query)))) + query
    first, last = cast(Any, model.head[0]), cast(Any, model.head[-1])
    expected = last(F.gelu(first(query))).mean((1, 2))
    torch.testing.assert_close(model.read(crops).score, expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-4


def attention(layer: Any, query: Tensor, memory: Tensor) -> Tensor:
    weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    q, k, v = (
        (x @ weight.T + bias).unflatten(2, (layer.num_heads, -1)).transpose(1, 2)
        for x, weight, bias in zip((query, memory, memory), weights, biases, strict=True)
    )
    mixed = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(3) @ v
    return cast(Tensor, layer.out_proj(mixed.transpose(1, 2).flatten(2)))


@torch.no_grad()
def test_the_decoder_first_sees_what_clip_sees() -> None:
    model = model_of()
    visual, pixels = model.clip.visual, pictures(2, 48, 48)
    seen = model.memory(visual.ln_post(model.prompts.hidden(visual, pixels)))
    torch.testing.assert_close(seen, model.prompts.tokens(visual, pixels), rtol=0, atol=1e-5)


# Ablations


@pytest.mark.parametrize(("kind", "layers"), [("deep", 2), ("first", 1), ("shallow", 1)])
def test_prompts_are_what_their_kind_says(kind: str, layers: int) -> None:
    model = model_of(prompts=3, prompt_kind=kind)
    assert model.prompts.prompts is not None
    assert model.prompts.prompts.shape == (layers, 3, 32)


@pytest.mark.parametrize("kind", ["deep", "first"])
@torch.no_grad()
def test_what_blocks_make_of_prompts_is_dropped(kind: str) -> None:
    """Whatever happens to the prompts' places in block 1, block 2 does not see it."""
    model = model_of(prompt_kind=kind).eval()
    crops, block = pictures(2, 48, 48), model.clip.visual.transformer.resblocks[0]
    before = model.read(crops)
    handle = block.register_forward_hook(lambda _, __, out: torch.cat([out[:, :10], -out[:, 10:]], 1))
    assert all(torch.equal(a, b) for a, b in zip(before, model.read(crops), strict=True))
    model.prompts.kind = "shallow"
    model.prompts.prompts = torch.nn.Parameter(cast(Tensor, model.prompts.prompts)[:1])
    shallow = model.read(crops).scenes
    handle.remove()
    assert not torch.allclose(shallow, model.read(crops).scenes)


def test_a_branch_that_is_left_out_asks_nothing() -> None:
    no_scenes, no_kinds, neither = (
        model_of(**changes)
        for changes in ({"scenes": ()}, {"distortions": ()}, {"scenes": (), "distortions": (), "layers": 1})
    )
    crops = pictures(2, 48, 48)
    shapes = {
        name: [tuple(field.shape) for field in model.read(crops)]
        for name, model in {"no scenes": no_scenes, "no kinds": no_kinds, "neither": neither}.items()
    }
    assert shapes == {
        "no scenes": [(2,), (2, 0), (2, D)],
        "no kinds": [(2,), (2, M), (2, 0)],
        "neither": [(2,), (2, 0), (2, 0)],
    }
    assert list(no_scenes.contexts) == ["distortions"]
    assert list(no_kinds.contexts) == ["scenes"]
    assert neither.query is not None
    assert neither.query.shape == (1, 24)
    assert no_scenes.query is None
    for model in (no_scenes, no_kinds, neither):
        losses = train(model, CASES["mp-iqe"]._replace(lr=2e-3), 12)
        assert losses[-1] < losses[0]
        told = model.eval().predict(pictures())
        assert told.scenes.shape[1] + told.distortions.shape[1] == sum(
            map(len, (model.config.scenes, model.config.distortions))
        )


def test_the_contexts_are_sets_of_their_own_and_as_long_as_asked() -> None:
    model = model_of(context=5)
    scenes, kinds = (cast(Any, model.contexts[name]).context for name in ("scenes", "distortions"))
    assert scenes.shape == kinds.shape == (5, 16)
    assert not torch.equal(scenes, kinds)


# What an image gets


def test_an_assessment_has_what_the_model_knows() -> None:
    model = teach_score(model_of()).eval()
    found, told = model(pictures()), model.predict(pictures())
    assert isinstance(found, Assessment)
    assert (found.attributes, found.distortions, found.attribute_probs) == (None, None, None)
    assert (model.names, model.distortions) == (("score",), ())
    assert found.score.shape == (3,)
    for probs in (told.scenes, told.distortions):
        torch.testing.assert_close(probs.sum(1), torch.ones(3))
    known = model_of(distortions=KADID_NAMES).eval()
    assert known.distortions == DISTORTION_KEYS
    strengths = known(pictures()).distortions
    assert strengths is not None
    assert strengths.shape == (3, 25)
    torch.testing.assert_close(strengths, known.predict(pictures()).distortions)


def test_a_score_is_the_mean_over_crops_of_the_image_as_it_is() -> None:
    model = teach_score(model_of(crops=5)).eval()
    image = pictures(1, 70, 90)
    places = corners((70, 90), (48, 48), 5)
    assert len(set(places)) == 5
    assert all(0 <= y <= 22 and 0 <= x <= 42 for y, x in places)
    with torch.no_grad():
        cut = torch.cat([image[:, :, y : y + 48, x : x + 48] for y, x in places])
        torch.testing.assert_close(model(image).score[0], model.read(cut).score.mean(), rtol=0, atol=1e-6)
        other = model_of(crops=5, crop_seed=1)
        assert not torch.equal(other.look(image), model.look(image))


def test_crops_reach_all_of_an_image_and_no_further() -> None:
    places = [place for seed in range(60) for place in corners((51, 50), (48, 48), 8, seed=seed)]
    assert {y for y, _ in places} == {0, 1, 2, 3}
    assert {x for _, x in places} == {0, 1, 2}
    assert corners((48, 48), (48, 48), 8) == [(0, 0)]
    assert corners((49, 48), (48, 48), 8, seed=3) == corners((49, 48), (48, 48), 8, seed=3)


def test_images_smaller_than_a_crop_are_scaled_up() -> None:
    small = pictures(1, 40, 120)
    assert fitted(small, (48, 48)).shape == (1, 3, 48, 144)
    assert fitted(pictures(), (48, 48)).shape == (3, 3, 60, 80), "others are not"
    assert fitted(pictures(), (48, 48), 50).shape == (3, 3, 50, 67)
    assert fitted(pictures(1, 40, 1200), (48, 48)).shape == (1, 3, 48, 1440), "panoramas keep their aspect"


def test_gradients_reach_the_pixels_of_every_crop_and_no_tower() -> None:
    model = teach_score(model_of()).eval()
    images = pictures().requires_grad_()
    told = model.predict(images)
    (told.score.sum() + told.scenes[:, 0].sum() + told.distortions[:, 0].sum()).backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    for y, x in corners((60, 80), (48, 48), 3):
        assert images.grad[:, :, y : y + 48, x : x + 48].flatten(1).norm(dim=1).min() > 0
    assert all(parameter.grad is None for parameter in model.clip.parameters())


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": 4}, "tiny: windows: expected at most 3, the patches on a side, got 4"),
        ({"heads": 7}, "tiny: heads: expected a divisor of 24, .*, got 7"),
        ({"context": 30}, "tiny: context: expected at most 28 in texts of 32 tokens, got 30"),
        (
            {"scenes": ("a b c d e f g h i j k l m n o p q r s t u v w x y z",)},
            "tiny: names: expected at most 24 tokens",
        ),
        ({"shorter_edge": 20}, "shorter_edge: expected at least 32 px, got 20"),
        ({"prompts": 0}, "tiny: prompts: expected at least 1 for deep prompts, got 0"),
        ({"scenes": ("a", "a")}, "scenes: expected different names, got 'a', 'a'"),
        ({"distortions": ("",)}, "distortions: expected different names, got ''"),
        ({"crops": 0}, "crops: expected at least 1, got 0"),
        ({"temperature": 0.0}, "temperature: expected a number above 0, got 0.0"),
        ({"window_temperature": float("inf")}, "window_temperature: expected a number above 0, got inf"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(**changes)


def test_a_tower_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="tiny: tower: expected a vision transformer"):
        model_of(towers_of(config=RESNET))
