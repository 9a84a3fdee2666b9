"""Maps that point at what moves an output, and words that say why."""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from attriqa import images
from attriqa.attributes import ATTRIBUTES
from attriqa.distortions import DISTORTION_KEYS, apply_ramp
from attriqa.distortions.attributes import DistortionAttributes
from attriqa.explain import overlay, saliency, tower_maps, why
from attriqa.explain.saliency import _COLORS, _window_statistics
from attriqa.models import load_attribute_net
from attriqa.models.assessment import Assessment
from attriqa.models.attribute_heads import DistortionHead
from attriqa.models.attribute_net import AttributeNet
from attriqa.models.clip.prompts import PromptKind, VisualPrompts
from attriqa.models.clip.towers import build_clip
from attriqa.models.exiqa import ExIQA, ExIQAConfig
from tests.support import small_clip, small_net

NOISE = DISTORTION_KEYS.index("white_noise")


@pytest.fixture(scope="module")
def net() -> AttributeNet:
    """Random weights, distortion head included."""
    return with_head(small_net.build(), seed=1)


def with_head(net: AttributeNet, seed: int) -> AttributeNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net.distortion_head = DistortionHead(len(net.pooled_mean), 16).eval()
    return net


@pytest.fixture(scope="module")
def trained() -> AttributeNet:
    """The embedded default at a small size, with a head whose white noise is the opposite of its noisiness."""
    net = with_head(load_attribute_net(), seed=2)
    net.config = dataclasses.replace(net.config, shorter_edge=224)
    width = net.config.head_width
    head = DistortionHead(len(net.pooled_mean), width).eval()
    first, last = head.attributes[0], head.attributes[3]
    noisiness = net.heads_out[4]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    assert isinstance(noisiness, nn.Linear)
    with torch.no_grad():
        first.weight.copy_(net.heads_in.weight[4 * width :])
        first.bias.copy_(net.heads_in.bias[4 * width :])
        last.weight.zero_()
        last.weight[5 * NOISE : 5 * NOISE + 5] = -noisiness.weight / net.attribute_scale[4]
    net.distortion_head = head
    return net


