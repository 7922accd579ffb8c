r"""diffusers' variational autoencoder (``AutoencoderKL``) as a codec.

With z what the autoencoder works in, and s, b, m, d its configuration's ``scaling_factor``,
``shift_factor`` (0 where there is none), ``latents_mean`` and ``latents_std`` (0 and 1, a number a
channel):

    latents = s (z - b - m) / d.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.networks.codec import Codec
from fewstep.networks.diffusers.backbone import class_of
from fewstep.system.files import digest_of

_OVERLAP = 4
"""Tiles share a quarter of their side."""


class AutoencoderCodec(Codec):
    """See the module's docstring.

    ``config``: the arguments of ``AutoencoderKL``, plain values. ``tile``: pictures with a side of
    more pixels are decoded in tiles of that side, which overlap and are blended, as diffusers does;
    less memory, and other pixels near the seams.

    Raises ``UserError`` when diffusers is missing, for an argument that it does not know, for
    configurations of other than colour pictures, and for a tile that cannot be quartered.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, config: Mapping[str, Any], tile: int = 1024):
        super().__init__()
        self.vae: Any = class_of("codec", "AutoencoderKL", config)(**config)
        settings = self.vae.config
        if settings.in_channels != 3 or settings.out_channels != 3:
            raise UserError(
                f"codec: takes pictures of {settings.in_channels} channels and makes such of {settings.out_channels}; "
                "only codecs of colour pictures are read here."
            )
        self.channels = settings.latent_channels
        self.factor = 2 ** (len(settings.block_out_channels) - 1)
        if tile < 1 or tile % (_OVERLAP * self.factor):
            raise UserError(
                f"codec: tiles of {tile} pixels cannot overlap by a quarter; 'tile' must be a multiple of "
                f"{_OVERLAP * self.factor}."
            )
        self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = tile, tile // self.factor
        mean, deviation = (
            self._a_channel(settings.latents_mean, 0.0, "latents_mean"),
            self._a_channel(settings.latents_std, 1.0, "latents_std"),
        )
        self.register_buffer("offset", mean + (settings.shift_factor or 0.0), persistent=False)
        self.register_buffer("scale", settings.scaling_factor / deviation, persistent=False)
        self.requires_grad_(False).eval()

    @property
    def identity(self) -> str:
        return self._identity

    @functools.cached_property
    def _identity(self) -> str:
        settings = self.vae.config
        besides = {
            "offset": self.offset.flatten().tolist(),
            "scale": self.scale.flatten().tolist(),
            "activation": settings.act_fn,
            "groups": settings.norm_num_groups,
            "tile": self.vae.tile_sample_min_size,
        }
        return digest_of(self.vae.state_dict(), besides)

    def _a_channel(self, values: Any, usual: float, name: str) -> Tensor:
        """A number a channel, (1, C, 1, 1)."""
        numbers = torch.full((self.channels,), usual) if values is None else torch.tensor(values, dtype=torch.float32)
        if numbers.shape != (self.channels,):
            raise UserError(
                f"codec: has {numbers.numel()} numbers for {name} and {self.channels} channels of latents; correct "
                "its configuration."
            )
        return numbers.reshape(1, -1, 1, 1)

    def _posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        self.vae.disable_tiling()
        found = self.vae.encode(pictures, return_dict=False)[0]
        return (found.mean - self.offset) * self.scale, found.std * self.scale

    def _pictures(self, latents: Tensor) -> Tensor:
        self.vae.enable_tiling()
        return self.vae.decode(latents / self.scale + self.offset, return_dict=False)[0]
