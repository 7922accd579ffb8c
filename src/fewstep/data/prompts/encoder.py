"""What turns prompts into tensors, and what is asked of those tensors before they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fewstep.data.cached.filling import first_row_not_finite
from fewstep.data.cached.packs import type_name
from fewstep.errors import NotFinite, UserError


class PromptEncoder(Protocol):
    """Text encoders of one model, with their tokenizers."""

    @property
    def identity(self) -> str:
        """Hexadecimal digits over all that decides the embeddings: weights, tokenizers, the limit,
        which layer is taken.
        """

    @property
    def length(self) -> int:
        """The most tokens that it reads of a prompt."""

    def tokens(self, prompt: str) -> int:
        """How many tokens a prompt has before it is cut, counted as ``length`` counts them."""

    def __call__(self, prompts: Sequence[str], /) -> Mapping[str, Tensor]:
        """Named tensors (B, ...) of B prompts, such as ``text`` (B, L, D) and ``pooled`` (B, P).

        A prompt of more than ``length`` tokens is cut. Names, types and shapes behind B are the
        same at each call.
        """

    def null(self) -> Mapping[str, Tensor]:
        """The same tensors of the unconditional prompt, one row each: (1, ...)."""


def encoded(encoder: PromptEncoder, prompts: Sequence[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors (B, ...) that the encoder gives for B prompts, without gradients.

    Floats become ``dtype``, unless it is None; other types stay. Raises ``UserError`` for tensors
    without a row a prompt.
    """
    with torch.no_grad():
        return _as_rows(encoder(prompts), len(prompts), dtype)


def encoded_null(encoder: PromptEncoder, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The same of the unconditional prompt, (1, ...)."""
    with torch.no_grad():
        return _as_rows(encoder.null(), 1, dtype)


def check_rows_finite(tensors: Mapping[str, Tensor], whose: Sequence[str]) -> None:
    """Raises ``NotFinite`` for the first row that holds a value that is not finite; ``whose``
    says whose rows they are.
    """
    found = first_row_not_finite(tensors)
    if found is None:
        return
    name, row = found
    raise NotFinite(
        f"{whose[row]}: its embedding '{name}' ({type_name(tensors[name].dtype)}) holds values that are not finite; "
        "take the prompt out, or compute in a type of a wider range."
    )


def _as_rows(given: Mapping[str, Tensor], count: int, dtype: torch.dtype | None) -> dict[str, Tensor]:
    if not given:
        raise UserError("the prompt encoder gives no tensors; it must give at least one, with a row a prompt.")
    wrong = next((name for name, value in given.items() if value.dim() == 0 or len(value) != count), None)
    if wrong is not None:
        raise UserError(
            f"the prompt encoder gives '{wrong}' of shape {tuple(given[wrong].shape)} for {count} prompts; its first "
            "dimension must be that of the prompts."
        )
    return {
        name: value.to(dtype) if dtype is not None and value.is_floating_point() else value
        for name, value in given.items()
    }
