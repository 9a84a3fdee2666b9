"""CLIPTeacher against open_clip itself, on small random models; SignalTeacher against formulas and known ramps."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from attriqa import ATTRIBUTES
from attriqa.attributes import PROMPT_PAIRS, TEMPLATE, prompt_texts, table_hash
from attriqa.images import to_tensor
from attriqa.training.teachers import CLIPTeacher, Preprocess, SignalTeacher, Teacher, drop_positional_embedding
from tests.support import small_clip
from tests.support.distortion_pictures import detailed
from tests.support.distortion_pictures import seeded as generator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def vit(folder: Path) -> str:
    return small_clip.write(folder / "vit")


@pytest.fixture(scope="module")
def resnet(folder: Path) -> str:
    return small_clip.write(folder / "resnet", small_clip.RESNET)


def pictures(count: int = 3, height: int = 90, width: int = 130) -> Tensor:
    """(B, 3, H, W) with detail at several scales."""
    return 0.1 + 0.8 * detailed(count, height, width, (4, 12, 40))


@cache
def teacher_of(name: str) -> CLIPTeacher:
    return CLIPTeacher(name)


@cache
def blind_of(name: str) -> CLIPTeacher:
    return CLIPTeacher(name, positional_embedding=False)


@cache
def open_clips_own(name: str) -> tuple[Any, Callable[[Image.Image], Tensor], Tensor]:
    """Model, preprocessing of files, and text features (5, 2, D) as open_clip alone gives them."""
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    texts = [text for pair in prompt_texts(PROMPT_PAIRS) for text in pair]
    with torch.no_grad():
        features = model.eval().encode_text(open_clip.get_tokenizer(name)(texts))
    return model, preprocess, features.unflatten(0, (5, 2))


@torch.no_grad()
def direct(name: str, images: list[Image.Image]) -> Tensor:
    """(B, 5) by open_clip's own preprocessing and towers alone."""
    model, preprocess, texts = open_clips_own(name)
    seen = model.encode_image(torch.stack([preprocess(image) for image in images]))
    cosines = F.cosine_similarity(seen[:, None, None], texts[None], dim=3)
    return cosines[..., 0] - cosines[..., 1]


