"""Raw files, mosaics and photos become linear light."""

from attriqa_envs.raw.decode import Highlights, LinearImage, decode, read_sensor, upright

__all__ = ["Highlights", "LinearImage", "decode", "read_sensor", "upright"]
