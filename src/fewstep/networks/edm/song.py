"""DDPM++ and NCSN++ (Song et al. 2021) as EDM uses them (Karras et al. 2022, App.

F, Tab. 7): the teachers of CIFAR-10, FFHQ and AFHQv2.

Residuals are scaled by sqrt(1/2), attention has one head. NCSN++ differs by Fourier features of the
noise level, a smoother filter (taps 1, 3, 3, 1), and an encoder into which the image itself enters
at each level, on a branch of its own. DDPM++ is "positional", "standard"; NCSN++ is "fourier",
"residual". Called in evaluation mode the network equals NVIDIA's; see
``tests/laws/test_edm_networks.py``.

Dropout is not applied, in training neither: distillation takes teacher, student and fake score as
functions, and an unrecorded draw would be a draw that a resumed run does not repeat. ``dropout``
and ``label_dropout`` are kept as arguments because descriptions in released files have them; they
have no parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import annotated_types as at
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from fewstep.condition import Condition
from fewstep.networks.edm.layers import BlockStyle, Conv, DownConv, DrawnLinear, Init, Resample, UNetBlock, group_norm
from fewstep.networks.edm.noise_label import FourierEmbedding, PositionalEmbedding, augmentation
from fewstep.networks.edm.unet import BlockPlan, Entry, UNet, plan_of
from fewstep.networks.embedding import SideLabels, one_hot
from fewstep.networks.kinds.registry import register
from fewstep.values import Count, Given

_EPS = 1e-6
_INIT = Init("xavier-uniform")
_LAST = Init("xavier-uniform", 1e-5)
_ATTENTION = Init("xavier-uniform", math.sqrt(0.2))


@register("song-unet")
class SongUNet(UNet):
    """(B, in_channels, R, R), noise labels (B,), condition -> (B, out_channels, R, R), R =
    ``img_resolution``.

    ``classes``: the number of class labels, 0 for none. ``augment_dim``: the number of augmentation
    labels (``condition.context["augment"]``). ``model_channels`` times ``channel_mult`` are the
    channels a level, times ``channel_mult_emb`` those of the embedding, times
    ``channel_mult_noise`` those of the noise level's waves. ``attn_resolutions``: where blocks
    attend. ``embedding_type`` "positional" or "fourier"; ``encoder_type`` "standard", "skip" (the
    resampled image is added) or "residual" (a branch of convolutions); ``decoder_type`` "standard"
    or "skip" (each level writes to the image). ``guidance`` and ``end``: see ``SideLabels``.

    Raises ``UserError`` for an unknown type and for a shape that cannot be built, in the words of
    ``plan_of``, ``group_norm`` or ``UNetBlock``.
    """

    def __init__(
        self,
        img_resolution: Count,
        in_channels: Count = 3,
        out_channels: Count = 3,
        classes: int = 0,
        augment_dim: Annotated[int, Given()] = 0,
        model_channels: Count = 128,
        channel_mult: Annotated[tuple[Count, ...], at.MinLen(1)] = (1, 2, 2, 2),
        channel_mult_emb: Count = 4,
        num_blocks: Count = 4,
        attn_resolutions: tuple[Count, ...] = (16,),
        dropout: Annotated[float, Given()] = 0.0,
        label_dropout: Annotated[float, Given()] = 0.0,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: Count = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: Annotated[tuple[Count, ...], at.MinLen(1)] = (1, 1),
        guidance: bool = False,
        end: bool = False,
    ):
        super().__init__()
        plan = plan_of(
            img_resolution,
            model_channels,
            [model_channels * factor for factor in channel_mult],
            num_blocks,
            attn_resolutions,
        )
        self.classes = classes
        self.augment_dim = augment_dim
        self.encoder_type = encoder_type
        self.bottleneck = plan.widths[-1]
        wide, waves = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        style = BlockStyle(False, math.sqrt(0.5), _EPS, tuple(resample_filter), True, _INIT, _LAST, _ATTENTION)

        def block(entry: Entry) -> UNetBlock:
            return UNetBlock(entry.inputs, entry.outputs, wide, style, entry.resample, int(entry.attention))

        self.map_noise = (
            PositionalEmbedding(waves, endpoint=True) if embedding_type == "positional" else FourierEmbedding(waves)
        )
        self.map_label = DrawnLinear(classes, waves, _INIT) if classes else None
        self.map_augment = DrawnLinear(augment_dim, waves, _INIT, bias=False) if augment_dim else None
        self.map_layer0 = DrawnLinear(waves, wide, _INIT)
        self.map_layer1 = DrawnLinear(wide, wide, _INIT)
        self.enc = nn.ModuleDict(
            {f"{img_resolution}x{img_resolution}_conv": Conv(in_channels, model_channels, 3, _INIT)}
        )
        self.enc.update(_encoder(plan, block, encoder_type, in_channels, resample_filter))
        decoder, self._writers = _decoder(plan, block, decoder_type, out_channels, resample_filter)
        self.dec = nn.ModuleDict(decoder)
        # Last, so that the other weights are drawn alike with and without it.
        self.side = SideLabels(wide, guidance, end)

    @property
    def leave(self) -> nn.Conv2d:  # type: ignore[override]
        """The last convolution."""
        return list(self.dec.values())[-1]  # type: ignore[return-value]

    def forward(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None = None) -> Tensor:
        image = None
        for name, hidden in zip(
            self.blocks, self._activations(x, self._embedded(x, noise_label, condition, end_label)), strict=True
        ):
            if name in self._writers:
                image = self._written(self._writers[name], hidden, image)
        assert image is not None
        return image

    def _embedded(self, x: Tensor, noise_label: Tensor, condition: Condition, end_label: Tensor | None) -> Tensor:
        # Unlike ADM's, these weights expect the sines first.
        cosines, sines = self.map_noise(noise_label).to(x.dtype).chunk(2, dim=1)
        embedded = torch.cat([sines, cosines], dim=1)
        if self.map_label is not None:
            embedded = embedded + self.map_label(
                one_hot(condition, self.classes, len(x), embedded) * math.sqrt(self.classes)
            )
        if self.map_augment is not None:
            embedded = embedded + self.map_augment(augmentation(condition, self.augment_dim, len(x), embedded))
        embedded = self.map_layer1(silu(self.map_layer0(embedded)))
        return silu(self.side(embedded, condition, end_label))

    def _encoded(self, x: Tensor, embedded: Tensor) -> Iterator[Tensor]:
        image = x
        for name, block in self.enc.items():
            if "_aux_" in name:
                continue
            x = self._run(block, embedded, x) if isinstance(block, UNetBlock) else block(x)
            if name.endswith("_down"):
                x, image = self._entered(name.removesuffix("_down"), x, image)
            yield x

    def _entered(self, level: str, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The activations with the image's branch added at a level, and what the branch goes on
        with.
        """
        if self.encoder_type == "skip":
            image = self.enc[f"{level}_aux_down"](image)
            return x + self.enc[f"{level}_aux_skip"](image), image
        if self.encoder_type == "residual":
            x = (x + self.enc[f"{level}_aux_residual"](image)) / math.sqrt(2)
            return x, x
        return x, image

    def _written(self, level: str, hidden: Tensor, image: Tensor | None) -> Tensor:
        """The image at a level, from the level's last activations and the image below."""
        written = self.dec[f"{level}_aux_conv"](silu(self.dec[f"{level}_aux_norm"](hidden)))
        return written if image is None else written + self.dec[f"{level}_aux_up"](image)


