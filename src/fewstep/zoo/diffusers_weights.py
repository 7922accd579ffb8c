"""The weights of one network in a folder that diffusers or transformers saved: which files they
are, and their tensors.

Where they are looked for, the first that is there: the shards of an index; one file; the only
variant of either. Only safetensors are read. A shard's name comes from a file of others, so that it
must be a plain name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.errors import UserError
from fewstep.zoo.nvidia.machine import shown_foreign

CORRECT = "correct the file, or get it from its source again"

# Attention's layers had other names in the first releases of diffusers.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors")


@dataclass(frozen=True)
class WeightFiles:
    """The files of one network's tensors: a file, or an ``index`` and its shards.

    ``places``: for each tensor the shard that holds it, None without an index.
    """

    files: tuple[Path, ...]
    index: Path | None = None
    places: dict[str, str] | None = None

    @property
    def name(self) -> str:
        """The file that says what the weights are, for sentences."""
        return str(self.index or self.files[0])


def read_configuration(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ``UserError`` naming the file that holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is missing or not JSON; get the folder from its source again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no JSON object, as a configuration is; get the folder from its source again.")
    return content


def has_weights(inner: Path, stem: str, variant: str | None) -> bool:
    """Whether there are weights, or an index, of the name ``stem`` and of that variant; None: the
    usual ones.
    """
    return any((inner / name).is_file() for name in _names(stem, variant))


def find_weights(inner: Path, stem: str, variant: str | None, key: str) -> tuple[WeightFiles, tuple[str, ...]]:
    """The files of a variant, and what is to be said of the choice.

    ``stem``: what their names begin with. ``key``: by what a variant is chosen, for sentences.

    Raises ``UserError`` naming what is missing.
    """
    there = _variants(inner, stem)
    if has_weights(inner, stem, variant):
        return _of_variant(inner, stem, variant)
    if variant is not None:
        listed = ", ".join(there) or "none"
        raise UserError(
            f"{inner}: has no safetensors weights of the variant '{variant}' (variants there: {listed}); "
            f"set '{key}' to a variant that is there, or leave it out for the usual weights."
        )
    if len(there) > 1:
        raise UserError(
            f"{inner}: has its weights in the variants {', '.join(there)} only; set '{key}' to the variant that "
            "is meant."
        )
    if there:
        weights, remarks = _of_variant(inner, stem, there[0])
        return weights, (
            f"{inner}: has its weights in the variant '{there[0]}' only, which is taken and computed in float32.",
            *remarks,
        )
    what = "there is no such file"
    if any(path.suffix in (".bin", ".pt", ".ckpt") for path in inner.iterdir()):
        what = "there is no such file; pickled weights (.bin) are there and are not read, since a pickle is a program"
    raise UserError(
        f"{inner / _names(stem, None)[0]}: {what}; save the model with diffusers' save_pretrained, which writes "
        "safetensors."
    )


def _names(stem: str, variant: str | None) -> tuple[str, str]:
    """The names of a single file and of an index."""
    if variant is None:
        return f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    return f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json"


def _variants(inner: Path, stem: str) -> list[str]:
    """The variants of which there are weights or an index."""
    # A shard of a variant is no variant: "fp16-00001-of-00002".
    patterns = (
        re.compile(rf"{stem}\.((?!.*-\d+-of-\d+)[A-Za-z0-9_-]+)\.safetensors"),
        re.compile(rf"{stem}\.safetensors\.index\.([A-Za-z0-9_-]+)\.json"),
    )
    matched = (pattern.fullmatch(path.name) for path in inner.iterdir() for pattern in patterns)
    return sorted({match.group(1) for match in matched if match})


def _of_variant(inner: Path, stem: str, variant: str | None) -> tuple[WeightFiles, tuple[str, ...]]:
    whole, index = (inner / name for name in _names(stem, variant))
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


def read_weights(weights: WeightFiles, without: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors by name, in float32; each from where the index has it. ``without``: names of
    tensors that are no weights, which are passed over.

    Raises ``UserError`` for a file that cannot be read, a tensor that is elsewhere, and one of
    another than a floating type.
    """
    found: dict[str, Tensor] = {}
    for path in weights.files:
        tensors = _read(path)
        if weights.places is not None:
            named = {name for name, shard in weights.places.items() if shard == path.name}
            stray = min(named ^ tensors.keys(), default=None)
            if stray is not None:
                raise UserError(
                    f"{path}: tensor {shown_foreign(stray)} is not where {weights.index} places it; get the shards "
                    "and their index from one source."
                )
        for name, value in tensors.items():
            if name in without:
                continue
            if not value.is_floating_point():
                raise UserError(
                    f"{path}: tensor {shown_foreign(name)} is {value.dtype}; only weights of a floating type are "
                    "read, take those that were not quantised."
                )
            found[name] = value.float()
    return found


def current_name(name: str) -> str:
    """A tensor's name as diffusers writes it today."""
    layer, _, kind = name.rpartition(".")
    head, _, last = layer.rpartition(".")
    return f"{head}.{_OLD_NAMES[last]}.{kind}" if ".attentions." in f".{name}" and last in _OLD_NAMES else name


def _read(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is not a readable safetensors file ({error}); it may have been cut short.") from error
