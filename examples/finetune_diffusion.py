"""Improve a diffusion model with the reward: by policy gradient, or by backprop through its last steps.

    python examples/finetune_diffusion.py --photos photos --method backprop --epochs 6 --batch 8 --lr 2e-3 --out runs/b
    python examples/finetune_diffusion.py --model runs/b/base --method policy --epochs 16 --samples 128 --batch 32 \
        --steps 5 --lr 2e-3 --clip 1e-3 --kl-weight 0 --out runs/p
    accelerate launch examples/finetune_diffusion.py --model stable-diffusion-v1-5 --prompts prompts.txt \
        --steps 20 --samples 32 --epochs 100 --lr 3e-4 --view five_crop

Without --model a small UNet is first trained on photos (minutes on a CPU) and kept in OUT/base. What is then trained
is a LoRA, kept in OUT/lora. Prints the reward before and after, held-out judges that nothing was trained on, and how
far the model went from its start; draws OUT/pictures.png, the same noise before (above) and after (below). A reward
that rises while the judges fall is being fooled, and without --kl-weight it soon is: look at the pictures. A killed
run goes on with the same command.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from attriqa import QualityReward
from attriqa.attributes import ATTRIBUTES
from attriqa.config import claim_folder, opt, parse_config
from attriqa.data.crops import crop_and_flip
from attriqa.data.ramps import find_photos
from attriqa.evaluation.preferences.files import read_prompts
from attriqa.files import as_dict, atomic_path, write_json
from attriqa.images import read
from attriqa.judges import Judge, load_judge
from attriqa.judges import signal as signal_measures
from attriqa.reward import group_advantages
from attriqa.reward.ddim import DDIMPolicy
from attriqa.training.schedules import set_rates
from attriqa.training.state import load_state, save_state

LIBRARY: Any = diffusers  # its classes carry few annotations
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2"]  # of the small UNet, which has little attention


@dataclass(frozen=True)
class Config:
    """What a run does."""

    method: Literal["policy", "backprop"] = opt("backprop", "policy: DDPO's policy gradient; backprop: DRaFT-K")
    photos: Path | None = opt(None, "folder of photos that a small model is trained on first")
    pattern: str = opt("*.*", "which files of it")
    model: str | None = opt(None, "instead: Stable Diffusion, a folder or a name on the hub; or another run's OUT/base")
    prompts: Path | None = opt(None, "Stable Diffusion: text file, one prompt a line")
    reward: str = opt("robust", "the reward's model: robust, default, or a checkpoint")
    judges: tuple[str, ...] = opt(("judge",), "held-out judges, as attriqa.judges takes them, beside signal measures")
    view: Literal["five_crop", "full"] = opt(
        "full", "what the reward sees of a picture; five_crop costs 3.5 times more"
    )
    out: Path = opt(Path("runs/finetune_diffusion"), "where everything goes")
    size: int = opt(32, "small model: side of its pictures, px; photos are cut at three times that size")
    base_steps: int = opt(1500, "small model: training steps on photos")
    base_batch: int = opt(16, "small model: photos per step")
    steps: int = opt(10, "denoising steps of DDIM, eta 1")
    guidance: float = opt(5.0, "Stable Diffusion: scale of classifier-free guidance; 1: none")
    epochs: int = opt(25, "rounds of sampling and learning")
    samples: int = opt(32, "pictures per epoch and process")
    group: int = opt(8, "policy: pictures per prompt that are compared with one another; the small model has one group")
    batch: int = opt(16, "pictures per update of the weights")
    last_steps: int = opt(1, "backprop: K, the steps that gradients flow through")
    clip: float = opt(1e-4, "policy: the ratio of likelihoods is clipped to 1 +- this")
    kl_weight: float = opt(0.02, "weight of the KL divergence from the start, per step and value, in the loss")
    rank: int = opt(8, "of the LoRA")
    lr: float = opt(1e-3, "learning rate of the LoRA")
    memory_mib: int = opt(1024, "for the reward's activations, MiB")
    shown: int = opt(16, "pictures before and after, on which reward and judges are compared")
    seed: int = opt(0, "of everything")
    smoke: bool = opt(False, "a size for tests")

    def __post_init__(self) -> None:
        if (self.photos is None) == (self.model is None):
            raise ValueError("expected --photos or --model, one of them")
        for name in ("base_steps", "steps", "epochs", "samples", "group", "batch", "last_steps", "rank", "shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.last_steps > self.steps:
            raise ValueError(f"last_steps: expected at most steps = {self.steps}, got {self.last_steps}")


class Learner:
    """The LoRA of a policy, and the two ways of training it."""

    def __init__(self, config: Config, accelerator: Accelerator, policy: DDIMPolicy, reward: QualityReward) -> None:
        self.config = config
        self.accelerator = accelerator
        self.policy = policy
        self.reward = reward.as_reward_fn()
        self.trained = nn.ParameterList([weight for weight in policy.unet.parameters() if weight.requires_grad])
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.lr, weight_decay=0.0)

    def finetune(self) -> list[dict[str, float]]:
        """Train for all epochs that are not done yet; returns what each saw."""
        config, state, recorded = self.config, self.config.out / "state.safetensors", as_dict(self.config)
        history: list[dict[str, float]] = []
        if state.exists():
            history = load_state(state, {"lora": self.trained}, self.optimizer, config=recorded)["history"]
        learn = self.policy_epoch if config.method == "policy" else self.backprop_epoch
        quiet = None if self.accelerator.is_main_process else True
        with tqdm(total=config.epochs, initial=len(history), desc=config.method, unit="epoch", disable=quiet) as bar:
            while len(history) < config.epochs:
                started = time.perf_counter()
                key = (config.seed, len(history), self.accelerator.process_index)
                scores, blank, seconds = learn(*self.policy.draw(config.samples, config.group, key))
                scores, blank = self.accelerator.gather(scores), self.accelerator.gather(blank)
                spent = time.perf_counter() - started
                history.append({"reward": scores.mean().item(), "blank": int(blank.sum()), "seconds": spent,
                                "reward_share": seconds / spent})  # fmt: skip
                bar.set_postfix(reward=f"{history[-1]['reward']:.4f}")
                bar.update()
                if self.accelerator.is_main_process:
                    counters = {"config": recorded, "history": history}
                    save_state(state, {"lora": self.trained}, self.optimizer, counters)
        return history

    def policy_epoch(self, noise: Tensor, which: Tensor) -> tuple[Tensor, Tensor, float]:
        """Sample, compare the pictures of each prompt, and make the steps of the better ones likelier.

        PPO's clipped objective on every step of DDIM (Black et al., Training diffusion models with reinforcement
        learning, ICLR 2024), with advantages within the group of a prompt. As in the authors' code a step's
        log-likelihood is the mean over its values, so that ``clip`` is the same for pictures of any size.
        """
        policy, config, size = self.policy, self.config, self.config.batch
        parts = [slice(start, start + size) for start in range(0, len(which), size)]
        with torch.no_grad():
            rolled = [policy.rollout(noise[:, part], which[part]) for part in parts]
            states = torch.stack([torch.cat(same) for same in zip(*rolled, strict=True)])  # (T + 1, N, C, H, W)
            images = torch.cat([policy.decode(states[-1, part]) for part in parts])
            started = clock(images.device)
            scores, info = self.reward(images, [policy.prompts[index] for index in which])
            seconds = clock(images.device) - started
        groups = self.accelerator.gather(which).tolist()
        first = self.accelerator.process_index * len(which)
        advantages = group_advantages(self.accelerator.gather(scores), groups)[first : first + len(which)]
        steps = policy.random_steps
        for part in parts:
            for step in steps:
                state, following = states[step, part], states[step + 1, part]
                mean = policy.mean(state, step, which[part])
                ratio = policy.ratio(mean, following, noise[step + 1, part], step)
                clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
                loss = -torch.minimum(advantages[part] * ratio, advantages[part] * clipped)
                if config.kl_weight:
                    loss = loss + config.kl_weight * policy.divergence(mean, state, step, which[part])
                (loss.mean() / len(steps)).backward()
            self.update()
        return scores, info["blank"], seconds

    def backprop_epoch(self, noise: Tensor, which: Tensor) -> tuple[Tensor, Tensor, float]:
        """Sample, and follow the reward's gradient through the picture into the last K steps.

        DRaFT-K (Clark et al., Directly fine-tuning diffusion models on differentiable rewards, ICLR 2024).
        """
        policy, config, size = self.policy, self.config, self.config.batch
        rewards, blank, seconds = [], [], 0.0
        for part in (slice(start, start + size) for start in range(0, len(which), size)):
            states = policy.rollout(noise[:, part], which[part], config.last_steps)
            images = policy.decode(states[-1])
            leaf = images.detach().requires_grad_()  # so that the reward's activations are gone before the decoder's
            started = clock(leaf.device)
            scores, info = self.reward(leaf, [policy.prompts[index] for index in which[part]])
            (slope,) = torch.autograd.grad(-scores.mean(), leaf)
            seconds += clock(leaf.device) - started
            loss = (images * slope).sum()
            for step in policy.random_steps[-config.last_steps :] if config.kl_weight else ():
                mean = states[step + 1] - policy.deviation(step) * noise[step + 1, part]
                divergence = policy.divergence(mean, states[step].detach(), step, which[part])
                loss = loss + config.kl_weight * divergence.mean() / config.last_steps
            loss.backward()
            self.update()
            rewards.append(scores.detach())
            blank.append(info["blank"])
        return torch.cat(rewards), torch.cat(blank), seconds

    def update(self) -> None:
        """One step of the optimizer on the mean of all processes' gradients.

        Taken by hand, as a UNet that is called many times before each backward pass is not what DDP expects.
        """
        for weight in self.trained:
            if weight.grad is not None:
                weight.grad = self.accelerator.reduce(weight.grad, "mean")
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and compare before and after."""
    config = parse_config(Config, argv, __doc__)
    if config.smoke:
        config = replace(config, size=32, base_steps=4, base_batch=2, steps=3, epochs=2, samples=4, group=2, batch=2,
                         last_steps=min(config.last_steps, 2), rank=2, shown=4)  # fmt: skip
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # or torchrun's processes would be lone ones
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise SystemExit(f"mixed precision: expected no or bf16, got {accelerator.mixed_precision}")
    try:
        with accelerator.main_process_first():
            claim_folder(config.out, config)
        device = accelerator.device
        reward = QualityReward(config.reward, view=config.view, device=device, memory_mib=config.memory_mib)
        judges: dict[str, Judge] = {name: getattr(signal_measures, name) for name in ATTRIBUTES}
        judges |= {Path(name.partition(":")[0]).stem: load_judge(name, device=device) for name in config.judges}
        policy = make_policy(config, accelerator)
        history = Learner(config, accelerator, policy, reward).finetune()
        if accelerator.is_main_process:
            save_lora(config.out / "lora", policy)
            compare(config, policy, {"reward": reward} | judges, history)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    accelerator.end_training()


