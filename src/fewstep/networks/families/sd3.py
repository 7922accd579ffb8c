"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): a text and an image stream, and a pooled text.

It is told 1000 sigma and emits eps - x0, of latents as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from fewstep.condition import Condition
from fewstep.networks.diffusers.text_context import context_tensor
from fewstep.networks.families.transformer import DiffusersTransformer
from fewstep.networks.kinds.registry import register
from fewstep.values import Given


@register("diffusers-sd3")
class SD3(DiffusersTransformer):
    """See the module's docstring; ``config``: the arguments of ``SD3Transformer2DModel``.

    Of a condition it reads ``context["text"]`` (B, L, D) and ``context["pooled"]`` (B, P).
    """

    class_name = "SD3Transformer2DModel"
    adapted_by_default = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )

    def __init__(self, config: Annotated[Mapping[str, Any], Given()]):
        super().__init__(config)
        settings = self.transformer.config
        self.context_shapes = {"text": (1, settings.joint_attention_dim), "pooled": (settings.pooled_projection_dim,)}

    def _width(self) -> int:
        return int(self.transformer.inner_dim)

    def called(self, x: Tensor, noise_label: Tensor, condition: Condition) -> dict[str, Any]:
        given = {name: context_tensor(condition, name, shape, x) for name, shape in self.context_shapes.items()}
        return {
            "hidden_states": x,
            "timestep": noise_label,
            "encoder_hidden_states": given["text"],
            "pooled_projections": given["pooled"],
        }

    @classmethod
    def shape_in(cls, config: Mapping[str, Any], side: int | None) -> tuple[int, int, int]:
        side = side or config.get("sample_size", 128)
        return config.get("in_channels", 16), side, side
