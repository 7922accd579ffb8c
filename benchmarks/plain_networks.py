"""EDM's U-Nets in plain PyTorch, written for speed: what ``networks.py`` compares ours with.

Modules, parameters and the order of operations are the release's (NVlabs/edm,
``training/networks.py``), in evaluation mode. Where it costs nothing the code is faster than the
release's: fused attention on dense heads, biases inside the convolutions, filters that are expanded
and not copied. Sums are taken in place, as there.

There is nothing else: no dropout, recomputation, forward-mode differentiation, side branches or
checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, scaled_dot_product_attention, silu


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class Conv(nn.Module):
    """A convolution of an odd ``kernel``, after an "up" or "down" resampling or none; ``kernel`` 0
    resamples alone.
    """

    weight: Tensor
    bias: Tensor
    resample_filter: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, resample: str = "", taps: Sequence[int] = (1, 1)):
        super().__init__()
        self.kernel, self.resample = kernel, resample
        if kernel:
            self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
            self.bias = nn.Parameter(torch.empty(outputs))
        if resample:
            line = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", torch.outer(line, line)[None, None] / line.sum().square())

    def forward(self, x: Tensor) -> Tensor:
        if self.resample:
            channels, size = x.shape[1], self.resample_filter.shape[-1]
            padding = (size - 1) // 2
            if self.resample == "up":
                taps = (4 * self.resample_filter).expand(channels, 1, size, size)
                x = conv_transpose2d(x, taps, stride=2, padding=padding, groups=channels)
            else:
                taps = self.resample_filter.expand(channels, 1, size, size)
                x = conv2d(x, taps, stride=2, padding=padding, groups=channels)
        return conv2d(x, self.weight, self.bias, padding=self.kernel // 2) if self.kernel else x


class DownConv(Conv):
    """The convolution first and the halving after it, padded once."""

    def forward(self, x: Tensor) -> Tensor:
        size = self.resample_filter.shape[-1]
        x = conv2d(x, self.weight, padding=self.kernel // 2 + (size - 1) // 2)
        channels = x.shape[1]
        return conv2d(x, self.resample_filter.expand(channels, 1, size, size), self.bias, stride=2, groups=channels)


@dataclass(frozen=True)
class Style:
    """What all blocks of a network have in common: channels of the embedding, and what the two
    papers do otherwise.
    """

    wide: int
    taps: Sequence[int]
    adaptive: bool
    scale: float
    eps: float
    project: bool


class Block(nn.Module):
    """A residual block, resampling or not, with ``heads`` of attention or none."""

    def __init__(self, style: Style, inputs: int, outputs: int, resample: str, heads: int):
        super().__init__()
        self.adaptive, self.scale, self.heads = style.adaptive, style.scale, heads
        self.norm0 = group_norm(inputs, style.eps)
        self.conv0 = Conv(inputs, outputs, 3, resample, style.taps)
        self.affine = nn.Linear(style.wide, 2 * outputs if style.adaptive else outputs)
        self.norm1 = group_norm(outputs, style.eps)
        self.conv1 = Conv(outputs, outputs, 3)
        kernel = int(inputs != outputs or (style.project and resample != ""))
        self.skip = Conv(inputs, outputs, kernel, resample, style.taps) if kernel or resample else None
        if heads:
            self.norm2 = group_norm(outputs, style.eps)
            self.qkv = Conv(outputs, 3 * outputs, 1)
            self.proj = Conv(outputs, outputs, 1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        hidden = self.conv0(silu(self.norm0(x)))
        modulation = self.affine(embedded)[:, :, None, None]
        if self.adaptive:
            factor, offset = modulation.chunk(2, dim=1)
            hidden = torch.addcmul(offset, self.norm1(hidden), factor + 1)
        else:
            hidden = self.norm1(hidden.add_(modulation))
        x = self.conv1(silu(hidden)).add_(x if self.skip is None else self.skip(x))
        x = x if self.scale == 1 else x * self.scale
        if not self.heads:
            return x
        batch, channels, height, width = x.shape
        heads = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        q, k, v = heads.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        attended = scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(batch, channels, height, width)
        x = self.proj(attended).add_(x)
        return x if self.scale == 1 else x * self.scale


class Positional(nn.Module):
    def __init__(self, channels: int, endpoint: bool):
        super().__init__()
        self.count, self.endpoint = channels // 2, endpoint

    def forward(self, level: Tensor) -> Tensor:
        frequencies = torch.pow(1 / 10000, torch.arange(self.count) / (self.count - self.endpoint))
        angle = level[:, None] * frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Fourier(nn.Module):
    freqs: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels // 2))

    def forward(self, level: Tensor) -> Tensor:
        angle = level[:, None] * (2 * math.pi * self.freqs)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class PlainUNet(nn.Module):
    """The blocks that both networks have. ``heads``: of a block that attends, by its channels."""

    def _build(self, setting: Mapping[str, Any], style: Style, heads: Callable[[int], int], all_attend: bool) -> None:
        size, stem, count = setting["img_resolution"], setting["model_channels"], setting["num_blocks"]
        self.widths = [stem * factor for factor in setting["channel_mult"]]
        names = [f"{size >> level}x{size >> level}" for level in range(len(self.widths))]
        attends = [size >> level in setting["attn_resolutions"] for level in range(len(self.widths))]
        # ADM's first convolution has the first level's channels.
        stem = self.widths[0] if all_attend else stem

        def block(inputs: int, outputs: int, attending: bool = False, resample: str = "") -> Block:
            return Block(style, inputs, outputs, resample, heads(outputs) if attending else 0)

        self.enc, self.dec = nn.ModuleDict({f"{names[0]}_conv": Conv(3, stem, 3)}), nn.ModuleDict()
        width, skips = stem, [stem]
        for level, (name, wide) in enumerate(zip(names, self.widths, strict=True)):
            if level:
                self.enc[f"{name}_down"] = block(width, width, resample="down")
                skips.append(width)
            for index in range(count):
                self.enc[f"{name}_block{index}"] = block(width, wide, attends[level])
                width = wide
                skips.append(width)
        for level, (name, wide) in reversed(list(enumerate(zip(names, self.widths, strict=True)))):
            if level == len(names) - 1:
                self.dec[f"{name}_in0"] = block(width, width, True)
                self.dec[f"{name}_in1"] = block(width, width)
            else:
                self.dec[f"{name}_up"] = block(width, width, resample="up")
            for index in range(count + 1):
                attending = attends[level] and (all_attend or index == count)
                self.dec[f"{name}_block{index}"] = block(width + skips.pop(), wide, attending)
                width = wide

    def _decoded(self, skips: list[Tensor], embedded: Tensor) -> Tensor:
        x = skips[-1]
        for name, block in self.dec.items():
            if "_aux_" not in name:
                x = block(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedded)
        return x


class PlainSong(PlainUNet):
    """DDPM++ ("positional", "standard") and NCSN++ ("fourier", "residual")."""

    def __init__(self, setting: Mapping[str, Any]):
        super().__init__()
        size, wide = setting["img_resolution"], 4 * setting["model_channels"]
        noise, taps = setting["channel_mult_noise"] * setting["model_channels"], setting["resample_filter"]
        self.map_noise = Fourier(noise) if setting["embedding_type"] == "fourier" else Positional(noise, True)
        self.map_layer0, self.map_layer1 = nn.Linear(noise, wide), nn.Linear(wide, wide)
        self._build(setting, Style(wide, taps, False, math.sqrt(0.5), 1e-6, True), lambda channels: 1, False)
        if setting["encoder_type"] == "residual":
            for level, (image, width) in enumerate(pairwise([3, *self.widths[:-1]]), 1):
                name = f"{size >> level}x{size >> level}_aux_residual"
                self.enc[name] = DownConv(image, width, 3, "down", taps)
        self.end = f"{size}x{size}_aux"
        self.dec[f"{self.end}_norm"] = group_norm(self.widths[0], 1e-6)
        self.dec[f"{self.end}_conv"] = Conv(self.widths[0], 3, 3)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        cosines, sines = self.map_noise(level).chunk(2, dim=1)
        embedded = silu(self.map_layer1(silu(self.map_layer0(torch.cat([sines, cosines], dim=1)))))
        image, skips = x, []
        for name, block in self.enc.items():
            if "_aux_" in name:
                continue
            x = block(x, embedded) if isinstance(block, Block) else block(x)
            branch = name.replace("_down", "_aux_residual")
            if branch != name and branch in self.enc:
                x = image = self.enc[branch](image).add_(x) / math.sqrt(2)
            skips.append(x)
        x = self._decoded(skips, embedded)
        return self.dec[f"{self.end}_conv"](silu(self.dec[f"{self.end}_norm"](x)))


class PlainDhariwal(PlainUNet):
    """ADM with an adaptive scale."""

    def __init__(self, setting: Mapping[str, Any]):
        super().__init__()
        channels = setting["model_channels"]
        wide = 4 * channels
        self.map_noise = Positional(channels, False)
        self.map_layer0, self.map_layer1 = nn.Linear(channels, wide), nn.Linear(wide, wide)
        self._build(setting, Style(wide, (1, 1), True, 1.0, 1e-5, False), lambda outputs: outputs // 64, True)
        self.out_norm, self.out_conv = group_norm(self.widths[0], 1e-5), Conv(self.widths[0], 3, 3)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        embedded = silu(self.map_layer1(silu(self.map_layer0(self.map_noise(level)))))
        skips = []
        for block in self.enc.values():
            x = block(x, embedded) if isinstance(block, Block) else block(x)
            skips.append(x)
        return self.out_conv(silu(self.out_norm(self._decoded(skips, embedded))))
