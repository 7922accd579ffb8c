"""A tiny codec that counts, and processes that fill one cache of latents with it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from filling_kit import hang_in_sync, one_of_two, wait_to_begin
from torch import Tensor

from fewstep.data import InMemory
from fewstep.data.latents import Latents, latents_of
from fewstep.networks import AutoencoderCodec
from fewstep.random import Key

SIDE, FACTOR, CHANNELS = 8, 2, 4
CONFIG: dict[str, Any] = {
    "block_out_channels": [4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
    "latent_channels": CHANNELS,
    "scaling_factor": 0.3,
}


class CountedCodec(AutoencoderCodec):
    """diffusers' autoencoder of random weights. ``shift`` is added to all means, as another batch
    or machine would add a rounding; ``pause`` seconds pass at each call; ``called`` are its
    batches.
    """

    def __init__(self, seed: int = 0, shift: float = 0.0, pause: float = 0.0):
        super().__init__(CONFIG)
        self.shift, self.pause = shift, pause
        self.called: list[int] = []
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))

    def _posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled()
        self.called.append(len(pictures))
        time.sleep(self.pause)
        mean, deviation = super()._posterior(pictures)
        return mean + self.shift, deviation


def pictures_of(count: int, height: int = SIDE, width: int = SIDE, seed: int = 0) -> InMemory:
    """Random pictures in three classes."""
    samples = Key(seed, "pictures").lasting("pictures", (count, 3, height, width)).clamp(-1, 1)
    return InMemory(samples, torch.arange(count) % 3, 3, names=("a", "b", "c"))


def made(folder: Path, count: int, codec: CountedCodec, **more: Any) -> Latents:
    """The latents of that many pictures, in packs of 8 unless ``rows`` says others."""
    return latents_of(pictures_of(count), codec, folder, **{"say": lambda _: None, "rows": 8, **more})


def content(latents: Latents) -> bytes:
    """All latents as bytes."""
    return latents.take(torch.arange(len(latents))).numpy().tobytes()


def fill(folder: Path, out: Path, shift: float, count: int) -> None:
    """Makes latents from a process of its own, when the file ``go`` is there; ``out`` gets them."""
    wait_to_begin(out)
    out.write_bytes(content(made(folder, count, CountedCodec(shift=shift, pause=0.02))))


def fill_and_hang(folder: Path, marker: Path, count: int, syncs: int) -> None:
    """Makes latents, and hangs for ever in a sync."""
    hang_in_sync(marker, syncs)
    made(folder, count, CountedCodec())


def fill_as_a_group(rank: int, folder: Path, out: Path) -> None:
    """Makes latents as one of two processes of a run."""
    codec, said = CountedCodec(shift=float(rank)), list[str]()
    with one_of_two(rank, out):
        found = made(folder, 20, codec, say=said.append)
        assert sum(codec.called) == (20 if rank == 0 else 0)
        assert len(said) == (1 if rank == 0 else 0), said
        out.with_suffix(f".{rank}").write_bytes(content(found))
