"""A small convolutional classifier of digits, whose last hidden layer is the feature space of the Frechet distance."""

from __future__ import annotations

from torch import Tensor, nn


class DigitClassifier(nn.Module):
    """(B, 1, 8, 8) -> class logits (B, classes); ``features`` gives the last hidden layer (B, features).

    ``stage_channels`` are the channels of what ``stages`` gives.
    """

    def __init__(self, classes: int = 10, width: int = 32, features: int = 64):
        super().__init__()
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
        """The last hidden layer, (B, features)."""
        return self.body(x)

    def stages(self, x: Tensor) -> list[Tensor]:
        """The activations after each convolution, (B, C, 8, 8), (B, C, 4, 4), (B, C, 2, 2), and the features (B, features): what a projected critic looks at."""
        activations = []
        for layer in self.body:
            x = layer(x)
            if isinstance(layer, nn.SiLU):
                activations.append(x)
        return activations

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
