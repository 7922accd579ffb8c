"""The layers of a network that an adapter can be put on, and what files call them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from fewstep.errors import UserError
from fewstep.networks.adapters.low_rank_pair import LowRankPair
from fewstep.networks.diffusers.text_unet import DiffusersTextUNet
from fewstep.networks.interfaces import DenoisingNetwork
from fewstep.zoo.lora.original_names import original_name

_PREFIXES = ("unet.", "transformer.", "diffusion_model.", "model.diffusion_model.")
"""What programs put before a denoiser's own names."""

PEFT_PREFIX = "base_model.model."
"""What peft puts before all names of a model."""


@dataclass(frozen=True, eq=False)
class LoraLayers:
    """``layers``: the linear and convolutional ones, by path in the network. ``prefix``: where in
    our network the model lies whose names files have (``unet.`` or ``transformer.`` for diffusers'
    networks).
    ``originals``: Stable Diffusion's original names, by path, of the layers that have one.
    ``original_by_kohya``: whether kohya's files have these; its SDXL is the original code, and its
    Stable Diffusion 1 and 2 are diffusers'.
    """

    layers: Mapping[str, nn.Linear | nn.Conv2d]
    prefix: str
    originals: Mapping[str, str]
    original_by_kohya: bool

    @classmethod
    def of(cls, network: nn.Module) -> LoraLayers:
        """The layers of a network as it is, without an adapter on it.

        Raises ``UserError`` for a network that has none.
        """
        layers = {
            path: layer for path, layer in network.named_modules() if path and isinstance(layer, (nn.Linear, nn.Conv2d))
        }
        if not layers:
            raise UserError(
                f"{type(network).__name__} has no linear or convolutional layers inside that an adapter could be put "
                "on."
            )
        part = network.part if isinstance(network, DenoisingNetwork) else ""
        prefix = f"{part}." if part else ""
        originals: dict[str, str] = {}
        by_kohya = False
        if isinstance(network, DiffusersTextUNet):
            config = network.unet.config
            named = {path: original_name(path.removeprefix(prefix), config) for path in layers}
            originals = {path: name for path, name in named.items() if name is not None}
            by_kohya = config.addition_embed_type == "text_time"
        return cls(layers, prefix, originals, by_kohya)

    def relative(self, path: str) -> str:
        """A layer's name in the model that files know."""
        return path.removeprefix(self.prefix)

    def underscored(self, path: str) -> str:
        """A layer's name in kohya's files, after ``lora_unet_``."""
        name = self.originals.get(path) if self.original_by_kohya else None
        return (name or self.relative(path)).replace(".", "_")

    def find(self, name: str, underscored: bool) -> str | None:
        """The path of the layer that a file calls ``name``, in one of the forms that are read; None
        where there is none.

        Raises ``UserError``, without the file's name, for an underscored name that two layers have.
        """
        if underscored:
            if self._underscored_count[name] > 1:
                raise UserError(
                    f"'{name}' is the name of two layers of this network when dots are underscores; take the "
                    "adapter in PEFT's form."
                )
            return self._underscored.get(name)
        name = name.removeprefix(PEFT_PREFIX)
        if name in self._dotted:
            return self._dotted[name]
        cut = next((each for each in _PREFIXES if name.startswith(each)), "")
        return self._dotted.get(name.removeprefix(cut))

    def check(self, path: str, pair: LowRankPair, says: str) -> LowRankPair:
        """The pair in the shapes of its layer: a 1 x 1 convolution's weights may be matrices in
        files, and matrices 1 x 1 convolutions.

        ``says``: what the sentence begins with. Raises ``UserError`` for what does not fit.
        """
        weight = self.layers[path].weight
        rank = pair.down.shape[0] if pair.down.ndim else 0
        down, up = (rank, *weight.shape[1:]), (len(weight), rank, *(1 for _ in weight.shape[2:]))
        if rank < 1 or not _alike(pair.down.shape, down) or not _alike(pair.up.shape, up):
            raise UserError(
                f"{says} has weights of {tuple(pair.down.shape)} and {tuple(pair.up.shape)}, and the layer's weight "
                f"is {tuple(weight.shape)}: it is an adapter of another base."
            )
        return LowRankPair(pair.down.reshape(down), pair.up.reshape(up), pair.alpha)

    @cached_property
    def _dotted(self) -> dict[str, str]:
        """All names with dots, to paths."""
        return {
            **{name: path for path, name in self.originals.items()},
            **{self.relative(path): path for path in self.layers},
        }

    @cached_property
    def _underscored(self) -> dict[str, str]:
        return {name.replace(".", "_"): path for name, path in self._dotted.items()}

    @cached_property
    def _underscored_count(self) -> Counter[str]:
        return Counter(name.replace(".", "_") for name in self._dotted)


def _alike(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether shapes are equal but for 1s at the ends."""
    length = max(len(shape), len(wanted))
    padded, other = ((*each, *(1 for _ in range(length - len(each)))) for each in (shape, wanted))
    return padded == other
