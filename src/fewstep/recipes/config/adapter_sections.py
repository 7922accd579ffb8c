"""What a recipe says of a low-rank adapter, whoever's it is: its rank and alpha, the layers that it
goes on, and where it begins.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from fewstep.denoisers import NetworkDenoiser, in_network
from fewstep.denoisers.stored_adapter import adapter_in
from fewstep.networks.adapters import AdaptedBase, AdaptedNetwork, Form
from fewstep.recipes.config.section import Names, Section
from fewstep.system.locations import absolute
from fewstep.values import Later, Positive
from fewstep.zoo.adapter_files import read_adapter

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
        said = isinstance(values, Mapping) and values.get("alpha") is not None
        return {"scale": None, **values} if said else values

    @model_validator(mode="after")
    def _says_one_scale(self) -> Self:
        if (self.scale is None) == (self.alpha is None):
            both = "are both said" if self.alpha is not None else "are both null"
            raise ValueError(f"'scale' and 'alpha' {both}; say one of them, and set the other to null")
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
        if self.start is None:
            return in_network(like, AdaptedNetwork.fresh(base, self.form, seed))
        file = read_adapter(adapter_in(Path(absolute(self.start))), base.network)
        return in_network(like, AdaptedNetwork.holding(base, file.pairs))
