"""The files of a text-to-image pipeline that diffusers saved: what ``model_index.json`` says is in
the folder, and where each part of it lies.

A class that a file names is looked up in a table and never imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.system.locations import folder_or_id
from fewstep.zoo.diffusers_folders import snapshot, snapshot_commit
from fewstep.zoo.diffusers_weights import CORRECT, WeightFiles, find_weights, has_weights, read_configuration
from fewstep.zoo.nvidia.machine import shown_foreign
from fewstep.zoo.pipelines.encoders.tokens import TOKENIZER_FILES
from fewstep.zoo.pipelines.pipeline_kinds import PipelineKind, pipeline_kind, setting_for_empty

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"

_TOKENIZER_FILES = (*TOKENIZER_FILES, "spiece.model", "tokenizer.model", "chat_template.jinja")


@dataclass(frozen=True)
class Found:
    """A pipeline's files: the folder ``root``, the ``weights`` of each part, and ``remarks``:
    sentences on what was chosen among several.
    """

    root: Path
    kind: PipelineKind
    index: Mapping[str, Any]
    weights: Mapping[str, WeightFiles]
    remarks: tuple[str, ...] = field(default=())

    @property
    def class_name(self) -> str:
        """The class of the pipeline."""
        return str(self.index["_class_name"])

    def config(self, part: str) -> Path:
        """The configuration of a part."""
        return self.root / part / "config.json"

    @property
    def files(self) -> dict[str, Path]:
        """All that is read, by names that do not say where the folder is."""
        listed = [self.root / INDEX, self.root / SCHEDULER]
        for part, weights in self.weights.items():
            listed += [self.config(part), *weights.files, *(() if weights.index is None else (weights.index,))]
        for name in self.tokenizers:
            listed += [path for each in _TOKENIZER_FILES if (path := self.root / name / each).is_file()]
        return {path.relative_to(self.root).as_posix(): path for path in listed}

    @property
    def beside_the_network(self) -> dict[str, Path]:
        """The files of all parts but network and scheduler, by the names that they have in a folder
        without variants. Shards keep their names, since their index names them.
        """
        found: dict[str, Path] = {}
        for part, weights in self.weights.items():
            if part == self.kind.network:
                continue
            stem = self.kind.stem(part)
            found[f"{part}/config.json"] = self.config(part)
            if weights.index is None:
                found[f"{part}/{stem}.safetensors"] = weights.files[0]
            else:
                found[f"{part}/{stem}.safetensors.index.json"] = weights.index
                found |= {f"{part}/{path.name}": path for path in weights.files}
        return found | {name: path for name, path in self.files.items() if name.startswith(self._of_tokenizers)}

    @property
    def _of_tokenizers(self) -> tuple[str, ...]:
        return tuple(f"{name}/" for name in self.tokenizers)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The tokenizers that are there."""
        return tuple(name for name in self.kind.tokenizers if _is_there(self.index, name))


def find(source: str | Path, revision: str | None, variant: str | None) -> Found:
    """The files in a local folder, or under an id of the hub, from where what is read alone is
    fetched.

    Raises ``UserError`` naming what is missing, and the class of a pipeline that is not read.
    """
    local = folder_or_id(str(source), "models")
    texts = ("*.json", "*/merges.txt", "*/*.model", "*/*.jinja")
    root = Path(local) if os.path.isabs(local) else snapshot(str(source), revision, *texts)
    index = _index(root)
    kind = pipeline_kind(index.get("_class_name"), root / INDEX)
    wanted = [part for part in (*kind.parts, *kind.tokenizers) if part not in kind.optional or _is_there(index, part)]
    for part in wanted:
        _check_part(index, part, kind, root)
    parts = [part for part in wanted if part in kind.parts]
    if not os.path.isabs(local):
        root = _fetched(str(source), snapshot_commit(root) or revision, variant, root, kind, parts)
    if not (root / SCHEDULER).is_file():
        raise UserError(
            f"{root / SCHEDULER}: is missing, and says what the network emits; add the scheduler that the network was "
            "trained with."
        )
    weights, remarks = {}, list(_left_out(index, root))
    stems = {part: str(kind.stem(part)) for part in parts}
    chosen = {part: _variant_of(root / part, stems[part], variant) for part in parts}
    if variant is not None and variant not in chosen.values():
        # Of none of the parts: the sentence says which there are.
        find_weights(root / kind.network, stems[kind.network], variant, "variant")
    for part in parts:
        weights[part], said = find_weights(root / part, stems[part], chosen[part], "variant")
        remarks += said
        if variant is not None and chosen[part] is None:
            remarks.append(f"{root / part}: has no weights of the variant '{variant}'; its usual ones are taken.")
    return Found(root, kind, index, weights, tuple(remarks))


