"""Text-to-image models that diffusers saved, or holds, as teachers.

Which classes of pipelines are read is in ``pipeline_kinds``. Nothing of a file is run, no class is
imported because a file names it, and only safetensors are read. Weights of any floating type are
computed in float32.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoisers import NetworkDenoiser, freeze
from fewstep.errors import UserError
from fewstep.networks import Codec, DenoisingNetwork
from fewstep.zoo.adapter_files import AddedAdapter, add_adapters
from fewstep.zoo.diffusers_schedulers import ignored_by, meaning_of
from fewstep.zoo.diffusers_weights import read_configuration, read_weights
from fewstep.zoo.pipelines.encoders.pipeline_encoder import PipelineEncoder
from fewstep.zoo.pipelines.encoders.text_encoder import TextEncoder, Tower
from fewstep.zoo.pipelines.encoders.text_models import text_model_named, tokenizer_named
from fewstep.zoo.pipelines.encoders.tokens import read_tokenizer
from fewstep.zoo.pipelines.index import INDEX, SCHEDULER, Found, find, zeros_for_empty
from fewstep.zoo.pipelines.pipeline_kinds import KINDS, PipelineKind, pipeline_kind
from fewstep.zoo.pipelines.rebuilding import (
    NO_WEIGHTS,
    Tensors,
    codec,
    codec_sketch,
    denoising_network,
    denoising_sketch,
    text_model,
    tokens_in,
)
from fewstep.zoo.state_dicts import read_state_dict

Encoder = TextEncoder | PipelineEncoder


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
    encoder: Encoder
    guidance: float
    zeros_for_empty: bool
    remarks: tuple[str, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class PipelinePart:
    """A network's configuration and tensors, and where both are, for sentences."""

    config: dict[str, Any]
    tensors: Tensors
    where: object
    source: str