@pytest.mark.parametrize("tower", ["vit", "resnet"])
@pytest.mark.parametrize("size", [(130, 90), (90, 130), (48, 64), (40, 300)])
def test_scores_are_open_clips_cosine_differences(
    tower: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    name = request.getfixturevalue(tower)
    images = [Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).resize(size)
              for image in pictures()]  # fmt: skip
    teacher: Teacher = teacher_of(name)
    found = teacher(torch.stack([to_tensor(image) for image in images]))
    assert (found.shape, found.dtype) == ((3, 5), torch.float32)
    expected = direct(name, images)
    assert expected.std(0).mean() > 5e-3, "images that cannot be told apart would test nothing"
    # What remains is Pillow's rounding to 8 bits; an image that has the size already goes without it.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_prepared_images_score_as_open_clips_own_tensors_do(vit: str) -> None:
    model, _, texts = open_clips_own(vit)
    images = pictures(2, 48, 48)
    cfg = open_clip.get_model_preprocess_cfg(model)
    mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        seen = model.encode_image((images - mean) / std, normalize=True)
    cosines = torch.einsum("bd,apd->bap", seen, F.normalize(texts, dim=2))
    torch.testing.assert_close(teacher_of(vit)(images), cosines[..., 0] - cosines[..., 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [48, (40, 64)])
def test_preprocessing_is_open_clips_within_one_step_of_8_bits(
    resize_mode: str, interpolation: str, size: int | tuple[int, int], photos: list[np.ndarray[Any, Any]]
) -> None:
    config: dict[str, Any] = {
        "size": size,
        "resize_mode": resize_mode,
        "interpolation": interpolation,
        "fill_color": 51,
    }
    config |= {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}
    theirs = image_transform_v2(PreprocessCfg(**config), is_train=False)
    ours = Preprocess.of(config)
    uneven = [photos[2][:100, :199], photos[2][:199, :100]]  # 95.52 px long at 48: cut off to 95, not rounded
    for photo in [*photos, *uneven, photos[0][:30, :200], photos[1][:80, 100:131]]:  # the last two are scaled up
        image = Image.fromarray(np.ascontiguousarray(photo))
        tensor = to_tensor(image)[None]
        seen = ours.geometry(tensor)
        assert seen.shape[2:] == ours.size
        assert torch.equal(ours.geometry(seen), seen), "prepared images stay"
        difference = (ours.normalize(seen)[0] - theirs(image)).abs() * torch.tensor(config["std"]).view(3, 1, 1) * 255
        assert difference.max() <= 1.2
        assert difference.mean() <= 0.35


def test_images_of_one_file_score_the_same_in_any_batch(vit: str) -> None:
    for teacher in (teacher_of(vit), blind_of(vit), SignalTeacher()):
        images = pictures(4)
        together = teacher(images)
        for index in range(4):
            torch.testing.assert_close(teacher(images[index : index + 1])[0], together[index], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(teacher(teacher.prepare(images)), together, rtol=0, atol=0)
        torch.testing.assert_close(teacher(images.flip(0)), together.flip(0), rtol=1e-5, atol=1e-5)


def test_teachers_hold_no_gradient_and_ignore_autocast(vit: str) -> None:
    for teacher in (teacher_of(vit), SignalTeacher()):
        images = pictures().requires_grad_()
        plain = teacher(images)
        assert not plain.requires_grad
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(teacher(images), plain)
        assert teacher(images.detach().double()).dtype == torch.float32
    encoder = teacher_of(vit).encoder
    assert not encoder._model.training
    assert not any(parameter.requires_grad for parameter in encoder._model.parameters())


def test_building_a_teacher_leaves_the_random_state_alone(vit: str) -> None:
    before = torch.get_rng_state()
    CLIPTeacher(vit)
    assert torch.equal(torch.get_rng_state(), before)


def test_texts_are_encoded_once(vit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = CLIPTeacher(vit)
    expected = teacher(pictures())
    monkeypatch.setattr(teacher.encoder, "encode_text", None)
    assert torch.equal(teacher(pictures()), expected)


# Without positions


def patches_of(images: Tensor, side: int) -> Tensor:
    return images.unfold(2, side, side).unfold(3, side, side)  # (B, 3, rows, columns, side, side)


def joined(patches: Tensor) -> Tensor:
    return patches.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


def test_a_vit_without_positions_takes_any_grid_and_sees_no_order_of_patches(vit: str) -> None:
    images = pictures(2, 64, 112)
    blind, teacher = blind_of(vit), teacher_of(vit)
    assert blind.size is None
    assert teacher.size == (48, 48)
    patches = patches_of(images, 16)
    shuffled = joined(patches[:, :, torch.randperm(4, generator=generator())][:, :, :, [3, 0, 6, 1, 5, 2, 4]])
    assert not torch.equal(shuffled, images)
    torch.testing.assert_close(blind(shuffled), blind(images), rtol=0, atol=1e-6)
    square = joined(patches_of(pictures(2, 48, 48), 16)[:, :, [2, 0, 1]])
    assert (teacher(square) - teacher(pictures(2, 48, 48))).abs().max() > 1e-3, "with positions the order counts"


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_without_positions_is_the_model_with_zeros_for_them(tower: str, request: pytest.FixtureRequest) -> None:
    name = request.getfixturevalue(tower)
    blind = blind_of(name)
    model = open_clip.create_model(name).eval()
    key = "positional_embedding" if tower == "vit" else "attnpool.positional_embedding"
    with torch.no_grad():
        model.visual.get_parameter(key).zero_()
        images = pictures(2, 64, 64) if tower == "resnet" else pictures(2, 48, 48)
        expected = model.encode_image(blind.encoder.preprocess.normalize(images), normalize=True)
    torch.testing.assert_close(blind.encoder.encode_image(images), expected, rtol=0, atol=1e-6)


def test_a_resnet_without_positions_pools_a_grid_of_any_size(resnet: str) -> None:
    blind = blind_of(resnet)
    images = pictures(2, 96, 160)
    model = open_clip.create_model(resnet).eval()
    tower, pool = model.visual, model.visual.attnpool
    with torch.no_grad():  # attention of the mean over the 3 x 5 grid, written out
        x = tower.stem(blind.encoder.preprocess.normalize(images))
        x = tower.layer4(tower.layer3(tower.layer2(tower.layer1(x)))).flatten(2).transpose(1, 2)
        assert x.shape[1] == 15
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        heads = [t.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
                 for t in (pool.q_proj(x[:, :1]), pool.k_proj(x), pool.v_proj(x))]  # fmt: skip
        expected = pool.c_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)[:, 0])
    torch.testing.assert_close(blind.encoder.encode_image(images), F.normalize(expected, dim=1), rtol=0, atol=1e-5)


def test_a_tower_with_other_positions_keeps_them() -> None:
    with pytest.raises(ValueError, match=r"expected a vision transformer or a ResNet of open_clip .* got a Linear"):
        drop_positional_embedding(torch.nn.Linear(2, 2))


# Where weights come from


def test_a_checkpoint_gives_the_same_teacher_from_either_kind_of_file(vit: str, folder: Path) -> None:
    name = small_clip.register(folder / "names", "attriqa-small-vit")
    safetensors = folder / "vit" / "open_clip_model.safetensors"
    state = load_file(safetensors)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, folder / "epoch_1.pt")
    teachers = [CLIPTeacher(name, path) for path in (safetensors, str(folder / "epoch_1.pt"))]
    assert teachers[0].identity == teachers[1].identity
    images = pictures(2, 48, 48)
    assert torch.equal(teachers[0](images), teachers[1](images))
    with torch.no_grad():  # a name brings CLIP's usual mean and deviation, the folder its own
        pixels = teachers[0].encoder.preprocess.normalize(images)
        expected = open_clip.create_model(vit).eval().encode_image(pixels, normalize=True)
    torch.testing.assert_close(teachers[0].encoder.encode_image(images), expected, rtol=0, atol=1e-6)


