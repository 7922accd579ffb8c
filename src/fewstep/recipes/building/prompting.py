"""From a recipe's prompts to conditions of a text-to-image teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from fewstep.data.prompts import EmbeddedPrompts, PromptConditions, Prompts, embed
from fewstep.data.prompts.fill import TooLong
from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.networks import DenoisingNetwork
from fewstep.recipes import config
from fewstep.recipes.recipe import DistillRecipe
from fewstep.system.ledger import print_sentence
from fewstep.zoo.pipelines import OpenedPipeline, time_ids


def prompts_of(recipe: DistillRecipe) -> config.PromptsChoice:
    """The recipe's prompts; raises ``UserError`` where it has none."""
    if recipe.prompts is None:
        raise UserError(
            "the teacher draws what prompts say, and the recipe has no 'prompts' section; add one, such as "
            "prompts: {kind: file, path: prompts.txt}."
        )
    return recipe.prompts


def embedded(
    text: OpenedPipeline,
    prompts: Prompts,
    too_long: TooLong,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    say: Callable[[str], None] = print_sentence,
) -> EmbeddedPrompts:
    """The prompts embedded by the model's text encoder, on a device where the ``cache`` lacks them
    (the machine's unless given); the encoder is let go. ``say`` is told what is worth a line.
    """
    encoder = text.encoder()
    return embed(prompts, lambda: encoder.to(device), encoder.identity, cache, too_long=too_long, say=say)


def prompt_conditions(prompts: EmbeddedPrompts, denoiser: Denoiser, factor: int) -> PromptConditions:
    """The embedded prompts as conditions of a denoiser whose samples are latents of pictures that
    are ``factor`` times as high and wide.

    A network that is told the sizes of pictures is told those of its own samples, uncropped.
    """
    _, height, width = denoiser.shape
    sizes = {"time_ids": time_ids(height * factor, width * factor)}
    asked = asked_of(denoiser)
    return PromptConditions(prompts, {name: value for name, value in sizes.items() if name in asked})


def asked_of(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """The tensors that the network in a model asks of a condition besides classes, by name with the
    shape of a row; none for most networks.
    """
    networks = (module for module in model.modules() if isinstance(module, DenoisingNetwork))
    return next((network.context_shapes for network in networks if network.context_shapes), {})
