"""What models on CLIP share: its towers, prompts, checkpoints, and what a file may say of one."""
