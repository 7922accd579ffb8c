"""Embeds prompts once: what the cache holds is found there, and what is missing is computed.

An embedding is found by the encoder's identity, the type that is asked for and the SHA-256 of the
prompt, whatever list the prompt is in. What is missing is computed in blocks, and each block is
written as a pack (see ``packs``), so that a process that is killed loses one block. The encoder is
made only where something is missing, and let go before the rows are read.

Several processes of one run embed as one: the first process computes, a block at a time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from fewstep.data.prompts.embeddings import EmbeddedPrompts, PackRows
from fewstep.data.prompts.encoder import PromptEncoder, check_rows_finite, encoded, encoded_null
from fewstep.data.prompts.packs import Header, Index, RowsLayout, header_of
from fewstep.data.prompts.read import Prompts
from fewstep.errors import UserError
from fewstep.system import distributed
from fewstep.system.caches import cache_folder
from fewstep.system.files import digest_of
from fewstep.system.ledger import print_sentence

TooLong = Literal["cut", "refuse"]
MOST_BLOCK = 2**16
_HEX = re.compile("[0-9a-f]{16,}")
# Stands where the SHA-256 of a prompt would.
_NULL = "null"
_AS_GIVEN = "as given"


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
    made = {"encoder": identity, "type": _AS_GIVEN if dtype is None else str(dtype).removeprefix("torch.")}
    where = Path(folder or cache_folder()) / "embeddings" / digest_of({}, made)[:32]
    keys = [hashlib.sha256(text.encode()).hexdigest() for text in prompts.texts]
    index = Index(where, made, {_NULL, *keys}, say)
    steps = _Job(prompts, keys, index, make_encoder, block, dtype, too_long).steps()
    # A block at a time: no process waits for another longer than that takes.
    while (names := distributed.together(lambda: next(steps))) is None:
        pass
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

    def steps(self) -> Iterator[list[str] | None]:
        """Computes a block at each step, and gives the names of the packs at the last."""
        self.index.look()
        places: dict[str, int] = {}
        for number, key in enumerate(self.keys):
            places.setdefault(key, number)
        missing = [key for key in places if key not in self.index.found]
        if missing or _NULL not in self.index.found:
            yield from self._computed(missing, places)
        elif self.index.layout is not None:
            self._check_lengths(self.index.tokens, self.index.layout.length)
        yield sorted(set(self.index.found.values()))

    def _computed(self, missing: Sequence[str], places: Mapping[str, int]) -> Iterator[None]:
        encoder = self.make_encoder()
        if encoder.identity != self.index.made["encoder"]:
            raise UserError(
                f"the prompt encoder that was made is '{encoder.identity:.80}', not the one that was asked for "
                f"('{self.index.made['encoder']:.80}'); check which weights it is made from."
            )
        texts = self.prompts.texts
        tokens = {key: encoder.tokens(texts[places[key]]) for key in missing}
        self._check_lengths({**tokens, **self.index.tokens}, encoder.length)
        if missing:
            self.index.say(
                f"{self.prompts.source}: {len(missing):,} of {len(places):,} different prompts are not in the cache; "
                f"they are embedded now, and kept in {self.index.folder}."
            )
        if _NULL not in self.index.found:
            rows = encoded_null(encoder, self.dtype)
            check_rows_finite(rows, ["the unconditional prompt"])
            self.index.write(Header([_NULL], [0], RowsLayout.of(encoder.length, rows)), rows)
        left = iter(missing)
        # What others have written meanwhile, which each writing has found, is not computed again.
        while block := list(islice((key for key in left if key not in self.index.found), self.block)):
            numbers = [places[key] for key in block]
            rows = encoded(encoder, [texts[number] for number in numbers], self.dtype)
            check_rows_finite(rows, [f"{self.prompts.source}: {self.prompts.where(number)}" for number in numbers])
            self.index.write(Header(block, [tokens[key] for key in block], RowsLayout.of(encoder.length, rows)), rows)
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


def _longer(keys: Sequence[str], tokens: Mapping[str, int], length: int) -> list[tuple[int, int]]:
    """The numbers of the prompts, from 0, of more than ``length`` tokens, and their tokens."""
    return [(number, tokens[key]) for number, key in enumerate(keys) if tokens[key] > length]


def _found(prompts: Prompts, keys: Sequence[str], index: Index, names: Sequence[str]) -> EmbeddedPrompts:
    """The embeddings in the packs of those names, which hold all prompts."""
    places: dict[str, tuple[int, int]] = {}
    tokens: dict[str, int] = {}
    headers = [header_of(index.folder / name, index.made) for name in names]
    for number, header in enumerate(headers):
        for row, key in enumerate(header.prompts):
            if key in index.wanted and key not in places:
                places[key], tokens[key] = (number, row), header.tokens[row]
    layout = headers[0].layout
    packs = PackRows(index.folder, tuple(names), layout, index.verified)
    where = torch.tensor([places[key] for key in [_NULL, *keys]])
    remarks = list(prompts.remarks)
    longer = _longer(keys, tokens, layout.length)
    if longer:
        number, count = longer[0]
        are = "is" if len(longer) == 1 else "are"
        remarks.append(
            f"{prompts.source}: {len(longer):,} of {len(prompts):,} prompts {are} longer than {layout.length:,} tokens "
            f"and {are} cut: {prompts.where(number)} has {count:,}."
        )
        if distributed.first():
            index.say(remarks[-1])
    return EmbeddedPrompts(
        prompts.texts,
        digest_of({}, {**index.made, "prompts": prompts.identity}),
        packs.take(where[:1, 0], where[:1, 1]),
        packs,
        where[1:, 0],
        where[1:, 1],
        tuple(remarks),
    )
