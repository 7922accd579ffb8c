"""Critics on a denoiser's own features: the discriminators of DMD2 (Yin et al. 2024, Sec. 4.3).

The trunk is the network that is there already: the fake score, which then learns from both losses
(``Headed``), or the frozen teacher (``FrozenTrunk``).
"""

from __future__ import annotations

from torch import Tensor, nn

from fewstep.condition import Condition, as_condition
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.wrappers import Wrapper


class Headed(Wrapper):
    """The denoiser itself, with a head on its features, in one module that one phase trains.

    ``head``: features (B, C, ...), condition -> logits (B,).
    """

    denoiser: NetworkDenoiser

    def __init__(self, denoiser: NetworkDenoiser, head: nn.Module):
        super().__init__(denoiser)
        self.head = head

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return self.denoiser(x, t, condition)

    def logits(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        """How real x (B, *D) looks at noise level t, (B,); an evaluation of the trunk without what
        comes after its features.
        """
        condition = as_condition(condition)
        return self.head(self.denoiser.features(x, t, condition), condition)


class FrozenTrunk(nn.Module):
    """A trainable head on a frozen denoiser's features (FastGen's variant of DMD2): called as
    ``critic(x (B, *D), t, condition) -> logits (B,)``.

    The denoiser, frozen by the caller, is no submodule: training this module leaves it alone, and
    it is not saved with it; nor does ``critic.to(device)`` move it. Gradients go through it to x.
    """

    def __init__(self, denoiser: NetworkDenoiser, head: nn.Module):
        super().__init__()
        # In a tuple, where nn.Module does not look for submodules.
        self._frozen = (denoiser,)
        self.head = head

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The trunk."""
        return self._frozen[0]

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return self.logits(x, t, condition)

    def logits(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        """How real x looks at noise level t, (B,)."""
        condition = as_condition(condition)
        return self.head(self.denoiser.features(x, t, condition), condition)
