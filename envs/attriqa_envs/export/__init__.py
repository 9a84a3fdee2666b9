"""Tuned parameters for other programs: JSON, look-up tables, XMP sidecars, and renderings of full size."""

from attriqa_envs.export.params import load_params, save_params, write_cube

__all__ = ["load_params", "save_params", "write_cube"]
