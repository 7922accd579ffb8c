"""What is asked of networks: the types on which denoisers, generators, the heads of critics and
feature spaces rely.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

from fewstep.condition import Condition


class GeneratorNetwork(nn.Module, abc.ABC):
    """Called as ``network(z (B, latent), condition) -> (B, *D)``: it makes samples of latents and
    knows no noise levels.

    Its constructor takes ``latent``, the number of a latent's dimensions.
    """

    @classmethod
    @abc.abstractmethod
    def sizes_for(cls, shape: tuple[int, ...]) -> dict[str, int]:
        """The arguments of the constructor by which it makes samples of ``shape``.

        Raises ``UserError`` for samples that it does not make, as the end of a sentence about it.
        """


class FeatureNetwork(nn.Module, abc.ABC):
    """Called on samples (B, *shape); its last hidden layer is a feature space."""

    shape: tuple[int, ...]
    classes: int = 0
    """How many classes it tells."""

    @abc.abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, (B, features)."""

    def class_head(self) -> nn.Module | None:
        """Features (B, features) -> logits (B, classes); None where it tells no classes."""
        return None


class Reweighted(abc.ABC):
    """A linear or convolutional layer that computes by a rule of its own, linear in its weight, and
    does so with any other weight too.
    """

    @abc.abstractmethod
    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer emits on x with that weight, of any number of outputs, and bias."""


class DenoisingNetwork(nn.Module, abc.ABC):
    """Called as ``network(x (B, *D), noise_label (B,), condition, end_label (B,) or None) -> (B,
    *D)``.

    ``end_label`` is the noise label of the time at which a trajectory's jump ends; a network either
    always needs it or always refuses it. ``bottleneck`` is the number of channels of its
    ``features``, ``leave`` the last layer. ``recompute`` (False) asks a network of many blocks to
    forget each block's activations and to compute them again in the backward pass (gradient
    checkpointing): less memory, one more forward pass, and the same values and gradients bit for
    bit. Networks too small to gain by it ignore it. ``context_shapes`` are the tensors that it asks
    of a condition's context, by name with the shape of one sample's, in which 1 stands for a number
    of tokens. ``entries`` are the methods besides ``forward`` that are called from outside and run
    layers; they and ``forward`` do not call one another, since a sharded network gathers its
    weights on entering and lets them go on leaving. ``adapted_by_default`` are the layers that a
    low-rank adapter goes on unless it is told others, by their names or the ends of their paths;
    empty for every linear and convolutional layer. ``part`` is the part of diffusers' pipelines
    that it holds, under the same name; empty for none. ``classes``: how many classes it tells
    apart, 0 for none. ``reads_guidance``: whether it is told a scale of guidance, ``told`` the one
    where a condition says none, None where it must.
    """

    entries: ClassVar[tuple[str, ...]] = ("features",)
    adapted_by_default: ClassVar[tuple[str, ...]] = ()
    part: ClassVar[str] = ""

    bottleneck: int
    leave: nn.Linear | nn.Conv2d
    recompute: bool = False
    classes: int = 0
    reads_guidance: bool = False
    told: float | None = None
    context_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})

    @abc.abstractmethod
    def forward(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        """See the class's docstring."""

    @abc.abstractmethod
    def features(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        """The innermost activations, (B, bottleneck, ...), without computing what comes after them.

        Called like ``forward``.
        """
