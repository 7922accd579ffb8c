"""A checkpoint as a folder of shards, read: any number of processes reads what any other number of
them wrote (``sharded``).

    step-00000500/shard-00001-model-00001-of-00001.safetensors, shard-00002-..., manifest.json

Shards are safetensors (DCP's storage for the Hugging Face format): its usual format keeps a pickle
beside them, which we neither write nor read. ``manifest.json`` has the run's state and each file's
length and SHA-256, and a checksum of its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from fewstep.errors import UserError
from fewstep.system import distributed
from fewstep.training.saving.checkpoint import Checkpoint, place_of

FORMAT = 1
MANIFEST = "manifest.json"
_BLOCK = 2**22
# Shards as DCP names them, the manifest, and one that was begun.
_PART = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors|manifest\.json|\.manifest\.json\.\d+-\d+(-\d+)?\.aside")


class FolderCheckpoint(Checkpoint):
    """A folder, its manifest read; every file's checksum is compared, by one process each.

    Raises ``UserError`` naming what is missing, damaged or no checkpoint.
    """

    def __init__(self, path: Path):
        self._path = path
        manifest = read_manifest(path)
        self.state = manifest["state"]
        place_of(path, self.state)
        for name in sorted(manifest["files"])[distributed.rank() :: distributed.size()]:
            check_shard(path / name, manifest["files"][name])

    def read(self, prefix: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.distributed.checkpoint import HuggingFaceStorageReader, load

        stored = {name: kind for name, kind in self._stored.items() if name.startswith(prefix)}
        slots = {}
        for name, (shape, dtype) in stored.items():
            short = name[len(prefix) :]
            same = short in like and tuple(like[short].shape) == shape
            slots[name] = (
                torch.empty_like(like[short], dtype=dtype, requires_grad=False)
                if same
                else torch.empty(shape, dtype=dtype)
            )
        if slots:
            alone_on_purpose()
            load(slots, storage_reader=HuggingFaceStorageReader(str(self._path)), no_dist=not dist.is_initialized())
        return {name[len(prefix) :]: value for name, value in slots.items()}

    @functools.cached_property
    def _stored(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and types by name, in one order for all processes.

        Raises ``UserError`` for shards that carry a right checksum and are none of DCP's.
        """
        from safetensors import SafetensorError
        from torch.distributed.checkpoint import HuggingFaceStorageReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        try:
            found = HuggingFaceStorageReader(str(self._path)).read_metadata().state_dict_metadata
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self._path}: its shards cannot be read ({error}); restore the folder from a copy, or delete it."
            ) from error
        tensors = {name: each for name, each in sorted(found.items()) if isinstance(each, TensorStorageMetadata)}
        return {name: (tuple(each.size), each.properties.dtype) for name, each in tensors.items()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards; raises ``UserError`` when it is missing, altered, names
    files outside, or does not name a shard that is there (DCP would read it).
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file, and without it the folder is no checkpoint; restore it from a "
            "copy, or delete the folder."
        )
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop("digest")
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']}, this version reads {FORMAT}")
        if not isinstance(content["state"], dict):
            raise ValueError("its state is no object")
        inside = all(
            Path(name).name == name and set(mark) == {"bytes", "sha256"} for name, mark in content["files"].items()
        )
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); restore it from a copy, or delete the folder."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: is not a readable manifest of a checkpoint ({error}); restore it from a copy, or "
            "delete the folder."
        ) from None
    if manifest_digest(content) != digest or not inside:
        raise UserError(
            f"{path}: its content does not match its checksum; the file is damaged, restore it from a copy."
        )
    strays = sorted(each.name for each in folder.glob("*.safetensors") if each.name not in content["files"])
    if strays:
        raise UserError(
            f"{folder / strays[0]}: is no file of this checkpoint, whose manifest does not name it; move it away."
        )
    return dict(content)


def check_shard(path: Path, mark: Mapping[str, Any], read: bool = True) -> None:
    """Raises ``UserError`` unless the file is there and as long as its manifest says, and, when it
    is to be ``read``, has that checksum.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file, and its checkpoint needs it; restore it from a copy.")
    try:
        size = path.stat().st_size
        found = fingerprint(path) if read and size == mark["bytes"] else {"bytes": size, "sha256": mark["sha256"]}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); restore it from a copy.") from error
    if found != dict(mark):
        raise UserError(
            f"{path}: is not the file that its checkpoint was written with; it is damaged, restore it from a copy."
        )


def is_folder_of_shards(path: Path) -> bool:
    """Whether a path is a folder that holds files of the names that ``ShardWriter`` gives, and
    nothing else.
    """
    return (
        path.is_dir()
        and not path.is_symlink()
        and all(each.is_file() and is_part(each.name) for each in path.iterdir())
    )


def is_part(name: str) -> bool:
    """Whether a name is one that ``ShardWriter`` gives to a file."""
    return _PART.fullmatch(name) is not None


def fingerprint(path: Path) -> dict[str, Any]:
    """A file's length in bytes and SHA-256, as a manifest holds them."""
    sha = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            sha.update(block)
        return {"bytes": os.fstat(stream.fileno()).st_size, "sha256": sha.hexdigest()}


def manifest_digest(content: Mapping[str, Any]) -> str:
    """The checksum of a manifest's content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def alone_on_purpose() -> None:
    """Leaves out DCP's remark that a process without a group works for itself; for good, since it
    is made in a thread.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
