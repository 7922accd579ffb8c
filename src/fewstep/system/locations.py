"""What a text names that leads out of a recipe: an address, an id of the Hugging Face hub, or a
path on this machine.

A path is never taken for an id: what begins like a path, ends like a file or is there on this
machine is not asked of the hub, where anybody could have put something under that name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from fewstep.errors import UserError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
Hub = Literal["models", "data sets"]
_WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
# The hub's oldest data sets have no owner.
_IDS = {"models": re.compile(f"{_WORD}/{_WORD}"), "data sets": re.compile(f"{_WORD}(/{_WORD})?")}
_EXAMPLES = {"models": "google/ddpm-cifar10-32", "data sets": "uoft-cs/cifar10"}
# A dot alone says nothing: versions and names of networks have dots.
_SUFFIXES = (
    *(".zip", ".tar", ".tgz", ".gz", ".xz", ".zst", ".7z"),
    *(
        ".parquet",
        ".arrow",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".txt",
        ".md",
        ".yaml",
        ".yml",
        ".npy",
        ".npz",
        ".h5",
        ".lmdb",
    ),
    *(".safetensors", ".pt", ".pth", ".pkl", ".ckpt", ".bin", ".onnx"),
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
)


def is_address(text: str | Path) -> bool:
    """Whether a text is an address (``https://...``) and not a path."""
    return _ADDRESS.match(str(text)) is not None


def is_hub_id(text: str, hub: Hub) -> bool:
    """Whether a text can only be an id of the hub's ``models`` or ``data sets``.

    It has an id's form and no file's suffix, and nothing on this machine is called so.
    """
    return _IDS[hub].fullmatch(text) is not None and not text.lower().endswith(_SUFFIXES) and not os.path.lexists(text)


def folder_or_id(text: str, hub: Hub) -> str:
    """The absolute path of a folder that is there, or the text itself where it is an id of the hub.

    Raises ``UserError`` for a path at which there is no folder.
    """
    place = absolute(text)
    if os.path.isdir(place):
        return place
    if is_hub_id(text, hub):
        return text
    what = f"is neither a folder nor an id of the hub such as '{_EXAMPLES[hub]}'"
    raise UserError(f"{text}: {what}, and there is no folder {place}; check the path.")


def absolute(path: str) -> str:
    """The same place from any working directory. Links stay links.

    ``~`` is replaced by the home folder, and a relative path is one below the working directory.
    """
    if "\0" in path:
        return path
    parts = Path(os.path.expanduser(path)).parts
    if ".." not in parts:
        return os.path.abspath(os.path.join(*parts) if parts else ".")
    # What follows a link and "..": only the file system knows whose parent is meant.
    last = len(parts) - parts[::-1].index("..")
    return os.path.join(os.path.realpath(os.path.join(*parts[:last])), *parts[last:])


def same_place(one: str, other: str) -> bool:
    """Whether two paths lead to one file or folder, by links or not; where nothing is there,
    whether they are equal.
    """
    try:
        return absolute(one) == absolute(other) or os.path.samefile(one, other)
    except OSError:
        return False
