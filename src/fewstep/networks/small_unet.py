"""A class-conditional U-Net for images of 8 to 64 pixels on a processor: two resolutions, most of
its weight at the lower one.
"""

from __future__ import annotations

from typing import Annotated

import annotated_types as at
import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from fewstep.condition import Condition
from fewstep.networks.embedding import NoiseEmbedding, SideLabels, one_hot, start_at_zero
from fewstep.networks.interfaces import DenoisingNetwork
from fewstep.networks.kernels import attend
from fewstep.networks.kinds.registry import register
from fewstep.networks.norm import GroupNorm
from fewstep.values import Count


class _Block(nn.Module):
    """Two normalised 3x3 convolutions with a residual; scale and shift of the second norm come from
    the embedding.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm1 = GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * outputs)
        self.norm2 = GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        start_at_zero(self.conv2)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.act = nn.SiLU()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        hidden = self.conv1(self.act(self.norm1(x)))
        scale, shift = self.affine(embedded)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm2(hidden) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.act(hidden))


class _Attention(nn.Module):
    """Single-head self-attention over positions, beside the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        start_at_zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = self.qkv(self.norm(x)).reshape(batch, 3, 1, channels, height * width)
        q, k, v = parts.transpose(3, 4).contiguous().unbind(1)
        return x + self.out(attend(q, k, v).transpose(2, 3).reshape(x.shape))


@register("small-unet")
class SmallUNet(DenoisingNetwork):
    """(B, channels, H, W), noise labels (B,), condition -> (B, channels, H, W); H and W even.

    ``width`` channels at full resolution and ``2 width`` at half, ``depth`` blocks in the middle,
    attention at half resolution. ``patch``: squares of so many pixels a side are one position,
    their pixels its channels, so that H and W must be multiples of 2 ``patch`` and the cost falls
    by its square. ``guidance`` and ``end``: see ``SideLabels``.
    """

    def __init__(
        self,
        channels: Count = 1,
        width: Annotated[int, at.Interval(ge=8, le=65_536), at.MultipleOf(8)] = 32,
        depth: Count = 2,
        classes: int = 0,
        embedding: Count = 64,
        guidance: bool = False,
        end: bool = False,
        patch: Count = 1,
    ):
        super().__init__()
        wide = 2 * width
        inner = channels * patch**2
        self.patch = patch
        self.classes = classes
        self.bottleneck = wide
        self.noise = NoiseEmbedding(32)
        self.embed = nn.Sequential(nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Linear(classes, embedding, bias=False) if classes else None
        self.act = nn.SiLU()
        self.enter = nn.Conv2d(inner, width, 3, padding=1)
        self.fine_in = _Block(width, width, embedding)
        self.down = nn.Conv2d(width, wide, 2, stride=2)
        self.middle = nn.ModuleList(_Block(wide, wide, embedding) for _ in range(depth))
        self.attention = _Attention(wide)
        self.up = nn.ConvTranspose2d(wide, width, 2, stride=2)
        self.fine_out = _Block(2 * width, width, embedding)
        self.norm = GroupNorm(8, width)
        self.leave = nn.Conv2d(width, inner, 3, padding=1)
        start_at_zero(self.leave)
        # Last, so that the other weights are drawn alike with and without it.
        self.side = SideLabels(embedding, guidance, end)

    def forward(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        embedded = self._embedded(len(x), noise_label, condition, end_label)
        fine, coarse = self._descended(x, embedded)
        hidden = self.fine_out(torch.cat([self.up(coarse), fine], dim=1), embedded)
        return pixel_shuffle(self.leave(self.act(self.norm(hidden))), self.patch)

    def features(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        """The activations after the middle blocks, (B, 2 width, H / 2, W / 2), H and W in
        patches.
        """
        return self._descended(x, self._embedded(len(x), noise_label, condition, end_label))[1]

    def _embedded(self, rows: int, noise_label: Tensor, condition: Condition, end_label: Tensor | None) -> Tensor:
        embedded = self.embed(self.noise(noise_label))
        if self.label is not None:
            embedded = embedded + self.label(one_hot(condition, self.classes, rows, embedded))
        return self.act(self.side(embedded, condition, end_label))

    def _descended(self, x: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Activations at full resolution on the way down, and at half after the middle."""
        fine = self.fine_in(self.enter(pixel_unshuffle(x, self.patch)), embedded)
        coarse = self.middle[0](self.down(fine), embedded)
        coarse = self.attention(coarse)
        for block in self.middle[1:]:
            coarse = block(coarse, embedded)
        return fine, coarse
