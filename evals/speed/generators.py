"""What does the reward cost those who train and compare generators?

    python evals/speed/generators.py --photos AGIQA-3K --out runs/speed_generators

step     the share of a training step that the reward takes, for policy gradients (it is looked at forward) and for
         backprop through the last denoising steps (forward and backward); a step draws one batch of pictures, rates it
         and updates the weights once, as examples/finetune_diffusion.py does it, with its sizes
decode   peak memory of backprop of the reward through the decoder of a latent diffusion model, each case in a new
         process: the reward alone, the decoder alone, both; above weights and inputs
compare  images/s of evals/compare_generators.py over those of `attriqa score`, both whole commands on the same files

What is compared runs in turn, round after round; a ratio is the median of the rounds' ratios. Weights are random: they
change no time. On a GPU the generator has the sizes of Stable Diffusion 1, elsewhere it is small; the output says them.
Results go to OUT/metrics.json, part by part. A run starts anew: timings of two runs are not comparable. Keep the
machine idle.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import diffusers
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from attriqa import QualityReward
from attriqa.config import check_least, opt, run_command
from attriqa.evaluation.timing import Numbers, ascend, in_new_process, interleave, measure_parts, peak_mib, ratios
from attriqa.images import find
from attriqa.reward import group_advantages
from attriqa.reward.ddim import DDIMPolicy

LIBRARY: Any = diffusers  # its classes carry few annotations
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLIP, KL_WEIGHT, LR, RANK, GROUP = 1e-4, 0.02, 1e-3, 8, 8  # as in the example; only RANK and GROUP cost anything
TARGETS = {
    "decode.reward_of_budget": ("<=", 1.0),
    **{f"decode.{way}_reward_of_budget": ("<=", 1.0) for way in ("pictures", "checkpointing", "plain")},
    "compare.ratio": (">=", 0.8),
}


@dataclass(frozen=True)
class Config:
    """What a run measures."""

    what: tuple[Literal["step", "decode", "compare"], ...] = opt(("step", "decode", "compare"), "which parts")
    photos: Path | None = opt(None, "compare, which needs it: folder of images")
    n: int = opt(200, "compare: images, half of them in each of two folders")
    generator: Literal["auto", "small", "stable_diffusion"] = opt(
        "auto", "step, decode: its sizes; auto: those of Stable Diffusion on a GPU, else small"
    )
    bf16: bool = opt(False, "step, decode: the generator's weights are in bfloat16; the reward stays in float32")
    batch: int = opt(16, "step: pictures per training step")
    steps: int | None = opt(None, "step: denoising steps of DDIM; without it, 10, or 20 of Stable Diffusion")
    last_steps: int = opt(1, "step: K, the steps that backprop goes through")
    decode_batch: int = opt(8, "decode: pictures")
    decode_size: int = opt(512, "decode: their side in px, a multiple of 8")
    vae: tuple[Literal["pictures", "checkpointing", "plain"], ...] = opt(
        ("pictures",),
        "decode: one picture at a time, decoded again in the backward pass, as the example does; or checkpointing and "
        "slicing of diffusers; or neither",
    )
    view: Literal["five_crop", "full"] = opt("full", "what the reward sees of a picture")
    model: str = opt("default", "the reward's model: default, or the path of a checkpoint")
    memory_mib: int = opt(1024, "budget for the reward's activations, MiB")
    threads: int = opt(2, "threads of torch, and of decoding files")
    rounds: int = opt(5, "rounds of the steps; the commands are run in a third of them")
    out: Path = opt(Path("runs/speed_generators"), "where metrics.json and config.json go")
    seed: int = opt(0, "of weights and noise")
    smoke: bool = opt(False, "sizes that show that it works, and nothing of speed")

    def __post_init__(self) -> None:
        check_least(self, batch=1, steps=1, last_steps=1, decode_batch=1, memory_mib=1, threads=1, rounds=1)
        if "compare" in self.what and self.photos is None:
            raise ValueError("photos: expected a folder of images to score, or --what step decode")
        if self.decode_size < 32 or self.decode_size % 8:
            raise ValueError(f"decode_size: expected a multiple of 8 of at least 32, got {self.decode_size}")


class Sizes(NamedTuple):
    """Of a generator."""

    unet: tuple[int, ...]  # channels
    decoder: tuple[int, ...]  # channels; Stable Diffusion's, or an eighth of them
    side: int  # of the UNet's state, px of a picture or of a latent
    text: bool  # whether it has a text to follow, and a decoder
    steps: int


SMALL = Sizes((16, 32, 64), (16, 32, 64, 64), 32, text=False, steps=10)
STABLE_DIFFUSION = Sizes((320, 640, 1280, 1280), (128, 256, 512, 512), 64, text=True, steps=20)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    run_command({"": run}, argv, __doc__)


def run(config: Config) -> None:
    """The recipe, after its command line."""
    if config.smoke:
        config = replace(config, batch=2, steps=2, n=min(config.n, 4), decode_batch=2, decode_size=64, rounds=1)
    parts = (("step", measure_step), ("decode", measure_decode), ("compare", measure_compare))
    wanted: dict[str, Callable[[], Numbers]] = {
        part: partial(measure, config) for part, measure in parts if part in config.what
    }
    identity = make_reward(config).identity
    measure_parts(config, wanted, TARGETS, model=identity, bf16=config.bf16, smoke=config.smoke)


def sizes_of(config: Config) -> Sizes:
    """The generator's."""
    large = DEVICE == "cuda" if config.generator == "auto" else config.generator == "stable_diffusion"
    sizes = STABLE_DIFFUSION if large else SMALL
    if config.smoke:
        sizes = sizes._replace(unet=(32, 32, 32, 32), decoder=(16, 16, 16, 16), side=8) if large else sizes
    return sizes._replace(steps=config.steps or sizes.steps)


