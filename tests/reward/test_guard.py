"""The guarded reward: lower bound over models, random looks, bounds on attributes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from attriqa import QualityReward, load
from attriqa.models import AttributeNet, checkpoint, load_attribute_net
from attriqa.reward import Guard, GuardedModel, cut_box, draw_boxes, lower_bound
from tests.support import small_net


@pytest.fixture(scope="module")
def base(weights: Path) -> Path:
    return weights


@pytest.fixture(scope="module")
def head(base: Path) -> Path:
    """A member on the encoder of the base, with other heads and another standardisation."""
    net = load_attribute_net(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        net.pooled_mean += 0.1
        net.pooled_std *= 1.5
        net.heads_in.weight += 0.1 * torch.randn(net.heads_in.weight.shape, generator=generator)
        dict(net.regressor.named_parameters())["1.bias"].add_(0.7)
    net.save(base.parent / "head.safetensors", {}, dtype=torch.float32)
    return base.parent / "head.safetensors"


@pytest.fixture(scope="module")
def stranger(base: Path) -> Path:
    """A member on another encoder."""
    return small_net.save(base.parent / "stranger.safetensors", seed=5, data="none")


def pictures(count: int = 2, height: int = 64, width: int = 88) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 9, 9, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


FREE: dict[str, tuple[float, float]] = {}


def test_the_bound_is_mean_less_deviations() -> None:
    scores = torch.tensor([[0.2, 0.4, 0.9], [0.5, 0.5, 0.5]], requires_grad=True)
    found = lower_bound(scores, 2.0)
    torch.testing.assert_close(found, scores.mean(1) - 2 * scores.std(1), rtol=0, atol=2e-4)
    assert torch.autograd.grad(found.sum(), scores)[0].isfinite().all()
    assert lower_bound(scores[:, :1], 2.0).tolist() == pytest.approx([0.2, 0.5])


def test_a_guard_without_options_changes_nothing(base: Path) -> None:
    plain = QualityReward(base)
    guarded = QualityReward(base, guard=Guard(members=(), attribute_bounds=FREE))
    for ours, theirs in zip(guarded.assess(pictures()), plain.assess(pictures()), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert guarded.identity != plain.identity
    assert guarded.names == plain.names


def test_the_score_is_the_bound_over_what_each_model_says_alone(base: Path, head: Path, stranger: Path) -> None:
    alone = torch.stack([QualityReward(path)(pictures()) for path in (base, head, stranger)], 1)
    assert alone.std(1).min() > 0.01
    guarded = QualityReward(base, guard=Guard(members=(head, stranger), std_weight=0.7, attribute_bounds=FREE))
    torch.testing.assert_close(guarded(pictures()), alone.mean(1) - 0.7 * alone.std(1), rtol=0, atol=1e-4)
    attributes = QualityReward(base).assess(pictures()).attributes
    torch.testing.assert_close(guarded.assess(pictures()).attributes, attributes, rtol=0, atol=1e-6)


def test_members_on_the_encoder_share_its_pass(base: Path, head: Path, stranger: Path) -> None:
    model = GuardedModel(load(base), Guard(members=(head, head, stranger)))
    assert (len(model.heads), len(model.others)) == (2, 1)
    passes = []
    assert isinstance(model.base, AttributeNet)
    model.base.backbone.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        model.see(pictures(), "full")
    assert len(passes) == 1
    assert not any(name.startswith("heads.0.backbone") for name in model.state_dict())


def test_the_packaged_judge_guards_the_default(photos: list[NDArray[np.uint8]]) -> None:
    """Where the default is pushed and the judge is not, the guarded reward does not follow."""
    plain, guarded = QualityReward(view="full"), QualityReward(view="full", guard=Guard(attribute_bounds=FREE))
    image = torch.tensor(photos[0][:192, 150:342]).permute(2, 0, 1)[None] / 255
    pushed = image
    for _ in range(2):
        pushed = pushed.detach().requires_grad_()
        (slope,) = torch.autograd.grad(plain(pushed).sum(), pushed)
        pushed = (pushed + 2 / 255 * slope.sign()).clamp(0, 1).detach()
    with torch.no_grad():
        gains = [(reward(pushed) - reward(image)).item() for reward in (plain, guarded)]
    assert gains[0] > 0.15
    assert gains[1] < 0.3 * gains[0]


# Looks.


def test_boxes_lie_inside_and_are_those_of_the_seed() -> None:
    guard = Guard(members=(), jitter_views=200, jitter_size=0.6)
    boxes = draw_boxes(guard, torch.Generator().manual_seed(3))
    size, top, left, flip = boxes.T
    assert size.min() >= 0.6
    assert size.max() <= 1
    for start in (top, left):
        assert start.min() >= 0
        assert (start + size).max() <= 1
    assert 60 < (flip > 0.5).sum() < 140
    assert torch.equal(boxes, draw_boxes(guard, torch.Generator().manual_seed(3)))
    image = pictures(1, 33, 61)
    for box in boxes.tolist():
        assert min(cut_box(image, box).shape[2:]) >= 19


def test_a_box_cuts_and_flips() -> None:
    image = torch.arange(200.0).view(1, 1, 10, 20).expand(1, 3, -1, -1)
    assert torch.equal(cut_box(image, (0.5, 0.2, 0.4, 0.0)), image[:, :, 2:7, 8:18])
    assert torch.equal(cut_box(image, (0.5, 0.2, 0.4, 0.9)), image[:, :, 2:7, 8:18].flip(3))


def test_looks_are_averaged_and_the_same_each_time(base: Path) -> None:
    guard = Guard(members=(), jitter_views=3, attribute_bounds=FREE)
    reward, plain = QualityReward(base, guard=guard), QualityReward(base)
    boxes = draw_boxes(guard, torch.Generator().manual_seed(guard.seed)).tolist()
    expected = torch.stack([plain(cut_box(pictures(), box)) for box in boxes]).mean(0)
    torch.testing.assert_close(reward(pictures()), expected, rtol=0, atol=1e-5)
    assert torch.equal(reward(pictures()), reward(pictures()))
    other = QualityReward(base, guard=Guard(members=(), jitter_views=3, attribute_bounds=FREE, seed=1))
    assert (other(pictures()) - reward(pictures())).abs().max() > 1e-4
    assert other.identity != reward.identity


def test_a_generator_draws_other_looks_and_the_global_one_is_left_alone(base: Path) -> None:
    reward = QualityReward(base, guard=Guard(members=(), jitter_views=2))
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(8)
    first, second = (reward(pictures(), generator=generator) for _ in range(2))
    assert (first - second).abs().max() > 1e-4
    assert torch.equal(first, reward(pictures(), generator=torch.Generator().manual_seed(8)))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="generator: expected a guard with jitter_views"):
        QualityReward(base)(pictures(), generator=generator)


# Bounds.


def test_attributes_out_of_bounds_cost(base: Path) -> None:
    plain = QualityReward(base).assess(pictures())
    assert plain.attributes is not None
    color, sharp = plain.attribute("colorfulness"), plain.attribute("sharpness")
    middle = color.median().item()
    bounds = {"colorfulness": (0.0, middle), "sharpness": (sharp.max().item() + 0.01, 1.0)}
    guard = Guard(members=(), attribute_bounds=bounds, bounds_weight=2.0)
    reward = QualityReward(base, guard=guard)
    expected = 2 * ((color - middle).relu() + sharp.max() + 0.01 - sharp)
    torch.testing.assert_close(plain.score - reward(pictures()), expected, rtol=0, atol=1e-5)
    weighed = QualityReward(base, attribute_weights={"score": 0, "colorfulness": 1}, guard=guard)
    torch.testing.assert_close(color - weighed(pictures()), expected, rtol=0, atol=1e-5)


# As any reward.


@pytest.fixture(scope="module")
def full(base: Path, head: Path, stranger: Path) -> tuple[QualityReward, QualityReward]:
    """A reward with everything in its guard, and the same with memory for one image at a time."""
    guard = Guard(members=(head, stranger), jitter_views=2, attribute_bounds={"sharpness": (0.4, 0.6)})
    return QualityReward(base, guard=guard), QualityReward(base, guard=guard, memory_mib=1)


def slopes(reward: QualityReward, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    found = reward(images)
    return found.detach(), torch.autograd.grad(found.sum(), images)[0]


def test_chunks_and_batches_change_nothing(full: tuple[QualityReward, QualityReward]) -> None:
    found, slope = slopes(full[0], pictures())
    largest = slope.abs().max().item()
    for again in (
        slopes(full[1], pictures()),
        [torch.cat(part) for part in zip(*(slopes(full[0], image[None]) for image in pictures()), strict=True)],
    ):
        torch.testing.assert_close(again[0], found, rtol=0, atol=1e-5)
        torch.testing.assert_close(again[1], slope, rtol=1e-3, atol=1e-4 * largest)
    assert slope.isfinite().all()
    assert (slope != 0).float().mean() > 0.8
    assert not list(full[0].parameters())


def test_chunks_recompute_the_looks_that_were_drawn(full: tuple[QualityReward, QualityReward]) -> None:
    """A chunk's forward runs again in the backward pass, when the generator has moved on."""
    images = pictures().requires_grad_()
    told = []
    for reward in full:
        generator = torch.Generator().manual_seed(8)
        found = reward(images, generator=generator)
        with torch.no_grad():
            reward(images, generator=generator)
        told.append(torch.autograd.grad(found.sum(), images)[0])
    torch.testing.assert_close(told[1], told[0], rtol=1e-3, atol=1e-4 * told[0].abs().max().item())


