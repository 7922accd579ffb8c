"""Sana (Xie et al. 2024): linear attention on latents of 32 pixels a side, cross-attention to a
masked text.

It is told 1000 sigma times its configuration's ``timestep_scale`` and emits eps - x0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks.diffusers.text_context import context_tensor, token_mask
from fewstep.networks.families.transformer import DiffusersTransformer
from fewstep.networks.kinds.registry import register
from fewstep.values import Given


@register("diffusers-sana")
class Sana(DiffusersTransformer):
    """See the module's docstring; ``config``: the arguments of ``SanaTransformer2DModel``.

    Of a condition it reads ``context["text"]`` (B, L, D) and ``context["mask"]`` (B, L), which may
    be left out.

    Raises ``UserError`` for Sana-Sprint, whose times are angles.
    """

    class_name = "SanaTransformer2DModel"
    adapted_by_default = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, config: Annotated[Mapping[str, Any], Given()]):
        if config.get("guidance_embeds"):
            raise UserError(
                "network 'diffusers-sana': has true for guidance_embeds, as Sana-Sprint has, whose times are angles; "
                "take the Sana model from which it was distilled."
            )
        super().__init__(config)
        settings = self.transformer.config
        self.scale = float(settings.timestep_scale)
        self.context_shapes = {"text": (1, settings.caption_channels)}

    def _width(self) -> int:
        settings = self.transformer.config
        return int(settings.num_attention_heads * settings.attention_head_dim)

    def called(self, x: Tensor, noise_label: Tensor, condition: Condition) -> dict[str, Any]:
        text = context_tensor(condition, "text", self.context_shapes["text"], x)
        return {
            "hidden_states": x,
            "timestep": noise_label * self.scale,
            "encoder_hidden_states": text,
            "encoder_attention_mask": token_mask(condition, text),
        }

    @classmethod
    def patch_in(cls, config: Mapping[str, Any]) -> int:
        return int(config.get("patch_size", 1))

    @classmethod
    def shape_in(cls, config: Mapping[str, Any], side: int | None) -> tuple[int, int, int]:
        side = side or config.get("sample_size", 32)
        return config.get("in_channels", 32), side, side
