r"""A convolutional critic of images: the other player of a generator that is trained from scratch.

Residual blocks (Miyato and Koyama 2018, App. B), each halving the side and doubling the channels up
to 8 ``width``, lead to a 4x4 map, of which a 4x4 convolution makes one vector h. The class enters
by projection (Eq. 3):

    logit(x, y) = psi(h) + <E y, h>,    with E y the class' embedding, and zero for "no class".

There is no norm in it. Batch norm would mix the samples, of which R1 asks each for its own slope
(see ``objectives.games.adversarial``); spectral norm would carry a state from one forward pass to
the next, and R1 is there to bound the slope.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional

from fewstep.condition import Condition, as_condition
from fewstep.errors import UserError
from fewstep.networks.embedding import one_hot
from fewstep.networks.kinds.registry import register
from fewstep.values import Count, Given

_SLOPE = 0.2


class _Down(nn.Module):
    """Half the side: two convolutions and a mean of four, beside a 1x1 convolution of the mean."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.act = nn.LeakyReLU(_SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(self.act(self.conv1(self.act(x))))
        # The two branches have equal variance, and so has their sum.
        return (functional.avg_pool2d(hidden, 2) + self.skip(functional.avg_pool2d(x, 2))) * 0.5**0.5


@register("image-critic")
class ImageCritic(nn.Module):
    """Images (B, channels, resolution, resolution), condition -> logits (B,), larger for what looks
    real.

    ``resolution``: a power of two, at least 8; ``width``: the channels at full resolution. Raises
    ``UserError`` for another resolution.
    """

    def __init__(
        self,
        resolution: Annotated[Count, Given()] = 64,
        channels: Annotated[Count, Given()] = 3,
        width: Count = 32,
        classes: int = 0,
    ):
        super().__init__()
        if resolution < 8 or resolution & (resolution - 1):
            raise UserError(
                f"ImageCritic: looks at images whose side is a power of two and at least 8, not {resolution}."
            )
        self.classes = classes
        halvings = resolution.bit_length() - 3
        sizes = [width * min(2**index, 8) for index in range(halvings + 1)]
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Down(inputs, outputs) for inputs, outputs in pairwise(sizes))
        self.collect = nn.Conv2d(sizes[-1], sizes[-1], 4)
        self.act = nn.LeakyReLU(_SLOPE)
        self.psi = nn.Linear(sizes[-1], 1)
        self.embed = nn.Linear(classes, sizes[-1], bias=False) if classes else None

    def forward(self, x: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        hidden = self._hidden(x)
        logits = self.psi(hidden)[:, 0]
        if self.embed is not None:
            logits = logits + (
                self.embed(one_hot(as_condition(condition), self.classes, len(hidden), hidden)) * hidden
            ).sum(dim=1)
        return logits

    def _hidden(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.act(self.collect(self.act(x)))[:, :, 0, 0]
