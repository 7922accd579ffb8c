"""The files of a diffusers pipeline: which of them hold the network, and which says what the
network emits.

- the network's folder: where it is looked for, the first that is there ``subfolder`` if it is
  given; ``unet``; ``unet_ema``; the folder itself.
- its configuration: where it is looked for, the first that is there ``config.json`` in the
  network's folder.
- its weights: where it is looked for, the first that is there the shards of an index; one file; the
  only variant of either.
- the scheduler: where it is looked for, the first that is there
  ``scheduler/scheduler_config.json``; ``scheduler_config.json``.

Only safetensors are read. A shard's name comes from a file of others, so that it must be a plain
name.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.system.locations import folder_or_id
from fewstep.zoo.nvidia.machine import shown_foreign

NETWORK, EMA = "unet", "unet_ema"
"""The usual sub-folder of the network, and that of its average in older repositories."""

CORRECT = "correct the file, or get it from its source again"

_STEM = "diffusion_pytorch_model"
_INDEX = f"{_STEM}.safetensors.index"
# A shard of a variant is no variant: "fp16-00001-of-00002".
_VARIANT = re.compile(rf"{_STEM}\.((?!.*-\d+-of-\d+)[A-Za-z0-9_-]+)\.safetensors")
_INDEX_VARIANT = re.compile(rf"{re.escape(_INDEX)}\.([A-Za-z0-9_-]+)\.json")
_SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors")
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class WeightFiles:
    """The files of one network's tensors: a file, or an ``index`` and its shards.

    ``places``: for each tensor the shard that holds it, None without an index.
    """

    files: tuple[Path, ...]
    index: Path | None = None
    places: dict[str, str] | None = None


@dataclass(frozen=True)
class Pipeline:
    """The files that are read, and ``remarks``: sentences on what was chosen among several."""

    config: Path
    weights: WeightFiles
    scheduler: Path
    remarks: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, Path]:
        """All of them, by names that do not say where the folder is."""
        index = () if self.weights.index is None else (self.weights.index,)
        listed = {path.name: path for path in (self.config, *self.weights.files, *index)}
        return {**listed, "scheduler": self.scheduler}


def find_pipeline(
    source: str | Path, revision: str | None = None, variant: str | None = None, subfolder: str | None = None
) -> Pipeline:
    """The files in a local folder, or under an id of the hub, from where what is read alone is
    fetched.

    Raises ``UserError`` naming what is missing.
    """
    root = _root(str(source), revision, variant, subfolder)
    inner, chosen = _network_folder(root, subfolder)
    config, scheduler = inner / "config.json", _scheduler(root)
    if not config.is_file():
        raise UserError(
            f"{config}: is missing; the folder must hold a pipeline that diffusers saved, or 'teacher.path' "
            "must name another."
        )
    weights, remarks = _weights(inner, variant)
    return Pipeline(config, weights, scheduler, (*chosen, *remarks))


def read_configuration(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ``UserError`` naming the file that holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is missing or not JSON; get the folder from its source again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no JSON object, as a configuration is; get the folder from its source again.")
    return content


def _root(source: str, revision: str | None, variant: str | None, subfolder: str | None) -> Path:
    """A local folder, or the hub's snapshot."""
    found = folder_or_id(source, "models")
    if os.path.isabs(found):
        return Path(found)
    root = _snapshot(source, revision, "*.json")
    # What follows is of the same commit, also if another becomes the newest meanwhile.
    revision = root.name if _COMMIT.fullmatch(root.name) else revision
    inner, _ = _network_folder(root, subfolder)
    prefix = f"{'' if inner == root else inner.relative_to(root).as_posix() + '/'}{_STEM}"
    if variant is not None:
        return _snapshot(source, revision, f"{prefix}*.{variant}*.safetensors")
    root = _snapshot(source, revision, f"{prefix}.safetensors", f"{prefix}-?????-of-?????.safetensors")
    return root if _has_weights(inner, None) else _snapshot(source, revision, f"{prefix}*.safetensors")


def _snapshot(source: str, revision: str | None, *patterns: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"{source}: fetching from the hub needs diffusers: pip install 'fewstep[diffusers]'."
        ) from error
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    # The hub's own exceptions derive from these.
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{source}: could not be fetched from the hub ({reason}); check the id and the revision, or "
            "give a local folder."
        ) from error


