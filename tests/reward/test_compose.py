"""Rewards as trainers of generators call them: every form of pictures, groups, and the best of N."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attriqa import QualityReward
from attriqa.reward import Reward, as_reward, best_of_n, group_advantages

PROMPTS = ["a dog", "a cat", "a pear", "a hat"]


class Brightness(Reward):
    """A reward that is quick to foresee."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Four smooth pictures with noise on them, (4, 40, 48, 3)."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((4, 3, 4, 4)))
    smooth = nn.functional.interpolate(coarse, (40, 48), mode="bilinear").permute(0, 2, 3, 1).numpy()
    return (255 * (0.8 * smooth + 0.2 * rng.random(smooth.shape))).round().astype(np.uint8)


FORMS: dict[str, Callable[[Any], Any]] = {
    "pt": lambda pixels: torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255,
    "np": lambda pixels: pixels.astype(np.float32) / 255,
    "bytes": lambda pixels: pixels,
    "pil": lambda pixels: [Image.fromarray(each) for each in pixels],
    "list of tensors": lambda pixels: list(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255),
    "list of arrays": lambda pixels: tuple(pixels.astype(np.float64) / 255),
    "mixed list": lambda pixels: [Image.fromarray(pixels[0]), pixels[1], pixels[2] / 255.0, pixels[3]],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_pictures_gets_the_same_scores(reward: QualityReward, pixels: Any, form: str) -> None:
    expected = reward(FORMS["pt"](pixels))
    assert expected.unique().diff().min() > 1e-3  # they differ by more than the tolerance
    scores, info = reward.as_reward_fn()(FORMS[form](pixels), PROMPTS, [{}] * 4)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=2e-6, rtol=0)
    assert info["blank"].tolist() == [False] * 4
    assert all(value.shape == (4,) and not value.requires_grad for value in info.values())


def test_pillow_images_of_any_mode_are_taken(reward: QualityReward, pixels: Any) -> None:
    gray = Image.fromarray(pixels[0]).convert("L")
    clear = Image.merge("RGBA", [*gray.convert("RGB").split(), Image.new("L", gray.size, 255)])
    scores, _ = reward.as_reward_fn()([gray, gray.convert("RGB"), clear])
    torch.testing.assert_close(scores, scores[:1].expand(3), atol=1e-6, rtol=0)


def test_pictures_of_different_sizes_keep_their_order(reward: QualityReward, pixels: Any) -> None:
    pictures = [Image.fromarray(pixels[0]), Image.fromarray(pixels[1][:36]), Image.fromarray(pixels[2]),
                Image.fromarray(pixels[3][:, :32])]  # fmt: skip
    fn = reward.as_reward_fn()
    together, info = fn(pictures)
    alone = [fn([picture]) for picture in pictures]
    torch.testing.assert_close(together, torch.cat([scores for scores, _ in alone]), atol=1e-5, rtol=0)
    for name, values in info.items():
        one_by_one = torch.cat([each[name] for _, each in alone])
        torch.testing.assert_close(values, one_by_one, atol=1e-5, rtol=0)


def test_prompts_stay_with_their_pictures_of_different_sizes() -> None:
    def length(images: Tensor, prompts: list[str]) -> Tensor:
        return torch.tensor([float(len(prompt)) for prompt in prompts]) + images.shape[2] / 1000

    pictures = [torch.rand(3, size, 32) for size in (32, 40, 32, 48)]
    scores, info = as_reward(length).as_reward_fn()(pictures, ["a", "bb", "ccc", "dddd"])
    assert scores.tolist() == pytest.approx([1.032, 2.04, 3.032, 4.048])
    assert info["length"].tolist() == scores.tolist()


@pytest.mark.parametrize("listed", [False, True])
def test_gradients_reach_the_pictures(reward: QualityReward, pixels: Any, listed: bool) -> None:
    images = FORMS["pt"](pixels).requires_grad_()
    scores, _ = reward.as_reward_fn()(list(images) if listed else images, PROMPTS, None)
    scores.sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert (images.grad.flatten(1).norm(dim=1) > 1e-6).all()
    direct = FORMS["pt"](pixels).requires_grad_()
    reward(direct).sum().backward()
    torch.testing.assert_close(images.grad, direct.grad)


def test_scores_ask_for_no_gradients_where_the_pictures_do_not(pixels: Any) -> None:
    """A trainer's ``no_grad`` does not hold on the thread that it scores on; a scorer may have weights."""
    linear = nn.Linear(1, 1)
    fn = as_reward(lambda images: linear(images.mean((1, 2, 3))[:, None])[:, 0]).as_reward_fn()
    assert not fn(FORMS["pt"](pixels))[0].requires_grad
    assert fn(FORMS["pt"](pixels).requires_grad_())[0].requires_grad
    with torch.no_grad():
        assert not fn(FORMS["pt"](pixels).requires_grad_())[0].requires_grad