# Bad input.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guard(std_weight=-1), "std_weight: expected a finite number of at least 0, got -1"),
        (lambda: Guard(bounds_weight=float("nan")), "bounds_weight: expected a finite number"),
        (lambda: Guard(jitter_views=-1), "jitter_views: expected at least 0"),
        (lambda: Guard(jitter_size=0.0), r"jitter_size: expected a share in \(0, 1\], got 0"),
        (lambda: Guard(attribute_bounds={"sharpness": (0.9, 0.1)}), "attribute_bounds: expected .* of sharpness"),
        (lambda: Guard(members="judge"), "members: expected a tuple of paths, got the path judge"),  # type: ignore[arg-type]
    ],
)
def test_wrong_options_are_refused(make: Callable[[], Guard], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_does_not_fit_the_model_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"attribute_bounds: expected names among sharpness, .*, got glamour"):
        QualityReward(base, guard=Guard(members=(), attribute_bounds={"glamour": (0.1, 0.9)}))
    with pytest.raises(FileNotFoundError, match="gone"):
        QualityReward(base, guard=Guard(members=(tmp_path / "gone.safetensors",)))
    (tmp_path / "text.safetensors").write_text("none")
    with pytest.raises(checkpoint.CheckpointError, match="text"):
        QualityReward(base, guard=Guard(members=(tmp_path / "text.safetensors",)))
    with pytest.raises(TypeError, match="a guarded model has no checkpoint of its own"):
        GuardedModel(load(base), Guard(members=())).save(tmp_path / "x.safetensors", {})
