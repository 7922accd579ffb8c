r"""The layers of EDM's U-Nets: one residual block is the union of what DDPM++, NCSN++ and ADM need
(Karras et al. 2022, App. F, Tab. 7; Song et al. 2021; Dhariwal and Nichol 2021).

    h = conv1(silu(norm1(conv0(silu(norm0(x)))) modulated by the embedding))
    x <- scale (skip(x) + h),    and with attention    x <- scale (x + proj(softmax(q^T k / sqrt c)
    v)),

where conv0 and skip may halve or double the resolution through a fixed filter: taps f on both axes,
of sum 1, times 4 when doubling, so that a constant image stays one. The modulation is norm1(h) (1 +
s) + b (adaptive scale, ADM) or norm1(h + b) (DDPM++, NCSN++).

Forward-mode differentiation (``torch.func.jvp``) and second derivatives go through all of it
(``networks/kernels.py``). Layers are torch's own linear and convolutional
ones, so that a low-rank adapter finds them. Parameters have the names of NVIDIA's EDM release.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, silu

from fewstep.errors import UserError
from fewstep.networks.interfaces import Reweighted
from fewstep.networks.kernels import attend
from fewstep.networks.norm import GroupNorm

Resampling = Literal["up", "down"]


@dataclass(frozen=True)
class Init:
    """How a layer's weights and biases are drawn: by ``mode``, times ``weight`` and times
    ``bias``.
    """

    mode: Literal["xavier-uniform", "kaiming-uniform", "kaiming-normal"]
    weight: float = 1.0
    bias: float = 0.0

    def fill(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Draws the weights of ``layer`` and its biases, both by the fans of the weight, from
        torch's generator.
        """
        outputs, fan_in = layer.weight.shape[0], layer.weight[0].numel()
        fan_out = outputs * fan_in // layer.weight.shape[1]
        for parameter, scale in ((layer.weight, self.weight), (layer.bias, self.bias)):
            if parameter is None:
                continue
            if self.mode == "kaiming-normal":
                nn.init.normal_(parameter, std=scale / math.sqrt(fan_in))
            else:
                bound = scale * math.sqrt(6 / (fan_in + fan_out) if self.mode == "xavier-uniform" else 3 / fan_in)
                nn.init.uniform_(parameter, -bound, bound)


class DrawnLinear(nn.Linear):
    """``nn.Linear`` (B, inputs) -> (B, outputs), drawn by ``init``."""

    def __init__(self, inputs: int, outputs: int, init: Init, bias: bool = True):
        super().__init__(inputs, outputs, bias=bias)
        init.fill(self)

    def reset_parameters(self) -> None:
        """Draws nothing: ``init`` does."""


class Conv(nn.Conv2d, Reweighted):
    """A convolution of an odd ``kernel`` that keeps the resolution, drawn by ``init``; before it,
    the image may be resampled by 2 with the filter ``taps``.
    """

    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        init: Init,
        resample: Resampling | None = None,
        taps: Sequence[int] = (1, 1),
    ):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.resample = resample
        if resample is not None:
            self.register_buffer("resample_filter", _filter(taps))
        init.fill(self)

    def reset_parameters(self) -> None:
        """Draws nothing: ``init`` does."""

    def forward(self, x: Tensor) -> Tensor:
        return self.computed(x, self.weight, self.bias)

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.resample is not None:
            x = _resampled(x, self.resample_filter, self.resample)
        return conv2d(x, weight, bias, padding=self.padding)


