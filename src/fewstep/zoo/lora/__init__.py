"""Adapters (LoRA) in files of other programs, in and out: PEFT and diffusers, kohya, ComfyUI."""

from fewstep.zoo.lora.fused import fused
from fewstep.zoo.lora.lora_reader import LoraFile, read_lora
from fewstep.zoo.lora.lora_writer import write_lora

__all__ = ["LoraFile", "fused", "read_lora", "write_lora"]
