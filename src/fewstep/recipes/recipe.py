"""The two kinds of recipes: a distillation and a pretraining."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fewstep.recipes import config
from fewstep.recipes.methods import MethodChoice


class DistillRecipe(config.Section):
    """Distils a teacher into a few-step student."""

    task: Literal["distill"]
    teacher: config.TeacherChoice
    student: config.StudentChoice
    method: MethodChoice
    target: config.TargetChoice = config.FixedTarget(kind="fixed")
    states: config.StatesChoice = config.UsualStates(kind="usual")
    reflected: config.ReflectedChoice = config.NotReflected(kind="none")
    data: config.DataChoice
    training: config.Training
    evaluation: config.Evaluation


class DenoisingPretraining(config.Section):
    kind: Literal["denoising"]
    times: config.TimesChoice = config.LogNormal(kind="log-normal")
    weighting: config.DenoisingWeighting = config.EDMWeighting(kind="edm")
    label_dropout: float = Field(0.1, ge=0, le=1)
    optimizer: config.Optimizer = config.Optimizer()


class ClassificationPretraining(config.Section):
    kind: Literal["classification"]
    noise_std: float = Field(0.1, ge=0)
    optimizer: config.Optimizer = config.Optimizer()


class PretrainRecipe(config.Section):
    """Trains a teacher or a feature network from scratch."""

    task: Literal["pretrain"]
    model: Annotated[config.DenoiserModel | config.ClassifierModel, Field(discriminator="kind")]
    method: Annotated[DenoisingPretraining | ClassificationPretraining, Field(discriminator="kind")]
    data: config.DataChoice
    training: config.Training
    evaluation: config.Evaluation


Recipe = DistillRecipe | PretrainRecipe
