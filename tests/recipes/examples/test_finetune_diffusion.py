"""The example that trains generators: both methods, both kinds of model, interruption, and what it refuses."""

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from attriqa.reward import Reward
from tests.support import small_diffusion, small_net

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
RECIPE = ROOT / "examples" / "finetune_diffusion.py"
LIBRARY: Any = diffusers
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """The recipe as a module, in this process: its imports take seconds."""
    spec = importlib.util.spec_from_file_location("recipe_finetune_diffusion", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, prompts, a reward, a Stable Diffusion pipeline and the base of an earlier run."""
    root = tmp_path_factory.mktemp("generators")
    (root / "photos").mkdir()
    for number in range(4):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((72, 60), Image.Resampling.BICUBIC).save(root / "photos" / f"{number}.png")
    (root / "prompts.txt").write_text("a red barn\n\nthe sea at night\n", encoding="utf-8")
    small_net.save(root / "reward.safetensors")
    small_net.save(root / "judge.safetensors", seed=1)
    small_diffusion.write(root / "sd")
    torch.manual_seed(0)
    unet = LIBRARY.UNet2DModel(sample_size=32, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                               down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=8,
                               up_block_types=("AttnUpBlock2D", "UpBlock2D"))  # fmt: skip
    scheduler = LIBRARY.DDIMScheduler(timestep_spacing="trailing", set_alpha_to_one=False)
    LIBRARY.DDIMPipeline(unet, scheduler).save_pretrained(root / "base")
    return root


def words(folder: Path, out: Path, *more: object) -> list[str]:
    models = ("--reward", folder / "reward.safetensors", "--judges", folder / "judge.safetensors")
    return [str(word) for word in (*models, "--out", out, *more)]


def metrics(out: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return read


def test_a_small_model_is_made_of_photos_and_improved(folder: Path, tmp_path: Path, run_recipe: Run) -> None:
    command = (RECIPE, "--photos", folder / "photos", "--method", "policy", "--smoke",
               *words(folder, tmp_path / "out"))  # fmt: skip
    done = run_recipe(*command)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    first = metrics(out)
    assert [len(first["epochs"]), first["n"], first["blank"]] == [2, 4, 0]
    assert set(first["judges"]) == {
        "reward", "judge", "sharpness", "contrast", "brightness", "colorfulness", "noisiness",
    }  # fmt: skip
    assert first["kl_nats"] > 0
    assert 0 < first["rms_change"] < 1
    assert 0 < first["reward_share"] < 1
    for name, row in first["judges"].items():
        assert f"{name:14}{row['before']:10.4f}{row['after']:10.4f}" in done.stdout
    pipeline = LIBRARY.DiffusionPipeline.from_pretrained(out / "base", use_safetensors=True)
    unet = peft.PeftModel.from_pretrained(pipeline.unet, out / "lora")
    assert any(weight.abs().max() > 0 for name, weight in unet.named_parameters() if "lora_B" in name)
    with Image.open(out / "pictures.png") as picture:
        assert picture.size == (2 * 128, 4 * 128)  # four before, four after, rows of two
    again = run_recipe(*command)
    assert again.returncode == 0, again.stderr
    assert metrics(out)["epochs"] == first["epochs"]  # their seconds too: nothing was done again
    assert metrics(out)["judges"] == first["judges"]


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    recipe: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--model", str(folder / "base"), "--method", "policy", "--smoke", "--lr", "0.01"]
    recipe.main(argv + words(folder, tmp_path / "whole"))
    save = recipe.save_state

    def killed(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            recipe.main(argv + words(folder, tmp_path / "killed"))
    assert not (tmp_path / "killed" / "metrics.json").exists()
    recipe.main(argv + words(folder, tmp_path / "killed"))
    whole, killed_once = (load_file(tmp_path / name / "lora" / "adapter_model.safetensors") for name in
                          ("whole", "killed"))  # fmt: skip
    for name, weight in whole.items():
        torch.testing.assert_close(killed_once[name], weight, atol=0, rtol=0)
    assert metrics(tmp_path / "killed")["kl_nats"] == metrics(tmp_path / "whole")["kl_nats"] > 0


class Brightness(Reward):
    """A reward that a few epochs can raise."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))


def improve(recipe: Any, folder: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """What a run with `Brightness` comes to."""
    config = recipe.Config(
        model=str(folder / "base"), out=out, steps=3, samples=32, group=32, batch=16, shown=16, **settings
    )
    policy = recipe.make_policy(config, Accelerator())
    history = recipe.Learner(config, Accelerator(), policy, Brightness()).finetune()
    assert len(history) == config.epochs
    recipe.compare(config, policy, {"reward": Brightness()}, history)
    return metrics(out)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "policy", "epochs": 8, "lr": 3e-3, "kl_weight": 0.0},
        {"method": "backprop", "epochs": 2, "lr": 3e-3, "last_steps": 1, "kl_weight": 0.0},
        {"method": "backprop", "epochs": 2, "lr": 3e-3, "last_steps": 3, "kl_weight": 0.0},
    ],
)
def test_both_methods_raise_a_reward(recipe: Any, folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    row = improve(recipe, folder, tmp_path, **settings)["judges"]["reward"]
    assert row["after"] > row["before"] + 2e-4
    assert row["better"] > 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "policy", "epochs": 2, "lr": 0.01},
        {"method": "backprop", "epochs": 2, "lr": 0.01, "last_steps": 2},
    ],
)
def test_the_divergence_holds_a_model_back(recipe: Any, folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    free = improve(recipe, folder, tmp_path / "free", kl_weight=0.0, **settings)
    held = improve(recipe, folder, tmp_path / "held", kl_weight=1.0, **settings)
    assert held["kl_nats"] < 0.5 * free["kl_nats"]
    assert held["rms_change"] < free["rms_change"]


@pytest.mark.parametrize("method", ["policy", "backprop"])
def test_stable_diffusion_gets_a_lora_that_its_pipeline_loads(
    recipe: Any, folder: Path, tmp_path: Path, method: str
) -> None:
    model, prompts = ("--model", folder / "sd"), ("--prompts", folder / "prompts.txt")
    recipe.main(words(folder, tmp_path, *model, *prompts, "--method", method, "--smoke", "--lr", 0.01))
    assert metrics(tmp_path)["kl_nats"] > 0
    config = recipe.Config(**{**{"model": str(folder / "sd"), "prompts": folder / "prompts.txt"}, "rank": 2})
    policy = recipe.make_policy(config, Accelerator())
    plain = LIBRARY.StableDiffusionPipeline.from_pretrained(folder / "sd", use_safetensors=True).unet
    pipeline = LIBRARY.StableDiffusionPipeline.from_pretrained(folder / "sd", use_safetensors=True)
    pipeline.load_lora_weights(tmp_path / "lora")
    trained = load_file(tmp_path / "state.safetensors")
    weights = [weight for weight in policy.unet.parameters() if weight.requires_grad]
    with torch.no_grad():
        for index, weight in enumerate(weights):
            weight.copy_(trained[f"lora.{index}"])
        x, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
        assert policy.texts is not None
        said = policy.unet(x, t, policy.texts[:2]).sample
        torch.testing.assert_close(pipeline.unet(x, t, policy.texts[:2]).sample, said)
        assert (plain(x, t, policy.texts[:2]).sample - said).abs().max() > 1e-5


def test_the_decoder_gives_what_the_pipeline_draws_and_its_gradients(recipe: Any, folder: Path) -> None:
    vae = LIBRARY.AutoencoderKL.from_pretrained(folder / "sd", subfolder="vae", use_safetensors=True)
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    images = recipe.decoder(vae)(latents)
    expected = (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, expected)
    slope = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((each * slope).sum(), latents)[0] for each in (images, expected)]
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_policy_draws_what_the_pipeline_does(recipe: Any, folder: Path) -> None:
    """From the same noise, with the same guidance, DDIM without noise of its own."""
    config = recipe.Config(model=str(folder / "sd"), prompts=folder / "prompts.txt", steps=4, guidance=3.0)
    policy = recipe.make_policy(config, Accelerator())
    pipeline = LIBRARY.StableDiffusionPipeline.from_pretrained(folder / "sd", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    noise, which = policy.draw(2, 1, (0,))
    generator = torch.Generator().manual_seed(5)
    drawn = pipeline([policy.prompts[index] for index in which], latents=noise[0], num_inference_steps=4, eta=1.0,
                     guidance_scale=3.0, generator=generator, output_type="pt").images  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    noise[1:] = torch.stack([torch.randn(noise[0].shape, generator=generator) for _ in range(4)])
    with torch.no_grad():
        images = policy.decode(policy.rollout(noise, which)[-1])
    torch.testing.assert_close(images, drawn, atol=1e-4, rtol=0)


def test_bad_input_ends_with_a_message(recipe: Any, folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder / "base", tmp_path / "broken")
    shutil.rmtree(broken / "scheduler")
    inpainting = shutil.copytree(folder / "sd", tmp_path / "inpainting")
    index = json.loads((inpainting / "model_index.json").read_text())
    (inpainting / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionInpaintPipeline"}))
    (tmp_path / "empty.txt").write_text("\n")
    cases = [
        (["--model", broken], "scheduler"),
        (["--model", tmp_path / "nowhere"], "nowhere"),
        (["--model", inpainting], "expected Stable Diffusion or a run's base, got a StableDiffusionInpaintPipeline"),
        (["--model", folder / "sd"], "prompts: expected a file of prompts"),
        (["--model", folder / "sd", "--prompts", tmp_path / "empty.txt"], "empty.txt: expected prompts, got none"),
        (["--photos", folder / "photos", "--pattern", "*.gif"], r"photos: expected 2 or more \*.gif"),
        (["--model", folder / "base", "--reward", tmp_path / "no.safetensors"], "no.safetensors"),
        (["--model", folder / "base", "--judges", tmp_path / "no.safetensors"], "no.safetensors"),
    ]
    for number, (more, said) in enumerate(cases):
        out = tmp_path / str(number)
        argv = words(folder, out, "--smoke", *more)
        with pytest.raises(SystemExit, match=said):
            recipe.main(argv)
        assert not (out / "metrics.json").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "expected --photos or --model, one of them"),
        (["--photos", "a", "--model", "b"], "expected --photos or --model, one of them"),
        (["--model", "b", "--epochs", "0"], "epochs: expected at least 1, got 0"),
        (["--model", "b", "--steps", "3", "--last-steps", "4"], "last_steps: expected at most steps = 3, got 4"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    recipe: Any, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        recipe.main(argv)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_the_best_of_eight_is_kept(folder: Path, tmp_path: Path, run_recipe: Run) -> None:
    done = run_recipe("examples/rerank.py", folder / "sd", "a red barn", tmp_path / "best.png")
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    rewards = [float(word) for word in said[1:9]]
    assert rewards[int(said[-1])] == max(rewards)  # printed with four digits, two may look alike
    with Image.open(tmp_path / "best.png") as picture:
        assert picture.size == (32, 32)
