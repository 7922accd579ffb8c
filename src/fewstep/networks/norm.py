"""Group norm by torch's own kernel, on input that it can differentiate both ways."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm


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
