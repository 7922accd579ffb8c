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
from fewstep.zoo.pipelines.tokens import TOKENIZER_FILES

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"

_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model", "model"
_STEMS = {"unet": _DIFFUSERS, "vae": _DIFFUSERS, "text_encoder": _TRANSFORMERS, "text_encoder_2": _TRANSFORMERS}
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": _TOKENIZERS,
    "tokenizer_2": _TOKENIZERS,
}


_OF_DIFFUSERS = ("unet", "vae", "scheduler")


@dataclass(frozen=True)
class PipelineKind:
    """A class of pipelines that is read: its ``parts`` with weights, its ``tokenizers``, and the
    guidance scale that diffusers takes where none is given; the parts that it may do ``without``.
    """

    parts: tuple[str, ...]
    tokenizers: tuple[str, ...]
    guidance: float
    pooled: bool
    without: tuple[str, ...]


KINDS: Mapping[str, PipelineKind] = {
    "StableDiffusionPipeline": PipelineKind(
        ("unet", "vae", "text_encoder"),
        ("tokenizer",),
        7.5,
        False,
        ("safety_checker", "feature_extractor", "image_encoder"),
    ),
    "StableDiffusionXLPipeline": PipelineKind(
        ("unet", "vae", "text_encoder", "text_encoder_2"),
        ("tokenizer", "tokenizer_2"),
        5.0,
        True,
        ("feature_extractor", "image_encoder"),
    ),
}


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
        for name in self.kind.tokenizers:
            listed += [path for each in TOKENIZER_FILES if (path := self.root / name / each).is_file()]
        return {path.relative_to(self.root).as_posix(): path for path in listed}

    @property
    def beside_the_network(self) -> dict[str, Path]:
        """The files of all parts but U-Net and scheduler, by the names that they have in a folder
        without variants. Shards keep their names, since their index names them.
        """
        found: dict[str, Path] = {}
        for part in self.kind.parts[1:]:
            weights = self.weights[part]
            found[f"{part}/config.json"] = self.config(part)
            if weights.index is None:
                found[f"{part}/{_STEMS[part]}.safetensors"] = weights.files[0]
            else:
                found[f"{part}/{_STEMS[part]}.safetensors.index.json"] = weights.index
                found |= {f"{part}/{path.name}": path for path in weights.files}
        return found | {name: path for name, path in self.files.items() if name.startswith(self._of_tokenizers)}

    @property
    def _of_tokenizers(self) -> tuple[str, ...]:
        return tuple(f"{name}/" for name in self.kind.tokenizers)


def find(source: str | Path, revision: str | None, variant: str | None) -> Found:
    """The files in a local folder, or under an id of the hub, from where what is read alone is
    fetched.

    Raises ``UserError`` naming what is missing, and the class of a pipeline that is not read.
    """
    local = folder_or_id(str(source), "models")
    root = Path(local) if os.path.isabs(local) else snapshot(str(source), revision, "*.json", "*/merges.txt")
    index = _index(root)
    kind = pipeline_kind(index.get("_class_name"), root / INDEX)
    for part in (*kind.parts, *kind.tokenizers):
        _check_part(index, part, root)
    if not os.path.isabs(local):
        root = _fetched(str(source), snapshot_commit(root) or revision, variant, root, kind)
    if not (root / SCHEDULER).is_file():
        raise UserError(
            f"{root / SCHEDULER}: is missing, and says what the network emits; add the scheduler that the network was "
            "trained with."
        )
    weights, remarks = {}, list(_left_out(index, root))
    chosen = {part: _variant_of(part, root, variant) for part in kind.parts}
    if variant is not None and variant not in chosen.values():
        # Of none of the parts: the sentence says which there are.
        find_weights(root / kind.parts[0], _STEMS[kind.parts[0]], variant, "variant")
    for part in kind.parts:
        weights[part], said = find_weights(root / part, _STEMS[part], chosen[part], "variant")
        remarks += said
        if variant is not None and chosen[part] is None:
            remarks.append(f"{root / part}: has no weights of the variant '{variant}'; its usual ones are taken.")
    return Found(root, kind, index, weights, tuple(remarks))


