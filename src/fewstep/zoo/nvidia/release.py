"""Networks of NVIDIA's EDM release (Karras et al. 2022): CIFAR-10, FFHQ and AFHQv2 at 64 pixels,
ImageNet 64; and snapshots of its training code.

A file is read as data (``pickles``). It holds a preconditioning around a U-Net, both as records of
what they were made from and of their tensors. The U-Net becomes ours with the same parameter names;
the preconditioning becomes a schedule (variance exploding, at the noise levels the file supports),
a prediction and inputs:

- ``EDMPrecond``: D(x; sigma) c_skip x + c_out F; prediction ``EDM``; inputs ``EDMInputs``.
- ``VPPrecond``: D(x; sigma) x - sigma F; prediction ``Epsilon``; inputs ``VPInputs``.
- ``VEPrecond``: D(x; sigma) x + sigma F; prediction ``ScaledScore``; inputs ``VEInputs``.
- ``iDDPMPrecond``: D(x; sigma) x - sigma (first half of F); prediction ``Epsilon``; inputs
  ``IDDPMInputs``.

The second half of what iDDPM's network emits is a variance that no sampler of the release reads:
the last layers lose it on loading, and the estimate is the same.

A file's numbers are checked before anything is built from them, and its shapes against the network
on the meta device before memory is taken.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoisers import EDMInputs, IDDPMInputs, NetworkDenoiser, VEInputs, VPInputs, freeze
from fewstep.denoisers.inputs import Inputs
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.networks.kinds.network_files import check_strictly, load_strictly
from fewstep.prediction import EDM, Epsilon, Prediction, ScaledScore
from fewstep.schedule import KarrasVE
from fewstep.system.ledger import file_digest
from fewstep.zoo.download import local_file
from fewstep.zoo.nvidia.machine import ForeignObject, shown_foreign
from fewstep.zoo.nvidia.modules import child, keywords_of, real, tensors_of, whole_number, whole_numbers, word
from fewstep.zoo.nvidia.pickles import read_pickle

_KINDS = {"SongUNet": "song-unet", "DhariwalUNet": "dhariwal-unet"}
_WHOLE = {
    "img_resolution": (1, 1024),
    "in_channels": (1, 64),
    "out_channels": (1, 64),
    "label_dim": (0, 100_000),
    "augment_dim": (0, 1024),
    "model_channels": (1, 1024),
    "channel_mult_emb": (1, 16),
    "channel_mult_noise": (1, 16),
    "num_blocks": (1, 16),
}
_LISTS = {"channel_mult": (1, 16), "attn_resolutions": (1, 1024), "resample_filter": (1, 16)}
_SHARES = ("dropout", "label_dropout")
_WORDS = ("embedding_type", "encoder_type", "decoder_type")
_USUAL_LEVELS = (1, 1, 1, 1)
_HIGHEST_LEVEL = 1e6

Preconditioning = tuple[KarrasVE, Prediction, Inputs]


@dataclass(frozen=True)
class Summary:
    """What a file holds: its place, ``sha256`` and ``size`` in bytes, the names of its
    preconditioning and network, the number of ``parameters``, one sample's shape, the classes.
    """

    path: Path
    sha256: str
    size: int
    preconditioning: str
    network: str
    parameters: int
    shape: tuple[int, ...]
    classes: int

    def __str__(self) -> str:
        what = (
            f"{self.preconditioning} around {self.network}, {self.parameters:,} parameters, samples "
            f"{' x '.join(map(str, self.shape))}, {self.classes} classes"
        )
        return f"{self.path}: {what}, {self.size:,} bytes, SHA-256 {self.sha256}"


def load(source: str | Path, key: str = "ema", sha256: str | None = None) -> NetworkDenoiser:
    """The frozen denoiser in a ``.pkl`` at a path or an https URL (see ``local_file``).

    ``key``: its name in the file, "ema" in all of the release.

    Called at t it is the release's network at sigma(t), in float32. Raises ``UserError`` naming the
    file and what in it is unknown, hostile, damaged or does not fit.
    """
    path = local_file(source, sha256)
    content = read_pickle(path)
    with _about(path):
        return _denoiser(_network(content, key))


def describe(source: str | Path, key: str = "ema") -> Summary:
    """What is in a file that ``load`` would load, without building it; its checksum and number of
    parameters are to be compared with the source's.
    """
    path = local_file(source)
    content = read_pickle(path)
    with _about(path):
        wrapper = _network(content, key)
        inner = _inner(wrapper)
        found = _description(inner)
        parameters, _ = tensors_of(inner)
    shape = (found["in_channels"], found["img_resolution"], found["img_resolution"])
    return Summary(
        path,
        file_digest(path),
        path.stat().st_size,
        wrapper.name,
        inner.name,
        sum(p.numel() for p in parameters.values()),
        shape,
        found["classes"],
    )


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """Puts the file's name before what is wrong in it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _network(content: Any, key: str) -> ForeignObject:
    """The preconditioning under ``key``."""
    if type(content) is not dict or not isinstance(content.get(key), ForeignObject):
        names = (
            ", ".join(shown_foreign(name) for name, value in content.items() if isinstance(value, ForeignObject))
            if type(content) is dict
            else ""
        )
        raise UserError(f"holds no network '{key}'; it holds {names or 'none at all'}.")
    wrapper = content[key]
    if wrapper.name not in _PRECONDITIONINGS:
        raise UserError(f"holds a {shown_foreign(wrapper.name)}, which is none of {', '.join(_PRECONDITIONINGS)}.")
    return wrapper


