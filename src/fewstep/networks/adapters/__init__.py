"""Low-rank adapters on a network that several roles share."""

from fewstep.networks.adapters.adapted import (
    AdaptedNetwork,
    adapted_in,
    apart,
    bases_of,
    merged_network,
    shorten_adapters,
)
from fewstep.networks.adapters.base import AdaptedBase
from fewstep.networks.adapters.low_rank import Adapter, Form, LowRank, fitting_layers
from fewstep.networks.adapters.portions import beside, shared_by

__all__ = [
    "AdaptedBase",
    "AdaptedNetwork",
    "Adapter",
    "Form",
    "LowRank",
    "adapted_in",
    "apart",
    "bases_of",
    "beside",
    "fitting_layers",
    "merged_network",
    "shared_by",
    "shorten_adapters",
]