def _network_folder(root: Path, subfolder: str | None) -> tuple[Path, tuple[str, ...]]:
    """The folder of ``config.json``, and what is to be said of the choice."""
    if subfolder is not None:
        inner = root / subfolder
        if not inner.is_dir():
            there = (
                ", ".join(sorted(path.name for path in root.iterdir() if (path / "config.json").is_file()))
                or "no other"
            )
            raise UserError(
                f"{inner}: there is no such folder; set 'teacher.subfolder' to that of the network ({there} "
                "is there), or leave it out."
            )
        return inner, ()
    usual, average = root / NETWORK, root / EMA
    if usual.is_dir():
        said = (
            f"{root}: the network of '{NETWORK}' is taken; its average is in '{EMA}', which 'teacher.subfolder: "
            f"{EMA}' takes."
        )
        return usual, (said,) if average.is_dir() else ()
    if average.is_dir():
        return average, (f"{root}: has no '{NETWORK}'; the network of '{EMA}', an average over training, is taken.",)
    return root, ()


def _scheduler(root: Path) -> Path:
    places = (root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json")
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise UserError(
            f"{root}: has neither scheduler/scheduler_config.json nor scheduler_config.json, which says "
            "what the network emits; "
            "give the whole pipeline's folder, or add the scheduler that the network was trained with."
        )
    return found


def _names(variant: str | None) -> tuple[str, str]:
    """The names of a single file and of an index."""
    if variant is None:
        return f"{_STEM}.safetensors", f"{_INDEX}.json"
    return f"{_STEM}.{variant}.safetensors", f"{_INDEX}.{variant}.json"


def _has_weights(inner: Path, variant: str | None) -> bool:
    return any((inner / name).is_file() for name in _names(variant))


def _variants(inner: Path) -> list[str]:
    """The variants of which there are weights or an index."""
    matched = (pattern.fullmatch(path.name) for path in inner.iterdir() for pattern in (_VARIANT, _INDEX_VARIANT))
    return sorted({match.group(1) for match in matched if match})


def _weights(inner: Path, variant: str | None) -> tuple[WeightFiles, tuple[str, ...]]:
    """The files of a variant, and what is to be said of the choice."""
    there = _variants(inner)
    if _has_weights(inner, variant):
        return _of_variant(inner, variant)
    if variant is not None:
        listed = ", ".join(there) or "none"
        raise UserError(
            f"{inner}: has no safetensors weights of the variant '{variant}' (variants there: {listed}); "
            "set 'teacher.variant' to a variant that is there, or leave it out for the usual weights."
        )
    if len(there) > 1:
        raise UserError(
            f"{inner}: has its weights in the variants {', '.join(there)} only; set 'teacher.variant' to "
            "the variant that is meant."
        )
    if there:
        weights, remarks = _of_variant(inner, there[0])
        return weights, (
            f"{inner}: has its weights in the variant '{there[0]}' only, which is taken and computed in float32.",
            *remarks,
        )
    what = "there is no such file"
    if any(path.suffix in (".bin", ".pt", ".ckpt") for path in inner.iterdir()):
        what = "there is no such file; pickled weights (.bin) are there and are not read, since a pickle is a program"
    raise UserError(
        f"{inner / _names(None)[0]}: {what}; save the model with diffusers' save_pretrained, which writes safetensors."
    )


def _of_variant(inner: Path, variant: str | None) -> tuple[WeightFiles, tuple[str, ...]]:
    whole, index = (inner / name for name in _names(variant))
    if not index.is_file():
        return WeightFiles((whole,)), ()
    # As diffusers does.
    said = f"{inner}: has both {whole.name} and {index.name}; the shards of the index are taken."
    return _sharded(index), (said,) if whole.is_file() else ()


def _sharded(index: Path) -> WeightFiles:
    """The shards that an index names."""
    places = read_configuration(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: has no 'weight_map' from tensors to files; {CORRECT}.")
    for name, shard in places.items():
        if not isinstance(shard, str) or _SHARD.fullmatch(shard) is None:
            raise UserError(
                f"{index}: places tensor {shown_foreign(name)} in {shown_foreign(shard)}, which is no name of a "
                f"safetensors file in the same folder; {CORRECT}."
            )
    files = tuple(index.parent / shard for shard in sorted(set(places.values())))
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise UserError(
            f"{missing}: there is no such file, which {index.name} names; get the missing shard from its source."
        )
    return WeightFiles(files, index, places)