class DownConv(Conv):
    """A convolution first and the halving filter after it, the borders padded once for both:
    NCSN++'s residual encoder.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, init: Init, taps: Sequence[int]):
        super().__init__(inputs, outputs, kernel, init, "down", taps)

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        size, channels = self.resample_filter.shape[-1], len(weight)
        x = conv2d(x, weight, padding=self.kernel_size[0] // 2 + (size - 1) // 2)
        taps = self.resample_filter.to(x.dtype).expand(channels, 1, size, size)
        return conv2d(x, taps, bias, stride=2, groups=channels)


class Resample(nn.Module):
    """Halves or doubles the resolution by the filter alone; no parameters."""

    resample_filter: Tensor

    def __init__(self, resample: Resampling, taps: Sequence[int]):
        super().__init__()
        self.resample: Resampling = resample
        self.register_buffer("resample_filter", _filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return _resampled(x, self.resample_filter, self.resample)


def _filter(taps: Sequence[int]) -> Tensor:
    """Taps on both axes, of sum 1, (1, 1, n, n).

    Raises ``UserError`` unless they are of an even number and their sum is not 0.
    """
    if not taps or len(taps) % 2 or sum(taps) == 0:
        raise UserError(
            "resample_filter must be an even number of taps whose sum is not 0, such as [1, 1] or [1, 3, "
            f"3, 1]; got {list(taps)}."
        )
    line = torch.tensor(list(taps), dtype=torch.float32)
    return (torch.outer(line, line) / line.sum().square())[None, None]


def _resampled(x: Tensor, kernel: Tensor, resample: Resampling) -> Tensor:
    """(B, C, H, W) at half or double the resolution."""
    channels, size = x.shape[1], kernel.shape[-1]
    kernel, padding = kernel.to(x.dtype).expand(channels, 1, size, size), (size - 1) // 2
    if resample == "up":
        return conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)
    return conv2d(x, kernel, stride=2, padding=padding, groups=channels)


def group_norm(channels: int, eps: float) -> GroupNorm:
    """At most 32 groups, of at least 4 channels each.

    Raises ``UserError`` for a number of channels that the groups do not divide.
    """
    groups = min(32, channels // 4)
    if not groups or channels % groups:
        choose = "choose model_channels as a multiple of 4, and of 32 from 128 channels on"
        raise UserError(f"{channels} channels cannot be normalised in {groups} groups of equal size: {choose}.")
    return GroupNorm(groups, channels, eps)


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of one network have in common; see the module's docstring.

    ``project``: a resampling skip has a 1x1 convolution even where the channels stay the same.
    """

    adaptive_scale: bool
    scale: float
    eps: float
    taps: tuple[int, ...]
    project: bool
    init: Init
    last: Init
    attention: Init


class UNetBlock(nn.Module):
    """(B, inputs, H, W) and an embedding (B, E) -> (B, outputs, H', W'); H' is 2 H, H / 2 or H.
    ``heads`` 0 is no attention.

    Raises ``UserError`` when the heads do not divide the channels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        style: BlockStyle,
        resample: Resampling | None = None,
        heads: int = 0,
    ):
        super().__init__()
        self.style = style
        self.heads = heads
        self.norm0 = group_norm(inputs, style.eps)
        self.conv0 = Conv(inputs, outputs, 3, style.init, resample, style.taps)
        self.affine = DrawnLinear(embedding, 2 * outputs if style.adaptive_scale else outputs, style.init)
        self.norm1 = group_norm(outputs, style.eps)
        self.conv1 = Conv(outputs, outputs, 3, style.last)
        self.skip: nn.Module | None = None
        if inputs != outputs or (resample is not None and style.project):
            self.skip = Conv(inputs, outputs, 1, style.init, resample, style.taps)
        elif resample is not None:
            self.skip = Resample(resample, style.taps)
        if heads:
            if outputs % heads:
                raise UserError(
                    f"{outputs} channels cannot be split between {heads} attention heads: choose "
                    "model_channels as a multiple of 64."
                )
            self.norm2 = group_norm(outputs, style.eps)
            self.qkv = Conv(outputs, 3 * outputs, 1, style.attention)
            self.proj = Conv(outputs, outputs, 1, style.last)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        hidden = self.conv0(silu(self.norm0(x)))
        modulation = self.affine(embedded)[:, :, None, None]
        if self.style.adaptive_scale:
            factor, offset = modulation.chunk(2, dim=1)
            hidden = torch.addcmul(offset, self.norm1(hidden), factor + 1)
        else:
            hidden = self.norm1(hidden + modulation)
        x = self._sum(self.conv1(silu(hidden)), x if self.skip is None else self.skip(x))
        return self._sum(self._attended(x), x) if self.heads else x

    def _sum(self, change: Tensor, x: Tensor) -> Tensor:
        # In place: nothing else has seen what a convolution just gave, and none needs it for its
        # gradient.
        total = change.add_(x)
        return total if self.style.scale == 1.0 else total.mul_(self.style.scale)

    def _attended(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # The release stores a head's channels together, and for each channel its query, its key and
        # its value.
        parts = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        q, k, v = parts.permute(3, 0, 1, 4, 2).contiguous().unbind()
        return self.proj(attend(q, k, v).transpose(2, 3).reshape(x.shape))
