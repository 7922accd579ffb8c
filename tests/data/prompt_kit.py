"""A text encoder that is a hash, and processes that fill one cache with it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filling_kit import hang_in_sync, one_of_two, wait_to_begin
from torch import Tensor

from fewstep.data.prompts import PromptEncoder, embed, read_prompts

IDENTITY = "0123456789abcdef" * 4
SIZES = {"text": (6, 3), "pooled": (4,)}


def hashed(prompt: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [-1, 1) that are a prompt's alone."""
    count = int(torch.tensor(shape).prod())
    stream = hashlib.shake_256(f"{shape} {prompt}".encode()).digest(2 * count)
    return (torch.frombuffer(bytearray(stream), dtype=torch.int16).float() / 2**15).reshape(shape)


@dataclass(eq=False)
class HashEncoder(PromptEncoder):
    """Tokens are words, of which it reads six; ``mask`` says which of the six there are.

    ``shift`` is added to all floats, as another batch or machine would add a rounding; ``called``
    are the prompts of each call.
    """

    identity: str = IDENTITY
    length: int = 6
    shift: float = 0.0
    pause: float = 0.0
    dtype: torch.dtype = torch.float32
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: SIZES)
    called: list[list[str]] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)

    def tokens(self, prompt: str) -> int:
        self.counted.append(prompt)
        return len(prompt.split())

    def __call__(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        assert not torch.is_grad_enabled()
        self.called.append(list(prompts))
        time.sleep(self.pause)
        words = torch.tensor([min(len(prompt.split()), self.length) for prompt in prompts])
        return {
            **{
                name: (torch.stack([hashed(prompt, size) for prompt in prompts]) + self.shift).to(self.dtype)
                for name, size in self.sizes.items()
            },
            "mask": (torch.arange(self.length) < words[:, None]).long(),
        }

    def null(self) -> Mapping[str, Tensor]:
        return self([""])


def texts_of(count: int) -> list[str]:
    return [f"fox number {number}" for number in range(count)]


def fill(folder: Path, out: Path, shift: float, count: int, block: int) -> None:
    """Embeds from a process of its own, when the file ``go`` is there; ``out`` gets the rows."""
    wait_to_begin(out)
    made = HashEncoder(shift=shift, pause=0.01)
    found = embed(read_prompts(texts_of(count)), lambda: made, IDENTITY, folder, block=block, say=lambda _: None)
    out.write_bytes(found.rows(torch.arange(count))["text"].numpy().tobytes())


def fill_and_hang(folder: Path, marker: Path, count: int, block: int, syncs: int) -> None:
    """Embeds, and hangs for ever in a sync."""
    hang_in_sync(marker, syncs)
    embed(read_prompts(texts_of(count)), HashEncoder, IDENTITY, folder, block=block, say=lambda _: None)


def fill_as_a_group(rank: int, folder: Path, out: Path) -> None:
    """Embeds as one of two processes of a run."""
    made: list[HashEncoder] = []

    def make() -> HashEncoder:
        made.append(HashEncoder(shift=float(rank)))
        return made[-1]

    said: list[str] = []
    prompts = read_prompts([*texts_of(10), "a b c d e f g h"])
    with one_of_two(rank, out):
        found = embed(prompts, make, IDENTITY, folder, block=4, say=said.append)
        assert len(made) == (rank == 0)
        assert len(said) == (2 if rank == 0 else 0), said
        assert len(found.remarks) == 1
        out.with_suffix(f".{rank}").write_bytes(found.rows(torch.arange(11))["text"].numpy().tobytes())
