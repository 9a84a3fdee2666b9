"""A small, real Stable Diffusion pipeline with random weights, saved as a folder that diffusers loads offline."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import open_clip.tokenizer
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

_LENGTH = 77  # tokens of a prompt
_library: Any = diffusers  # its classes carry few annotations


def write_tokenizer(folder: Path) -> Path:
    """CLIP's tokenizer as a folder for transformers, from the byte pair encoding that open_clip ships."""
    folder.mkdir(parents=True, exist_ok=True)
    source = open_clip.tokenizer.SimpleTokenizer()
    start, end = "<start_of_text>", "<end_of_text>"
    (folder / "vocab.json").write_text(json.dumps(source.encoder), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in source.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": _LENGTH, "bos_token": start}
    config |= dict.fromkeys(("eos_token", "unk_token", "pad_token"), end)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def build(folder: Path, *, seed: int = 0) -> Any:
    """A ``StableDiffusionPipeline`` of 32 x 32 pictures: 16 x 16 latents, a small UNet and text encoder.

    Args:
        folder: where its tokenizer is made and left.
        seed: of the weights.
    """
    tokenizer = CLIPTokenizer.from_pretrained(str(write_tokenizer(folder)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = _library.UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = _library.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=_LENGTH,
                projection_dim=16,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    scheduler = _library.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = _library.StableDiffusionPipeline(**parts, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write(folder: Path, *, seed: int = 0) -> Path:
    """The pipeline of `build` as a folder for ``from_pretrained``."""
    tokenizer = folder.with_name(folder.name + "-tokenizer")
    build(tokenizer, seed=seed).save_pretrained(folder)
    shutil.rmtree(tokenizer)
    return folder
