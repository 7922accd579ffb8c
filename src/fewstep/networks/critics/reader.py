"""Readers, which tell what is in a picture: several attributes by one network over the whole
picture.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.critics.trunk import ImageTrunk, TrunkWidth
from fewstep.networks.interfaces import FeatureNetwork
from fewstep.networks.kinds.registry import register
from fewstep.values import Count


class Reader(FeatureNetwork):
    """(B, *shape) -> the logits of each attribute by its name, each (B, its number of values): one
    linear head an attribute on ``features``.
    """

    heads: nn.ModuleDict

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.features(x)
        return {name: head(features) for name, head in self.heads.items()}


@register("image-reader")
class ImageReader(ImageTrunk, Reader):
    """(B, channels, size, size) -> logits by attribute: an ``ImageTrunk`` and a linear head for
    each of ``attributes``, which are numbers of values by name.

    Raises ``UserError`` for no attribute, and for an attribute of fewer than two values.
    """

    def __init__(
        self,
        attributes: Mapping[str, int],
        size: Count = 32,
        channels: Count = 3,
        width: TrunkWidth = 16,
        depth: Count = 1,
        features: Count = 128,
    ):
        super().__init__("image reader", size, channels, width, depth, features)
        if not attributes or any(values < 2 for values in attributes.values()):
            raise UserError(f"image reader: 'attributes' must have at least 2 values each, got {dict(attributes)}.")
        self.heads = nn.ModuleDict({name: nn.Linear(features, values) for name, values in attributes.items()})
