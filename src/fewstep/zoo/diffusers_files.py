"""Which files of a diffusers folder are a model: its network's configuration and weights, and its scheduler.

Weights are one safetensors file, or several with an index of their tensors; a variant (``fp16``, ``ema``) has its name before the last ending. A pipeline keeps its network in ``unet``, a
checkpoint of diffusers' training scripts keeps the average of the weights beside it in ``unet_ema`` and the scheduler in the folder above. Nothing here reads tensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.locations import folder_or_id

STEM = "diffusion_pytorch_model"
PLAIN = f"{STEM}.safetensors"
_SUBFOLDERS = ("unet", "unet_ema")
_SCHEDULER = "scheduler_config.json"
_NAME = re.compile(rf"{STEM}(?:\.(?P<variant>[A-Za-z0-9_]+))?(?P<part>-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True)
class Choice:
    """What of a folder is meant: the sub-folder of the network, and the variant of its weights; None for what the folder itself says."""

    subfolder: str | None = None
    variant: str | None = None


@dataclass(frozen=True)
class Files:
    """A model's files. ``index``: the file that says which of several ``weights`` holds which tensor, None for a single file."""

    config: Path
    scheduler: Path
    weights: tuple[Path, ...]
    index: Path | None = None


def find(source: str | Path, revision: str | None = None, choice: Choice | None = None) -> Files:
    """The files of a pipeline's folder, or of an id of the hub. Where there is none, the path at which it should be.

    Raises ``UserError`` where the folder holds several models and the choice names none of them, and for weights in parts that do not go together.
    """
    choice = choice or Choice()
    folder = _folder(source, revision, f"*{PLAIN}")
    inner = _inner(folder, choice)
    found = _weights(inner, choice)
    if found is None and not os.path.isabs(folder_or_id(str(source), "models")):
        # Variants and parts are fetched only where the plain file is not what is wanted.
        folder = _folder(source, revision, f"*{STEM}*.safetensors")
        inner = _inner(folder, choice)
        found = _weights(inner, choice)
    weights, index = found or ((inner / _plain(choice),), None)
    return Files(inner / "config.json", _scheduler(folder, inner), weights, index)


def _folder(source: str | Path, revision: str | None, weights: str) -> Path:
    """A local folder, or the hub's snapshot."""
    found = folder_or_id(str(source), "models")
    if os.path.isabs(found):
        return Path(found)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"{source}: fetching from the hub needs diffusers: pip install 'fewstep[diffusers]'.") from error
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=["*.json", weights]))
    # The hub's own exceptions derive from these.
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: could not be fetched from the hub ({str(error).splitlines()[0]}); check the id and the revision, or give a local folder.") from error


def _inner(folder: Path, choice: Choice) -> Path:
    """The folder of the network's own files."""
    if choice.subfolder is not None:
        if not (folder / choice.subfolder).is_dir():
            raise UserError(f"{folder}: has no folder '{choice.subfolder}'; correct 'teacher.subfolder', or leave it out.")
        return folder / choice.subfolder
    there = [folder / name for name in _SUBFOLDERS if (folder / name).is_dir()]
    # A pipeline's index names 'unet' as its network. A training checkpoint has no index.
    if len(there) == 2 and not (folder / "model_index.json").is_file():
        raise UserError(f"{folder}: holds the trained weights (unet) and their average (unet_ema); set 'teacher.subfolder' to that which is meant, usually unet_ema.")
    return there[0] if there else folder


def _scheduler(folder: Path, inner: Path) -> Path:
    """The scheduler's configuration; the first of its usual places where there is none."""
    places = [folder / "scheduler" / _SCHEDULER, folder / _SCHEDULER]
    # That of the run whose checkpoint it is.
    above = [folder.parent, folder.parent.parent] if folder.name in _SUBFOLDERS else [folder.parent] if inner != folder else []
    places += [place / "scheduler" / _SCHEDULER for place in above]
    return next((place for place in places if place.is_file()), places[0])


def _plain(choice: Choice) -> str:
    return PLAIN if choice.variant is None else f"{STEM}.{choice.variant}.safetensors"


def _weights(inner: Path, choice: Choice) -> tuple[tuple[Path, ...], Path | None] | None:
    """The files of the weights and their index; None where there are none.

    Without a choice those without a variant's name come first, and then those of the only variant.
    """
    names = [match for path in sorted(inner.glob("*.safetensors")) if (match := _NAME.fullmatch(path.name))]
    variants = {match["variant"] for match in names}
    variant = choice.variant
    if variant is None and variants and None not in variants:
        if len(variants) > 1:
            listed = ", ".join(sorted(variants))
            raise UserError(f"{inner}: holds the variants {listed} of its weights; set 'teacher.variant' to that which is meant.")
        (variant,) = variants
    ours = [match for match in names if match["variant"] == variant]
    single = next((match.string for match in ours if match["part"] is None), None)
    if single is not None:
        return (inner / single,), None
    index = _index(inner, variant)
    if index is not None:
        return tuple(inner / name for name in sorted(set(read_index(index).values()))), index
    if ours:
        raise UserError(f"{inner}: holds parts of its weights ({ours[0].string}) but no index of them ({_index_names(variant)[0]}); get the folder from its source again.")
    return None


def _index_names(variant: str | None) -> tuple[str, ...]:
    """Newer and older versions put the variant's name at different places."""
    return (f"{PLAIN}.index.json",) if variant is None else (f"{PLAIN}.index.{variant}.json", f"{STEM}.{variant}.safetensors.index.json")


def _index(inner: Path, variant: str | None) -> Path | None:
    return next((inner / name for name in _index_names(variant) if (inner / name).is_file()), None)


def read_index(path: Path) -> Mapping[str, str]:
    """File by tensor. Raises ``UserError`` for a file that is no index, and for names that lead out of the folder."""
    entries = read_json(path).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path}: has no 'weight_map' of tensors and files; get the folder from its source again.")
    for tensor, name in entries.items():
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise UserError(f"{path}: says of the tensor '{tensor}' that it is in {json.dumps(name):.80}, which is no file of weights of this folder; get the folder from its source again.")
        if not (path.parent / name).is_file():
            raise UserError(f"{path.parent / name}: there is no such file, though {path.name} names it; get the folder from its source again.")
    return entries


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is missing or not JSON; the folder must hold a pipeline that diffusers saved, a UNet2DModel and its scheduler.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no configuration; get the folder from its source again.")
    return content
