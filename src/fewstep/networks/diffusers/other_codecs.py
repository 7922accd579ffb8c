r"""Codecs of Sana and Qwen-Image around diffusers' classes.

- ``DeepCompressionCodec`` (``AutoencoderDC``, Chen et al. 2024): latents = s z, 32 pixels a side;
  encoding draws nothing.
- ``FramedCodec`` (``AutoencoderKLQwenImage``, of video): one frame; latents = (z - m) / d with a
  number a channel, ``latents_mean`` and ``latents_std``.
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


class DeepCompressionCodec(Codec):
    """See the module's docstring; ``config``: the arguments of ``AutoencoderDC``, plain values.

    Raises ``UserError`` when diffusers is missing, and for an argument that it does not know.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.vae: Any = class_of("codec", "AutoencoderDC", config)(**config)
        settings = self.vae.config
        self.channels = settings.latent_channels
        self.factor = 2 ** (len(settings.encoder_block_out_channels) - 1)
        self.scale = float(settings.scaling_factor)
        self.requires_grad_(False).eval()

    @property
    def identity(self) -> str:
        return self._identity

    @functools.cached_property
    def _identity(self) -> str:
        return digest_of(self.vae.state_dict(), {"class": "AutoencoderDC", "scale": self.scale})

    def _posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        found = self.vae.encode(pictures, return_dict=False)[0] * self.scale
        return found, torch.zeros_like(found)

    def _pictures(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.scale, return_dict=False)[0]


class FramedCodec(Codec):
    """See the module's docstring; ``config``: the arguments of ``AutoencoderKLQwenImage``, plain
    values.

    Raises ``UserError`` when diffusers is missing, for an argument that it does not know, and for
    other than a number a channel.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.vae: Any = class_of("codec", "AutoencoderKLQwenImage", config)(**config)
        settings = self.vae.config
        self.channels = settings.z_dim
        self.factor = 2 ** len(settings.temperal_downsample)
        for name, place in (("latents_mean", "offset"), ("latents_std", "scale")):
            numbers = list(getattr(settings, name))
            if len(numbers) != self.channels or (name == "latents_std" and min(numbers) <= 0):
                raise UserError(
                    f"codec: has {len(numbers)} numbers for {name}, which must be one for each of {self.channels} "
                    "channels of latents, and those of latents_std above 0; correct its configuration."
                )
            a_channel = torch.tensor(numbers, dtype=torch.float32).reshape(1, -1, 1, 1, 1)
            self.register_buffer(place, a_channel, persistent=False)
        self.requires_grad_(False).eval()

    @property
    def identity(self) -> str:
        return self._identity

    @functools.cached_property
    def _identity(self) -> str:
        numbers = {"offset": self.offset.flatten().tolist(), "scale": self.scale.flatten().tolist()}
        return digest_of(self.vae.state_dict(), {"class": "AutoencoderKLQwenImage", **numbers})

    def _posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        found = self.vae.encode(pictures.unsqueeze(2), return_dict=False)[0]
        mean, deviation = (found.mean - self.offset) / self.scale, found.std / self.scale
        return mean.squeeze(2), deviation.squeeze(2)

    def _pictures(self, latents: Tensor) -> Tensor:
        framed = latents.unsqueeze(2) * self.scale + self.offset
        return self.vae.decode(framed, return_dict=False)[0].squeeze(2)
