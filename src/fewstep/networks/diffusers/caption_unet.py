"""A small U-Net for latents with captions, of diffusers' class: what Stable Diffusion has, at a
thousandth of its size.
"""

from __future__ import annotations

from fewstep.errors import UserError
from fewstep.networks.diffusers.text_unet import DiffusersTextUNet
from fewstep.networks.kinds.registry import register
from fewstep.values import Few


@register("caption-unet")
class CaptionUNet(DiffusersTextUNet):
    """(B, channels, side, side), noise labels (B,), condition with ``text`` (B, L, text_width) ->
    the same shape: a ``DiffusersTextUNet`` of one block a level.

    ``widths`` of the levels. All levels but the first attend to the text. The embedding of the
    whole text is added to the time's, and with it scales and shifts what each block computes, by
    which a text of few words is learnt much sooner than by attention alone; the last level should
    be of 2 x 2 pixels, each of which then knows by its edges where it is.

    Raises ``UserError`` when diffusers is missing, and for widths that ``groups`` and ``heads`` do
    not share.
    """

    def __init__(
        self,
        channels: Few = 16,
        side: Few = 8,
        widths: tuple[Few, ...] = (64, 80, 80),
        text_width: Few = 64,
        heads: Few = 4,
        groups: Few = 8,
    ):
        if len(widths) < 2 or any(width % groups or width % heads for width in widths) or text_width % heads:
            raise UserError(
                f"network 'caption-unet': 'groups' ({groups}) and 'heads' ({heads}) must divide each of at least two "
                f"'widths' {list(widths)}, and 'heads' the 'text_width' ({text_width})."
            )
        lower = len(widths) - 1
        super().__init__(
            {
                "sample_size": side,
                "in_channels": channels,
                "out_channels": channels,
                "block_out_channels": list(widths),
                "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * lower],
                "up_block_types": [*["CrossAttnUpBlock2D"] * lower, "UpBlock2D"],
                "layers_per_block": 1,
                # By this name diffusers means the number of heads.
                "attention_head_dim": heads,
                "cross_attention_dim": text_width,
                "norm_num_groups": groups,
                "resnet_time_scale_shift": "scale_shift",
                "addition_embed_type": "text",
                "addition_embed_type_num_heads": heads,
            }
        )
