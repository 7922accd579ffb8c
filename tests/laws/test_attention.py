"""Laws of attention, group norm and layer norm: they are their formulas, with all derivatives.

torch's fused kernels compute them wherever these have the derivative that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from law_kit import normals
from torch import Tensor
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.networks.kernels import attend, differentiates_forward
from fewstep.networks.norm import GroupNorm, LayerNorm
from fewstep.planning.footprint import KeptBytes

SHAPES = ((2, 3, 7, 4), (1, 1, 40, 24), (2, 1, 1, 4))
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def parts(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values that want a gradient."""
    q, k, v = (normals(*shape, seed=seed).requires_grad_() for seed in range(3))
    return q, k, v


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula, exponential by exponential."""
    weights = torch.exp(torch.einsum("bhqc,bhkc->bhqk", q, k) / math.sqrt(q.shape[-1]))
    return torch.einsum("bhqk,bhkc->bhqc", weights / weights.sum(-1, keepdim=True), v)


def computed_forwards(*arguments: Tensor) -> Tensor:
    """What ``attend`` gives under forward-mode differentiation."""
    with forward_ad.dual_level():
        return attend(*arguments)


class Operations(TorchDispatchMode):
    """``found``: which of attention's operations are computed while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if "_scaled_dot_product" in name:
            self.found.add("fused backward" if "backward" in name else "fused")
            assert args[0] is not None  # which not every kernel's backward pass takes
        elif "softmax" in name:
            self.found.add("softmax")
        return func(*args, **(kwargs or {}))


@contextmanager
def operations() -> Iterator[set[str]]:
    with Operations() as mode:
        yield mode.found


# Attention: values


