"""Critics on a denoiser's own features: the discriminators of DMD2 (Yin et al. 2024, Sec. 4.3).

The trunk is the network that is there already: the fake score, which then learns from both losses
(``Headed``), or the frozen teacher (``FrozenTrunk``).
"""

from __future__ import annotations

from torch import Tensor, nn

from fewstep.condition import Condition, as_condition
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.wrappers import Wrapper
from fewstep.networks.elsewhere import Door


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
        return _judged(self.denoiser, self.head, x, t, as_condition(condition))


class FrozenTrunk(nn.Module, Door):
    """A trainable head on a frozen denoiser's features (FastGen's variant of DMD2): called as
    ``critic(x (B, *D), t, condition) -> logits (B,)``.

    The denoiser, frozen by the caller, is no submodule: training this module leaves it alone, and
    it is not saved with it; nor does ``critic.to(device)`` move it. The head is where the denoiser
    is. Gradients go through it to x.
    """

    def __init__(self, denoiser: NetworkDenoiser, head: nn.Module):
        super().__init__()
        # In a tuple, where nn.Module does not look for submodules.
        self._frozen = (denoiser,)
        self.head = head
        self.place = denoiser.place

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The trunk."""
        return self._frozen[0]

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return self.logits(x, t, condition)

    def logits(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        """How real x looks at noise level t, (B,)."""
        return _judged(self.denoiser, self.head, x, t, as_condition(condition))


def _judged(trunk: NetworkDenoiser, head: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    # Where the trunk is, the head is; logits are fewer numbers than features.
    features = trunk.features(x, t, condition)
    logits: Tensor = head(features, condition.to(features.device))
    return logits.to(x.device)