def make_policy(config: Config, accelerator: Accelerator) -> DDIMPolicy:
    """The model to improve, with a new LoRA."""
    base = config.out / "base"
    if config.photos is not None:
        with accelerator.main_process_first():
            if not base.exists():
                write_folder(base, train_base(config, config.photos, accelerator.device).save_pretrained)
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    pipeline = LIBRARY.DiffusionPipeline.from_pretrained(config.model or base, dtype=dtype, use_safetensors=True)
    small = isinstance(pipeline, LIBRARY.DDIMPipeline)
    if not small and not isinstance(pipeline, LIBRARY.StableDiffusionPipeline):
        raise ValueError(f"model: expected Stable Diffusion or a run's base, got a {type(pipeline).__name__}")
    pipeline.to(accelerator.device)
    scheduler = LIBRARY.DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(config.steps)
    torch.manual_seed(config.seed)  # the LoRA's first weights
    lora = LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=ATTENTION + CONVOLUTIONS * small)
    unet = get_peft_model(pipeline.unet, lora).eval()
    shape = (pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2)
    if small:
        return DDIMPolicy(unet, unet.disable_adapter, scheduler, lambda x: (x / 2 + 0.5).clamp(0, 1), shape, [""])
    if config.prompts is None:
        raise ValueError("prompts: expected a file of prompts, one a line, to go with Stable Diffusion")
    prompts = read_prompts(config.prompts)
    with torch.no_grad():
        texts = pipeline.encode_prompt([*prompts, ""], accelerator.device, 1, do_classifier_free_guidance=False)[0]
    pipeline.unet.enable_gradient_checkpointing()
    decode = decoder(pipeline.vae)
    return DDIMPolicy(unet, unet.disable_adapter, scheduler, decode, shape, prompts, texts, config.guidance)


