"""PixArt-alpha and -Sigma (Chen et al. 2023, 2024): cross-attention to a masked text, and beside
eps a variance, which is dropped.

It is told a timestep. The alpha model of 1024 pixels is also told the size and the aspect of its
picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from fewstep.condition import Condition
from fewstep.networks.diffusers.text_context import context_tensor, token_mask
from fewstep.networks.families.transformer import DiffusersTransformer
from fewstep.networks.kinds.registry import register
from fewstep.values import Given

_PIXELS = 8
"""Of a side of latents."""


@register("diffusers-pixart")
class PixArt(DiffusersTransformer):
    """See the module's docstring; ``config``: the arguments of ``PixArtTransformer2DModel``.

    Of a condition it reads ``context["text"]`` (B, L, D) and ``context["mask"]`` (B, L), which may
    be left out.
    """

    class_name = "PixArtTransformer2DModel"
    adapted_by_default = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")

    def __init__(self, config: Annotated[Mapping[str, Any], Given()]):
        super().__init__(config)
        settings = self.transformer.config
        self.context_shapes = {"text": (1, settings.caption_channels or settings.cross_attention_dim)}
        self.told_sizes = bool(self.transformer.use_additional_conditions)

    def _width(self) -> int:
        return int(self.transformer.inner_dim)

    def called(self, x: Tensor, noise_label: Tensor, condition: Condition) -> dict[str, Any]:
        text = context_tensor(condition, "text", self.context_shapes["text"], x)
        height, width = x.shape[2] * _PIXELS, x.shape[3] * _PIXELS
        sizes: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.told_sizes:
            sizes = x.new_tensor([[height, width]]).expand(len(x), 2), x.new_full((len(x), 1), height / width)
        return {
            "hidden_states": x,
            "timestep": noise_label,
            "encoder_hidden_states": text,
            "encoder_attention_mask": token_mask(condition, text),
            "added_cond_kwargs": {"resolution": sizes[0], "aspect_ratio": sizes[1]},
        }

    def emitted(self, output: Any, x: Tensor) -> Tensor:
        found: Tensor = output[:, : x.shape[1]]
        return found

    @classmethod
    def shape_in(cls, config: Mapping[str, Any], side: int | None) -> tuple[int, int, int]:
        side = side or config.get("sample_size", 128)
        return config.get("in_channels", 4), side, side