def index_of(found: Found, scheduler: str) -> dict[str, Any]:
    """The index of the same pipeline with a scheduler of the class ``scheduler``.

    It names classes that are read here, and of libraries that the files do not choose.
    """
    import diffusers

    classes = {
        **{part: found.index[part][1] for part in (*found.kind.parts, *found.kind.tokenizers)},
        "scheduler": scheduler,
    }
    settings = (
        {"force_zeros_for_empty_prompt": zeros_for_empty(found.index, found.kind, found.root / INDEX)}
        if found.kind.pooled
        else {"requires_safety_checker": False}
    )
    return {
        "_class_name": found.class_name,
        "_diffusers_version": diffusers.__version__,
        **{part: ["diffusers" if part in _OF_DIFFUSERS else "transformers", name] for part, name in classes.items()},
        **{part: [None, None] for part in found.kind.without},
        **settings,
    }


def pipeline_kind(name: object, where: object) -> PipelineKind:
    """The kind of a pipeline by its class' name. Raises ``UserError`` for one that is not read."""
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(
            f"{where}: is of a pipeline of the class {shown_foreign(name)}, and only {' and '.join(KINDS)} are read; "
            "take a text-to-image model of Stable Diffusion 1, 2 or SDXL."
        )
    return KINDS[name]


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


def _check_part(index: Mapping[str, Any], part: str, root: Path) -> None:
    said, classes = index.get(part), _CLASSES[part]
    if said is None or said == [None, None]:
        raise UserError(
            f"{root / INDEX}: has no '{part}', which a text-to-image model needs; take a pipeline that was saved whole."
        )
    if not isinstance(said, list) or len(said) != 2 or said[1] not in classes:
        name = said[1] if isinstance(said, list) and len(said) == 2 else said
        raise UserError(
            f"{root / INDEX}: has a {shown_foreign(name)} for '{part}', and only {' or '.join(classes)} is read; take "
            "a model whose parts are those of Stable Diffusion 1, 2 or SDXL."
        )
    if not (root / part).is_dir() or (part in _STEMS and not (root / part / "config.json").is_file()):
        raise UserError(
            f"{root / part}: is missing or has no config.json, and {INDEX} names it; get the folder from its source "
            "again."
        )


def _left_out(index: Mapping[str, Any], root: Path) -> Iterable[str]:
    for part in ("safety_checker", "image_encoder"):
        if index.get(part) not in (None, [None, None]):
            yield f"{root}: its {part} is left out."


def _variant_of(part: str, root: Path, variant: str | None) -> str | None:
    """The variant that is taken of a part; None, its usual weights, where it has none of the one
    that is asked for, as diffusers does.
    """
    return variant if variant is not None and has_weights(root / part, _STEMS[part], variant) else None


def _fetched(source: str, revision: str | None, variant: str | None, root: Path, kind: PipelineKind) -> Path:
    """The hub's snapshot with the weights of all parts."""

    def wanted(part: str, *ends: str) -> list[str]:
        return [f"{part}/{_STEMS[part]}{end}" for end in ends]

    if variant is not None:
        root = snapshot(
            source, revision, *(each for p in kind.parts for each in wanted(p, f"*.{variant}*.safetensors"))
        )
    lacking = [part for part in kind.parts if variant is None or not has_weights(root / part, _STEMS[part], variant)]
    usual = [each for part in lacking for each in wanted(part, ".safetensors", "-?????-of-?????.safetensors")]
    root = snapshot(source, revision, *usual) if usual else root
    lacking = [part for part in lacking if not has_weights(root / part, _STEMS[part], None)]
    others = [each for part in lacking for each in wanted(part, "*.safetensors")]
    return snapshot(source, revision, *others) if others else root
