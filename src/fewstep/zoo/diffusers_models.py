"""diffusers' image models: a ``UNet2DModel`` and the scheduler that says what its output means.

Which files are read says ``diffusers_folders``; what a scheduler means says
``diffusers_schedulers``. Weights of any floating type are read in float32. Only safetensors are
read, no pickled weights.

A network with one embedding more than there are classes was trained with the label of the last
embedding for "no class". That is said by ``classes``, since nothing in the folder says it; the
label -1 of ours ("no class") is then the last embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.denoisers import NetworkDenoiser, freeze
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.networks.kinds.network_files import load_strictly
from fewstep.zoo.diffusers_configurations import MOST, Expected, arguments_in, shape_of
from fewstep.zoo.diffusers_folders import Pipeline, find_pipeline
from fewstep.zoo.diffusers_schedulers import about, ignored_by, meaning_of
from fewstep.zoo.diffusers_weights import current_name, read_configuration, read_weights
from fewstep.zoo.nvidia.machine import shown_foreign

_SETTINGS = Expected(
    whole={
        "in_channels": (1, 64),
        "out_channels": (1, 64),
        "layers_per_block": (1, 64),
        "norm_num_groups": (1, MOST),
        "downsample_padding": (0, 16),
        "attention_head_dim": (1, MOST),
        "attn_norm_num_groups": (1, MOST),
        "time_embedding_dim": (1, MOST),
        "num_class_embeds": (1, MOST),
        "num_train_timesteps": (1, MOST),
    },
    wholes={"block_out_channels": (1, MOST)},
    reals={
        "freq_shift": (-1e6, 1e6),
        "dropout": (0.0, 1.0),
        "norm_eps": (0.0, 1.0),
        "mid_block_scale_factor": (1e-6, 1e6),
    },
    flags=("center_input_sample", "flip_sin_to_cos", "add_attention"),
    texts=(
        "time_embedding_type",
        "mid_block_type",
        "downsample_type",
        "upsample_type",
        "act_fn",
        "resnet_time_scale_shift",
        "class_embed_type",
    ),
    words=("down_block_types", "up_block_types"),
    nullable=frozenset(
        (
            "attention_head_dim",
            "attn_norm_num_groups",
            "time_embedding_dim",
            "num_class_embeds",
            "num_train_timesteps",
            "mid_block_type",
            "class_embed_type",
        )
    ),
)


def load(
    source: str | Path,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    classes: int | None = None,
) -> NetworkDenoiser:
    """The frozen denoiser in a pipeline's folder, or under an id of the hub (``owner/name``).

    ``revision``: of the hub's; a commit pins it. ``variant``: of the weights, such as ``fp16``.
    ``subfolder``: of the network, see ``diffusers_folders``. ``classes``: as many as there are
    embeddings unless given; with one fewer the last embedding is "no class".

    Raises ``UserError`` naming the file for a missing or malformed one, a scheduler that is not
    known, weights that do not fit, and when diffusers is missing.
    """
    pipeline = find_pipeline(source, revision, variant, subfolder)
    schedule, prediction, inputs = meaning_of(read_configuration(pipeline.scheduler), pipeline.scheduler)
    arguments, classes = _network(pipeline, classes)
    network = _built(arguments, classes, pipeline.config)
    tensors = {f"unet.{current_name(name)}": value for name, value in read_weights(pipeline.weights).items()}
    load_strictly(network, tensors, pipeline.weights.name)
    return freeze(NetworkDenoiser(network, schedule, prediction, inputs, shape_of(arguments, 3), classes))


def files_of(
    source: str | Path, revision: str | None = None, variant: str | None = None, subfolder: str | None = None
) -> dict[str, Path]:
    """The files that ``load`` reads and no others, by names that do not say where the folder is.

    Raises ``UserError`` where a file is missing.
    """
    return find_pipeline(source, revision, variant, subfolder).files


def remarks_of(
    source: str | Path,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    classes: int | None = None,
) -> tuple[str, ...]:
    """Sentences on what ``load`` chooses among several, and on what it leaves out.

    Raises what ``load`` raises for a configuration; weights are not read.
    """
    pipeline = find_pipeline(source, revision, variant, subfolder)
    scheduler = read_configuration(pipeline.scheduler)
    meaning_of(scheduler, pipeline.scheduler)
    _network(pipeline, classes)
    return (*pipeline.remarks, *ignored_by(scheduler, pipeline.scheduler))


def _built(arguments: dict[str, Any], classes: int, path: Path) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            return build({"kind": "diffusers-unet2d", "config": arguments, "classes": classes})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _network(pipeline: Pipeline, classes: int | None) -> tuple[dict[str, Any], int]:
    """The arguments of ``UNet2DModel``, each checked before it is believed, and the classes."""
    config = read_configuration(pipeline.config)
    with about(pipeline.config):
        if config.get("_class_name") != "UNet2DModel":
            raise UserError(
                f"is the configuration of a {shown_foreign(config.get('_class_name'))}; only UNet2DModel is read here."
            )
        arguments = arguments_in(config)
        _SETTINGS.check(arguments)
        shape_of(arguments, 3)
        embeddings = arguments.get("num_class_embeds") or 0
    if classes is None or classes == embeddings:
        return arguments, embeddings
    if not 1 <= classes == embeddings - 1:
        raise UserError(
            f"{pipeline.config}: has {embeddings} for num_class_embeds, 'teacher.classes' says {classes}; "
            "leave it out for as many as "
            "there are embeddings, or set it to one fewer where the last is 'no class'."
        )
    return arguments, classes
