"""What the families of transformers share: how one is built from its configuration, its attention
by ours, its features, its recomputation.

The classes are diffusers' own. Whatever processor computes their attention calls torch's fused
kernel in the end; there ours takes its place (``kernels.attend``), which can be differentiated
forwards, and twice.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks.adapters.selection import Again, contexts
from fewstep.networks.diffusers.backbone import class_of
from fewstep.networks.interfaces import DenoisingNetwork
from fewstep.networks.kernels import attend
from fewstep.networks.norm import LayerNorm

PATCH = 2
"""Of packed latents: the side of a patch."""


class DiffusersTransformer(DenoisingNetwork, abc.ABC):
    """(B, C, H, W), noise labels (B,), condition -> (B, C, H, W), around one of diffusers'
    transformers.

    Noise labels are those of its scheduler: 1000 sigma of a flow, else a timestep. ``config``: the
    arguments of the class ``class_name``, plain values. Features are the image's tokens (B,
    bottleneck, tokens) after half of the blocks, which are in the module lists ``block_lists``.

    Raises ``UserError`` when diffusers is missing or too old, and for an argument that the class
    does not know.
    """

    part = "transformer"
    class_name: ClassVar[str]
    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    last_layer: ClassVar[str] = "proj_out"
    tables: ClassVar[Mapping[str, int]] = MappingProxyType(
        {"sample_size": 512, "pos_embed_max_size": 512, "axes_lens": 8192}
    )
    """Settings by whose squares or lengths tables of positions are made, which no file's size
    bounds, and their largest values.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        whose = f"network of the class {self.class_name}"
        self.transformer: Any = class_of(whose, self.class_name, config)(**config)
        # Nothing is dropped at random: an unrecorded draw is a draw that a resumed run does not
        # repeat.
        self.transformer.eval()
        parts: list[nn.Module] = list(self.transformer.modules())
        for part in parts:
            for place, norm in part.named_children():
                if type(norm) is nn.LayerNorm:
                    setattr(part, place, LayerNorm.like(norm))
        if not self.blocks:
            raise UserError(f"{whose}: has no blocks, whose activations are the features for critics.")
        self.bottleneck = self._width()

    @abc.abstractmethod
    def _width(self) -> int:
        """The channels of a token."""

    @abc.abstractmethod
    def called(self, x: Tensor, noise_label: Tensor, condition: Condition) -> dict[str, Any]:
        """The arguments of the transformer for samples x (B, *D).

        Raises ``UserError`` for a condition that lacks what it needs.
        """

    def emitted(self, output: Any, x: Tensor) -> Tensor:
        """What the transformer gave as what the prediction says, (B, C, H, W)."""
        found: Tensor = output
        return found

    @classmethod
    @abc.abstractmethod
    def shape_in(cls, config: Mapping[str, Any], side: int | None) -> tuple[int, int, int]:
        """The shape of one sample, (C, H, W): latents with a ``side``, or with the model's own."""

    @classmethod
    def tokens_in(cls, config: Mapping[str, Any], shape: tuple[int, ...]) -> int:
        """How many tokens a sample of that shape has: one a patch."""
        patch = cls.patch_in(config)
        return shape[1] // patch * (shape[2] // patch)

    @classmethod
    def patch_in(cls, config: Mapping[str, Any]) -> int:
        """The side of a patch of latents, by which sides must be divisible."""
        return int(config.get("patch_size", 2))

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks, in order."""
        return [block for name in self.block_lists for block in getattr(self.transformer, name)]

    @property
    def leave(self) -> nn.Linear:  # type: ignore[override]
        """The last layer."""
        found: nn.Linear = self.transformer.get_submodule(self.last_layer)
        return found

    @property
    def recompute(self) -> bool:
        """See ``DenoisingNetwork``."""
        return bool(self.transformer.is_gradient_checkpointing)

    @recompute.setter
    def recompute(self, on: bool) -> None:
        if on:
            self.transformer.enable_gradient_checkpointing(_computed_again)
        else:
            self.transformer.disable_gradient_checkpointing()

    def train(self, mode: bool = True) -> DiffusersTransformer:
        """As of any module, but for the transformer, which drops nothing at random."""
        super().train(mode)
        self.transformer.eval()
        return self

    def forward(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        if end_label is not None:
            raise UserError(
                "this network takes no end label: diffusers' transformers have no place for one; use a network of "
                "ours as a trajectory student."
            )
        given = self.called(x.contiguous(), noise_label, condition)
        with _OurAttention():
            output = self.transformer(**given, return_dict=False)[0]
        return self.emitted(output, x)

    def features(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        """The tokens of the image after half of the blocks, (B, bottleneck, tokens); those after
        are not computed.
        """
        middle = self.blocks[(len(self.blocks) - 1) // 2]
        handle = middle.register_forward_hook(_stop)
        try:
            self.forward(x, noise_label, condition, end_label)
        except _Activated as found:
            count = self.tokens_in(self.transformer.config, tuple(x.shape[1:]))
            return self.image_tokens(found.output, count).transpose(1, 2)
        finally:
            handle.remove()
        raise AssertionError("diffusers' transformer ran without its middle block")

    def image_tokens(self, output: Any, count: int) -> Tensor:
        """The image's ``count`` tokens (B, count, bottleneck) in what a block gives: those of the
        last of its streams.
        """
        found: Tensor = output[-1] if isinstance(output, tuple) else output
        return found[:, -count:]


def pack(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W / 4, 4 C): patches row by row; in a token the channel comes first,
    then the row, then the column.
    """
    batch, channels, height, width = x.shape
    patches = x.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def unpack(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of ``pack``, to the ``shape`` (B, C, H, W)."""
    batch, channels, height, width = shape
    patches = tokens.reshape(batch, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


class _OurAttention(TorchFunctionMode):
    """Inside, torch's fused attention is ours."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        return _attended(*args, **given) if func is scaled_dot_product_attention else func(*args, **given)


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention``'s arguments, for ``attend``."""
    if dropout_p or is_causal or enable_gqa:
        raise UserError("this network's attention is causal, in groups, or drops at random, which is not read here.")
    if scale is not None:
        query = query * (scale * math.sqrt(query.shape[-1]))
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
    return attend(query, key, value, None if attn_mask is None else attn_mask.to(query.dtype))


def _computed_again(block: nn.Module, *inputs: Any) -> Any:
    """A block of which nothing inside is kept for the backward pass."""
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts)


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What a block's forward pass runs in, which is inside ours already, and its recomputation."""
    first, again = contexts()
    return first, Again(lambda: _with_our_attention(again))


@contextmanager
def _with_our_attention(besides: AbstractContextManager[Any]) -> Iterator[None]:
    with besides, _OurAttention():
        yield


class _Activated(Exception):
    """Carries what a block gave out of a forward pass that goes no further."""

    def __init__(self, output: Any):
        super().__init__()
        self.output = output


def _stop(module: nn.Module, arguments: Any, output: Any) -> NoReturn:
    raise _Activated(output)
