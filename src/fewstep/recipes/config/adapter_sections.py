"""What a recipe says of a low-rank adapter, whoever's it is: its rank and alpha, the layers that it
goes on, and where it begins.
"""

from __future__ import annotations

import abc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator
from torch import nn

from fewstep.denoisers import NetworkDenoiser, in_network
from fewstep.denoisers.stored_adapter import adapter_in
from fewstep.networks.adapters import AdaptedBase, AdaptedNetwork, Form
from fewstep.recipes.config.section import Names, Section, check_one, null_beside
from fewstep.recipes.config.starts import need_not_be_there
from fewstep.system.locations import absolute
from fewstep.values import Later, Positive
from fewstep.zoo.adapter_files import AdapterFile, read_adapter

AdapterPath = Annotated[str, Names("weights", within=adapter_in)]


class LowRankSection(Section, abc.ABC):
    """Of ``scale``, which is alpha / rank, and ``alpha``, exactly one is said.

    ``targets``: the layers that are adapted, by their names or the ends of their paths; null for
    those that the network's family usually adapts. ``start``: a file of an adapter (as peft,
    diffusers and kohya's scripts write it, or ours) or a run's folder, from which it begins; ranks,
    alphas and layers are then the file's. Null for an adapter that adds 0.
    """

    if TYPE_CHECKING:
        # Declared by each kind, whose fields have an order that runs are known by.
        rank: int
        scale: float | None

    alpha: Annotated[Positive | None, Later()] = None
    targets: Annotated[list[Annotated[str, Field(min_length=1)]] | None, Field(min_length=1), Later()] = None
    start: Annotated[AdapterPath | None, Later()] = None

    @model_validator(mode="before")
    @classmethod
    def _alpha_for_scale(cls, values: Any) -> Any:
        return null_beside(values, "alpha", "scale")

    @model_validator(mode="after")
    def _says_one_scale(self) -> Self:
        check_one(self, "scale", "alpha")
        return self

    @property
    def form(self) -> Form:
        """Of the adapter, where it does not begin from a file."""
        alpha = self.alpha if self.scale is None else self.scale * self.rank
        assert alpha is not None
        return Form(self.rank, alpha, None if self.targets is None else tuple(self.targets))

    def role(self, base: AdaptedBase, like: NetworkDenoiser, seed: int) -> NetworkDenoiser:
        """The denoiser ``like``, with such an adapter on the base in the place of its network.

        Raises ``UserError`` for layers that are not there, and for a file that does not fit.
        """
        missing = self.start is not None and need_not_be_there(base.network, self.start)
        file = None if missing else self._file(base.network)
        network = (
            AdaptedNetwork.fresh(base, self.form, seed) if file is None else AdaptedNetwork.holding(base, file.pairs)
        )
        return in_network(like, network)

    def remarks(self, network: nn.Module) -> tuple[str, ...]:
        """Sentences on how the file was read for the base's network from which it begins."""
        file = self._file(network)
        return () if file is None else file.notes

    def _file(self, network: nn.Module) -> AdapterFile | None:
        return None if self.start is None else read_adapter(Path(absolute(self.start)), network)