@dataclass(frozen=True, eq=False)
class OpenedPipeline:
    """A text-to-image model whose parts are read when they are asked for, each time anew, so that
    no part is in memory that is not used.

    ``guidance``, ``zeros_for_empty`` and ``remarks``: as of ``TextPipeline``. ``parts``: its
    network and its codec. ``make_encoder`` reads its text encoders. ``read``: the pipeline's own
    files. ``adapters`` are added to the network's weights. ``size``: the side of pictures in
    pixels; None for the model's own.
    """

    kind: PipelineKind
    parts: Mapping[str, PipelinePart]
    make_encoder: Callable[[], Encoder]
    scheduler: tuple[dict[str, Any], Any]
    zeros_for_empty: bool
    remarks: tuple[str, ...] = ()
    read: Mapping[str, Path] = field(default_factory=dict)
    adapters: tuple[AddedAdapter, ...] = ()
    size: int | None = None

    @property
    def files(self) -> Mapping[str, Path]:
        """See ``TextPipeline``; adapters are among them, by their order and weights."""
        added = {f"adapter {number} times {each.weight}": each.path for number, each in enumerate(self.adapters)}
        return {**self.read, **added}

    @property
    def guidance(self) -> float:
        return self.kind.guidance

    def with_network(self, path: Path) -> OpenedPipeline:
        """The same with the network's weights from a file that holds them alone, under diffusers'
        names, as those who publish few-step students do.
        """
        part = self.kind.network
        network = replace(self.parts[part], tensors=functools.partial(read_state_dict, path), source=str(path))
        return replace(self, parts={**self.parts, part: network}, read={**self.read, "network": path})

    def denoiser(self) -> NetworkDenoiser:
        """The frozen denoiser of latents. Raises ``UserError`` naming what is wrong with it."""
        network, shape = denoising_network(self.kind, *_given(self._network), self._side())
        add_adapters(network, self.adapters)
        return self._around(network, shape)

    def sketch(self) -> NetworkDenoiser:
        """The same without weights, on the meta device."""
        part = self._network
        return self._around(*denoising_sketch(self.kind, part.config, part.where, self._side()))

    def codec(self) -> Codec:
        """The codec. Raises ``UserError`` naming what is wrong with it."""
        return codec(self.kind.codec, *_given(self.parts["vae"]))

    def codec_sketch(self) -> Codec:
        """The same without weights, on the meta device."""
        vae = self.parts["vae"]
        return codec_sketch(self.kind.codec, vae.config, vae.where)

    def encoder(self) -> Encoder:
        """The text encoder. Raises ``UserError`` naming what is wrong with it, and for a model of
        classes, which has none.
        """
        if self.kind.is_told_classes:
            raise UserError(
                f"{self._network.where}: is told classes, and its pipeline has no text encoder; open it as a model of "
                "classes, by open_pipeline."
            )
        return self.make_encoder()

    def whole(self) -> TextPipeline:
        """All parts; raises ``UserError`` where they do not belong together."""
        encoder, vae, denoiser = self.encoder(), self.codec(), self.denoiser()
        self.check_together(denoiser, encoder.makes, vae.channels)
        return TextPipeline(denoiser, vae, encoder, self.guidance, self.zeros_for_empty, self.remarks, dict(self.files))

    def check_together(self, denoiser: NetworkDenoiser, made: Mapping[str, int], channels: int) -> None:
        """Raises ``UserError`` unless the denoiser takes what encoder and codec make: tensors of
        the last dimensions ``made``, by name, and latents of so many ``channels``.
        """
        where = self._network.where
        network = denoiser.network
        assert isinstance(network, DenoisingNetwork)
        asked = network.context_shapes
        for name in (made.keys() | asked.keys()) - {"time_ids", "mask"}:
            takes, is_made = asked.get(name, (None,))[-1], made.get(name)
            if takes != is_made:
                raise UserError(
                    f"{where}: takes '{name}' of {takes or 'no'} numbers and the text encoders make "
                    f"{is_made or 'none'}; take all parts from one pipeline."
                )
        if denoiser.shape[0] != channels:
            raise UserError(
                f"{where}: takes latents of {denoiser.shape[0]} channels and the codec makes {channels}; take both "
                "from one pipeline."
            )

    @property
    def _network(self) -> PipelinePart:
        return self.parts[self.kind.network]

    def _side(self) -> int | None:
        """That of latents; None for the model's own."""
        return None if self.size is None else self.codec_sketch().latent_shape(self.size)[1]

    def _around(self, network: DenoisingNetwork, shape: tuple[int, ...]) -> NetworkDenoiser:
        schedule, prediction, inputs = meaning_of(*self.scheduler, tokens_in(network, shape))
        return freeze(NetworkDenoiser(network, schedule, prediction, inputs, shape, network.classes))


def load_pipeline(source: str | Path, revision: str | None = None, variant: str | None = None) -> TextPipeline:
    """``open_pipeline`` with all parts read and compared. Raises what it raises, and ``UserError``
    for parts that are malformed or do not belong together.
    """
    return open_pipeline(source, revision, variant).whole()


def open_pipeline(source: str | Path, revision: str | None = None, variant: str | None = None) -> OpenedPipeline:
    """The model in a pipeline's folder, or under an id of the hub (``owner/name``).

    ``revision``: of the hub's; a commit pins it. ``variant``: of the weights, such as ``fp16``; a
    part that has none of it is read from its usual ones, as diffusers does.

    Raises ``UserError`` naming the file for a missing or malformed one, a class or a setting that
    is not known, weights that do not fit, and when diffusers or transformers is missing.
    """
    found = find(source, revision, variant)
    parts = {
        name: PipelinePart(
            read_configuration(found.config(name)),
            functools.partial(read_weights, weights, NO_WEIGHTS),
            found.config(name),
            weights.name,
        )
        for name, weights in found.weights.items()
    }
    zeros = zeros_for_empty(found.index, found.kind, found.root / INDEX)
    scheduler = read_configuration(found.root / SCHEDULER), found.root / SCHEDULER
    remarks = (*found.remarks, *ignored_by(*scheduler))
    encoder = (
        functools.partial(_clip, found, parts, zeros) if found.kind.is_clip else functools.partial(_own, found, parts)
    )
    return OpenedPipeline(found.kind, parts, encoder, scheduler, zeros, remarks, dict(found.files))


