"""Embeds prompts once: what the cache holds is found there, and what is missing is computed.

An embedding is found by the encoder's identity, the type that is asked for and the SHA-256 of the
prompt, whatever list the prompt is in. What is missing is computed and kept as ``data.cached``
keeps rows. The encoder is made only where something is missing, and let go before the rows are
read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fewstep.data.cached.filling import blocks_missing, fill, found_rows
from fewstep.data.cached.packs import Header, Index, PackedRows, RowsLayout, type_name
from fewstep.data.prompts.embeddings import EmbeddedPrompts
from fewstep.data.prompts.encoder import PromptEncoder, check_rows_finite, encoded, encoded_null
from fewstep.data.prompts.read import Prompts
from fewstep.errors import UserError
from fewstep.system import distributed
from fewstep.system.files import digest_of
from fewstep.system.ledger import print_sentence

TooLong = Literal["cut", "refuse"]
MOST_BLOCK = 2**16
_HEX = re.compile("[0-9a-f]{16,}")
# Stands where the SHA-256 of a prompt would.
_NULL = "null"
_AS_GIVEN = "as given"
# What a pack says of each prompt, and of all of them.
_TOKENS, _LENGTH = "tokens", "length"


def embed(
    prompts: Prompts,
    make_encoder: Callable[[], PromptEncoder],
    identity: str,
    folder: Path | None = None,
    *,
    block: int = 256,
    dtype: torch.dtype | None = None,
    too_long: TooLong = "cut",
    say: Callable[[str], None] = print_sentence,
) -> EmbeddedPrompts:
    """The prompts' embeddings by the encoder of that ``identity``, from the cache or computed.

    ``make_encoder`` is called only where a prompt is missing in the cache, in the first process of
    a run; the encoder is called with at most ``block`` prompts, from 1 to 65,536, which are then a
    pack. ``folder``: the cache, None for that of the machine. ``dtype``: what floats are kept in,
    None for what the encoder gives; embeddings of different types are different entries.
    ``too_long``: whether prompts of more tokens than the encoder reads are cut, which is counted
    and said, or refused before any is embedded. ``say`` is told what is worth a line.

    What is in the cache counts: a prompt that was computed in another batch may differ in its last
    bits, so the first that was written is what all processes read from then on. A pack that is
    damaged is passed over and said, and its prompts are computed again.

    Raises ``UserError`` for a prompt that is too long, an encoder of another identity, tensors
    without a row a prompt, and where nothing can be written; ``NotFinite`` for an embedding with
    values that are not finite.
    """
    if not _HEX.fullmatch(identity):
        raise UserError(f"the identity of a prompt encoder is '{identity:.80}'; give at least 16 hexadecimal digits.")
    if not 1 <= block <= MOST_BLOCK:
        raise UserError(f"prompts are embedded in blocks of 1 to {MOST_BLOCK:,}, not of {block:,}.")
    if dtype is not None and not dtype.is_floating_point:
        raise UserError(f"embeddings cannot be kept in {dtype}; give a type of floats.")
    made = {"encoder": identity, "type": _AS_GIVEN if dtype is None else type_name(dtype)}
    packed = PackedRows("prompt embeddings", made, "embeddings of this encoder and type", "the encoder")
    keys = [hashlib.sha256(text.encode()).hexdigest() for text in prompts.texts]
    index = Index(packed.folder("embeddings", folder), packed, {_NULL, *keys}, say)
    names = fill(index, _Job(prompts, keys, index, make_encoder, block, dtype, too_long).steps)
    return _found(prompts, keys, index, names)


@dataclass
class _Job:
    prompts: Prompts
    keys: Sequence[str]
    index: Index
    make_encoder: Callable[[], PromptEncoder]
    block: int
    dtype: torch.dtype | None
    too_long: TooLong

    def steps(self) -> Iterator[None]:
        """Computes what is missing, a block at each step."""
        places: dict[str, int] = {}
        for number, key in enumerate(self.keys):
            places.setdefault(key, number)
        missing = [key for key in places if key not in self.index.found]
        if missing or _NULL not in self.index.found:
            yield from self._computed(missing, places)
        elif self.index.layout is not None:
            self._check_lengths(self.index.counts[_TOKENS], self.index.layout.facts[_LENGTH])

    def _computed(self, missing: Sequence[str], places: Mapping[str, int]) -> Iterator[None]:
        encoder = self.make_encoder()
        if encoder.identity != self.index.packed.made["encoder"]:
            raise UserError(
                f"the prompt encoder that was made is '{encoder.identity:.80}', not the one that was asked for "
                f"('{self.index.packed.made['encoder']:.80}'); check which weights it is made from."
            )
        texts = self.prompts.texts
        tokens = {key: encoder.tokens(texts[places[key]]) for key in missing}
        self._check_lengths({**tokens, **self.index.counts.get(_TOKENS, {})}, encoder.length)
        if missing:
            self.index.say(
                f"{self.prompts.source}: {len(missing):,} of {len(places):,} different prompts are not in the cache; "
                f"they are embedded now, and kept in {self.index.folder}."
            )
        if _NULL not in self.index.found:
            rows = encoded_null(encoder, self.dtype)
            check_rows_finite(rows, ["the unconditional prompt"])
            self.index.write(_header([_NULL], [0], encoder, rows), rows)
        for block in blocks_missing(self.index, missing, self.block):
            numbers = [places[key] for key in block]
            rows = encoded(encoder, [texts[number] for number in numbers], self.dtype)
            check_rows_finite(rows, [f"{self.prompts.source}: {self.prompts.where(number)}" for number in numbers])
            self.index.write(_header(block, [tokens[key] for key in block], encoder, rows), rows)
            yield

    def _check_lengths(self, tokens: Mapping[str, int], length: int) -> None:
        longer = _longer(self.keys, tokens, length)
        if longer and self.too_long == "refuse":
            number, count = longer[0]
            are = "is" if len(longer) == 1 else "are"
            raise UserError(
                f"{self.prompts.source}: {len(longer):,} of {len(self.keys):,} prompts {are} longer than the "
                f"{length:,} tokens that the encoder reads: prompt {number + 1:,} ({self.prompts.where(number)}) has "
                f"{count:,}; shorten what is too long, or let it be cut (too_long='cut')."
            )


def _header(keys: Sequence[str], tokens: Sequence[int], encoder: PromptEncoder, rows: Mapping[str, Tensor]) -> Header:
    return Header(list(keys), RowsLayout.of(rows, {_LENGTH: encoder.length}), {_TOKENS: list(tokens)})


def _longer(keys: Sequence[str], tokens: Mapping[str, int], length: int) -> list[tuple[int, int]]:
    """The numbers of the prompts, from 0, of more than ``length`` tokens, and their tokens."""
    return [(number, tokens[key]) for number, key in enumerate(keys) if tokens[key] > length]


def _found(prompts: Prompts, keys: Sequence[str], index: Index, names: Sequence[str]) -> EmbeddedPrompts:
    """The embeddings in the packs of those names, which hold all prompts."""
    kept, counts = found_rows(index, names, [_NULL, *keys])
    length = kept.packs.layout.facts[_LENGTH]
    remarks = list(prompts.remarks)
    longer = _longer(keys, counts[_TOKENS], length)
    if longer:
        number, count = longer[0]
        are = "is" if len(longer) == 1 else "are"
        remarks.append(
            f"{prompts.source}: {len(longer):,} of {len(prompts):,} prompts {are} longer than {length:,} tokens "
            f"and {are} cut: {prompts.where(number)} has {count:,}."
        )
        if distributed.first():
            index.say(remarks[-1])
    return EmbeddedPrompts(
        prompts.texts,
        digest_of({}, {**index.packed.made, "prompts": prompts.identity}),
        kept.take(torch.tensor([0])),
        kept[1:],
        tuple(remarks),
    )
