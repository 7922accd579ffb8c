"""Teaches the shipped scenes model a look, by denoising pictures that have it: a style as an
adapter, a fine-tune as a copy, or a few-step student as one should not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.data.prompts import PromptConditions, embed, read_prompts
from fewstep.data.scenes import Scenes
from fewstep.data.scenes.drawing import pictured
from fewstep.denoisers import NetworkDenoiser
from fewstep.random import Key
from fewstep.schedule import expand
from fewstep.zoo.pipelines import TextPipeline

BATCH = 32

Grounds = Callable[[Tensor], Tensor]
"""From numbers (n,) in [0, 1] to the colours of grounds, (n, 3) in [-1, 1]."""


def greys(low: float, high: float) -> Grounds:
    """Grounds of a grey between two."""
    return lambda numbers: (low + (high - low) * numbers)[:, None].expand(-1, 3)


def taught(model: TextPipeline, student: NetworkDenoiser, grounds: Grounds, rate: float, steps: int) -> None:
    """Trains the student on scenes of those grounds, by the mean square of its error in velocity.

    Ends with the student frozen.
    """
    student.train()
    optimizer = torch.optim.AdamW(
        [each for each in student.parameters() if each.requires_grad], lr=rate, betas=(0.9, 0.99), weight_decay=0.0
    )
    for step, (latents, condition) in enumerate(batches(model, grounds, steps)):
        key = Key(0, "taught", step)
        schedule = student.schedule
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * key.uniform("time", len(latents)).double()
        noised = schedule.add_noise(latents, t, key.normal("noise", latents.shape).float())
        error = student(noised, t, condition) - latents
        loss = (error.square() * expand(1 / schedule.sigma(t).square(), error)).mean()
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    student.requires_grad_(False).eval()


def batches(model: TextPipeline, grounds: Grounds, steps: int) -> Iterator[tuple[Tensor, Any]]:
    """Latents of scenes of those grounds, and the conditions of their captions."""
    scenes, encoder = Scenes(20_000), model.encoder
    indices = [Key(0, "scenes", step).permutation("scene", len(scenes))[:BATCH] for step in range(steps)]
    captions = [scenes.captions(index) for index in indices]
    every = sorted({text for texts in captions for text in texts if text})
    conditions = PromptConditions(embed(read_prompts(every), lambda: encoder, encoder.identity, say=lambda _: None))
    for index, texts in zip(indices, captions, strict=True):
        colours = grounds(Key(0, "ground").uniform("tone", BATCH, int(index[0])).float())
        arranged = scenes.arrangement(index)
        # A scene's ground is a grey, so that each channel is taken of a scene of its own grey.
        channels = [pictured(replace(arranged, tone=colours[:, each]))[:, each] for each in range(3)]
        with torch.no_grad():
            latents = model.codec.encode(torch.stack(channels, dim=1))
        yield latents, conditions.of(torch.tensor([every.index(text) if text else -1 for text in texts]))


def ground_of(pictures: Tensor) -> Tensor:
    """The colour of each picture's ground, (n, 3): the median of its edge."""
    edge = torch.cat([pictures[:, :, 0], pictures[:, :, -1], pictures[:, :, :, 0], pictures[:, :, :, -1]], dim=2)
    return edge.median(2).values
