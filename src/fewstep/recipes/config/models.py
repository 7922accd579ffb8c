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

import torch
from pydantic import Field, create_model
from torch import nn

from fewstep.condition import Condition
from fewstep.data import Dataset, Described
from fewstep.denoisers import EDMInputs, Generator, NetworkDenoiser, TimestepInputs
from fewstep.denoisers.inputs import Inputs
from fewstep.errors import UserError
from fewstep.networks import (
    Classifier,
    DenoisingNetwork,
    GeneratorNetwork,
    ImageCritic,
    PatchAutoencoder,
    Reader,
    build,
)
from fewstep.networks.kinds.registry import Kind, arguments_of, kinds
from fewstep.prediction import Prediction
from fewstep.recipes.config.section import Choice, Kinds, Section
from fewstep.schedule import Schedule
from fewstep.values import Later, Positive


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
CodecChoice = Annotated[NetworkSection, NetworkOf(PatchAutoencoder)]
ReaderChoice = Annotated[NetworkSection, NetworkOf(Reader)]
GeneratorChoice = Annotated[NetworkSection, NetworkOf(GeneratorNetwork)]
CriticChoice = Annotated[NetworkSection, NetworkOf(ImageCritic, "image-critic")]


def build_network(choice: NetworkSection, seed: int, **given: Any) -> nn.Module:
    """A fresh network, its initial weights a function of ``seed``; ``given``: ``classes`` or what
    else whoever builds it gives.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(choice.description(**given))


def check_takes(choice: NetworkSection, key: str, shape: tuple[int, ...], classes: int) -> None:
    """Raises ``UserError``, naming the recipe's ``key``, for a denoising network that does not make
    samples of ``shape`` from such; tried where it costs nothing, on the meta device.
    """
    with torch.device("meta"):
        network = build(choice.description(classes=classes))
        asked = network.context_shapes if isinstance(network, DenoisingNetwork) else {}
        context = {name: torch.zeros(1, *each) for name, each in asked.items()}
        x = torch.zeros(1, *shape)
        condition = Condition(labels=torch.zeros(1, classes) if classes else None, context=context)
        try:
            emitted = tuple(network(x, torch.zeros(1), condition).shape[1:])
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"'{key}: {choice.kind}' does not take samples of shape {shape} ({reason}); change its "
                "sizes or its kind, or the data's."
            ) from error
    if emitted != shape:
        raise UserError(
            f"'{key}: {choice.kind}' makes samples of shape {emitted} from samples of shape {shape}; change "
            "its sizes or its kind, or the data's."
        )


def build_generator(choice: NetworkSection, shape: tuple[int, ...], classes: int, seed: int, key: str) -> Generator:
    """A fresh generator of samples of ``shape``, its weights a function of ``seed``.

    Raises ``UserError``, naming the recipe's ``key``, for a shape that this kind does not make.
    """
    cls = kinds(GeneratorNetwork)[choice.kind].cls
    assert issubclass(cls, GeneratorNetwork)
    try:
        sizes = cls.sizes_for(shape)
    except UserError as error:
        raise UserError(f"'{key}: {choice.kind}' {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(choice.description(**sizes, classes=classes))
    return Generator(network, (arguments_of(network)["latent"],), shape, classes)


class PredictionChoice(Section):
    kind: Literal["x0", "eps", "score", "v", "velocity", "edm"] = "edm"


class DenoiserModel(Section):
    """``inputs``: what the network is fed; null for EDM's, and for the time where alpha reaches
    0.
    """

    kind: Literal["denoiser"]
    network: DenoisingChoice
    schedule: Annotated[Schedule, Kinds()]
    prediction: PredictionChoice = PredictionChoice()
    sigma_data: Positive = 0.5
    inputs: Annotated[Annotated[Inputs, Kinds()] | None, Later()] = None

    def build(self, data: Dataset, seed: int) -> NetworkDenoiser:
        """A fresh denoiser of the data's shape and classes, its weights a function of ``seed``."""
        return self.denoiser(data.shape, data.classes, seed)

    def denoiser(self, shape: tuple[int, ...], classes: int, seed: int) -> NetworkDenoiser:
        """A fresh denoiser of samples of ``shape``.

        Raises ``UserError`` for a network that does not take them.
        """
        check_takes(self.network, "model.network.kind", shape, classes)
        return self.around(build_network(self.network, seed, classes=classes), shape, classes)

    def around(self, network: nn.Module, shape: tuple[int, ...], classes: int) -> NetworkDenoiser:
        """The denoiser that this section makes of its network."""
        edm = {"sigma_data": self.sigma_data} if self.prediction.kind == "edm" else {}
        prediction = Prediction.from_description({"kind": self.prediction.kind, **edm})
        # EDM's inputs need a finite sigma / alpha, which a flow does not have at t = 1.
        finite = float(self.schedule.alpha(self.schedule.t_max)) > 0
        usual = EDMInputs(self.sigma_data) if finite else TimestepInputs(offset=0.0)
        inputs = usual if self.inputs is None else self.inputs
        return NetworkDenoiser(network, self.schedule, prediction, inputs, shape, classes)


class GeneratorModel(Section):
    """A generator on latents, which knows no noise levels."""

    kind: Literal["generator"]
    network: GeneratorChoice

    def build(self, data: Dataset, seed: int) -> Generator:
        """A fresh generator of the data's shape and classes, its weights a function of ``seed``."""
        return build_generator(self.network, data.shape, data.classes, seed, "model.network.kind")


class ClassifierModel(Section):
    kind: Literal["classifier"]
    network: ClassifierChoice

    def build(self, data: Dataset, seed: int) -> nn.Module:
        """A fresh classifier of the data's classes, its weights a function of ``seed``."""
        return build_network(self.network, seed, classes=data.classes)


class ReaderModel(Section):
    """A network that tells the attributes of the data."""

    kind: Literal["reader"]
    network: ReaderChoice

    def build(self, data: Dataset, seed: int) -> nn.Module:
        """A fresh reader of the data's attributes, its weights a function of ``seed``.

        Raises ``UserError`` for data without attributes.
        """
        if not isinstance(data, Described):
            raise UserError(
                "'model.kind: reader' learns the attributes of samples, which this data has not; set "
                "'data.kind: scenes', or train a classifier."
            )
        return build_network(self.network, seed, attributes=dict(data.values))


class CodecModel(Section):
    """Pictures to latents and back. The encoder is made of the principal components of the first
    ``pictures`` of the data; the decoder is trained.
    """

    kind: Literal["codec"]
    network: CodecChoice
    pictures: int = Field(4000, ge=2, le=100_000)

    def build(self, data: Dataset, seed: int) -> nn.Module:
        """A codec with the encoder that the data has, its decoder's weights a function of
        ``seed``.
        """
        network = build_network(self.network, seed)
        assert isinstance(network, PatchAutoencoder)
        network.fit(data.take(data.head(self.pictures)))
        return network
