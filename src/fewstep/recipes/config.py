"""What a recipe may say: one model a section, and where a section offers a choice, one model a choice, told apart by ``kind``.

A number of steps that is a share of the whole run is marked ``Share``: overriding ``training.steps`` scales it along.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and values are not coerced from other types beyond int to float."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Share:
    """Marks a count of steps that keeps its proportion to ``training.steps``."""


Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=1), Share()]
Positive = Annotated[float, Field(gt=0)]


# Schedules, predictions and networks of models that are trained from scratch.
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


# Times and weights.
class LogNormal(Section):
    kind: Literal["log-normal"]
    mean: float = -1.2
    std: Positive = 1.2


class Uniform(Section):
    kind: Literal["uniform"]
    low: float | None = Field(None, ge=0, le=1)
    high: float | None = Field(None, ge=0, le=1)


class RhoUniform(Section):
    kind: Literal["rho"]
    exponent: Positive = 7.0
    low: Positive | None = None
    high: Positive | None = None


TimesChoice = Annotated[LogNormal | Uniform | RhoUniform, Field(discriminator="kind")]


class EDMWeighting(Section):
    kind: Literal["edm"]
    sigma_data: Positive = 0.5


class ScoreWeighting(Section):
    kind: Literal["score"]


DenoisingWeighting = Annotated[EDMWeighting | ScoreWeighting, Field(discriminator="kind")]


class MatchingWeighting(Section):
    kind: Literal["dmd", "diff-instruct", "plain"]


class Optimizer(Section):
    """Adam; see ``fewstep.training.Adam``. ``clip``: bound on the gradient's norm, null for none."""

    lr: Positive = 1e-4
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.0, 0.999], min_length=2, max_length=2)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0)
    decay: float = Field(0.0, ge=0, le=1)
    clip: Positive | None = None


# The sections of a distillation.
class ShippedTeacher(Section):
    kind: Literal["shipped"]
    name: Literal["digits", "mixture2d"]


class FileTeacher(Section):
    kind: Literal["file"]
    path: str


TeacherChoice = Annotated[ShippedTeacher | FileTeacher, Field(discriminator="kind")]


class CopyStudent(Section):
    """A copy of the teacher, called at one fixed noise level sigma / alpha."""

    kind: Literal["copy"]
    first_sigma: Positive = 2.5


class LatentStudent(Section):
    """A multilayer perceptron on a latent, which knows no noise levels (App. E.2)."""

    kind: Literal["latent-mlp"]
    latent: Count = 2
    width: Count = 64
    depth: Count = 3
    seed: int = 0


StudentChoice = Annotated[CopyStudent | LatentStudent, Field(discriminator="kind")]


class FakeScore(Section):
    """The learned score of the student's distribution. ``updates``: of it, for one of the student."""

    times: TimesChoice = LogNormal(kind="log-normal")
    weighting: DenoisingWeighting = EDMWeighting(kind="edm")
    optimizer: Optimizer = Optimizer()
    updates: Count = 1


class DistributionMatchingMethod(Section):
    kind: Literal["distribution-matching"]
    weighting: MatchingWeighting = MatchingWeighting(kind="dmd")
    times: TimesChoice = LogNormal(kind="log-normal")
    optimizer: Optimizer = Optimizer()
    fake: FakeScore = FakeScore()


class FixedTarget(Section):
    kind: Literal["fixed"]


class RecordEvery(Section):
    kind: Literal["every"]
    steps: Steps


class RecordByDistance(Section):
    """``distance`` and ``floor`` relative to the teacher's spread over the probes."""

    kind: Literal["distance"]
    distance: Positive = 0.1
    floor: float = Field(0.5, ge=0, lt=1)
    max_steps: Steps = 200


RecordChoice = Annotated[RecordEvery | RecordByDistance, Field(discriminator="kind")]


class SwitchEvery(Section):
    """``steps`` at each node, or a list in the order of use whose last entry serves all that remain."""

    kind: Literal["every"]
    steps: Steps | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1), Share()]


class SwitchAtPlateau(Section):
    kind: Literal["plateau"]
    window: Steps = 20
    improvement: float = Field(0.02, ge=0, lt=1)
    min_steps: Steps = 20
    max_steps: Steps = 200