def test_a_pickle_that_runs_code_is_refused(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    name = small_clip.register(folder / "names", "attriqa-small-vit")
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=rf"pretrained: .*evil\.pt cannot be loaded as {name}"):
        CLIPTeacher(name, tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_model_and_broken_files_are_refused(resnet: str, folder: Path, tmp_path: Path) -> None:
    name = small_clip.register(folder / "names", "attriqa-small-vit")
    with pytest.raises(ValueError, match=rf"cannot be loaded as {name}: Error.* in loading state_dict"):
        CLIPTeacher(name, folder / "resnet" / "open_clip_model.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((folder / "vit" / "open_clip_model.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match=rf"cut\.safetensors cannot be loaded as {name}"):
        CLIPTeacher(name, cut)


def test_what_is_not_known_is_answered_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model_name: expected one of .*ViT-B-16.*, got 'ViT-B-61'"):
        CLIPTeacher("ViT-B-61", "openai")
    with pytest.raises(ValueError, match=r"tag of ViT-B-16 \(known: openai, .*\), got 'missing\.pt'"):
        CLIPTeacher("ViT-B-16", "missing.pt")
    with pytest.raises(ValueError, match="got None, which would leave the weights random"):
        CLIPTeacher("ViT-B-16")
    with pytest.raises(ValueError, match=r"cannot be loaded as local-dir:.*No such file"):
        CLIPTeacher(f"local-dir:{tmp_path / 'nowhere'}")
    config = {"model_cfg": small_clip.VIT, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"its weights cannot be loaded as local-dir:.* could not be loaded"):
        CLIPTeacher(f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match=r"pretrained: expected None, as local-dir:.* got 'openai'"):
        CLIPTeacher(f"local-dir:{tmp_path}", "openai")


def test_a_tag_brings_its_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def create_model(name: str, weights: str | None, **options: object) -> None:
        asked[weights] = options
        raise RuntimeError("no network in tests")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    for tag in ("openai", "laion2b_s34b_b88k"):
        with pytest.raises(ValueError, match=f"pretrained: {tag} cannot be loaded as ViT-B-16: no network"):
            CLIPTeacher("ViT-B-16", tag)
    assert asked["openai"]["force_quick_gelu"] is True
    assert asked["laion2b_s34b_b88k"]["force_quick_gelu"] is False
    assert all(options["weights_only"] is options["require_pretrained"] is True for options in asked.values())


def test_the_identity_tells_apart_what_gives_other_labels(vit: str, resnet: str, folder: Path) -> None:
    swapped = {**PROMPT_PAIRS, "contrast": ("Punchy", "Flat")}
    quick = small_clip.VIT | {"quick_gelu": True}
    small_clip.write(folder / "moved")  # the same weights in another folder
    assert CLIPTeacher(f"local-dir:{folder / 'moved'}").identity == CLIPTeacher(vit).identity
    different: list[Teacher] = [
        CLIPTeacher(vit),
        CLIPTeacher(resnet),
        CLIPTeacher(vit, positional_embedding=False),
        CLIPTeacher(vit, pairs=swapped),
        CLIPTeacher(small_clip.write(folder / "other", seed=1)),
        CLIPTeacher(small_clip.write(folder / "quick", quick)),
        CLIPTeacher(small_clip.write(folder / "mean", mean=[0.1, 0.2, 0.3])),
        CLIPTeacher(small_clip.write(folder / "squash", resize_mode="squash")),
        SignalTeacher(),
        SignalTeacher(shorter_edge=512),
    ]
    identities = [teacher.identity for teacher in different]
    assert len(set(identities)) == len(identities)
    assert not any(str(folder) in identity or "\n" in identity for identity in identities)
    assert different[0].prompts_hash == table_hash(PROMPT_PAIRS) != different[3].prompts_hash


def test_pairs_may_come_from_a_file_and_must_be_the_five(vit: str, tmp_path: Path) -> None:
    pairs = {name: (f"more-{name}", f"less-{name}") for name in ATTRIBUTES}
    chosen = {name: {"best": {"positive": high, "negative": low}} for name, (high, low) in pairs.items()}
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"template": TEMPLATE, "attributes": chosen}))
    assert CLIPTeacher(vit, pairs=path).identity == CLIPTeacher(vit, pairs=pairs).identity
    for wrong in ({"sharpness": ("a", "b")}, dict(reversed(pairs.items()))):
        with pytest.raises(ValueError, match=r"pairs: expected sharpness, contrast, .* in this order, got "):
            CLIPTeacher(vit, pairs=wrong)


def test_images_that_break_the_contract_are_refused(vit: str) -> None:
    for teacher in (teacher_of(vit), blind_of(vit), SignalTeacher()):
        for images in (torch.rand(3, 40, 40), torch.rand(1, 3, 40, 40) * 255, torch.zeros(1, 3, 40, 40).int()):
            for use in (teacher, teacher.prepare):
                with pytest.raises(ValueError, match="images: expected a float tensor"):
                    use(images)
