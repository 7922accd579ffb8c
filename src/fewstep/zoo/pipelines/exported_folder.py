"""A distilled student as the folder of a text-to-image pipeline, which plain diffusers opens and
samples.

The network and the scheduler are the student's. Text encoders, tokenizers and VAE are copied from
the teacher's folder byte for byte: what one version of transformers writes another one reads as
random. The index names the classes that ``index`` knows, and nothing else that the teacher's names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.denoisers import NetworkDenoiser
from fewstep.errors import NotFinite, UserError
from fewstep.networks import DenoisingNetwork
from fewstep.solvers.sampling import Sampling
from fewstep.system.files import write_text
from fewstep.system.finite import first_not_finite
from fewstep.system.folders import copy_file, new_folder
from fewstep.system.locations import absolute, is_hub_id
from fewstep.zoo.diffusers_weights import read_configuration
from fewstep.zoo.pipelines.card import Card
from fewstep.zoo.pipelines.facts import CARD, as_json, write_facts
from fewstep.zoo.pipelines.index import INDEX, SCHEDULER, Found, find, index_of
from fewstep.zoo.pipelines.rebuilding import codec_sketch, denoising_sketch
from fewstep.zoo.pipelines.sampled_by import SampledBy, sampled_by, text_denoiser

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHARD = "10GB"
"""Above it weights are written in several files, as diffusers does."""


@dataclass(frozen=True)
class PipelinePlace:
    """Where a teacher's pipeline is: a folder or an id of the hub, its revision, its variant."""

    source: str
    revision: str | None = None
    variant: str | None = None

    @property
    def is_on_hub(self) -> bool:
        """Whether it is an id of the hub."""
        return is_hub_id(self.source, "models")

    @property
    def name(self) -> str:
        """An id of the hub, or the folder's own name, which does not say where it lies."""
        return self.source if self.is_on_hub else Path(absolute(self.source)).name


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A student, and what its folder is made of.

    ``student``: a ``NetworkDenoiser`` around a network that is a part of diffusers' pipelines, or
    that in ``Boundary``. ``sampling``, ``times`` (decreasing, the last 0) and ``scale`` (of the
    noise) say how it is sampled. ``teacher``: the pipeline from which it was distilled. ``method``,
    ``run`` (a hash, None where there is none) and ``prompt`` (of the example) are for the card.
    """

    student: nn.Module
    sampling: Sampling
    times: Sequence[float]
    teacher: PipelinePlace
    method: str
    run: str | None = None
    scale: float = 1.0
    prompt: str = "a red fox in the snow"


def export_pipeline(source: ExportSource, out: Path | str, dtype: str = "fp32") -> Path:
    """Writes the folder ``out``, whole or not at all; ``dtype``: of the network's weights, one of
    fp32, fp16 and bf16. Returns the folder.

    Raises ``UserError`` for a student that diffusers does not sample as ours does, a teacher whose
    other parts do not fit it, weights that are not finite in that type, and an ``out`` where
    something is already.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype: '{dtype:.40}' is no type of weights; it must be one of {', '.join(DTYPES)}.")
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise UserError("an export needs diffusers: pip install 'fewstep[diffusers]'.") from error
    denoiser = text_denoiser(source.student)
    found = find(source.teacher.source, source.teacher.revision, source.teacher.variant)
    by = sampled_by(source.student, source.sampling, source.times, source.scale, found.kind.alone)
    _check_fits(denoiser, found)
    height, width = _picture(denoiser.shape, found)
    by = replace(by, arguments={**by.arguments, "height": height, "width": width})
    network = _network(denoiser, found, DTYPES[dtype])
    out = Path(absolute(str(out)))
    card = Card(
        out.name,
        found.class_name,
        source.teacher.name,
        source.teacher.is_on_hub,
        source.method,
        source.run,
        by.timesteps,
        "U-Net" if found.kind.network == "unet" else "transformer",
        source.sampling.guidance,
        dict(by.arguments),
        str(DTYPES[dtype]).removeprefix("torch."),
        sum(value.numel() for value in network.parameters()),
        source.prompt,
    )
    with new_folder(out) as folder:
        _write_network(network, folder / found.kind.network)
        by.scheduler.save_config(folder / Path(SCHEDULER).parent)
        for name, path in found.beside_the_network.items():
            copy_file(path, folder / name)
        write_text(folder / INDEX, as_json(index_of(found, type(by.scheduler).__name__)))
        write_text(folder / CARD, card.text)
        write_facts(folder, _facts(source, by, found, dtype))
    return out


