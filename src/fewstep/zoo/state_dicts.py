"""State dicts of other programs in one file: tensors by name and nothing else.

A file of torch's (``.bin``, ``.pt``, ``.pth``) is read by ``torch.load(weights_only=True)``, which
builds nothing but tensors and plain containers, and refuses all else before it is built. Values are
mapped and not read where the file allows it.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.system.files import opened_tensors, readable
from fewstep.zoo.nvidia.machine import shown_foreign

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def is_torch_file(path: Path) -> bool:
    """Whether a file is one of torch's, by its first bytes: a zip, as torch has written since 1.6,
    or a pickle.
    """
    if not path.is_file():
        return False
    with readable(path), open(path, "rb") as stream:
        begin = stream.read(9)
    # The header of safetensors begins after its length, of which the first byte may be a pickle's.
    return begin[8:] != b"{" and begin.startswith((_ZIP, _PICKLE))


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch's by name, of a floating type each.

    Raises ``UserError`` naming the file for one that is no such state dict.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path.")
    try:
        with warnings.catch_warnings():
            # Of pickles that it may not understand torch warns before it refuses them.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        # Of what torch says the first sentence: the next ones advise to run the file's code.
        said = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise UserError(
            f"{path}: is not a state dict that can be read without running code ({said}); "
            "get its weights as safetensors, or download it again."
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise UserError(f"{path}: is not a state dict of tensors; the release's files are.")
    return _floating(path, content)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, a safetensors file or one of torch's, in float32.

    Raises ``UserError`` naming the file for one that holds something else, and for an adapter.
    """
    if is_torch_file(path):
        found = read_torch_file(path)
    else:
        with opened_tensors(path) as stream:
            found = _floating(path, {name: stream.get_tensor(name) for name in sorted(stream.keys())})
    part = next((name for name in found if "lora" in name.lower()), None)
    if part is not None:
        raise UserError(
            f"{path}: holds {shown_foreign(part)}, a part of an adapter and not of a whole network; give it by --lora."
        )
    return {name: value.float() for name, value in found.items()}


def _floating(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    other = next((name for name, value in tensors.items() if not value.is_floating_point()), None)
    if other is not None:
        raise UserError(
            f"{path}: tensor {shown_foreign(other)} is {tensors[other].dtype}; only weights of a floating type are "
            "read, as the release's are."
        )
    return dict(tensors)


def _can_be_mapped(path: Path) -> bool:
    """Whether torch can map the file: a zip, and no pickle."""
    with readable(path), open(path, "rb") as stream:
        return stream.read(4) == _ZIP
