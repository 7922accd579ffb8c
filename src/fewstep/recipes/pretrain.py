"""Builds the runs that train a teacher or a feature network from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fewstep.data import Dataset
from fewstep.denoisers import NetworkDenoiser
from fewstep.errors import UserError
from fewstep.objectives import Classification, Denoising
from fewstep.recipes.parts import build_data, build_denoising_weight, build_model, build_optimizer, build_times
from fewstep.recipes.recipe import ClassificationPretraining, PretrainRecipe
from fewstep.schedule import KarrasVE
from fewstep.states import ForwardDiffusion
from fewstep.times import UniformTimes
from fewstep.training import Phase, Stage, Term


@dataclass(frozen=True, eq=False)
class Pretraining:
    """The parts of a pretraining run."""

    model: nn.Module
    data: Dataset
    stages: list[Stage]


def build_pretraining(recipe: PretrainRecipe) -> Pretraining:
    """One stage with one phase: denoising for a denoiser, cross-entropy for a classifier."""
    data = build_data(recipe.data)
    model = build_model(recipe.model, data, recipe.training.seed)
    method = recipe.method
    if isinstance(method, ClassificationPretraining) != (recipe.model.kind == "classifier"):
        raise UserError("'method' and 'model' do not fit: 'denoising' trains a 'denoiser', 'classification' a 'classifier'.")
    if isinstance(method, ClassificationPretraining):
        # Clean labelled samples; the times play no part.
        term = Term(Classification(model, method.noise_std), ForwardDiffusion(data, KarrasVE(), UniformTimes()), name="classification")
    else:
        assert isinstance(model, NetworkDenoiser)
        states = ForwardDiffusion(data, model.schedule, build_times(method.times), method.label_dropout)
        term = Term(Denoising(model, build_denoising_weight(method.weighting)), states, name="denoising")
    phase = Phase("model", model, [term], build_optimizer(method.optimizer), clip=method.optimizer.clip)
    return Pretraining(model, data, [Stage("pretrain", recipe.training.steps, [phase])])
