"""Raw networks in files: weights, and the description to rebuild the network around them.

Loading is strict: a key that is missing, left over, of another shape or not finite is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.kinds.bounds import at_most
from fewstep.networks.kinds.build import build, describe_network
from fewstep.networks.kinds.registry import find_kind, kind_named
from fewstep.system import distributed
from fewstep.system.files import read_tensors, write_tensors

FORMAT = 1
MODULE = "network_module"
"""What a file says of a network that is not ours: the module that registers it, for the sentence to
whoever lacks it.
"""


def save_network(path: Path, network: nn.Module) -> str:
    """Writes a network that ``build`` made; returns the file's digest."""
    return write_tensors(
        path, network.state_dict(), {"format": FORMAT, "network": describe_network(network), **module_of(network)}
    )


def load_network(path: Path) -> nn.Module:
    """Reads what ``save_network`` wrote.

    Raises ``UserError`` naming the file and what is wrong in it.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT or not isinstance(metadata.get("network"), dict):
        raise UserError(
            f"{path}: is not a network file of format {FORMAT}; it may come from another version or be "
            "another kind of file."
        )
    try:
        with at_most(room_for(tensors), "the file"):
            network = build(metadata["network"], metadata.get(MODULE))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    load_strictly(network, tensors, str(path))
    return network


def module_of(model: nn.Module) -> dict[str, str]:
    """The module that registers the model's network, by ``MODULE``; nothing for a network of
    ours.
    """
    kinds = [kind_named(name) for module in model.modules() if (name := find_kind(module)) is not None]
    foreign = next((kind.module for kind in kinds if not kind.module.startswith("fewstep.")), None)
    return {} if foreign is None else {MODULE: foreign}


def room_for(tensors: Mapping[str, Tensor]) -> int:
    """The most parameters of a network that is built to see whether a file's tensors belong to it:
    some times as many as they are, since one that is missing is to be named.
    """
    return 4 * sum(value.numel() for value in tensors.values()) + 2**20


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads a state dict whose keys and shapes must be exactly the model's, and whose values must
    be finite; the error names ``source`` and the first key that is not so.

    Of a model that is sharded over processes, each takes its part of tensors that are whole;
    tensors that are sharded must be so in the same way.
    """
    check_strictly(model, tensors, source)
    slots = model.state_dict()
    model.load_state_dict({name: distributed.like(value, slots[name]) for name, value in tensors.items()})


def check_strictly(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises what ``load_strictly`` would and loads nothing; the model may be on the meta device,
    so that a file's shapes are checked before memory is taken for them.
    """
    expected = model.state_dict()
    for problem, keys in (("lacks", set(expected) - set(tensors)), ("has an unknown", set(tensors) - set(expected))):
        if keys:
            raise UserError(f"{source}: {problem} tensor '{min(keys)}'; the file does not belong to this network.")
    for name, value in expected.items():
        found = tensors[name]
        if found.shape != value.shape or found.dtype != value.dtype:
            raise UserError(
                f"{source}: tensor '{name}' is {found.dtype} {tuple(found.shape)}, the network needs "
                f"{value.dtype} {tuple(value.shape)}."
            )
        if found.is_floating_point() and not found.is_meta and not bool(distributed.whole(found.isfinite().all())):
            raise UserError(
                f"{source}: tensor '{name}' holds values that are not finite numbers; the model had "
                "diverged or the file is damaged, use another."
            )
