"""The two kinds of recipes: a distillation and a pretraining."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fewstep.networks.kinds.registry import kinds
from fewstep.objectives import EDMWeight
from fewstep.recipes import config
from fewstep.recipes.config.models import section_of
from fewstep.recipes.methods import MethodChoice
from fewstep.times import LogNormalTimes
from fewstep.training import Adam
from fewstep.values import Later


class DistillRecipe(config.Section):
    """Distils a teacher into a few-step student.

    ``data``: null for methods that need none, which then measure nothing against data. ``prompts``:
    what the student is trained to draw, of a text-to-image teacher; null for the teacher's classes.
    """

    task: Literal["distill"]
    teacher: config.TeacherChoice
    student: config.StudentChoice
    method: MethodChoice
    target: config.TargetChoice = config.FixedTarget(kind="fixed")
    states: config.StatesChoice = config.UsualStates(kind="usual")
    reflected: config.ReflectedChoice = config.NotReflected(kind="none")
    data: config.DataChoice | None = None
    prompts: Annotated[config.PromptsChoice | None, Later()] = None
    training: config.Training
    evaluation: config.Evaluation
    distributed: config.Distributed = config.Distributed()


class DenoisingPretraining(config.Section):
    kind: Literal["denoising"]
    times: config.TimesChoice = LogNormalTimes()
    weighting: config.DenoisingWeighting = EDMWeight()
    label_dropout: float = Field(0.1, ge=0, le=1)
    optimizer: config.OptimizerChoice = Adam()


class ClassificationPretraining(config.Section):
    kind: Literal["classification"]
    noise_std: float = Field(0.1, ge=0)
    optimizer: config.OptimizerChoice = Adam()


class ReadingPretraining(config.Section):
    """A reader learns the attributes of slightly noised data, all at once."""

    kind: Literal["reading"]
    noise_std: float = Field(0.1, ge=0)
    optimizer: config.OptimizerChoice = Adam()


class ReconstructionPretraining(config.Section):
    """A codec's decoder learns to give pictures back from their latents, with a little noise in
    them.
    """

    kind: Literal["reconstruction"]
    noise_std: float = Field(0.0, ge=0)
    optimizer: config.OptimizerChoice = Adam()


_CRITIC = section_of(kinds()["image-critic"])(kind="image-critic")


class GANPretraining(config.Section):
    """A generator against a critic of its own on clean images.

    ``r1``: the factor of R1; ``shift``: by how many pixels at most either side's images are moved
    before the critic sees them.
    """

    kind: Literal["gan"]
    loss: Literal["non-saturating", "hinge"] = "non-saturating"
    r1: float = Field(1.0, ge=0)
    shift: int = Field(0, ge=0, le=64)
    critic: config.CriticChoice = _CRITIC
    optimizer: config.OptimizerChoice = Adam()
    critic_optimizer: config.OptimizerChoice = Adam()


class PretrainRecipe(config.Section):
    """Trains a teacher, a generator or a feature network from scratch."""

    task: Literal["pretrain"]
    model: Annotated[
        config.DenoiserModel | config.GeneratorModel | config.ClassifierModel | config.ReaderModel | config.CodecModel,
        Field(discriminator="kind"),
    ]
    method: Annotated[
        DenoisingPretraining
        | GANPretraining
        | ClassificationPretraining
        | ReadingPretraining
        | ReconstructionPretraining,
        Field(discriminator="kind"),
    ]
    data: config.DataChoice
    training: config.Training
    evaluation: config.Evaluation
    distributed: config.Distributed = config.Distributed()


Recipe = DistillRecipe | PretrainRecipe
TASKS: dict[str, type[DistillRecipe] | type[PretrainRecipe]] = {"distill": DistillRecipe, "pretrain": PretrainRecipe}
