"""What EDM's two U-Nets share: which blocks there are, and the walk through them.

Blocks are named by resolution. The encoder begins with a convolution and halves the resolution
before each further level; the decoder begins with two blocks in the middle, doubles it before each
further level, and each of its numbered blocks takes one of the encoder's activations beside what
came from before, the last first.

The walk yields the activations after each block as they go on to the next, so that a caller who
wants some of them stops where it has them: a critic's head on the bottleneck (``features``) never
computes the decoder, one on early blocks (``features_at``) not even the encoder.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks.adapters.selection import contexts
from fewstep.networks.edm.layers import Resampling, UNetBlock
from fewstep.networks.interfaces import DenoisingNetwork


@dataclass(frozen=True)
class Entry:
    """One block: its name, its level (0 is the full resolution), channels in (with those of
    ``skip``) and out.
    """

    name: str
    level: int
    inputs: int
    outputs: int
    resample: Resampling | None = None
    attention: bool = False


@dataclass(frozen=True)
class BlockPlan:
    """The levels of a U-Net: their ``resolutions`` and channels (``widths``), ``blocks`` a level in
    the encoder (one more in the decoder), ``stem`` channels after the first convolution.
    """

    resolutions: tuple[int, ...]
    widths: tuple[int, ...]
    stem: int
    blocks: int
    attention: tuple[int, ...]

    def encoder(self) -> list[Entry]:
        """The encoder's blocks after its first convolution, in order."""
        entries, width = [], self.stem
        for level, (resolution, wide) in enumerate(zip(self.resolutions, self.widths, strict=True)):
            if level:
                entries.append(Entry(f"{resolution}x{resolution}_down", level, width, width, "down"))
            for index in range(self.blocks):
                entries.append(
                    Entry(
                        f"{resolution}x{resolution}_block{index}",
                        level,
                        width,
                        wide,
                        attention=resolution in self.attention,
                    )
                )
                width = wide
        return entries

    def decoder(self, all_attend: bool) -> list[Entry]:
        """The decoder's blocks, in order; at a resolution with attention all of them have it, or
        only the last.
        """
        skips = [self.stem, *(entry.outputs for entry in self.encoder())]
        entries, width = [], self.widths[-1]
        for level in reversed(range(len(self.widths))):
            resolution, wide = self.resolutions[level], self.widths[level]
            if level == len(self.widths) - 1:
                entries.append(Entry(f"{resolution}x{resolution}_in0", level, width, width, attention=True))
                entries.append(Entry(f"{resolution}x{resolution}_in1", level, width, width))
            else:
                entries.append(Entry(f"{resolution}x{resolution}_up", level, width, width, "up"))
            for index in range(self.blocks + 1):
                attention = resolution in self.attention and (all_attend or index == self.blocks)
                entries.append(
                    Entry(
                        f"{resolution}x{resolution}_block{index}", level, width + skips.pop(), wide, attention=attention
                    )
                )
                width = wide
        return entries


def plan_of(
    img_resolution: int, stem: int, widths: Sequence[int], num_blocks: int, attn_resolutions: Sequence[int]
) -> BlockPlan:
    """A plan, checked.

    Raises ``UserError`` for no levels or blocks, a resolution that cannot be halved so often, and
    attention at a resolution that no level has.
    """
    if not widths or num_blocks < 1:
        raise UserError(
            f"a U-Net needs at least one level and one block a level, got channel_mult of {len(widths)} "
            f"numbers and num_blocks {num_blocks}."
        )
    halvings = len(widths) - 1
    if img_resolution < 1 or img_resolution % 2**halvings:
        raise UserError(
            f"img_resolution {img_resolution} cannot be halved {halvings} times, which channel_mult of "
            f"{len(widths)} numbers asks for: it must be a multiple of {2**halvings}."
        )
    resolutions = tuple(img_resolution >> level for level in range(len(widths)))
    missing = sorted(set(attn_resolutions) - set(resolutions))
    if missing:
        raise UserError(
            f"attn_resolutions names {missing[0]}, which does not occur: the levels have resolutions "
            f"{', '.join(map(str, resolutions))}."
        )
    return BlockPlan(resolutions, tuple(widths), stem, num_blocks, tuple(attn_resolutions))


class UNet(DenoisingNetwork, abc.ABC):
    """See the module's docstring.

    ``enc`` and ``dec`` hold the blocks by name; names with ``_aux_`` are side branches of the
    image, not blocks.
    """

    entries = ("features", "features_at")
    enc: nn.ModuleDict
    dec: nn.ModuleDict

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of all blocks in the order of the walk: those of the encoder, its first
        convolution included, then those of the decoder.
        """
        return tuple(
            f"{part}.{name}"
            for part, blocks in (("enc", self.enc), ("dec", self.dec))
            for name in blocks
            if "_aux_" not in name
        )

    def features(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        """The activations at the end of the encoder, (B, bottleneck, h, w); the decoder, whose
        first two blocks are at the same resolution, is not computed.
        """
        return last_of(self._encoded(x, self._embedded(x, noise_label, condition, end_label)))

    def features_at(
        self,
        x: Tensor,
        noise_label: Tensor,
        condition: Condition,
        positions: Sequence[int],
        end_label: Tensor | None = None,
    ) -> list[Tensor]:
        """The activations after the blocks at ``positions`` (indices into ``blocks``), (B, C, h, w)
        each, in the order asked for; nothing after the last of them is computed.

        Raises ``UserError`` for a position that no block has.
        """
        wrong = [position for position in positions if not 0 <= position < len(self.blocks)]
        if wrong:
            raise UserError(
                f"features_at: there is no block at position {wrong[0]}; this network's blocks are at 0 to "
                f"{len(self.blocks) - 1}."
            )
        walk = self._activations(x, self._embedded(x, noise_label, condition, end_label))
        # The range comes first: it ends before the walk is asked for one block more.
        found = {
            position: hidden
            for position, hidden in zip(range(max(positions, default=-1) + 1), walk, strict=False)
            if position in positions
        }
        return [found[position] for position in positions]

    @abc.abstractmethod
    def _embedded(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None) -> Tensor:
        """All that the blocks are told, (B, E), in the type of ``x``."""

    @abc.abstractmethod
    def _encoded(self, x: Tensor, embedded: Tensor) -> Iterator[Tensor]:
        """The activations after each block of the encoder."""

    def _activations(self, x: Tensor, embedded: Tensor) -> Iterator[Tensor]:
        """The activations after each of ``blocks``."""
        skips = []
        for hidden in self._encoded(x, embedded):
            skips.append(hidden)
            yield hidden
        hidden = skips[-1]
        for name, block in self.dec.items():
            if isinstance(block, UNetBlock):
                hidden = (
                    self._run(block, embedded, hidden, skips.pop())
                    if "_block" in name
                    else self._run(block, embedded, hidden)
                )
                yield hidden

    def _run(self, block: nn.Module, embedded: Tensor, *parts: Tensor) -> Tensor:
        """A block of the activations ``parts``, side by side; under ``recompute`` neither they nor
        what is inside the block are kept for the backward pass.
        """
        if self.recompute and torch.is_grad_enabled():
            # No block draws at random, so there is no generator's state to keep.
            return checkpoint(
                _joined, block, embedded, *parts, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
            )
        return _joined(block, embedded, *parts)


def last_of(walk: Iterator[Tensor]) -> Tensor:
    """The last activations of a walk; those before are let go as it proceeds."""
    return deque(walk, maxlen=1)[0]


def _joined(block: nn.Module, embedded: Tensor, *parts: Tensor) -> Tensor:
    return block(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], embedded)
