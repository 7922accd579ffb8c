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
    steps: int = Field(1000, ge=2)
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
    width: int = Field(32, ge=8, multiple_of=8)
    depth: Count = 2
    embedding: Count = 64


class ResidualMLPChoice(Section):
    kind: Literal["residual-mlp"]
    dim: Count = 2
    width: Count = 128
    depth: Count = 4


class ClassifierChoice(Section):
    kind: Literal["digit-classifier"]
    width: Count = 32
    features: Count = 64


DenoisingNetwork = Annotated[SmallUNetChoice | ResidualMLPChoice, Field(discriminator="kind")]


class DenoiserModel(Section):
    kind: Literal["denoiser"]
    network: DenoisingNetwork
    schedule: ScheduleChoice
    prediction: PredictionChoice = PredictionChoice()
    sigma_data: Positive = 0.5


class ClassifierModel(Section):
    kind: Literal["classifier"]
    network: ClassifierChoice