def pictures(count: int, height: int = 70, width: int = 110, seed: int = 0) -> Tensor:
    """Smooth random pictures."""
    coarse = torch.rand(count, 3, 6, 9, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bilinear")


def half_worse(photo: NDArray[np.uint8], attribute: str, level: float, side: str) -> Tensor:
    """A piece (1, 3, 224, 224) of a photo with the ramp of an attribute on the left or the right half."""
    cut = photo[40:264, 100:324]
    image = torch.from_numpy(cut.copy()).permute(2, 0, 1)[None].float() / 255
    worse = apply_ramp(image, attribute, torch.tensor([level]), torch.Generator().manual_seed(0))
    middle = image.shape[3] // 2
    inside = torch.arange(image.shape[3]) < middle if side == "left" else torch.arange(image.shape[3]) >= middle
    return torch.where(inside, worse, image)


def share(saliency_map: Tensor, side: str) -> float:
    left, right = saliency_map.tensor_split([saliency_map.shape[-1] // 2], -1)
    return float((left if side == "left" else right).sum() / saliency_map.sum())


@pytest.mark.parametrize(
    ("attribute", "level", "of"),
    [
        ("sharpness", 0.3, "sharpness"),
        ("sharpness", 0.3, "score"),
        ("noisiness", 0.3, "noisiness"),
        ("noisiness", 0.3, "white_noise"),
        ("contrast", 0.1, "contrast"),
        ("colorfulness", 0.0, "colorfulness"),
    ],
)
def test_the_map_lies_on_the_half_that_was_made_worse(
    trained: AttributeNet, photos: list[NDArray[np.uint8]], attribute: str, level: float, of: str
) -> None:
    sides = ("left", "right")
    cases = [(half_worse(photo, attribute, level, side), side) for photo, side in zip(photos, sides, strict=False)]
    shares = [share(saliency(trained, image, of), side) for image, side in cases]
    assert np.mean(shares) > 0.75, shares


def test_more_of_an_attribute_is_no_defect(trained: AttributeNet, photos: list[NDArray[np.uint8]]) -> None:
    more = half_worse(photos[0], "colorfulness", 1.0, "left")
    assert share(saliency(trained, more, "colorfulness"), "left") < 0.4


@pytest.mark.parametrize("of", ["score", "brightness", "jpeg"])
def test_a_map_is_that_of_its_image_whatever_the_batch(net: AttributeNet, of: str) -> None:
    batch = pictures(3)
    maps = saliency(net, batch, of)
    assert maps.shape == (3, 70, 110)
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    assert torch.equal(maps.amax((1, 2)), torch.ones(3))
    for image, one in zip(batch, maps, strict=True):
        assert torch.allclose(saliency(net, image[None], of)[0], one, atol=1e-5)
    assert torch.allclose(saliency(net, batch.double(), of), maps, atol=1e-5)


def test_maps_of_different_outputs_differ(net: AttributeNet) -> None:
    image = pictures(1)
    maps = {of: saliency(net, image, of) for of in ("score", *ATTRIBUTES, "jpeg", "darken")}
    for a, first in maps.items():
        assert all(a == b or (first - second).abs().mean() > 0.01 for b, second in maps.items())


def test_no_gradient_is_left_behind_and_grad_mode_does_not_matter(net: AttributeNet) -> None:
    image = pictures(1).requires_grad_()
    one = saliency(net, image, "score")
    assert not one.requires_grad
    assert image.grad is None
    assert all(parameter.grad is None for parameter in net.parameters())
    with torch.no_grad():
        assert torch.equal(saliency(net, image, "score"), one)


def test_windows_as_wide_as_the_world_read_the_whole_image(net: AttributeNet) -> None:
    image = pictures(1, 96, 128)
    with torch.no_grad():
        windows, whole = _window_statistics(net, image, window=1e4)
        pooled = net.pool(image)
    assert windows.shape == (6, 8, len(net.pooled_mean))
    assert torch.allclose(whole, pooled, atol=2e-3)
    assert torch.allclose(windows, pooled.expand_as(windows), atol=2e-3)


def test_a_model_that_reads_nothing_points_nowhere(net: AttributeNet) -> None:
    net = copy.deepcopy(net)
    last = net.regressor[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    assert not saliency(net, pictures(2), "score").any()


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ("sharpnes", r"did you mean 'sharpness'\?"),
        ("JPEG", r"did you mean 'jpeg'\?"),
        ("Gaussian blur", r"did you mean 'gaussian_blur'\?"),
        ("xyz", r"expected score, .* or a distortion's key, got 'xyz'$"),
    ],
)
def test_an_unknown_output_is_refused(net: AttributeNet, of: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        saliency(net, pictures(1), of)


def test_a_distortion_of_a_model_without_the_head_is_refused(net: AttributeNet) -> None:
    net = copy.deepcopy(net)
    net.distortion_head = None
    with pytest.raises(ValueError, match=r"of: expected score, .*this model tells no distortions; got 'jpeg'"):
        saliency(net, pictures(1), "jpeg")


def test_wrong_images_are_refused(net: AttributeNet) -> None:
    for wrong in (pictures(1)[0], pictures(1) * 2, torch.full((1, 3, 40, 40), math.nan), pictures(1)[..., :8]):
        with pytest.raises(ValueError, match="images: "):
            saliency(net, wrong, "score")


class ClipScorer(nn.Module):
    """A score and strengths read linearly off the image features of a small open_clip ViT, which sees 48 px."""

    def __init__(self, folder: Path, kind: PromptKind = "none", pool: str = "tok") -> None:
        super().__init__()
        import open_clip

        vision = small_clip.VIT["vision_cfg"] | {"pool_type": pool}
        self.visual = open_clip.create_model(small_clip.write(folder, small_clip.VIT | {"vision_cfg": vision})).visual
        self.prompts = VisualPrompts(self.visual, 0 if kind == "none" else 3, kind)
        if self.prompts.prompts is not None:
            self.prompts.prompts.data *= 5
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.read = nn.Linear(24, 26)
        self.eval()

    def forward(self, images: Tensor) -> Assessment:
        side = min(images.shape[2:])
        top, left = (images.shape[2] - side) // 2, (images.shape[3] - side) // 2
        square = images[:, :, top : top + side, left : left + side]
        features = self.prompts(self.visual, F.interpolate(square, (48, 48), mode="bilinear"))
        said = self.read(features).sigmoid()
        return Assessment(said[:, 0], None, said[:, 1:])


@pytest.fixture(scope="module")
def clip_scorer(tmp_path_factory: pytest.TempPathFactory) -> ClipScorer:
    return ClipScorer(tmp_path_factory.mktemp("clip"))


def by_hand(model: ClipScorer, image: Tensor, index: int, sign: float) -> Tensor:
    """Chefer et al.'s rule over every token, prompts included, head by head; ``image`` is 48 px wide and high."""
    tower, prompts, kind = model.visual, model.prompts.prompts, model.prompts.kind
    x, flow, layers = tower._embeds(image)[0], torch.eye(10), []
    for number, block in enumerate(tower.transformer.resblocks):
        new = kind == "deep" or (number == 0 and kind != "none")
        x = torch.cat([x[:10], prompts[number]]) if new and prompts is not None else x
        normed = block.ln_1(x)
        query, key, value = (normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).split(32, 1)
        parts = [slice(16 * head, 16 * head + 16) for head in range(2)]
        layers.append([(query[:, part] @ key[:, part].T / 4).softmax(1) for part in parts])
        mixed = [weights @ value[:, part] for weights, part in zip(layers[-1], parts, strict=True)]
        x = x + block.attn.out_proj(torch.cat(mixed, 1))
        x = x + block.mlp(block.ln_2(x))
    pooled = x[0] if tower.pool_type == "tok" else None
    features = tower.ln_post(x[:10])[1:].mean(0) if pooled is None else tower.ln_post(pooled)
    said = model.read(features @ tower.proj).sigmoid()[index]
    for layer in layers:
        gradients = torch.autograd.grad(sign * said, layer, retain_graph=True)
        positive = [(g * weights).clamp(min=0) for g, weights in zip(gradients, layer, strict=True)]
        tokens = len(positive[0])
        before = torch.zeros(tokens, 10)
        rows = len(flow) if kind == "shallow" else 10
        before[:rows] = flow[:rows]
        flow = before + torch.stack(positive).mean(0) @ before
    row = (flow[0] if tower.pool_type == "tok" else flow[1:10].mean(0))[1:].detach().view(3, 3)
    return (row - row.min()) / (row.max() - row.min())


@pytest.mark.parametrize(
    ("of", "kind", "pool"),
    [
        ("score", "none", "tok"),
        ("jpeg", "none", "tok"),
        ("jpeg", "shallow", "tok"),
        ("jpeg", "deep", "tok"),
        ("jpeg", "none", "avg"),
    ],
)
def test_attention_relevance_is_the_papers(tmp_path: Path, of: str, kind: PromptKind, pool: str) -> None:
    scorer, image = ClipScorer(tmp_path, kind, pool), pictures(1, 48, 48)
    index, sign = (0, -1.0) if of == "score" else (1 + DISTORTION_KEYS.index(of), 1.0)
    expected = by_hand(scorer, image, index, sign)
    found = saliency(scorer, image, of)
    wide = F.interpolate(expected[None, None], (48, 48), mode="bilinear")[0]
    wide = (wide - wide.min()) / (wide.max() - wide.min())
    assert torch.allclose(found, wide, atol=1e-4)
    assert expected.std() > 0.1


def test_to_explain_a_transformer_leaves_it_as_it_was(clip_scorer: ClipScorer) -> None:
    image = pictures(1, 48, 48)
    before = clip_scorer(image).score
    blocks = [part for part in clip_scorer.modules() if isinstance(part, nn.MultiheadAttention)]
    with tower_maps._explicit_attention(blocks) as weights:
        inside = clip_scorer(image).score
    assert torch.allclose(inside, before, atol=1e-6)
    assert [tuple(entry.shape) for entry in weights] == [(1, 2, 10, 10)] * 2
    with torch.no_grad():
        saliency(clip_scorer, image, "score")
    assert torch.equal(clip_scorer(image).score, before)
    assert len(weights) == 2, "the hooks are gone"
    assert all(parameter.grad is None for parameter in clip_scorer.parameters())


@pytest.mark.parametrize("shape", [(48, 100), (90, 48)])
def test_a_transformers_map_lies_on_the_square_that_it_sees(clip_scorer: ClipScorer, shape: tuple[int, int]) -> None:
    image = pictures(2, *shape)
    maps = saliency(clip_scorer, image, "score")
    assert maps.shape == (2, *shape)
    long = maps if shape[1] > shape[0] else maps.transpose(1, 2)
    start = (max(shape) - 48) // 2
    assert not long[:, :, :start].any()
    assert not long[:, :, start + 48 :].any()
    assert torch.equal(maps.amax((1, 2)), torch.ones(2))
    assert torch.allclose(maps[1:], saliency(clip_scorer, image[1:], "score"), atol=1e-5)


def test_exiqa_is_explained_by_its_own_table() -> None:
    table = tuple(
        DistortionAttributes(key, key, "made up", (f"{key} one", f"{key} two")) for key in ("moire", "banding")
    )
    towers = build_clip({"model_cfg": small_clip.VIT}, name="small")
    model = ExIQA(ExIQAConfig(table, prompts=2, prompt_kind="deep", logit_scale=5.0), towers).eval()
    image = pictures(2, 60, 80)
    maps = {key: saliency(model, image, key) for key in ("moire", "banding")}
    for found in maps.values():
        assert torch.equal(found.amax((1, 2)), torch.ones(2))
        assert not found[:, :, :10].any(), "outside the square that it sees"
    assert (maps["moire"] - maps["banding"]).abs().mean() > 0.01
    with pytest.raises(ValueError, match="did you mean 'moire'"):
        saliency(model, image, "moir")
    with pytest.raises(ValueError, match=r"expected score or a distortion's key, got 'jpeg'"):
        saliency(model, image, "jpeg")
    with pytest.raises(ValueError, match="this model tells no attributes; got 'sharpness'"):
        saliency(model, image, "sharpness")


def test_what_a_transformer_cannot_tell_and_what_is_none(clip_scorer: ClipScorer) -> None:
    with pytest.raises(ValueError, match="of: ClipScorer tells no attributes"):
        saliency(clip_scorer, pictures(1, 48, 48), "sharpness")
    with pytest.raises(ValueError, match=r"model: expected an AttributeNet or .* got Conv2d"):
        saliency(nn.Conv2d(3, 3, 1), pictures(1, 48, 48), "score")


def test_overlay_is_gray_where_the_map_is_zero_and_coloured_elsewhere() -> None:
    image = pictures(1, 40, 60)[0]
    plain = overlay(image, torch.zeros(40, 60))
    assert plain.shape == (40, 60, 3)
    assert plain.dtype == np.uint8
    assert (plain == plain[..., :1]).all()
    assert plain[..., 0] == pytest.approx(
        255 * (image * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0), abs=1
    )
    half = torch.zeros(40, 60)
    half[:, 30:] = 1
    shown = overlay(image, half)
    assert np.array_equal(shown[:, :30], plain[:, :30])
    assert np.ptp(shown[:, 30:].astype(int), axis=2).min() > 30


def test_equal_steps_of_the_map_are_equal_steps_of_lightness() -> None:
    srgb = np.array(_COLORS) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16  # CIE L*
    assert np.diff(lightness) == pytest.approx(10, abs=1.5)


def test_overlay_refuses_what_does_not_fit() -> None:
    image = pictures(1, 40, 60)[0]
    with pytest.raises(ValueError, match=r"got \(3, 40, 60\) and \(60, 40\)"):
        overlay(image, torch.zeros(60, 40))
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got 2 to 2"):
        overlay(image, torch.full((40, 60), 2.0))


def strengths(**found: float) -> list[float]:
    return [found.get(key, 0.02) for key in DISTORTION_KEYS]


FINE = (0.5,) * 5


@pytest.mark.parametrize(
    ("attributes", "distortions", "words"),
    [
        (FINE, strengths(white_noise=0.3, jpeg=0.8), "strong JPEG (0.8), some white noise (0.3)"),
        (FINE, strengths(gaussian_blur=0.58), "strong Gaussian blur (0.6)"),
        (FINE, strengths(jpeg=1, darken=0.8, jitter=0.7, denoise=0.6),
         "strong JPEG (1.0), strong darken (0.8), strong jitter (0.7)"),
        ((0.05, 0.5, 0.5, 0.5, 0.5), strengths(jpeg=0.2), "very low sharpness (0.05)"),
        ((0.2, 0.5, 0.13, 0.5, 0.08), None, "much noise (noisiness 0.08), low brightness (0.13), low sharpness (0.20)"),
        ((0.5, 0.5, 0.5, 0.5, 0.2), None, "noise (noisiness 0.20)"),
        ((0.05, 0.5, 0.5, 0.5, 0.5), strengths(jpeg=0.4), "some JPEG (0.4)"),
        (FINE, None, "nothing stands out"),
        (None, strengths(), "nothing stands out"),
    ],
)  # fmt: skip
def test_words(attributes: tuple[float, ...] | None, distortions: list[float] | None, words: str) -> None:
    assert why(attributes, distortions) == words


def test_words_refuse_wrong_numbers() -> None:
    with pytest.raises(ValueError, match=r"attributes: expected 5 values in \[0, 1\], got \[0.5\]"):
        why([0.5])
    with pytest.raises(ValueError, match="distortions: expected 25 values"):
        why(FINE, [math.nan] * 25)


def test_a_map_has_the_size_of_a_file_as_read(net: AttributeNet, tmp_path: Path) -> None:
    from PIL import Image

    pixels = (pictures(1, 50, 41)[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = images.read(tmp_path / "a.png")
    assert overlay(image, saliency(net, image[None], "score")[0]).shape == pixels.shape
