"""Z-Image (Tongyi-MAI 2025): one stream of text and image tokens, given and returned as lists.

It is told 1 - sigma and emits x0 - eps: both are turned round here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks.diffusers.text_context import context_tensor, token_mask
from fewstep.networks.families.transformer import DiffusersTransformer
from fewstep.networks.kinds.registry import register
from fewstep.values import Given

_SIDE, _PATCH = 128, 2


@register("diffusers-z-image")
class ZImage(DiffusersTransformer):
    """See the module's docstring; ``config``: the arguments of ``ZImageTransformer2DModel``.

    Of a condition it reads ``context["text"]`` (B, L, D) and ``context["mask"]`` (B, L), which may
    be left out: tokens whose mask is 0 are not given to the model.

    Raises ``UserError`` for models that see pictures or have other patches than 2 x 2.
    """

    class_name = "ZImageTransformer2DModel"
    block_lists = ("layers",)
    last_layer = "all_final_layer.2-1.linear"
    adapted_by_default = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3")

    def __init__(self, config: Annotated[Mapping[str, Any], Given()]):
        if config.get("siglip_feat_dim") is not None or tuple(config.get("all_patch_size", (_PATCH,))) != (_PATCH,):
            raise UserError(
                "network 'diffusers-z-image': sees pictures beside texts, or has other patches than 2 x 2, which is "
                "not read here; take the text-to-image model."
            )
        super().__init__(config)
        self.context_shapes = {"text": (1, self.transformer.config.cap_feat_dim)}

    def _width(self) -> int:
        return int(self.transformer.config.dim)

    def called(self, x: Tensor, noise_label: Tensor, condition: Condition) -> dict[str, Any]:
        text = context_tensor(condition, "text", self.context_shapes["text"], x)
        mask = token_mask(condition, text)
        rows = list(text) if mask is None else [each[kept.bool()] for each, kept in zip(text, mask, strict=True)]
        return {"x": list(x.unsqueeze(2)), "t": 1 - noise_label / 1000, "cap_feats": rows}

    def emitted(self, output: Any, x: Tensor) -> Tensor:
        return -torch.stack(list(output)).squeeze(2)

    def image_tokens(self, output: Any, count: int) -> Tensor:
        # They come first; the text's and what a sequence is padded with are behind them.
        found: Tensor = output[:, :count]
        return found

    @classmethod
    def patch_in(cls, config: Mapping[str, Any]) -> int:
        return _PATCH

    @classmethod
    def shape_in(cls, config: Mapping[str, Any], side: int | None) -> tuple[int, int, int]:
        side = side or _SIDE
        return config.get("in_channels", 16), side, side
