r"""Attention by torch's fused kernels, with the derivatives that they lack.

    attended = softmax(q k^T / sqrt c + bias) v,    for each head of c channels.

The fused kernels hold no matrix of weights, and differentiate once, backwards. Two more derivatives
are asked for:

- *Forwards* (``torch.func.jvp``). No fused kernel has it, so that under forward-mode
  differentiation the formula above is computed as it stands.
- *Backwards twice* (R1 through a network's features). A kernel's backward pass has no derivative.
  Where the gradient is recorded, the formula of the gradient stands in its place: ``_Twice`` after
  the kernel goes by the formula, and ``_Once`` before it drops what the kernel gives. Elsewhere
  both do nothing, and where nothing is recorded they are left out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Queries, keys and values (B, heads, positions, c) -> (B, heads, positions, c).

    ``bias``: what is added to the logits (B, heads, positions of q, positions of k), in q's type
    and of any shape that broadcasts; a constant, which gets no gradient. The sums are taken in
    float32 at least. A head's channels must lie side by side in memory, or torch takes a slow
    kernel.
    """
    if differentiates_forward():
        return _formula(q, k, v, bias)
    if not torch.is_grad_enabled():
        return _kernel(q, k, v, bias)
    once_q, once_k, once_v = _Once.apply(q, k, v)
    return _Twice.apply(q, k, v, bias, _kernel(once_q, once_k, once_v, bias))


def differentiates_forward() -> bool:
    """Whether forward-mode differentiation is going on around the caller.

    What a tensor carries does not tell: in a derivative of a derivative the tangent lies inside
    other wrappers. torch has no public name for the question.
    """
    return forward_ad._current_level >= 0


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """(B, heads, positions, positions), each row of sum 1."""
    logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return torch.softmax(logits if bias is None else logits + bias, dim=-1)


def _formula(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    return (_weights(q.to(wide), k.to(wide), bias) @ v.to(wide)).to(q.dtype)


def _kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if q.is_meta:
        # Of sizes alone torch makes the formula, which keeps a matrix of weights that no kernel
        # keeps. A bias changes no size.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
    return scaled_dot_product_attention(q, k, v, bias)


class _Once(torch.autograd.Function):
    """(q, k, v) -> the same. A gradient that is recorded ends here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return q.view_as(q), k.view_as(k), v.view_as(v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None) if torch.is_grad_enabled() else gradients


class _Twice(torch.autograd.Function):
    """(q, k, v, bias, attended) -> attended.

    A gradient that is recorded goes to q, k and v by the formula.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, attended: Tensor) -> Tensor:
        return attended.view_as(attended)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return None, None, None, None, gradient
        wide = torch.promote_types(gradient.dtype, torch.float32)
        *parts, bias = ctx.saved_tensors
        q, k, v, wanted = (value.to(wide) for value in (*parts, gradient))
        weights = _weights(q, k, bias)
        moved = wanted @ v.transpose(-2, -1)
        logits = weights * (moved - (weights * moved).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
        gradients = (logits @ k, logits.transpose(-2, -1) @ q, weights.transpose(-2, -1) @ wanted)
        # Zeros, since the kernel runs in any case, and that of cuDNN reads what is not there.
        return *(value.to(gradient.dtype) for value in gradients), None, torch.zeros_like(gradient)
