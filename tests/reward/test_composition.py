"""Rewards weighed and added: quality of ours, how well a picture fits its prompt from elsewhere."""

import functools
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa import QualityReward
from attriqa.reward import CombinedReward, Term, as_reward
from tests.support import small_clip, small_net

PROMPTS = ["a red barn", "the sea at night", "a red barn"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(0))


class ClipSimilarity(nn.Module):
    """Cosine between a picture's CLIP features and its prompt's."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        name = small_clip.write(folder)
        self.clip: Any = open_clip.create_model(name).eval().requires_grad_(False)
        self.tokenizer: Any = open_clip.get_tokenizer(name)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        size = self.clip.visual.image_size
        resized = F.interpolate(images, size, mode="bilinear", antialias=True)
        pictures = self.clip.encode_image((resized - 0.45) / 0.25, normalize=True)
        texts = self.clip.encode_text(self.tokenizer(prompts), normalize=True)
        cosines: Tensor = torch.linalg.vecdot(pictures, texts)
        return cosines


@pytest.fixture(scope="module")
def similarity(tmp_path_factory: pytest.TempPathFactory) -> ClipSimilarity:
    return ClipSimilarity(tmp_path_factory.mktemp("clip"))


def darkness(images: Tensor) -> Tensor:
    return 1 - images.mean((1, 2, 3))


def test_quality_and_alignment_add_up(reward: QualityReward, similarity: ClipSimilarity, images: Tensor) -> None:
    combined = reward + 0.5 * as_reward(similarity, "alignment")
    alignment = similarity(images, PROMPTS)
    assert not torch.isclose(alignment[0], alignment[1])
    torch.testing.assert_close(combined(images, PROMPTS), reward(images) + 0.5 * alignment)
    scores, info = combined.as_reward_fn()(images, PROMPTS, [{}] * 3)
    torch.testing.assert_close(scores, reward(images) + 0.5 * alignment)
    torch.testing.assert_close(info["quality"], reward(images))
    torch.testing.assert_close(info["alignment"], alignment)


def test_gradients_come_from_every_scorer(reward: QualityReward, similarity: ClipSimilarity, images: Tensor) -> None:
    total = images.clone().requires_grad_()
    (2 * reward + 0.5 * as_reward(similarity))(total, PROMPTS).sum().backward()
    own, other = images.clone().requires_grad_(), images.clone().requires_grad_()
    reward(own).sum().backward()
    similarity(other, PROMPTS).sum().backward()
    assert own.grad is not None
    assert other.grad is not None
    assert own.grad.norm() > 1e-6
    assert other.grad.norm() > 1e-6
    torch.testing.assert_close(total.grad, 2 * own.grad + 0.5 * other.grad)


@pytest.mark.parametrize(
    ("compose", "quality", "dark"),
    [
        (lambda reward: reward + darkness, 1, 1),
        (lambda reward: darkness + reward, 1, 1),
        (lambda reward: reward * 3, 3, 0),
        (lambda reward: 0.5 * (reward + 2 * as_reward(darkness)), 0.5, 1),
        (lambda reward: reward + as_reward(darkness) * cast(float, np.float32(-0.25)), 1, -0.25),
        (lambda reward: functools.reduce(operator.add, [reward, darkness, darkness]), 1, 2),
        (lambda reward: (reward + darkness) + (reward + darkness), 2, 2),
    ],
)
def test_operators_mean_what_they_say(
    reward: QualityReward, images: Tensor, compose: Callable[[Any], CombinedReward], quality: float, dark: float
) -> None:
    expected = quality * reward(images) + dark * darkness(images)
    torch.testing.assert_close(compose(reward)(images), expected)


def test_what_comes_twice_is_numbered(reward: QualityReward, images: Tensor) -> None:
    _, info = (reward + darkness + reward + darkness).breakdown(images)
    assert list(info) == ["quality", "darkness", "quality_2", "darkness_2"]
    with pytest.warns(DeprecationWarning, match="now called breakdown"):
        assert list(as_reward(darkness).told(images)[1]) == ["darkness"]


def test_scorers_may_give_arrays_and_lists(images: Tensor) -> None:
    class Scorer:
        def __call__(self, images: Tensor) -> list[float]:
            return [0.0, 1.0, 2.0]

    combined = as_reward(Scorer()) + (lambda images: np.array([1.0, 1.0, 1.0]))
    assert combined(images).tolist() == [1, 2, 3]
    assert combined(images).dtype == torch.float32


def test_optional_prompts_are_passed_on_when_there_are_some(images: Tensor) -> None:
    def count(images: Tensor, prompts: list[str] | None = None) -> Tensor:
        return torch.full((len(images),), 0.0 if prompts is None else len(prompts))

    assert as_reward(count)(images).tolist() == [0, 0, 0]
    assert as_reward(functools.partial(count))(images, PROMPTS).tolist() == [3, 3, 3]


def test_nothing_of_a_sum_can_be_trained_by_accident(reward: QualityReward, similarity: ClipSimilarity) -> None:
    whole = nn.Sequential(reward + 0.5 * as_reward(similarity))
    whole.train().requires_grad_(True)
    assert list(whole.parameters()) == []
    assert not similarity.clip.training
    assert not reward.training
    assert not any(weight.requires_grad for weight in similarity.parameters())


def test_rewards_of_ours_move_with_the_sum(tmp_path: Path) -> None:
    inner = QualityReward(small_net.save(tmp_path / "small.safetensors"))
    (inner + darkness).to("meta")
    assert {buffer.device.type for buffer in inner.buffers()} == {"meta"}


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        (lambda images: images.mean(), r"expected \(3,\), a number per image, got \(\)"),
        (lambda images: images.mean((2, 3)), r"expected .* got \(3, 3\)"),
        (lambda images: torch.tensor([0.1, torch.nan, 0.2]), "expected finite numbers, got .*nan"),
    ],
)
def test_a_scorer_that_gives_anything_else_is_named(images: Tensor, scorer: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"odd: {said}"):
        as_reward(scorer, "odd")(images)


def test_missing_prompts_are_asked_for(similarity: ClipSimilarity, images: Tensor) -> None:
    with pytest.raises(ValueError, match="prompts: expected one per image, as alignment needs them; got None"):
        as_reward(similarity, "alignment")(images)
    with pytest.raises(ValueError, match="prompts: expected 3, one per image, got 2"):
        as_reward(similarity, "alignment")(images, PROMPTS[:2])


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda reward: as_reward(cast(Any, "clip")), ValueError, "scorer: expected a callable .* got str"),
        (lambda reward: reward * float("nan"), ValueError, "weight: expected a finite number for quality, got nan"),
        (lambda reward: CombinedReward([]), ValueError, "terms: expected at least one"),
        (lambda reward: reward + 1, TypeError, "unsupported operand"),
        (lambda reward: "two" * reward, TypeError, "sequence|unsupported operand"),
        (lambda reward: reward * darkness, TypeError, "unsupported operand"),
    ],
)
def test_what_cannot_be_composed_is_refused(reward: QualityReward, make: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        make(reward)


def test_a_sum_can_be_spelled_out(reward: QualityReward, images: Tensor) -> None:
    terms = [Term("ours", 1.0, reward), Term("dark", -1.0, darkness)]
    torch.testing.assert_close(CombinedReward(terms)(images), reward(images) - darkness(images))