def _facts(source: ExportSource, by: SampledBy, found: Found, dtype: str) -> dict[str, Any]:
    teacher = source.teacher
    return {
        "teacher": {"name": teacher.name, "revision": teacher.revision, "variant": teacher.variant},
        "method": source.method,
        "run": source.run,
        "pipeline": found.class_name,
        "scheduler": type(by.scheduler).__name__,
        "settings": {name: value for name, value in by.scheduler.config.items() if not name.startswith("_")},
        "steps": len(by.timesteps),
        "timesteps": list(by.timesteps),
        **({"sigmas": list(by.sigmas)} if by.sigmas else {}),
        "guidance": source.sampling.guidance,
        "dtype": dtype,
        "call": dict(by.arguments),
    }


def _network(denoiser: NetworkDenoiser, found: Found, dtype: torch.dtype) -> Any:
    """diffusers' own network with the student's weights in that type, of the student's size.

    Raises ``UserError`` for weights that are not finite in it.
    """
    import diffusers

    held: Any = getattr(denoiser.network, found.kind.network)
    _, height, width = denoiser.shape
    config = {name: value for name, value in held.config.items() if not name.startswith("_")}
    if found.kind.network == "unet":
        # By it a U-Net's pipelines choose the size of pictures, and nothing else.
        config["sample_size"] = height if height == width else [height, width]
    with torch.device("meta"):
        network: Any = getattr(diffusers, found.kind.network_class)(**config)
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in held.state_dict().items()}
    wrong = first_not_finite(tensors.items())
    if wrong:
        raise NotFinite(
            f"--dtype: '{wrong}' of the student is not finite in {str(dtype).removeprefix('torch.')}; take another "
            "type, or 'fewstep doctor' on the run where there is none."
        )
    network.load_state_dict(tensors, assign=True)
    return network


def _write_network(network: Any, folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        network.save_pretrained(folder, max_shard_size=SHARD)
    except SafetensorError as error:
        raise UserError(
            f"{folder}: could not be written ({error}); free some space, or choose another folder."
        ) from error
    # safetensors lets nobody else read what it writes.
    usual = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        path.chmod(usual)


def _check_fits(denoiser: NetworkDenoiser, found: Found) -> None:
    """Raises ``UserError`` unless the teacher's other parts make what the student takes."""
    network, where = denoiser.network, found.config(found.kind.network)
    assert isinstance(network, DenoisingNetwork)
    other, shape = denoising_sketch(found.kind, read_configuration(where), where, None)
    taken = other.context_shapes
    alike = type(other) is type(network) and taken == network.context_shapes
    if not alike or shape[0] != denoiser.shape[0]:
        raise UserError(
            f"{where}: takes latents of {shape[0]} channels and {_shown(taken)}, and the student latents of "
            f"{denoiser.shape[0]} and {_shown(network.context_shapes)}; give the pipeline that it was distilled from."
        )


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"'{name}' of {shape[-1]} numbers" for name, shape in shapes.items())


def _picture(shape: tuple[int, ...], found: Found) -> tuple[int, int]:
    """Height and width in pixels. Raises ``UserError`` for those that the pipelines refuse."""
    where = found.config("vae")
    factor = codec_sketch(found.kind.codec, read_configuration(where), where).factor
    height, width = (side * factor for side in shape[1:])
    if height % 8 or width % 8:
        raise UserError(
            f"the student makes pictures of {height} x {width} pixels, and diffusers' pipelines make multiples of 8 "
            "alone; take a student of another size."
        )
    return height, width
