"""FLUX.1 (Black Forest Labs 2024): latents in patches of 2 x 2, rotary positions, a pooled text,
and in the models that are distilled so the scale of guidance.

It is told sigma, which the model multiplies by 1000 itself, and emits eps - x0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.networks.diffusers.text_context import context_tensor
from fewstep.networks.families.transformer import DiffusersTransformer, pack, unpack
from fewstep.networks.kinds.registry import register
from fewstep.values import Given

_SIDE = 128


@register("diffusers-flux")
class Flux(DiffusersTransformer):
    """See the module's docstring; ``config``: the arguments of ``FluxTransformer2DModel``.
    ``told``: the scale of guidance that a network which reads one is told where a condition says
    none; FLUX.1 [dev] was distilled for such scales and makes two passes of none.

    Of a condition it reads ``context["text"]`` (B, L, D), ``context["pooled"]`` (B, P) and
    ``guidance`` (B,).
    """

    class_name = "FluxTransformer2DModel"
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    adapted_by_default = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    def __init__(self, config: Annotated[Mapping[str, Any], Given()], told: Annotated[float, Given()] = 3.5):
        super().__init__(config)
        settings = self.transformer.config
        self.reads_guidance = bool(settings.guidance_embeds)
        self.told = told if self.reads_guidance else None
        self.context_shapes = {"text": (1, settings.joint_attention_dim), "pooled": (settings.pooled_projection_dim,)}

    def _width(self) -> int:
        return int(self.transformer.inner_dim)

    def called(self, x: Tensor, noise_label: Tensor, condition: Condition) -> dict[str, Any]:
        given = {name: context_tensor(condition, name, shape, x) for name, shape in self.context_shapes.items()}
        guidance = None
        if self.told is not None:
            usual = x.new_full((len(x),), self.told)
            guidance = usual if condition.guidance is None else condition.guidance.to(x.dtype)
        return {
            "hidden_states": pack(x),
            "timestep": noise_label / 1000,
            "guidance": guidance,
            "encoder_hidden_states": given["text"],
            "pooled_projections": given["pooled"],
            "img_ids": _places(x),
            "txt_ids": x.new_zeros(given["text"].shape[1], 3),
        }

    def emitted(self, output: Any, x: Tensor) -> Tensor:
        return unpack(output, x.shape)

    @classmethod
    def patch_in(cls, config: Mapping[str, Any]) -> int:
        # The model's own patches are of packed latents.
        return 2

    @classmethod
    def shape_in(cls, config: Mapping[str, Any], side: int | None) -> tuple[int, int, int]:
        side = side or _SIDE
        return config.get("in_channels", 64) // 4, side, side


def _places(x: Tensor) -> Tensor:
    """Row and column of each patch, behind a zero; (tokens, 3)."""
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    places = torch.zeros(rows, columns, 3, device=x.device, dtype=x.dtype)
    places[..., 1] = torch.arange(rows, device=x.device)[:, None]
    places[..., 2] = torch.arange(columns, device=x.device)
    return places.flatten(0, 1)
