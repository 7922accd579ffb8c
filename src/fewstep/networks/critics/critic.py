r"""Critics: what an adversarial loss asks whether a sample looks real.

A critic here is a small head on features that some network computes anyway: the fake score's
innermost activations (DMD2, Yin et al. 2024, Sec. 4.3) or several layers of a frozen classifier
(projected GANs, Sauer et al. 2021; StyleGAN-T and ADD, Sauer et al. 2023). The class enters by
projection (Miyato and Koyama 2018, Eq. 3):

    logit(f, y) = psi(h) + <E y, h>,    h = the mean over positions of a perceptron on each
    position's features f,

where E y is the class' embedding, and zero for "no class".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fewstep.condition import Condition, as_condition
from fewstep.errors import UserError
from fewstep.networks.embedding import one_hot
from fewstep.networks.kinds.registry import register


@register("feature-head")
class FeatureHead(nn.Module):
    """Features (B, channels, ...), condition -> logits (B,), larger for what looks real; ``width``
    is that of the hidden layer.
    """

    def __init__(self, channels: int, classes: int = 0, width: int = 64):
        super().__init__()
        self.classes = classes
        self.body = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.psi = nn.Linear(width, 1)
        self.embed = nn.Linear(classes, width, bias=False) if classes else None

    def forward(self, features: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        positions = features.reshape(*features.shape[:2], -1).transpose(1, 2)
        hidden = self.body(positions).mean(dim=1)
        # A sum of one, not a view: a sharded head must not hand out views.
        logits = self.psi(hidden).sum(dim=1)
        if self.embed is not None:
            logits = logits + (
                self.embed(one_hot(as_condition(condition), self.classes, len(hidden), hidden)) * hidden
            ).sum(dim=1)
        return logits


class ProjectedCritic(nn.Module):
    """Samples (B, *D), condition -> logits (B, heads): a ``FeatureHead`` on each of the feature
    maps that ``extract`` gives, of ``channels`` channels.

    ``extract`` is of a frozen network, such as ``freeze(classifier).stages``, through which
    gradients go to the samples. It is no submodule: training the critic leaves it alone, and its
    weights are not in the critic's state dict; nor does ``critic.to(device)`` move it.
    """

    def __init__(
        self, extract: Callable[[Tensor], Sequence[Tensor]], channels: Sequence[int], classes: int = 0, width: int = 64
    ):
        super().__init__()
        if not channels:
            raise UserError("ProjectedCritic: needs the channels of at least one feature map.")
        # In a tuple, where nn.Module does not look for submodules.
        self._frozen = (extract,)
        self.heads = nn.ModuleList(FeatureHead(count, classes, width) for count in channels)

    def forward(self, x: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        maps = self._frozen[0](x)
        if len(maps) != len(self.heads):
            raise UserError(
                f"ProjectedCritic: was built for {len(self.heads)} feature maps and is given {len(maps)}; "
                "give it the channels of each."
            )
        return torch.stack([head(features, condition) for head, features in zip(self.heads, maps, strict=True)], dim=1)
