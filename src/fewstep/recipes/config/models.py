"""Networks, and the models that are trained from scratch around them.

A network's section is read from its constructor (``networks.kinds.registry``): what a recipe says
of a network has no other text.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import create_model
from torch import nn

from fewstep.networks import Classifier, DenoisingNetwork, GeneratorNetwork, ImageCritic
from fewstep.networks.kinds.registry import Kind, kinds
from fewstep.recipes.config.section import Choice, Kinds, Section
from fewstep.schedule import Schedule
from fewstep.values import Positive


class NetworkSection(Section):
    """What a recipe says of a network: its kind, and the arguments of its constructor that are not
    given by who builds it.
    """

    kind: str

    def description(self, **given: Any) -> dict[str, Any]:
        """What ``networks.kinds.build`` makes the network of; of ``given`` what its constructor
        takes.
        """
        kind = kinds()[self.kind]
        return {
            "kind": self.kind,
            **{name: getattr(self, name) for name in kind.settings},
            **{name: value for name, value in given.items() if name in kind.arguments},
        }


@dataclass(frozen=True)
class NetworkOf(Choice):
    """Any registered network that is of the class ``of``."""

    of: type[nn.Module]
    usual: str | None = None

    def options(self, base: Any) -> Mapping[str, type[Any]]:
        return {name: section_of(kind) for name, kind in kinds(self.of).items() if kind.in_recipes}

    def unknown(self, expected: str) -> str:
        return f"one of {expected}, or your own, whose module must be imported first (--import MODULE)"


@functools.cache
def section_of(kind: Kind) -> type[NetworkSection]:
    """The section of a kind of networks."""
    fields = {
        name: (each.annotation, ... if each.default is inspect.Parameter.empty else each.default)
        for name, each in kind.settings.items()
    }
    made: type[NetworkSection] = create_model(
        f"{kind.cls.__name__}Section", __base__=NetworkSection, kind=(Literal[kind.name], ...), **fields
    )  # type: ignore[call-overload]
    return made


DenoisingChoice = Annotated[NetworkSection, NetworkOf(DenoisingNetwork)]
ClassifierChoice = Annotated[NetworkSection, NetworkOf(Classifier)]
GeneratorChoice = Annotated[NetworkSection, NetworkOf(GeneratorNetwork)]
CriticChoice = Annotated[NetworkSection, NetworkOf(ImageCritic, "image-critic")]


class PredictionChoice(Section):
    kind: Literal["x0", "eps", "score", "v", "velocity", "edm"] = "edm"


class DenoiserModel(Section):
    kind: Literal["denoiser"]
    network: DenoisingChoice
    schedule: Annotated[Schedule, Kinds()]
    prediction: PredictionChoice = PredictionChoice()
    sigma_data: Positive = 0.5


class GeneratorModel(Section):
    """A generator on latents, which knows no noise levels."""

    kind: Literal["generator"]
    network: GeneratorChoice


class ClassifierModel(Section):
    kind: Literal["classifier"]
    network: ClassifierChoice
