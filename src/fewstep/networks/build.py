"""Networks by name, and back: what a weights file needs to rebuild the network it belongs to."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.networks.bounds import MOST_UNITS, Undrawn, at_most, machine_numbers
from fewstep.networks.classifier import DigitClassifier, ImageClassifier
from fewstep.networks.critic import FeatureHead
from fewstep.networks.diffusers_unet import DiffusersUNet
from fewstep.networks.edm import DhariwalUNet, SongUNet
from fewstep.networks.fastgan import FastGAN
from fewstep.networks.image_critic import ImageCritic
from fewstep.networks.lora import has_adapter
from fewstep.networks.mlp import LatentMLP, ResidualMLP
from fewstep.networks.unet import SmallUNet

KINDS: dict[str, type[nn.Module]] = {
    "small-unet": SmallUNet,
    "residual-mlp": ResidualMLP,
    "latent-mlp": LatentMLP,
    "fastgan": FastGAN,
    "digit-classifier": DigitClassifier,
    "image-classifier": ImageClassifier,
    "feature-head": FeatureHead,
    "song-unet": SongUNet,
    "dhariwal-unet": DhariwalUNet,
    "diffusers-unet2d": DiffusersUNet,
    "image-critic": ImageCritic,
}


def build(description: Mapping[str, Any]) -> nn.Module:
    """A fresh network from ``{"kind": ..., **arguments}``, its description kept as ``network.description``, with the arguments that were left out.

    Raises ``UserError`` for an unknown kind or argument, for arguments that make no network, and for one that this machine could not hold (see ``bounds``).
    """
    arguments = dict(description)
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"network: unknown kind '{kind}'; it must be one of {', '.join(KINDS)}.")
    known = inspect.signature(KINDS[kind].__init__).parameters
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise UserError(f"network '{kind}': unknown argument '{unknown[0]}'; it takes {', '.join(n for n in known if n != 'self')}.")
    large = next((name for name, value in arguments.items() if isinstance(value, int) and value > MOST_UNITS), None)
    if large is not None:
        raise UserError(f"network '{kind}': '{large}' is more than {MOST_UNITS:,}, which nothing in a network is; correct it.")
    try:
        network = _built(KINDS[kind], arguments)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        # What torch says of a size goes on with its own stack.
        reason = str(error).partition("\n")[0]
        raise UserError(f"network '{kind}': cannot be built with the arguments that are given ({reason}); correct its sizes.") from error
    # Spelled out, so that a network is described alike whoever made it, and when its class has learnt a new argument. Lists, since JSON knows no tuples.
    usual = {name: value.default for name, value in known.items() if value.default is not inspect.Parameter.empty}
    network.description = {"kind": kind, **{name: _plain(value) for name, value in {**usual, **arguments}.items()}}  # type: ignore[assignment]
    return network


def _built(cls: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """The network, having tried that it would fit; what is asked for on the meta device may be of any size."""
    if torch.get_default_device().type == "meta":
        with at_most(sys.maxsize, "a plan"):
            return cls(**arguments)
    with torch.random.fork_rng(devices=[]), Undrawn(), at_most(machine_numbers(), "this machine's memory"):
        cls(**arguments)
    return cls(**arguments)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def describe(network: nn.Module) -> dict[str, Any]:
    """The description from which ``build`` made the network. Raises ``UserError`` for one that it did not make, or whose weights carry an adapter."""
    description = getattr(network, "description", None)
    if not isinstance(description, dict):
        raise UserError(f"{type(network).__name__} was not made by fewstep.networks.build, so a file could not rebuild it.")
    if has_adapter(network):
        raise UserError(f"{type(network).__name__} carries an adapter, whose weights are not the network's own: fold it in by 'merged', or save the adapter by 'save_adapter'.")
    return description


def find_kind(network: nn.Module) -> str | None:
    """The kind by which ``build`` made the network, None for one that it did not make."""
    description = getattr(network, "description", None)
    return str(description["kind"]) if isinstance(description, dict) else None
