"""Scenes as a latent diffusion model sees them: a codec's latents, and embedded captions.

What ``data.latents`` and ``captioned`` make of scenes is other data: samples of the codec's
posterior, on disk, without a range, and without the conditions that a pretraining, which has no
prompts, asks its data for. The teacher that ships was trained on these means, and its runs are
known by their identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.condition import Conditions
from fewstep.data.dataset import Conditioned
from fewstep.data.prompts.conditions import PromptConditions
from fewstep.data.prompts.embeddings import EmbeddedPrompts
from fewstep.data.scenes.scene_set import Scenes
from fewstep.networks import Codec
from fewstep.system.files import digest_of

_ROWS = 500
RANGE = 16.0
"""Latents of mean square 1 have no range; beyond this none is."""


@dataclass(frozen=True, eq=False)
class SceneLatents(Conditioned):
    """The latents of ``scenes`` by ``codec``, and their captions' embeddings.

    ``embedded``: embeds a list of captions, by the encoder whose identity is ``encoder``. All
    latents are made when one is first asked for, a block of scenes at a time, and kept in memory.
    """

    scenes: Scenes
    codec: Codec
    embedded: Callable[[Sequence[str]], EmbeddedPrompts]
    encoder: str

    classes = 0
    low = -RANGE
    high = RANGE
    names = ()

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codec.latent_shape(self.scenes.shape[-1])

    def take(self, index: Tensor) -> Tensor:
        return self._latents[index]

    @property
    def labels(self) -> Tensor:  # type: ignore[override]
        return self.scenes.numbered_captions[1]

    @cached_property
    def identity(self) -> str:
        return digest_of(
            {}, {"kind": "latents", "of": self.scenes.identity, "codec": self.codec.identity, "encoder": self.encoder}
        )

    @cached_property
    def conditions(self) -> Conditions:
        return PromptConditions(self.embedded(self.scenes.numbered_captions[0]))

    @cached_property
    def _latents(self) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.codec.encode(block) for block in self.scenes.blocks(_ROWS)])
