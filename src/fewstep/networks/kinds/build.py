"""Networks by name, and back: what a weights file needs to rebuild the network it belongs to."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.networks.adapters import AdaptedNetwork
from fewstep.networks.kinds.bounds import MOST_UNITS, Undrawn, at_most, machine_numbers
from fewstep.networks.kinds.registry import arguments_of, find_kind, kind_named
from fewstep.values import checked

NOT_BUILT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What constructors raise of values that they do not take; a name that was never bound is how
diffusers' say it of an unknown activation.
"""


def build(description: Mapping[str, Any], module: str | None = None) -> nn.Module:
    """A fresh network from ``{"kind": ..., **arguments}``.

    ``module``: the one that registered the kind, where that is known.

    Raises ``UserError`` for an unknown kind or argument, for arguments outside their bounds or that
    make no network, and for one that this machine could not hold (see ``bounds``).
    """
    arguments = dict(description)
    kind = kind_named(arguments.pop("kind", None), module)
    unknown = sorted(set(arguments) - set(kind.arguments))
    if unknown:
        raise UserError(
            f"network '{kind.name}': unknown argument '{unknown[0]}'; it takes {', '.join(kind.arguments)}."
        )
    large = next((name for name, value in arguments.items() if isinstance(value, int) and value > MOST_UNITS), None)
    if large is not None:
        raise UserError(
            f"network '{kind.name}': '{large}' is more than {MOST_UNITS:,}, which nothing in a network is; correct it."
        )
    arguments = checked(
        {name: argument.annotation for name, argument in kind.arguments.items()}, arguments, f"network '{kind.name}'"
    )
    missing = next(
        (
            name
            for name, argument in kind.arguments.items()
            if name not in arguments and argument.default is inspect.Parameter.empty
        ),
        None,
    )
    if missing is not None:
        raise UserError(f"network '{kind.name}': the argument '{missing}' is missing; add it.")
    try:
        return _built(kind.cls, arguments)
    except NOT_BUILT as error:
        # What torch says of a size goes on with its own stack.
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"network '{kind.name}': cannot be built with the arguments that are given ({reason}); correct its sizes."
        ) from error


def _built(cls: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """The network, having tried that it would fit; what is asked for on the meta device may be of
    any size.
    """
    if torch.get_default_device().type == "meta":
        with at_most(sys.maxsize, "a plan"):
            return cls(**arguments)
    with torch.random.fork_rng(devices=[]), Undrawn(), at_most(machine_numbers(), "this machine's memory"):
        cls(**arguments)
    return cls(**arguments)


def describe_network(network: nn.Module) -> dict[str, Any]:
    """The description from which ``build`` makes the network, with the arguments that were left
    out; lists for tuples, since JSON knows no tuples.

    Raises ``UserError`` for a network of a class that is not registered, and for weights that carry
    an adapter.
    """
    if isinstance(network, AdaptedNetwork):
        raise UserError(
            f"{type(network.base.network).__name__} carries an adapter, whose weights are not the network's own: fold "
            "it in by 'merged', or save the adapter by 'save_adapter'."
        )
    arguments = arguments_of(network)
    return {"kind": find_kind(network), **{name: _plain(value) for name, value in arguments.items()}}


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