def _inner(wrapper: ForeignObject) -> ForeignObject:
    """The U-Net inside a preconditioning."""
    inner = child(wrapper, "model")
    if inner.name not in _KINDS:
        raise UserError(f"holds a network {shown_foreign(inner.name)}, which is none of {', '.join(_KINDS)}.")
    return inner


def _denoiser(wrapper: ForeignObject) -> NetworkDenoiser:
    """Our denoiser from the records."""
    schedule, prediction, inputs = _PRECONDITIONINGS[wrapper.name](wrapper.state)
    inner = _inner(wrapper)
    description = _description(inner)
    parameters, buffers = tensors_of(inner)
    tensors = {**parameters, **buffers}
    channels = description["in_channels"]
    if description["out_channels"] != channels * (2 if wrapper.name == "iDDPMPrecond" else 1):
        raise UserError(
            f"has a network of {description['out_channels']} channels out and {channels} in, which "
            f"{wrapper.name} does not have."
        )
    if wrapper.name == "iDDPMPrecond":
        _check_levels(wrapper, inputs)
        description["out_channels"] = channels
        tensors = {name: value[:channels].clone() if _is_last(name) else value for name, value in tensors.items()}
    with torch.device("meta"):
        check_strictly(build(description), tensors, f"the network '{inner.name}'")
    with torch.random.fork_rng(devices=[]):
        network = build(description)
    load_strictly(network, tensors, f"the network '{inner.name}'")
    shape = (channels, description["img_resolution"], description["img_resolution"])
    return freeze(NetworkDenoiser(network, schedule, prediction, inputs, shape, description["classes"]))