def index_of(found: Found, scheduler: str) -> dict[str, Any]:
    """The index of the same pipeline with a scheduler of the class ``scheduler``.

    It names classes that are read here, and of libraries that the files do not choose.
    """
    import diffusers

    kind = found.kind
    there = [*found.weights, *found.tokenizers]
    classes = {**{part: found.index[part][1] for part in there}, "scheduler": scheduler}
    missing = [part for part in (*kind.parts, *kind.tokenizers) if part not in there]
    return {
        "_class_name": found.class_name,
        "_diffusers_version": diffusers.__version__,
        **{
            part: ["diffusers" if part in kind.of_diffusers else "transformers", name] for part, name in classes.items()
        },
        **{part: [None, None] for part in (*kind.without, *missing)},
        **setting_for_empty(kind, zeros_for_empty(found.index, kind, found.root / INDEX)),
    }


def zeros_for_empty(index: Mapping[str, Any], kind: PipelineKind, where: object) -> bool:
    """Whether the pipeline takes zeros for the empty prompt, as SDXL's does unless it says
    otherwise.
    """
    if not kind.pooled:
        return False
    value = index.get("force_zeros_for_empty_prompt", True)
    if not isinstance(value, bool):
        raise UserError(
            f"{where}: has {shown_foreign(value)} for force_zeros_for_empty_prompt, which must be true or "
            f"false; {CORRECT}."
        )
    return value


def _index(root: Path) -> dict[str, Any]:
    path = root / INDEX
    if not path.is_file():
        raise UserError(
            f"{path}: is missing; give the folder that diffusers' save_pretrained of a pipeline wrote, with all parts."
        )
    return read_configuration(path)


def _is_there(index: Mapping[str, Any], part: str) -> bool:
    return index.get(part) not in (None, [None, None])


def _check_part(index: Mapping[str, Any], part: str, kind: PipelineKind, root: Path) -> None:
    said, classes = index.get(part), kind.classes(part)
    if not _is_there(index, part):
        raise UserError(
            f"{root / INDEX}: has no '{part}', which a text-to-image model needs; take a pipeline that was saved whole."
        )
    if not isinstance(said, list) or len(said) != 2 or said[1] not in classes:
        name = said[1] if isinstance(said, list) and len(said) == 2 else said
        raise UserError(
            f"{root / INDEX}: has a {shown_foreign(name)} for '{part}', and only {' or '.join(classes)} is read; take "
            "a model whose parts are those of its class' releases."
        )
    if not (root / part).is_dir() or (part in kind.parts and not (root / part / "config.json").is_file()):
        raise UserError(
            f"{root / part}: is missing or has no config.json, and {INDEX} names it; get the folder from its source "
            "again."
        )


def _left_out(index: Mapping[str, Any], root: Path) -> Iterable[str]:
    for part in ("safety_checker", "image_encoder"):
        if index.get(part) not in (None, [None, None]):
            yield f"{root}: its {part} is left out."


def _variant_of(folder: Path, stem: str, variant: str | None) -> str | None:
    """The variant that is taken of a part; None, its usual weights, where it has none of the one
    that is asked for, as diffusers does.
    """
    return variant if variant is not None and has_weights(folder, stem, variant) else None


def _fetched(
    source: str, revision: str | None, variant: str | None, root: Path, kind: PipelineKind, parts: list[str]
) -> Path:
    """The hub's snapshot with the weights of those parts."""

    def wanted(part: str, *ends: str) -> list[str]:
        return [f"{part}/{kind.stem(part)}{end}" for end in ends]

    def has(part: str, of: str | None) -> bool:
        return has_weights(root / part, str(kind.stem(part)), of)

    if variant is not None:
        root = snapshot(source, revision, *(each for p in parts for each in wanted(p, f"*.{variant}*.safetensors")))
    lacking = [part for part in parts if variant is None or not has(part, variant)]
    usual = [each for part in lacking for each in wanted(part, ".safetensors", "-?????-of-?????.safetensors")]
    root = snapshot(source, revision, *usual) if usual else root
    lacking = [part for part in lacking if not has(part, None)]
    others = [each for part in lacking for each in wanted(part, "*.safetensors")]
    return snapshot(source, revision, *others) if others else root
