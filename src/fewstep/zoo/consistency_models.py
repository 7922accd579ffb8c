"""The consistency models' release (Song et al. 2023): EDM teachers of its own and students
distilled from them, of LSUN bedroom and cat at 256 pixels and ImageNet at 64.

Its networks are ADM as its authors wrote it; ours are EDM's writing of the same network, so a state
dict is renamed. ``input_blocks.i.j`` are the encoder's blocks in order, module 0 the residual block
and module 1 its attention; ``middle_block`` is the decoder's first two blocks; ``output_blocks.i``
ends, at the last block of a level, with the block that doubles the resolution, which in ours begins
the next level. Attention's 3 C channels go by (query key value, head, channel) there, by (head,
channel, query key value) here. Classes are an embedding there, and the columns of a matrix here.

A teacher is EDM's denoiser but for the noise label, 250 log sigma. A student is a consistency
function: its factors make it the identity at sigma_min (``Consistency``).

The files are state dicts, read by ``state_dicts``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoisers import EDMInputs, NetworkDenoiser, freeze
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.networks.edm.released import SETTINGS
from fewstep.networks.kinds.network_files import check_strictly, load_strictly
from fewstep.prediction import EDM, Consistency, Prediction
from fewstep.schedule import KarrasVE
from fewstep.zoo.download import local_file
from fewstep.zoo.state_dicts import read_torch_file

SIGMA_DATA = 0.5
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "imagenet64": {**SETTINGS["imagenet64-adm"], "classes": 1000},
    "lsun-bedroom256": {**SETTINGS["lsun256-adm"], "classes": 0},
    "lsun-cat256": {**SETTINGS["lsun256-adm"], "classes": 0},
}
_RESIDUAL = {
    "in_layers.0": "norm0",
    "in_layers.2": "conv0",
    "emb_layers.1": "affine",
    "out_layers.0": "norm1",
    "out_layers.3": "conv1",
    "skip_connection": "skip",
}
_ATTENTION = {"norm": "norm2", "qkv": "qkv", "proj_out": "proj"}
_AROUND = {"time_embed.0": "map_layer0", "time_embed.2": "map_layer1", "out.0": "out_norm", "out.2": "out_conv"}


@dataclass(frozen=True)
class _Module:
    """One of their modules: its prefix, the block of ours that it is (part of), and whether it is
    the block's attention.
    """

    theirs: str
    ours: str
    attention: bool = False


def load_edm_teacher(source: str | Path, name: str, sha256: str | None = None) -> NetworkDenoiser:
    """The frozen EDM teacher in a ``.pt`` at a path or an https URL (see ``local_file``), such as
    ``edm_bedroom256_ema.pt``; ``name`` is one of ``NETWORKS``.

    Raises ``UserError`` for another name, and naming the file when it is no state dict or not that
    network's.
    """
    return load_as(source, _network(name), EDM(SIGMA_DATA), sha256)


def load_student(source: str | Path, name: str, sha256: str | None = None) -> NetworkDenoiser:
    """The frozen student (CD or CT), such as ``cd_bedroom256_lpips.pt``; see ``load_teacher``."""
    return load_as(source, _network(name), Consistency(SIGMA_DATA, KarrasVE().sigma_min), sha256)


def load_as(
    source: str | Path, description: Mapping[str, Any], prediction: Prediction, sha256: str | None = None
) -> NetworkDenoiser:
    """A file of the release's format around any ``dhariwal-unet`` with at least 128 channels (fewer
    are normalised in other groups there).
    """
    path = local_file(source, sha256)
    tensors = _under_our_names(read_torch_file(path), description, str(path))
    with torch.device("meta"):
        check_strictly(build(description), tensors, str(path))
    with torch.random.fork_rng(devices=[]):
        network = build(description)
    load_strictly(network, tensors, str(path))
    channels = network.enc[_first(description)].in_channels  # type: ignore[index, union-attr]
    shape = (channels, description["img_resolution"], description["img_resolution"])
    return freeze(
        NetworkDenoiser(network, KarrasVE(), prediction, EDMInputs(SIGMA_DATA, 1000.0), shape, description["classes"])
    )


def _under_our_names(tensors: Mapping[str, Tensor], description: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The release's state dict under the names of the ``dhariwal-unet`` of ``description``, in
    float32, with the fixed filters of ours added.

    Raises ``UserError`` naming ``source`` and a tensor that has no place in that network.
    """
    names = _names(description)
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer not in names:
            raise UserError(f"{source}: has an unknown tensor '{name}'; the file does not belong to this network.")
        ours, value = f"{names[layer]}.{kind}", value.float()
        if ours.endswith(("qkv.weight", "qkv.bias")):
            if not value.ndim or len(value) % (3 * _heads(value)):
                raise UserError(
                    f"{source}: tensor '{name}' is {tuple(value.shape)}, which are no queries, keys and "
                    "values of heads; the file does not belong to this network."
                )
            value = _heads_first(value)
        elif layer == "label_emb":
            value = value.mT.contiguous() if value.ndim == 2 else value
        # Attention's layers are convolutions of one dimension in ADM's first release, of two here.
        found[ours] = value[..., None] if value.ndim == 3 else value
    with torch.device("meta"):
        filters = [name for name in build(description).state_dict() if name.endswith("resample_filter")]
    return {**found, **{name: torch.full((1, 1, 2, 2), 0.25) for name in filters}}