def test_black_pictures_are_told(reward: QualityReward, pixels: Any) -> None:
    dark = pixels.copy()
    dark[1] = 0
    dark[2] = 3  # as JPEG may leave black
    dark[3] = 3
    dark[3, 5, 6, 1] = 4
    for form in ("pt", "np", "bytes", "pil"):
        scores, info = reward.as_reward_fn()(FORMS[form](dark))
        assert info["blank"].tolist() == [False, True, True, False], form
        assert scores.isfinite().all()
    sizes = [Image.new("RGB", (40, 40)), Image.fromarray(dark[0]), Image.new("RGB", (33, 40))]
    assert reward.as_reward_fn()(sizes)[1]["blank"].tolist() == [True, False, True]


def test_what_the_model_tells_comes_with_the_scores(reward: QualityReward, pixels: Any) -> None:
    images = FORMS["pt"](pixels)
    scores, info = reward.as_reward_fn()(images)
    assert set(info) == {"blank", *reward.names}
    assessment = reward.assess(images)
    torch.testing.assert_close(info["score"], scores)
    torch.testing.assert_close(info["sharpness"], assessment.attribute("sharpness"))


def test_ddpo_style_trainers_score_on_threads(reward: QualityReward, pixels: Any) -> None:
    """They submit batches to a pool, make tensors of what comes, and join arrays over batches."""
    images, fn = FORMS["pt"](pixels), reward.as_reward_fn()
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs = [pool.submit(fn, images[i : i + 2], tuple(PROMPTS[i : i + 2]), ({}, {})) for i in (0, 2, 0, 2)]
        results = [job.result() for job in jobs]
    rewards = torch.cat([torch.as_tensor(scores, device="cpu") for scores, _ in results])
    torch.testing.assert_close(rewards, reward(images).repeat(2), atol=1e-5, rtol=0)
    joined = {name: np.concatenate([np.asarray(info[name]) for _, info in results]) for name in results[0][1]}
    assert joined["blank"].shape == np.asarray(rewards).shape == (8,)


def test_flow_grpo_style_trainers_weigh_score_by_score(reward: QualityReward, pixels: Any) -> None:
    scores, _ = reward.as_reward_fn()(pixels, PROMPTS, [{}] * 4)
    total = [0.5 * score for score in scores]
    total = [before + 2.0 * score for before, score in zip(total, scores, strict=True)]
    details = {"attriqa": torch.as_tensor(scores).float(), "avg": torch.as_tensor(total).float()}
    torch.testing.assert_close(details["avg"], 2.5 * details["attriqa"])


def test_alignprop_style_trainers_go_up_the_gradient(reward: QualityReward, pixels: Any) -> None:
    latent = FORMS["pt"](pixels).logit(1e-2).requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=0.02)
    seen = []
    for _ in range(4):
        rewards, _ = reward.as_reward_fn()(latent.sigmoid(), PROMPTS, [{}] * 4)
        seen.append(rewards.mean().item())
        optimizer.zero_grad()
        (10.0 - rewards.mean()).backward()
        optimizer.step()
    assert seen[-1] > seen[0] + 1e-3