def _encoder(
    plan: BlockPlan, block: Callable[[Entry], UNetBlock], encoder_type: str, image: int, taps: Sequence[int]
) -> dict[str, nn.Module]:
    """The encoder after its first convolution, with the branch of an ``image`` of so many
    channels.
    """
    made: dict[str, nn.Module] = {}
    for entry in plan.encoder():
        made[entry.name] = block(entry)
        if entry.resample is not None and encoder_type != "standard":
            made.update(_entrance(entry, encoder_type, image, taps))
            image = entry.outputs if encoder_type == "residual" else image
    return made


def _decoder(
    plan: BlockPlan, block: Callable[[Entry], UNetBlock], decoder_type: str, out_channels: int, taps: Sequence[int]
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The decoder, and the levels that write to the image, by the block after which they do."""
    made: dict[str, nn.Module] = {}
    writers: dict[str, str] = {}
    for entry in plan.decoder(all_attend=False):
        made[entry.name] = block(entry)
        if entry.name.endswith(f"_block{plan.blocks}") and (decoder_type == "skip" or entry.level == 0):
            made.update(_exit(entry, out_channels, bool(writers), taps))
            writers[f"dec.{entry.name}"] = entry.name.partition("_")[0]
    return made, writers


def _entrance(entry: Entry, encoder_type: str, image: int, taps: Sequence[int]) -> dict[str, nn.Module]:
    """The image's branch (``image`` channels) into the encoder at a level below the first."""
    level = entry.name.removesuffix("_down")
    if encoder_type == "skip":
        return {f"{level}_aux_down": Resample("down", taps), f"{level}_aux_skip": Conv(image, entry.outputs, 1, _INIT)}
    return {f"{level}_aux_residual": DownConv(image, entry.outputs, 3, _INIT, taps)}


def _exit(entry: Entry, out_channels: int, below: bool, taps: Sequence[int]) -> dict[str, nn.Module]:
    """The image's branch out of the decoder after a level's last block; ``below``: a level below
    has written an image, which is doubled.
    """
    level = entry.name.partition("_")[0]
    doubled: dict[str, nn.Module] = {f"{level}_aux_up": Resample("up", taps)} if below else {}
    return {
        **doubled,
        f"{level}_aux_norm": group_norm(entry.outputs, _EPS),
        f"{level}_aux_conv": Conv(entry.outputs, out_channels, 3, _LAST),
    }