def make_reward(config: Config) -> QualityReward:
    """The reward, on the device."""
    return QualityReward(config.model, view=config.view, device=DEVICE, memory_mib=config.memory_mib)


def make_decoder(config: Config, way: str) -> Callable[[Tensor], Tensor]:
    """A decoder of latents ``(B, 4, h, w)`` into pictures ``(B, 3, 8 h, 8 w)`` in [0, 1], in one of `Config.vae`."""
    channels = sizes_of(config).decoder
    torch.manual_seed(config.seed)
    vae = LIBRARY.AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=2,
        norm_num_groups=min(32, channels[0]),
    )
    vae = (vae.to(DEVICE).bfloat16() if config.bf16 else vae.to(DEVICE)).requires_grad_(False).eval()
    if way == "checkpointing":
        vae.enable_gradient_checkpointing()
        vae.enable_slicing()

    def decode(latents: Tensor) -> Tensor:
        decoded: Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample.float()
        return (decoded / 2 + 0.5).clamp(0, 1)

    if way != "pictures":
        return decode
    return lambda latents: torch.cat([checkpoint(decode, one, use_reentrant=False) for one in latents.split(1)])


def make_policy(config: Config) -> DDIMPolicy:
    """A generator with a LoRA, as the example has it."""
    sizes = sizes_of(config)
    torch.manual_seed(config.seed)
    if sizes.text:
        bare = LIBRARY.UNet2DConditionModel(
            sample_size=sizes.side, block_out_channels=sizes.unet, cross_attention_dim=768, attention_head_dim=8
        )
        bare.enable_gradient_checkpointing()
    else:
        bare = LIBRARY.UNet2DModel(
            sample_size=sizes.side,
            block_out_channels=sizes.unet,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            attention_head_dim=16,
        )
    bare = bare.to(DEVICE).bfloat16() if config.bf16 else bare.to(DEVICE)
    adapted = ["to_q", "to_k", "to_v", "to_out.0", *([] if sizes.text else ["conv1", "conv2"])]
    unet = get_peft_model(bare, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=adapted)).eval()
    scheduler = LIBRARY.DDIMScheduler(timestep_spacing="trailing", set_alpha_to_one=False)
    scheduler.set_timesteps(sizes.steps)
    shape = (bare.config.in_channels, sizes.side, sizes.side)
    if not sizes.text:
        return DDIMPolicy(unet, unet.disable_adapter, scheduler, lambda x: (x / 2 + 0.5).clamp(0, 1), shape, [""])
    prompts = [f"prompt {number}" for number in range(-(-config.batch // GROUP))]
    texts = torch.randn(len(prompts) + 1, 77, 768, generator=torch.Generator().manual_seed(config.seed))
    texts = texts.to(DEVICE, next(bare.parameters()).dtype)
    decode = make_decoder(config, "pictures")
    return DDIMPolicy(unet, unet.disable_adapter, scheduler, decode, shape, prompts, texts, guidance=5.0)


class Trainer:
    """A training step of either kind: the example's, of one batch and one process."""

    def __init__(self, policy: DDIMPolicy, reward: QualityReward, last_steps: int) -> None:
        self.policy = policy
        self.reward = reward.as_reward_fn()
        self.last_steps = last_steps
        self.trained = [weight for weight in policy.unet.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LR, weight_decay=0.0)

    def rate(self, pictures: Tensor, which: Tensor) -> Tensor:
        """The reward, with gradients if the pictures ask for some."""
        return self.reward(pictures, [self.policy.prompts[index] for index in which])[0]

    def slope(self, pictures: Tensor, which: Tensor) -> Tensor:
        """The gradient of less than the mean reward to the pictures."""
        leaf = pictures.detach().requires_grad_()
        (slope,) = torch.autograd.grad(-self.rate(leaf, which).mean(), leaf)
        return slope

    def policy_step(self, noise: Tensor, which: Tensor) -> None:
        """Draw pictures and make every denoising step of the better ones likelier."""
        policy, steps = self.policy, self.policy.random_steps
        with torch.no_grad():
            states = policy.rollout(noise, which)
            scores = self.rate(policy.decode(states[-1]), which)
        advantages = group_advantages(scores, which.tolist())
        for step in steps:
            mean = policy.mean(states[step], step, which)
            ratio = policy.ratio(mean, states[step + 1], noise[step + 1], step)
            loss = -torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - CLIP, 1 + CLIP))
            loss = loss + KL_WEIGHT * policy.divergence(mean, states[step], step, which)
            (loss.mean() / len(steps)).backward()
        self._update()

    def backprop_step(self, noise: Tensor, which: Tensor) -> None:
        """Draw pictures and follow the reward's gradient through them into the last steps."""
        policy = self.policy
        states = policy.rollout(noise, which, self.last_steps)
        pictures = policy.decode(states[-1])
        loss = (pictures * self.slope(pictures, which)).sum()
        for step in policy.random_steps[-self.last_steps :]:
            mean = states[step + 1] - policy.deviation(step) * noise[step + 1]
            divergence = policy.divergence(mean, states[step].detach(), step, which)
            loss = loss + KL_WEIGHT * divergence.mean() / self.last_steps
        loss.backward()
        self._update()

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure_step(config: Config) -> Numbers:
    """Seconds of training steps and of the reward in them, on the very same pictures."""
    policy, reward = make_policy(config), make_reward(config)
    if config.last_steps > policy.steps:
        raise ValueError(f"last_steps: expected at most steps = {policy.steps}, got {config.last_steps}")
    trainer = Trainer(policy, reward, config.last_steps)
    noise, which = policy.draw(config.batch, GROUP, (config.seed,))
    with torch.no_grad():
        pictures = policy.decode(policy.rollout(noise, which)[-1])
    leaf = pictures.clone().requires_grad_()
    tasks: dict[str, Callable[[], object]] = {
        "policy_step": partial(trainer.policy_step, noise, which),
        "policy_reward": partial(trainer.rate, pictures, which),
        "backprop_step": partial(trainer.backprop_step, noise, which),
        "backprop_forward": partial(trainer.rate, leaf, which),
        "backprop_reward": partial(trainer.slope, pictures, which),
    }
    seconds = interleave(tasks, config.rounds, "steps")
    result: Numbers = {"batch": config.batch, "picture_px": pictures.shape[3], "state_px": policy.shape[1]}
    result |= {"ddim_steps": policy.steps, "last_steps": config.last_steps, "lora_rank": RANK}
    result["unet_million_weights"] = sum(weight.numel() for weight in policy.unet.parameters()) / 1e6
    result |= {f"{name}_s": statistics.median(times) for name, times in seconds.items()}
    result |= ratios("policy_share", seconds["policy_reward"], seconds["policy_step"])
    result |= ratios("backprop_share", seconds["backprop_reward"], seconds["backprop_step"])
    return result | ratios("backprop_forward_share", seconds["backprop_forward"], seconds["backprop_step"])


def measure_decode(config: Config) -> Numbers:
    """Peak memory of each case in MiB, and the reward's part in it over its budget."""
    result: Numbers = {"batch": config.decode_batch, "picture_px": config.decode_size}
    result |= {"decoder_channels": sizes_of(config).decoder[-1], "budget_mib": config.memory_mib}
    cases = ["reward", *(f"{way}_{case}" for way in config.vae for case in ("decoder", "both"))]
    for case in tqdm(cases, desc="decode", unit="case", leave=False, disable=None):
        result[f"{case}_mib"] = in_new_process(peak_of_case, config, case)
    result["reward_of_budget"] = result["reward_mib"] / config.memory_mib
    for way in config.vae:
        more = result[f"{way}_both_mib"] - result[f"{way}_decoder_mib"]
        result[f"{way}_reward_of_budget"] = more / config.memory_mib
    return result


def peak_of_case(config: Config, case: str) -> float:
    """MiB of ``reward``, or of ``WAY_decoder`` or ``WAY_both`` with a way of `Config.vae`."""
    torch.set_num_threads(config.threads)
    way, _, what = case.rpartition("_")
    task: Callable[[Tensor], Tensor] = make_reward(config) if what != "decoder" else lambda pictures: pictures
    if way:
        rate, decode = task, make_decoder(config, way)
        task = lambda latents: rate(decode(latents))  # noqa: E731
    shape = (4, *[config.decode_size // 8] * 2) if way else (3, *[config.decode_size] * 2)
    given = torch.rand(config.decode_batch, *shape, generator=torch.Generator().manual_seed(config.seed)).to(DEVICE)
    side = 8 if way else 64
    ascend(task, given[:1, :, :side, :side])  # the first call also loads libraries' code, which is not the task's
    return peak_mib(partial(ascend, task, given), DEVICE)


def measure_compare(config: Config) -> Numbers:
    """Images/s of both commands, from their start to their end, and without what a process takes to get ready."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = two_folders(config, folder)
        first = next(iter(sorted((folder / "a").iterdir())))
        numbers = count()
        about = ("--view", config.view, "--model", config.model, "--device", DEVICE, "--threads", str(config.threads))

        def score(*paths: Path) -> None:
            run_python(config, "-m", "attriqa", "score", *paths, "--csv", folder / f"{next(numbers)}.csv", *about)

        def compare() -> None:
            script = Path(__file__).resolve().parents[1] / "compare_generators.py"
            folders = [f"{x}={folder / x}" for x in "ab"]
            run_python(config, script, "--generator", *folders, "--out", folder / str(next(numbers)), *about)

        tasks = {"score": lambda: score(folder / "a", folder / "b"), "compare": compare, "start": lambda: score(first)}
        seconds = interleave(tasks, max(1, config.rounds // 3), "commands")
    result: Numbers = {"n": images, **{f"{name}_s": statistics.median(times) for name, times in seconds.items()}}
    result |= {f"{name}_images_per_s": images / result[f"{name}_s"] for name in ("score", "compare")}
    result |= ratios("ratio", seconds["score"], seconds["compare"])
    working = [[whole - start for whole, start in zip(seconds[name], seconds["start"], strict=True)] for name in tasks]
    return result | ratios("ratio_without_start", working[0], working[1])


def run_python(config: Config, *words: object) -> None:
    """A command in Python."""
    environment = os.environ | {"OMP_NUM_THREADS": str(config.threads)}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr or done.stdout}")


def two_folders(config: Config, folder: Path) -> int:
    """Put half of the images each into ``folder/a`` and ``folder/b``, under the same names; tells how many they are."""
    paths = find(config.photos or ())[: config.n]
    if len(paths) < 2:
        raise ValueError(f"photos: expected at least 2 images in {config.photos}, got {len(paths)}")
    for number, path in enumerate(paths):
        link = folder / "ab"[number % 2] / f"{number // 2:06}{path.suffix}"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path.resolve())
    return len(paths)


if __name__ == "__main__":
    main()
