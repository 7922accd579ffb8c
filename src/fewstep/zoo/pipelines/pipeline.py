"""Text-to-image models that diffusers saved, or holds, as teachers.

What is read is ``StableDiffusionPipeline`` (Stable Diffusion 1 and 2) and
``StableDiffusionXLPipeline``. Nothing of a file is run, no class is imported because a file names
it, and only safetensors are read. Weights of any floating type are computed in float32.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoisers import NetworkDenoiser, freeze
from fewstep.errors import UserError
from fewstep.networks import AutoencoderCodec, Codec
from fewstep.zoo.diffusers_schedulers import ignored_by, meaning_of
from fewstep.zoo.diffusers_weights import read_configuration, read_weights
from fewstep.zoo.pipelines.index import INDEX, SCHEDULER, PipelineKind, find, pipeline_kind, zeros_for_empty
from fewstep.zoo.pipelines.rebuilding import NO_WEIGHTS, Tensors, codec, text_model, text_unet
from fewstep.zoo.pipelines.text_encoder import TextEncoder, Tower, conditions_of
from fewstep.zoo.pipelines.tokens import read_tokenizer

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True, eq=False)
class TextPipeline:
    """A text-to-image model, frozen.

    ``denoiser``: of latents, conditioned on what ``encoder`` makes of prompts (and on ``time_ids``
    where its network asks for them). ``codec``: latents and pictures. ``guidance``: the scale that
    diffusers takes where none is given, where 1 is none. ``zeros_for_empty``: whether the
    unconditional prompt is zeros, not the empty prompt's embedding. ``remarks``: sentences on what
    was chosen among several, and on what is left out. ``files``: what was read, by names that do
    not say where the folder is.
    """

    denoiser: NetworkDenoiser
    codec: Codec
    encoder: TextEncoder
    guidance: float
    zeros_for_empty: bool
    remarks: tuple[str, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """A network's configuration and tensors, and where both are, for sentences."""

    config: dict[str, Any]
    tensors: Tensors
    where: object
    source: str


def load_pipeline(source: str | Path, revision: str | None = None, variant: str | None = None) -> TextPipeline:
    """The model in a pipeline's folder, or under an id of the hub (``owner/name``).

    ``revision``: of the hub's; a commit pins it. ``variant``: of the weights, such as ``fp16``; a
    part that has none of it is read from its usual ones, as diffusers does.

    Raises ``UserError`` naming the file for a missing or malformed one, a class or a setting that
    is not known, weights that do not fit, and when diffusers or transformers is missing.
    """
    found = find(source, revision, variant)
    parts = {
        name: _Part(
            read_configuration(found.config(name)),
            functools.partial(read_weights, weights, NO_WEIGHTS),
            found.config(name),
            weights.name,
        )
        for name, weights in found.weights.items()
    }
    tokenizers = {name: read_tokenizer(found.root / name) for name in found.kind.tokenizers}
    zeros = zeros_for_empty(found.index, found.kind, found.root / INDEX)
    scheduler = read_configuration(found.root / SCHEDULER), found.root / SCHEDULER
    return _assembled(found.kind, parts, tokenizers, scheduler, zeros, found.remarks, found.files)


def from_pipeline(pipe: Any) -> TextPipeline:
    """The same of a pipeline of diffusers' that is held in memory; nothing is written to disk.

    Weights are copied, so that neither changes the other.

    Raises ``UserError`` for an object of another class, and what ``load_pipeline`` raises.
    """
    import diffusers

    name = type(pipe).__name__
    if type(pipe) not in (diffusers.StableDiffusionPipeline, diffusers.StableDiffusionXLPipeline):
        name = f"{type(pipe).__module__}.{name}"
    kind = pipeline_kind(name, "what was given")
    held: Mapping[str, Any] = pipe.components
    lacking = next((part for part in (*kind.parts, *kind.tokenizers, "scheduler") if held.get(part) is None), None)
    if lacking is not None:
        raise UserError(f"{name}: has no '{lacking}', which a text-to-image model needs; give a whole pipeline.")
    parts = {part: _held(held[part], f"{name}.{part}") for part in kind.parts}
    tokenizers = {part: held[part] for part in kind.tokenizers}
    config = {**_plain(held["scheduler"].config), "_class_name": type(held["scheduler"]).__name__}
    zeros = zeros_for_empty(_plain(pipe.config), kind, name)
    return _assembled(kind, parts, tokenizers, (config, f"{name}.scheduler"), zeros, (), {})


def time_ids(height: int, width: int) -> Tensor:
    """What SDXL is told of a picture that was neither scaled nor cropped, (1, 6) float32: height,
    width, top and left of the crop, height, width; all in pixels.
    """
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)


def _assembled(
    kind: PipelineKind,
    parts: Mapping[str, _Part],
    tokenizers: Mapping[str, Any],
    scheduler: tuple[dict[str, Any], Any],
    zeros: bool,
    remarks: tuple[str, ...],
    files: Mapping[str, Path],
) -> TextPipeline:
    schedule, prediction, inputs = meaning_of(*scheduler)
    unet = parts["unet"]
    network, shape = text_unet(unet.config, unet.tensors, unet.where, unet.source)
    vae = codec(*_given(parts["vae"]))
    towers = [
        Tower(tokenizers[name], text_model(part.endswith("_2"), *_given(parts[part])), str(parts[part].where))
        for name, part in zip(kind.tokenizers, TEXT_ENCODERS[: len(kind.tokenizers)], strict=True)
    ]
    encoder = TextEncoder(towers, zeros)
    _check_together(network.context_shapes, shape, encoder, vae, unet.where)
    denoiser = freeze(NetworkDenoiser(network, schedule, prediction, inputs, shape))
    return TextPipeline(denoiser, vae, encoder, kind.guidance, zeros, (*remarks, *ignored_by(*scheduler)), dict(files))


def _given(part: _Part) -> tuple[dict[str, Any], Tensors, object, str]:
    return part.config, part.tensors, part.where, part.source


def _check_together(
    asked: Mapping[str, tuple[int, ...]],
    shape: tuple[int, ...],
    encoder: TextEncoder,
    vae: AutoencoderCodec,
    where: object,
) -> None:
    """Raises ``UserError`` unless the network takes what encoder and codec make."""
    made = conditions_of(encoder)
    for name in made.keys() | asked.keys() - {"time_ids"}:
        takes, is_made = asked.get(name, (None,))[-1], made.get(name)
        if takes != is_made:
            raise UserError(
                f"{where}: takes '{name}' of {takes or 'no'} numbers and the text encoders make {is_made or 'none'}; "
                "take all parts from one pipeline."
            )
    if shape[0] != vae.channels:
        raise UserError(
            f"{where}: takes latents of {shape[0]} channels and the codec makes {vae.channels}; take both from one "
            "pipeline."
        )


def _held(module: Any, where: str) -> _Part:
    """A network that is held in memory."""

    def tensors() -> dict[str, Tensor]:
        return {name: value.detach().cpu().float() for name, value in module.state_dict().items()}

    config = module.config
    return _Part(_plain(config if isinstance(config, Mapping) else config.to_dict()), tensors, where, where)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as a file would hold it."""
    content: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return content
