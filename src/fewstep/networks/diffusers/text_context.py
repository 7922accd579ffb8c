"""What networks around diffusers' classes take of a condition's context, checked."""

from __future__ import annotations

from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import UserError


def context_tensor(condition: Condition, name: str, shape: tuple[int, ...], x: Tensor) -> Tensor:
    """One tensor of the context (B, ...), in the type of the samples x (B, *D); ``shape``: of a
    row, in which 1 stands for a number of tokens.

    Raises ``UserError`` for one that is missing or of another shape.
    """
    value = condition.context.get(name)
    if value is None:
        raise UserError(
            f"this network is conditioned on '{name}' and the condition has none: give "
            f"Condition(context={{'{name}': ...}}), of shape ({_shown(shape)}) a batch."
        )
    fits = value.ndim == len(shape) + 1 and len(value) == len(x) and value.shape[-1] == shape[-1]
    if not fits:
        raise UserError(
            f"this network takes '{name}' of shape ({_shown(shape)}) for a batch of {len(x)}, and the condition "
            f"has {tuple(value.shape)}: make it by the encoder of the same pipeline, a row a sample."
        )
    return value.to(x.dtype)


def token_mask(condition: Condition, text: Tensor) -> Tensor | None:
    """The mask of the tokens of a text (B, L, D), (B, L): 1 for a token that counts; None where the
    condition has no mask, so that all count.

    Raises ``UserError`` for a mask of another shape.
    """
    mask = condition.context.get("mask")
    if mask is not None and mask.shape != text.shape[:2]:
        raise UserError(
            f"this network's text has {tuple(text.shape[:2])} tokens and its mask is of shape {tuple(mask.shape)}: "
            "give a number a token, 1 for one that counts."
        )
    return mask


def _shown(shape: tuple[int, ...]) -> str:
    return ", ".join(["rows", *("tokens" if size == 1 else str(size) for size in shape)])
