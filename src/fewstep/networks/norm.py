"""Group norm and layer norm by torch's own kernels, where these have the derivatives that are asked
for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm

from fewstep.networks.kernels import differentiates_forward


class GroupNorm(nn.GroupNorm):
    """(B, channels, ...) -> the same: each group to mean 0 and variance 1, then a factor and an
    offset a channel.

    Computed in float32 at least.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        # Forwards, torch differentiates it for contiguous input only.
        return group_norm(x.to(wide).contiguous(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """(..., channels) -> the same: each row to mean 0 and variance 1, then a factor and an offset a
    channel.

    torch's layer norm has a derivative forwards whose own gradient is wrong: what it passes on of a
    row's mean and variance is left out (torch 2.13). There one group of group norm, which is the
    same function, takes its place.
    """

    @classmethod
    def like(cls, norm: nn.LayerNorm) -> LayerNorm:
        """The same function with the same parameters."""
        (channels,) = norm.normalized_shape
        made = cls(channels, norm.eps, norm.elementwise_affine, norm.bias is not None, device="meta")
        made.weight, made.bias = norm.weight, norm.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        if not differentiates_forward():
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])
        return group_norm(rows, 1, self.weight, self.bias, self.eps).reshape(x.shape)
