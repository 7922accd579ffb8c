"""Networks, schedules and predictions of models that are trained from scratch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fewstep.recipes.config.base import Count, Positive, Section


class KarrasSchedule(Section):
    kind: Literal["karras-ve"]
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0


class DiscreteSchedule(Section):
    kind: Literal["discrete-vp"]
    betas: Literal["linear", "scaled_linear", "cosine"] = "linear"
    steps: int = Field(1000, ge=2, le=100_000)
    beta_start: Positive = 1e-4
    beta_end: Positive = 2e-2


class FlowSchedule(Section):
    kind: Literal["rectified-flow"]
    epsilon: Positive = 1e-3


ScheduleChoice = Annotated[KarrasSchedule | DiscreteSchedule | FlowSchedule, Field(discriminator="kind")]


class PredictionChoice(Section):
    kind: Literal["x0", "eps", "score", "v", "velocity", "edm"] = "edm"


class SmallUNetChoice(Section):
    kind: Literal["small-unet"]
    channels: Count = 1
    width: int = Field(32, ge=8, le=65_536, multiple_of=8)
    depth: Count = 2
    embedding: Count = 64
    patch: Count = 1


class ResidualMLPChoice(Section):
    kind: Literal["residual-mlp"]
    dim: Count = 2
    width: Count = 128
    depth: Count = 4


Levels = Annotated[list[Count], Field(min_length=1)]


class _EDMUNetChoice(Section):
    """For square images of ``img_resolution`` pixels; see ``fewstep.networks.edm``."""

    img_resolution: Count
    in_channels: Count = 3
    out_channels: Count = 3
    model_channels: Count
    channel_mult: Levels
    channel_mult_emb: Count = 4
    num_blocks: Count
    attn_resolutions: list[Count]


class SongUNetChoice(_EDMUNetChoice):
    """DDPM++ ("positional", "standard") or NCSN++ ("fourier", "residual", a filter of 1, 3, 3, 1, ``channel_mult_noise`` 2)."""

    kind: Literal["song-unet"]
    embedding_type: Literal["positional", "fourier"] = "positional"
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    channel_mult_noise: Count = 1
    resample_filter: Levels = Field([1, 1])


class DhariwalUNetChoice(_EDMUNetChoice):
    """ADM."""

    kind: Literal["dhariwal-unet"]
    adaptive_scale: bool = True


class FastGANChoice(Section):
    """FastGAN's generator; images are of the data's shape. ``width`` 64 is the paper's."""

    kind: Literal["fastgan"]
    latent: Count = 256
    width: int = Field(64, ge=4, le=65_536, multiple_of=4)


class ImageCriticChoice(Section):
    """``width``: the channels at full resolution."""

    kind: Literal["image-critic"] = "image-critic"
    width: Count = 32


class DigitClassifierChoice(Section):
    kind: Literal["digit-classifier"]
    width: Count = 32
    features: Count = 64


class ImageClassifierChoice(Section):
    """For square images of ``size`` pixels; ``width``: the channels at full size; ``features``: of the last hidden layer. Classes are the data's."""

    kind: Literal["image-classifier"]
    size: Count = 32
    channels: Count = 3
    width: int = Field(16, ge=8, le=65_536, multiple_of=8)
    depth: Count = 1
    features: Count = 128


ClassifierChoice = Annotated[DigitClassifierChoice | ImageClassifierChoice, Field(discriminator="kind")]
DenoisingNetwork = Annotated[SmallUNetChoice | ResidualMLPChoice | SongUNetChoice | DhariwalUNetChoice, Field(discriminator="kind")]


class DenoiserModel(Section):
    kind: Literal["denoiser"]
    network: DenoisingNetwork
    schedule: ScheduleChoice
    prediction: PredictionChoice = PredictionChoice()
    sigma_data: Positive = 0.5


class GeneratorModel(Section):
    """A generator on latents, which knows no noise levels."""

    kind: Literal["generator"]
    network: FastGANChoice


class ClassifierModel(Section):
    kind: Literal["classifier"]
    network: ClassifierChoice
