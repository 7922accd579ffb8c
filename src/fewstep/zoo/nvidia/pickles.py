"""NVIDIA's network pickles as data: records, plain values and tensors; nothing in the file is run,
imported or called.

Such a pickle holds, for each module, the source text of its class, to be executed on loading
(``torch_utils.persistence``), and the module's state. Here the source is dropped and the state
kept: a ``ForeignObject`` with the class' name and a dictionary of what the module's attributes
were, in which ``_parameters``, ``_buffers`` and ``_modules`` are those of ``torch.nn.Module``. What
the names mean is the caller's business (``nvidia``). The table below is all that a file may name.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, BinaryIO, cast

from fewstep.errors import UserError
from fewstep.zoo.nvidia.machine import Builder, ForeignObject, Machine, shown_foreign, texts
from fewstep.zoo.nvidia.storages import Storages, parameter

_PERSISTENCE = 6
_SCALARS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "b1": "?"}
_MODULES = ("ModuleDict", "ModuleList", "Sequential")


def read_pickle(path: Path) -> Any:
    """The value in the file.

    Raises ``UserError`` naming the file, and what in it no network needs, claims too much, or is
    damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path.")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path}: is empty; get the file from its source again.")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # A map has read, readline and tell, which is all that is used of a stream.
            value = Machine(_builders(Storages(size))).run(cast(BinaryIO, content))
            behind = size - content.tell()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if behind:
        raise UserError(f"{path}: has {behind} bytes behind the pickle's end; get the file from its source again.")
    return value


def _builders(storages: Storages) -> dict[str, Builder]:
    """All that a file may name, and what becomes of it."""
    return {
        "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
        "torch._utils._rebuild_tensor_v2": storages.tensor,
        "torch._utils._rebuild_parameter": parameter,
        "torch.storage._load_from_bytes": storages.storage,
        "collections.OrderedDict": _empty_dictionary,
        "dnnlib.util.EasyDict": _empty_dictionary,
        "builtins.set": _set,
        "numpy.dtype": _dtype,
        "numpy.core.multiarray.scalar": _scalar,
        "numpy._core.multiarray.scalar": _scalar,
        **{f"torch.nn.modules.container.{name}": _container(name) for name in _MODULES},
    }


def _persistent(arguments: tuple[Any, ...]) -> ForeignObject:
    """A module from its description: type, version, source (dropped), class name, state."""
    about = arguments[0] if len(arguments) == 1 else None
    if (
        type(about) is not dict
        or about.get("type") != "class"
        or type(about.get("class_name")) is not str
        or type(about.get("state")) is not dict
    ):
        raise UserError("has a module whose description lacks its class or its state.")
    if about.get("version") != _PERSISTENCE:
        raise UserError(
            f"was written by version {shown_foreign(about.get('version'))} of torch_utils.persistence; only version "
            f"{_PERSISTENCE}, that of EDM's release, is known."
        )
    return ForeignObject(about["class_name"], (), about["state"])


def _empty_dictionary(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise UserError("makes a dictionary from arguments, where networks make an empty one.")
    return {}


def _set(arguments: tuple[Any, ...]) -> set[str]:
    if len(arguments) != 1 or type(arguments[0]) is not list:
        raise UserError("makes a set from something other than a list.")
    return texts(arguments[0])


def _dtype(arguments: tuple[Any, ...]) -> ForeignObject:
    if not arguments or type(arguments[0]) is not str or arguments[0] not in _SCALARS:
        raise UserError(f"has a NumPy scalar of a type other than {', '.join(_SCALARS)}.")
    return ForeignObject("numpy.dtype", (arguments[0],))


def _scalar(arguments: tuple[Any, ...]) -> float | int:
    """A NumPy scalar from its type and bytes; the type's state is (3, byte order, ...)."""
    kind, content = arguments if len(arguments) == 2 else (None, None)
    if not isinstance(kind, ForeignObject) or kind.name != "numpy.dtype" or type(content) is not bytes:
        raise UserError("has a NumPy scalar that is not made of a type and bytes.")
    order = kind.state[1] if type(kind.state) is tuple and len(kind.state) > 1 else None
    form = _SCALARS[kind.arguments[0]]
    if type(order) is not str or order not in ("<", ">", "|") or len(content) != struct.calcsize(f"<{form}"):
        raise UserError("has a NumPy scalar whose byte order or number of bytes is wrong.")
    return struct.unpack(f"{'<' if order == '|' else order}{form}", content)[0]


def _container(name: str) -> Builder:
    def make(arguments: tuple[Any, ...]) -> ForeignObject:
        if arguments:
            raise UserError(f"makes a {name} from arguments, where networks make an empty one.")
        return ForeignObject(name)

    return make
