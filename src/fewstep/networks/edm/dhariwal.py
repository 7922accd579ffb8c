"""ADM (Dhariwal and Nichol 2021) as EDM uses it (Karras et al. 2022, App.

F, Tab. 7): the ImageNet 64 teacher, and those of the consistency models' LSUN at 256 pixels.

Adaptive scale and shift from the embedding, heads of 64 channels, blocks of ResNet kind for up and
down, no scaling of the residuals. Labels of classes are added after the embedding's second layer.
Called in evaluation mode the network equals NVIDIA's; see ``tests/laws/test_edm_networks.py``.

Dropout is not applied, in training neither: distillation takes teacher, student and fake score as
functions, and an unrecorded draw would be a draw that a resumed run does not repeat. ``dropout``
and ``label_dropout`` are kept as arguments because descriptions in released files have them; they
have no parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import annotated_types as at
from torch import Tensor, nn
from torch.nn.functional import silu

from fewstep.condition import Condition
from fewstep.networks.edm.layers import BlockStyle, Conv, DrawnLinear, Init, UNetBlock, group_norm
from fewstep.networks.edm.noise_label import PositionalEmbedding, augmentation
from fewstep.networks.edm.unet import Entry, UNet, last_of, plan_of
from fewstep.networks.embedding import SideLabels, one_hot
from fewstep.networks.kinds.registry import register
from fewstep.values import Count, Given

_EPS = 1e-5
_INIT = Init("kaiming-uniform", math.sqrt(1 / 3), math.sqrt(1 / 3))
_ZERO = Init("kaiming-uniform", 0.0, 0.0)


@register("dhariwal-unet")
class DhariwalUNet(UNet):
    """(B, in_channels, R, R), noise labels (B,), condition -> (B, out_channels, R, R), R =
    ``img_resolution``.

    ``classes``: the number of class labels, 0 for none. ``augment_dim``: the number of augmentation
    labels (``condition.context["augment"]``). ``model_channels`` times ``channel_mult`` are the
    channels a level, times ``channel_mult_emb`` those of the embedding. ``attn_resolutions``: where
    blocks attend, in channels // 64 heads, which below 64 channels is not at all.
    ``adaptive_scale`` False: the embedding is added before the norm, as in the LSUN checkpoints.
    ``guidance`` and ``end``: see ``SideLabels``.

    Raises ``UserError`` for a shape that cannot be built, in the words of ``plan_of``,
    ``group_norm`` or ``UNetBlock``.
    """

    def __init__(
        self,
        img_resolution: Count,
        in_channels: Count = 3,
        out_channels: Count = 3,
        classes: int = 0,
        augment_dim: Annotated[int, Given()] = 0,
        model_channels: Count = 192,
        channel_mult: Annotated[tuple[Count, ...], at.MinLen(1)] = (1, 2, 3, 4),
        channel_mult_emb: Count = 4,
        num_blocks: Count = 3,
        attn_resolutions: tuple[Count, ...] = (32, 16, 8),
        dropout: Annotated[float, Given()] = 0.0,
        label_dropout: Annotated[float, Given()] = 0.0,
        adaptive_scale: bool = True,
        guidance: bool = False,
        end: bool = False,
    ):
        super().__init__()
        widths = [model_channels * factor for factor in channel_mult]
        plan = plan_of(img_resolution, widths[0] if widths else 0, widths, num_blocks, attn_resolutions)
        self.classes = classes
        self.augment_dim = augment_dim
        self.bottleneck = widths[-1]
        wide = model_channels * channel_mult_emb
        style = BlockStyle(adaptive_scale, 1.0, _EPS, (1, 1), False, _INIT, _ZERO, _INIT)

        def block(entry: Entry) -> UNetBlock:
            return UNetBlock(
                entry.inputs, entry.outputs, wide, style, entry.resample, entry.outputs // 64 if entry.attention else 0
            )

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = DrawnLinear(augment_dim, model_channels, _ZERO, bias=False) if augment_dim else None
        self.map_layer0 = DrawnLinear(model_channels, wide, _INIT)
        self.map_layer1 = DrawnLinear(wide, wide, _INIT)
        self.map_label = (
            DrawnLinear(classes, wide, Init("kaiming-normal", math.sqrt(classes)), bias=False) if classes else None
        )
        self.enc = nn.ModuleDict({f"{img_resolution}x{img_resolution}_conv": Conv(in_channels, widths[0], 3, _INIT)})
        self.enc.update({entry.name: block(entry) for entry in plan.encoder()})
        self.dec = nn.ModuleDict({entry.name: block(entry) for entry in plan.decoder(all_attend=True)})
        self.out_norm = group_norm(widths[0], _EPS)
        self.out_conv = Conv(widths[0], out_channels, 3, _ZERO)
        # Last, so that the other weights are drawn alike with and without it.
        self.side = SideLabels(wide, guidance, end)

    @property
    def leave(self) -> nn.Conv2d:  # type: ignore[override]
        """The last convolution."""
        return self.out_conv

    def forward(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        hidden = last_of(self._activations(x, self._embedded(x, noise_label, condition, end_label)))
        return self.out_conv(silu(self.out_norm(hidden)))

    def _embedded(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None) -> Tensor:
        embedded = self.map_noise(noise_label).to(x.dtype)
        if self.map_augment is not None:
            embedded = embedded + self.map_augment(augmentation(condition, self.augment_dim, len(x), embedded))
        embedded = self.map_layer1(silu(self.map_layer0(embedded)))
        if self.map_label is not None:
            embedded = embedded + self.map_label(one_hot(condition, self.classes, len(x), embedded))
        return silu(self.side(embedded, condition, end_label))

    def _encoded(self, x: Tensor, embedded: Tensor) -> Iterator[Tensor]:
        for block in self.enc.values():
            x = self._run(block, embedded, x) if isinstance(block, UNetBlock) else block(x)
            yield x