def _network(name: str) -> Mapping[str, Any]:
    if name not in NETWORKS:
        raise UserError(
            f"there is no network '{name}' in the consistency models' release; it must be one of {', '.join(NETWORKS)}."
        )
    return NETWORKS[name]


def _names(description: Mapping[str, Any]) -> dict[str, str]:
    """Their layers' names to ours."""
    names = {
        **_AROUND,
        "input_blocks.0.0": f"enc.{_first(description)}",
        **({"label_emb": "map_label"} if description["classes"] else {}),
    }
    for module in _modules(description):
        table = _ATTENTION if module.attention else _RESIDUAL
        names.update({f"{module.theirs}.{theirs}": f"{module.ours}.{ours}" for theirs, ours in table.items()})
    return names


def _first(description: Mapping[str, Any]) -> str:
    return f"{description['img_resolution']}x{description['img_resolution']}_conv"


def _modules(description: Mapping[str, Any]) -> Iterator[_Module]:
    """Their modules in order; residual blocks each with the attention that follows, whether the
    network has it there or not.
    """
    levels, blocks = len(description["channel_mult"]), description["num_blocks"]
    sizes = [
        f"{description['img_resolution'] >> level}x{description['img_resolution'] >> level}" for level in range(levels)
    ]
    index = 1
    for level, size in enumerate(sizes):
        for name in [*(["down"] if level else []), *(f"block{block}" for block in range(blocks))]:
            yield _Module(f"input_blocks.{index}.0", f"enc.{size}_{name}")
            yield _Module(f"input_blocks.{index}.1", f"enc.{size}_{name}", True)
            index += 1
    yield _Module("middle_block.0", f"dec.{sizes[-1]}_in0")
    yield _Module("middle_block.1", f"dec.{sizes[-1]}_in0", True)
    yield _Module("middle_block.2", f"dec.{sizes[-1]}_in1")
    index = 0
    for level in reversed(range(levels)):
        attends = (description["img_resolution"] >> level) in description["attn_resolutions"]
        for block in range(blocks + 1):
            yield _Module(f"output_blocks.{index}.0", f"dec.{sizes[level]}_block{block}")
            if attends:
                yield _Module(f"output_blocks.{index}.1", f"dec.{sizes[level]}_block{block}", True)
            if level and block == blocks:
                yield _Module(f"output_blocks.{index}.{2 if attends else 1}", f"dec.{sizes[level - 1]}_up")
            index += 1


def _heads(value: Tensor) -> int:
    return max(1, len(value) // 3 // 64)


def _heads_first(value: Tensor) -> Tensor:
    """Channels (3, heads, 64) as (heads, 64, 3)."""
    return (
        value.unflatten(0, (3, _heads(value), -1))
        .permute(1, 2, 0, *range(3, value.ndim + 2))
        .flatten(0, 2)
        .contiguous()
    )