def test_it_can_be_sent_to_another_process(reward: QualityReward, pixels: Any) -> None:
    copied = pickle.loads(pickle.dumps(reward.as_reward_fn()))
    torch.testing.assert_close(copied(pixels)[0], reward.as_reward_fn()(pixels)[0])


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(2, 3, 40, 40) * 255, "images: expected a float tensor .* got float32"),
        (torch.zeros(2, 3, 40, 40, dtype=torch.uint8), "images: expected a float tensor .* got uint8"),
        (torch.rand(3, 40, 40), r"images: expected .* got float32 of shape \(3, 40, 40\)"),
        (torch.full((1, 3, 40, 40), torch.nan), "with NaN"),
        (np.zeros((2, 3, 40, 40), np.uint8), r"images: expected an array \(B, H, W, 3\) .* got uint8 of shape"),
        (np.zeros((2, 40, 40, 3), np.int64), "of uint8 or of floats .* got int64"),
        (np.full((2, 40, 40, 3), 200.0, np.float32), "images: expected .* from 200 to 200"),
        ([], "at least one picture, got an empty one"),
        (Image.new("RGB", (40, 40)), "a sequence of at least one picture, got Image"),
        ("photo.png", "got str"),
        ([torch.rand(3, 40, 40), torch.rand(3, 40, 40) * 2], r"images\[1\]: expected"),
        ([Image.new("RGB", (40, 40)), Image.new("RGB", (40, 20))], r"images\[1\]: expected .* 32 px"),
        ([np.zeros((40, 40, 4), np.uint8)], r"images\[0\]: expected an array \(H, W, 3\) .* shape \(40, 40, 4\)"),
        (["photo.png"], r"images\[0\]: expected a tensor, an array or a Pillow image, got str"),
    ],
)
def test_other_images_are_refused(images: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Brightness().as_reward_fn()(images)


@pytest.mark.parametrize(
    ("prompts", "said"), [(["a"], "prompts: expected 2, one per image, got 1"), ("ab", "one text")]
)
def test_prompts_that_do_not_fit_are_refused(prompts: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Brightness().as_reward_fn()(torch.rand(2, 3, 32, 32), prompts)


def test_advantages_compare_within_groups() -> None:
    rewards = torch.tensor([0.1, 0.9, 0.3, 0.5, 0.2, 0.4], dtype=torch.float64)
    groups = ["a", "b", "a", "b", "a", "b"]
    advantages = group_advantages(rewards, groups)
    for key in "ab":
        own = [index for index, group in enumerate(groups) if group == key]
        mean, std = rewards[own].mean(), rewards[own].std(correction=0)
        torch.testing.assert_close(advantages[own], (rewards[own] - mean) / (std + 1e-4))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    shuffled = group_advantages(rewards[order], [groups[index] for index in order])
    torch.testing.assert_close(shuffled, advantages[order])
    unscaled = group_advantages(rewards, groups, scale=False)
    torch.testing.assert_close(unscaled, torch.tensor([-0.1, 0.3, 0.1, -0.1, 0.0, -0.2], dtype=torch.float64))


def test_equals_have_no_advantage_over_one_another() -> None:
    rewards = torch.tensor([0.3, 0.3 + 3e-8, 0.3, 0.8], requires_grad=True)
    advantages = group_advantages(rewards, [0, 0, 0, 1])  # and one that is alone
    assert advantages.abs().max() < 1e-3
    assert not advantages.requires_grad


@pytest.mark.parametrize(
    ("rewards", "groups", "said"),
    [
        (torch.tensor([0.1, torch.nan]), [0, 0], "rewards: expected finite floats"),
        (torch.rand(2, 1), [0, 0], r"of shape \(2, 1\)"),
        (torch.tensor([1, 2]), [0, 0], "got torch.int64"),
        (torch.rand(2), [0], "groups: expected 2 keys, one per reward, got 1"),
    ],
)
def test_advantages_of_anything_else_are_refused(rewards: Tensor, groups: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        group_advantages(rewards, groups)


def test_the_best_of_n_is_the_best_that_can_be_seen() -> None:
    levels = torch.tensor([0.2, 0.9, 0.5, 0.7, 0.1, 0.6])
    images = levels.view(6, 1, 1, 1).expand(6, 3, 32, 32).clone()
    ranking = best_of_n(Brightness(), images, 3)
    assert ranking.best.tolist() == [1, 3]
    torch.testing.assert_close(ranking.scores, levels.view(2, 3))
    darkness = as_reward(lambda images: -images.mean((1, 2, 3)))
    images[[2, 3, 4, 5]] = 0
    ranking = best_of_n(darkness, [*images], 3)
    assert ranking.best.tolist()[0] == 0  # image 2 is black, and would win
    assert ranking.best.tolist()[1] in (3, 4, 5)
    assert ranking.blank.tolist() == [[False, False, True], [True, True, True]]


def test_the_best_of_n_knows_its_prompts() -> None:
    def matches(images: Tensor, prompts: list[str]) -> Tensor:
        wanted = torch.tensor([{"dark": 0.1, "light": 0.9}[prompt] for prompt in prompts])
        return -(images.mean((1, 2, 3)) - wanted).abs()

    images = torch.tensor([0.2, 0.8, 0.2, 0.8]).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    assert best_of_n(as_reward(matches), images, 2, ["light", "dark"]).best.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("count", "n", "prompts", "said"),
    [
        (5, 2, None, "images: expected a multiple of n = 2, at least one, got 5"),
        (4, 0, None, "n = 0"),
        (4, 2, ["a"], "prompts: expected 4, one per image, got 2"),
        (4, 2, "ab", "one text"),
    ],
)
def test_the_best_of_a_wrong_number_is_refused(count: int, n: int, prompts: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        best_of_n(Brightness(), torch.rand(count, 3, 32, 32), n, prompts)


def test_the_default_prefers_the_sharp_one_of_two() -> None:
    rng = np.random.default_rng(1)
    sharp = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(sharp).resize((12, 12)).resize((96, 96)))
    ranking = best_of_n(QualityReward(view="full"), [Image.fromarray(blurred), Image.fromarray(sharp)], 2)
    assert ranking.best.tolist() == [1]
