"""The U-Net of diffusers' text-to-image pipelines (``UNet2DConditionModel``: Stable Diffusion 1 and
2, SDXL), rebuilt from its configuration; see ``backbone``.

What it reads of a condition, each tensor with a row a sample:

- ``context["text"]`` (B, L, D): the embedding of each of L tokens, which the image attends to; of
  it networks whose configuration has ``addition_embed_type: text`` also make an embedding of the
  whole text, which is added to the time's (and in which a mask has no say).
- ``context["mask"]`` (B, L), which may be left out: 1 for a token that counts, 0 for one that does
  not.
- ``context["pooled"]`` (B, P) and ``context["time_ids"]`` (B, 6), of networks whose configuration
  has ``addition_embed_type: text_time`` (SDXL): the embedding of the whole text; and the height and
  width of the picture before it was scaled, the top and left of its crop, the height and width of
  its target.
- ``guidance`` (B,), of networks whose configuration has ``time_cond_proj_dim``: the scale w of
  classifier-free guidance, where w = 1 is none (Meng et al. 2023, as latent consistency models
  embed it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks.diffusers.backbone import DiffusersNetwork, made, other_attention
from fewstep.networks.diffusers.text_context import context_tensor, token_mask
from fewstep.networks.embedding import start_at_zero
from fewstep.networks.kinds.registry import register
from fewstep.values import Given

KIND = "diffusers-text-unet"
TIME_IDS = 6
"""Heights and widths of a picture, of its crop and of its target."""

_GUIDANCE_WAVES = 256
_USUAL: Mapping[str, tuple[Any, ...]] = {
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "addition_embed_type": (None, "text", "text_time"),
    "attention_type": ("default",),
    "dual_cross_attention": (False,),
    "cross_attention_norm": (None,),
}
"""Settings by which a network takes other conditions, and the values that are read here."""


@register(KIND)
class DiffusersTextUNet(DiffusersNetwork):
    """(B, C, H, W), noise labels (B,), condition -> (B, C, H, W); see the module's docstring.

    ``config``: the arguments of ``UNet2DConditionModel``, plain values. ``guidance``: gives a
    network without ``time_cond_proj_dim`` a place for the guidance scale, of 256 waves. That place
    starts at zero, so that the network computes at first what it does without.

    Adapters go on the fourteen kinds of layers that DMD2's and LCM's published adapters are on.

    Raises ``UserError`` when diffusers is missing, for an argument that it does not know, and for
    networks with other conditions, with attention of another kind, or without a middle block.
    """

    adapted_by_default = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "proj_in",
        "proj_out",
        "ff.net.0.proj",
        "ff.net.2",
        "conv1",
        "conv2",
        "conv_shortcut",
        "downsamplers.0.conv",
        "upsamplers.0.conv",
        "time_emb_proj",
    )

    def __init__(self, config: Annotated[Mapping[str, Any], Given()], guidance: bool = False):
        for name, usual in _USUAL.items():
            if config.get(name, usual[0]) not in usual:
                raise UserError(
                    f"network '{KIND}': has {config[name]!r:.80} for {name}, and only "
                    f"{' or '.join(map(str, usual))} is read here; take a network that is conditioned on text alone."
                )
        if guidance and config.get("time_cond_proj_dim") is None:
            config = {**config, "time_cond_proj_dim": _GUIDANCE_WAVES}
        unet = made(KIND, "UNet2DConditionModel", config)
        other = other_attention(unet)
        if other is not None:
            raise UserError(
                f"network '{KIND}': it attends by {other}, which cannot be differentiated as distillation needs; "
                "take a network of the blocks of Stable Diffusion or SDXL."
            )
        super().__init__(unet)
        self.waves: int | None = unet.config.time_cond_proj_dim
        self.reads_guidance = self.waves is not None
        if self.waves is not None:
            start_at_zero(unet.time_embedding.cond_proj)
        self.context_shapes = _context_shapes(unet.config)

    def conditioned(self, condition: Condition, x: Tensor) -> dict[str, Any]:
        given = {name: context_tensor(condition, name, shape, x) for name, shape in self.context_shapes.items()}
        return {
            "encoder_hidden_states": given["text"],
            "encoder_attention_mask": token_mask(condition, given["text"]),
            "added_cond_kwargs": {"text_embeds": given.get("pooled"), "time_ids": given.get("time_ids")},
            "timestep_cond": self._guidance(condition, x),
        }

    def _guidance(self, condition: Condition, x: Tensor) -> Tensor | None:
        if self.waves is None:
            return None
        if condition.guidance is None:
            raise UserError(
                "this network is conditioned on a guidance scale and the condition has none: give "
                "Condition(guidance=w), w (B,)."
            )
        return guidance_waves(condition.guidance - 1, self.waves).to(x.dtype)


def guidance_waves(scale: Tensor, channels: int) -> Tensor:
    """Sines and cosines of 1000 ``scale`` (B,) at geometric frequencies from 1 down to 1 / 10,000;
    (B, channels), the last 0 where their number is odd. Computed in float32 at least.

    As diffusers' ``get_guidance_scale_embedding``, for which a scale of 0 is no guidance.
    """
    wide = torch.promote_types(scale.dtype, torch.float32)
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, dtype=wide, device=scale.device) * (-math.log(10000.0) / (half - 1)))
    angle = (1000.0 * scale.to(wide))[:, None] * frequencies
    return nn.functional.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, channels % 2))


def _context_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """What a network asks of a context.

    Raises ``UserError`` for widths that contradict one another.
    """
    widths = config.cross_attention_dim
    widths = {widths} if isinstance(widths, int) else set(widths)
    if len(widths) != 1:
        raise UserError(f"network '{KIND}': its blocks attend to texts of {len(widths)} widths; one is read here.")
    shapes: dict[str, tuple[int, ...]] = {"text": (1, widths.pop())}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim
        if pooled < 1:
            raise UserError(
                f"network '{KIND}': projection_class_embeddings_input_dim leaves {pooled} numbers for the pooled text "
                f"beside {TIME_IDS} of addition_time_embed_dim each; correct the configuration."
            )
        shapes |= {"pooled": (pooled,), "time_ids": (TIME_IDS,)}
    return shapes
