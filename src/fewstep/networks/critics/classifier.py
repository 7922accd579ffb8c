"""Small classifiers, whose last hidden layer is the feature space of the Frechet distance and whose
inner layers are what a projected critic looks at.
"""

from __future__ import annotations

import abc
import itertools
from typing import Annotated

import annotated_types as at
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.kinds.registry import register
from fewstep.networks.norm import GroupNorm
from fewstep.values import Count


class Classifier(nn.Module, abc.ABC):
    """(B, *shape) -> logits (B, classes): ``head`` of ``features``.

    ``stage_channels`` are the channels of what ``stages`` gives.
    """

    shape: tuple[int, ...]
    classes: int
    stage_channels: tuple[int, ...]
    head: nn.Linear

    @abc.abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, (B, features)."""

    @abc.abstractmethod
    def stages(self, x: Tensor) -> list[Tensor]:
        """The activations that end each stage, (B, C, H, W), finest first, and last the features
        (B, features).
        """

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


class _Residual(nn.Module):
    """Two normalised 3x3 convolutions beside the identity."""

    def __init__(self, channels: int):
        super().__init__()
        layers = [[GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)] for _ in range(2)]
        self.body = nn.Sequential(*(layer for pair in layers for layer in pair))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@register("image-classifier")
class ImageClassifier(Classifier):
    """(B, channels, size, size) -> class logits (B, classes), a small residual network; ``size`` a
    multiple of 4 that halves down to 4, 5, 6 or 7.

    Each stage halves the image by a convolution of stride 2, has ``depth`` residual blocks, and
    doubles the channels, from ``width`` at full size to at most 4 ``width``; the last, of 4 to 7
    pixels, goes flat into a hidden layer of ``features``, so that positions count. At full size
    there is one convolution alone, which is what keeps it cheap.
    """

    def __init__(
        self,
        classes: int,
        size: Count = 32,
        channels: Count = 3,
        width: Annotated[int, at.Interval(ge=8, le=65_536), at.MultipleOf(8)] = 16,
        depth: Count = 1,
        features: Count = 128,
    ):
        halvings = max(size, 1).bit_length() - 3
        if halvings < 1 or size % 2**halvings:
            raise UserError(
                "image classifier: 'size' must be 4, 5, 6 or 7 doubled once or more, such as 8, 16, 32 or "
                f"64, got {size}."
            )
        if width < 8 or width % 8:
            raise UserError(f"image classifier: 'width' must be a multiple of 8, got {width}.")
        if classes < 2:
            raise UserError(f"image classifier: 'classes' must be at least 2, got {classes}; the data needs labels.")
        super().__init__()
        self.shape = (channels, size, size)
        self.classes = classes
        counts = [min(2**stage, 4) * width for stage in range(halvings + 1)]
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.SiLU())
        self.descend = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, stride=2), *(_Residual(outputs) for _ in range(depth))
            )
            for inputs, outputs in itertools.pairwise(counts)
        )
        side = size // 2**halvings
        self.hidden = nn.Sequential(
            GroupNorm(8, counts[-1]), nn.SiLU(), nn.Flatten(), nn.Linear(counts[-1] * side**2, features), nn.SiLU()
        )
        self.head = nn.Linear(features, classes)
        self.stage_channels = (*counts, features)

    def features(self, x: Tensor) -> Tensor:
        return self.stages(x)[-1]

    def stages(self, x: Tensor) -> list[Tensor]:
        """The activations at full size and after each stage, (B, C, size / 2^i, size / 2^i), and
        the features (B, features); raises ``UserError`` for images of another shape.
        """
        if x.shape[1:] != self.shape:
            raise UserError(
                f"this image classifier reads images of shape {self.shape}, got {tuple(x.shape[1:])}; train "
                "one for this data."
            )
        activations = [self.enter(x)]
        for stage in self.descend:
            activations.append(stage(activations[-1]))
        return [*activations, self.hidden(activations[-1])]
