"""What Stable Diffusion's original code calls the layers of diffusers' ``UNet2DConditionModel``:
the names in kohya's files for SDXL, and in ComfyUI.

There the encoder is one list, ``input_blocks``: the first convolution, then each block's residual
layers (module 0, their attention module 1) and its halving (``0.op``); ``middle_block`` is residual
layer, attention, residual layer; in ``output_blocks`` a doubling is the last module of its block's
last entry. diffusers' ``convert_ldm_unet_checkpoint`` is the same table the other way round.
"""

from __future__ import annotations

import re
from typing import Any

_AROUND = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESIDUAL = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PLAIN = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"}
"""The blocks that the original code has."""


def original_name(layer: str, config: Any) -> str | None:
    """The name of a layer that diffusers calls ``layer``; None where the original has no such.

    ``config``: the configuration of a ``UNet2DConditionModel``.
    """
    if not {*config.down_block_types, *config.up_block_types, config.mid_block_type} <= _PLAIN:
        return None
    if layer in _AROUND:
        return _AROUND[layer]
    place, rest = _place(layer, config)
    if place is None:
        return None
    if ".resnets." in layer:
        return f"{place}.{_RESIDUAL[rest]}" if rest in _RESIDUAL else None
    return f"{place}.{rest}" if rest else place


def _place(layer: str, config: Any) -> tuple[str | None, str]:
    """The original name of the module that a layer is part of, and the layer's name in it."""
    middle = re.fullmatch(r"(mid_block\.(?:resnets|attentions)\.\d)\.(.+)", layer)
    if middle is not None:
        return _AROUND.get(middle[1]), middle[2]
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", layer)
    if found is None:
        return None, ""
    side, block, part, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    layers = _layers(config)
    if side == "down":
        first = 1 + sum(count + 1 for count in layers[:block])
        if part == "downsamplers":
            return (f"input_blocks.{first + layers[block]}.0.op", "") if rest == "conv" else (None, "")
        return f"input_blocks.{first + index}.{int(part == 'attentions')}", rest
    counts = [count + 1 for count in reversed(layers)]
    first = sum(counts[:block])
    if part == "upsamplers":
        module = 1 + ("CrossAttn" in config.up_block_types[block])
        return f"output_blocks.{first + counts[block] - 1}.{module}", rest
    return f"output_blocks.{first + index}.{int(part == 'attentions')}", rest


def _layers(config: Any) -> list[int]:
    """The number of residual layers of each block of the encoder."""
    count = config.layers_per_block
    return [count] * len(config.down_block_types) if isinstance(count, int) else list(count)
