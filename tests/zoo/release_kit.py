"""Files as NVIDIA's training code writes them, made from our own networks: the same names,
structures and opcodes, and an empty text where theirs has the source of its classes.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from fewstep.denoisers.inputs import IDDPMInputs
from fewstep.networks import build

PLAIN = (str, int, float, bool, list, tuple, dict, type(None), np.generic)
NETWORKS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "kind": "song-unet",
        "img_resolution": 8,
        "in_channels": 3,
        "model_channels": 4,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [4],
        "augment_dim": 9,
    },
    "DhariwalUNet": {
        "kind": "dhariwal-unet",
        "img_resolution": 8,
        "in_channels": 3,
        "model_channels": 4,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [],
    },
}
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "EDMPrecond": {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
}


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
    raise AssertionError("the test's files are written, and never read, by Python's own pickle")


class _Writer(pickle.Pickler):
    """Writes a module as ``torch_utils.persistence`` does, but for containers, which go as they
    are.
    """

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, nn.Module) or isinstance(value, (nn.ModuleDict, nn.ModuleList)):
            return NotImplemented
        state = {
            name: item for name, item in vars(value).items() if name in vars(nn.Module()) or isinstance(item, PLAIN)
        }
        named = {
            "type": "class",
            "version": 6,
            "module_src": "",
            "class_name": getattr(value, "released_name", type(value).__name__),
            "state": state,
        }
        return _reconstruct_persistent_obj, (named,)


@contextlib.contextmanager
def _their_module() -> Iterator[None]:
    """While it is open, the function above is found under the name that their files use."""
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    own = _reconstruct_persistent_obj.__module__
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = types.ModuleType("torch_utils"), module
    try:
        yield
    finally:
        _reconstruct_persistent_obj.__module__ = own
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


def written(value: Any, protocol: int = 4) -> bytes:
    """The pickle of a value that may hold modules."""
    stream = io.BytesIO()
    with _their_module():
        _Writer(stream, protocol).dump(value)
    return stream.getvalue()


def random_network(name: str, classes: int = 0, doubled: bool = False) -> nn.Module:
    """One of ``NETWORKS`` with weights of which every one matters; ``doubled``: with twice the
    channels out.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build({**NETWORKS[name], "classes": classes, "out_channels": 6 if doubled else 3})
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.5 if parameter.ndim == 1 else 0.8 / parameter[0].numel() ** 0.5)
    return network.eval().requires_grad_(False)


def wrapped(wrapper: str, name: str, network: nn.Module, **changes: Any) -> nn.Module:
    """A module with the attributes of a preconditioning around a network with the attributes of the
    release's.
    """
    arguments = {key: value for key, value in NETWORKS[name].items() if key != "kind"}
    arguments["label_dim"] = network.classes
    network.released_name = name  # type: ignore[assignment]
    arguments |= {"out_channels": 6 if wrapper == "iDDPMPrecond" else 3, "dropout": np.float64(0.13)}
    network._init_args = ()  # type: ignore[assignment]
    network._init_kwargs = arguments  # type: ignore[assignment]
    network.__dict__.pop("description", None)
    network.__dict__.pop("_writers", None)
    around = nn.Module()
    around.released_name = wrapper  # type: ignore[assignment]
    for key, value in {**ATTRIBUTES[wrapper], **changes}.items():
        setattr(around, key, value)
    if wrapper == "iDDPMPrecond":
        around.register_buffer("u", IDDPMInputs().levels.float())
    around.model = network
    return around


def release(
    wrapper: str = "EDMPrecond", name: str = "SongUNet", classes: int = 0, protocol: int = 4, **changes: Any
) -> bytes:
    """A whole file: a network with random weights, its preconditioning, and the settings of its
    data.
    """
    network = random_network(name, classes, wrapper == "iDDPMPrecond")
    return written(
        {
            "ema": wrapped(wrapper, name, network, **changes),
            "dataset_kwargs": {"path": "data.zip", "use_labels": bool(classes)},
        },
        protocol,
    )


# What is done while a file is read


class Watch:
    """Records what Python's audit hooks report while it is open: imports, code, processes, and
    files other than the one that is read.
    """

    _current: Watch | None = None
    _installed = False

    def __init__(self, allowed: str = ""):
        self.allowed = allowed
        self.events: list[str] = []

    def __enter__(self) -> Watch:
        if not Watch._installed:
            sys.addaudithook(_heard)
            Watch._installed = True
        Watch._current = self
        return self

    def __exit__(self, *_: object) -> None:
        Watch._current = None


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    watch = Watch._current
    if watch is None:
        return
    family = event.partition(".")[0]
    if (event == "open" and str(arguments[0]) != watch.allowed) or family in {
        "import",
        "exec",
        "compile",
        "os",
        "subprocess",
        "socket",
        "ctypes",
        "pickle",
        "shutil",
        "code",
    }:
        watch.events.append(f"{event} {arguments[:1]!r}")


# Opcodes by hand, for files that no one would write.


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + pickle.STACK_GLOBAL


def program(*parts: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + b"".join(parts) + pickle.STOP
