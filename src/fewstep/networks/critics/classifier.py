"""Small classifiers, whose last hidden layer is the feature space of the Frechet distance and whose
inner layers are what a projected critic looks at.
"""

from __future__ import annotations

import abc

from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.critics.trunk import ImageTrunk, TrunkWidth
from fewstep.networks.interfaces import FeatureNetwork
from fewstep.networks.kinds.registry import register
from fewstep.values import Count


class Classifier(FeatureNetwork):
    """(B, *shape) -> logits (B, classes): ``head`` of ``features``.

    ``stage_channels`` are the channels of what ``stages`` gives.
    """

    stage_channels: tuple[int, ...]
    head: nn.Linear

    @abc.abstractmethod
    def stages(self, x: Tensor) -> list[Tensor]:
        """The activations that end each stage, (B, C, H, W), finest first, and last the features
        (B, features).
        """

    def class_head(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@register("digit-classifier")
class DigitClassifier(Classifier):
    """(B, 1, 8, 8) -> class logits (B, classes), by three convolutions and a hidden layer of
    ``features``.
    """

    def __init__(self, classes: int = 10, width: Count = 32, features: Count = 64):
        super().__init__()
        self.shape = (1, 8, 8)
        self.classes = classes
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(8 * width, features),
            nn.SiLU(),
        )
        self.head = nn.Linear(features, classes)
        self.stage_channels = (width, 2 * width, 2 * width, features)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def stages(self, x: Tensor) -> list[Tensor]:
        """The activations after each convolution, (B, C, 8, 8), (B, C, 4, 4), (B, C, 2, 2), and the
        features (B, features).
        """
        activations = []
        for layer in self.body:
            x = layer(x)
            if isinstance(layer, nn.SiLU):
                activations.append(x)
        return activations


@register("image-classifier")
class ImageClassifier(ImageTrunk, Classifier):
    """(B, channels, size, size) -> class logits (B, classes): an ``ImageTrunk`` and a linear head
    on its features.
    """

    def __init__(
        self,
        classes: int,
        size: Count = 32,
        channels: Count = 3,
        width: TrunkWidth = 16,
        depth: Count = 1,
        features: Count = 128,
    ):
        super().__init__("image classifier", size, channels, width, depth, features)
        if classes < 2:
            raise UserError(f"image classifier: 'classes' must be at least 2, got {classes}; the data needs labels.")
        self.classes = classes
        self.head = nn.Linear(features, classes)
