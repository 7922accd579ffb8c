"""What a codec is: pictures to the latents in which a diffusion model works, and back."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewstep.errors import UserError

Called = Callable[[int], str]
"""What to call the sample of a row in a sentence."""
_SAMPLE: Called = "sample {}".format
_MADE = "the latents that the codec makes of pictures"


class Codec(nn.Module, abc.ABC):
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, ``channels``, H / ``factor``, W / ``factor``)
    and back; frozen.

    Latents are scaled as the diffusion model takes them. Everything is computed in float32, also
    under autocast, since published codecs overflow in float16; ``rows`` samples at a time. A codec
    never turns gradients off: the caller decides.
    """

    channels: int
    factor: int
    rows: int = 4

    @property
    @abc.abstractmethod
    def identity(self) -> str:
        """The SHA-256, in hexadecimal, of the weights and what else decides what it computes."""

    @abc.abstractmethod
    def _posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the standard deviation of the latents, each (B, C, h, w)."""

    @abc.abstractmethod
    def _pictures(self, latents: Tensor) -> Tensor:
        """The pictures, not clamped."""

    def latent_shape(self, height: int, width: int | None = None) -> tuple[int, int, int]:
        """The shape of one sample's latents, for pictures of ``height`` x ``width`` pixels; square
        ones unless ``width`` is given.

        Raises ``UserError`` for a side that is no multiple of ``factor``.
        """
        return self.channels, *self._sizes(height, height if width is None else width)

    def encode(self, pictures: Tensor) -> Tensor:
        """The mean of the latents.

        Raises ``UserError`` for pictures of another shape, and for values that are not finite.
        """
        return torch.cat([mean for mean, _ in self._encoded(pictures)])

    def encode_sample(self, pictures: Tensor, noise: Tensor, called: Called = _SAMPLE) -> Tensor:
        """A sample of the latents' distribution: mean + deviation ``noise``, with standard normals
        of the latents' shape. ``called``: what to call the picture of a row in a sentence.

        Raises what ``encode`` raises, and ``UserError`` for latents that are not finite.
        """
        parts = self._encoded(pictures, called)
        mean, deviation = (torch.cat(each) for each in zip(*parts, strict=True))
        if noise.shape != mean.shape:
            raise UserError(
                f"codec: the noise is of shape {tuple(noise.shape)} and the latents are of {tuple(mean.shape)}; "
                "give one number each."
            )
        latents = mean + deviation * noise.to(mean)
        _check_finite(latents, _MADE, 0, called)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures (B, 3, H, W), clamped to [-1, 1].

        Raises ``UserError`` for latents of another shape, and for values that are not finite.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise UserError(
                f"codec: takes latents of shape (rows, {self.channels}, height, width) and was given "
                f"{tuple(latents.shape)}; give the latents that this codec or its model made."
            )
        found = []
        for start, block in self._blocks(latents, "the latents"):
            with _full_precision(block):
                pictures = self._pictures(block)
            _check_finite(pictures, "the pictures that the codec makes of latents", start)
            found.append(pictures.clamp(-1, 1))
        return torch.cat(found)

    def _encoded(self, pictures: Tensor, called: Called = _SAMPLE) -> list[tuple[Tensor, Tensor]]:
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise UserError(
                f"codec: takes pictures of shape (rows, 3, height, width) and was given {tuple(pictures.shape)}; "
                "give colour pictures in [-1, 1]."
            )
        self._sizes(*pictures.shape[2:])
        found = []
        for start, block in self._blocks(pictures, "the pictures", called):
            with _full_precision(block):
                mean, deviation = self._posterior(block)
            _check_finite(mean, _MADE, start, called)
            found.append((mean, deviation))
        return found

    def _blocks(self, values: Tensor, what: str, called: Called = _SAMPLE) -> list[tuple[int, Tensor]]:
        """The samples in blocks of ``rows``, in the weights' type, each with the index of its
        first.
        """
        kind = next(self.parameters()).dtype
        if torch.promote_types(kind, torch.float32) != kind:
            raise UserError(
                f"codec: its weights are {kind}, in which its activations overflow; leave them in float32, in which "
                "it is read, and cast what it makes."
            )
        _check_finite(values, what, 0, called)
        return [(start, values[start : start + self.rows].to(kind)) for start in range(0, len(values), self.rows)]

    def _sizes(self, height: int, width: int) -> tuple[int, int]:
        if height < 1 or width < 1 or height % self.factor or width % self.factor:
            raise UserError(
                f"codec: pictures of {height} x {width} pixels have no latents; both sides must be multiples of "
                f"{self.factor}."
            )
        return height // self.factor, width // self.factor


def _full_precision(values: Tensor) -> torch.autocast:
    """A context without autocast."""
    return torch.autocast("cpu" if values.is_meta else values.device.type, enabled=False)


def _check_finite(values: Tensor, what: str, start: int, called: Called = _SAMPLE) -> None:
    if values.is_meta or bool(values.isfinite().all()):
        return
    row = int((~values.isfinite()).flatten(1).any(1).nonzero()[0, 0])
    raise UserError(
        f"codec: {what} are not finite numbers in {called(start + row)}; look for where they come from, as a model "
        "that has diverged, or take another sample."
    )