SwitchChoice = Annotated[SwitchEvery | SwitchAtPlateau, Field(discriminator="kind")]


class BacktrackedTarget(Section):
    """``nodes`` counts the teacher. ``optimizer`` degrades the teacher."""

    kind: Literal["backtracked"]
    nodes: Count
    record: RecordChoice
    switch: SwitchChoice
    optimizer: Optimizer = Optimizer()


TargetChoice = Annotated[FixedTarget | BacktrackedTarget, Field(discriminator="kind")]


class PriorStates(Section):
    kind: Literal["prior"]


class NotReflected(Section):
    kind: Literal["none"]


class DigitsData(Section):
    kind: Literal["digits"]


class MixtureData(Section):
    """``components`` round Gaussians with means uniform in a square (App. E.2); ``samples`` of them stand for the data set."""

    kind: Literal["random-mixture"]
    components: Count = 10
    half_width: Positive = 4.0
    std: Positive = 0.3
    samples: int = Field(10_000, ge=2)
    seed: int = 0


DataChoice = Annotated[DigitsData | MixtureData, Field(discriminator="kind")]


class HalfLifeAverage(Section):
    kind: Literal["half-life"]
    steps: float = Field(200.0, ge=0)
    ramp: float = Field(0.05, ge=0)


class PowerAverage(Section):
    kind: Literal["power"]
    std: float = Field(0.1, gt=0, lt=0.288)


AverageChoice = Annotated[HalfLifeAverage | PowerAverage, Field(discriminator="kind")]


class Training(Section):
    """``steps``: of all stages together. Cadences are in steps. ``laid_out_for``: the steps that the shares of stages and nodes were made for, when a resumed run was given more."""

    steps: Count
    laid_out_for: Count | None = None
    batch: Count = 64
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    average: AverageChoice = HalfLifeAverage(kind="half-life")
    log_every: Count = 20
    checkpoint_every: Count = 500
    keep: Count = 2
    health_every: Count = 200


class SolverChoice(Section):
    rule: Literal["euler", "heun", "dpm2m"] = "dpm2m"
    grid: Literal["rho", "log-snr", "uniform"] = "rho"


class DigitFeatures(Section):
    kind: Literal["digits-features"]


class FourierFeatures(Section):
    kind: Literal["fourier"]
    count: Count = 64
    bandwidth: Positive = 1.0
    seed: int = 0


FeaturesChoice = Annotated[DigitFeatures | FourierFeatures, Field(discriminator="kind")]


class Evaluation(Section):
    """``every``: steps between quick measurements (one draw) of the student while it trains; ``samples`` a draw."""

    features: FeaturesChoice
    samples: int = Field(5000, ge=2)
    draws: Count = 3
    seed: int = 0
    every: Count = 200
    teacher_steps: list[Count] = [35, 1]
    student_steps: list[Count] = [1]
    solver: SolverChoice = SolverChoice()


class DistillRecipe(Section):
    """Distils a teacher into a few-step student."""

    task: Literal["distill"]
    teacher: TeacherChoice
    student: StudentChoice
    method: DistributionMatchingMethod
    target: TargetChoice
    states: PriorStates = PriorStates(kind="prior")
    reflected: NotReflected = NotReflected(kind="none")
    data: DataChoice
    training: Training
    evaluation: Evaluation


# The sections of a pretraining.
class DenoisingMethod(Section):
    kind: Literal["denoising"]
    times: TimesChoice = LogNormal(kind="log-normal")
    weighting: DenoisingWeighting = EDMWeighting(kind="edm")
    label_dropout: float = Field(0.1, ge=0, le=1)
    optimizer: Optimizer = Optimizer()


class ClassificationMethod(Section):
    kind: Literal["classification"]
    noise_std: float = Field(0.1, ge=0)
    optimizer: Optimizer = Optimizer()


class PretrainRecipe(Section):
    """Trains a teacher or a feature network from scratch."""

    task: Literal["pretrain"]
    model: Annotated[DenoiserModel | ClassifierModel, Field(discriminator="kind")]
    method: Annotated[DenoisingMethod | ClassificationMethod, Field(discriminator="kind")]
    data: DataChoice
    training: Training
    evaluation: Evaluation


Recipe = DistillRecipe | PretrainRecipe
