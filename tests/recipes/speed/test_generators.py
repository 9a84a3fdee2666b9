"""What the reward costs those who train generators: the steps that are measured, the memory, the commands."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor

from attriqa import QualityReward
from attriqa.evaluation import timing
from tests.support import small_net
from tests.support.fake_scorer import paint
from tests.support.trees import unlabelled as unlabelled_tree

ROOT = Path(__file__).resolve().parents[3]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    module = unlabelled_tree.load_recipe("generators", "evals/speed")
    vars(module)["DEVICE"] = "cpu"  # also where there is a GPU
    return module


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    yield unlabelled_tree.load_recipe("finetune_diffusion", "examples")
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_net.save(tmp_path_factory.mktemp("weights") / "small.safetensors")


def config_of(recipe: ModuleType, weights: Path, **settings: Any) -> Any:
    given = {"what": ("step", "decode"), "model": str(weights), "batch": 4, "steps": 3, "last_steps": 2, "rounds": 1}
    return recipe.Config(**given | {"smoke": True} | settings)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["policy", "backprop"])
@pytest.mark.parametrize("generator", ["small", "stable_diffusion"])
def test_a_step_does_to_the_weights_what_the_examples_does(
    recipe: ModuleType, example: ModuleType, weights: Path, method: str, generator: str
) -> None:
    config = config_of(recipe, weights, generator=generator)
    reward = QualityReward(weights, view="full")
    mine, theirs = (recipe.make_policy(config) for _ in range(2))
    noise, which = mine.draw(4, recipe.GROUP, (0,))
    trainer = recipe.Trainer(mine, reward, config.last_steps)
    before = [weight.detach().clone() for weight in trainer.trained]
    settings = example.Config(photos=Path("photos"), method=method, batch=4, steps=3, last_steps=2)
    learner = example.Learner(settings, Accelerator(cpu=True), theirs, reward)
    for _ in range(2):  # the divergence from the start has a gradient from the second step on
        (trainer.policy_step if method == "policy" else trainer.backprop_step)(noise, which)
        (learner.policy_epoch if method == "policy" else learner.backprop_epoch)(noise, which)
    assert len(before) == len(learner.trained) > 0
    for weight, expected in zip(trainer.trained, learner.trained, strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)
    assert any((weight != old).any() for weight, old in zip(trainer.trained, before, strict=True))


def test_sizes_are_those_of_the_example(recipe: ModuleType, example: ModuleType) -> None:
    ours, theirs = recipe.Config(what=("step",)), example.Config(photos=Path("photos"))
    for name in ("batch", "last_steps", "view", "memory_mib"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (theirs.rank, theirs.group, theirs.clip) == (recipe.RANK, recipe.GROUP, recipe.CLIP)
    assert (recipe.SMALL.steps, recipe.SMALL.side) == (theirs.steps, theirs.size)


def test_shares_are_of_the_step(recipe: ModuleType, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"policy_step": 8.0, "policy_reward": 1.0, "backprop_step": 5.0}
    seconds |= {"backprop_forward": 0.5, "backprop_reward": 2.0}
    ran = []

    def interleave(tasks: dict[str, Callable[[], object]], rounds: int, title: str) -> dict[str, list[float]]:
        for name, task in tasks.items():
            ran.append(name)
            task()
        return {name: [seconds[name]] * rounds for name in tasks}

    monkeypatch.setattr(recipe, "interleave", interleave)
    numbers = recipe.measure_step(config_of(recipe, weights))
    assert ran == list(seconds)
    assert numbers["policy_share"] == 1 / 8
    assert numbers["backprop_share"] == 2 / 5
    assert numbers["backprop_forward_share"] == 0.5 / 5
    assert (numbers["batch"], numbers["picture_px"], numbers["ddim_steps"]) == (4, 32, 3)


@pytest.mark.parametrize("way", ["pictures", "checkpointing", "plain"])
def test_every_way_of_decoding_gives_the_same_pictures_and_gradients(
    recipe: ModuleType, weights: Path, way: str
) -> None:
    config = config_of(recipe, weights, generator="stable_diffusion")
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    found: list[tuple[Tensor, Tensor]] = []
    for how in (way, "plain"):
        leaf = latents.clone().requires_grad_()
        pictures = recipe.make_decoder(config, how)(leaf)
        (slope,) = torch.autograd.grad(pictures.square().sum(), leaf)
        found.append((pictures.detach(), slope))
    assert found[0][0].shape == (2, 3, 32, 32)
    assert found[1][1].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_two_ways_of_decoding_keep_little_for_the_backward_pass(recipe: ModuleType, weights: Path) -> None:
    config = config_of(recipe, weights, generator="stable_diffusion")
    kept = {}
    for way in ("pictures", "checkpointing", "plain"):
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        decode = recipe.make_decoder(config, way)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            decode(torch.rand(2, 4, 8, 8).requires_grad_())
        kept[way] = sum(sizes)
    assert 4 * kept["pictures"] < 2 * kept["checkpointing"] < kept["plain"]


def test_peak_of_memory_is_what_a_task_takes_above_what_was_there() -> None:
    before = torch.ones(1 << 24)  # 64 MiB that do not count

    def task() -> None:
        torch.ones(24 << 20).sum()  # 96 MiB, given back
        torch.ones(12 << 20).sum()

    assert timing.peak_mib(task, "cpu") == pytest.approx(96, abs=6)
    assert timing.peak_mib(lambda: before.sum(), "cpu") < 6


def test_two_folders_hold_every_image_once(recipe: ModuleType, weights: Path, tmp_path: Path) -> None:
    paths = sorted(paint(tmp_path / "photos", 7).iterdir())
    (tmp_path / "work").mkdir()
    config = config_of(recipe, weights, photos=tmp_path / "photos", n=5)
    assert recipe.two_folders(config, tmp_path / "work") == 5
    a, b = (sorted((tmp_path / "work" / name).iterdir()) for name in "ab")
    assert [path.name for path in b] == [path.name for path in a][:2]
    assert sorted(path.resolve() for path in (*a, *b)) == [path.resolve() for path in paths[:5]]


@pytest.mark.slow
def test_both_commands_are_measured_on_all_images(
    recipe: ModuleType, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = paint(tmp_path / "photos", 6)
    words = ("--what", "compare", "--smoke", "--threads", 1, "--photos", photos, "--model", weights)
    recipe.main(list(map(str, (*words, "--out", tmp_path / "out"))))
    compare = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["compare"]
    assert f"| ratio | {compare['ratio']:.4g} |" in capsys.readouterr().out
    assert compare["n"] == 4
    assert compare["ratio"] == pytest.approx(compare["compare_images_per_s"] / compare["score_images_per_s"])
    assert compare["score_images_per_s"] == pytest.approx(4 / compare["score_s"])


@pytest.mark.slow
def test_a_command_that_fails_is_no_fast_one(recipe: ModuleType, weights: Path, tmp_path: Path) -> None:
    photos = paint(tmp_path / "photos", 2)
    (photos / "000.png").write_bytes(b"no image")
    words = ("--what", "compare", "--smoke", "--photos", photos, "--model", weights, "--out", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"score .*not an image of a known format"):
        recipe.main(list(map(str, words)))