def _clip(found: Found, parts: Mapping[str, PipelinePart], zeros: bool) -> TextEncoder:
    tokenizers = {name: read_tokenizer(found.root / name) for name in found.tokenizers}
    return _towers(found.kind, parts, tokenizers, zeros)


def _towers(
    kind: PipelineKind, parts: Mapping[str, PipelinePart], tokenizers: Mapping[str, Any], zeros: bool
) -> TextEncoder:
    towers = [
        Tower(tokenizers[name], text_model(part.endswith("_2"), *_given(parts[part])), str(parts[part].where))
        for name, part in zip(kind.tokenizers, kind.encoders, strict=True)
    ]
    return TextEncoder(towers, zeros)


def _own(found: Found, parts: Mapping[str, PipelinePart]) -> PipelineEncoder:
    index, root = found.index, found.root
    models = {
        part: text_model_named(index[part][1], root / part, found.weights[part])
        for part in found.kind.encoders
        if part in found.weights
    }
    tokenizers = {name: tokenizer_named(index[name][1], root / name) for name in found.tokenizers}
    return PipelineEncoder(found.class_name, found.kind, parts[found.kind.network].config, models, tokenizers)


def from_pipeline(pipe: Any) -> TextPipeline:
    """The same of a pipeline of diffusers' that is held in memory; nothing is written to disk.

    Weights are copied, so that neither changes the other.

    Raises ``UserError`` for an object of another class, and what ``load_pipeline`` raises.
    """
    import diffusers

    name = type(pipe).__name__
    if name not in KINDS or type(pipe) is not getattr(diffusers, name, None):
        name = f"{type(pipe).__module__}.{name}"
    kind = pipeline_kind(name, "what was given")
    held: Mapping[str, Any] = pipe.components
    wanted = [part for part in (*kind.parts, *kind.tokenizers, "scheduler") if part not in kind.optional]
    lacking = next((part for part in wanted if held.get(part) is None), None)
    if lacking is not None:
        raise UserError(f"{name}: has no '{lacking}', which a text-to-image model needs; give a whole pipeline.")
    of_clip = kind.encoders if kind.is_clip else ()
    parts = {part: _held(held[part], f"{name}.{part}") for part in (kind.network, "vae", *of_clip)}
    config = {**_plain(held["scheduler"].config), "_class_name": type(held["scheduler"]).__name__}
    zeros = zeros_for_empty(_plain(pipe.config), kind, name)
    scheduler = config, f"{name}.scheduler"
    tokenizers = {part: held[part] for part in kind.tokenizers if held.get(part) is not None}

    def encoder() -> Encoder:
        if kind.is_clip:
            return _towers(kind, parts, tokenizers, zeros)
        models = {part: copy.deepcopy(held[part]).cpu().float() for part in kind.encoders if held.get(part) is not None}
        return PipelineEncoder(name, kind, parts[kind.network].config, models, tokenizers)

    return OpenedPipeline(kind, parts, encoder, scheduler, zeros, ignored_by(*scheduler)).whole()


def time_ids(height: int, width: int) -> Tensor:
    """What SDXL is told of a picture that was neither scaled nor cropped, (1, 6) float32: height,
    width, top and left of the crop, height, width; all in pixels.
    """
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)


def _given(part: PipelinePart) -> tuple[dict[str, Any], Tensors, object, str]:
    return part.config, part.tensors, part.where, part.source


def _held(module: Any, where: str) -> PipelinePart:
    """A network that is held in memory."""

    def tensors() -> dict[str, Tensor]:
        return {name: value.detach().cpu().float() for name, value in module.state_dict().items()}

    config = module.config
    return PipelinePart(_plain(config if isinstance(config, Mapping) else config.to_dict()), tensors, where, where)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as a file would hold it."""
    content: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return content
