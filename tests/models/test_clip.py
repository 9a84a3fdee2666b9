"""Loading open_clip models and learning inside them, against open_clip itself and against loops."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from attriqa.models.clip.prompts import PromptKind, TextContext, VisualPrompts
from attriqa.models.clip.towers import CLIPTowers, build_clip, load_clip, weights_hash
from tests.support import small_clip

VISION = small_clip.VIT["vision_cfg"]
TEXT = small_clip.VIT["text_cfg"]
VARIANTS: dict[str, dict[str, Any]] = {  # what open_clip's vision transformers come in
    "plain": {},
    "custom text": {"custom_text": True},
    "bidirectional text": {"custom_text": True, "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last"}},
    "text with a class token": {"custom_text": True, "text_cfg": TEXT | {"embed_cls": True}},
    "quick gelu": {"quick_gelu": True},
    "mean pooling": {"vision_cfg": VISION | {"pool_type": "avg"}},
    "mean, then norm": {"vision_cfg": VISION | {"pool_type": "avg", "final_ln_after_pool": True}},
    "layer scale": {"vision_cfg": VISION | {"ls_init_value": 0.3, "no_ln_pre": True}},
    "custom blocks": {"vision_cfg": VISION | {"qk_norm": True, "scale_attn": True}},
    "oblong images": {"vision_cfg": VISION | {"image_size": (48, 64), "pos_embed_type": "learnable"}},
}
KINDS: list[PromptKind] = ["shallow", "deep", "first"]


def towers_of(variant: str = "plain", seed: int = 0) -> CLIPTowers:
    return build_clip({"model_cfg": small_clip.VIT | VARIANTS[variant]}, name=variant, seed=seed)


def pixels(towers: CLIPTowers, count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *towers.preprocess.size, generator=torch.Generator().manual_seed(seed))


# Parity


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_prompts_it_is_open_clip(variant: str) -> None:
    towers = towers_of(variant)
    visual, images = towers.model.visual, pixels(towers)
    prompts = VisualPrompts(visual)
    assert not list(prompts.parameters())
    with torch.no_grad():
        expected = towers.model.encode_image(images)
        torch.testing.assert_close(prompts(visual, images), expected, rtol=0, atol=1e-6)
        tokens = prompts.tokens(visual, images)
        rows, columns = visual.grid_size
        assert tokens.shape == (3, 1 + rows * columns, 24)
        if visual.pool_type == "tok":
            torch.testing.assert_close(tokens[:, 0], expected, rtol=0, atol=1e-6)


def test_towers_that_run_sequence_first_give_the_same() -> None:
    """Older models hold (T, B, D)."""
    towers = towers_of()
    visual, images = towers.model.visual, pixels(towers)
    other = deepcopy(visual)
    other.transformer.batch_first = False
    for block in other.transformer.resblocks:
        block.attn.batch_first = False
    with torch.no_grad():
        for kind in KINDS:
            prompts = VisualPrompts(visual, 2, kind)
            torch.testing.assert_close(prompts(other, images), prompts(visual, images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_prompts_enter_and_leave_where_the_equations_say(kind: PromptKind) -> None:
    """Equations 3, 4 and 5 written out block by block, with the prompts between CLS and patches, as in MP-IQE."""
    towers = towers_of()
    visual, images = towers.model.visual, pixels(towers)
    prompts = VisualPrompts(visual, 3, kind, seed=1)
    assert prompts.prompts is not None
    assert prompts.prompts.shape == (2 if kind == "deep" else 1, 3, 32)
    prompts.prompts.mul_(5)
    x = visual._embeds(images)
    cls, patches = x[:, :1], x[:, 1:]
    learnt = prompts.prompts[0].expand(3, -1, -1)
    for number, block in enumerate(visual.transformer.resblocks):
        if kind == "deep":
            learnt = prompts.prompts[number].expand(3, -1, -1)
        if kind == "first" and number > 0:
            learnt = learnt[:, :0]
        y = block(torch.cat([cls, learnt, patches], 1))
        cls, learnt, patches = y[:, :1], y[:, 1 : 1 + learnt.shape[1]], y[:, 1 + learnt.shape[1] :]
    hidden = torch.cat([cls, patches], 1)
    torch.testing.assert_close(prompts.hidden(visual, images), hidden, rtol=0, atol=1e-5)
    expected = visual.ln_post(hidden) @ visual.proj
    torch.testing.assert_close(prompts.tokens(visual, images), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(prompts(visual, images), expected[:, 0], rtol=0, atol=1e-5)
    assert (prompts(visual, images) - towers.model.encode_image(images)).abs().max() > 1e-3


def test_prompts_start_within_their_bound_and_from_their_seed() -> None:
    visual = towers_of().model.visual
    before = torch.get_rng_state()
    first = VisualPrompts(visual, 50, "deep", seed=3).prompts
    assert torch.equal(torch.get_rng_state(), before)
    assert first is not None
    bound = (6 / (3 * 16 * 16 + 32)) ** 0.5
    assert 0.98 * bound < first.abs().max() <= bound
    assert abs(first.mean()) < 0.1 * bound
    assert torch.equal(first, VisualPrompts(visual, 50, "deep", seed=3).prompts)  # type: ignore[arg-type]
    assert not torch.equal(first, VisualPrompts(visual, 50, "deep", seed=4).prompts)  # type: ignore[arg-type]


# Learning


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_learn_and_frozen_towers_stay_bit_for_bit(kind: PromptKind) -> None:
    towers = towers_of()
    model = towers.model.requires_grad_(False)
    before = deepcopy(model.state_dict())
    prompts = VisualPrompts(model.visual, 4, kind)
    images, target = pixels(towers).requires_grad_(), torch.randn(3, 24, generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.AdamW(prompts.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (prompts(model.visual, images) - target).square().mean()
        loss.backward()
        assert prompts.prompts is not None
        assert prompts.prompts.grad is not None
        gradients = prompts.prompts.grad.flatten(1).norm(dim=1)
        assert (gradients > 0).all()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert (images.grad != 0).any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(name.startswith("visual") for name, _ in prompts.named_parameters()), "towers are not in its state"


def test_one_image_is_worth_as_much_alone() -> None:
    towers = towers_of()
    visual, images = towers.model.visual, pixels(towers, 4)
    prompts = VisualPrompts(visual, 4, "shallow")
    with torch.no_grad():
        alone = torch.cat([prompts(visual, image[None]) for image in images])
        torch.testing.assert_close(prompts(visual, images), alone, rtol=0, atol=1e-6)


def test_recomputed_activations_change_no_gradient() -> None:
    towers = towers_of()
    visual, images = towers.model.visual, pixels(towers)
    prompts = VisualPrompts(visual, 4, "deep")
    found = []
    for recompute in (False, True):
        visual.set_grad_checkpointing(recompute)
        (gradient,) = torch.autograd.grad(prompts(visual, images).square().sum(), [*prompts.parameters()])
        found.append(gradient)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vision_cfg": VISION | {"attentional_pool": True}}, "got a VisionTransformer with attention pooling"),
        ({"vision_cfg": VISION | {"pool_type": "none"}}, "expected pooling by the class token or the mean, got 'none'"),
        ({"vision_cfg": small_clip.RESNET["vision_cfg"]}, "expected a vision transformer of open_clip's own, got its"),
    ],
)
def test_other_towers_are_refused(config: dict[str, Any], message: str) -> None:
    model = build_clip({"model_cfg": small_clip.VIT | config}, name="other").model
    with pytest.raises(ValueError, match=f"tower: .*{message}"):
        VisualPrompts(model.visual, 3, "deep")


@pytest.mark.parametrize(("prompts", "kind"), [(0, "deep"), (-1, "shallow"), (3, "none"), (3, "wide")])
def test_numbers_and_kinds_that_do_not_fit_are_refused(prompts: int, kind: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        VisualPrompts(towers_of().model.visual, prompts, kind)


# Text context


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "text" in v or v == "plain"])
def test_a_context_of_word_embeddings_is_those_words(variant: str) -> None:
    """[V]_1 [V]_2 set to the embeddings of "a photo" gives the features of "a photo NAME."."""
    towers = towers_of(variant)
    names, model = ["jpeg compression", "night scene", "x"], towers.model
    context = TextContext(model, towers.tokenize, names, 2)
    embedding = getattr(model, "text", model).token_embedding
    with torch.no_grad():
        plain = towers.tokenize(["night scene."])
        before = model.encode_text(plain)
        context.context.copy_(embedding(towers.tokenize(["a photo"]))[0, 1:3])
        expected = model.encode_text(towers.tokenize([f"a photo {name}." for name in names]))
        torch.testing.assert_close(context(model), expected, rtol=0, atol=1e-6)
        assert expected.std(0).max() > 1e-3
        assert torch.equal(model.encode_text(plain), before), "other texts are read as before"


def test_the_context_learns_and_the_towers_do_not() -> None:
    towers = towers_of("custom text")
    model = towers.model.requires_grad_(False)
    before = deepcopy(model.state_dict())
    context = TextContext(model, towers.tokenize, ["blur", "noise"], 8, seed=2)
    assert [name for name, _ in context.named_parameters()] == ["context"]
    assert 0.015 < context.context.std() < 0.025
    optimizer = torch.optim.AdamW(context.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = context(model).square().mean()
        loss.backward()
        assert (context.context.grad.norm(dim=1) > 0).all()  # type: ignore[union-attr]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_context_that_does_not_fit_is_refused() -> None:
    towers = towers_of()
    with pytest.raises(
        ValueError, match=r"names: expected at most 4 tokens beside 12 of context, got 5 .* 'night scene'"
    ):
        TextContext(towers.model, towers.tokenize, ["x", "night scene"], 12)
    TextContext(towers.model, towers.tokenize, ["x"], 12)
    with pytest.raises(ValueError, match="names: expected at most"):
        TextContext(towers.model, towers.tokenize, ["far too many words " * 9], 1)
    with pytest.raises(ValueError, match="context, names: expected at least 1 each, got 0 and 1"):
        TextContext(towers.model, towers.tokenize, ["x"], 0)
    with pytest.raises(ValueError, match="tokenize: expected a tokenizer with open_clip's own vocabulary"):
        TextContext(towers.model, lambda texts: towers.tokenize(texts), ["x"], 1)
    with pytest.raises(ValueError, match="model: expected a text transformer of open_clip's own, got its Linear"):
        TextContext(nn.Linear(2, 2), towers.tokenize, ["x"], 1)


# Loading


def test_a_folder_a_named_model_and_a_file_load_alike(tmp_path: Path) -> None:
    folder = load_clip(small_clip.write(tmp_path / "vit"))
    name = small_clip.register(tmp_path / "names", "attriqa-small-exiqa")
    named = load_clip(name, tmp_path / "vit" / "open_clip_model.safetensors")
    assert weights_hash(named.model.state_dict()) == weights_hash(folder.model.state_dict())
    assert not folder.reloadable  # no file may say where the folder is
    assert not named.reloadable
    assert load_clip(*small_clip.tagged(tmp_path / "tagged", "attriqa-small-tagged")).reloadable
    assert named.pretrained == str(tmp_path / "vit" / "open_clip_model.safetensors")
    assert folder.preprocess.mean == tuple(small_clip.PREPROCESS["mean"])
    images = pixels(folder)
    with torch.no_grad():
        expected = open_clip.create_model(folder.name).eval().encode_image(images)
        assert torch.equal(named.model.encode_image(images), expected)
    assert torch.equal(named.tokenize(["blur"]), open_clip.get_tokenizer(folder.name)(["blur"]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_configuration_builds_the_architecture_again(variant: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    name = small_clip.write(folder, small_clip.VIT | VARIANTS[variant])
    loaded = load_clip(name)
    assert json.loads(json.dumps(loaded.architecture)) == loaded.architecture
    again = build_clip(loaded.architecture, name="again", seed=4)
    assert again.preprocess == loaded.preprocess
    assert type(again.model) is type(loaded.model)
    assert weights_hash(again.model.state_dict()) != weights_hash(loaded.model.state_dict())
    again.model.load_state_dict(loaded.model.state_dict())
    texts = ["There is not a visible grid in the photo."]
    with torch.no_grad():
        assert torch.equal(again.model.encode_image(pixels(again)), loaded.model.encode_image(pixels(again)))
        expected = loaded.model.encode_text(loaded.tokenize(texts))
        assert torch.equal(again.model.encode_text(again.tokenize(texts)), expected)


def test_an_activation_that_a_tag_asks_for_is_part_of_the_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's weights under a name without -quickgelu: the weights alone do not tell."""
    name = small_clip.write(tmp_path / "vit")
    plain = load_clip(name)
    monkeypatch.setattr("attriqa.models.clip.towers._check_weights", lambda *_: True)
    loaded = load_clip(name)
    again = build_clip(loaded.architecture, name="again")
    again.model.load_state_dict(loaded.model.state_dict())
    images = pixels(loaded)
    with torch.no_grad():
        expected = loaded.model.encode_image(images)
        assert torch.equal(again.model.encode_image(images), expected)
        assert (plain.model.encode_image(images) - expected).abs().max() > 1e-4