def decoder(vae: Any) -> Callable[[Tensor], Tensor]:
    """The decoder of Stable Diffusion, one picture at a time: it takes gigabytes for each."""
    vae.requires_grad_(False)

    def decode_one(x: Tensor) -> Tensor:
        decoded: Tensor = vae.decode(x.to(vae.dtype) / vae.config.scaling_factor).sample.float()
        return (decoded / 2 + 0.5).clamp(0, 1)

    def decode(x: Tensor) -> Tensor:
        # What it keeps for the backward pass would add up over the batch, so that is computed again there.
        return torch.cat([checkpoint(decode_one, one, use_reentrant=False) for one in x.split(1)])

    return decode


def train_base(config: Config, folder: Path, device: torch.device) -> Any:
    """A small UNet trained on crops of photos, predicting velocity (Salimans and Ho, ICLR 2022), as a pipeline."""
    photos = [read(path, shorter_edge=config.size * 3) for path in find_photos(folder, config.pattern, 2)]
    torch.manual_seed(config.seed)
    unet = LIBRARY.UNet2DModel(
        sample_size=config.size,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
    ).to(device)
    scheduler = LIBRARY.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=False,  # or the last step would have no noise, hence no likelihood
    )
    optimizer = torch.optim.AdamW(unet.parameters())
    rng = np.random.default_rng(config.seed)
    for step in tqdm(range(config.base_steps), desc="base", unit="step", disable=None):
        chosen = rng.integers(len(photos), size=config.base_batch)
        clean = torch.stack([crop_and_flip(photos[index], config.size, rng) for index in chosen]).to(device) * 2 - 1
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(device)
        t = torch.from_numpy(rng.integers(scheduler.config.num_train_timesteps, size=len(clean))).to(device)
        predicted = unet(scheduler.add_noise(clean, noise, t), t).sample
        set_rates(optimizer, [2e-3], (step + 1) / config.base_steps)
        optimizer.zero_grad()
        (predicted - scheduler.get_velocity(clean, noise, t)).square().mean().backward()
        optimizer.step()
    return LIBRARY.DDIMPipeline(unet.eval(), scheduler)