@every_shape
def test_attention_is_its_formula(shape: tuple[int, ...]) -> None:
    arguments = parts(shape)
    expected = by_hand(*arguments)
    torch.testing.assert_close(attend(*arguments), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(computed_forwards(*arguments), expected, rtol=1e-12, atol=1e-12)


@every_shape
def test_a_bias_is_added_to_the_logits(shape: tuple[int, ...]) -> None:
    """With all derivatives; minus infinity, or little less, takes a key away."""
    q, k, v = parts(shape)
    bias = normals(shape[0], 1, 1, shape[2], seed=5)
    logits = torch.einsum("bhqc,bhkc->bhqk", q, k) / math.sqrt(shape[-1]) + bias
    expected = torch.einsum("bhqk,bhkc->bhqc", torch.softmax(logits, -1), v)
    torch.testing.assert_close(attend(q, k, v, bias), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(computed_forwards(q, k, v, bias), expected, rtol=1e-12, atol=1e-12)
    assert gradcheck(attend, (q, k, v, bias), fast_mode=True)
    assert gradgradcheck(attend, (q, k, v, bias), fast_mode=True)
    if shape[2] > 1:
        few = torch.zeros_like(bias)
        few[..., 1:] = -1e4
        torch.testing.assert_close(attend(q, k, v, few), attend(q, k[:, :, :1], v[:, :, :1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_of_shorter_types_is_weighed_in_float32(dtype: torch.dtype) -> None:
    q, k, v = (normals(1, 1, 16, 8, seed=seed).to(dtype) for seed in range(3))
    q, k = 300 * q, 300 * k
    logits = q.double() @ k.double().mT
    assert float(logits.max()) > 65504  # float16's largest
    expected = torch.softmax(logits / math.sqrt(8), -1) @ v.double()
    for found in (attend(q, k, v), computed_forwards(q, k, v)):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.01)


# Attention: derivatives


@every_shape
def test_attention_has_first_and_second_derivatives_both_ways(shape: tuple[int, ...]) -> None:
    arguments = parts((*shape[:2], min(shape[2], 5), 3))
    assert gradcheck(attend, arguments, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(attend, arguments, check_fwd_over_rev=True, fast_mode=True)


def test_derivatives_of_derivatives_agree_in_every_order() -> None:
    q, k, v = (value.detach() for value in parts(SHAPES[0]))
    tangent = normals(*q.shape, seed=4)

    def value(q: Tensor) -> Tensor:
        return attend(q, k, v).pow(3).sum()

    expected = torch.autograd.functional.hvp(lambda q: by_hand(q, k, v).pow(3).sum(), q, tangent)[1]
    slope = torch.func.grad(value)
    orders = {
        "forwards over backwards": torch.func.jvp(slope, (q,), (tangent,))[1],
        "backwards over backwards": torch.func.grad(lambda q: (slope(q) * tangent).sum())(q),
        "backwards over forwards": torch.func.grad(lambda q: torch.func.jvp(value, (q,), (tangent,))[1])(q),
        "by autograd": torch.autograd.functional.hvp(value, q, tangent)[1],
    }
    for order, found in orders.items():
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10), order
    twice = torch.func.jvp(lambda q: torch.func.jvp(value, (q,), (tangent,))[1], (q,), (tangent,))[1]
    torch.testing.assert_close(twice, (expected * tangent).sum(), rtol=1e-10, atol=1e-10)


# Attention: kernels


def test_no_matrix_of_weights_is_kept() -> None:
    q, k, v = parts((1, 2, 64, 4))
    with KeptBytes() as kept:
        attended = attend(q, k, v)
        assert kept.peak < 8 * 2 * 64 * 64
    assert attended.requires_grad
    with KeptBytes() as kept:
        attended = by_hand(q, k, v)
        assert kept.peak >= 8 * 2 * 64 * 64


def test_fused_kernels_compute_all_but_forward_and_second_derivatives() -> None:
    arguments = parts((1, 2, 16, 8))
    with operations() as found:
        attended = attend(*arguments)
        grad(attended.sum(), arguments)
    assert found == {"fused", "fused backward"}
    with operations() as found:
        grad(attend(*arguments).sum(), arguments, create_graph=True)
    assert found == {"fused", "fused backward", "softmax"}
    with operations() as found:
        torch.func.jvp(attend, arguments, arguments)
    assert found == {"softmax"}
    with operations() as found, torch.no_grad():
        attend(*arguments)
    assert found == {"fused"}


def test_forward_mode_is_seen_wherever_the_caller_stands() -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(differentiates_forward())
        return x.sin().sum()

    x = normals(3)
    look(x)
    torch.func.grad(look)(x)
    assert not any(seen)
    seen.clear()
    torch.func.jvp(look, (x,), (x,))
    torch.func.jvp(torch.func.grad(look), (x,), (x,))
    torch.func.grad(lambda x: torch.func.jvp(look, (x,), (x,))[1])(x)
    torch.func.jvp(torch.func.vmap(look), (x,), (x,))
    with forward_ad.dual_level():
        look(forward_ad.make_dual(x, x))
    assert len(seen) == 5
    assert all(seen)
    assert not differentiates_forward()


def test_sizes_alone_have_first_and_second_derivatives() -> None:
    q, k, v = (value.detach().to("meta").requires_grad_() for value in parts(SHAPES[0]))
    (slope,) = grad(attend(q, k, v).sum(), q, create_graph=True)
    assert grad(slope.sum(), k)[0].shape == k.shape
    assert torch.func.jvp(attend, (q, k, v), (q, k, v))[1].shape == q.shape


# Group norm


@pytest.mark.parametrize("shape", [(3, 8, 4, 5), (2, 8, 6)], ids=str)
def test_group_norm_is_torchs(shape: tuple[int, ...]) -> None:
    norm, x = GroupNorm(2, 8, 1e-3).double(), 5 + 3 * normals(*shape)
    with torch.no_grad():
        norm.weight.copy_(normals(8, seed=1))
        norm.bias.copy_(normals(8, seed=2))
    assert torch.equal(norm(x), functional.group_norm(x, 2, norm.weight, norm.bias, 1e-3))
    assert dict(norm.state_dict()).keys() == {"weight", "bias"}


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_group_norm_is_computed_in_float32_for_shorter_types(weights: torch.dtype) -> None:
    norm, x = GroupNorm(2, 8).to(weights), (100 + normals(2, 8, 16, 16, dtype=torch.float32)).bfloat16()
    found = norm(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, norm.float()(x.float()).bfloat16())


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "every second"])
def test_group_norm_has_first_and_second_derivatives_both_ways_in_every_layout(layout: str) -> None:
    x = normals(2, 4, 3, 3)
    x = {
        "contiguous": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3),
        "every second": normals(2, 4, 3, 6)[..., ::2],
    }[layout].requires_grad_()
    norm = GroupNorm(2, 4).double()
    assert gradcheck(norm, (x,), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(norm, (x,), check_fwd_over_rev=True, fast_mode=True)


# Layer norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 6), (2, 5, 4)], ids=str)
def test_layer_norm_is_torchs_with_a_gradient_of_the_derivative_forwards(shape: tuple[int, ...], affine: bool) -> None:
    plain = torch.nn.LayerNorm(shape[-1], elementwise_affine=affine).double()
    for seed, value in enumerate(plain.parameters()):
        value.data = normals(*value.shape, seed=seed)
    ours = LayerNorm.like(plain)
    assert dict(ours.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    x, tangent, direction = (normals(*shape, seed=seed) for seed in range(3))
    assert torch.equal(ours(x), plain(x))
    value, forward = torch.func.jvp(ours, (x,), (tangent,))
    torch.testing.assert_close(value, plain(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(forward, torch.func.jvp(plain, (x,), (tangent,))[1], rtol=1e-12, atol=1e-12)

    def loss(x: Tensor) -> Tensor:
        return torch.func.jvp(ours, (x,), (tangent,))[1].sin().sum()

    (slope,) = grad(loss(x.requires_grad_()), x)
    h = 1e-6
    expected = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    torch.testing.assert_close((slope * direction).sum(), expected, rtol=1e-6, atol=1e-8)
