import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from attriqa import ATTRIBUTES, Assessment, QualityReward, images
from attriqa.models.views import CROPPED_VIEWS, View
from tests.support import image_cases, small_net


def pictures(count: int, height: int = 104, width: int = 140, seed: int = 0) -> Tensor:
    """Smooth colours with a little noise: images as different from one another as a random net can tell."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 7, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def gradient(reward: QualityReward, batch: Tensor) -> Tensor:
    """Of the summed reward to the pixels."""
    leaf = batch.clone().requires_grad_()
    (found,) = torch.autograd.grad(reward(leaf).sum(), leaf)
    return found


# What comes back


@pytest.mark.parametrize("view", CROPPED_VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_one_float32_number_per_image_in_any_input_dtype(weights: Path, view: View, dtype: torch.dtype) -> None:
    reward = QualityReward(weights, view=view)
    for count in (1, 3):
        rewards = reward(pictures(count).to(dtype))
        assert rewards.shape == (count,)
        assert rewards.dtype == torch.float32
        assert ((rewards > 0) & (rewards < 1)).all()
    assert rewards.std() > 1e-3, "the test's images must differ for the other tests to mean anything"


def test_assess_says_the_score_and_five_attributes(reward: QualityReward) -> None:
    batch = pictures(3)
    assessment = reward.assess(batch)
    assert torch.equal(assessment.score, reward(batch))
    assert assessment.attributes is not None
    assert assessment.attributes.shape == (3, len(ATTRIBUTES))
    assert assessment.attributes.dtype == torch.float32
    for index, name in enumerate(ATTRIBUTES):
        assert torch.equal(assessment.attribute(name), assessment.attributes[:, index])
    with pytest.raises(ValueError, match=r"expected one of sharpness, .* got 'sharpnes'"):
        assessment.attribute("sharpnes")
    with pytest.raises(ValueError, match="tells no attributes, so no contrast"):
        assessment._replace(attributes=None).attribute("contrast")
    assert ((assessment.attributes >= 0) & (assessment.attributes <= 1)).all()
    assert assessment.distortions is None
    assert assessment.attribute_probs is None


@pytest.mark.parametrize("view", CROPPED_VIEWS)
def test_a_batch_scores_as_its_images_one_by_one_in_any_order(weights: Path, view: View) -> None:
    reward = QualityReward(weights, view=view)
    batch = pictures(7)

    def told(images: Tensor) -> Tensor:
        return torch.stack([reward(images), *(reward.assess(images).attribute(name) for name in ATTRIBUTES)], 1)

    together, single = told(batch), [told(image[None]) for image in batch]
    torch.testing.assert_close(torch.cat(single), together, rtol=0, atol=1e-5)
    order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    torch.testing.assert_close(reward(batch[order]), together[order, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("view", CROPPED_VIEWS)
def test_chunks_change_neither_rewards_nor_gradients(
    weights: Path, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pictures(5)
    whole, chunked = QualityReward(weights, view=view), QualityReward(weights, view=view, memory_mib=1)
    calls: list[int] = []
    see = chunked._see

    def counted(part: torch.Tensor) -> Assessment:
        calls.append(len(part))
        return see(part)

    monkeypatch.setattr(chunked, "_see", counted)
    torch.testing.assert_close(chunked(batch), whole(batch), rtol=0, atol=1e-5)
    assert len(calls) > 1, "one MiB must be too little for five images"
    torch.testing.assert_close(gradient(chunked, batch), gradient(whole, batch), rtol=1e-4, atol=1e-5)
    for count in (1, 2, 3, 4):
        for fitting in (count, 99):  # less than the batch: computed again in the backward pass
            monkeypatch.setattr(chunked, "_chunk", lambda _, fitting=fitting, count=count: (fitting, count))
            torch.testing.assert_close(chunked(batch), whole(batch), rtol=0, atol=1e-5)
            torch.testing.assert_close(gradient(chunked, batch), gradient(whole, batch), rtol=1e-4, atol=1e-5)


def test_a_larger_budget_means_larger_chunks_and_gradients_smaller_ones(weights: Path) -> None:
    batch = pictures(1)
    small, large = QualityReward(weights, memory_mib=80), QualityReward(weights, memory_mib=800)
    assert large._chunk(batch)[0] == pytest.approx(10 * small._chunk(batch)[0], abs=10)
    assert small._chunk(batch.clone().requires_grad_())[0] < small._chunk(batch)[0]
    with torch.no_grad():
        assert small._chunk(batch.clone().requires_grad_()) == small._chunk(batch)
    assert 1 <= large._chunk(batch)[1] < large._chunk(batch)[0], "on a CPU what fits the caches is faster"


@pytest.mark.parametrize("view", CROPPED_VIEWS)
@pytest.mark.parametrize("size", [(32, 32), (32, 2000), (2000, 32), (33, 401), (96, 96), (80, 300)])
def test_small_and_elongated_images_score(weights: Path, view: View, size: tuple[int, int]) -> None:
    reward = QualityReward(weights, view=view)
    batch = pictures(2, *size)
    assert ((reward(batch) > 0) & (reward(batch) < 1)).all()
    found = gradient(reward, batch)
    assert found.isfinite().all()
    assert (found.abs().amax((1, 2, 3)) > 0).all()


def test_the_five_crop_view_is_the_mean_over_the_corners_and_the_centre(weights: Path) -> None:
    reward, net = QualityReward(weights, view="five_crop"), small_net.build()
    resized = images.resize_shorter(pictures(2), small_net.CONFIG.shorter_edge)
    edge = small_net.CONFIG.crop
    bottom, right = resized.shape[2] - edge, resized.shape[3] - edge
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    with torch.no_grad():
        scores = [net(resized[:, :, y : y + edge, x : x + edge]).score for y, x in corners]
        whole = net(resized).score
    # The checkpoint holds the weights in half precision.
    torch.testing.assert_close(reward(pictures(2)), torch.stack(scores).mean(0), rtol=0, atol=2e-3)
    torch.testing.assert_close(QualityReward(weights, view="full")(pictures(2)), whole, rtol=0, atol=2e-3)
    assert (torch.stack(scores).mean(0) - whole).abs().min() > 5e-3, "the views must differ for this to be a test"


def test_the_native_view_scales_down_and_never_up(weights: Path, tmp_path: Path) -> None:
    native, full, net = QualityReward(weights, view="native"), QualityReward(weights, view="full"), small_net.build()
    edge = small_net.CONFIG.shorter_edge
    small, large = pictures(2, edge - 20, edge - 10), pictures(2, edge + 40, edge + 30)
    assert torch.equal(native(large), full(large))
    with torch.no_grad():
        torch.testing.assert_close(native(small), net(small).score, rtol=0, atol=2e-3)
    assert (native(small) - full(small)).abs().min() > 1e-3
    pixels = (small[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "small.png")
    (row,) = native.score_files([tmp_path / "small.png"])
    assert row.score == pytest.approx(native(small)[0].item(), abs=5e-3)


def test_identity_tells_weights_and_views_apart(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    other = small_net.save(tmp_path / "small" / "small.safetensors", seed=1)
    copied = tmp_path / "small.safetensors"
    copied.write_bytes(weights.read_bytes())
    views: tuple[View, ...] = CROPPED_VIEWS
    names = {QualityReward(path, view=view).identity for path in (weights, other) for view in views}
    assert len(names) == 6
    assert QualityReward(weights).identity == QualityReward(copied, dtype=torch.bfloat16).identity
    assert QualityReward(weights, view="full").identity.endswith("/full")
    assert not torch.equal(QualityReward(weights)(pictures(1)), QualityReward(other)(pictures(1)))


# Gradients to pixels, none to weights


def test_gradients_are_those_of_finite_differences(weights: Path) -> None:
    reward = QualityReward(weights)
    batch = pictures(1).clamp(0.1, 0.9)
    generator = torch.Generator().manual_seed(3)
    direction = F.interpolate(torch.randn(1, 3, 6, 8, generator=generator), batch.shape[2:], mode="bilinear")
    step = 2e-3 * direction / direction.abs().max()
    expected = (reward(batch + step) - reward(batch - step)) / 2
    assert float((gradient(reward, batch) * step).sum()) == pytest.approx(expected.item(), rel=0.03, abs=1e-6)


def test_no_mode_flag_changes_the_reward(weights: Path) -> None:
    reward = QualityReward(weights)
    batch = pictures(2)
    expected, slope = reward(batch), gradient(reward, batch)
    reward.train().requires_grad_(True)
    assert not any(module.training for module in reward.modules())
    assert torch.equal(reward(batch), expected)
    torch.testing.assert_close(gradient(reward, batch), slope)
    reward(batch.clone().requires_grad_()).sum().backward()
    assert all(tensor.grad is None for tensor in reward.state_dict(keep_vars=True).values())
    for bad in (batch * 2, batch * float("nan"), (batch * 255).byte()):
        for mode in (True, False):
            with pytest.raises(ValueError, match="images"):
                reward.train(mode)(bad)


def test_training_an_enclosing_module_leaves_the_weights_alone(weights: Path) -> None:
    reward = QualityReward(weights)
    before = {name: value.clone() for name, value in reward.state_dict().items()}
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid(), reward).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    assert sum(parameter.numel() for parameter in model.parameters()) == 12, "the convolution's alone"
    for _ in range(3):
        loss = -model(pictures(2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in reward.state_dict().items())
    assert not any(module.training for module in reward.modules())
    first = cast("nn.Conv2d", model[0])
    assert first.weight.grad is not None
    assert first.weight.grad.abs().max() > 0


def test_without_gradients_no_graph_is_kept(reward: QualityReward) -> None:
    batch = pictures(2)
    with torch.no_grad():
        assert not reward(batch.clone().requires_grad_()).requires_grad
    assert not reward(batch).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(reward(batch), reward(batch.clone()), rtol=0, atol=1e-6)
    assert reward(batch.requires_grad_()).requires_grad


def test_ten_steps_uphill_raise_every_reward(weights: Path) -> None:
    reward = QualityReward(weights, attribute_weights={"sharpness": 0.2})
    batch = pictures(2).requires_grad_()
    start = reward(batch).detach()
    optimizer = torch.optim.Adam([batch], lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        (-reward(batch).sum()).backward()  # the graph is the caller's: a second loss may use the same images
        optimizer.step()
        with torch.no_grad():
            batch.clamp_(0, 1)
    assert (reward(batch) > start + 0.01).all()


# Attribute weights


def test_attribute_weights_are_a_normalised_sum(weights: Path, reward: QualityReward) -> None:
    batch = pictures(3)
    said = reward.assess(batch)
    attributes = {name: said.attribute(name) for name in ATTRIBUTES}
    for given, expected in (
        ({"score": 1}, said.score),
        ({}, said.score),
        ({"score": 7.5}, said.score),
        ({"score": -2}, -said.score),
        ({"sharpness": 0.5}, (said.score + 0.5 * attributes["sharpness"]) / 1.5),
        ({"score": 0, "noisiness": 3}, attributes["noisiness"]),
        ({"score": 0, "contrast": 1, "brightness": -3}, (attributes["contrast"] - 3 * attributes["brightness"]) / 4),
        (dict.fromkeys(ATTRIBUTES, 1), (said.score + sum(attributes.values())) / 6),
    ):
        found = QualityReward(weights, attribute_weights=cast("dict[str, float]", given))
        torch.testing.assert_close(found(batch), expected, rtol=0, atol=1e-6)
        assert torch.equal(found.assess(batch).score, said.score), "an assessment is not a reward"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sharpnes": 1}, ["sharpnes", "colorfulness", "score"]),
        ({"score": 0}, ["not all zero"]),
        ({"score": 0, "contrast": 0}, ["not all zero"]),
        ({"contrast": float("nan")}, ["finite", "nan"]),
        ({"contrast": float("inf")}, ["finite", "inf"]),
        ({"score": 1e308, "contrast": 1e308}, ["finite"]),
    ],
)
def test_wrong_attribute_weights_are_refused(weights: Path, given: dict[str, float], words: list[str]) -> None:
    with pytest.raises(ValueError, match="attribute_weights: expected") as error:
        QualityReward(weights, attribute_weights=given)
    assert all(word in str(error.value) for word in words)


# Refusals


@pytest.mark.parametrize("case", image_cases.malformed_tensors(), ids=lambda case: case.name)
def test_what_is_no_batch_of_images_is_refused(reward: QualityReward, case: image_cases.TensorCase) -> None:
    calls: tuple[Callable[[Any], object], ...] = (reward, reward.assess)
    for call in calls:
        with pytest.raises(ValueError, match="images: expected") as error:
            call(case.value)
        assert case.word in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"view": "fivecrop"}, ["view: expected", "five_crop", "full", "'fivecrop'"]),
        ({"dtype": torch.float64}, ["dtype: expected", "float32", "float64"]),
        ({"dtype": torch.uint8}, ["dtype: expected", "uint8"]),
        ({"memory_mib": 0}, ["memory_mib: expected", "0"]),
        ({"memory_mib": -5}, ["memory_mib: expected", "-5"]),
    ],
)
def test_wrong_settings_are_refused(weights: Path, arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        QualityReward(weights, **arguments)
    assert all(word in str(error.value) for word in words)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        QualityReward(tmp_path / "nowhere.safetensors")


# Precision, state, surroundings


def test_bfloat16_stays_near_float32(weights: Path) -> None:
    batch = pictures(8)
    narrow = QualityReward(weights, dtype=torch.bfloat16)
    exact = QualityReward(weights)(batch)
    found = narrow(batch)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 0.01
    assert not torch.equal(found, exact), "bfloat16 was not used"
    slope = gradient(narrow, batch)
    assert slope.isfinite().all()
    assert F.cosine_similarity(slope.flatten(), gradient(QualityReward(weights), batch).flatten(), 0) > 0.9


def test_an_outer_autocast_changes_nothing(reward: QualityReward) -> None:
    batch = pictures(2)
    expected = reward(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reward(batch), expected)


def test_no_global_random_state_is_read_or_set(weights: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "a.png")

    def work() -> Tensor:
        reward = QualityReward(weights, memory_mib=1)
        gradient(reward, pictures(3))
        return torch.cat(
            [reward(pictures(2)), torch.tensor([row.score for row in reward.score_files([tmp_path / "a.png"])])]
        )

    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)
    first = work()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert repr(np.random.get_state(legacy=False)) == repr(numpy_state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        assert torch.equal(work(), first)


def test_copies_pickles_and_moves_score_the_same(weights: Path) -> None:
    reward = QualityReward(weights, attribute_weights={"contrast": 1}, view="five_crop")
    batch = pictures(2)
    expected = reward(batch)
    for other in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward)), reward.to("cpu")):
        assert torch.equal(other(batch), expected)
        assert other.identity == reward.identity
        assert gradient(other, batch).abs().max() > 0
