"""A small convolutional classifier of digits, whose last hidden layer is the feature space of the Frechet distance."""

from __future__ import annotations

from torch import Tensor, nn


class DigitClassifier(nn.Module):
    """(B, 1, 8, 8) -> class logits (B, classes); ``features`` gives the last hidden layer (B, features)."""

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

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, (B, features)."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