def compare(config: Config, policy: DDIMPolicy, scorers: dict[str, Judge], history: list[dict[str, float]]) -> None:
    """Draw the same pictures with and without the LoRA, and compare them."""
    noise, which = policy.draw(config.shown, config.group, (config.seed, 2**32))
    with torch.no_grad():
        parts = [slice(start, start + config.batch) for start in range(0, config.shown, config.batch)]
        with policy.without_adapter():
            before = torch.cat([policy.decode(policy.rollout(noise[:, part], which[part])[-1]) for part in parts])
        distance, pictures = [], []
        for part in parts:
            states = policy.rollout(noise[:, part], which[part])
            pictures.append(policy.decode(states[-1]))
            for step in policy.random_steps:
                mean = states[step + 1] - policy.deviation(step) * noise[step + 1, part]
                distance.append(policy.divergence(mean, states[step], step, which[part]).sum() * noise[0, 0].numel())
        after = torch.cat(pictures)
        rated = {name: (scorer(before).double(), scorer(after).double()) for name, scorer in scorers.items()}
    with atomic_path(config.out / "pictures.png") as temporary:
        grid(torch.cat([before, after]), config.shown // 2).save(temporary, format="PNG")
    table = {
        name: {"before": old.mean().item(), "after": new.mean().item(), "better": (new > old).double().mean().item()}
        for name, (old, new) in rated.items()
    }
    print(f"{config.shown} pictures, each twice from the same noise\n{'':14}{'before':>10}{'after':>10}{'better':>8}")
    for name, row in table.items():
        print(f"{name:14}{row['before']:10.4f}{row['after']:10.4f}{row['better']:8.0%}")
    nats, moved = float(sum(distance)) / config.shown, (after - before).square().mean().sqrt().item()
    share = sum(epoch["reward_share"] for epoch in history) / len(history)
    print(f"distance from the start: KL divergence {nats:.4g} nats a picture, pixels {moved:.4f} (RMS)")
    print(f"the reward's share of the training time: {share:.0%}")
    write_json(config.out / "metrics.json", {
        "config": as_dict(config), "n": config.shown, "judges": table, "kl_nats": nats, "rms_change": moved,
        "reward_share": share, "blank": sum(epoch["blank"] for epoch in history), "epochs": history,
    })  # fmt: skip


def grid(images: Tensor, columns: int) -> Image.Image:
    """Pictures ``(N, 3, H, W)`` in rows; small ones are enlarged."""
    rows = [torch.cat([*row], 2) for row in images.split(max(1, columns))]
    width = rows[0].shape[2]
    sheet = torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[2]), value=1.0) for row in rows], 1)
    picture = Image.fromarray(sheet.mul(255).round().byte().permute(1, 2, 0).cpu().numpy())
    times = max(1, 128 // images.shape[3])
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def save_lora(folder: Path, policy: DDIMPolicy) -> None:
    """For Stable Diffusion as ``pipeline.load_lora_weights`` reads it, else as ``PeftModel.from_pretrained`` does."""
    if policy.texts is None:
        write_folder(folder, policy.unet.save_pretrained)
        return
    weights = get_peft_model_state_dict(policy.unet)
    layers = {name.removeprefix("base_model.model."): weight for name, weight in weights.items()}
    write_folder(folder, lambda path: LIBRARY.StableDiffusionPipeline.save_lora_weights(path, unet_lora_layers=layers))


def write_folder(folder: Path, save: Callable[[Path], object]) -> None:
    """A folder, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    for old in (temporary, folder):
        shutil.rmtree(old, ignore_errors=True)
    save(temporary)
    temporary.rename(folder)


def clock(device: torch.device) -> float:
    """Seconds, when what the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
