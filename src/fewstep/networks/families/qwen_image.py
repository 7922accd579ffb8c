"""Qwen-Image (Wu et al. 2025): latents in patches of 2 x 2, rotary positions about the picture's
centre, a masked text.

It is told sigma and emits eps - x0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks.diffusers.text_context import context_tensor, token_mask
from fewstep.networks.families.transformer import PATCH, DiffusersTransformer, pack, unpack
from fewstep.networks.kinds.registry import register
from fewstep.values import Given

_SIDE = 128


@register("diffusers-qwen-image")
class QwenImage(DiffusersTransformer):
    """See the module's docstring; ``config``: the arguments of ``QwenImageTransformer2DModel``.

    Of a condition it reads ``context["text"]`` (B, L, D) and ``context["mask"]`` (B, L), which may
    be left out.

    Raises ``UserError`` for models that edit pictures or read a scale of guidance.
    """

    class_name = "QwenImageTransformer2DModel"
    adapted_by_default = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )

    def __init__(self, config: Annotated[Mapping[str, Any], Given()]):
        for name in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
            if config.get(name):
                raise UserError(
                    f"network 'diffusers-qwen-image': has true for {name}, which is not read here; take the "
                    "text-to-image model."
                )
        super().__init__(config)
        self.context_shapes = {"text": (1, self.transformer.config.joint_attention_dim)}

    def _width(self) -> int:
        return int(self.transformer.inner_dim)

    def called(self, x: Tensor, noise_label: Tensor, condition: Condition) -> dict[str, Any]:
        text = context_tensor(condition, "text", self.context_shapes["text"], x)
        mask = token_mask(condition, text)
        return {
            "hidden_states": pack(x),
            "timestep": noise_label / 1000,
            "encoder_hidden_states": text,
            "encoder_hidden_states_mask": None if mask is None else mask.bool(),
            "img_shapes": [[(1, x.shape[2] // PATCH, x.shape[3] // PATCH)]] * len(x),
        }

    def emitted(self, output: Any, x: Tensor) -> Tensor:
        return unpack(output, x.shape)

    @classmethod
    def patch_in(cls, config: Mapping[str, Any]) -> int:
        # The model's own patches are of packed latents.
        return PATCH

    @classmethod
    def shape_in(cls, config: Mapping[str, Any], side: int | None) -> tuple[int, int, int]:
        side = side or _SIDE
        return config.get("in_channels", 64) // 4, side, side
