"""Builds the runs that train a teacher, a generator or a feature network from scratch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fewstep.condition import LABELS
from fewstep.data import Conditioned, Dataset, Described
from fewstep.denoisers import Generator, NetworkDenoiser, device_of
from fewstep.errors import UserError
from fewstep.networks import PatchAutoencoder, build
from fewstep.objectives import (
    AdversarialCritic,
    AdversarialGenerator,
    AttributeReading,
    Classification,
    Clean,
    CleanCritic,
    Denoising,
    GANLoss,
    Hinge,
    NonSaturating,
    Reconstruction,
    Shifted,
    View,
)
from fewstep.recipes.building.device import building_device, resolve_device
from fewstep.recipes.building.parts import check_guidance, fitting_grid
from fewstep.recipes.building.placement import check_unplaced
from fewstep.recipes.building.untrained_students import generator_prior
from fewstep.recipes.recipe import (
    ClassificationPretraining,
    DenoisingPretraining,
    GANPretraining,
    PretrainRecipe,
    ReadingPretraining,
    ReconstructionPretraining,
)
from fewstep.schedule import KarrasVE
from fewstep.states import Attributed, ForwardDiffusion, Prior
from fewstep.times import UniformTimes
from fewstep.training import Phase, Stage, Term

_TRAINS = {
    "denoising": "denoiser",
    "gan": "generator",
    "classification": "classifier",
    "reading": "reader",
    "reconstruction": "codec",
}


@dataclass(frozen=True, eq=False)
class Pretraining:
    """The parts of a pretraining run; ``prior``: where a generator's samples start, None for other
    models.
    """

    model: nn.Module
    data: Dataset
    stages: list[Stage]
    prior: Prior | None = None


def build_pretraining(recipe: PretrainRecipe) -> Pretraining:
    """One stage: denoising for a denoiser, cross-entropy for a classifier or a reader, the
    squared error for a codec, a game with a critic for a generator; on ``training.device`` (on the
    CPU where networks are yet to be sharded, or wait for their turn).

    Raises ``UserError`` where 'method' and 'model' do not fit, and for a device that is not there.
    """
    data, method, device = (
        recipe.data.open(),
        recipe.method,
        building_device(recipe.training, recipe.distributed, resolve_device(recipe.training.device)),
    )
    check_unplaced(recipe)
    if recipe.evaluation.reference is not None:
        raise UserError(
            "'evaluation.reference.kind: teacher' is for a distillation, and this recipe has no teacher; leave it out."
        )
    if recipe.training.keep_best is not None:
        raise UserError(
            "'training.keep_best' keeps a student, and a pretraining has none; leave it out, or use 'fewstep distill'."
        )
    if _TRAINS[method.kind] != recipe.model.kind:
        fits = ", ".join(f"'{name}' trains a '{kind}'" for name, kind in _TRAINS.items())
        raise UserError(f"'method.kind: {method.kind}' and 'model.kind: {recipe.model.kind}' do not fit: {fits}.")
    model = recipe.model.build(data, recipe.training.seed).to(device)
    if isinstance(method, GANPretraining):
        generator = model
        assert isinstance(generator, Generator)
        prior = generator_prior(generator, KarrasVE())
        return Pretraining(
            generator,
            data,
            [Stage("pretrain", recipe.training.steps, _game(method, generator, prior, data, recipe.training.seed))],
            prior,
        )
    if isinstance(model, NetworkDenoiser):
        check_guidance(recipe.evaluation, model.classes)
        fitting_grid(recipe.evaluation.solver, model.schedule, "evaluation.solver", recipe.evaluation.teacher_steps)
    phase = Phase("model", model, [_alone(method, model, data)], method.optimizer)
    return Pretraining(model, data, [Stage("pretrain", recipe.training.steps, [phase])])


def _alone(
    method: DenoisingPretraining | ClassificationPretraining | ReadingPretraining | ReconstructionPretraining,
    model: nn.Module,
    data: Dataset,
) -> Term:
    """What a model learns that has no opponent."""
    if isinstance(method, ClassificationPretraining):
        return Term(Classification(model, method.noise_std), _clean(data), name="classification")
    if isinstance(method, ReadingPretraining):
        assert isinstance(data, Described)
        return Term(AttributeReading(model, method.noise_std), Attributed(data), name="reading")
    if isinstance(method, ReconstructionPretraining):
        assert isinstance(model, PatchAutoencoder)
        return Term(Reconstruction(model, method.noise_std), _clean(data), name="reconstruction")
    assert isinstance(model, NetworkDenoiser)
    conditions = data.conditions if isinstance(data, Conditioned) else LABELS
    states = ForwardDiffusion(data, model.schedule, method.times, method.label_dropout, conditions)
    return Term(Denoising(model, method.weighting), states, name="denoising")


def _game(method: GANPretraining, generator: Generator, prior: Prior, data: Dataset, seed: int) -> list[Phase]:
    """The generator's phase, and the critic's on the same samples."""
    loss: GANLoss = Hinge() if method.loss == "hinge" else NonSaturating()
    view: View = Shifted(method.shift, data.low) if method.shift else Clean()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(
            method.critic.description(resolution=data.shape[1], channels=data.shape[0], classes=data.classes)
        )
    critic = CleanCritic(network).to(device_of(generator))
    generator_term = Term(AdversarialGenerator(generator, critic, loss, view), prior, name="adversarial")
    critic_term = Term(AdversarialCritic(critic, generator, _clean(data), loss, view, method.r1), prior, name="critic")
    return [
        Phase("generator", generator, [generator_term], method.optimizer),
        Phase("critic", critic, [critic_term], method.critic_optimizer),
    ]


def _clean(data: Dataset) -> ForwardDiffusion:
    """Clean samples, with their labels where they have any; the times play no part."""
    return ForwardDiffusion(data, KarrasVE(), UniformTimes())