def test_random_weights_come_from_the_seed_alone(tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(small_clip.VIT))
    torch.rand(1)
    before = torch.get_rng_state()
    first, same, other = (load_clip(str(path), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    hashes = [weights_hash(towers.model.state_dict()) for towers in (first, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert (first.name, first.reloadable, first.preprocess.size) == ("tiny", False, (48, 48))
    path.write_text(json.dumps({"model_cfg": small_clip.VIT, "preprocess_cfg": small_clip.PREPROCESS}))
    assert load_clip(str(path)).preprocess.mean == tuple(small_clip.PREPROCESS["mean"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a configuration of open_clip in JSON"),
        ("[1]", "with vision_cfg and text_cfg"),
        ('{"embed_dim": 8}', "with vision_cfg and text_cfg"),
        (
            '{"embed_dim": 8, "vision_cfg": {"depth": 2}, "text_cfg": {}}',
            r"bad: vision_cfg\.depth: expected a field",
        ),
        ('{"vision_cfg": {}, "text_cfg": {}}', "bad: expected the configuration of an open_clip model"),
        ('{"embed_dim": 8, "vision_cfg": {"width": 33, "head_width": 16}, "text_cfg": {"layers": 1}}', "bad: expected"),
    ],
)
def test_a_broken_configuration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_clip(str(path))


def test_files_and_tags_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name: expected a configuration of open_clip in JSON, got gone\.json"):
        load_clip("gone.json")
    with pytest.raises(ValueError, match="pretrained: expected None with a configuration file"):
        load_clip("gone.json", "openai")
    with pytest.raises(ValueError, match="model_name: expected one of open_clip's"):
        load_clip("ViT-B-61", "openai")
    with pytest.raises(ValueError, match="pretrained: expected a checkpoint file or a tag of ViT-B-16"):
        load_clip("ViT-B-16", str(tmp_path / "gone.pt"))
