"""Transformers of text-to-image models: one family a file.

A family says how its diffusers class is called (time, sign, channels, packing, conditions) and of
which shape its samples are; nothing else in the project knows one family from another.
"""

from fewstep.networks.families.dit import DiT
from fewstep.networks.families.flux import Flux
from fewstep.networks.families.pixart import PixArt
from fewstep.networks.families.qwen_image import QwenImage
from fewstep.networks.families.sana import Sana
from fewstep.networks.families.sd3 import SD3
from fewstep.networks.families.transformer import DiffusersTransformer
from fewstep.networks.families.z_image import ZImage

__all__ = ["SD3", "DiT", "DiffusersTransformer", "Flux", "PixArt", "QwenImage", "Sana", "ZImage"]