def _description(inner: ForeignObject) -> dict[str, Any]:
    """What ``build`` needs, from the arguments that the file's network was made from."""
    given = keywords_of(inner)
    unknown = sorted(set(given) - {*_WHOLE, *_LISTS, *_SHARES, *_WORDS})
    if unknown:
        raise UserError(f"has a {inner.name} made with {shown_foreign(unknown[0])}, which the release's does not take.")
    found: dict[str, Any] = {
        name: whole_number(given, name, *_WHOLE[name])
        for name in ("img_resolution", "in_channels", "out_channels", "label_dim")
    }
    for name in given:
        if name in _WHOLE:
            found[name] = whole_number(given, name, *_WHOLE[name])
        elif name in _LISTS:
            found[name] = whole_numbers(given, name, *_LISTS[name])
        elif name in _SHARES:
            found[name] = real(given, name, 0.0, 1.0)
        else:
            found[name] = word(given, name)
    if "attn_resolutions" in found:
        # In the release a resolution that no level has is passed over; ours refuses it.
        levels = {found["img_resolution"] >> level for level in range(len(found.get("channel_mult", _USUAL_LEVELS)))}
        found["attn_resolutions"] = [resolution for resolution in found["attn_resolutions"] if resolution in levels]
    classes = found.pop("label_dim")
    return {"kind": _KINDS[inner.name], **found, "classes": classes}


def _is_last(name: str) -> bool:
    """Whether a tensor belongs to a layer that writes to the image."""
    layer = name.rpartition(".")[0]
    return layer == "out_conv" or layer.endswith("_aux_conv")


def _edm(state: dict[str, Any]) -> Preconditioning:
    # The release's networks claim [0, infinity); its sampler goes from 80 to 0.002, and so do its
    # training's noise levels.
    low, high = real(state, "sigma_min", 0.0, 1e6) or 0.002, min(real(state, "sigma_max", 0.0, math.inf), 80.0)
    data = real(state, "sigma_data", 1e-6, 1e6)
    return KarrasVE(low, high), EDM(data), EDMInputs(data)


def _vp(state: dict[str, Any]) -> Preconditioning:
    inputs = VPInputs(
        real(state, "beta_d", 1e-6, 1000.0), real(state, "beta_min", 0.0, 100.0), whole_number(state, "M", 2, 100_000)
    )
    low, high = inputs.level(real(state, "epsilon_t", 1e-12, 1.0)), inputs.level(1.0)
    if high > _HIGHEST_LEVEL:
        raise UserError(
            f"has {inputs.beta_d} for beta_d and {inputs.beta_min} for beta_min, whose highest noise level "
            f"is {high:.3g}: it must be at most {_HIGHEST_LEVEL:g}."
        )
    return KarrasVE(low, high), Epsilon(), inputs


def _ve(state: dict[str, Any]) -> Preconditioning:
    return (
        KarrasVE(real(state, "sigma_min", 0.0, _HIGHEST_LEVEL), real(state, "sigma_max", 0.0, _HIGHEST_LEVEL)),
        ScaledScore(),
        VEInputs(),
    )


def _iddpm(state: dict[str, Any]) -> Preconditioning:
    inputs = IDDPMInputs(
        real(state, "C_1", 1e-6, 1.0), real(state, "C_2", 1e-6, 1.0), whole_number(state, "M", 2, 10_000)
    )
    # The highest of its levels is 20,291; its samplers in the release begin at 81.
    return KarrasVE(float(inputs.levels[-2]), min(float(inputs.levels[0]), 81.0)), Epsilon(), inputs


def _check_levels(wrapper: ForeignObject, inputs: Inputs) -> None:
    """iDDPM's noise levels are in its file as well; they must be the ones of its constants."""
    assert isinstance(inputs, IDDPMInputs)
    stored = wrapper.state["_buffers"].get("u")
    if (
        not isinstance(stored, Tensor)
        or stored.shape != inputs.levels.shape
        or not torch.allclose(stored.double(), inputs.levels, rtol=1e-3, atol=1e-6)
    ):
        raise UserError(
            "has an iDDPMPrecond whose table of noise levels is not the one of its constants C_1, C_2 and M."
        )


_PRECONDITIONINGS: Mapping[str, Callable[[dict[str, Any]], Preconditioning]] = {
    "EDMPrecond": _edm,
    "VPPrecond": _vp,
    "VEPrecond": _ve,
    "iDDPMPrecond": _iddpm,
}
